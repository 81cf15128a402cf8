"""The life of a response: the only module that knows engine, rows and events together."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from inference.errors import EngineOverloaded, ShuttingDown
from openai_api import conversations
from openai_api import response_rows as rows
from openai_api.answers import Answer, Segment
from openai_api.database import read, write, write_later, write_until_done
from openai_api.errors import as_api_error, error_body
from openai_api.models import StoredResponse
from openai_api.protocol.events import CustomCallItem, ResponseEvents, logprobs_of, response_usage
from openai_api.protocol.sse import encode_json

Status = StoredResponse.Status

LOGPROBS, SEALED_THOUGHTS = "message.output_text.logprobs", "reasoning.encrypted_content"
FLUSH_INTERVAL_S = 1.0
BACKGROUND_FLUSH_INTERVAL_S = 0.25  # what a killed server has not kept is generated anew
POLL_INTERVAL_S = 0.25  # for events that another process makes
CANCELLED = {"status": Status.CANCELLED, "incomplete_details": {"reason": "cancelled"}}
SHUT_DOWN = {"status": Status.INCOMPLETE, "incomplete_details": {"reason": "server_shutdown"}}

_running: "dict[str, Run]" = {}


class Event(NamedTuple):
    """One event of a response, as every reader gets it."""

    number: int
    type: str
    text: str  # JSON


class Run:
    """A response that is being generated, from its row's creation to its end.

    Whoever iterates `drive` owns the run: leaving early cancels it. Others `follow`, in any event
    loop. Events are kept as they are sent, now and then and never one by one.
    """

    def __init__(
        self,
        row: StoredResponse,
        answer: Answer,
        *,
        include: Sequence[str] = (),
        first_items: Sequence[dict] = (),
        past: Sequence[dict] = (),
    ) -> None:
        self.row, self.answer, self._first_items = row, answer, first_items
        args = (logprobs_of(answer) if LOGPROBS in include else None, answer.tool_use)
        options = {"seal_thoughts": SEALED_THOUGHTS in include}
        if past:
            self._events = ResponseEvents.resumed(row.to_dict(), list(past), *args, **options)
            self._restore_input()
        else:
            self._events = ResponseEvents(row.to_dict(), *args, **options)
        self.log = [_event(event) for event in past]
        self._num_kept = len(past)  # events that the database has
        self._num_kept_tokens = len(answer.token_ids)
        self._kept_at = time.monotonic()
        self._is_stored = row.request["store"]
        self._is_open = not row._state.adding
        self._readers: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self.is_done = self._is_put_off = False
        self.refusal: EngineOverloaded | None = None  # why nothing of it was generated

    @property
    def resource(self) -> dict:
        """The Response as it is now."""
        return self._events.resource

    async def drive(self) -> AsyncIterator[Event]:
        """Generate, and give out every new event. However it ends, row and readers know.

        The row is created before the first event, and finished before the last.
        """
        final, was_left = CANCELLED, True
        try:
            await self._create()
            async with aclosing(self._body()) as body:
                async for event in body:
                    yield event
            final, was_left = final_state(self.answer), False
        except Exception as exc:
            was_left = False
            final = self._final_after(exc)
        finally:
            if was_left:  # nobody waits for it, and nothing may be waited for
                self.answer.abort()
                last, finish = self._ending(final)
                write_until_done(finish)
                self._end(last)
        for event in await self._ended(final):
            yield event

    async def _ended(self, final: dict) -> list[Event]:
        """Store the end, and return what is to be told: that it has failed, if it is not stored."""
        last, finish = self._ending(final)
        try:
            if self.row.background:  # it can wait for its database, a client cannot
                await asyncio.wrap_future(write_until_done(finish))
            else:
                await write(finish)
        except asyncio.CancelledError:
            write_until_done(finish)  # which leaves alone what has ended
            raise
        except Exception as exc:
            last[-1] = self._failed(last[-1].number, exc)
            write_until_done(finish)
        finally:  # also if nobody waits any more
            self._end(last)
        return last

    def cancel(self) -> None:
        """End it from outside, from any thread; readers get its last event."""
        self.answer.cancel()

    def _final_after(self, exc: Exception) -> dict:
        """How it ends; raises `exc` if it does not, or has not begun."""
        self._is_put_off = isinstance(exc, ShuttingDown) and self.row.background
        if self._is_put_off or not self._events.begun:  # nothing sent: it can be an HTTP error
            self.answer.abort()
            self._end([])
            raise exc
        if self.answer.is_cancelled:
            return CANCELLED
        if isinstance(exc, EngineOverloaded):
            self.refusal = exc
        return SHUT_DOWN if isinstance(exc, ShuttingDown) else failure(as_api_error(exc))

    def _ending(self, final: dict) -> tuple[list[Event], Callable[[], None]]:
        """The last events, and what writes them with the final row."""
        usage = response_usage(self.answer)
        ending = self._events.finish(**final, usage=usage, is_cut=self.answer.is_cut)
        last, num_events = [_event(event) for event in ending], len(self.log)

        def finish() -> None:
            if not self._is_open:
                return
            if self._is_stored:
                texts = [e.text for e in [*self.log[self._num_kept : num_events], *last]]
                rows.finish(self.row, self.resource, self._num_kept, texts)
            else:
                conversations.end(self.row, self.resource)

        return last, finish

    def _failed(self, number: int, exc: Exception) -> Event:
        self.resource.update(failure(as_api_error(exc)), completed_at=None)
        event = {"type": "response.failed", "sequence_number": number, "response": self.resource}
        return _event(event)

    async def follow(self, after: int = -1) -> AsyncIterator[Event]:
        """The events with numbers above `after`: those that were, then those that come.

        Raises ShuttingDown if the rest is for the next server to generate.
        """
        arrived = asyncio.Event()
        self._readers[arrived] = asyncio.get_running_loop()
        try:
            number = after + 1
            while True:
                arrived.clear()
                while number < len(self.log):
                    yield self.log[number]
                    number += 1
                if self.is_done and number >= len(self.log):
                    if self._is_put_off:
                        raise ShuttingDown()
                    return
                await arrived.wait()
        finally:
            self._readers.pop(arrived, None)

    async def _create(self) -> None:
        """Make the row, if it is kept, and lock the conversation, if there is one."""
        if not self._is_open and (self._is_stored or self.row.conversation_id):
            await write(self._open)
        if self._is_stored:
            _running[self.row.pk] = self

    def _open(self) -> None:
        """What is opened has to be ended, even if nobody waited for this to return."""
        (rows.insert if self._is_stored else conversations.lock)(self.row)
        self._is_open = True

    async def _body(self) -> AsyncIterator[Event]:
        """Everything but the end."""
        if not self._events.begun:
            for event in self._publish(self._events.start()):
                yield event
            for item in self._first_items:
                for event in self._publish(self._events.add(item)):
                    yield event
        if self.row.background:
            write_later(rows.set_status, self.row.pk, Status.IN_PROGRESS)
        async with aclosing(self.answer.segments()) as segments:
            async for segment in segments:
                for event in self._publish(self._events.push(segment)):
                    yield event
                self._keep_now_and_then()

    def _publish(self, events) -> list[Event]:
        new = [_event(event) for event in events]
        self.log += new
        self._wake()
        return new

    def _end(self, last: list[Event]) -> None:
        if not self.is_done:
            _running.pop(self.row.pk, None)
            self.log += last
            self.is_done = True
            self._wake()

    def _wake(self) -> None:
        for arrived, loop in list(self._readers.items()):
            try:
                loop.call_soon_threadsafe(arrived.set)
            except RuntimeError:  # its loop is closed: nobody waits any more
                self._readers.pop(arrived, None)

    def _keep_now_and_then(self) -> None:
        """Hand what is new to the database's thread, if the last time was long enough ago."""
        interval_s = BACKGROUND_FLUSH_INTERVAL_S if self.row.background else FLUSH_INTERVAL_S
        due = time.monotonic() - self._kept_at >= interval_s
        if due and self._is_stored and self.answer.is_settled:
            write_later(self._keep, len(self.log), len(self.answer.token_ids))
            self._kept_at = time.monotonic()

    def _keep(self, num_events: int, num_tokens: int) -> None:
        """Write so much as is not written yet. If it fails, the next time writes it as well."""
        texts = [event.text for event in self.log[self._num_kept : num_events]]
        token_ids = self.answer.token_ids[self._num_kept_tokens : num_tokens]
        tokens = token_ids if self.row.background else []
        rows.append_events(self.row, self._num_kept, texts, tokens)
        self._num_kept, self._num_kept_tokens = num_events, num_tokens

    def _restore_input(self) -> None:
        """The input of a custom tool is in no event before it is whole."""
        item = self._events.open_item
        if isinstance(item, CustomCallItem):
            item.arguments = _arguments_since_call(self.answer.replayed)


