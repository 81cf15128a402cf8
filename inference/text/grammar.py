"""What an answer must look like: grammars for llguidance, compiled into masks over the vocabulary.

A grammar is a list of parts in llguidance's own JSON form. The first is called "answer" and may
refer to the others by name.
"""

import json
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import regex
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, StructTag
from llguidance.gbnf_to_lark import any_to_lark
from numpy.typing import NDArray

from inference.errors import ConstraintFailed, InvalidGrammar
from inference.request import ModelInfo
from inference.text.parameters import followed
from inference.text.syntax import Calls, Reasoning
from inference.text.thinking import ThinkingBudget, Thought

Part = dict[str, Any]
Schema = dict[str, Any] | bool
Tool = dict[str, Any]  # {"type": "function", "function": {"name", "parameters"?, ...}}

# One space where Python's json puts one, or none: with more freedom a model can go on for ever
# without saying anything.
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# Room for an object of some 3,000 optional properties, whose masks take up to 50 ms. Grammars that
# callers write can do worse with it, and get llguidance's own limits.
_JSON_LIMITS = LLParserLimits(max_items_in_row=15_000, step_max_items=100_000)
_NUM_TRIAL_TOKENS = 4
STACK_SIZE = 64 * 1024**2  # of threads that compile: a chain of references is recursion
_ANY_TEXT = "/(?s:.*)/"


def json_part(schema: Schema, **style: Any) -> Part:
    """JSON that fits the schema."""
    if schema is True:
        schema = {}
    elif schema is False:
        raise InvalidGrammar("Nothing fits a schema that is false.")
    return {"json_schema": {**schema, "x-guidance": _JSON_STYLE | style}}


def regex_part(pattern: str) -> Part:
    """Text that the regular expression matches as a whole."""
    return json.loads(LLMatcher.grammar_from_regex(pattern))["grammars"][0]


def choice_part(options: list[str]) -> Part:
    """One of the texts."""
    return _lark([f"start: {_one_of(options)}"])


def lark_part(text: str) -> Part:
    """A context-free grammar in Lark's notation, or in GBNF."""
    try:
        return {"lark_grammar": any_to_lark(text)}
    except Exception as exc:  # a converter of a few hundred lines, which raises all sorts
        raise InvalidGrammar(f"The grammar could not be read: {exc}") from exc


def tags_part(tags: list[dict[str, Any]], triggers: list[str]) -> Part:
    """Free text in which a trigger must go on as one of the tags: {begin, schema, end}."""
    struct_tags = []
    for tag in tags:
        trigger = next((t for t in triggers if t and tag["begin"].startswith(t)), None)
        if trigger is None:
            raise InvalidGrammar(f"No trigger begins {tag['begin'][:80]!r}.")
        body = json.dumps(json_part(tag["schema"])["json_schema"])
        struct_tags.append(
            StructTag(trigger=trigger, begin=tag["begin"], grammar=body, end=tag["end"])
        )
    return {"lark_grammar": StructTag.to_grammar(struct_tags, assume_special=False)}


