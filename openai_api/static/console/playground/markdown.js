/* What models write most of Markdown, as DOM nodes. Whatever it does not know stays text. */

import { el } from "./dom.js";

const FENCE = /^ {0,3}(```+|~~~+)[ \t]*([\w+#.-]*)/;
const HEADING = /^ {0,3}(#{1,6})[ \t]+(.*)$/;
const RULE = /^ {0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$/;
const ITEM = /^( *)(?:([-*+])|(\d{1,9})[.)])[ \t]+(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const TABLE_RULE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;
const INLINE = /`([^`\n]{1,2000})`|\*\*([^*\n](?:[^*]|\*(?!\*)){0,2000}?)\*\*|\*([^*\s][^*]{0,2000}?)\*|~~([^~\n]{1,2000})~~|\[([^\]\n]{1,1000})\]\(([^()\s]{1,2000})\)/g;

/** A DocumentFragment that shows `text`. */
export function markdown(text) {
  const shown = document.createDocumentFragment();
  shown.append(...blocks(text.split("\n")));
  return shown;
}

function blocks(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const read = [fence, heading, table, list, quote].find((reader) => reader.starts(line, lines[at + 1]));
    if (!line.trim()) at += 1;
    else if (read) at = read(lines, at, found);
    else at = paragraph(lines, at, found);
  }
  return found;
}

function fence(lines, at, found) {
  const [, mark, language] = FENCE.exec(lines[at]);
  const begin = at + 1;
  for (at = begin; at < lines.length && !closes(lines[at], mark); at += 1);
  const code = el("code", {}, lines.slice(begin, at).join("\n"));
  found.push(el("pre", { title: language, tabIndex: 0 }, code));
  return at + 1;
}
fence.starts = (line) => FENCE.test(line);

function closes(line, mark) {
  const text = line.trim();
  return text.startsWith(mark) && text === mark[0].repeat(text.length);
}

function heading(lines, at, found) {
  if (RULE.test(lines[at])) found.push(el("hr"));
  else {
    const [, marks, text] = HEADING.exec(lines[at]);
    found.push(el(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text)));
  }
  return at + 1;
}
heading.starts = (line) => HEADING.test(line) || RULE.test(line);

function table(lines, at, found) {
  const rows = [];
  for (let row = at; row < lines.length && lines[row].includes("|"); row += 1) {
    if (row !== at + 1) rows.push(cells(lines[row]));
  }
  const made = rows.map((row, index) => {
    return el("tr", {}, ...row.map((text) => el(index ? "td" : "th", {}, ...inline(text))));
  });
  const head = el("thead", {}, made[0]);
  found.push(el("div", { className: "wide" }, el("table", {}, head, el("tbody", {}, ...made.slice(1)))));
  return at + rows.length + 1;
}
table.starts = (line, next) => line.includes("|") && next?.includes("|") && TABLE_RULE.test(next);

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((text) => text.trim());

function list(lines, at, found) {
  const [, indent, bullet, number] = ITEM.exec(lines[at]);
  const items = [];
  for (; at < lines.length; at += 1) {
    const item = ITEM.exec(lines[at]);
    const depth = lines[at].search(/\S/);
    if (item && item[1].length <= indent.length + 1) {
      if (Boolean(item[2]) !== Boolean(bullet) || item[1].length < indent.length) break;
      items.push([item[4]]);
    } else if (depth > indent.length || (depth >= 0 && lines[at - 1].trim() && !isBlock(lines[at]))) {
      items.at(-1).push(lines[at].slice(Math.min(depth, indent.length + 2)));
    } else if (depth < 0 && /^(?: {2,}|\t)|^ *(?:[-*+]|\d{1,9}[.)])[ \t]/.test(lines[at + 1] ?? "")) {
      items.at(-1).push("");
    } else break;
  }
  const made = items.map(([first, ...rest]) => {
    const inner = rest.some((line) => line.trim()) ? blocks(rest) : [];
    return el("li", {}, ...inline(first), ...inner);
  });
  found.push(bullet ? el("ul", {}, ...made) : el("ol", { start: Number(number) }, ...made));
  return at;
}
list.starts = (line) => ITEM.test(line) && !RULE.test(line);

function quote(lines, at, found) {
  const inner = [];
  for (; at < lines.length && QUOTE.test(lines[at]); at += 1) inner.push(QUOTE.exec(lines[at])[1]);
  found.push(el("blockquote", {}, ...paragraphs(inner)));
  return at;
}
quote.starts = (line) => QUOTE.test(line);

/** Quotes hold paragraphs alone: nested without end, they would overflow the stack. */
function paragraphs(lines) {
  const found = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) at += 1;
    else at = paragraph(lines, at, found, () => false);
  }
  return found;
}

function paragraph(lines, at, found, ends = isBlock) {
  const begin = at;
  do at += 1;
  while (at < lines.length && lines[at].trim() && !ends(lines[at], lines[at + 1]));
  found.push(el("p", {}, ...inline(lines.slice(begin, at).join("\n"))));
  return at;
}

function isBlock(line, next) {
  return [fence, heading, table, list, quote].some((reader) => reader.starts(line, next));
}

function inline(text, depth = 0) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, bold, italic, struck, label, address] = match;
    nodes.push(text.slice(end, match.index));
    end = match.index + whole.length;
    const inner = (part) => (depth < 4 ? inline(part, depth + 1) : [part]);
    if (code !== undefined) nodes.push(el("code", {}, code));
    else if (bold !== undefined) nodes.push(el("strong", {}, ...inner(bold)));
    else if (italic !== undefined) nodes.push(el("em", {}, ...inner(italic)));
    else if (struck !== undefined) nodes.push(el("s", {}, ...inner(struck)));
    else nodes.push(link(whole, label, address));
  }
  nodes.push(text.slice(end));
  return nodes.filter((node) => node !== "");
}

/** Only what leads to the web is a link; `javascript:` and the like stay the text they are. */
function link(whole, label, address) {
  if (!/^(?:https?:\/\/|mailto:)/i.test(address)) return whole;
  return el("a", { href: address, target: "_blank", rel: "noopener noreferrer" }, label);
}
