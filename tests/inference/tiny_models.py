"""Random models of a few thousand weights, one per family that the paged path has to get right."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

torch.set_num_threads(1)  # more only wait for each other on so little work

VOCAB_SIZE = 160
EOS_TOKEN_ID = 1
COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": EOS_TOKEN_ID,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,  # the default's logits are all alike
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
MLA = {
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 32,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
FAMILIES: dict[str, dict[str, object]] = {
    "qwen3": {},
    "llama": {"num_key_value_heads": 1},
    "qwen2": {"num_key_value_heads": 4},
    "mistral": {"sliding_window": 9},
    "gemma2": {
        "sliding_window": 9,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3_text": {"sliding_window": 9, "num_hidden_layers": 6, "query_pre_attn_scalar": 16},
    "gpt_oss": {"sliding_window": 9, **MOE},
    "deepseek_v3": MLA,
}
RECURRENT: dict[str, dict[str, object]] = {
    "mamba": {"state_size": 8},
    # Hybrid, and wrong without position_ids
    "bamba": {
        "attn_layer_indices": [1],
        "mamba_n_heads": 8,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
    },
    # Gives no cache back
    "recurrent_gemma": {"lru_width": 64, "attention_window_size": 9},
}


def make_config(family: str, **changes: object) -> PreTrainedConfig:
    facts = FAMILIES.get(family) or RECURRENT.get(family) or {}
    return AutoConfig.for_model(family, **{**COMMON, **facts, **changes})


def make_model(family: str, **changes: object) -> PreTrainedModel:
    """A model of the family with random weights, the same ones every time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(family, **changes), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "sinks")):  # zero at birth, so leaving them out would go unseen
            torch.nn.init.normal_(weight)
    return model.eval().requires_grad_(False)


def make_tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=f"w{EOS_TOKEN_ID}")


def save_model(folder: Path, family: str, **changes: object) -> PreTrainedModel:
    """Write a complete checkpoint; the model that it holds."""
    model = make_model(family, **changes)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return model
