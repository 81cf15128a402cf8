"""Decode batches as CUDA graphs: one launch in place of some forty per layer.

A graph repeats what was recorded once, on the same memory. So there is one for each of a few batch
sizes, all read their inputs from the same buffers, and a batch is padded to the next size.
"""

from dataclasses import replace

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inference.model.attention import attending
from inference.model.context import AttentionContext, LayerCache, lay_out
from inference.model.inputs import ModelInputs
from inference.model.transfer import pinned, upload

SIZES = (1, 2, 4, 8, *range(16, 257, 8))


def graph_sizes(max_num_seqs: int) -> list[int]:
    """What batches of at most `max_num_seqs` are padded to, the largest first."""
    largest = min((size for size in SIZES if size >= max_num_seqs), default=SIZES[-1])
    return [size for size in reversed(SIZES) if size <= largest]


def padded(inputs: ModelInputs, size: int) -> ModelInputs:
    """A decode batch with one token in block 0, which is nobody's, for each missing sequence."""
    num_missing = size - len(inputs.counts)
    return replace(
        inputs,
        token_ids=inputs.token_ids + [0] * num_missing,
        counts=inputs.counts + [1] * num_missing,
        context_lens=inputs.context_lens + [1] * num_missing,
        block_tables=inputs.block_tables + [[0]] * num_missing,
    )


class DecodeGraphs:
    """The graphs of a model. The largest is recorded first: the others fit into its memory."""

    def __init__(
        self,
        model: PreTrainedModel,
        caches: list[LayerCache],
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self._model, self._caches, self._max_model_len = model, caches, max_model_len
        self._sizes = graph_sizes(max_num_seqs)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        table = [0] * -(-max_model_len // caches[0].block_size)
        longest = ModelInputs([0], [1], [max_model_len], [table], [], [])
        tensors = self._tensors(padded(longest, self._sizes[0]))
        self._buffers = [tensor.to(model.device) for tensor in tensors]
        self._logits = self.run(padded(longest, self._sizes[0]))

    def _tensors(self, inputs: ModelInputs) -> tuple[Tensor, ...]:
        device = self._model.device
        laid_out = lay_out(inputs, self._caches[0].block_size)
        return inputs.tokens(device), *(pinned(tensor, device) for tensor in laid_out)

    def fill(self, inputs: ModelInputs) -> None:
        """Put a batch of one of the sizes into the buffers. What is beyond it is not read."""
        for buffer, tensor in zip(self._buffers, self._tensors(inputs), strict=True):
            buffer[tuple(map(slice, tensor.shape))].copy_(tensor, non_blocking=True)

    @torch.inference_mode()
    def run(self, inputs: ModelInputs) -> Tensor:
        """Logits `[S, vocab_size]` of the batch in the buffers; `inputs` says only how large."""
        size = len(inputs.counts)
        token_ids, positions, starts, *others = self._buffers
        tensors = (positions[:size], starts[: size + 1], *(tensor[:size] for tensor in others))
        context = AttentionContext(inputs, self._caches, self._max_model_len, *tensors)
        with attending(context):
            output = self._model(
                input_ids=token_ids[None, :size],
                position_ids=positions[None, :size],
                use_cache=False,
            )
        return output.logits[0]

    @torch.inference_mode()
    def record(self) -> None:
        """Make the graphs. Raises RuntimeError for a model that waits for the GPU's results."""
        pool = torch.cuda.graph_pool_handle()
        for size in self._sizes:
            inputs = padded(ModelInputs([], [], [], [], [], []), size)
            self.fill(inputs)
            self.run(inputs)  # what is compiled or set up at first use must not be recorded
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self._logits[:size].copy_(self.run(inputs))
            self._graphs[size] = graph

    def size_for(self, inputs: ModelInputs) -> int | None:
        """The size to pad a batch to, None if it is too large or not all decode."""
        if max(inputs.counts) > 1 or len(inputs.counts) > self._sizes[0]:
            return None
        return min(size for size in self._sizes if size >= len(inputs.counts))

    @torch.inference_mode()
    def forward(self, inputs: ModelInputs) -> Tensor | None:
        """Float32 logits `[len(inputs.logit_rows), vocab_size]`, None where no graph fits."""
        size = self.size_for(inputs)
        if size is None:
            return None
        self.fill(padded(inputs, size))
        self._graphs[size].replay()
        rows = upload(inputs.logit_rows, self._logits.device, torch.long)
        return self._logits.index_select(0, rows).float()
