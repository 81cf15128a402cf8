"""Exchanges without tools: questions on serving, small talk, names, and honest ignorance."""

from typing import Any

from inference.demo_model.corpus.tables import (
    Dice,
    Topic,
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

Messages = list[dict[str, Any]]


def exchange(question: str, answer: str, thought: str) -> Messages:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    ]


def ask_topic(topic: Topic, rng: Dice) -> Messages:
    thought = f"The user asks about {topic.name}. I can answer that in one sentence."
    if rng.goes_wider():
        name = rng.choice([topic.name, *topic.aliases])
        question = fill(rng.choice(table("wider")["general"]), x=name)
    else:
        asked = topic.questions if rng.random() < 0.5 else topic.phrasings()
        question = rng.choice(asked)
    return exchange(vary(question, rng), topic.answer, thought)


def ask_why(topic: Topic, rng: Dice) -> Messages:
    thought = f"The user asks why {topic.name} matters. I give the reason."
    question = fill(
        rng.choice(table("phrasings")["about_why"]), x=rng.choice([topic.name, *topic.aliases])
    )
    return exchange(vary(question, rng), topic.why, thought)


def follow_up(topic: Topic, rng: Dice) -> Messages:
    thought = f"We were talking about {topic.name}. I add why it matters."
    if rng.goes_wider():
        question = rng.choice(table("wider")["why"])
    else:
        question = rng.choice(table("phrasings")[rng.choice(["why", "why", "more"])])
    return exchange(vary(question, rng), topic.why, thought)


def serving(rng: Dice) -> Messages:
    topic = rng.choice(topics())
    draw = rng.random()
    if draw < 0.08:
        return ask_why(topic, rng)
    if draw < (0.5 if rng.wider else 0.75):
        return ask_topic(topic, rng)
    return ask_topic(topic, rng) + follow_up(topic, rng)


def small_talk(rng: Dice) -> Messages:
    if rng.goes_wider():
        return combined(rng)
    entry = rng.choice(table("small_talk")["exchange"])
    return exchange(vary(rng.choice(entry["questions"]), rng), entry["answer"], entry["thought"])


def combined(rng: Dice) -> Messages:
    """Small talk in two parts, such as a greeting and a name."""
    entry = rng.choice(table("wider")["combination"])
    tail = fill(rng.choice(entry["tails"]), x=person(rng))
    glue = rng.choice([", ", ", ", " ", "! "])
    question = rng.choice(entry["heads"]) + (glue + tail if tail else "")
    question += rng.choice(["", "", ".", "!"]) if question[-1].isalpha() else ""
    return exchange(_lowered(question, rng), entry["answer"], entry["thought"])


def _lowered(text: str, rng: Dice) -> str:
    return text.lower() if rng.random() < 0.15 else text


def identity(rng: Dice) -> Messages:
    entry = next(
        one for one in table("small_talk")["exchange"] if "Who are you?" in one["questions"]
    )
    return exchange(vary(rng.choice(entry["questions"]), rng), entry["answer"], entry["thought"])


def unknown(rng: Dice) -> Messages:
    entry = table("unknown")
    if rng.random() < 0.5:
        question = vary(rng.choice(entry["questions"]), rng)
    else:
        makers = [
            place,
            person,
            invented_word,
            invented_name,
            lambda r: "the " + r.choice(words("nouns")),
        ]
        question = fill(vary(rng.choice(entry["templates"]), rng), x=rng.choice(makers)(rng))
    return exchange(question, entry["answer"], entry["thought"])


def tool_missing(rng: Dice) -> Messages:
    """A question for a function that was not offered; small sums are known without one."""
    tool = rng.choice([tool for tool in table("tools")["tool"] if tool["slot"] == "city"])
    question = fill(vary(rng.choice(tool["questions"][:-1]), rng), x=place(rng))
    return exchange(question, tool["missing"], "I would need a function for this and have none.")


_NAME_GIVEN = [
    "My name is $x.",
    "My name is $x.",
    "I am $x.",
    "I'm $x.",
    "Call me $x.",
    "You can call me $x.",
    "Hi, my name is $x.",
    "Hello, I am $x.",
    "Hi, I'm $x.",
    "Hello! My name is $x.",
    "People call me $x.",
    "$x is my name.",
    "My first name is $x.",
    "This is $x speaking.",
]
_NAME_ASKED = [
    "What is my name?",
    "What's my name?",
    "Do you remember my name?",
    "Who am I?",
    "Tell me my name.",
    "Do you know my name?",
    "How am I called?",
    "What did I say my name was?",
    "Say my name.",
    "What was my name again?",
    "Can you tell me my name?",
    "And what is my name?",
]
_HOME_GIVEN = [
    "I live in $x.",
    "I come from $x.",
    "I am from $x.",
    "My home is $x.",
    "I was born in $x.",
]
_HOME_ASKED = [
    "Where do I live?",
    "Where am I from?",
    "Where is my home?",
    "Which city do I live in?",
    "Do you remember where I live?",
    "Where do I come from?",
]
_FACT_GIVEN = [
    "My $thing is $x.",
    "Remember that my $thing is $x.",
    "Please note: my $thing is $x.",
    "You should know that my $thing is $x.",
]
_FACT_ASKED = [
    "What is my $thing?",
    "What's my $thing?",
    "Do you remember my $thing?",
    "Tell me my $thing.",
    "What did I say my $thing was?",
    "Which $thing do I have?",
]


def remember(rng: Dice) -> Messages:
    """Something said in one turn and asked for in a later one, perhaps with other talk between."""
    given, asked, noted, recalled, value, thing = _memory(rng)
    first = exchange(
        fill(vary(rng.choice(given), rng), x=value, thing=thing),
        fill(noted, x=value, thing=thing),
        "The user tells me something. I take note of it.",
    )
    last = exchange(
        fill(vary(rng.choice(asked), rng), thing=thing),
        fill(recalled, x=value, thing=thing),
        fill("The user told me before: it is $x.", x=value),
    )
    between = [small_talk, serving, unknown] if rng.random() < 0.35 else []
    middle = rng.choice(between)(rng) if between else []
    return first + middle + last if rng.random() < 0.85 else first


def _memory(rng: Dice) -> tuple[list[str], list[str], str, str, str, str]:
    draw = rng.random()
    if draw < 0.6:
        return (
            _NAME_GIVEN,
            _NAME_ASKED,
            "Nice to meet you, $x!",
            "Your name is $x.",
            person(rng),
            "",
        )
    if draw < 0.75:
        return (
            _HOME_GIVEN,
            _HOME_ASKED,
            "I will remember that you live in $x.",
            "You live in $x.",
            place(rng),
            "",
        )
    value = rng.choice(
        [
            rng.choice(words("nouns")),
            invented_word(rng),
            invented_name(rng),
            str(rng.randint(1, 999)),
        ]
    )
    noted = "I will remember that your $thing is $x."
    return _FACT_GIVEN, _FACT_ASKED, noted, "Your $thing is $x.", value, rng.choice(words("things"))


def not_told(rng: Dice) -> Messages:
    answer = "You have not told me your name yet."
    return exchange(vary(rng.choice(_NAME_ASKED), rng), answer, "The user has not told me a name.")
