"""Log probabilities as OpenAI shows them. A token may be half a character: `bytes` is exact."""

from functools import lru_cache
from typing import Any

from inference.request import TokenLogprob

LOWEST = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot say


def finite(logprob: float) -> float:
    return max(logprob, LOWEST)


def chat_logprobs(tokenizer: Any, entries: list[TokenLogprob]) -> list[dict]:
    return [
        {
            **_token(tokenizer, entry.token_id, entry.logprob),
            "top_logprobs": [_token(tokenizer, *top) for top in entry.top],
        }
        for entry in entries
    ]


def _token(tokenizer: Any, token_id: int, logprob: float) -> dict:
    raw = token_bytes(tokenizer, token_id)
    return {"token": readable(raw), "logprob": finite(logprob), "bytes": list(raw)}


def readable(raw: bytes) -> str:
    return raw.decode(errors="backslashreplace")


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """The bytes that this token adds to a text."""
    piece = tokenizer.convert_ids_to_tokens(token_id)
    if piece is None:
        return b""
    if token_id in tokenizer.added_tokens_decoder:
        return piece.encode()
    if all(char in byte_of_char() for char in piece) and _is_byte_level(tokenizer):
        return bytes(byte_of_char()[char] for char in piece)
    if piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6:
        return bytes([int(piece[3:5], 16)])
    return piece.replace("\u2581", " ").encode()


@lru_cache(maxsize=1)
def byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, as byte-level BPE vocabularies spell them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain}
    others = [b for b in range(256) if b not in set(plain)]
    return table | {chr(256 + i): b for i, b in enumerate(others)}


@lru_cache(maxsize=8)
def _is_byte_level(tokenizer: Any) -> bool:
    """Byte-level vocabularies spell a space as \u0120."""
    return "\u0120" in tokenizer.get_vocab()
