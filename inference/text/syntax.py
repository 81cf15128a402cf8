"""How families of models write their thoughts and calls: one table for reading and for forcing.

Patterns are for the `regex` module, which can tell that a text may yet become a match.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain
from typing import Any

from inference.text.detokenizer import special_token_ids

# White space before a marker is part of it, so that text never ends in the line before a call.
_CHANNEL = r"(?:<\|start\|>assistant)?<\|channel\|>"
_HARMONY_NOISE = _CHANNEL + r"(?!analysis)\w+[^<]*(?:<\|constrain\|>\w*)?\s*<\|message\|>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """Where thoughts begin and end: the markers as written, and patterns to find them.

    Without `anywhere` only the very beginning of an answer can open a thought: a model that writes
    about `<think>` is not thinking. `answer` stands before an answer that is text.
    """

    open: str
    close: str
    opening: str
    closing: str
    anywhere: bool = False
    noise: str = ""
    answer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """How calls of functions are written.

    Reading: `marker` begins a call in the middle of a text, `bare` one at the beginning of an
    answer. `head` leads from there to the arguments and has a group `name`; `tail` follows the
    arguments, and a group `more` in it means that another head follows. A call that begins like
    `whole_head` without having such a head is read as JSON, up to `whole`. `noise` is dropped.
    Forcing: `first`, then calls with `between` in between, each `begin` (with {name}), arguments
    and `end`, then `last`. `is_xml`: arguments are written as Qwen3-Coder's parameters.
    `id_length`: templates take ids of calls only if they have that many characters.
    """

    marker: str
    head: str
    tail: str
    begin: str
    end: str
    bare: str = ""
    whole: str = ""
    whole_head: str = ""
    noise: str = ""
    first: str = ""
    between: str = ""
    last: str = ""
    is_xml: bool = False
    id_length: int = 0


REASONING = {
    "think": Reasoning(
        open="<think>", close="</think>", opening=r"\s*<think>", closing=r"\s{0,16}</think>"
    ),
    "mistral": Reasoning(
        open="[THINK]", close="[/THINK]", opening=r"\s*\[THINK\]", closing=r"\s{0,16}\[/THINK\]"
    ),
    "harmony": Reasoning(
        open="<|channel|>analysis<|message|>",
        close="<|end|><|start|>assistant",
        opening=_CHANNEL + r"analysis<\|message\|>",
        closing=r"<\|end\|>",
        anywhere=True,
        noise=_HARMONY_NOISE + r"|<\|(?:end|return|call)\|>",
        answer="<|channel|>final<|message|>",
    ),
}

_HERMES_WHOLE = r"\s*</tool_call>"
_MISTRAL: dict[str, Any] = {
    "id_length": 9,
    "marker": r"\[TOOL_CALLS\]",
    "head": r"(?:\[TOOL_CALLS\])?\s*(?:"
    r'\[?\s*\{\s*"name"\s*:\s*"(?P<name>[^"]+)"\s*,\s*(?:"id"\s*:\s*"[^"]*"\s*,\s*)?'
    r'"arguments"\s*:\s*'
    r"|(?P<name>[\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{|null))",
    "tail": r'\s*(?:,\s*"[^"]+"\s*:\s*"[^"]*"\s*)?\}\s*(?:(?P<more>,)|\])',
}
_DEEPSEEK: dict[str, Any] = {
    "marker": r"<｜tool▁calls▁begin｜>|<｜tool▁call▁begin｜>",
    "head": r"(?:<｜tool▁calls▁begin｜>)?\s*<｜tool▁call▁begin｜>(?:"
    r"function<｜tool▁sep｜>(?P<name>[^\n<]+)\n```(?:json)?\n"
    r"|(?!function<｜tool▁sep｜>)(?P<name>[^<\n]+)<｜tool▁sep｜>)\s*",
    "tail": r"\s*(?:```)?\s*<｜tool▁call▁end｜>",
    "noise": r"<｜tool▁calls▁end｜>",
    "first": "<｜tool▁calls▁begin｜>",
    "last": "<｜tool▁calls▁end｜>",
}

CALLS = {
    "hermes": Calls(
        marker="<tool_call>",
        head=r'<tool_call>\s*\{\s*"name"\s*:\s*"(?P<name>[^"]+)"\s*,\s*"(?:arguments|parameters)"'
        r"\s*:\s*",
        tail=r"[^<]*(?:</tool_call>|(?=<tool_call>))",
        whole_head=r"<tool_call>\s*\{",
        whole=_HERMES_WHOLE,
        begin='<tool_call>\n{"name": "{name}", "arguments": ',
        end="}\n</tool_call>",
        between="\n",
    ),
    "qwen3_coder": Calls(
        marker="<tool_call>|<function=",
        head=r"(?:<tool_call>)?\s*<function=(?P<name>[^>\n]+)>",
        tail=r"\s*</tool_call>",
        whole_head=r"<tool_call>\s*\{",
        whole=_HERMES_WHOLE,
        begin="<tool_call>\n<function={name}>\n",
        end="</function>\n</tool_call>",
        between="\n",
        is_xml=True,
    ),
    "llama3_json": Calls(
        marker=r"<\|python_tag\|>",
        bare=r'\s*;?\s*(?:<\|python_tag\|>)?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:',
        head=r'\s*;?\s*(?:<\|python_tag\|>)?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*'
        r'"(?P<name>[^"]+)"\s*,\s*"(?:parameters|arguments)"\s*:\s*',
        tail=r"\s*\}",
        begin='{"name": "{name}", "parameters": ',
        end="}",
        between="; ",
    ),
    "mistral": Calls(
        **_MISTRAL,
        first="[TOOL_CALLS] [",
        begin='{"name": "{name}", "arguments": ',
        end="}",
        between=", ",
        last="]",
    ),
    "mistral_v11": Calls(**_MISTRAL, begin="[TOOL_CALLS]{name}[ARGS]", end=""),
    "deepseek_v3": Calls(
        **_DEEPSEEK,
        begin="<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n```json\n",
        end="\n```<｜tool▁call▁end｜>",
        between="\n",
    ),
    "deepseek_v31": Calls(
        **_DEEPSEEK,
        begin="<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>",
        end="<｜tool▁call▁end｜>",
    ),
    "harmony": Calls(
        marker=r"(?:<\|start\|>assistant\s*|(?:<\|start\|>assistant)?<\|channel\|>\w+\s*)"
        r"to=functions\.",
        bare=r"\s*to=functions\.",
        head=r"(?:<\|start\|>assistant)?\s*(?:<\|channel\|>\w+\s*)?to=functions\."
        r"(?P<name>[\w.-]+)[^{]*?<\|message\|>\s*",
        tail=r"\s*<\|(?:call|end)\|>",
        noise=_HARMONY_NOISE,
        begin="<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>",
        end="",
        between="<|end|><|start|>assistant",
    ),
}

# What a chat template holds, all of it, tells the family; the first that fits is taken.
Signs = list[tuple[str, tuple[str, ...]]]
_CALL_SIGNS: Signs = [
    ("qwen3_coder", ("<function=", "<tool_call>")),
    ("harmony", ("<|channel|>",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",)),
    ("mistral_v11", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("hermes", ("<tool_call>",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('"parameters": ',)),
]
_REASONING_SIGNS: Signs = [
    ("harmony", ("<|channel|>",)),
    ("mistral", ("[THINK]",)),
    ("think", ("</think>",)),
]


def template_of(tokenizer: Any) -> str:
    """All of the tokenizer's chat templates as one text; empty if it has none."""
    return str(getattr(tokenizer, "chat_template", None) or "")


