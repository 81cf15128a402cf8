"""The OpenAPI document: valid, complete, and true to the serializers; and the page made of it."""

import json
import re

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from openai_api.openapi.document import document
from openai_api.openapi.operations import OPERATIONS
from openai_api.urls import urlpatterns
from openai_api.views.base import AsyncAPIView
from openai_api.views.unknown import UnknownView
from tests.openai_api.test_accepted_parameters import HARMLESS
from tests.openai_api.test_parameters import VALID

BODIES = {
    "chat/completions": "CreateChatCompletionRequest",
    "completions": "CreateCompletionRequest",
}


def served() -> set[tuple[str, str]]:
    """The method and the path of everything that a view answers."""
    found = set()
    for pattern in urlpatterns:
        view = getattr(pattern.callback, "cls", None)
        if view is None or view is UnknownView:
            continue
        assert issubclass(view, AsyncAPIView)
        path = "/" + re.sub("<[a-z]+:([a-z_]+)>", r"{\1}", str(pattern.pattern))
        found |= {(m.upper(), path) for m in view.http_method_names if hasattr(view, m)}
    return found


def fits(name: str, value) -> bool:
    schema = {"$ref": f"#/components/schemas/{name}", "components": document()["components"]}
    return Draft202012Validator(schema).is_valid(value)


def test_it_is_valid_openapi_3_1():
    assert document()["openapi"] == "3.1.0"
    validate(json.loads(json.dumps(document())))


def test_every_route_is_described_and_nothing_else():
    described = {(m.upper(), p) for p, methods in document()["paths"].items() for m in methods}
    assert len(served()) > 20
    assert described - {("GET", "/health"), ("GET", "/health/ready")} == served()
    assert set(OPERATIONS) == served()


def test_every_operation_tells_how_it_refuses_and_what_a_key_is():
    for path, methods in document()["paths"].items():
        for operation in methods.values():
            assert {"400", "401", "404", "429", "5XX"} < set(operation["responses"]), path
            if path.startswith("/v1"):
                assert {"key": []} in operation["security"], path
    assert document()["components"]["securitySchemes"]["key"]["scheme"] == "bearer"


def test_streams_are_told_where_there_are_some():
    streams = {
        (method, path)
        for path, methods in document()["paths"].items()
        for method, operation in methods.items()
        if "text/event-stream" in operation["responses"]["200"]["content"]
    }
    assert streams == {
        ("post", "/v1/chat/completions"),
        ("post", "/v1/completions"),
        ("post", "/v1/responses"),
        ("get", "/v1/responses/{response_id}"),
    }


@pytest.mark.parametrize("path", VALID)
def test_what_is_accepted_fits_the_schema(path):
    for name, values in HARMLESS[path].items():
        for value in (*values, None):
            body = VALID[path] | {name: value}
            required = value is None and name in ("messages", "prompt")
            assert fits(BODIES[path], body) is not required, (name, value)


@pytest.mark.parametrize(
    "change",
    [{"temperature": "1"}, {"temperature": 2.1}, {"n": 0}, {"stream": 1}, {"stop": [1]},
     {"logit_bias": {"x": 1}}, {"metadata": {"a": 1}}, {"messages": []}, {"model": None},
     {"messages": [{"role": "robot", "content": "x"}]}, {"tools": [{"type": "function"}]},
     {"response_format": {"type": "json_schema"}}, {"use_beam_search": True}],
)  # fmt: skip
def test_what_is_refused_does_not_fit(change):
    assert not fits(BODIES["chat/completions"], VALID["chat/completions"] | change)


async def test_it_is_served_and_there_is_a_page(client):
    http = client._client
    answer = await http.get("http://localhost/v1/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json()["paths"].keys() == document()["paths"].keys()

    page = await http.get("http://localhost/docs/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for path in document()["paths"]:
        assert f"<code>{path}</code>" in page.text
    assert "max_completion_tokens" in page.text
    assert "<script" not in page.text
    assert "://" not in page.text
    [sheet] = re.findall('<link rel="stylesheet" href="([^"]+)"', page.text)
    assert (await http.get(f"http://localhost{sheet}")).status_code == 200
