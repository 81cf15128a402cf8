/* The page: tabs, settings, the composer, and what they have to do with each other. */

import { programs } from "./code.js";
import { byId, el } from "./dom.js";
import { Chat, JsonSchema, Logprobs, Responses, Tools } from "./modes.js";

const root = byId("playground");
const { api, responseUrl, requestUrl } = root.dataset;
const settings = byId("settings");
const composer = byId("composer");
const prompt = byId("prompt");
const NUMBERS = ["temperature", "max_tokens", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty"];

/** The request as it was sent and what came back, byte for byte. */
const raw = {
  pre: byId("raw").querySelector("pre"),
  hint: byId("raw").querySelector(".hint"),
  begin(path, body) {
    this.hint.hidden = true;
    this.pre.textContent = `POST /v1/${path}\n${JSON.stringify(body, null, 2)}\n\n`;
  },
  head(response) {
    const names = ["content-type", "x-request-id", "openai-processing-ms", "retry-after"];
    const known = names.filter((name) => response.headers.has(name));
    const lines = known.map((name) => `${name}: ${response.headers.get(name)}\n`);
    this.pre.append(`HTTP ${response.status}\n`, ...lines, "\n");
  },
  add(text) {
    this.pre.append(text);
  },
};

const page = {
  api,
  responseUrl,
  requestUrl,
  token: root.querySelector("[name=csrfmiddlewaretoken]").value,
  raw,
  abort: undefined, // the AbortController of what is being asked

  get isBusy() {
    return Boolean(this.abort);
  },

  /** What the settings say; what is left empty is the model's own default, and not sent. */
  settings() {
    if (!settings.checkValidity()) {
      settings.firstElementChild.open = true;
      settings.reportValidity();
      throw new Error("The settings are not complete, or not right.");
    }
    const given = { model: byId("model").value };
    if (byId("system").value.trim()) given.system = byId("system").value;
    for (const name of NUMBERS) if (byId(name).value !== "") given[name] = Number(byId(name).value);
    const stops = byId("stop_strings").value.split("\n").filter(Boolean);
    if (stops.length) given.stop = stops;
    if (byId("reasoning_effort").value) given.reasoning_effort = byId("reasoning_effort").value;
    return given;
  },

  /** Run `asking` with a signal that the Stop button sends. One at a time. */
  async during(asking) {
    this.abort = new AbortController();
    showState();
    try {
      await asking(this.abort.signal);
    } finally {
      this.abort = undefined;
      showState();
    }
  },

  /** Keep the end in view, for who is there already. */
  follow() {
    if (isAtEnd) window.scrollTo(0, document.documentElement.scrollHeight);
    showState();
  },
};

let isAtEnd = true;
window.addEventListener("scroll", () => {
  isAtEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 80;
});

const modes = {
  chat: new Chat(byId("chat"), page),
  responses: new Responses(byId("responses"), page),
  schema: new JsonSchema(byId("schema"), page),
  tools: new Tools(byId("tools"), page),
  logprobs: new Logprobs(byId("logprobs"), page),
};
let mode = modes.chat;

/* Tabs */

const tabs = [...root.querySelectorAll("[role=tab]")];

function choose(tab, focus = false) {
  const name = tab.getAttribute("aria-controls");
  for (const other of tabs) {
    const isChosen = other === tab;
    other.setAttribute("aria-selected", String(isChosen));
    other.tabIndex = isChosen ? 0 : -1;
    byId(other.getAttribute("aria-controls")).hidden = !isChosen;
  }
  mode = modes[name] ?? mode;
  composer.hidden = !(name in modes);
  if (name === "code") showCode();
  if (focus) tab.focus();
  history.replaceState(null, "", `#${name}`);
  showState();
}

for (const [index, tab] of tabs.entries()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: -1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(tabs.at(to % tabs.length), true);
  });
}

/** The last call of the mode, or the one that Send would make. */
function showCode() {
  const shown = byId("code");
  let body = mode.lastBody;
  const hint = body ? "The last call, as a program." : "The call that Send would make, as a program.";
  try {
    body ??= mode.preview(prompt.value || "Hello!");
  } catch (error) {
    shown.replaceChildren(el("p", { className: "failure", role: "alert" }, error.message));
    return;
  }
  const figures = programs(`${location.origin}/v1`, mode.path, body).map(([language, program]) => {
    const copy = el("button", { type: "button", className: "button quiet" }, "Copy");
    copy.addEventListener("click", () => copyText(program, copy));
    const heading = el("figcaption", {}, el("h3", {}, language), copy);
    const code = el("code", {}, program);
    return el("figure", {}, heading, el("pre", { tabIndex: 0, "data-language": language, "aria-label": language }, code));
  });
  shown.replaceChildren(el("p", { className: "hint" }, hint), ...figures);
}

async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed"; // on plain HTTP, but for localhost
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

/* The composer */

function showState() {
  byId("send").hidden = page.isBusy;
  byId("stop").hidden = !page.isBusy;
  byId("again").disabled = page.isBusy || !mode.again;
  byId("clear").disabled = page.isBusy || mode.isEmpty;
  for (const tab of tabs) tab.classList.toggle("busy", page.isBusy && modes[tab.getAttribute("aria-controls")] === mode);
}

async function send() {
  const text = prompt.value;
  if (page.isBusy || !text.trim()) return;
  prompt.value = "";
  isAtEnd = true;
  const isSent = await reported(() => mode.send(text));
  if (!isSent) prompt.value ||= text; // to be sent again
}

/** What goes wrong before a request is made has no answer to stand in. */
async function reported(action) {
  try {
    return await action();
  } catch (error) {
    const notice = el("p", { className: "failure notice", role: "alert" }, error.message);
    composer.querySelector(".notice")?.remove();
    composer.append(notice);
    composer.addEventListener("input", () => notice.remove(), { once: true });
    settings.addEventListener("input", () => notice.remove(), { once: true });
    return false;
  }
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
settings.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") page.abort?.abort();
});
byId("stop").addEventListener("click", () => {
  page.abort?.abort();
  prompt.focus();
});
byId("again").addEventListener("click", () => reported(() => mode.again()));
byId("clear").addEventListener("click", () => {
  mode.clear();
  showState();
  prompt.focus();
});

/* The beginning */

async function loadModels() {
  const response = await fetch(`${api}/models`);
  const body = await response.json();
  if (!response.ok) throw new Error(body.error.message);
  const options = body.data.map(({ id, max_model_len: limit }) => el("option", { value: id, title: `context of ${limit} tokens` }, id));
  byId("model").replaceChildren(...options);
}

const narrow = window.matchMedia("(max-width: 767px)");
const fold = () => (settings.firstElementChild.open = !narrow.matches);
narrow.addEventListener("change", fold);
fold();
const [name, id] = location.hash.slice(1).split("/");
if (id) byId("previous").value = id;
choose(tabs.find((tab) => tab.getAttribute("aria-controls") === name) ?? tabs[0]);
reported(loadModels);
