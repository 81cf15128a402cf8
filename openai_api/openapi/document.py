"""The OpenAPI document, made by drf-spectacular from the views and their serializers."""

from functools import cache
from typing import Any

import orjson
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema as SpectacularSchema
from drf_spectacular.utils import OpenApiParameter

from openai_api.openapi.answers import ANSWERS
from openai_api.openapi.fields import Schema, body_schema, field_schema
from openai_api.openapi.operations import OPERATIONS, Operation
from openai_api.serializers.fields import Metadata
from openai_api.views.unknown import UnknownView

REFUSALS = {
    "400": "The request is wrong; `param` names what.",
    "401": "No key, or not a valid one.",
    "403": "The key may not use this model.",
    "404": "There is no such object, or it belongs to another key.",
    "409": "Another request holds the conversation; try again.",
    "413": "The body is too large.",
    "429": "The queue is full, or a limit of the key is reached.",
    "5XX": "The server failed, or is not ready.",
}
OUTSIDE = {"/health": "Health", "/health/ready": "Ready"}


@cache
def document() -> dict[str, Any]:
    schema = SchemaGenerator().get_schema(request=None, public=True)
    for path, answer in OUTSIDE.items():  # no views of DRF
        operation = Operation(path.strip("/").replace("/", "_"), "How the server is", answer)
        described = {"operationId": operation.id, "summary": operation.summary, "tags": ["health"]}
        schema["paths"][path] = {"get": described | {"responses": responses(operation)}}
    schema.setdefault("components", {})["schemas"] = ANSWERS | bodies()
    return schema


@cache
def as_json() -> bytes:
    return orjson.dumps(document())


class AutoSchema(SpectacularSchema):
    """What a view's method does is in `OPERATIONS`; a method that is missing there raises."""

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.method, self.path]

    def is_excluded(self) -> bool:
        return isinstance(self.view, UnknownView)

    def get_operation_id(self) -> str:
        return self.operation.id

    def get_summary(self) -> str:
        return self.operation.summary

    def get_description(self) -> str:
        return ""

    def get_tags(self) -> list[str]:
        return [self.path.removeprefix("/v1/").split("/")[0].strip("/")]

    def get_override_parameters(self) -> list[OpenApiParameter]:
        if self.operation.query is None:
            return []
        fields = self.operation.query().fields.items()
        return [
            OpenApiParameter(
                name,
                query_schema(field),
                OpenApiParameter.QUERY,
                style="deepObject" if isinstance(field, Metadata) else None,
            )
            for name, field in fields
        ]

    def _get_serializer(self) -> None:
        """Bodies are described by our own fields' schemas: see `fields`."""

    def _get_request_body(self, direction: str = "request") -> Schema | None:
        if self.operation.body is None:
            return None
        schema = ref(body_name(self.operation))
        return {"content": {"application/json": {"schema": schema}}, "required": True}

    def _get_response_bodies(self, direction: str = "response") -> Schema:
        return responses(self.operation)


class KeyScheme(OpenApiAuthenticationExtension):
    target_class = "openai_api.policies.authentication.KeyAuthentication"
    name = "key"

    def get_security_requirement(self, auto_schema: SpectacularSchema) -> list[Schema]:
        return [{self.name: []}, {}]  # none as long as there are no keys

    def get_security_definition(self, auto_schema: SpectacularSchema) -> Schema:
        return {"type": "http", "scheme": "bearer"}


def responses(operation: Operation) -> Schema:
    content: Schema = {"application/json": {"schema": ref(operation.answer)}}
    if operation.events:
        event = {"type": "object", "properties": {"data": {"type": "string"}}}
        event |= {"required": ["data"], "description": operation.events}
        content["text/event-stream"] = {"schema": event}
    refused = {
        status: {
            "description": said,
            "content": {"application/json": {"schema": ref("Error")}},
        }
        for status, said in REFUSALS.items()
    }
    return {"200": {"description": operation.summary, "content": content}} | refused


def bodies() -> dict[str, Schema]:
    """The schema of each body, by its name."""
    return {
        body_name(operation): without(body_schema(operation.body()), operation.optional)
        for operation in OPERATIONS.values()
        if operation.body is not None
    }


def body_name(operation: Operation) -> str:
    return f"{operation.id[0].upper()}{operation.id[1:]}Request"


def without(schema: Schema, optional: tuple[str, ...]) -> Schema:
    required = [name for name in schema.get("required", ()) if name not in optional]
    rest = {key: value for key, value in schema.items() if key != "required"}
    return rest | {"required": required} if required else rest


def query_schema(field: Any) -> Schema:
    """Text in a URL cannot be null."""
    schema = field_schema(field)
    if isinstance(schema.get("type"), list):
        schema["type"] = schema["type"][0]
    if "enum" in schema:
        schema["enum"] = [value for value in schema["enum"] if value is not None]
    if schema.get("default") is False:  # spelled, as all of a query
        schema["default"] = "false"
    return schema


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