class Compiler:
    """Makes grammars for one tokenizer. Setting it up takes a second for a large vocabulary.

    Raises InvalidGrammar for a tokenizer that is not a fast one.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise InvalidGrammar(
                "This model's tokenizer is not a fast one and follows no grammars."
            )
        backend = copy(tokenizer.backend_tokenizer)
        backend.no_padding()
        backend.no_truncation()
        self._ll = LLTokenizer(
            backend.to_str(),
            n_vocab=max(vocab_size, len(tokenizer)),
            eos_token=sorted(eos_token_ids) or None,
        )
        added = tokenizer.get_added_vocab()
        special = {text: id_ for text, id_ in added.items() if self._ll.is_special_token(id_)}
        self._special = special
        longest_first = sorted(map(regex.escape, special), key=len, reverse=True)
        self._split = regex.compile(f"({'|'.join(longest_first)})" if special else "(?!)")
        self._matcher = lru_cache(maxsize=64)(self._compile)

    def compile(
        self, parts: list[Part] | None, thought: Thought | None = None, *, is_text: bool = True
    ) -> "AnswerGrammar":
        """The constraint that is `parts`, after a thought where one may come.

        Without parts only the length of the thought is limited. Calls, where not `is_text`, bring
        what stands before them. Raises InvalidGrammar.
        """
        grammar = None
        if parts is not None:
            self._refuse_special(parts)
            grammars = [{**parts[0], "name": "answer"}, *parts[1:]]
            grammar = json.dumps({"grammars": grammars})
            if thought:  # which would hide, for a while, that nothing can follow it
                self._matcher(grammar)
                start = _lark([self._after(thought, is_text)])
                grammar = json.dumps({"grammars": [{"name": "start", **start}, *grammars]})
        return self._constraint(grammar, thought)

    def compile_spec(self, spec: dict[str, Any]) -> "AnswerGrammar":
        """The constraint that has this `spec`. Raises InvalidGrammar."""
        thought = spec["thought"]
        if thought is not None:
            thought = Thought(**thought | {"reasoning": Reasoning(**thought["reasoning"])})
        return self._constraint(spec["grammar"], thought)

    def _constraint(self, grammar: str | None, thought: Thought | None) -> "AnswerGrammar":
        matcher = None if grammar is None else self._matcher(grammar)
        spec = {"grammar": grammar, "thought": thought and asdict(thought)}
        return AnswerGrammar(matcher, thought, self._tokenizer, self._matcher.cache_clear, spec)

    def calls(self, syntax: Calls, tools: list[Tool], *, parallel: bool) -> list[Part]:
        """At least one call of one of the tools, exactly one unless `parallel`."""
        rules, parts = self._arguments(syntax, tools)
        more = f"({self.literal(syntax.between)} call)*" if parallel else ""
        start = f"start: {self.literal(syntax.first)} call {more} {self.literal(syntax.last)}"
        return [_lark([start, self._call("call", syntax, tools), *rules]), *parts]

    def text_or_calls(self, syntax: Calls, tools: list[Tool]) -> list[Part]:
        """Free text in which every call that begins is a right one."""
        rules, parts = self._arguments(syntax, tools)
        head = syntax.first + syntax.begin.partition("{name}")[0]
        special = self._split.match(head)
        trigger = special.group() if special else (syntax.first or head).partition("\n")[0]
        first = self.literal(syntax.first[len(trigger) :])
        cut = 0 if syntax.first else len(trigger)
        more = f"({self.literal(syntax.between)} call)* {self.literal(syntax.last)}"
        start = f"start: (free {first} opened {more})* {_ANY_TEXT}"
        opened = self._call("opened", syntax, tools, cut)
        call = self._call("call", syntax, tools)
        return [_lark([start, self._until("free", trigger), opened, call, *rules]), *parts]

    def literal(self, text: str) -> str:
        """The text as a Lark expression; what the tokenizer takes for special is a token of it."""
        pieces = [piece for piece in self._split.split(text) if piece]
        special = self._special
        return " ".join(f"<[{special[p]}]>" if p in special else _quote(p) for p in pieces)

    def _call(self, rule: str, syntax: Calls, tools: list[Tool], cut: int = 0) -> str:
        """The rule of one call, of which the first `cut` characters stand there already."""
        options = []
        for index, tool in enumerate(tools):
            head = syntax.begin.replace("{name}", tool["function"]["name"])[cut:]
            options.append(f"{self.literal(head)} args{index} {self.literal(syntax.end)}")
        return f"{rule}: " + " | ".join(options)

    def _arguments(self, syntax: Calls, tools: list[Tool]) -> tuple[list[str], list[Part]]:
        """For each tool the rule `args{i}`, with the parts that it refers to."""
        rules, parts = [], []
        for index, tool in enumerate(tools):
            schema = tool["function"].get("parameters") or {"type": "object"}
            if syntax.is_xml:
                more_rules, more_parts = self._xml_arguments(f"args{index}", schema)
                rules += more_rules
                parts += more_parts
            else:
                rules.append(f"args{index}: @json{index}")
                parts.append({"name": f"json{index}", **json_part(schema)})
        return rules, parts

    def _xml_arguments(self, name: str, schema: Schema) -> tuple[list[str], list[Part]]:
        """Qwen3-Coder's parameters in the schema's order; strings stand there without quotes."""
        schema = schema if isinstance(schema, dict) else {}
        required = schema.get("required") or []
        body, rules, parts = [], [], []
        end = self.literal("\n</parameter>\n")
        for index, (key, value) in enumerate((schema.get("properties") or {}).items()):
            rule = f"{name}_{index}"
            head = self.literal(f"<parameter={key}>\n")
            value = followed(value, schema.get("$defs") or schema.get("definitions") or {})
            facts = value if isinstance(value, dict) else {}
            options: Any = [facts["const"]] if "const" in facts else facts.get("enum", ())
            if facts.get("type") == "string" and options == ():
                rules += [f"{rule}_text[lazy]: /(?s:.*)\\n<\\/parameter>\\n/"]
                rules += [f"{rule}: {head} {rule}_text"]
            elif _are_texts(options):
                rules += [f"{rule}: {head} ({_one_of(options)}) {end}"]
            else:
                definitions = {k: schema[k] for k in ("$defs", "definitions") if k in schema}
                value = facts | definitions if facts else value
                parts.append({"name": rule + "_json", **json_part(value)})
                rules += [f"{rule}: {head} @{rule}_json {end}"]
            body.append(rule if key in required else f"{rule}?")
        return [f"{name}: {' '.join(body)}", *rules], parts

    def _after(self, thought: Thought, is_text: bool) -> str:
        """The grammar of an answer with its thought in front."""
        reasoning = thought.reasoning
        rest = "until gap" if thought.is_open else f"({self.literal(reasoning.open)} until gap)?"
        answer = self.literal(reasoning.answer) if is_text else ""
        rules = [self._until("until", reasoning.close), "gap: /\\n{0,2}/"]
        return "\n".join([f"start: {rest} {answer} @answer", *rules])

    def _until(self, rule: str, marker: str) -> str:
        """The rule of any text up to the first marker, and with it."""
        if self._split.search(marker):  # a token that no text can have
            return f"{rule}: {_ANY_TEXT} {self.literal(marker)}"
        return f"{rule}[lazy]: /(?s:.*){_lark_regex(marker)}/"

    def _refuse_special(self, parts: list[Part]) -> None:
        """What spells a special token cannot be written: the token stands in its way."""
        for part in parts:
            for text in _demanded_texts(part):
                if found := self._split.search(text):
                    raise InvalidGrammar(f"{found.group()!r} is a special token of this model.")

    def _compile(self, grammar: str) -> LLMatcher:
        limits = _JSON_LIMITS if '"json_schema"' in grammar else None
        matcher = LLMatcher(self._ll, grammar, log_level=0, limits=limits)
        # What is lazy in it happens now and not in a step, and what is too much is found out.
        trial = matcher.deep_copy()
        for _ in range(_NUM_TRIAL_TOKENS):
            allowed = np.frombuffer(trial.compute_bitmask(), dtype=np.uint8)
            tokens = np.unpackbits(allowed, bitorder="little").nonzero()[0]
            if trial.is_error() or trial.is_stopped():
                break
            if not len(tokens):
                raise InvalidGrammar("No text fits it.")
            trial.consume_token(int(tokens[-1]))
        if failed := next((m for m in (matcher, trial) if m.is_error()), None):
            raise InvalidGrammar(failed.get_error().partition("\n")[0][:300])
        return matcher


_compiler = lru_cache(maxsize=2)(Compiler)


def compiler_of(model: ModelInfo) -> Compiler:
    """The compiler for this model's tokenizer; made once. Raises InvalidGrammar."""
    return _compiler(model.tokenizer, model.vocab_size, model.eos_token_ids)


