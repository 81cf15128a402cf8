"""Train the demo model from the corpus: `python -m inference.demo_model.train`.

One seeded run makes tokenizer and weights. See README.md for what it takes.
"""

import argparse
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from inference.demo_model import DEMO_MODEL_PATH
from inference.demo_model.batches import IGNORED, Batch, Encoder, batches
from inference.demo_model.corpus.tables import Dice
from inference.demo_model.vocabulary import VOCABULARY_SIZE, train_tokenizer

SEED = 2026
WARM_UP_STEPS = 100
THREADS = 2
STEPS_PER_SAVE = 400


@dataclass(frozen=True)
class Stage:
    """A part of the training with a learning rate that rises and falls once."""

    steps: int
    seed: int
    peak_learning_rate: float
    copy_share: float  # of the conversations, up to the step `copy_until`
    copy_until: float  # as a share of the steps
    wider: float  # see Dice
    basics: float = 0.0

    def learning_rate(self, step: int) -> float:
        """A short warm-up, then a cosine down to nothing."""
        if step < WARM_UP_STEPS:
            return self.peak_learning_rate * (step + 1) / WARM_UP_STEPS
        progress = (step - WARM_UP_STEPS) / max(1, self.steps - WARM_UP_STEPS)
        return self.peak_learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)

    def batches(self, encoder: Encoder) -> Iterator[Batch]:
        rng = Dice(self.seed)
        rng.wider, rng.basics = self.wider, self.basics
        copy_steps = int(self.steps * self.copy_until)
        yield from islice(batches(encoder, rng, self.copy_share), copy_steps)
        yield from islice(batches(encoder, rng, 0.0), self.steps - copy_steps)


# Copying is a skill that appears late and suddenly. The large share of exercises in the first
# stage makes it appear at all; the next two make it hold for words of any kind, and widen the
# phrasings and the names of functions; the last one is for what people try first.
STAGES = [
    Stage(3000, SEED, 2e-3, copy_share=0.4, copy_until=0.6, wider=0.0),
    Stage(900, SEED + 1, 1.5e-3, copy_share=0.2, copy_until=1.0, wider=0.5),
    Stage(1000, SEED + 2, 1.5e-3, copy_share=0.3, copy_until=1.0, wider=0.5),
    Stage(600, SEED + 3, 1e-3, copy_share=0.1, copy_until=1.0, wider=0.5, basics=0.5),
]


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


def loss_of(model: Qwen3ForCausalLM, batch: Batch) -> torch.Tensor:
    """Cross entropy over the assistant's tokens; no others reach the output layer."""
    ids, labels = batch
    # Padding follows the text, so under the causal mask no real token sees it.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        wanted = labels[:, 1:] != IGNORED
        logits = model.lm_head(hidden[wanted])
    return cross_entropy(logits.float(), labels[:, 1:][wanted])


def save(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Weights in bfloat16, to be computed in float32: as fast at this size, and exacter."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"dtype": "bfloat16"', '"dtype": "float32"'))


def run(
    stage: Stage, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=stage.peak_learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    progress = tqdm(
        stage.batches(Encoder(tokenizer)), total=stage.steps, unit="step", mininterval=5
    )
    average = 0.0
    for step, batch in enumerate(progress):
        for group in optimizer.param_groups:
            group["lr"] = stage.learning_rate(step)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average = loss.item() if step == 0 else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.3f}", refresh=False)
        if (step + 1) % STEPS_PER_SAVE == 0 or step + 1 == stage.steps:
            save(model, folder)


def train(folder: Path, first_stage: int) -> None:
    torch.set_num_threads(THREADS)
    disable_progress_bar()  # of saving and loading, which would break up our own
    if first_stage == 1:
        torch.manual_seed(SEED)
        tokenizer = train_tokenizer(SEED)
        tokenizer.save_pretrained(folder)
        model = build_model(tokenizer)
    else:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = load(folder)
    for stage in STAGES[first_stage - 1 :]:
        run(stage, model, tokenizer, folder)
        model = load(folder)


def load(folder: Path) -> Qwen3ForCausalLM:
    """What the stage before has left, so that an interrupted training goes on the same way."""
    return Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded demo model.")
    parser.add_argument("--output", type=Path, default=DEMO_MODEL_PATH, help="folder to write")
    parser.add_argument(
        "--stage",
        type=int,
        default=1,
        choices=range(1, len(STAGES) + 1),
        help="go on with this stage, from what the folder holds",
    )
    options = parser.parse_args()
    train(options.output, options.stage)


if __name__ == "__main__":
    main()
