"""The body of a request: one JSON object, whatever `Content-Type` and `Content-Length` say."""

import json
from typing import Any

from rest_framework.exceptions import ParseError
from rest_framework.parsers import BaseParser

# Nothing else runs while JSON is read: with many small values in it, that takes long. Token ids
# are the only reason for many.
MAX_VALUES = 2**19


class StrictJSONParser(BaseParser):
    media_type = "application/json"

    def parse(self, stream, media_type=None, parser_context=None) -> dict:
        """Raises ParseError for what is not JSON, not UTF-8, not an object, or nested too deep."""
        try:
            body = load_json(stream.read().decode())
        except TooManyValues as exc:
            raise ParseError(str(exc)) from exc
        except (ValueError, RecursionError) as exc:
            raise ParseError("We could not parse the JSON body of your request.") from exc
        if not isinstance(body, dict):
            raise ParseError("The body of your request must be a JSON object.")
        return body


class TooManyValues(ValueError):
    def __init__(self) -> None:
        super().__init__(f"Your JSON has more than {MAX_VALUES:,} commas and opening brackets.")


def load_json(text: str) -> Any:
    """Strict JSON. Raises ValueError, or RecursionError where it is nested too deep."""
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise TooManyValues
    value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    if "\\u" in text:  # half of a surrogate pair could neither be stored nor sent back
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value
