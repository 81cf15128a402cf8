"""The process's one engine: in a thread of it, or an engine process that others share."""

import asyncio
import hashlib
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

from inference.config import EngineConfig
from inference.demo_model import DEMO_MODEL_NAME, DEMO_MODEL_PATH
from inference.engine.address import listening
from inference.engine.client import EngineClient, Place, QueueLimits
from inference.engine.core import EngineCore
from inference.engine.remote import SocketEngine
from inference.engine.scheduler import EngineLimits
from inference.engine.server import EngineServer
from inference.engine.thread import Load, Report, ThreadEngine
from inference.errors import ModelLoadError, ShuttingDown
from inference.request import Constraint, ModelInfo
from inference.text.grammar import compiler_of

if TYPE_CHECKING:
    from inference.model.loader import LoadedModel
    from inference.model.runner import ModelRunner, SequentialRunner

logger = logging.getLogger(__name__)

_engine: EngineClient | None = None
_lock = threading.Lock()


class State(StrEnum):
    """Whether this process takes new requests: only where it is ready."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"  # what was begun goes on to its end
    BROKEN = "broken"  # the engine answers nobody; it may come back


def state() -> State:
    """The one place that decides it, for readiness, views and sockets."""
    engine = get_engine()
    if engine.is_draining:
        return State.DRAINING
    is_known = engine.status.state in ("loading", "ready")
    return State(engine.status.state) if is_known else State.BROKEN


def drain() -> None:
    """Take no new requests from now on; those that were admitted go on. From any thread."""
    get_engine().is_draining = True


def check_ready() -> ModelInfo:
    """The model, if new requests are taken. Raises EngineNotReady."""
    if state() is State.DRAINING:
        raise ShuttingDown()
    return get_engine().model


def admit(owner: str = "") -> Place:
    """Room in the queue for a new request. Raises EngineNotReady or EngineOverloaded."""
    check_ready()
    return get_engine().admit(owner)


def start(on_failure: Callable[[BaseException], None] = lambda exc: None) -> EngineClient:
    """Start the engine, unless it runs already. Returns at once: the model loads in a thread.

    `on_failure` is called in that thread when the model cannot be loaded. Where settings name an
    engine process, that one is the engine, as soon as it is there.
    """
    global _engine
    with _lock:
        if _engine is None:
            config = settings.ENGINE
            if config.engine_address is not None:
                _engine = SocketEngine(config.engine_address, _load_tokenizer, settings.VERSION)
            else:
                _engine = _in_thread(config, on_failure)
        return _engine


def get_engine() -> EngineClient:
    """The engine, started on first use."""
    return _engine or start()


def install(engine: EngineClient | None) -> None:
    """Make `engine` the process's engine (tests bring one with a scripted model)."""
    global _engine
    _engine = engine


def close() -> None:
    """Stop the engine, if one runs."""
    global _engine
    with _lock:
        engine, _engine = _engine, None
    if engine is not None:
        engine.close()


async def serve() -> str:
    """Be the engine process until SIGTERM or SIGINT, or until the engine ends by itself.

    Returns its last state, "stopped" if told to. Raises AddressRefused before anything is loaded.
    """

    def compile(spec: dict[str, Any]) -> Constraint:
        return compiler_of(engine.model).compile_spec(spec)

    config, loop = settings.ENGINE, asyncio.get_running_loop()
    with listening(config.engine_address) as listener:
        engine = _in_thread(config)
        server = EngineServer(engine, compile, settings.VERSION)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.stopping.set)
        await server.run(listener)
        return "stopped" if server.stopping.is_set() else engine.status.state


def _in_thread(
    config: EngineConfig, on_failure: Callable[[BaseException], None] = lambda exc: None
) -> ThreadEngine:
    return ThreadEngine(
        reloadable(config),
        QueueLimits(config.max_num_seqs + config.max_num_queued_reqs, config.max_num_queued_tokens),
        on_failure=on_failure,
        step_timeout_s=config.step_timeout_s,
    )


