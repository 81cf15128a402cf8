"""What the engine counts."""

from dataclasses import dataclass

# Upper bounds of `EngineStats.steps_by_size`
STEP_SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A snapshot of the engine's work. The counters only grow, but for those of a new core.

    A prompt is counted when it is first admitted, with what the cache has of it. The steps have
    computed `num_computed_tokens`; `steps_by_size` counts those of at most so many tokens as
    STEP_SIZES says, and more than the bound before. Its last entry is for all larger ones.
    """

    num_running: int = 0
    num_waiting: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_computed_tokens: int = 0
    num_preemptions: int = 0
    num_queried_tokens: int = 0
    num_hit_tokens: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_restarts: int = 0
    steps_by_size: tuple[int, ...] = (0,) * (len(STEP_SIZES) + 1)
