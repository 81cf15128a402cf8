"""The steps of a served model go wrong in all ways that there are: who is told, who notices.

`process=true`: the engine is in a process of its own, and not in the server.
"""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import httpx2
import openai

from tests.helpers import free_port
from tests.reliability.programme import MODEL, Check, result
from tests.test_serve import MANAGE, SMALL, Process, running

FAULTY = [sys.executable, "-m", "tests.faults"]
SIGN = "Ω"  # which one prompt has, and no answer
MAX_RESTARTS = 3
BACK_S = 5.0
Outcome = str | openai.APIError


class Served:
    """A server, its engine's process (or the server once more), and the file of faults."""

    def __init__(self, port: int, server: Process, engine: Process, faults: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.server, self.engine, self.faults = server, engine, faults
        self.client = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="-", max_retries=0)

    def go_wrong(self, fault: str) -> None:
        new = self.faults.with_suffix(".new")
        new.write_text(fault)
        new.rename(self.faults)

    async def answer(self, prompt: str, num_tokens: int = 40) -> Outcome:
        """Streamed and greedy; or what the client's library raises for an error in the stream."""
        text = ""
        try:
            async for chunk in await self.client.completions.create(
                model=MODEL,
                prompt=prompt,
                stream=True,
                max_tokens=num_tokens,
                temperature=0,
                extra_body={"ignore_eos": True},
            ):
                text += chunk.choices[0].text
        except openai.APIError as error:
            return error
        return text

    async def answers(self, prompts: list[str]) -> list[Outcome]:
        """To all prompts at once."""
        async with asyncio.timeout(120):
            return await asyncio.gather(*map(self.answer, prompts))

    async def has_computed(self, num_tokens: int) -> None:
        num_before = self.health()["num_generated_tokens"]
        while self.health()["num_generated_tokens"] < num_before + num_tokens:
            await asyncio.sleep(0.01)

    async def lose(self, fault: str) -> tuple[Outcome, float]:
        """An engine under a stream: how that ended, and the seconds until the next answer."""
        stream = asyncio.create_task(self.answer("Once", 900))
        await self.has_computed(10)
        self.go_wrong(fault)
        async with asyncio.timeout(120):
            outcome = await stream
        told = time.monotonic()
        while isinstance(await self.answer("Hi", 1), openai.APIError):
            if self.engine.popen.poll() is not None:
                break
            await asyncio.sleep(0.05)
        return outcome, round(time.monotonic() - told, 2)

    def health(self) -> dict:
        return json.loads(httpx2.get(f"{self.url}/health").content)

    def token_of(self, text: str) -> int:
        body = {"model": MODEL, "prompt": text, "add_special_tokens": False}
        return httpx2.post(f"{self.url}/tokenize", json=body).json()["tokens"][-1]


@asynccontextmanager
async def served(folder: Path, *, process: bool, step_timeout_s: float) -> AsyncIterator[Served]:
    port, faults = free_port(), folder / "faults"
    settings = {**SMALL, "FAULTS": str(faults), "OMP_NUM_THREADS": "1"}
    settings["NANOLLM_STEP_TIMEOUT_S"] = str(step_timeout_s)
    serve = ["serve", "--port", str(port)]
    with ExitStack() as stack:
        if process:
            settings["NANOLLM_ENGINE_ADDRESS"] = str(folder / "run" / "engine")
            engine = stack.enter_context(running([*FAULTY, "engine"], folder, **settings))
            server = stack.enter_context(running([*MANAGE, *serve], folder, **settings))
        else:
            server = stack.enter_context(running([*FAULTY, *serve], folder, **settings))
            engine = server
        it = Served(port, server, engine, faults)
        server.wait_for(f"{it.url}/health/ready")
        async with it.client:
            yield it


async def run(clients: int = 8, step_timeout_s: float = 1, process: bool = False) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        async with served(Path(folder), process=process, step_timeout_s=step_timeout_s) as it:
            prompts = [f"{i} times {SIGN if i == 3 else i} is" for i in range(clients)]
            expected = await it.answers(prompts)
            checks = await of_one_request(it, prompts, expected)
            figures, more = await of_the_engine(it, step_timeout_s)
            health = it.health()
            checks |= more | {
                "afterwards all is as before": await it.answers(prompts) == expected,
                "restarts are counted": health["num_restarts"] == MAX_RESTARTS,
                "no block of the cache is held": health["kv_cache_usage"] == 0,
                "the log has the stacks": "in hang" in it.engine.output,
            }
            last, _ = await it.lose("die")
            figures["exit_status"] = await asyncio.to_thread(it.engine.wait)
            checks["who restarts in vain tells it, and leaves with status 70"] = (
                isinstance(last, openai.APIError) and figures["exit_status"] == os.EX_SOFTWARE
            )
    return result("engine", figures, checks)


async def of_one_request(it: Served, prompts: list[str], expected: list[Outcome]) -> dict:
    """What must cost its request alone, or nobody."""
    checks, (bad,) = {}, [i for i, prompt in enumerate(prompts) if SIGN in prompt]
    for fault in ("poison", "nan"):
        it.go_wrong(f"{fault} {it.token_of(SIGN)}")
        answers = await it.answers(prompts)
        checks[f"{fault} fails alone"] = isinstance(answers[bad], openai.APIError)
        checks[f"{fault} changes no other answer"] = (
            answers[:bad] + answers[bad + 1 :] == expected[:bad] + expected[bad + 1 :]
        )
    it.go_wrong("memory 3")
    checks["too little memory changes no answer"] = await it.answers(prompts) == expected
    it.go_wrong("")
    running = asyncio.create_task(it.answers(prompts))
    while it.health()["num_running"] < len(prompts) and not running.done():
        await asyncio.sleep(0.005)
    it.go_wrong("fail")
    checks["a step that fails once changes no answer"] = await running == expected
    checks["none of these restarts the engine"] = it.health()["num_restarts"] == 0
    return checks


async def of_the_engine(it: Served, step_timeout_s: float) -> tuple[dict, dict]:
    """What costs all that run, and a restart each."""
    hang = f"hang {4 * step_timeout_s}"
    losses = {fault: await it.lose(fault) for fault in (hang, "die", "spin 600")}
    figures = {f"back_s after {fault}": seconds for fault, (_, seconds) in losses.items()}
    checks = {
        "streams end with an error": all(
            isinstance(outcome, openai.APIError) and "had an error" in outcome.message
            for outcome, _ in losses.values()
        ),
        f"the engine is back in {BACK_S} s": Check(max(figures.values()), BACK_S),
    }
    return figures, checks
