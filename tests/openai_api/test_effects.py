"""Every parameter of the generation does something: stopping, sampling, streaming, ids, scores."""

import asyncio
import threading
from dataclasses import replace

import pytest

from tests.openai_api.conftest import HELLO

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Köln"}}\n</tool_call>'
TEXT = {"model": "m", "prompt": "Hi", "max_tokens": 100}


async def chat(client, **fields):
    return await client.chat.completions.create(**CHAT, extra_body=fields)


async def chat_chunks(client, **fields) -> list:
    stream = await client.chat.completions.create(**CHAT, stream=True, extra_body=fields)
    return [chunk async for chunk in stream]


async def complete(client, **fields):
    return await client.completions.create(**TEXT | fields)


async def chunks_of(client, **fields) -> list:
    stream = await client.completions.create(**TEXT, stream=True, extra_body=fields)
    return [chunk async for chunk in stream]


def content(chunks: list, index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def id_of(engine, char: str) -> int:
    [token_id] = engine.model.tokenizer.encode(char)
    return token_id


class TestStopping:
    @pytest.mark.parametrize(
        ("stop", "text", "reason"),
        [
            ("ö", "Hello, w", "ö"),
            (["🎉"], "Hello, wörld ", "🎉"),
            (["d 🎉!"], "Hello, wörl", "d 🎉!"),  # over the end of several characters
            (["🎉?", "!!"], HELLO, None),  # begun, but never there
            (["wörld", "ö"], "Hello, w", "ö"),  # the one that is whole first
            (["H"], "", "H"),
            ([HELLO], "", HELLO),
            (["", "!"], HELLO[:-1], "!"),
        ],
    )
    async def test_stop(self, client, stop, text, reason):
        whole = (await chat(client, stop=stop)).choices[0]
        chunks = await chat_chunks(client, stop=stop)
        completion = (await complete(client, stop=stop)).choices[0]

        assert whole.message.content == content(chunks) == completion.text == text
        for last in (whole, chunks[-1].choices[0], completion):
            assert (last.finish_reason, last.stop_reason) == ("stop", reason)

    async def test_include_stop_str_in_output(self, client):
        fields = {"stop": ["rl"], "include_stop_str_in_output": True}

        assert (await chat(client, **fields)).choices[0].message.content == "Hello, wörl"
        assert content(await chat_chunks(client, **fields)) == "Hello, wörl"

    @pytest.mark.parametrize(("include", "text"), [(False, "Hello, wö"), (True, "Hello, wör")])
    async def test_stop_token_ids(self, client, engine, include, text):
        fields = {
            "stop_token_ids": [id_of(engine, "r")],
            "include_stop_str_in_output": include,
        }
        [choice] = (await chat(client, **fields)).choices
        chunks = await chat_chunks(client, **fields)

        assert choice.message.content == content(chunks) == text
        assert (choice.finish_reason, choice.stop_reason) == ("stop", id_of(engine, "r"))
        assert chunks[-1].choices[0].stop_reason == id_of(engine, "r")

    async def test_the_first_of_two_limits_wins(self, client):
        fields = {"max_completion_tokens": 3, "max_tokens": 7}
        assert (await chat(client, **fields)).choices[0].message.content == "Hel"
        assert (await chat(client, max_tokens=7)).choices[0].message.content == HELLO[:7]

    async def test_without_a_limit_the_context_is_the_limit(self, client):
        messages = [{"role": "user", "content": "x" * 1990}]
        [choice], usage = await self._choices_and_usage(client, messages, ignore_eos=True)
        assert (choice.finish_reason, usage.total_tokens) == ("length", 2048)

    async def test_a_limit_beyond_the_context_is_the_context(self, client):
        messages = [{"role": "user", "content": "x" * 1990}]
        fields = {"ignore_eos": True, "max_tokens": 1000}
        [choice], usage = await self._choices_and_usage(client, messages, **fields)
        assert (choice.finish_reason, usage.total_tokens) == ("length", 2048)

    @staticmethod
    async def _choices_and_usage(client, messages, **fields):
        completion = await client.chat.completions.create(
            model="m", messages=messages, extra_body=fields
        )
        return completion.choices, completion.usage


class TestStoppingInACall:
    @pytest.fixture
    def script(self):
        return lambda prompt: CALL.replace("city", "city A") + CALL

    @pytest.mark.parametrize("stop", ["city A", "Köln"])
    async def test_a_call_that_was_cut_is_no_call(self, client, stop):
        [choice] = (await chat(client, stop=stop, tools=[TOOL])).choices
        assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)

    async def test_nor_is_it_beside_a_whole_one(self, client):
        [choice] = (await chat(client, stop='"city"', tools=[TOOL])).choices
        assert (choice.finish_reason, choice.stop_reason) == ("stop", '"city"')