def calls_of(tokenizer: Any, name: str = "auto") -> Calls:
    """The named syntax, or with "auto" the one that the chat template shows, or else Hermes's."""
    return CALLS[_shown(tokenizer, _CALL_SIGNS, "hermes") if name == "auto" else name]


def reasoning_of(tokenizer: Any, name: str = "auto") -> Reasoning | None:
    """The named syntax, with "auto" the one that the chat template shows; None if there is none."""
    return REASONING.get(_shown(tokenizer, _REASONING_SIGNS, "none") if name == "auto" else name)


def _shown(tokenizer: Any, families: Signs, default: str) -> str:
    template = template_of(tokenizer)
    fitting = (name for name, signs in families if all(sign in template for sign in signs))
    return next(fitting, default)


@lru_cache(maxsize=32)
def kept_token_ids(tokenizer: Any, *syntaxes: Reasoning | Calls | None) -> frozenset[int]:
    """The special tokens that are markers of these syntaxes: the parser has to see them."""
    facts = [asdict(syntax).values() for syntax in syntaxes if syntax is not None]
    written = "\n".join(map(str, chain(*facts))).replace("\\", "")
    tokens = {id_: tokenizer.convert_ids_to_tokens(id_) for id_ in special_token_ids(tokenizer)}
    return frozenset(id_ for id_, text in tokens.items() if text in written)
