"""What can be said of CUDA graphs without a GPU: sizes, padding, and what the buffers compute."""

import pytest
import torch
from transformers import PreTrainedModel

from inference.model import parity
from inference.model.context import LayerCache
from inference.model.cuda_graphs import DecodeGraphs, graph_sizes, padded
from inference.model.inputs import ModelInputs
from inference.model.paged import LayerSpec, allocate_caches, forward_paged
from tests.inference.test_attention import make_inputs
from tests.inference.tiny_models import make_model

PROMPTS = ModelInputs(list(range(5, 22)), [9, 5, 3], [9, 5, 3], [[2], [4], [5]], [8], [0, 1, 2])
DECODE = ModelInputs([3, 4, 5], [1] * 3, [10, 6, 4], [[2], [4], [5]], [0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [(1, [1]), (3, [4, 2, 1]), (17, [24, 16, 8, 4, 2, 1]), (8, [8, 4, 2, 1])],
)
def test_sizes_reach_the_largest_batch(max_num_seqs, sizes):
    assert graph_sizes(max_num_seqs) == sizes


def test_no_graph_is_larger_than_256():
    sizes = graph_sizes(1000)
    assert (sizes[0], len(sizes)) == (256, 35)


def test_padding_goes_to_block_0():
    inputs = padded(DECODE, 8)
    assert inputs.context_lens == [10, 6, 4, 1, 1, 1, 1, 1]
    assert inputs.block_tables[3:] == [[0]] * 5
    assert len(inputs.token_ids) == sum(inputs.counts) == 8
    assert inputs.logit_rows == DECODE.logit_rows
    assert padded(DECODE, 3) == DECODE


@pytest.fixture
def model() -> PreTrainedModel:
    """A model that attends to a paged cache."""
    model = make_model("qwen3")
    assert parity.enter_paged(model, 128, parity.plain_logits(model))[1] is None
    return model


def make_caches(model: PreTrainedModel) -> list[LayerCache]:
    return allocate_caches([LayerSpec(2, 16, 16)] * 3, 6, 16, model)


def test_only_decode_batches_have_a_size(model):
    graphs = DecodeGraphs(model, make_caches(model), 9, 32)
    assert graphs.size_for(make_inputs([1] * 5, [7] * 5, [[1]] * 5)) == 8
    assert graphs.size_for(make_inputs([1] * 16, [7] * 16, [[1]] * 16)) == 16
    assert graphs.size_for(make_inputs([1] * 17, [7] * 17, [[1]] * 17)) is None
    assert graphs.size_for(PROMPTS) is None


@torch.inference_mode()
def test_a_padded_batch_in_used_buffers_gives_the_same_logits(model):
    caches, expected_caches = (make_caches(model) for _ in range(2))
    graphs = DecodeGraphs(model, caches, 8, 32)
    for used in (caches, expected_caches):
        forward_paged(model, PROMPTS, used)
    for step, size in enumerate((8, 4)):  # the second finds the first one's values
        inputs = ModelInputs(
            [7 + step, 8, 9],
            [1] * 3,
            [10 + step, 6 + step, 4 + step],
            DECODE.block_tables,
            [0, 1, 2],
            [0, 1, 2],
        )
        graphs.fill(padded(inputs, size))
        logits = graphs.run(padded(inputs, size))
        assert len(logits) == size
        expected = forward_paged(model, inputs, expected_caches)
        torch.testing.assert_close(logits[:3], expected)
