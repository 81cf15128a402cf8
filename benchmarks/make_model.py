"""A checkpoint with random weights, made here: benchmarks need no hub.

    python -m benchmarks.make_model {tiny,qwen3-0.6b,qwen3-8b} [FOLDER] [--seed 0]

Without a folder it is kept under data/models, where the other benchmarks look for it.

It is a Qwen3 in every respect but its wisdom. Its vocabulary is words of up to three syllables,
each of which is one token. What is no such word (the special tokens, single bytes) has zeros for
an embedding and so a logit of 0: greedy decoding never chooses it, so it never ends early, and
every token is text to be seen.
"""

import argparse
import json
import math
import shutil
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NUM_MUTE = len(SPECIAL) + 256  # the first ids: special tokens and bytes, with zeros for weights
SYLLABLES = [a + b for a, b in product("bcdfghjklmnpqrstvwxz", "aeiou")]
SPACE = "\u0120"  # how byte-level vocabularies write it
MAX_POSITIONS = 40960
MODELS = Path(__file__).parents[1] / "data" / "models"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Shape:
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool = True


SHAPES = {
    "tiny": Shape(
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        intermediate_size=768,
        vocab_size=8448,
    ),
    "qwen3-0.6b": Shape(
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
    ),
    "qwen3-8b": Shape(
        hidden_size=4096,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=12288,
        vocab_size=151936,
        tie_word_embeddings=False,
    ),
}


def find_or_make(shape: str, seed: int = 0, folder: Path = MODELS) -> Path:
    """The checkpoint of that shape and seed inside `folder`, made if it is not there."""
    if shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}, only {', '.join(SHAPES)}")
    target = folder / f"{shape}-{seed}"
    if not target.is_dir():
        print(f"making random weights in the shape of {shape}: {target}", file=sys.stderr)
        make_model(shape, target, seed)
    return target


def make_model(shape: str, folder: Path, seed: int = 0) -> None:
    """Write a checkpoint. The folder appears when all of it is there."""
    if folder.exists():
        raise FileExistsError(f"{folder} is there already")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_tokenizer(partial, SHAPES[shape].vocab_size)
    write_config(partial, SHAPES[shape])
    write_weights(partial, SHAPES[shape], seed)
    partial.rename(folder)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Byte-level BPE whose merges lead to every word, so that any text can be read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(all_merges(), vocab_size - NUM_MUTE))
    tokens = [*SPECIAL, *alphabet, *(a + b for a, b in merges)]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_class="PreTrainedTokenizerFast",
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def all_merges() -> Iterator[tuple[str, str]]:
    """Letters to syllables, then syllables to words that begin with a space."""
    starts = [SPACE, *(SPACE + syllable for syllable in SYLLABLES)]
    longer = (SPACE + a + b for a, b in product(SYLLABLES, SYLLABLES))
    letters = ((a, b) for a, b in SYLLABLES)
    return chain(letters, product(chain(starts, longer), SYLLABLES))


def write_config(folder: Path, shape: Shape) -> None:
    ends = {"eos_token_id": 2, "pad_token_id": 0}
    write_json(
        folder / "config.json",
        architectures=["Qwen3ForCausalLM"],
        model_type="qwen3",
        dtype="bfloat16",
        torch_dtype="bfloat16",  # where older programs look
        hidden_act="silu",
        attention_bias=False,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        max_position_embeddings=MAX_POSITIONS,
        **vars(shape),
        **ends,
    )
    write_json(folder / "generation_config.json", **ends)


def write_json(path: Path, **content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_weights(folder: Path, shape: Shape, seed: int) -> None:
    """One file for each layer, so that no more than the largest is ever in memory."""
    parts = list(parameters(shape))
    where: dict[str, str] = {}
    num_bytes = 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        tensors = {key: weights(key, size, seed) for key, size in part.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
        where |= dict.fromkeys(part, name)
    write_json(
        folder / "model.safetensors.index.json",
        metadata={"total_size": num_bytes},
        weight_map=where,
    )


def parameters(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and sizes, as Qwen3 has them: the embedding, each layer, the end."""
    width, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = (
        heads * shape.head_dim for heads in (shape.num_attention_heads, shape.num_key_value_heads)
    )
    layer = {
        "input_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "self_attn.q_norm": (shape.head_dim,),
        "self_attn.k_norm": (shape.head_dim,),
        "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    yield {"model.embed_tokens.weight": (shape.vocab_size, width)}
    for index in range(shape.num_hidden_layers):
        yield {f"model.layers.{index}.{name}.weight": size for name, size in layer.items()}
    yield {"model.norm.weight": (width,)}
    if not shape.tie_word_embeddings:
        yield {"lm_head.weight": (shape.vocab_size, width)}


def weights(name: str, size: tuple[int, ...], seed: int) -> Tensor:
    """Random ones that depend on nothing but name, size and seed.

    The signs of the last norm and the large weights of the layers keep a model with a tied head
    from saying one token again and again, which would be an easy guess for speculation.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    tensor = torch.empty(size, dtype=torch.bfloat16)
    if name == "model.norm.weight":
        return tensor.bernoulli_(generator=generator).mul_(2).sub_(1)
    if len(size) == 1:
        return tensor.fill_(1)
    if name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensor.normal_(0, 0.02, generator=generator)
        tensor[:NUM_MUTE] = 0
        return tensor
    return tensor.normal_(0, 1.5 / math.sqrt(size[1]), generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.folder is None:
        print(find_or_make(args.shape, args.seed))
    else:
        make_model(args.shape, args.folder, args.seed)


if __name__ == "__main__":
    main()
