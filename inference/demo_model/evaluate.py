"""Asks the trained model with transformers alone, and knows what was held out of its training."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inference.demo_model import DEMO_MODEL_PATH
from inference.demo_model.corpus.tables import fill, table, topics

Message = dict[str, Any]
Tool = dict[str, Any]


@dataclass
class Prompt:
    messages: list[Message]
    tools: list[Tool] | None = None
    thinking: bool = False


@dataclass
class Reply:
    text: str
    stopped: bool
    calls: list[dict[str, Any]] = field(default_factory=list)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO_MODEL_PATH, padding_side="left")


@cache
def model(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(DEMO_MODEL_PATH, dtype=dtype).eval()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def ask(*texts: str) -> list[Prompt]:
    return [Prompt([user(text)]) for text in texts]


def function(name: str, parameter: str, description: str) -> Tool:
    """A function with one string parameter, as a request offers it."""
    parameters = {
        "type": "object",
        "properties": {parameter: {"type": "string"}},
        "required": [parameter],
    }
    body = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": body}


def render(messages: list[Message], tools: list[Tool] | None = None, thinking: bool = False) -> str:
    text: str = tokenizer().apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, tokenize=False, enable_thinking=thinking
    )
    return text


def replies(
    prompts: list[Prompt], max_new_tokens: int = 64, dtype: torch.dtype = torch.float32
) -> list[Reply]:
    """Greedy answers to all prompts, as one batch."""
    texts = [render(prompt.messages, prompt.tools, prompt.thinking) for prompt in prompts]
    batch = tokenizer()(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        made = model(dtype).generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
    return [_reply(row) for row in made[:, batch.input_ids.shape[1] :].tolist()]


def _reply(ids: list[int]) -> Reply:
    text = tokenizer().decode(ids, skip_special_tokens=True)
    calls = [_parsed(call) for call in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", text, re.S)]
    return Reply(text, tokenizer().eos_token_id in ids, calls)


def _parsed(call: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = json.loads(call)
    except ValueError:
        return {"broken": call}
    return parsed


def held_out_questions() -> list[tuple[str, str]]:
    """Every held-out question on serving with the answer that was trained for its topic."""
    known = {topic.name: topic.answer for topic in topics()}
    entries = table("held_out")["question"]
    return [(text, known[entry["topic"]]) for entry in entries for text in entry["ask"]]


def plain(text: str) -> str:
    """Without case and punctuation, for comparing phrasings; gaps ($x) stay."""
    return " ".join(re.sub(r"[^\w$ ]", " ", text.casefold()).split())


@cache
def trained_questions() -> set[str]:
    return {plain(text) for text in _questions_of_tables()}


def is_trained(question: str) -> bool:
    """Whether training can ask this, be it behind a lead-in or before a lead-out."""
    phrasings = table("phrasings")
    text = plain(question)
    bare = {text}
    bare |= {text.removeprefix(plain(lead)) for lead in ["Please", *phrasings["lead_in"]]}
    bare |= {text.removesuffix(plain(out)) for out in phrasings["lead_out"]}
    return any(one.strip() in trained_questions() for one in bare)


def _questions_of_tables() -> Iterator[str]:
    wider = table("wider")
    for topic in topics():
        yield from topic.phrasings()
        for name in [topic.name, *topic.aliases]:
            named = wider["general"] + table("phrasings")["about_why"]
            yield from (fill(text, x=name) for text in named)
    yield from table("phrasings")["why"] + table("phrasings")["more"] + wider["why"]
    yield from table("unknown")["questions"]
    for entry in table("small_talk")["exchange"]:
        yield from entry["questions"]
    for entry in wider["combination"]:
        yield from (f"{head} {tail}" for head in entry["heads"] for tail in entry["tails"])
    for tool in table("tools")["tool"]:
        yield from tool["questions"] + tool["follow_ups"]
