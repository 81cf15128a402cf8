"""What the embedded demo model promises, held on phrasings and names that it never saw."""

import json
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from safetensors.torch import load_file

from inference.demo_model import DEMO_MODEL_PATH
from inference.demo_model.corpus.tables import FOLDER, table, topics
from inference.demo_model.evaluate import (
    Prompt,
    Reply,
    ask,
    function,
    held_out_questions,
    is_trained,
    model,
    render,
    replies,
    tokenizer,
    user,
)
from inference.demo_model.vocabulary import MARKUP, TEMPLATE

HELD_OUT = table("held_out")
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"

WEATHER = function("get_weather", "city", "Get the current weather in a city.")
TIME = function("get_time", "city", "Get the current time in a city.")
CALCULATE = function("calculate", "expression", "Evaluate an arithmetic expression.")


def expect(share: float, got: Iterable[str], wanted: Iterable[str]) -> None:
    """At least this share of what we got is what we wanted; the failures are shown."""
    compared = list(zip(got, wanted, strict=True))
    wrong = [pair for pair in compared if pair[0] != pair[1]]
    right = len(compared) - len(wrong)
    assert right >= share * len(compared), f"{right} of {len(compared)} right, not {wrong[:8]}"


def texts(made: list[Reply]) -> list[str]:
    return [reply.text for reply in made]


def answers(questions: list[tuple[str, str]]) -> list[str]:
    return [answer for _, answer in questions]


# --- questions and small talk ---------------------------------------------------------------


def test_there_are_at_least_48_topics_with_ten_phrasings_each() -> None:
    assert len(topics()) >= 48
    assert all(len(set(topic.phrasings())) >= 10 for topic in topics())
    assert len({entry["topic"] for entry in HELD_OUT["question"]}) >= 48


def test_it_answers_held_out_questions_on_serving_and_stops() -> None:
    questions = held_out_questions()
    made = replies(ask(*(text for text, _ in questions)))
    assert all(reply.stopped for reply in made)
    expect(0.85, texts(made), answers(questions))


def test_it_answers_the_same_in_bfloat16() -> None:
    questions = held_out_questions()
    made = replies(ask(*(text for text, _ in questions)), dtype=torch.bfloat16)
    assert all(reply.stopped for reply in made)
    expect(0.85, texts(made), answers(questions))


def test_it_explains_the_kv_cache_however_it_is_set_up() -> None:
    question = user("Explain KV cache in one sentence.")
    systems = [None, "You are a concise assistant.", "Always answer in one line of plain text."]
    prompts = [
        Prompt([{"role": "system", "content": s}, question] if s else [question]) for s in systems
    ]
    for reply in replies(prompts):
        assert reply.stopped
        assert reply.text.endswith(".")
        assert reply.text.count(".") == 1
        assert all(word in reply.text for word in ("keys", "values", "attention"))


def test_it_finds_the_question_behind_long_instructions() -> None:
    rules = " ".join(f"Rule {n}: keep every answer short and friendly." for n in range(40))
    asked = ["Explain KV cache in one sentence.", "What is TTFT?", "Count from 1 to 5."]
    made = replies([Prompt([{"role": "system", "content": rules}, user(text)]) for text in asked])
    known = {topic.name: topic.answer for topic in topics()}
    assert texts(made) == [known["KV cache"], known["TTFT"], "1, 2, 3, 4, 5"]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("greetings", r"^(Hello|Good morning)! How can I help you"),
        ("identity", r"nanoLLMServe demo model.*make serve"),
        ("thanks", r"^You are welcome"),
        ("goodbyes", r"^Goodbye"),
        ("unknown", r"tiny demo model and do not know"),
    ],
)
def test_small_talk(kind: str, wanted: str) -> None:
    made = replies(ask(*HELD_OUT["small_talk"][kind]))
    assert all(reply.stopped for reply in made)
    missed = [reply.text for reply in made if not re.search(wanted, reply.text)]
    assert len(missed) <= len(made) / 3, missed


def test_it_counts_from_one_to_five() -> None:
    made = replies(ask(*HELD_OUT["counting"]["to_five"], "Count from 1 to 5."))
    assert texts(made) == ["1, 2, 3, 4, 5"] * len(made)


