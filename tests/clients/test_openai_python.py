"""The official client against a live daphne on the demo model: what a user does first."""

import asyncio
import threading
import time

import httpx2
import openai
import pytest

from tests.helpers import live_server

KV = {"role": "user", "content": "Explain KV cache in one sentence."}


@pytest.fixture
def client(server):
    return server.client


@pytest.fixture
def model(client):
    return client.models.list().data[0].id


def test_models(client, model):
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("Qwen/Qwen3-0.6B")


def test_chat_whole_streamed_and_by_the_helper(client, model):
    params = {"model": model, "messages": [KV], "temperature": 0}
    whole = client.chat.completions.create(**params)
    text = whole.choices[0].message.content
    chunks = list(client.chat.completions.create(**params, stream=True))
    with client.chat.completions.stream(**params) as stream:
        helped = stream.until_done().get_final_completion()

    assert whole.choices[0].finish_reason == "stop"
    assert text.endswith(".") and "cache" in text.lower()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    assert helped.choices[0].message.content == text


def test_completions(client, model):
    params = {"model": model, "prompt": "Hello", "max_tokens": 8, "temperature": 0}
    whole = client.completions.create(**params)
    chunks = list(client.completions.create(**params, stream=True))

    assert whole.usage.completion_tokens <= 8
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text


def test_responses_created_streamed_retrieved_continued_and_deleted(client, model):
    params = {"model": model, "input": KV["content"], "temperature": 0}
    created = client.responses.create(**params)
    events = list(client.responses.create(**params, stream=True))
    with client.responses.stream(**params) as stream:
        for _ in stream:
            pass
        helped = stream.get_final_response()
    continued = client.responses.create(
        model=model, input="Thanks!", previous_response_id=created.id
    )

    assert created.status == "completed"
    assert events[-1].response.output_text == helped.output_text == created.output_text
    assert client.responses.retrieve(created.id) == created
    assert continued.usage.input_tokens > created.usage.input_tokens
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


def test_a_seed_repeats_an_answer_whoever_else_is_served(client, model):
    params = {"model": model, "messages": [KV], "temperature": 2, "top_p": 1, "max_tokens": 40}
    params["extra_body"] = {"top_k": -1}  # all of the checkpoint's caution off
    alone = client.chat.completions.create(**params, seed=1).choices[0].message.content
    busy = [
        threading.Thread(target=client.chat.completions.create, kwargs=params) for _ in range(4)
    ]
    for thread in busy:
        thread.start()
    crowded = client.chat.completions.create(**params, seed=1).choices[0].message.content
    for thread in busy:
        thread.join()
    other = client.chat.completions.create(**params, seed=2).choices[0].message.content

    assert crowded == alone != other


QUESTIONS = [
    "Explain KV cache in one sentence.",
    "What is continuous batching?",
    "Count from 1 to 5.",
    "Hello!",
    "What is speculative decoding?",
    "Repeat after me: 東京 🎉",
    "Who are you?",
    "What is top_p?",
]


async def test_32_streams_at_once_get_the_answers_they_would_get_alone(server, model):
    client = server.async_client()

    async def ask(question: str) -> tuple[str, str]:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question}],
            temperature=0,
            stream=True,
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return text, chunks[-1].choices[0].finish_reason

    alone = {question: await ask(question) for question in QUESTIONS}
    together = asyncio.gather(*(ask(question) for question in QUESTIONS * 4))
    slowest_health = 0.0
    async with httpx2.AsyncClient() as http:
        while not together.done():
            started = time.monotonic()
            assert (await http.get(f"{server.url}/health")).status_code == 200
            slowest_health = max(slowest_health, time.monotonic() - started)
            await asyncio.sleep(0.01)

    answers = await together
    await client.close()

    assert answers == [alone[question] for question in QUESTIONS * 4]
    assert all(reason == "stop" for _, reason in alone.values())
    assert slowest_health < 5


def test_the_original_walk_through(server, model):
    """The tutorial's curl calls, as raw HTTP."""
    body = {
        "model": model,
        "instructions": "You are a concise assistant.",
        "input": KV["content"],
        "max_output_tokens": 64,
        "temperature": 0,
        "store": True,
    }
    chat = {"model": model, "messages": [KV], "max_tokens": 32}
    with httpx2.Client(base_url=server.url, timeout=60) as http:
        created = http.post("/v1/responses", json=body).json()
        streamed = http.post("/v1/responses", json=body | {"stream": True}).text
        whole = http.post("/v1/chat/completions", json=chat).json()
        chunks = http.post("/v1/chat/completions", json=chat | {"stream": True})
        retrieved = http.get(f"/v1/responses/{created['id']}").json()

    assert created["output"][0]["content"][0]["text"]
    assert retrieved == created
    assert streamed.startswith("event: response.created\ndata: {")
    assert streamed.endswith("data: [DONE]\n\n")
    assert whole["usage"]["completion_tokens"] <= 32
    assert chunks.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert chunks.text.endswith("data: [DONE]\n\n")


def test_what_was_stored_outlives_a_killed_server(tmp_path):
    with live_server(tmp_path) as server:
        model = server.client.models.list().data[0].id
        stored = server.client.responses.create(model=model, input="Hello!")
        stream = server.client.responses.create(
            model=model, input="x", stream=True, extra_body={"ignore_eos": True}
        )
        running = next(iter(stream)).response.id
        server.process.kill()
        server.process.wait()
    with live_server(tmp_path) as server:
        client = server.client
        lost = client.responses.retrieve(running)
        answer = client.responses.create(
            model=model, input="Thanks!", previous_response_id=stored.id
        )

        assert client.responses.retrieve(stored.id) == stored
        assert (lost.status, lost.error.code) == ("failed", "server_error")
        assert answer.status == "completed"
