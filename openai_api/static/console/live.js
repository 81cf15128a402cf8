/* Keeps the dashboard up to date: over a WebSocket, or by asking again where there is none.
   What comes is the server's own HTML; only what has changed of it is touched, so that focus and
   selection stay where they are. */
"use strict";

(() => {
  const POLL_MS = 3000;
  const RETRY_MS = 30000;
  const AGAIN = 1013; // the server closes each socket after a while, and looks at who comes back
  const live = document.getElementById("live");
  const state = document.getElementById("live-state");
  let socketAfter = 0;

  function show(html) {
    const template = document.createElement("template");
    template.innerHTML = html;
    morph(live, template.content);
  }

  function morph(old, fresh) {
    const wanted = new Set([...fresh.children].map((child) => child.id));
    const known = new Map();
    for (const child of [...old.children]) {
      if (child.id && !wanted.has(child.id)) child.remove();
      else if (child.id) known.set(child.id, child);
    }
    let place = old.firstChild;
    for (const node of [...fresh.childNodes]) {
      const isLike = place && !place.id && place.nodeName === node.nodeName;
      const same = node.id ? known.get(node.id) : isLike ? place : null;
      if (!same) {
        old.insertBefore(node, place);
        continue;
      }
      if (same === place) place = place.nextSibling;
      else old.insertBefore(same, place);
      if (same.nodeType === Node.ELEMENT_NODE) {
        copyAttributes(same, node);
        morph(same, node);
      } else if (same.data !== node.data) {
        same.data = node.data;
      }
    }
    while (place) {
      const next = place.nextSibling;
      place.remove();
      place = next;
    }
  }

  function copyAttributes(old, fresh) {
    for (const { name } of [...old.attributes]) {
      if (!fresh.hasAttribute(name)) old.removeAttribute(name);
    }
    for (const { name, value } of [...fresh.attributes]) {
      if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    }
  }

  function say(text, kind) {
    if (state.textContent !== text) state.textContent = text;
    state.dataset.kind = kind;
  }

  function connect() {
    const socket = new WebSocket(new URL(live.dataset.url, location.href.replace(/^http/, "ws")));
    socket.onmessage = (event) => {
      say("Live", "live");
      show(event.data);
    };
    socket.onclose = (event) => {
      if (event.code === AGAIN) {
        connect();
        return;
      }
      socketAfter = Date.now() + RETRY_MS;
      poll();
    };
  }

  async function poll() {
    if (Date.now() >= socketAfter) {
      connect();
      return;
    }
    if (!document.hidden) {
      try {
        const answer = await fetch(live.dataset.url, { redirect: "manual" });
        if (!answer.ok) throw new Error(String(answer.status));
        show(await answer.text());
        say("Every few seconds", "live");
      } catch {
        say("The server does not answer", "away");
      }
    }
    setTimeout(poll, POLL_MS);
  }

  connect();
})();
