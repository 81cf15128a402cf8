"""What an engine process and its clients tell each other: frames of msgpack on a Unix socket.

    hello    both, first  version of the program, PROTOCOL
    model    server       facts of the model, once it is loaded; again to each new client
    update   server       state, stage, backlog of all clients, stats, outputs; at most one for
                          each step and client
    add      client       facts of a request
    abort    client       request id

A frame is its length, in four bytes, and an array: the kind and what the table says. msgpack and
not pickle: what can be read are numbers, texts and lists, whoever has written them.
"""

import asyncio
import struct
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgpack

from inference import errors
from inference.engine.core import Output
from inference.errors import EngineError, EngineFailed, EngineOverloaded
from inference.request import (
    Constraint,
    Delta,
    FinishReason,
    ModelInfo,
    Request,
    SamplingParams,
    TokenLogprob,
)

PROTOCOL = 3
MAX_FRAME_BYTES = 64 * 2**20
_LENGTH = struct.Struct(">I")
_ERRORS = {
    name: error
    for name, error in vars(errors).items()
    if isinstance(error, type) and issubclass(error, EngineError)
}


class FrameTooLarge(Exception):
    """A message of more than MAX_FRAME_BYTES."""


class ProtocolError(Exception):
    """The other side speaks something else; the message is for the operator."""


def encode(*message: Any) -> bytes:
    """The frame of a message. Raises FrameTooLarge."""
    body: bytes = msgpack.packb(message, default=_plain)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameTooLarge(f"{len(body):,} bytes")
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader) -> tuple[Any, ...]:
    """The next message; arrays come as tuples. Raises ProtocolError, or EOFError at the end."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    if length > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {length:,} bytes is no frame of ours")
    body = await reader.readexactly(length)
    try:
        message = msgpack.unpackb(body, use_list=False, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as exc:
        raise ProtocolError(f"a frame cannot be read ({exc!r})") from exc
    if not isinstance(message, tuple) or not message:
        raise ProtocolError("a frame is no message")
    return message


def hello(version: str) -> bytes:
    return encode("hello", version, PROTOCOL)


def check_hello(message: tuple[Any, ...], version: str) -> None:
    """Raises ProtocolError unless both sides are of one version."""
    if message != ("hello", version, PROTOCOL):
        raise ProtocolError(
            f"it greets with {str(message)[:100]}, and this is version {version}, protocol "
            f"{PROTOCOL}: restart the older of the two"
        )


def _plain(value: Any) -> Any:
    """msgpack asks for what it does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} cannot travel")


def facts_of(instance: Any) -> dict[str, Any]:
    return {field.name: getattr(instance, field.name) for field in fields(instance)}


def request_facts(request: Request) -> dict[str, Any]:
    spec = None if request.constraint is None else request.constraint.spec
    return facts_of(request) | {"params": facts_of(request.params), "constraint": spec}


def request_of(facts: dict[str, Any], constraint: Constraint | None) -> Request:
    params = SamplingParams(
        **facts["params"] | {"stop_token_ids": frozenset(facts["params"]["stop_token_ids"])}
    )
    tokens = list(facts["prompt_token_ids"])
    changed = {"prompt_token_ids": tokens, "params": params, "constraint": constraint}
    return Request(**facts | changed)


def model_facts(model: ModelInfo) -> dict[str, Any]:
    """All but the tokenizer, of which only the folder is told: the client loads it by itself."""
    place = getattr(model.tokenizer, "name_or_path", "")
    return facts_of(model) | {"tokenizer": place and str(Path(place).resolve())}


def model_of(facts: dict[str, Any], tokenizer: Any) -> ModelInfo:
    eos_token_ids = frozenset(facts["eos_token_ids"])
    return ModelInfo(**facts | {"tokenizer": tokenizer, "eos_token_ids": eos_token_ids})


def output_facts(request_id: str, item: Delta | EngineError) -> tuple[Any, ...]:
    """A delta's fields in their order; of an error its name, and its text and when to retry."""
    if isinstance(item, EngineError):
        again = (item.retry_after_s,) if isinstance(item, EngineOverloaded) else ()
        return request_id, type(item).__name__, (str(item), *again)
    return request_id, *facts_of(item).values()


def output_of(request_id: str, *values: Any) -> Output:
    if len(values) == 2:
        name, arguments = values
        return request_id, _ERRORS.get(name, EngineFailed)(*arguments)
    token_ids, logprobs, reason, stop_token_id, num_cached_tokens, scores, queue_time_s = values
    return request_id, Delta(
        list(token_ids),
        [_logprob(*entry) for entry in logprobs],
        FinishReason(reason) if reason else None,
        stop_token_id,
        num_cached_tokens,
        scores and [entry and _logprob(*entry) for entry in scores],
        queue_time_s,
    )


def _logprob(token_id: int, logprob: float, top: tuple[Any, ...], rank: int) -> TokenLogprob:
    return TokenLogprob(token_id, logprob, list(top), rank)
