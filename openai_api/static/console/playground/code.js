/* A call as it would be written in a program. */

const IN_CHAT = new Set(
  ("model messages stream stream_options temperature top_p max_completion_tokens seed stop presence_penalty " +
    "frequency_penalty reasoning_effort response_format tools tool_choice logprobs top_logprobs").split(" "),
);
const IN_RESPONSES = new Set(
  ("model input instructions previous_response_id store stream temperature top_p max_output_tokens reasoning").split(" "),
);

/** [language, program] for a call of `path` ("chat/completions" or "responses"). */
export function programs(base, path, body) {
  return [
    ["curl", curl(base, path, body)],
    ["Python", python(base, path, body)],
    ["JavaScript", javascript(base, path, body)],
  ];
}

function curl(base, path, body) {
  const json = JSON.stringify(body, null, 2).replaceAll("'", "'\\''");
  return `curl -N ${base}/${path} \\
  -H "Authorization: Bearer $OPENAI_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '${json}'
`;
}

function python(base, path, body) {
  const known = path === "responses" ? IN_RESPONSES : IN_CHAT;
  const own = Object.entries(body).filter(([name]) => known.has(name));
  const others = Object.entries(body).filter(([name]) => !known.has(name));
  if (others.length) own.push(["extra_body", Object.fromEntries(others)]);
  const lines = own.map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`);
  const reading = path === "responses" ? PYTHON_RESPONSES : PYTHON_CHAT;
  return `import os

from openai import OpenAI

client = OpenAI(base_url="${base}", api_key=os.environ.get("OPENAI_API_KEY", "unused"))
stream = client.${path.replace("/", ".")}.create(
${lines.join("")})
${reading}`;
}

const PYTHON_CHAT = `for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
        for call in choice.delta.tool_calls or []:
            print(call.function.name or "", call.function.arguments, end="", flush=True)
print()
`;
const PYTHON_RESPONSES = `for event in stream:
    if event.type == "response.output_text.delta":
        print(event.delta, end="", flush=True)
print()
`;

/** JSON as Python writes it. What JSON escapes in strings, Python reads the same. */
function literal(value, indent) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return JSON.stringify(value);
  const isList = Array.isArray(value);
  const inner = `${indent}    `;
  const parts = isList
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`);
  const [open, close] = isList ? "[]" : "{}";
  const short = open + parts.join(", ") + close;
  if (!short.includes("\n") && short.length <= 60) return short;
  return `${open}\n${parts.map((part) => `${inner}${part},\n`).join("")}${indent}${close}`;
}

function javascript(base, path, body) {
  const reading = path === "responses" ? JAVASCRIPT_RESPONSES : JAVASCRIPT_CHAT;
  return `import OpenAI from "openai";

const client = new OpenAI({
  baseURL: "${base}",
  apiKey: process.env.OPENAI_API_KEY ?? "unused",
});
const stream = await client.${path.replace("/", ".")}.create(${JSON.stringify(body, null, 2)});
${reading}`;
}

const JAVASCRIPT_CHAT = `for await (const chunk of stream) {
  const delta = chunk.choices[0]?.delta;
  process.stdout.write(delta?.content ?? "");
  if (delta?.tool_calls) console.log(delta.tool_calls);
}
`;
const JAVASCRIPT_RESPONSES = `for await (const event of stream) {
  if (event.type === "response.output_text.delta") process.stdout.write(event.delta);
}
`;
