/* Tokens coloured by their probability, with what else could have stood in the place of each. */

import { el } from "./dom.js";

const STEPS = [0.9, 0.7, 0.4, 0.15, 0.03]; // below the last it is the hottest

export class HeatMap {
  constructor() {
    this.tokens = el("div", { className: "tokens", role: "group", "aria-label": "Tokens, coloured by probability" });
    this.readout = el("div", { className: "readout", role: "status" });
    this.node = el("div", { className: "heatmap" }, legend(), this.tokens, this.readout);
    this.tokens.addEventListener("pointerover", (event) => this.show(event.target));
    this.tokens.addEventListener("focusin", (event) => this.show(event.target));
    this.tokens.addEventListener("keydown", (event) => this.move(event));
    this.entries = new Map(); // by node
  }

  /** Entries of the API's `logprobs.content`. */
  add(entries) {
    for (const entry of entries) {
      const node = el("span", { className: `token heat-${heat(entry.logprob)}`, role: "button" }, visible(entry));
      node.tabIndex = this.entries.size ? -1 : 0;
      if (entry.token.includes("\n")) node.classList.add("ends-line");
      this.entries.set(node, entry);
      this.tokens.append(node);
    }
  }

  show(node) {
    const entry = this.entries.get(node);
    if (!entry) return;
    this.tokens.querySelector(".shown")?.classList.remove("shown");
    node.classList.add("shown");
    const others = entry.top_logprobs.some((other) => other.token === entry.token) ? [] : [entry];
    const rows = [...entry.top_logprobs, ...others].map((other) => row(other, other.token === entry.token));
    const head = el("tr", {}, ...["token", "probability", "log"].map((name) => el("th", { scope: "col" }, name)));
    this.readout.replaceChildren(el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const nodes = [...this.entries.keys()];
    const to = nodes[nodes.indexOf(event.target) + step];
    if (!to) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}

function row(entry, isChosen) {
  const probability = Math.exp(entry.logprob);
  const meter = el("meter", { min: 0, max: 1, value: probability });
  const name = el("code", {}, visible(entry));
  return el(
    "tr",
    { className: isChosen ? "chosen" : "" },
    el("td", {}, name, ...(isChosen ? [el("span", { className: "visually-hidden" }, " (chosen)")] : [])),
    el("td", {}, meter, ` ${percent(probability)}`),
    el("td", {}, entry.logprob.toFixed(3)),
  );
}

function percent(probability) {
  const value = probability * 100;
  return value < 0.01 ? "< 0.01 %" : `${value.toFixed(value < 1 ? 2 : 1)} %`;
}

function heat(logprob) {
  const probability = Math.exp(logprob);
  const step = STEPS.findIndex((limit) => probability >= limit);
  return step < 0 ? STEPS.length : step;
}

/** Part of a character is no text: its bytes are shown. Line ends and the like must be seen. */
function visible({ token, bytes }) {
  if (token.includes("\ufffd") && bytes) {
    return bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
  return token.replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
}

function legend() {
  const names = ["≥ 90 %", "70 %", "40 %", "15 %", "3 %", "less"];
  const steps = names.map((name, step) => el("span", { className: `token heat-${step}` }, name));
  return el("p", { className: "legend" }, "Probability: ", ...steps);
}
