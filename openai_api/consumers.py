"""WebSocket mode of /v1/responses: the same requests and events as over HTTP, one JSON per frame.

A connection has lanes: in one lane responses follow each other, lanes run side by side. What a lane
said last is remembered for as long as the connection lives, so that a chain needs no database.
"""

import asyncio
import json
import logging
import re
import weakref
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from autobahn.exception import Disconnected
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings

from inference import service
from inference.errors import ShuttingDown
from openai_api import keys
from openai_api.errors import (
    InvalidRequest,
    Overloaded,
    Unauthorized,
    UnsupportedParameter,
    as_api_error,
    error_body,
)
from openai_api.history import Outcome, Record
from openai_api.limits import estimate
from openai_api.models import ApiKey
from openai_api.policies.parsers import TooManyValues, load_json
from openai_api.prompts import check_model, check_prompt, owned
from openai_api.protocol.ids import new_request_id
from openai_api.protocol.sse import encode_json
from openai_api.response_requests import Prepared, prepare
from openai_api.runs import Run
from openai_api.serializers.fields import check_type, missing, validated, wrong_value
from openai_api.serializers.responses import ResponseSerializer

logger = logging.getLogger(__name__)

MAX_LANES = 32
MAX_IN_FLIGHT = 16
MAX_WAITING = 64  # responses that were asked for and have not begun, in all lanes
MAX_AGE_S = 60 * 60
STREAM_ID = re.compile(r"[A-Za-z0-9_.-]{1,256}")

GOING_AWAY, POLICY_VIOLATION, TOO_BIG, SERVICE_RESTART = 1001, 1008, 1009, 1012

_connections: "weakref.WeakSet[ResponsesConsumer]" = weakref.WeakSet()


@dataclass(slots=True)
class Lane:
    """One chain of responses. `latest` is what was answered last: its id, and all items so far."""

    stream_id: str | None
    queue: "asyncio.Queue[tuple[dict, int]]" = field(default_factory=asyncio.Queue)
    latest: tuple[str, list[dict]] | None = None
    is_busy: bool = False  # also where there is no run yet, or no longer
    run: Run | None = None
    task: asyncio.Task | None = None


