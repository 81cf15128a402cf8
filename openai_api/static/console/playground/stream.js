/* One request to the API, and its server-sent events as they arrive. */

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/**
 * POST `body` and give each event, parsed. `onHead` gets the response, `onText` all text as it is.
 * Throws ApiError for what the server refuses, AbortError when `signal` says so.
 */
export async function* post(url, body, { token, signal, onHead, onText }) {
  const response = await fetch(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRFToken": token },
    body: JSON.stringify(body),
    signal,
  });
  onHead(response);
  if (!response.ok) {
    const text = await response.text();
    onText(text);
    throw new ApiError(messageIn(text) ?? `HTTP ${response.status}`, response.status);
  }
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ; ) {
      const { value, done } = await reader.read();
      if (done) return;
      onText(value);
      const parts = (rest + value).split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const data = dataOf(part);
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const dataOf = (part) =>
  part
    .split("\n")
    .filter((line) => line.startsWith("data:"))
    .map((line) => line.slice(5).trimStart())
    .join("\n");

function messageIn(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return undefined;
  }
}

/** When tokens came: how long the first took, and how fast the others followed. */
export class Stopwatch {
  constructor() {
    this.begin = performance.now();
  }
  tick() {
    this.last = performance.now();
    this.first ??= this.last;
  }
  get firstTokenMs() {
    return this.first === undefined ? undefined : this.first - this.begin;
  }
  /** What came with the first chunk counts as the first: its time is not the model's speed. */
  tokensPerSecond(numTokens) {
    const seconds = (this.last - this.first) / 1000;
    return seconds > 0 && numTokens > 1 ? (numTokens - 1) / seconds : undefined;
  }
}