class TestEnd:
    @pytest.fixture
    def script(self):
        return lambda prompt: "Hi"

    async def test_min_tokens_forbids_the_end(self, client):
        completion = await chat(client, min_tokens=5, temperature=0)

        assert completion.choices[0].message.content == "Hi!!!"  # "!" has the lowest id
        assert completion.usage.completion_tokens == 6

    async def test_min_tokens_forbids_stop_tokens(self, client, engine):
        fields = {"stop_token_ids": [id_of(engine, "i")], "temperature": 0}

        assert (await chat(client, **fields)).choices[0].message.content == "H"
        assert (await chat(client, **fields, min_tokens=2)).choices[0].message.content == "H!"

    @pytest.mark.parametrize(("skip", "text"), [(True, "Hi"), (False, "Hi" + "<|im_end|>" * 3)])
    async def test_ignore_eos_and_skip_special_tokens(self, client, skip, text):
        completion = await chat(client, ignore_eos=True, max_tokens=5, skip_special_tokens=skip)

        assert completion.choices[0].message.content == text
        assert completion.choices[0].finish_reason == "length"
        assert completion.usage.completion_tokens == 5


class TestSampling:
    """A model that wants to say "a" for ever, with 20 on a scale where all else is 0."""

    @pytest.fixture
    def script(self):
        return lambda prompt: "a" * 60

    @pytest.fixture
    def ids(self, engine):
        return {char: id_of(engine, char) for char in "abcde"}

    @staticmethod
    async def say(client, num_tokens: int = 4, **fields) -> str:
        fields = {"temperature": 0, "max_tokens": num_tokens} | fields
        return (await complete(client, extra_body=fields)).choices[0].text

    async def test_logit_bias(self, client, ids):
        assert await self.say(client, logit_bias={str(ids["b"]): 21}) == "bbbb"
        assert await self.say(client, logit_bias={str(ids["a"]): -100}) == "!!!!"

    async def test_allowed_token_ids(self, client, ids):
        assert await self.say(client, allowed_token_ids=[ids["d"], ids["c"]]) == "cccc"

    async def test_bad_words(self, client):
        assert await self.say(client, 6, bad_words=["aaa"]) == "aa!aa!"

    async def test_presence_penalty(self, client, ids):
        bias = {str(ids["b"]): 19}
        assert await self.say(client, logit_bias=bias) == "aaaa"
        assert await self.say(client, logit_bias=bias, presence_penalty=2) == "abaa"

    async def test_frequency_penalty(self, client, ids):
        bias = {str(ids["b"]): 19}
        assert await self.say(client, 6, logit_bias=bias, frequency_penalty=2) == "ababab"

    async def test_repetition_penalty_counts_the_prompt(self, client, ids):
        fields = {"logit_bias": {str(ids["b"]): 16}, "repetition_penalty": 1.3}

        assert await self.say(client, **fields) == "abaa"
        assert await self.say(client, prompt="a", **fields) == "baaa"

    @pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 0.2}, {"min_p": 0.9}])
    async def test_what_cuts_off_the_unlikely(self, client, ids, fields):
        """Of four tokens the first is e times as likely as the others."""
        four = {"allowed_token_ids": [ids[char] for char in "bcde"], "temperature": 1, "seed": 1}
        four["logit_bias"] = {str(ids["b"]): 1}
        free = await self.say(client, 40, **four)

        assert set(free) == set("bcde") and free.count("b") > 10
        assert await self.say(client, 40, **four, **fields) == "b" * 40
        assert await self.say(client, 40, **four | {"temperature": 0}) == "b" * 40

    @pytest.mark.parametrize("interval", [1, 3, 7, 100])
    async def test_stream_interval(self, client, interval):
        chunks = await chunks_of(client, stream_interval=interval)
        first, *sizes = [len(chunk.choices[0].text) for chunk in chunks[:-1]]

        assert first + sum(sizes) == 60
        assert all(size >= interval for size in sizes[:-2])
        assert len(sizes) <= 3 + 60 // interval

    async def test_choice_i_of_a_seed_has_seed_plus_i(self, client, ids):
        fields = {"allowed_token_ids": [ids["b"], ids["c"]], "temperature": 1, "max_tokens": 20}
        both = await chat(client, n=3, seed=5, **fields)
        alone = [await chat(client, seed=5 + i, **fields) for i in range(3)]
        texts = [choice.message.content for choice in both.choices]

        assert texts == [completion.choices[0].message.content for completion in alone]
        assert len(set(texts)) == 3

    async def test_best_of_returns_the_likeliest(self, client, ids):
        """Two tokens that are equally likely to be drawn; the model itself wants only "a"."""
        fields = {"logit_bias": {ids["b"]: 20}, "max_tokens": 2, "seed": 3}
        all_16 = await complete(client, n=16, **fields)
        best = await complete(client, best_of=16, n=3, **fields)
        num_bs = sorted(choice.text.count("b") for choice in all_16.choices)

        assert [choice.text.count("b") for choice in best.choices] == num_bs[:3]
        assert num_bs[0] < num_bs[-1]
        assert [choice.index for choice in best.choices] == [0, 1, 2]
        assert all(choice.logprobs is None for choice in best.choices)
        assert best.usage == all_16.usage