class ResponsesConsumer(AsyncWebsocketConsumer):
    """One WebSocket connection."""

    async def connect(self) -> None:
        self._lanes: dict[str | None, Lane] = {}
        self._in_flight = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._waiting: list[int] = []  # sizes of the messages that wait for their turn
        self._over: Exception | None = None  # why nothing new may begin
        self._leaving = asyncio.Event()
        self._clock = asyncio.create_task(self._end_of_time())
        _connections.add(self)
        await self.accept()  # daphne cannot refuse with a status and a body
        try:
            await self._authenticate()
        except Unauthorized as exc:
            await self._send_error(exc)
            await self._turn_away()

    async def _turn_away(self) -> None:
        with suppress(Disconnected):
            await self.close(POLICY_VIOLATION)

    async def _authenticate(self) -> ApiKey | None:
        """The key of the connection, at the beginning and again for each response."""
        await keys.refresh()
        headers = {name.decode(): value.decode("latin-1") for name, value in self.scope["headers"]}
        return keys.identify(headers)

    async def disconnect(self, code: int) -> None:
        self._clock.cancel()
        tasks = [lane.task for lane in self._lanes.values() if lane.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        size = len(bytes_data or b"") if text_data is None else len(text_data.encode())
        if size > settings.API.max_body_size:
            await self.close(TOO_BIG)
            return
        message: dict = {}
        try:
            message = _parsed(text_data)
            await self._dispatch(message, size)
        except Exception as exc:
            await self._send_error(exc, _stream_id_of(message))

    async def _dispatch(self, message: dict, size: int) -> None:
        if message.get("type") is None:
            raise missing("type")
        kind = check_type("type", message["type"], str)
        if kind == "response.create":
            self._enqueue(message, size)
        elif kind == "response.cancel":
            self._cancel(message)
        elif kind == "response.steer":
            await self._send(STEERING_REFUSED | {"steer": _steer_of(message)}, message)
        else:
            supported = ("response.create", "response.cancel", "response.steer")
            raise wrong_value("type", kind, supported)

    def _enqueue(self, message: dict, size: int) -> None:
        if self._over:
            raise self._over
        lane = self._lane(message)
        is_full = sum(self._waiting) + size > settings.API.max_body_size
        if is_full or len(self._waiting) >= MAX_WAITING:
            raise Overloaded("Too many responses wait over this connection.", "stream_id")
        self._waiting.append(size)
        lane.queue.put_nowait((message, size))

    def _cancel(self, message: dict) -> None:
        """End the response of this id, or the one that is running in the lane."""
        wanted, by_id = _checked_stream_id(message), message.get("response_id") is not None
        if by_id:
            wanted = check_type("response_id", message["response_id"], str)
        for lane in [lane for lane in self._lanes.values() if lane.run]:
            if wanted == (lane.run.row.pk if by_id else lane.stream_id):
                lane.run.cancel()
                return
        raise InvalidRequest(
            "No such response is running over this connection.",
            "response_id" if by_id else "stream_id",
        )

    def _lane(self, message: dict) -> Lane:
        stream_id = _checked_stream_id(message)
        if (lane := self._lanes.get(stream_id)) is None:
            if stream_id is not None and len(self._lanes.keys() - {None}) >= MAX_LANES:
                raise InvalidRequest(TOO_MANY_LANES, "stream_id", "websocket_stream_limit_reached")
            lane = self._lanes[stream_id] = Lane(stream_id)
            lane.task = asyncio.create_task(self._work(lane))
        return lane

    async def _work(self, lane: Lane) -> None:
        """Answer what comes into a lane, one after the other."""
        while True:
            message, size = await lane.queue.get()
            async with self._in_flight:
                self._waiting.remove(size)
                record = Record(
                    new_request_id(),
                    "WS /v1/responses",
                    client=(self.scope.get("client") or [""])[0] or "",
                    user_agent=_header(self.scope, b"user-agent"),
                )
                lane.is_busy = True
                try:
                    await self._answer(lane, message, record)
                except Exception:  # of the database; what comes next in the lane has to be answered
                    logger.exception("the history of a request could not be kept")
                finally:
                    lane.is_busy = False

    async def _answer(self, lane: Lane, message: dict, record: Record) -> None:
        outcome, status = Outcome.CANCELLED, None
        try:
            key = await self._authenticate()
            await record.open(key)
            if self._over:
                raise self._over
            await self._create(lane, message, record, key)
            outcome, status = Outcome.SUCCEEDED, 200
        except Exception as exc:
            error = as_api_error(exc)
            outcome, status = Outcome.FAILED, error.status_code
            record.fail(status, error_body(error))
            _evict(lane, message.get("previous_response_id"))
            await self._send_error(error, lane.stream_id)
            if isinstance(exc, Unauthorized):  # the key has been revoked
                await self._turn_away()
        finally:
            lane.run = None
            record.leave_place()
            record.abort_answers()
            if outcome == Outcome.CANCELLED:
                record.close_later(outcome)
            else:
                await record.close(outcome, status)

    async def _create(self, lane: Lane, message: dict, record: Record, key: ApiKey | None) -> None:
        record.take_place(key and key.pk)
        generate = message.get("generate")
        warm_up = generate is not None and not check_type("generate", generate, bool)
        owner = key and key.pk
        body = owned(_body_of(message), owner)
        record.describe(body)
        engine = service.get_engine()
        check_model(engine.model, body["model"], key)
        await record.admit()
        prepared = await prepare(engine.model, body, owner, self._remembered(body), record.lease)
        if warm_up:
            prepared = prepared.as_warm_up()
        params = prepared.choice.params
        check_prompt(engine, prepared.choice.prompt_token_ids, "input", params.max_tokens)
        record.lease.reserve(estimate([prepared.choice], engine.model.max_model_len))
        answer = prepared.answer(engine)
        record.expect([answer])
        record.row.response_id = prepared.row.id
        lane.run = Run(prepared.row, answer, **prepared.run_options)
        async with aclosing(lane.run.drive()) as events:
            async for event in events:
                if event.type == "response.failed":  # the history says what it was
                    record.fail(200, lane.run.resource["error"] | {"type": "server_error"})
                await self._deliver(_with_stream_id(event.text, lane.stream_id))
        self._remember(lane, prepared)

    def _remembered(self, body: dict) -> list[dict] | None:
        """What came before, if it was said over this connection."""
        previous_id = body.get("previous_response_id")
        for lane in self._lanes.values():
            if lane.latest and lane.latest[0] == previous_id:
                return lane.latest[1]
        return None

    @staticmethod
    def _remember(lane: Lane, prepared: Prepared) -> None:
        resource = lane.run.resource
        if resource["status"] in ("completed", "incomplete"):
            lane.latest = resource["id"], [*prepared.items, *resource["output"]]
        elif resource["status"] == "failed":
            _evict(lane, prepared.row.previous_id)

    async def _end_of_time(self) -> None:
        """What is running may end, what waits is refused."""
        try:
            await asyncio.wait_for(self._leaving.wait(), MAX_AGE_S)
            self._over, code = ShuttingDown(), SERVICE_RESTART
        except TimeoutError:
            self._over, code = connection_is_over(), GOING_AWAY
            await self._send_error(self._over)
        while self._waiting or any(lane.is_busy for lane in self._lanes.values()):
            await asyncio.sleep(0.1)
        await self.close(code)

    def leave(self) -> None:
        """Close it with 1012 as soon as nothing runs over it."""
        self._leaving.set()

    async def _deliver(self, text: str) -> None:
        """Send to a client that may have left without a word: then the lane's work ends."""
        try:
            await self.send(text)
        except Disconnected:
            raise asyncio.CancelledError from None

    async def _send_error(self, exc: Exception, stream_id: str | None = None) -> None:
        error = as_api_error(exc)
        body = error_body(error)
        envelope = {"type": "error", "status": error.status_code, "error": body}
        headers = {key.lower(): value for key, value in getattr(error, "headers", {}).items()}
        if headers:
            envelope["error"] = body | {"headers": headers}
        logger.info("websocket: %s %s", body["code"] or body["type"], body["message"])
        with suppress(Disconnected):
            await self.send(_with_stream_id(encode_json(envelope).decode(), stream_id))

    async def _send(self, event: dict, message: dict) -> None:
        await self.send(_with_stream_id(encode_json(event).decode(), _stream_id_of(message)))


def drain() -> None:
    """Let go of all connections: the server is about to end (in the event loop's thread)."""
    for connection in list(_connections):
        connection.leave()


def connection_is_over() -> InvalidRequest:
    return InvalidRequest(TOO_OLD, None, "websocket_connection_limit_reached")


def _evict(lane: Lane, response_id: str | None) -> None:
    """Forget what a failed response went on from, so that nothing stale is used again.

    What another lane said last is kept: only its copy has failed.
    """
    if lane.latest and lane.latest[0] == response_id:
        lane.latest = None


def _parsed(text: str | None) -> dict:
    try:
        message = load_json(text or "")
    except (ValueError, RecursionError) as exc:
        is_readable = isinstance(exc, TooManyValues)
        message = str(exc) if is_readable else "We could not parse the JSON of your message."
        raise InvalidRequest(message, None, "invalid_json") from exc
    return check_type("message", message, dict)


def _body_of(message: dict) -> dict:
    """The checked request: that of the POST, without what only HTTP knows."""
    skipped = ("type", "stream_id", "generate", "stream", "stream_options")
    data = {key: value for key, value in message.items() if key not in skipped}
    if data.get("background"):
        message = "Unsupported parameter: 'background' cannot be used over a WebSocket."
        raise UnsupportedParameter(message, "background")
    return validated(ResponseSerializer, data)


def _stream_id_of(message: dict) -> str | None:
    """The lane to name in an answer: that of the message, if it is one."""
    stream_id = message.get("stream_id")
    return stream_id if isinstance(stream_id, str) and STREAM_ID.fullmatch(stream_id) else None


def _checked_stream_id(message: dict) -> str | None:
    stream_id = _stream_id_of(message)
    if stream_id is None and message.get("stream_id") is not None:
        raise InvalidRequest(INVALID_STREAM_ID, "stream_id", "invalid_stream_id")
    return stream_id


def _with_stream_id(text: str, stream_id: str | None) -> str:
    return text if stream_id is None else f'{text[:-1]},"stream_id":{json.dumps(stream_id)}}}'


def _steer_of(message: dict) -> dict:
    return {key: message.get(key) for key in ("previous_response_id", "input")}


def _header(scope: dict, name: bytes) -> str:
    return next(
        (value.decode(errors="replace") for key, value in scope["headers"] if key == name), ""
    )


INVALID_STREAM_ID = (
    "The 'stream_id' field must be a non-empty string with at most 256 characters and may only "
    "contain letters, numbers, underscores, hyphens, and periods."
)
TOO_MANY_LANES = (
    "This WebSocket connection has reached its maximum number of distinct stream IDs "
    f"({MAX_LANES}). Reuse an existing stream_id or open a new WebSocket connection."
)
TOO_OLD = (
    "Responses websocket connection limit reached (60 minutes). Create a new websocket connection "
    "to continue."
)
STEERING_REFUSED = {
    "type": "response.steer.failed",
    "sequence_number": 0,
    "error": {
        "type": "invalid_request_error",
        "code": "steering_not_supported",
        "message": "This server cannot steer a response that is being generated.",
        "param": None,
    },
}