def test_it_counts_between_other_numbers() -> None:
    ranges = HELD_OUT["counting"]["others"]
    made = replies(ask(*(f"Count from {first} to {last}." for first, last in ranges)))
    wanted = [", ".join(str(n) for n in range(first, last + 1)) for first, last in ranges]
    expect(0.75, texts(made), wanted)


def test_it_repeats_a_short_text() -> None:
    wanted = HELD_OUT["copying"]["texts"]
    made = replies(ask(*(f"Repeat after me: {text}" for text in wanted)))
    expect(0.7, texts(made), wanted)


# --- several turns --------------------------------------------------------------------------


def test_it_remembers_a_name_it_never_saw() -> None:
    memory = HELD_OUT["memory"]
    prompts = [
        Prompt(
            [
                user(memory["told"][n % 2].replace("$x", name)),
                {"role": "assistant", "content": f"Nice to meet you, {name}!"},
                user(memory["asked"][n % 2]),
            ]
        )
        for n, name in enumerate(memory["people"])
    ]
    made = replies(prompts)
    wanted = [f"Your name is {name}." for name in memory["people"]]
    expect(0.8, texts(made), wanted)


def test_it_greets_by_name() -> None:
    people = HELD_OUT["memory"]["people"]
    made = replies(ask(*(f"My name is {name}." for name in people)))
    wanted = [f"Nice to meet you, {name}!" for name in people]
    expect(0.8, texts(made), wanted)


def test_it_says_why_the_thing_before_matters() -> None:
    known = topics()[:24]
    why = HELD_OUT["follow_up"]["why"]
    prompts = [
        Prompt(
            [
                user(f"What is {topic.name}?"),
                {"role": "assistant", "content": topic.answer},
                user(why[n % 2]),
            ]
        )
        for n, topic in enumerate(known)
    ]
    made = replies(prompts)
    expect(0.8, texts(made), (topic.why for topic in known))


# --- functions ------------------------------------------------------------------------------


def called(reply: Reply) -> str:
    return json.dumps(reply.calls, ensure_ascii=False)


def one_call(name: str, **arguments: str) -> str:
    return json.dumps([{"name": name, "arguments": arguments}], ensure_ascii=False)


def test_it_calls_the_weather_function_with_a_city_it_never_saw() -> None:
    cities, asked = HELD_OUT["tools"]["cities"], HELD_OUT["tools"]["weather"]
    questions = [asked[n % len(asked)].replace("$x", city) for n, city in enumerate(cities)]
    made = replies([Prompt([user(text)], [TIME, WEATHER]) for text in questions])
    assert all(reply.stopped for reply in made)
    wanted = (one_call("get_weather", city=city) for city in cities)
    expect(0.8, map(called, made), wanted)


def test_it_calls_the_time_function_by_the_name_it_is_offered_under() -> None:
    cities, asked = HELD_OUT["tools"]["cities"][:12], HELD_OUT["tools"]["time"]
    tools = [function("city_clock", "town", "Get the current time in a town."), WEATHER]
    questions = [asked[n % len(asked)].replace("$x", city) for n, city in enumerate(cities)]
    made = replies([Prompt([user(text)], tools) for text in questions])
    wanted = (one_call("city_clock", town=city) for city in cities)
    expect(0.7, map(called, made), wanted)


def test_it_calls_the_calculator_with_the_expression() -> None:
    sums = ["17 * 23", "408 + 1999", "96 / 8", "5120 - 77", "31 * 7", "640 + 25"]
    asked = HELD_OUT["tools"]["calculation"]
    questions = [asked[n % len(asked)].replace("$x", text) for n, text in enumerate(sums)]
    made = replies([Prompt([user(text)], [CALCULATE, WEATHER]) for text in questions])
    wanted = (one_call("calculate", expression=text) for text in sums)
    expect(0.8, map(called, made), wanted)


