"""`manage.py selftest`: one request to each endpoint of a running server."""

import json
import time
from argparse import ArgumentParser
from typing import Any, NamedTuple

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from nanollmserve_site import api_client
from nanollmserve_site.api_client import ApiFailure, Server

CHAT = {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
RESPONSE = {"input": "Say hello.", "max_output_tokens": 16}


class Step(NamedTuple):
    """A request. `{response}` and the like are ids of what earlier steps have made.

    `makes` is the name under which its own id is remembered. An empty conversation stands for the
    one that was made. With a body it is a POST, unless `method` says otherwise.
    """

    path: str
    body: dict[str, Any] | None = None
    makes: str = ""
    method: str = ""


STEPS = (
    Step("/health"),
    Step("/health/ready"),
    Step("/metrics"),
    Step("/docs/"),
    Step("/v1/openapi.json"),
    Step("/v1/models"),
    Step("/v1/models/{model}"),
    Step("/tokenize", {"prompt": "Say hello."}),
    Step("/detokenize", {"tokens": [5, 6, 7]}),
    Step("/v1/completions", {"prompt": "Say", "max_tokens": 8}),
    Step("/v1/completions", {"prompt": "Say", "max_tokens": 8, "stream": True}),
    Step("/v1/chat/completions", CHAT | {"stream": True}),
    Step("/v1/chat/completions", CHAT | {"store": True}, "chat"),
    Step("/v1/chat/completions"),
    Step("/v1/chat/completions/{chat}"),
    Step("/v1/chat/completions/{chat}/messages"),
    Step("/v1/chat/completions/{chat}", method="DELETE"),
    Step("/v1/conversations", {}, "conversation"),
    Step("/v1/conversations/{conversation}"),
    Step(
        "/v1/conversations/{conversation}/items",
        {"items": [{"type": "message", "role": "user", "content": "Hello."}]},
        "item",
    ),
    Step("/v1/conversations/{conversation}/items"),
    Step("/v1/conversations/{conversation}/items/{item}"),
    Step("/v1/responses/input_tokens", {"input": "Say hello."}),
    Step("/v1/responses", RESPONSE | {"stream": True, "store": False}),
    Step("/v1/responses", RESPONSE | {"conversation": ""}, "response"),
    Step("/v1/responses/{response}"),
    Step("/v1/responses/{response}/input_items"),
    Step("/v1/responses", RESPONSE | {"background": True}, "background"),
    Step("/v1/responses/{background}/cancel", {}),
    Step("/v1/responses/compact", {"input": "Say hello."}),
    Step("/v1/responses/{background}", method="DELETE"),
    Step("/v1/responses/{response}", method="DELETE"),
    Step("/v1/conversations/{conversation}", method="DELETE"),
)


class Command(BaseCommand):
    help = (
        "Send one request to each endpoint of a running server, and show how each was answered. "
        "What it stores it deletes again. The exit status is 1 if anything failed."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        api_client.add_arguments(parser, settings.SERVER)

    def handle(self, *, url: str, api_key: str, model: str | None, **options: Any) -> None:
        server, num_failed = Server(url, api_key), 0
        try:
            names = {"model": model or server.first_model()}
        except ApiFailure as error:
            raise CommandError(str(error)) from None
        self.stdout.write(f"{len(STEPS)} requests to {url}, model {names['model']}")
        for step in STEPS:
            method = step.method or ("GET" if step.body is None else "POST")
            began = time.monotonic()
            try:
                result, told = "ok", take(server, method, step, names)
            except (ApiFailure, LookupError, ValueError) as error:
                num_failed += 1
                result, told = "FAILED", described(error)
            shown = f"{method} {step.path}"
            took_ms = 1000 * (time.monotonic() - began)
            self.stdout.write(f"{result:6}  {took_ms:6.0f} ms  {shown:54}  {told}".rstrip())
        self.stdout.write(f"{len(STEPS) - num_failed} of {len(STEPS)} succeeded")
        if num_failed:
            raise CommandError(f"{num_failed} requests failed.")


def take(server: Server, method: str, step: Step, names: dict[str, str]) -> str:
    """Do it: what is worth being told of the answer."""
    path, body = step.path.format(**names), step.body
    if body is not None:
        body = {"model": names["model"]} | body
        if "conversation" in body:
            body["conversation"] = names["conversation"]
    if body and body.get("stream"):
        return f"{sum(1 for _ in server.events(path, body))} events"
    content = server.read(method, path, body)
    if step.makes:
        answer = json.loads(content)
        names[step.makes] = answer.get("id") or ""
        if answer["object"] == "list":
            names[step.makes] = answer["data"][0]["id"]
        return names[step.makes]
    return f"{len(content):,} bytes"


def described(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"needs {error}, which could not be made"
    status = f"{error.status} " if isinstance(error, ApiFailure) and error.status else ""
    return f"{status}{error}"
