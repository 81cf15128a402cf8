/* The ways to ask: what each sends, and what it does with what comes back. */

import { Answer, SHOWN, message, plain, pretty } from "./answer.js";
import { adminLink, byId, el } from "./dom.js";
import { ApiError, Stopwatch, post } from "./stream.js";

/** What all of them share. `page` is what stands around them. */
class Mode {
  path = "chat/completions";
  show = SHOWN.markdown;
  lastBody = undefined;

  constructor(panel, page) {
    this.log = panel.querySelector(".log");
    this.page = page;
  }

  get isEmpty() {
    return !this.log.childElementCount;
  }

  clear() {
    this.log.replaceChildren();
    this.lastBody = this.again = undefined;
  }

  add(node) {
    this.log.append(node);
    this.page.follow();
  }

  /** Ask with `body`. Gives the answer if there is any of it, also of what failed or was stopped. */
  async ask(body) {
    const answer = new Answer(this.show);
    const watch = new Stopwatch();
    answer.onDraw = () => this.page.follow();
    this.lastBody = body;
    this.add(answer.node);
    const outcome = {};
    let error;
    try {
      await this.page.during(async (signal) => {
        for await (const event of this.events(body, signal, outcome)) {
          if (event.error) throw new ApiError(event.error.message);
          this.take(event, answer, outcome, watch);
        }
      });
    } catch (caught) {
      if (caught.name === "AbortError") outcome.end = "stopped";
      else error = caught.message;
      if (caught.status === 403) error += " Your session may have ended: reload the page to log in.";
    }
    answer.end(facts(watch, outcome, this.page), error);
    return answer.isEmpty && error ? undefined : [answer, outcome];
  }

  events(body, signal, outcome) {
    const { api, token, raw, requestUrl } = this.page;
    raw.begin(this.path, body);
    return post(`${api}/${this.path}`, body, {
      token,
      signal,
      onHead: (response) => {
        const id = response.headers.get("x-request-id");
        if (id && requestUrl) outcome.request = adminLink(requestUrl, id, "history");
        raw.head(response);
      },
      onText: (text) => raw.add(text),
    });
  }
}

function facts(watch, { end, usage, request, response }) {
  const { prompt, cached, completion, thought } = usage ?? {};
  const first = watch.firstTokenMs;
  const speed = watch.tokensPerSecond(completion);
  return [
    ["first token", first === undefined ? "" : `${first < 100 ? first.toFixed(1) : first.toFixed(0)} ms`],
    ["speed", speed && `${speed < 100 ? speed.toFixed(1) : speed.toFixed(0)} tok/s`],
    ["prompt", usage && `${prompt} tokens${cached ? ` (${cached} cached)` : ""}`],
    ["answer", usage && `${completion} tokens${thought ? ` (${thought} thought)` : ""}`],
    ["end", end],
    ["response", response],
    ["request", request],
  ];
}

/** A conversation that the page keeps, and sends as a whole each time. */
export class Chat extends Mode {
  messages = [];

  clear() {
    super.clear();
    this.messages = [];
  }

  body(messages = this.messages) {
    const { system, ...sampling } = this.page.settings();
    const leading = system ? [{ role: "system", content: system }] : [];
    const options = { stream: true, stream_options: { include_usage: true } };
    return { ...this.common(sampling), messages: [...leading, ...messages], ...options, ...this.extras() };
  }

  common({ model, max_tokens: limit, ...sampling }) {
    return { model, ...sampling, ...(limit === undefined ? {} : { max_completion_tokens: limit }) };
  }

  extras() {
    return {};
  }

  preview(text) {
    return this.body([...this.messages, { role: "user", content: text }]);
  }

  /** True if the text is part of the conversation now. */
  async send(text) {
    const body = this.preview(text); // throws before anything has changed
    const shown = message("user", plain(text));
    this.messages.push({ role: "user", content: text });
    this.add(shown);
    if (await this.complete(body)) return true;
    this.messages.pop();
    return false;
  }

  async complete(body = this.body()) {
    const [numMessages, numNodes] = [this.messages.length, this.log.childElementCount];
    this.again = () => {
      this.messages.length = numMessages;
      while (this.log.childElementCount > numNodes) this.log.lastChild.remove();
      return this.complete();
    };
    const asked = await this.ask(body);
    if (!asked) return false;
    const [answer] = asked;
    this.messages.push(turn(answer));
    this.answered(answer);
    return true;
  }

  answered() {}

  take(event, answer, outcome, watch) {
    if (event.usage) outcome.usage = chatUsage(event.usage);
    const [choice] = event.choices;
    if (!choice) return;
    outcome.end = choice.finish_reason ?? outcome.end;
    const { content, reasoning_content: thought, tool_calls: calls } = choice.delta;
    if (content || thought || calls) watch.tick();
    answer.think(thought);
    answer.say(content);
    for (const { index, id, function: called } of calls ?? []) answer.call(index, { id, ...called });
    this.takeMore(choice, answer);
  }

  takeMore() {}
}

/** The answer as a message of the next request. Thoughts stay out: templates drop them anyway. */
function turn({ text, calls }) {
  const tools = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  return { role: "assistant", content: text, ...(tools.length ? { tool_calls: tools } : {}) };
}

const chatUsage = (usage) => ({
  prompt: usage.prompt_tokens,
  cached: usage.prompt_tokens_details?.cached_tokens,
  completion: usage.completion_tokens,
  thought: usage.completion_tokens_details?.reasoning_tokens,
});

