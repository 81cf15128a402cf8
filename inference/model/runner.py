"""A loaded model with room for keys and values: what the engine's steps run on."""

import inspect
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from inference.config import EngineConfig
from inference.errors import ModelLoadError
from inference.model import parity
from inference.model.cuda_graphs import DecodeGraphs
from inference.model.inputs import ModelInputs
from inference.model.loader import LoadedModel
from inference.model.memory import cache_memory, readable
from inference.model.paged import allocate_caches, forward_paged
from inference.model.transfer import upload

logger = logging.getLogger(__name__)

MIN_MODEL_LEN = 16
# Names under which models take their own cache, and give it back
CACHE_NAMES = ("past_key_values", "cache_params", "state")


class ModelRunner:
    """Runs many sequences at once over a paged KV cache. Block 0 is padding, never allocated."""

    def __init__(
        self, loaded: LoadedModel, config: EngineConfig, report: Callable[[str], None]
    ) -> None:
        self._model = loaded.model
        self._graphs: DecodeGraphs | None = None
        self._accelerated = loaded.device.type == "cuda" and not config.enforce_eager
        self._max_num_seqs = config.max_num_seqs
        self.num_blocks, self.max_model_len = size_cache(loaded, config)
        self.kv_cache_bytes = self.num_blocks * block_bytes(loaded, config)
        if self.max_model_len < loaded.max_model_len:
            report(f"max_model_len lowered to {self.max_model_len}: the KV cache holds no more")
        try:
            self._caches = allocate_caches(
                loaded.layers, self.num_blocks, config.block_size, loaded.model
            )
        except (RuntimeError, MemoryError, OSError) as error:
            size = readable(self.kv_cache_bytes)
            raise ModelLoadError(f"No memory for {size} of KV cache: lower it.") from error

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Float32 logits `[len(inputs.logit_rows), vocab_size]`."""
        if self._graphs is not None and (logits := self._graphs.forward(inputs)) is not None:
            return logits
        return forward_paged(self._model, inputs, self._caches, self.max_model_len)

    def _accelerate(self) -> None:
        """Compile the model and record its graphs, as far as it allows."""
        compiled = torch.compile(self._model, fullgraph=True, dynamic=True)
        for model in (compiled, self._model):
            try:
                graphs = DecodeGraphs(model, self._caches, self._max_num_seqs, self.max_model_len)
                graphs.record()
            except Exception:  # of a compiler, anything
                kind = "CUDA graphs" if model is self._model else "torch.compile"
                logger.warning("The model runs without %s, which failed:", kind, exc_info=True)
            else:
                self._model, self._graphs = model, graphs
                return

    def warmup(self) -> None:
        """Run once, so that the first request does not pay for what torch sets up lazily."""
        if self._accelerated:
            self._accelerate()
        # On a GPU also once at a length for which kernels are compiled otherwise
        lengths = (8, 512) if self._model.device.type == "cuda" else (8,)
        for length in (min(length, self.max_model_len) for length in lengths):
            blocks = [0] * length
            self.forward(ModelInputs(blocks, [length], [length], [blocks], [length - 1], [0]))
        self.forward(ModelInputs([0] * 2, [1, 1], [1, 1], [[0], [0]], [0, 1], [0, 1]))


class SequentialRunner:
    """Runs one sequence at a time with the model's own cache, for models that cannot be paged.

    To be driven with max_num_seqs 1, without prefix caching, and a prompt in one chunk: a recurrent
    model takes several tokens only at its beginning. The blocks it is given mean nothing to it.
    """

    kv_cache_bytes = 0

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._model = loaded.model
        self.max_model_len = loaded.max_model_len
        self.num_blocks = num_blocks_for(loaded.max_model_len, config.block_size) + 1
        self._accepted = inspect.signature(loaded.model.forward).parameters
        self._cache_name = next((name for name in CACHE_NAMES if name in self._accepted), None)
        self._forget()
        if not self._continues():
            self._cache_name = None
            logger.warning("%s has no usable cache: each token repeats all before.", loaded.name)

    def _forget(self) -> None:
        self._cache: Any = None
        self._sequence_id: int | None = None
        self._token_ids: list[int] = []

    def _continues(self) -> bool:
        """Whether going on from the model's cache gives what computing everything at once does."""
        sample = parity.plain_logits(self._model, MIN_MODEL_LEN)
        bounds = [0, *range(MIN_MODEL_LEN - 4, MIN_MODEL_LEN + 1)]
        logits = []
        try:
            for start, end in pairwise(bounds):
                rows = list(range(end - start))
                tokens = sample.token_ids[start:end]
                inputs = ModelInputs(tokens, [len(rows)], [end], [[]], rows, [0])
                logits.append(self.forward(inputs))
        except Exception:
            logger.debug("the model's cache failed", exc_info=True)
            return False
        return parity.agree(self._model, torch.cat(logits), sample.logits)

    @torch.inference_mode()
    def forward(self, inputs: ModelInputs) -> Tensor:
        """Float32 logits `[len(inputs.logit_rows), vocab_size]`.

        Raises RuntimeError for a sequence that neither begins nor continues the one before.
        """
        (sequence_id,), (context_len,) = inputs.sequence_ids, inputs.context_lens
        start = context_len - len(inputs.token_ids)
        if start == 0:
            self._forget()
        elif (sequence_id, start) != (self._sequence_id, len(self._token_ids)):
            raise RuntimeError("the sequence is not the one whose state is kept")
        self._sequence_id, self._token_ids = sequence_id, self._token_ids + inputs.token_ids
        if self._cache_name is None:
            rows = [start + row for row in inputs.logit_rows]
            return self._run(0, rows, use_cache=False).logits[0].float()
        kept = {"use_cache": True, self._cache_name: self._cache}
        output = self._run(start, inputs.logit_rows, **kept)
        self._cache = output[self._cache_name]
        return output.logits[0].float()

    def _run(self, start: int, logit_rows: list[int], **settings: Any) -> Any:
        """Run the model over the sequence from `start` on. Some families count from 0 untold."""
        device, end = self._model.device, len(self._token_ids)
        if "position_ids" in self._accepted:
            settings["position_ids"] = torch.arange(start, end, device=device)[None]
        token_ids = upload([self._token_ids[start:]], device)
        rows = upload(logit_rows, device, torch.long)
        return self._model(input_ids=token_ids, logits_to_keep=rows, **settings)

    def warmup(self) -> None:
        """Run once, so that the first request does not pay for what torch sets up lazily."""
        self.forward(ModelInputs([0] * 8, [8], [8], [[]], [7], [0]))
        self._forget()


