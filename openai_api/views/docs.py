"""The API, described for programs and for people. Open to all: it tells nothing of this server."""

import asyncio
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from openai_api.openapi.document import as_json, document

METHODS = ("get", "post", "delete")


async def openapi(request: HttpRequest) -> HttpResponse:
    """GET /v1/openapi.json"""
    body = await asyncio.to_thread(as_json)  # made at the first request, which takes a moment
    return HttpResponse(body, content_type="application/json")


def page(request: HttpRequest) -> HttpResponse:
    """GET /docs/: the same to read, without scripts."""
    operations = [
        described(path, method, methods[method])
        for path, methods in document()["paths"].items()
        for method in METHODS
        if method in methods
    ]
    return render(request, "openai_api/docs.html", {"operations": operations})


def described(path: str, method: str, operation: dict[str, Any]) -> dict[str, Any]:
    """One operation, as the template shows it."""
    body, content = {}, operation["responses"]["200"]["content"]
    if "requestBody" in operation:
        body = resolved(operation["requestBody"]["content"]["application/json"]["schema"])
    required = body.get("required", [])
    fields = [
        (name, name in required, *in_words(schema))
        for name, schema in body.get("properties", {}).items()
    ]
    for parameter in operation.get("parameters", []):
        fields.append(
            (parameter["name"], parameter["in"] == "path", *in_words(parameter["schema"]))
        )
    answer = resolved(content["application/json"]["schema"])
    return {
        "path": path,
        "method": method.upper(),
        "summary": operation["summary"],
        "fields": fields,
        "answer": list(answer.get("properties", {})),
        "events": content.get("text/event-stream", {}).get("schema", {}).get("description"),
    }


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def in_words(schema: dict[str, Any]) -> tuple[str, str]:
    """What a value is, and what is to be known beside that."""
    facts = [
        f"{word} {schema[key]}"
        for key, word in (
            ("minimum", "from"),
            ("exclusiveMinimum", "above"),
            ("maximum", "to"),
            ("maxLength", "at most so many characters:"),
            ("maxItems", "at most so many:"),
            ("pattern", "like"),
            ("default", "default"),
        )
        if key in schema
    ]
    return kind_of(schema), " ".join([*facts, schema.get("description", "")]).strip()


def kind_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"] if value is not None)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            kinds = [kind_of(option) for option in schema[key]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    kinds = schema.get("type", "any")
    kinds = [kinds] if isinstance(kinds, str) else [kind for kind in kinds if kind != "null"]
    if kinds == ["array"]:
        return f"array of {kind_of(schema['items'])}"
    return " or ".join(kinds)
