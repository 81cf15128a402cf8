"""Conversations as batches of tokens: of similar length, with the assistant's tokens marked."""

from collections.abc import Iterator

import torch
from transformers import PreTrainedTokenizerFast

from inference.demo_model.corpus.mixture import Conversation, conversation
from inference.demo_model.corpus.tables import Dice

TOKENS_PER_BATCH = 4608
CONVERSATIONS_PER_POOL = 640
IGNORED = -100

Batch = tuple[torch.Tensor, torch.Tensor]


class Encoder:
    """Renders a conversation with the chat template and labels what the assistant has to say."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.start = tokenizer.encode("<|im_start|>assistant\n")
        self.no_thought = tokenizer.encode("<think>\n\n</think>\n\n")
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def encode(self, talk: Conversation) -> tuple[list[int], list[int]]:
        messages = talk.messages
        if not talk.thinking:
            messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in messages]
        text = self.tokenizer.apply_chat_template(
            messages, tools=talk.tools or None, tokenize=False
        )
        ids = self.tokenizer.encode(text)
        return ids, self._labels(ids)

    def _labels(self, ids: list[int]) -> list[int]:
        labels = [IGNORED] * len(ids)
        at = 0
        while at < len(ids):
            if not _found(self.start, ids, at):
                at += 1
                continue
            at += len(self.start)
            if _found(self.no_thought, ids, at):
                at += len(self.no_thought)
            end = ids.index(self.end, at) + 1
            labels[at:end] = ids[at:end]
            at = end
        return labels


def _found(part: list[int], ids: list[int], at: int) -> bool:
    return ids[at : at + len(part)] == part


def batches(encoder: Encoder, rng: Dice, copy_share: float) -> Iterator[Batch]:
    """Without end."""
    while True:
        made = [conversation(rng, copy_share) for _ in range(CONVERSATIONS_PER_POOL)]
        encoded = sorted((encoder.encode(talk) for talk in made), key=lambda pair: len(pair[0]))
        grouped = list(_grouped(encoded))
        rng.shuffle(grouped)
        yield from (_padded(group, encoder.tokenizer.pad_token_id) for group in grouped)


def _grouped(
    encoded: list[tuple[list[int], list[int]]],
) -> Iterator[list[tuple[list[int], list[int]]]]:
    group: list[tuple[list[int], list[int]]] = []
    for pair in encoded:
        # Sorted by length: this pair would be the longest of its group.
        if group and len(pair[0]) * (len(group) + 1) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(pair)
    yield group


def _padded(group: list[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in group)
    ids = torch.tensor([ids + [pad] * (width - len(ids)) for ids, _ in group])
    labels = torch.tensor([labels + [IGNORED] * (width - len(labels)) for _, labels in group])
    return ids, labels