def make_runner(
    loaded: LoadedModel, config: EngineConfig, report: Callable[[str], None]
) -> ModelRunner | SequentialRunner:
    """The runner that suits the model. Raises ModelLoadError if its KV cache cannot be had."""
    if loaded.paged:
        return ModelRunner(loaded, config, report)
    return SequentialRunner(loaded, config)


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    return -(-num_tokens // block_size)


def block_bytes(loaded: LoadedModel, config: EngineConfig) -> int:
    """Bytes of one block over all layers."""
    elements = sum(layer.elements_per_token for layer in loaded.layers)
    return elements * config.block_size * loaded.dtype.itemsize


def size_cache(loaded: LoadedModel, config: EngineConfig) -> tuple[int, int]:
    """Number of blocks, block 0 included, and the longest context that fits into them.

    Never more than `max_num_seqs` sequences can fill. Raises ModelLoadError if the context length
    that was asked for does not fit; one that nobody asked for is lowered.
    """
    per_sequence = num_blocks_for(loaded.max_model_len, config.block_size)
    memory = cache_memory(config, loaded.device, activation_bytes(loaded, config))
    affordable = memory // block_bytes(loaded, config)
    num_blocks = min(affordable, config.max_num_seqs * per_sequence + 1)
    fitting = max(0, num_blocks - 1) * config.block_size
    if fitting >= loaded.max_model_len:
        return num_blocks, loaded.max_model_len
    if config.max_model_len is not None or fitting < MIN_MODEL_LEN:
        needed = (per_sequence + 1) * block_bytes(loaded, config)
        raise ModelLoadError(
            f"max_model_len {loaded.max_model_len} needs {readable(needed)} of KV cache, but in "
            f"{readable(memory)} only {fitting} tokens fit: lower max_model_len or raise "
            f"{'gpu_memory_utilization' if loaded.device.type == 'cuda' else 'kv_cache_memory'}."
        )
    return num_blocks, fitting


def activation_bytes(loaded: LoadedModel, config: EngineConfig) -> int:
    """A generous guess at what a step needs on a GPU besides weights and cache."""
    text_config = loaded.model.config.get_text_config(decoder=True)
    num_tokens = config.token_budget(loaded.device.type)
    width = 32 * text_config.hidden_size
    logits = 4 * config.max_num_seqs * loaded.vocab_size * torch.float32.itemsize
    return num_tokens * width * loaded.dtype.itemsize + logits + 2**30
