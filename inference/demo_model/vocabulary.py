"""The demo model's tokenizer: byte-level BPE, learned from its own corpus."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from inference.demo_model.corpus.mixture import Conversation, conversation
from inference.demo_model.corpus.tables import Dice, table, topics, words

VOCABULARY_SIZE = 3072
CONVERSATIONS_READ = 8000
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
]
TEMPLATE = Path(__file__).parent / "chat_template.jinja"

# A capitalised word is cut off from the space before it, and so is anything that is not ASCII:
# a name then has the same tokens in a question and in a JSON string, which makes it easy to copy.
_PIECES = Regex(
    r"\p{N}|\p{Lu}[\p{L}\p{M}]*| ?[a-z]+|[\p{L}\p{M}]+"
    r"| ?[!-/:-@\[-`{-~]+|[^\s\p{L}\p{M}\p{N}]+|\s*[\r\n]+|\s+(?=\s)|\s"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_PIECES, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    # The alphabet holds every byte, so that any text can be read and written.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKUP),
        initial_alphabet=alphabet,
        special_tokens=CONTROL,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(Dice(seed)), trainer)
    # Not special, as in Qwen3: parsers find them in the text that clients would otherwise lose.
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in MARKUP])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        chat_template=TEMPLATE.read_text(encoding="utf-8"),
    )


def _texts(rng: Dice) -> Iterator[str]:
    for _ in range(CONVERSATIONS_READ):
        yield from _texts_of(conversation(rng))
    for _ in range(20):
        yield from ["\n\n"] * 50
        yield from (phrasing for topic in topics() for phrasing in topic.phrasings())
        yield from table("unknown")["questions"]
        yield from words("nouns")


def _texts_of(talk: Conversation) -> Iterator[str]:
    for message in talk.messages:
        yield message["content"] or ""
        yield message.get("reasoning_content") or ""
    yield from (str(tool).replace("'", '"') for tool in talk.tools)
    for message in talk.messages:
        yield from (
            str(call["function"]).replace("'", '"') for call in message.get("tool_calls", [])
        )
