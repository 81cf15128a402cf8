"""Can a model run over the paged cache? Asked of the model itself, once, when it is loaded.

Families differ in more ways than a table could keep up with (recurrent state, shared caches, own
masks, remote code), so the paged path has to reproduce what transformers alone computes.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from inference.model import attention
from inference.model.inputs import ModelInputs
from inference.model.paged import LayerSpec, allocate_caches, forward_paged

logger = logging.getLogger(__name__)

NUM_TOKENS = 24
BLOCK_SIZE = 16
# Rounding stays below 1e-5 in float32. In bfloat16 it is 0.02, and 0.07 where it sends tokens to
# other experts. A lost chunk, mask or window gives 0.25 to 1.5.
TOLERANCE = {torch.float32: 1e-3}
LOW_PRECISION_TOLERANCE = 0.1
# What rounded weights and inputs add up to with random weights, where nothing makes up for it; of a
# trained model it is about a third. Other logits altogether would differ by 1.4.
QUANTIZED_TOLERANCE = {"int8": 0.3, "fp8": 0.6, "int4": 0.9}


class Sample(NamedTuple):
    """Some tokens, and the logits that a model should have for them: `[T, vocab_size]`."""

    token_ids: list[int]
    logits: Tensor


@torch.inference_mode()
def plain_logits(model: PreTrainedModel, num_tokens: int = NUM_TOKENS) -> Sample:
    """Random tokens, and what transformers computes for them alone.

    With the model's own cache, as `generate` would: some families behave differently without.
    """
    generator = torch.Generator().manual_seed(0)
    vocab_size = model.get_input_embeddings().weight.shape[0]
    token_ids = torch.randint(vocab_size, (1, num_tokens), generator=generator)
    logits = model(input_ids=token_ids.to(model.device), use_cache=True).logits
    return Sample(token_ids[0].tolist(), logits[0].float())


def enter_paged(
    model: PreTrainedModel, max_model_len: int, sample: Sample
) -> tuple[list[LayerSpec], str | None]:
    """Switch the model to paged attention if it can: its layers, or the reason why it cannot.

    `sample` holds its `plain_logits`. A model that cannot is left as it was.
    """
    if getattr(model, "_is_stateful", False):
        return [], "it keeps recurrent state"
    plain = model.config._attn_implementation
    layers: list[LayerSpec] = []
    try:
        layers = find_layers(model)
        reason = objection(model, layers, max_model_len)
    except Exception as error:
        reason = failure(error)
    if reason is None:
        model.set_attn_implementation(attention.NAME)
        reason = difference(model, layers, sample)
    if reason is not None:
        model.set_attn_implementation(plain)
    return layers, reason


def difference(
    model: PreTrainedModel,
    layers: list[LayerSpec],
    sample: Sample,
    tolerance: float | None = None,
) -> str | None:
    """How the model's paged path fails to give the sample's logits; None if it gives them.

    They may differ by `tolerance`, or else by rounding in the model's dtype.
    """
    try:
        logits = paged_logits(model, layers, sample.token_ids)
    except Exception as error:
        return failure(error)
    if agree(model, logits, sample.logits, tolerance):
        return None
    return f"the logits of its paged path are off by {relative_error(logits, sample.logits):.1%}"


def failure(error: Exception) -> str:
    logger.debug("the paged path failed", exc_info=error)
    return f"the paged path failed with {type(error).__name__}: {error}"


@torch.inference_mode()
def find_layers(model: PreTrainedModel) -> list[LayerSpec]:
    """What the attention layers pass to the attention interface in a run over one token.

    Raises ValueError if they are not numbered from 0, one each.
    """
    found: dict[int, LayerSpec] = {}

    def record(
        module: Any, query: Tensor, key: Tensor, value: Tensor, *_: object, **kwargs: Any
    ) -> tuple[Tensor, None]:
        scaling = kwargs.get("scaling")
        spec = LayerSpec(
            num_kv_heads=key.shape[1],
            k_head_dim=key.shape[-1],
            v_head_dim=value.shape[-1],
            sliding_window=kwargs.get("sliding_window"),
            scaling=query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            is_special=any(kwargs.get(name) is not None for name in ("softcap", "s_aux")),
        )
        if found.setdefault(module.layer_idx, spec) != spec:
            raise ValueError(f"layer {module.layer_idx} has two kinds of attention")
        heads = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return heads.transpose(1, 2), None

    AttentionInterface.register("nano_probe", record)
    model.set_attn_implementation("nano_probe")
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    model(input_ids=token, position_ids=token, use_cache=False)
    if sorted(found) != list(range(len(found))):
        raise ValueError(f"its attention layers are numbered {sorted(found)}")
    return [found[index] for index in range(len(found))]


def objection(model: PreTrainedModel, layers: list[LayerSpec], max_model_len: int) -> str | None:
    """Why the model cannot be paged, as far as 24 tokens may not show it."""
    config = model.config.get_text_config(decoder=True)
    if len(layers) < config.num_hidden_layers:
        return "not all of its layers use transformers' attention interface"
    types = getattr(config, "layer_types", None) or []
    if strange := set(types) - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {', '.join(sorted(strange))}"
    for kind, layer in zip(types, layers, strict=False):
        if kind == "sliding_attention" and layer.sliding_window is None:
            return "its sliding window is only in the mask"
    return rope_objection(getattr(config, "rope_parameters", None) or {}, max_model_len)


def rope_objection(parameters: Mapping[str, Any], max_model_len: int) -> str | None:
    """Why the rotary embedding is not the same for every batch.

    Of the types "dynamic" and "longrope" transformers picks the frequencies by the largest position
    in the batch, as soon as that leaves the original context.
    """
    per_layer_type = [value for value in parameters.values() if isinstance(value, Mapping)]
    for rope in per_layer_type or [parameters]:
        original = rope.get("original_max_position_embeddings") or 0
        if rope.get("rope_type") in ("dynamic", "longrope") and max_model_len > original:
            return f"its rotary embedding changes with the batch beyond max_model_len {original}"
    return None


def paged_logits(model: PreTrainedModel, layers: list[LayerSpec], token_ids: list[int]) -> Tensor:
    """Of `token_ids` run over a paged cache, in two chunks and beside another sequence."""
    half, num_tokens = len(token_ids) // 2 - 2, len(token_ids)
    rest, other = token_ids[half:], token_ids[-1:half:-1]
    caches = allocate_caches(layers, 5, BLOCK_SIZE, model)
    first = ModelInputs(token_ids[:half], [half], [half], [[3, 1]], list(range(half)), [0])
    second = ModelInputs(
        token_ids=other + rest,
        counts=[len(other), len(rest)],
        context_lens=[len(other), num_tokens],
        block_tables=[[2], [3, 1]],
        logit_rows=list(range(len(other), len(other) + len(rest))),
        sequence_ids=[1, 0],
    )
    return torch.cat([forward_paged(model, inputs, caches) for inputs in (first, second)])


def agree(
    model: PreTrainedModel, logits: Tensor, expected: Tensor, tolerance: float | None = None
) -> bool:
    """Whether the two differ by no more than `tolerance`, or rounding in the model's dtype."""
    if tolerance is None:
        tolerance = TOLERANCE.get(model.dtype, LOW_PRECISION_TOLERANCE)
    return relative_error(logits, expected) <= tolerance


def relative_error(logits: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in units of how far the logits of a row spread.

    Rows are averaged, so one row that rounding sends to another expert does not decide.
    """
    spread = (expected - expected.mean(-1, keepdim=True)).norm(dim=-1)
    errors = (logits - expected).norm(dim=-1) / spread.clamp_min(1e-12)
    return float(errors.nan_to_num(nan=torch.inf).mean())