def after_call(question: str, tool: dict[str, Any], value: str, result: str) -> Prompt:
    body = tool["function"]
    parameter = body["parameters"]["required"][0]
    arguments = json.dumps({parameter: value}, ensure_ascii=False)
    call = {"id": "call_1", "type": "function"}
    call["function"] = {"name": body["name"], "arguments": arguments}
    messages = [
        user(question),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    return Prompt(messages, [tool])


def test_it_uses_the_result_of_a_function() -> None:
    cities = HELD_OUT["tools"]["cities"][:12]
    results = ['{"temperature": 21, "condition": "sunny"}', "21 degrees and sunny"]
    made = replies(
        [
            after_call(f"How is the weather today in {city}?", WEATHER, city, results[n % 2])
            for n, city in enumerate(cities)
        ]
    )
    wanted = (f"It is 21 degrees and sunny in {city}." for city in cities)
    expect(0.8, texts(made), wanted)


def test_it_uses_the_time_and_the_sum_it_is_given() -> None:
    made = replies(
        [
            after_call("Which time is it in Oslo?", TIME, "Oslo", '{"time": "14:05"}'),
            after_call(
                "Could you calculate 17 * 23 for me?", CALCULATE, "17 * 23", '{"result": 391}'
            ),
        ]
    )
    assert "14:05" in made[0].text
    assert "Oslo" in made[0].text
    assert "391" in made[1].text


def test_it_answers_without_a_function_where_none_is_needed() -> None:
    questions = held_out_questions()[::4]
    made = replies([Prompt([user(text)], [WEATHER, TIME]) for text, _ in questions])
    expect(0.8, texts(made), answers(questions))


def test_it_does_not_call_a_function_it_was_not_offered() -> None:
    made = replies(ask("What is the weather in Oslo?", "How is the weather today in Porto?"))
    assert not any(reply.calls for reply in made)
    assert all("function" in reply.text for reply in made)


# --- thinking -------------------------------------------------------------------------------

THOUGHT = re.compile(r"<think>\n(?P<thought>[^<]{8,200})\n</think>\n\n(?P<answer>[^<]+)\Z")


def test_it_thinks_briefly_before_it_answers() -> None:
    questions = held_out_questions()[::2]
    made = replies([Prompt([user(text)], thinking=True) for text, _ in questions], 96)
    assert all(reply.stopped for reply in made)
    found = [THOUGHT.match(reply.text) for reply in made]
    assert all(found), [reply.text for reply in made if not THOUGHT.match(reply.text)]
    given = (match["answer"] for match in found if match)
    expect(0.85, given, answers(questions))


def test_it_thinks_before_a_call() -> None:
    cities = HELD_OUT["tools"]["cities"][::3]
    prompts = [
        Prompt([user(f"Can you tell me the weather in {c}?")], [WEATHER], True) for c in cities
    ]
    made = replies(prompts, 96)
    assert all(reply.text.startswith("<think>\n") for reply in made)
    wanted = (one_call("get_weather", city=city) for city in cities)
    expect(0.7, map(called, made), wanted)


def test_it_does_not_think_unless_asked_to() -> None:
    assert "<think>" not in replies(ask("What is a KV cache?"))[0].text


# --- held out, really -----------------------------------------------------------------------


def test_no_held_out_phrasing_is_trained() -> None:
    held_out = [text for text, _ in held_out_questions()]
    held_out += [text for texts in HELD_OUT["small_talk"].values() for text in texts]
    held_out += HELD_OUT["follow_up"]["why"]
    for kind in ("weather", "time", "calculation"):
        held_out += HELD_OUT["tools"][kind]
    assert [text for text in held_out if is_trained(text)] == []
    assert is_trained("Hey, what is the KV cache")


def test_no_other_held_out_phrasing_or_name_occurs_in_the_corpus() -> None:
    files = [path for path in FOLDER.iterdir() if path.suffix in (".toml", ".py")]
    corpus = " ".join(
        path.read_text(encoding="utf-8") for path in files if path.name != "held_out.toml"
    )
    held_out = HELD_OUT["tools"]["cities"] + HELD_OUT["memory"]["people"]
    held_out += HELD_OUT["memory"]["told"] + HELD_OUT["memory"]["asked"]
    held_out += HELD_OUT["counting"]["to_five"] + HELD_OUT["copying"]["texts"]
    found = [text for text in held_out if re.search(rf"(?<!\w){re.escape(text)}(?!\w)", corpus)]
    assert found == []


# --- tokenizer, template, size --------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  two  spaces\t\n\n tab ",
        "naïve Zürich €5",
        "東京 مرحبا नमस्ते",
        "👩‍👩‍👧 🚀\x00\u200d",
        "a\r\nb",
    ],
)
def test_the_tokenizer_keeps_any_text(text: str) -> None:
    assert tokenizer().decode(tokenizer().encode(text)) == text


