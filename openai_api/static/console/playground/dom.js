/* Building the page. Text becomes text nodes: nothing here, or anywhere else, parses HTML. */

/** An element. `properties` are its own, but for those with a dash and `role`, its attributes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "role" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

export const byId = (id) => document.getElementById(id);

/** A link into the admin; its pages have their own way to write ids into addresses. */
export function adminLink(pattern, id, text = id) {
  if (!pattern) return el("span", {}, text);
  const quoted = id.replace(/[^A-Za-z0-9.-]/g, (c) => `_${c.charCodeAt(0).toString(16).toUpperCase().padStart(2, "0")}`);
  return el("a", { href: pattern.replace("/ID/", `/${quoted}/`) }, text);
}

/** Call `draw` once before the next frame, however often it is asked for; `now` does not wait. */
export class Drawing {
  constructor(draw) {
    this.draw = draw;
    this.frame = 0;
  }
  later() {
    this.frame ||= requestAnimationFrame(() => this.now());
  }
  now() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.draw();
  }
}
