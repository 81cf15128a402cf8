"""What the API can be told. Each field is also a flag of `serve` and a NANOLLM_* variable."""

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field with the metadata that `nanollmserve_site.env` reads."""
    return field(default=default, metadata={"help": help, **facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """Settings of the HTTP API."""

    served_model_name: tuple[str, ...] = setting(
        (), "Names the model answers to (several allowed); the model's own name by default."
    )
    max_body_size: int = setting(
        32 * 1024**2, "Largest request body, in bytes (32MiB, ...).", unit="bytes", minimum=1024
    )
    max_choices: int = setting(
        16, "Largest `n`, and most prompts in one completions request.", minimum=1, maximum=128
    )
    strict_tools: bool = setting(
        False, "Refuse tools that only OpenAI can run (web search, ...) instead of dropping them."
    )
    trust_request_chat_template: bool = setting(
        False, "Let requests bring a chat template of their own; it runs in a sandbox."
    )
    prefix_cache_scope: str = setting(
        "key",
        "Who shares cached prefixes: requests of one key, or all. With all of them, one key can "
        "find out what another one asked.",
        choices=("key", "global"),
    )
    ping_interval_s: float = setting(
        15.0, "Seconds of silence after which a stream sends a comment.", minimum=0.05
    )
    queue_timeout_s: float = setting(
        120.0,
        "Seconds that a request may wait for its turn before it fails with 429; 0 for any time. "
        "Background responses wait as long as it takes.",
        minimum=0,
    )
    total_timeout_s: float = setting(
        600.0,
        "Seconds after which an answer is cut, as if its limit of tokens were reached; 0 for "
        "never. Background responses have as long as it takes.",
        minimum=0,
    )
    retention_days: int | None = setting(
        None,
        "Days after which responses, chats, conversations and history are deleted; never by "
        "default.",
        minimum=1,
    )