class TestStreaming:
    @pytest.mark.parametrize("send", [chat_chunks, chunks_of])
    async def test_usage_of_a_stream(self, client, send):
        last = await send(client, stream_options={"include_usage": True})
        running = await send(client, stream_options={"continuous_usage_stats": True})
        both = await send(
            client, stream_options={"include_usage": True, "continuous_usage_stats": True}
        )
        counts = [chunk.usage.completion_tokens for chunk in running]

        assert [bool(chunk.choices) for chunk in last] == [True] * (len(last) - 1) + [False]
        assert all(chunk.usage is None for chunk in last[:-1])
        assert all("usage" in chunk.model_fields_set for chunk in last)
        assert counts == sorted(counts)
        assert counts[-1] == last[-1].usage.completion_tokens == 20
        assert running[-1].choices and not both[-1].choices
        assert all(chunk.usage for chunk in both)

    @pytest.mark.parametrize("send", [chat_chunks, chunks_of])
    async def test_several_choices_end_once_each(self, client, send):
        chunks = await send(client, n=3, stream_options={"include_usage": True})
        ends = [c.choices[0] for c in chunks if c.choices and c.choices[0].finish_reason]

        assert sorted(choice.index for choice in ends) == [0, 1, 2]
        assert len([chunk for chunk in chunks if chunk.usage]) == 1
        assert chunks[-1].usage.completion_tokens == 60
        assert len({(c.id, c.created, c.model, c.system_fingerprint) for c in chunks}) == 1

    async def test_roles_come_first_and_in_order(self, client):
        chunks = await chat_chunks(client, n=3)
        roles = [c.choices[0].index for c in chunks if c.choices[0].delta.role]

        assert [chunk.choices[0].index for chunk in chunks[:3]] == roles == [0, 1, 2]

    async def test_only_deltas_with_something_in_them_are_sent(self, client):
        chunks = await chat_chunks(client)
        deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks]

        assert deltas[-1] == {}
        assert all(delta["content"] for delta in deltas[1:-1])

    async def test_request_id(self, client):
        assert (await chat(client, request_id="mine.1")).id == "mine.1"
        assert (await complete(client, extra_body={"request_id": "mine.2"})).id == "mine.2"
        assert {chunk.id for chunk in await chat_chunks(client, request_id="mine.3")} == {"mine.3"}
        assert {chunk.id for chunk in await chunks_of(client, request_id="mine.4")} == {"mine.4"}


