"""Ids as OpenAI's clients expect them: a prefix that tells the kind, and randomness."""

import secrets


def new_id(prefix: str, separator: str = "_") -> str:
    return f"{prefix}{separator}{secrets.token_hex(16)}"


def new_request_id() -> str:
    return new_id("req")


def new_response_id() -> str:
    return new_id("resp")
