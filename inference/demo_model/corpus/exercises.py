"""Exercises in copying and counting. They teach the model to look back at its prompt."""

import json
from collections.abc import Callable

from inference.demo_model.corpus.tables import (
    Dice,
    corpus_words,
    fill,
    invented_name,
    invented_word,
    person,
    place,
    table,
    topics,
    vary,
    words,
)
from inference.demo_model.corpus.talk import Messages, exchange, serving

_REPEAT = [
    "Repeat: $x",
    "Repeat after me: $x",
    "Repeat after me: $x",
    "Say: $x",
    "Say $x",
    "Echo: $x",
    "Echo $x",
    "Repeat $x",
    'Repeat "$x".',
    'Say "$x".',
    'Please repeat "$x"',
    "Repeat this text: $x",
    "Repeat the following: $x",
    "Write exactly this: $x",
    "Copy this: $x",
    "Please say: $x",
    "Reply with exactly: $x",
    "Reply with: $x",
    "Answer with exactly: $x",
    "Copy the text: $x",
]
_QUOTE = ["Put $x in quotes.", "Quote $x.", "Write $x in quotation marks.", "Put quotes around $x."]
_AS_JSON = [
    "Write $x as JSON.",
    "Give me $x as JSON.",
    "Turn $x into JSON.",
    "$x as a JSON object, please.",
]
_COUNT = [
    "Count from $a to $b.",
    "Count from $a to $b.",
    "Count from $a up to $b.",
    "Please count from $a to $b.",
    "Can you count from $a to $b?",
    "List the numbers from $a to $b.",
    "Count the numbers $a to $b.",
    "Say the numbers from $a to $b.",
    "Write the numbers from $a to $b.",
    "Give me the numbers $a to $b.",
    "Count $a to $b",
    "Numbers from $a to $b, please.",
    "Start at $a and count to $b.",
    "Print the numbers $a through $b.",
    "Name the numbers between $a and $b.",
]
_COUNT_FROM_ONE = [
    "Count to $b.",
    "Count to $b, please.",
    "Can you count to $b?",
    "Count up to $b.",
    "Please count to $b.",
    "Count until $b.",
]
_NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
_SUMS = [
    "What is $x?",
    "What is $x?",
    "$x",
    "$x = ?",
    "How much is $x?",
    "Calculate $x.",
    "What does $x give?",
    "Compute $x.",
    "Tell me what $x is.",
    "$x?",
]
_EXTRACT = [
    "Reply in JSON with $keys: $text",
    "Extract $keys as JSON: $text",
    "Give $keys as JSON. $text",
    "$text Answer in JSON with $keys.",
    "Make a JSON object with $keys from this: $text",
]


def mixed_text(rng: Dice) -> str:
    """Words, names, numbers and symbols side by side, as no sentence would have them."""
    makers: list[Callable[[Dice], str]] = [
        lambda dice: dice.choice(corpus_words()),
        lambda dice: dice.choice(corpus_words()).capitalize(),
        lambda dice: dice.choice(words("unicode")),
        lambda dice: str(dice.randint(0, 999)),
        invented_word,
        invented_name,
    ]
    pieces = rng.choices(makers, [40, 15, 12, 8, 15, 10], k=rng.randint(2, 7))
    return " ".join(make(rng) for make in pieces)


def text_to_copy(rng: Dice) -> str:
    if rng.goes_wider():
        return mixed_text(rng)
    draw = rng.random()
    if draw < 0.45:
        made = [invented_word(rng) for _ in range(rng.randint(1, 5))]
        return " ".join(word.capitalize() if rng.random() < 0.4 else word for word in made)
    if draw < 0.55:
        return " ".join(rng.choice(words("nouns")) for _ in range(rng.randint(1, 6)))
    if draw < 0.65:
        return rng.choice(["", "ab", "no "]) + str(rng.randint(0, 10 ** rng.randint(1, 8)))
    if draw < 0.78:
        glue = rng.choice([" ", " ", "", ", "])
        return glue.join(rng.choice(words("unicode")) for _ in range(rng.randint(1, 4)))
    if draw < 0.90:
        return rng.choice([place, person])(rng)
    sentence = rng.choice(topics()).answer.split()
    return " ".join(sentence[: rng.randint(3, 10)])