class TestPriority:
    @pytest.fixture
    def begun(self):
        return []

    @pytest.fixture
    def gate(self):
        return threading.Event()

    @pytest.fixture
    def script(self, begun, gate):
        def answer(prompt):
            begun.append(prompt)
            assert gate.wait(20)
            return "ok"

        return answer

    async def test_the_lowest_goes_first_and_equals_in_turn(self, client, engine, begun, gate):
        scheduler = engine._life.core.scheduler
        scheduler.limits = replace(scheduler.limits, max_num_seqs=1)
        tasks = []
        for prompt, priority in [("first", 0), ("c", 5), ("a", -1), ("d", 5), ("b", 0)]:
            fields = {"prompt": prompt, "extra_body": {"priority": priority}}
            tasks.append(asyncio.create_task(complete(client, **fields)))
            while len(engine._generations) < len(tasks) or not begun:
                await asyncio.sleep(0.001)
        gate.set()
        await asyncio.gather(*tasks)

        assert begun == ["first", "a", "b", "c", "d"]


class TestThoughts:
    @pytest.fixture
    def script(self):
        return lambda prompt: "<think>\nÜber 🎉.\n</think>\n\nHi!"

    async def test_they_come_under_both_names(self, client):
        message = (await chat(client)).choices[0].message
        deltas = [chunk.choices[0].delta.to_dict() for chunk in await chat_chunks(client)]
        thoughts = [delta for delta in deltas if "reasoning" in delta]

        assert message.reasoning == message.reasoning_content == "Über 🎉."
        assert "".join(delta["reasoning"] for delta in thoughts) == "Über 🎉."
        assert all(delta["reasoning"] == delta["reasoning_content"] for delta in thoughts)
        assert not any("content" in delta for delta in thoughts)

    async def test_include_reasoning_false_counts_them_and_shows_none(self, client):
        shown, hidden = await chat(client), await chat(client, include_reasoning=False)
        chunks = await chat_chunks(client, include_reasoning=False)
        message = hidden.choices[0].message

        assert (message.content, message.reasoning, message.reasoning_content) == (
            "Hi!",
            None,
            None,
        )
        assert hidden.usage == shown.usage
        assert hidden.usage.completion_tokens_details.reasoning_tokens > 10
        assert content(chunks) == "Hi!"
        assert not any("reasoning" in chunk.choices[0].delta.to_dict() for chunk in chunks)

    async def test_a_thought_that_is_cut_is_no_content(self, client):
        completion = await chat(client, max_tokens=13)
        [choice] = completion.choices

        assert (choice.message.content, choice.message.reasoning) == ("", "Über")
        assert choice.finish_reason == "length"

    async def test_thinking_token_budget(self, client):
        long = await chat(client)
        short = await chat(client, thinking_token_budget=3, max_tokens=40)
        thought = short.choices[0].message.reasoning

        assert "Über 🎉.".startswith(thought) and len(thought.encode()) <= 3
        num_tokens = short.usage.completion_tokens_details.reasoning_tokens
        assert num_tokens < long.usage.completion_tokens_details.reasoning_tokens