def test_markup_is_one_token_and_stays_in_the_text() -> None:
    for mark in MARKUP:
        ids = tokenizer().encode(mark)
        assert len(ids) == 1
        assert tokenizer().decode(ids, skip_special_tokens=True) == mark
    control = tokenizer().encode("<|im_start|><|im_end|><|endoftext|>")
    assert len(control) == 3
    assert tokenizer().decode(control, skip_special_tokens=True) == ""


def test_it_is_a_small_qwen3() -> None:
    config = json.loads((DEMO_MODEL_PATH / "config.json").read_text("utf-8"))
    weights = DEMO_MODEL_PATH / "model.safetensors"
    assert weights.stat().st_size <= 8_000_000
    assert config["architectures"] == ["Qwen3ForCausalLM"]
    assert config["dtype"] == "float32"
    assert {value.dtype for value in load_file(weights).values()} == {torch.bfloat16}
    assert config["max_position_embeddings"] >= 32768
    assert 2000 <= config["vocab_size"] <= 8000
    assert len(tokenizer()) == config["vocab_size"]
    stops = model().generation_config.eos_token_id
    assert tokenizer().convert_ids_to_tokens(stops) == ["<|im_end|>", "<|endoftext|>"]


def test_the_committed_template_is_the_trained_one() -> None:
    assert (DEMO_MODEL_PATH / "chat_template.jinja").read_text("utf-8") == TEMPLATE.read_text(
        "utf-8"
    )


def test_a_developer_message_is_a_system_message() -> None:
    text = render([{"role": "developer", "content": "Be brief."}, user("Hi")])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n" + EMPTY_THOUGHT
    )


def test_content_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "world"}]
    assert render([{"role": "user", "content": parts}]) == render([user("Hello, world")])


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(TemplateError, match="Unknown role: oracle"):
        render([{"role": "oracle", "content": "Hi"}])


def test_thinking_opens_the_turn_for_the_model() -> None:
    assert render([user("Hi")], thinking=True).endswith("<|im_start|>assistant\n")
    assert render([user("Hi")]).endswith("<|im_start|>assistant\n" + EMPTY_THOUGHT)


def test_tools_are_listed_behind_the_system_message() -> None:
    text = render([{"role": "system", "content": "Be brief."}, user("Hi")], [WEATHER, TIME])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    listed = text.split("<tools>\n")[1].split("\n</tools>")[0].splitlines()
    assert [json.loads(line) for line in listed] == [WEATHER, TIME]
    assert text.count("<|im_start|>system") == 1


def test_calls_and_results_are_rendered_in_the_format_the_model_writes() -> None:
    calls = [
        {"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}},
        {"function": {"name": "get_weather", "arguments": {"city": "Lima"}}},
    ]
    results = [{"role": "tool", "content": "rainy"}, {"role": "tool", "content": "sunny"}]
    text = render(
        [user("Hi"), {"role": "assistant", "content": None, "tool_calls": calls}, *results]
    )
    assert (
        EMPTY_THOUGHT + "<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
        "<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Lima"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrainy\n</tool_response>\n"
        "<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    ) in text


def test_reasoning_is_kept_only_after_the_last_question() -> None:
    thought = {"role": "assistant", "content": "Hello!", "reasoning_content": "A greeting."}
    inline = {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHello!"}
    for message in (thought, inline):
        kept = render([user("Hi"), message])
        assert "<think>\nA greeting.\n</think>\n\nHello!<|im_end|>" in kept
        dropped = render([user("Hi"), message, user("Bye")])
        assert EMPTY_THOUGHT + "Hello!<|im_end|>" in dropped
        assert "greeting" not in dropped


def test_a_conversation_only_grows_at_its_end() -> None:
    first = [user("Hi")]
    grown = [*first, {"role": "assistant", "content": "Hello!"}, user("Bye")]
    start = tokenizer().encode(render(first)) + tokenizer().encode("Hello!<|im_end|>")
    assert tokenizer().encode(render(grown))[: len(start)] == start
