"""Several answers of one request, as they come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from openai_api.answers import Answer, Segment


async def interleave(answers: list[Answer]) -> AsyncIterator[tuple[int, Segment | None]]:
    """(index, segment) of several answers as they come; None once each has ended."""
    streams = [answer.segments() for answer in answers]
    waiting = {asyncio.ensure_future(anext(s, None)): i for i, s in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                index = waiting.pop(task)
                segment = task.result()
                yield index, segment
                if segment is not None:
                    waiting[asyncio.ensure_future(anext(streams[index], None))] = index
    finally:
        await _abandon(waiting, streams, answers)


async def _abandon(waiting: dict, streams: list, answers: list[Answer]) -> None:
    for answer in answers:
        answer.abort()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for stream in streams:
        await stream.aclose()


async def follow(answers: list[Answer]) -> AsyncIterator[tuple[int, Segment | None]]:
    """`interleave`, without its tasks when there is only one answer."""
    if len(answers) > 1:
        async with aclosing(interleave(answers)) as segments:
            async for entry in segments:
                yield entry
        return
    async with aclosing(answers[0].segments()) as segments:
        async for segment in segments:
            yield 0, segment
    yield 0, None
