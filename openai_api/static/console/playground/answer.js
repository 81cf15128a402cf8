/* One message of the conversation on the page, and one answer while it is being written. */

import { Drawing, el } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { markdown } from "./markdown.js";

export function message(role, ...children) {
  const name = el("h3", {}, role);
  return el("article", { className: `message ${role}` }, name, ...children);
}

export const plain = (text) => el("div", { className: "passage", dir: "auto" }, text);

/** How the text of an answer is shown. */
export const SHOWN = {
  markdown: (text) => markdown(text),
  json: (text) => el("pre", { tabIndex: 0 }, pretty(text)),
};

export function pretty(json) {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json; // not whole yet, or cut
  }
}

/** What the model writes, as it comes: its thoughts, its text, its calls, and then how it went. */
export class Answer {
  text = "";
  thoughts = "";
  calls = []; // {id, name, arguments}

  constructor(show) {
    this.body = el("div", { className: "passage", dir: "auto" });
    this.node = message("assistant", this.body);
    this.node.setAttribute("aria-busy", "true");
    this.drawing = new Drawing(() => {
      this.body.replaceChildren(show(this.text));
      this.onDraw?.();
    });
  }

  get isEmpty() {
    return !(this.text || this.thoughts || this.calls.length);
  }

  say(text) {
    if (!text) return;
    this.text += text;
    this.drawing.later();
  }

  think(text) {
    if (!text) return;
    if (!this.thinking) {
      this.thinking = el("div", { className: "passage", dir: "auto" });
      this.folded = el("details", { className: "thoughts" }, el("summary", {}, "Thinking…"), this.thinking);
      this.body.before(this.folded);
    }
    this.thoughts += text;
    this.thinking.append(text);
    this.onDraw?.();
  }

  /** A piece of the call number `index`; what comes first has the id and the name. */
  call(index, { id, name, arguments: text = "" }) {
    this.calls[index] ??= { id: "", name: "", arguments: "" };
    const call = this.calls[index];
    call.id ||= id ?? "";
    call.name ||= name ?? "";
    call.arguments += text;
    if (!call.node) {
      call.node = el("pre", { className: "call", tabIndex: 0 });
      this.node.append(call.node);
    }
    call.node.textContent = `${call.name}(${call.arguments})`;
    this.onDraw?.();
  }

  tokens(entries) {
    if (!this.heatMap) {
      this.heatMap = new HeatMap();
      this.body.replaceWith(this.heatMap.node);
    }
    this.heatMap.add(entries);
    this.onDraw?.();
  }

  /** `facts` are [name, text or node]; what is not known is left out. */
  end(facts, error) {
    this.node.removeAttribute("aria-busy");
    this.drawing.now();
    if (this.folded) this.folded.firstChild.textContent = "Thoughts";
    if (!this.text && !this.heatMap) this.body.remove();
    for (const call of this.calls) call.node.textContent = `${call.name}(${pretty(call.arguments)})`;
    if (error) this.node.append(el("p", { className: "failure", role: "alert", dir: "auto" }, error));
    const known = facts.filter(([, value]) => value !== undefined && value !== null && value !== "");
    const shown = known.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    if (shown.length) this.node.append(el("dl", { className: "facts" }, ...shown));
    this.onDraw?.();
  }
}