def reloadable(config: EngineConfig) -> Load:
    """What loads the model and builds its engine, reporting each stage. Raises ModelLoadError.

    It keeps the weights: each call after the first only makes a new KV cache.
    """
    loaded: LoadedModel | None = None

    def load(report: Report) -> tuple[EngineCore, ModelInfo]:
        nonlocal loaded, config
        from inference.model import loader, runner  # torch and transformers: seconds of import

        say = logged(report)
        loaded = loaded or loader.load_model(config, say)
        core, info = make_core(loaded, config, say)
        # What is free now says nothing: the last cache may not have gone yet
        num_bytes = core.pool.num_blocks * runner.block_bytes(loaded, config)
        config = replace(config, kv_cache_memory=num_bytes)
        return core, info

    return load


def _load_tokenizer(folder: str) -> Any:
    from inference.model import loader

    return loader.load_tokenizer(replace(settings.ENGINE, model=folder), Path(folder))


def logged(report: Report) -> Report:
    began = time.monotonic()

    def say(stage: str) -> None:
        report(stage)
        logger.info("%4.1f s: %s", time.monotonic() - began, stage)

    return say


def make_core(
    loaded: "LoadedModel", config: EngineConfig, say: Report
) -> tuple[EngineCore, ModelInfo]:
    """An engine with a KV cache of its own for a loaded model."""
    from inference.model import memory, runner

    model_runner = runner.make_runner(loaded, config, say)
    limits = _limits(config, loaded, model_runner)
    num_tokens = (model_runner.num_blocks - 1) * config.block_size
    say(
        f"KV cache: {num_tokens:,} tokens ({memory.readable(model_runner.kv_cache_bytes)}), "
        f"{num_tokens / limits.max_model_len:.1f} x {limits.max_model_len:,} tokens at once"
    )
    say("warming up")
    model_runner.warmup()
    say("warmed up")
    info = replace(_model_info(config, loaded, limits), num_blocks=model_runner.num_blocks - 1)
    return EngineCore(model_runner, limits, info.fingerprint.encode()), info


def _limits(
    config: EngineConfig, loaded: "LoadedModel", runner: "ModelRunner | SequentialRunner"
) -> EngineLimits:
    """What the scheduler may do. A model without a paged cache runs one sequence at a time."""
    max_num_seqs = config.max_num_seqs if loaded.paged else 1
    budget = config.token_budget(loaded.device.type)
    if config.max_num_batched_tokens and budget < max_num_seqs:
        raise ModelLoadError(
            f"max_num_batched_tokens={budget} must be at least max_num_seqs={max_num_seqs}."
        )
    return EngineLimits(
        max_model_len=runner.max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max(budget, max_num_seqs) if loaded.paged else runner.max_model_len,
        max_num_prefill_tokens=config.prefill_budget(loaded.device.type) if loaded.paged else 0,
        block_size=config.block_size,
        eos_token_ids=loaded.eos_token_ids,
        enable_prefix_caching=config.enable_prefix_caching and loaded.paged,
        num_speculative_tokens=(
            config.num_speculative_tokens if config.speculative == "ngram" and loaded.paged else 0
        ),
        # so many rows take hardly longer than one: a CPU runs out of arithmetic first
        max_speculative_rows=16 if loaded.device.type == "cpu" else 192,
        async_scheduling=loaded.paged and config.runs_ahead(loaded.device.type),
    )


def _model_info(config: EngineConfig, loaded: "LoadedModel", limits: EngineLimits) -> ModelInfo:
    facts = f"{config.model}|{config.revision}|{loaded.dtype}|{loaded.device.type}"
    facts += f"|{config.quantization}" if config.quantization else ""
    is_demo = config.model == str(DEMO_MODEL_PATH)
    return ModelInfo(
        name=DEMO_MODEL_NAME if is_demo else loaded.name,
        tokenizer=loaded.tokenizer,
        max_model_len=limits.max_model_len,
        vocab_size=loaded.vocab_size,
        eos_token_ids=loaded.eos_token_ids,
        generation_defaults=loaded.generation_defaults,
        tool_call_parser=config.tool_call_parser,
        reasoning_parser=config.reasoning_parser,
        fingerprint="fp_" + hashlib.sha256(facts.encode()).hexdigest()[:10],
        created=int(time.time()),
        block_size=config.block_size,
    )