export class JsonSchema extends Chat {
  show = SHOWN.json;

  extras() {
    const schema = jsonIn("json-schema");
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema, strict: true } } };
  }
}

export class Logprobs extends Chat {
  extras() {
    return { logprobs: true, top_logprobs: 5 };
  }

  takeMore({ logprobs }, answer) {
    if (logprobs?.content) answer.tokens(logprobs.content);
  }
}

export class Tools extends Chat {
  clear() {
    super.clear();
    this.results = undefined;
  }

  extras() {
    return { tools: jsonIn("tool-list"), tool_choice: byId("tool-choice").value };
  }

  /** While calls wait for their results, that is what is to be written. */
  async send(text) {
    if (this.results?.isConnected) {
      this.results.querySelector("textarea").focus();
      return false;
    }
    return super.send(text);
  }

  answered({ calls }) {
    if (!calls.length) return;
    const fields = calls.map(({ name }) => {
      const field = el("textarea", { rows: 2, required: true, placeholder: '{"temperature": 18, "condition": "sunny"}' });
      return [field, el("label", { className: "field" }, `Result of ${name}`, field)];
    });
    const button = el("button", { type: "submit", className: "button" }, "Send results");
    this.results = el("form", { className: "results" }, ...fields.map(([, label]) => label), button);
    this.results.addEventListener("submit", (event) => {
      event.preventDefault();
      this.reply(calls, fields.map(([field]) => field.value));
    });
    this.add(this.results);
    fields[0][0].focus({ preventScroll: true });
  }

  async reply(calls, values) {
    if (this.page.isBusy) return;
    this.results.remove();
    calls.forEach(({ id, name }, index) => {
      this.messages.push({ role: "tool", tool_call_id: id, content: values[index] });
      this.add(message("tool", el("pre", {}, `${name} → ${pretty(values[index])}`)));
    });
    await this.complete();
  }
}

/** A chain of stored responses: each continues the one before, and sends only what is new. */
export class Responses extends Mode {
  path = "responses";

  constructor(panel, page) {
    super(panel, page);
    this.chain = panel.querySelector(".chain ol");
    this.previous = byId("previous");
  }

  clear() {
    super.clear();
    this.chain.replaceChildren();
    this.previous.value = "";
  }

  preview(text) {
    const { model, system, max_tokens: limit, reasoning_effort: effort, ...sampling } = this.page.settings();
    return {
      model,
      input: text,
      ...(system ? { instructions: system } : {}),
      ...(this.previous.value ? { previous_response_id: this.previous.value.trim() } : {}),
      ...sampling,
      ...(limit === undefined ? {} : { max_output_tokens: limit }),
      ...(effort === undefined ? {} : { reasoning: { effort } }),
      store: true,
      stream: true,
    };
  }

  async send(text) {
    const body = this.preview(text);
    this.add(message("user", plain(text)));
    return this.respond(body, text);
  }

  async respond(body, text) {
    const [previous, numNodes, numLinks] = [this.previous.value, this.log.childElementCount, this.chain.childElementCount];
    this.again = () => {
      this.previous.value = previous;
      while (this.log.childElementCount > numNodes) this.log.lastChild.remove();
      while (this.chain.childElementCount > numLinks) this.chain.lastChild.remove();
      return this.respond(this.preview(text), text);
    };
    const asked = await this.ask(body);
    const { id, status, end } = asked?.[1] ?? {};
    if (id) this.link(id, end === "stopped" ? "cancelled" : status);
    return Boolean(asked);
  }

  /** What was stopped or failed is stored, too, but cannot be continued. */
  link(id, status) {
    const goesOn = ["completed", "incomplete"].includes(status);
    const button = el("button", { type: "button", className: "link", disabled: !goesOn }, "go on from here");
    button.addEventListener("click", () => {
      this.previous.value = id;
      byId("prompt").focus();
    });
    const badge = el("span", { className: "status" }, status ?? "");
    this.chain.append(el("li", {}, el("code", {}, adminLink(this.page.responseUrl, id)), " ", badge, " ", button));
    if (goesOn) this.previous.value = id;
  }

  take(event, answer, outcome, watch) {
    const { type, delta, response } = event;
    if (type === "response.reasoning_text.delta") answer.think(delta);
    else if (type === "response.output_text.delta") answer.say(delta);
    if (delta) watch.tick();
    if (!response) return;
    outcome.id = response.id;
    outcome.response = adminLink(this.page.responseUrl, response.id, "stored");
    outcome.status = response.status;
    outcome.end = response.status;
    if (response.incomplete_details) outcome.end += `: ${response.incomplete_details.reason}`;
    if (response.usage) outcome.usage = responseUsage(response.usage);
    if (response.error) throw new ApiError(response.error.message);
  }
}

const responseUsage = (usage) => ({
  prompt: usage.input_tokens,
  cached: usage.input_tokens_details?.cached_tokens,
  completion: usage.output_tokens,
  thought: usage.output_tokens_details?.reasoning_tokens,
});

/** The JSON in a field. Throws what is wrong with it, and leads there. */
function jsonIn(id) {
  const field = byId(id);
  try {
    return JSON.parse(field.value);
  } catch (error) {
    field.focus();
    throw new Error(`${field.labels[0].textContent}: ${error.message}`);
  }
}
