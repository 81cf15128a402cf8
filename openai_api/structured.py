"""From a checked body to the grammar of its answer.

Compiled in threads of its own and before any header is sent: what is wrong, or takes too long, is
the caller's 400.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from inference.errors import InvalidGrammar
from inference.request import Constraint, ModelInfo
from inference.text import grammar
from inference.text.grammar import Compiler, Part
from inference.text.syntax import calls_of, reasoning_of
from inference.text.thinking import Thought
from openai_api.errors import InvalidRequest, Unavailable
from openai_api.serializers.formats import Format, only_format
from openai_api.serializers.schemas import check_schema
from openai_api.tools import NO_TOOLS, ToolUse

MAX_COMPILE_S = 2.0
MAX_COMPILATIONS = 6  # at a time; one that never ends keeps its place

_places = threading.BoundedSemaphore(MAX_COMPILATIONS)
_starting = threading.Lock()

T = TypeVar("T")

PARTS: dict[str, Callable[..., Part]] = {
    "json": grammar.json_part,
    "regex": grammar.regex_part,
    "choice": grammar.choice_part,
    "grammar": grammar.lark_part,
    "tags": lambda value: grammar.tags_part(*value),
}


async def constraint_of(
    model: ModelInfo,
    body: dict,
    prompt_token_ids: list[int],
    use: ToolUse = NO_TOOLS,
    *,
    chat: bool = True,
) -> Constraint | None:
    """What the answer must look like; None if it may be anything. Raises InvalidRequest."""
    form = only_format(body)
    for kind, text in use.grammars:
        await _compile(model, partial(_only, PARTS[kind], text), use.param)
    thought = thought_before(model, body, prompt_token_ids) if chat else None
    limited = thought is not None and thought.max_tokens is not None
    strict = use.is_strict and not (thought and thought.reasoning.anywhere)
    if form is None and not use.required and not strict:
        compiled = (lambda compiler: compiler.compile(None, thought)) if limited else None
    elif use.required or form is None:
        compiled = _calls(model, use, thought)
    else:
        compiled = _format(model, form, use, thought)
    if compiled is None:
        return None
    param = use.param if form is None or use.required else form.param
    _check_combination(body, param)
    if form is not None and use.callable:  # what is wrong with the tools is not the format's fault
        await _compile(model, _calls(model, use, thought), use.param)
    return await _compile(model, compiled, param)


def thought_before(model: ModelInfo, body: dict, prompt: list[int]) -> Thought | None:
    """The thought that may come before the answer, judged by the end of the prompt."""
    reasoning = reasoning_of(model.tokenizer, model.reasoning_parser)
    if reasoning is None:
        return None
    tail = model.tokenizer.decode(prompt[-16:]).rstrip()
    if tail.endswith(reasoning.close.rstrip()) and not reasoning.anywhere:
        return None
    is_open = tail.endswith(reasoning.open)
    budget = body.get("thinking_token_budget")
    return Thought(reasoning=reasoning, is_open=is_open, max_tokens=budget)


def _calls(model: ModelInfo, use: ToolUse, thought: Thought | None):
    syntax, tools = calls_of(model.tokenizer, model.tool_call_parser), _checked(use)

    def compiled(compiler: Compiler) -> Constraint:
        if use.required:
            parts = compiler.calls(syntax, tools, parallel=use.parallel)
        else:
            parts = compiler.text_or_calls(syntax, tools)
        return compiler.compile(parts, thought, is_text=False)

    return compiled


def _format(model: ModelInfo, form: Format, use: ToolUse, thought: Thought | None):
    """The format, or calls where the model has tools and may choose."""
    syntax, tools = calls_of(model.tokenizer, model.tool_call_parser), _checked(use)

    def compiled(compiler: Compiler) -> Constraint:
        part = PARTS[form.kind](form.value, **form.style)
        if not tools:
            return compiler.compile([part], thought)
        calls, *rest = compiler.calls(syntax, tools, parallel=use.parallel)
        answer = compiler.literal(thought.reasoning.answer) if thought else ""
        either = {"lark_grammar": f"start: {answer} @format | @calls"}
        parts = [either, {**part, "name": "format"}, {**calls, "name": "calls"}, *rest]
        return compiler.compile(parts, thought, is_text=False)

    return compiled


def _checked(use: ToolUse) -> list[dict]:
    """The tools that may be called, with schemas fit for the compiler."""
    tools = []
    for tool in use.callable:
        schema = {"type": "object"} | check_schema(
            use.param, tool["function"].get("parameters") or {}
        )
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        if "object" not in kinds:
            message = f"Invalid schema for '{use.param}': arguments are an object."
            raise InvalidRequest(message, use.param, "invalid_value")
        tools.append({"function": tool["function"] | {"parameters": schema | {"type": "object"}}})
    return tools


def _only(part_of: Callable[..., Part], text: str, compiler: Compiler) -> Constraint:
    return compiler.compile([part_of(text)])


async def _compile(model: ModelInfo, compiled: Callable[[Compiler], T], param: str) -> T:
    try:
        compiler = await asyncio.to_thread(grammar.compiler_of, model)
        work = asyncio.wrap_future(await _begin(compiled, compiler))
        work.add_done_callback(lambda done: done.exception())  # which may be after the time-out
        return await asyncio.wait_for(asyncio.shield(work), MAX_COMPILE_S)
    except InvalidGrammar as exc:
        message = f"Invalid schema for '{param}': {exc}"
        raise InvalidRequest(message, param, "invalid_value") from exc
    except TimeoutError as exc:
        message = f"Invalid schema for '{param}': it takes too long to compile."
        raise InvalidRequest(message, param, "schema_too_complex") from exc


async def _begin(compiled: Callable[[Compiler], T], compiler: Compiler) -> "Future[T]":
    """Compile in a thread of its own. Raises Unavailable if all places are taken for long."""
    deadline = time.monotonic() + MAX_COMPILE_S
    while not _places.acquire(blocking=False):
        if time.monotonic() > deadline:
            message = "Too many grammars are being compiled. Please try again later."
            raise Unavailable(message, headers={"Retry-After": "2"})
        await asyncio.sleep(0.01)
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(compiled(compiler))
        except Exception as exc:
            future.set_exception(exc)
        finally:
            _places.release()

    with _starting:
        usual = threading.stack_size(grammar.STACK_SIZE)
        try:
            threading.Thread(target=work, name="grammar", daemon=True).start()
        finally:
            threading.stack_size(usual)
    return future


def _check_combination(body: dict, param: str) -> None:
    """Lists of tokens could leave a grammar no way to go on."""
    for name in ("allowed_token_ids", "bad_words"):
        if body.get(name):
            message = f"'{name}' cannot be combined with '{param}'."
            raise InvalidRequest(message, name, "unsupported_value")