def running(response_id: str, owner: int | None = None) -> Run | None:
    """The run of this response, if this process is at it and it belongs to this key."""
    run = _running.get(response_id)
    return run if run is not None and run.row.key_id == owner else None


def in_background() -> list[Run]:
    """Those that no request waits for, whoever they belong to."""
    return [run for run in list(_running.values()) if run.row.background]


async def replay(response_id: str, after: int, owner: int | None = None) -> AsyncIterator[Event]:
    """The events of a stored response with numbers above `after`, live while it is running."""
    while True:
        if (run := running(response_id, owner)) is not None:
            async with aclosing(run.follow(after)) as events:
                async for event in events:
                    yield event
            return
        stored, is_all = await read(rows.event_texts, response_id, after, owner)
        for number, text in stored:
            yield Event(number, _type_of(text), text)
            after = number
        if is_all:
            return
        if not stored:
            await asyncio.sleep(POLL_INTERVAL_S)


async def cancel(response_id: str, owner: int | None = None) -> None:
    """Cancel a response, if it is running; when this returns, its row has ended."""
    if (run := running(response_id, owner)) is not None:
        run.cancel()
        async for _ in run.follow():
            pass
    else:
        await write(rows.close, response_id, owner)


def final_state(answer: Answer) -> dict:
    """A cut by the token limit is incomplete, whatever was being written."""
    if answer.finish_reason == "length" and not answer.is_warm_up:
        details = {"reason": "max_output_tokens"}
        return {"status": Status.INCOMPLETE, "incomplete_details": details}
    return {"status": Status.COMPLETED}


def failure(error) -> dict:
    body = error_body(error)
    return {
        "status": Status.FAILED,
        "error": {"code": body["code"] or body["type"], "message": body["message"]},
    }


def _event(event: dict) -> Event:
    return Event(event["sequence_number"], event["type"], encode_json(event).decode())


def _type_of(text: str) -> str:
    """The type stands first in every event."""
    return text.partition('"type":"')[2].partition('"')[0]


def _arguments_since_call(segments: list[Segment]) -> str:
    arguments = ""
    for segment in segments:
        if segment.kind == "call":
            arguments = ""
        elif segment.kind == "arguments":
            arguments += segment.text
    return arguments
