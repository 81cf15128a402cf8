"""What the engine can be told. Each field is also a flag of `serve` and a NANOLLM_* variable."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inference.demo_model import DEMO_MODEL_PATH
from inference.text.syntax import CALLS, REASONING


def setting(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that knows its documentation: `help`, `choices`, `minimum` and so on."""
    return field(default=default, metadata={"help": help, **facts})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of the inference engine. Sizes are in tokens unless the name says bytes."""

    model: str = setting(
        str(DEMO_MODEL_PATH),
        "Hub id or local folder of the model; the embedded demo model by default.",
        shown_default="the embedded demo model",
    )
    revision: str | None = setting(None, "Branch, tag or commit of the model on the hub.")
    local_files_only: bool = setting(False, "Never download: use only what is on this machine.")
    trust_remote_code: bool = setting(
        False, "Run Python code that comes with the model. Leave off unless you have read it."
    )
    tool_call_parser: str = setting(
        "auto",
        "How the model writes calls of functions; auto looks into its chat template.",
        choices=("auto", *CALLS),
    )
    reasoning_parser: str = setting(
        "auto",
        "How the model writes its thoughts; auto looks into its chat template.",
        choices=("auto", "none", *REASONING),
    )
    device: str = setting(
        "auto",
        "Where the model runs: auto takes the GPU if there is one.",
        pattern=r"auto|cpu|cuda|cuda:\d+",
        allowed="auto, cpu, cuda, cuda:N",
    )
    dtype: str = setting(
        "auto",
        "Type of the weights: auto takes the checkpoint's, and float32 where bfloat16 is slow.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str | None = setting(
        None,
        "Smaller, faster weights, less exact: int8 or, twice as small, int4 on a CPU that has "
        "AVX512-VNNI, fp8 on a GPU of compute capability 8.9 or more.",
        choices=("int8", "int4", "fp8"),
    )
    max_model_len: int | None = setting(
        None, "Longest prompt and answer together; the model's own limit by default.", minimum=16
    )
    max_num_seqs: int = setting(64, "Most sequences in one batch.", minimum=1)
    max_num_batched_tokens: int | None = setting(
        None,
        "Token budget of one step; by default 8192 on GPU, and on CPU 128 while tokens are "
        "generated and 512 else.",
        minimum=1,
    )
    max_num_queued_reqs: int = setting(
        256, "Requests that may wait for a place; more are refused with 429.", minimum=1
    )
    max_num_queued_tokens: int = setting(
        1_000_000,
        "With so many tokens of prompts waiting to be answered, more are refused with 429.",
        minimum=1,
    )
    kv_cache_memory: int | None = setting(
        None,
        "Bytes of KV cache (2GiB, 512MiB, ...); sized from free memory by default.",
        unit="bytes",
        minimum=1,
    )
    gpu_memory_utilization: float = setting(
        0.9, "Share of the GPU's memory that the server may use.", minimum=0.05, maximum=1.0
    )
    block_size: int = setting(32, "Tokens in one KV cache block.", minimum=1, maximum=1024)
    enforce_eager: bool = setting(
        True,
        "On a GPU, no torch.compile and no CUDA graphs. To run with them has not been tried yet.",
    )
    enable_prefix_caching: bool = setting(True, "Reuse the KV cache of common prefixes.")
    speculative: str = setting(
        "none",
        "Guess tokens from what stood in prompt or answer before (ngram), and check several at "
        "once: the same answers, sooner where a model copies.",
        choices=("none", "ngram"),
    )
    num_speculative_tokens: int = setting(8, "Most tokens guessed at a time.", minimum=1)
    async_scheduling: bool | None = setting(
        None,
        "Launch a step before the tokens of the one before are known, so that a GPU does not wait; "
        "by default on a GPU. On a CPU tokens only come a step later.",
    )
    engine_address: Path | None = setting(
        None,
        "Unix socket of an engine process, which `manage.py engine` starts and any number of "
        "servers share; without it each server has its own engine.",
        pattern=".{1,100}",  # a socket's path has no room for more
        allowed="a path of at most 100 characters",
    )
    step_timeout_s: float = setting(
        60.0,
        "Seconds that one step of the model may take; then the engine is taken for stuck and "
        "restarted. 0 for any time.",
        minimum=0,
    )
    seed: int | None = setting(
        None,
        "Seed of requests that bring none; random by default.",
        minimum=0,
        maximum=2**63 - 1,
    )

    def runs_ahead(self, device_type: str) -> bool:
        """Whether steps overlap: a CPU that computes has nothing left to do it with."""
        return device_type != "cpu" if self.async_scheduling is None else self.async_scheduling

    def token_budget(self, device_type: str) -> int:
        """Tokens of one step: on a CPU so few that a long prompt delays no stream noticeably."""
        return self.max_num_batched_tokens or (128 if device_type == "cpu" else 8192)

    def prefill_budget(self, device_type: str) -> int:
        """Tokens of a step that delays no stream."""
        return self.max_num_batched_tokens or (512 if device_type == "cpu" else 8192)
