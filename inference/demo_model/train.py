"""Train the demo model from the corpus: `python -m inference.demo_model.train`.

One seeded run makes tokenizer and weights. See README.md for what it takes.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

from inference.demo_model import DEMO_MODEL_PATH
from inference.demo_model.batches import IGNORED, Batch, Encoder, batches
from inference.demo_model.vocabulary import VOCABULARY_SIZE, train_tokenizer

SEED = 2026
STEPS = 3000
EARLY_SHARE = 0.6
WARM_UP_STEPS = 100
PEAK_LEARNING_RATE = 2e-3
THREADS = 2
STEPS_PER_SAVE = 400


def build_model(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        # Heads divide by four, so that the model can also be split over GPUs.
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=32768,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Cool enough that the model says what it learned, and still not the same words every time.
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.2,
        top_p=0.9,
        top_k=20,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def learning_rate(step: int, steps: int) -> float:
    """A short warm-up, then a cosine down to nothing."""
    if step < WARM_UP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)


def curriculum(encoder: Encoder, steps: int) -> Iterator[Batch]:
    """Much copying in the early steps, the plain mixture after them."""
    early_steps = int(steps * EARLY_SHARE)
    rng = Random(SEED)
    yield from islice(batches(encoder, rng, pools=steps, early=True), early_steps)
    yield from islice(batches(encoder, rng, pools=steps, early=False), steps - early_steps)


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Cross entropy over the assistant's tokens; no others reach the output layer."""
    ids, labels = batch
    # Padding follows the text, so under the causal mask no real token sees it.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[wanted])
    return cross_entropy(logits.float(), labels[:, 1:][wanted])


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train(steps: int, folder: Path) -> None:
    torch.set_num_threads(THREADS)
    disable_progress_bar()  # of saving, which would break up our own
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer(SEED)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    progress = tqdm(curriculum(Encoder(tokenizer), steps), total=steps, unit="step", mininterval=5)
    average = 0.0
    for step, batch in enumerate(progress):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        if (step + 1) % STEPS_PER_SAVE == 0 or step + 1 == steps:
            save(model, tokenizer, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded demo model.")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps")
    parser.add_argument("--output", type=Path, default=DEMO_MODEL_PATH, help="folder to write")
    options = parser.parse_args()
    train(options.steps, options.output)


if __name__ == "__main__":
    main()