@dataclass(frozen=True, eq=False)
class AnswerGrammar:
    """A compiled grammar, and a limit to the thought before it.

    States share what they have found out about the grammar, and its limits: `forget` is called
    when these are used up, so that the next request begins anew.
    """

    matcher: LLMatcher | None
    thought: Thought | None
    tokenizer: Any
    forget: Callable[[], None]
    spec: dict[str, Any]

    def begin(self) -> "GrammarState":
        """The state before the first token."""
        matcher = self.matcher.deep_copy() if self.matcher else None
        budget = None
        if self.thought is not None and self.thought.max_tokens is not None:
            budget = ThinkingBudget(self.thought, self.tokenizer)
        return GrammarState(matcher, budget, self.forget)


@dataclass(frozen=True, eq=False)
class GrammarState:
    """How far an answer has come in its grammar (see `inference.request.ConstraintState`)."""

    matcher: LLMatcher | None
    budget: ThinkingBudget | None
    forget: Callable[[], None]

    def fill(self, bitmask: NDArray[np.int32]) -> None:
        """Clear the bits of the tokens that must not come next."""
        forced = self.budget.forced_token() if self.budget else None
        if forced is not None:
            bitmask[:] = 0
            bitmask[forced // 32] = np.uint32(1 << forced % 32).astype(np.int32)
        elif self.matcher and not self.matcher.is_error():
            allowed = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.int32)
            bitmask[: len(allowed)] = allowed[: len(bitmask)]
            bitmask[len(allowed) :] = 0
            if self.matcher.is_error():
                self.forget()

    def advance(self, token_id: int) -> bool:
        """Take over the next token: True if none may follow. Raises ConstraintFailed."""
        if self.budget:
            self.budget.advance(token_id)
        if not self.matcher:
            return False
        # A grammar beyond its limits allows the end token: that is no end
        if self.matcher.is_error() or not self.matcher.consume_token(token_id):
            reason = self.matcher.get_error().partition("\n")[0][:200]
            raise ConstraintFailed(f"The answer could not be kept to its grammar: {reason}")
        return self.matcher.is_stopped()


def _demanded_texts(part: Part) -> Iterator[str]:
    """The texts that a caller's part asks for literally, or by a pattern."""
    yield part.get("lark_grammar") or ""
    pending: list[Any] = [part.get("json_schema")]
    while pending:
        node = pending.pop()
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            demanded = [node.get(key) for key in ("const", "enum", "pattern")]
            yield json.dumps(demanded, ensure_ascii=False)
            if isinstance(node.get("properties"), dict):
                yield from node["properties"]
            pending += [value for key, value in node.items() if key not in ("const", "enum")]


def _lark(rules: list[str]) -> Part:
    return {"lark_grammar": "\n".join(rules)}


def _one_of(options: list[str]) -> str:
    return " | ".join(map(_quote, options))


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _lark_regex(text: str) -> str:
    return regex.escape(text).replace("/", "\\/").replace("\n", "\\n")


def _are_texts(values: Any) -> bool:
    return bool(values) and isinstance(values, list) and all(isinstance(v, str) for v in values)
