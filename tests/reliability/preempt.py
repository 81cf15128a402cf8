"""A cache too small for all who run: some are put off and computed again, and nobody notices."""

import asyncio

from tests.helpers import LiveServer
from tests.reliability.programme import MODEL, Check, a_server, health, result

# Blocks for four of the answers: more begin, as each needs little at first
OPTIONS = {"NANOLLM_KV_CACHE_MEMORY": "6MiB", "NANOLLM_MAX_MODEL_LEN": "256"}


async def run(clients: int = 32, num_tokens: int = 200, server: LiveServer | None = None) -> dict:
    with a_server(server, **OPTIONS) as live:
        prompts = [f"Story number {i}: once upon a time" for i in range(clients)]
        alone = [await answer(live, prompt, num_tokens) for prompt in prompts]
        before = await health(live)
        together = await asyncio.gather(*[answer(live, p, num_tokens) for p in prompts])
        after = await health(live)
    changed = sum(a != b for a, b in zip(alone, together, strict=True))
    figures = {
        "clients": clients,
        "tokens_each": num_tokens,
        "preemptions": after["num_preemptions"] - before["num_preemptions"],
        "different_answers": len(set(alone)),
        "changed": changed,
    }
    return result(
        "preempt",
        figures,
        {
            "some were preempted": figures["preemptions"] > 0,
            "alone none was": before["num_preemptions"] == 0,
            "answers that changed": Check(changed, 0),
            "no block of the cache is held": after["kv_cache_usage"] == 0,
        },
    )


async def answer(server: LiveServer, prompt: str, num_tokens: int) -> tuple[str, int]:
    """The greedy answer and its number of tokens."""
    async with server.async_client() as client:
        found = await client.completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=num_tokens,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
    return found.choices[0].text, found.usage.completion_tokens
