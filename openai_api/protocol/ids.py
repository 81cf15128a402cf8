"""Ids as OpenAI's clients expect them: a prefix that tells the kind, and randomness."""

import os
import threading

from inference.text.syntax import Calls

_lock = threading.Lock()
_random_bytes = b""


def _token_hex(num_bytes: int) -> str:
    """As of `secrets`; but the kernel, which may take its time, is asked once for many ids."""
    global _random_bytes
    with _lock:
        if len(_random_bytes) < num_bytes:
            _random_bytes = os.urandom(4096)
        taken, _random_bytes = _random_bytes[:num_bytes], _random_bytes[num_bytes:]
    return taken.hex()


def new_id(prefix: str, separator: str = "_") -> str:
    return f"{prefix}{separator}{_token_hex(16)}"


def new_request_id() -> str:
    return new_id("req")


def new_response_id() -> str:
    return new_id("resp")


def new_conversation_id() -> str:
    return new_id("conv")


def new_call_id(calls: Calls | None) -> str:
    """An id for a call; templates of some families accept only short ones."""
    if calls is not None and calls.id_length:
        return _token_hex(calls.id_length)[: calls.id_length]
    return new_id("call")