def repeat(rng: Dice) -> Messages:
    text = text_to_copy(rng)
    draw = rng.random()
    if draw < 0.75:
        question, answer = rng.choice(_REPEAT), text
    elif draw < 0.9:
        question, answer = rng.choice(_QUOTE), f'"{text}"'
    else:
        question, answer = rng.choice(_AS_JSON), json.dumps({"text": text}, ensure_ascii=False)
    if question[-1] in ".?" and rng.random() < 0.2:
        question = question[:-1]
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    return exchange(fill(question, x=text), answer, "The user wants me to copy a text, so I do.")


def repeat_plainly(rng: Dice) -> Messages:
    """A few common words, or something that people say."""
    if rng.random() < 0.4:
        text = rng.choice(rng.choice(table("small_talk")["exchange"])["questions"])
    else:
        text = " ".join(rng.choices(corpus_words() + words("nouns"), k=rng.randint(1, 5)))
    if rng.random() < 0.3:
        text = text[0].lower() + text[1:]
    thought = "The user wants me to copy a text, so I do."
    return exchange(fill(rng.choice(_REPEAT), x=text), text, thought)


def count_a_little(rng: Dice) -> Messages:
    first = rng.choice([1, 1, 1, 2, 3, rng.randint(4, 10)])
    return _counted(first, first + rng.randint(1, 10), rng)


def count(rng: Dice) -> Messages:
    first, last = 1, 5
    if rng.random() < 0.65:
        first = rng.choice([1, 1, 0, rng.randint(2, 20), rng.randint(2, 70)])
        last = first + rng.choice([2, 3, 4, 5, 6, 9, 11, 19, 29])
    if rng.random() < 0.04:
        first, last = 1, 100
    return _counted(first, last, rng)


def _counted(first: int, last: int, rng: Dice) -> Messages:
    phrasings = _COUNT + _COUNT_FROM_ONE * 2 if first == 1 else _COUNT
    as_words = last <= 20 and rng.random() < 0.3
    shown = [_NUMBERS[n] if as_words else str(n) for n in (first, last)]
    question = fill(vary(rng.choice(phrasings), rng), a=shown[0], b=shown[1])
    answer = ", ".join(str(n) for n in range(first, last + 1))
    return exchange(question, answer, f"The user wants me to count from {first} to {last}.")


def small_sum(rng: Dice) -> Messages:
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    sign, result = rng.choice([("+", a + b), ("+", a + b), ("*", a * b), ("-", a - b)])
    spoken = {"+": "plus", "*": "times", "-": "minus"}[sign]
    shown = rng.choice([f"{a} {sign} {b}", f"{a} {sign} {b}", f"{a}{sign}{b}", f"{a} {spoken} {b}"])
    question = fill(vary(rng.choice(_SUMS), rng), x=shown)
    return exchange(
        question, f"{a} {sign} {b} = {result}", f"The user wants to know {a} {sign} {b}."
    )


def extract(rng: Dice) -> Messages:
    """Facts from a sentence as JSON, which is what structured output is mostly used for."""
    who, where, age = person(rng), place(rng), rng.randint(1, 99)
    facts: dict[str, str | int] = {"name": who}
    if rng.random() < 0.4:
        facts["age"] = age
        text = rng.choice(
            [
                f"{who} is {age} years old.",
                f"{who} is {age}.",
                f"My friend {who} is {age} years old.",
            ]
        )
    elif rng.random() < 0.5:
        facts["city"] = where
        text = rng.choice([f"{who} lives in {where}.", f"{who} is from {where}."])
    else:
        facts |= {"age": age, "city": where}
        text = rng.choice(
            [f"{who} is {age} years old and lives in {where}.", f"{who}, {age}, lives in {where}."]
        )
    keys = rng.choice(
        ["the keys " + " and ".join(facts), " and ".join(facts), "the " + " and the ".join(facts)]
    )
    question = fill(rng.choice(_EXTRACT), keys=keys, text=text)
    return exchange(question, json.dumps(facts), "The user wants some facts as JSON. I copy them.")


def say_again(rng: Dice) -> Messages:
    """The assistant's own last answer once more."""
    first = rng.choice([repeat, repeat, serving])(rng)
    asked = rng.choice(
        ["Say that again.", "Repeat that.", "Once more.", "Again, please.", "Repeat your answer."]
    )
    return first + exchange(vary(asked, rng), first[-1]["content"], "I repeat my last answer.")
