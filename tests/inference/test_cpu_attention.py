"""The compiled attention against the reference, which test_attention.py compares with softmax."""

import pytest
import torch

from inference.model import attention
from inference.model.attention import paged_attention_reference
from inference.model.context import AttentionContext, LayerCache
from inference.model.kernels import cpu
from tests.inference.test_attention import make_inputs, scattered_tables

pytestmark = pytest.mark.skipif(cpu.library() is None, reason="needs a C++ compiler")

TOLERANCES = {
    torch.float32: {"atol": 2e-6, "rtol": 1e-5},
    torch.bfloat16: {"atol": 0.02, "rtol": 0},
}


def bf16_numbers(generator: torch.Generator, *shape: int) -> torch.Tensor:
    """Random numbers that are the same in both types."""
    return torch.randn(shape, generator=generator).bfloat16().float()


class Case:
    """Random cached sequences, and the run over the last `counts` tokens of each."""

    def __init__(self, counts, context_lens, block_size=32, kv_heads=2, group=2, dims=(64, 64)):
        self.tables, num_blocks = scattered_tables(context_lens, block_size)
        self.block_size, (k_dim, v_dim) = block_size, dims
        self.counts, self.context_lens = counts, context_lens
        generator = torch.Generator().manual_seed(0)
        self.keys, self.values = (
            bf16_numbers(generator, num_blocks, kv_heads, block_size, dim) for dim in dims
        )
        rows = sum(counts)
        # As projections leave them: heads inside of tokens
        self.query, self.key, self.value = (
            bf16_numbers(generator, rows, heads, dim).transpose(0, 1)
            for heads, dim in ((kv_heads * group, k_dim), (kv_heads, k_dim), (kv_heads, v_dim))
        )

    def run(self, dtype=torch.float32, dirt=None, *, reference=False, **features):
        """The answer of the kernel or the reference, and the caches afterwards."""
        features = {"scaling": self.keys.shape[-1] ** -0.5} | features
        cache = LayerCache(self.keys.to(dtype, copy=True), self.values.to(dtype, copy=True))
        inputs = make_inputs(self.counts, self.context_lens, self.tables)
        context = AttentionContext.of(inputs, [cache])
        if dirt is not None:
            self.spoil(cache, dirt)
        query, key, value = (tensor.to(dtype) for tensor in (self.query, self.key, self.value))
        if not reference:
            assert cache.has_kernel
            out = query.new_empty(query.shape[1], query.shape[0], value.shape[-1])
            context.kernel(query, key, value, cache.keys, cache.values, **features, out=out)
            return out, cache
        attention.store(cache, key, value, context)
        return paged_attention_reference(query.transpose(0, 1), cache, context, **features), cache

    def spoil(self, cache, dirt: float) -> None:
        """Put `dirt` into every slot that no sequence has filled; keys only, values are cleaned."""
        for table, length in zip(self.tables, self.context_lens, strict=True):
            offset = (length - 1) % self.block_size + 1
            cache.keys[table[-1], :, offset:] = dirt
        cache.keys[0] = dirt

    def check(self, dtype=torch.float32, **features):
        out, cache = self.run(dtype, **features)
        wanted, reference_cache = self.run(torch.float32, reference=True, **features)
        torch.testing.assert_close(out.float(), wanted, **TOLERANCES[dtype])
        assert torch.equal(cache.keys, reference_cache.keys.to(dtype))
        assert torch.equal(cache.values, reference_cache.values.to(dtype))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("dims", [(64, 64), (128, 128), (80, 80), (96, 96), (256, 256), (48, 16)])
@pytest.mark.parametrize("group", [1, 2, 8])
def test_decodes_and_chunks_in_one_batch(dtype, dims, group):
    Case([1, 1, 9, 1, 70], [1, 33, 9, 300, 170], group=group, dims=dims).check(dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("block_size", [1, 4, 16, 32])
def test_block_boundaries(dtype, block_size):
    lengths = [length for length in (block_size - 1, block_size, block_size + 1, 129) if length]
    Case([1] * len(lengths), lengths, block_size, group=4).check(dtype)
    Case(lengths, lengths, block_size, group=4).check(dtype)
    Case([1] * len(lengths), lengths, block_size, kv_heads=1, group=3).check(dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    "features",
    [
        {"sliding_window": 1},
        {"sliding_window": 5},
        {"sliding_window": 130},
        {"softcap": 0.5},
        {"softcap": 20.0, "sliding_window": 33},
        {"sinks": torch.tensor([-1.0, 0.0, 3.0, 90.0])},
        {"sinks": torch.tensor([-1.0, 0.0, 3.0, 90.0]), "sliding_window": 40, "scaling": 0.3},
    ],
)
def test_window_softcap_and_sinks(dtype, features):
    Case([1, 1, 5, 150], [3, 290, 9, 200]).check(dtype, **features)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("features", [{}, {"sinks": torch.tensor([2.0, -1.0])}])
def test_a_long_sequence_is_shared_out_to_the_threads(dtype, features):
    num_threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Case([1, 1, 1], [3100, 40, 1700], kv_heads=1, group=2).check(dtype, **features)
        Case([1], [2049], kv_heads=1, group=2).check(dtype, sliding_window=1500, **features)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("dirt", [torch.nan, torch.inf, -torch.inf])
def test_what_lies_in_free_slots_does_not_matter(dtype, dirt):
    case = Case([1, 5, 40], [45, 37, 40])
    assert torch.equal(case.run(dtype, dirt)[0], case.run(dtype)[0])


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_overflow_stays_in_its_sequence(dtype):
    clean, broken = Case([4, 4, 1], [4, 40, 30]), Case([4, 4, 1], [4, 40, 30])
    broken.value[:, 4:6] = torch.tensor([torch.nan, -torch.inf])[:, None]
    broken.query[:, 6] = torch.nan
    out, cache = broken.run(dtype)
    wanted, _ = clean.run(dtype)
    assert cache.values.isfinite().all()
    assert torch.equal(out[:4], wanted[:4])
    assert torch.equal(out[8:], wanted[8:])
    assert out[6].isnan().all()


def test_only_head_dims_in_steps_of_16_have_a_kernel():
    assert cpu.can_attend(torch.zeros(2, 1, 4, 16), torch.zeros(2, 1, 4, 80))
    assert not cpu.can_attend(torch.zeros(2, 1, 4, 24), torch.zeros(2, 1, 4, 16))
    assert not cpu.can_attend(torch.zeros(2, 1, 4, 16).half(), torch.zeros(2, 1, 4, 16).half())
