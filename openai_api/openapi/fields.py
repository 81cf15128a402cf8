"""What the serializers' fields take, as JSON Schema."""

from collections.abc import Callable
from typing import Any

from openai_api.openapi.shapes import SHAPES
from openai_api.serializers.fields import (
    BodySerializer,
    Boolean,
    Integer,
    ListOf,
    Number,
    StrictField,
    String,
    TaggedUnion,
)
from openai_api.serializers.queries import QueryBoolean

Schema = dict[str, Any]


def body_schema(serializer: BodySerializer) -> Schema:
    """An object whose unknown fields are ignored, and whose nulls mean "not given"."""
    fields = serializer.fields
    properties = {name: field_schema(field) for name, field in fields.items()}
    for name in serializer.IGNORED:
        properties[name] = {"description": "Accepted, without effect."}
    for name, harmless in serializer.UNSUPPORTED.items():
        allowed = list(dict.fromkeys([None, *map(_hashable, harmless)]))
        properties[name] = {"description": "Not supported.", "enum": list(map(_plain, allowed))}
    schema: Schema = {"type": "object", "properties": properties}
    if required := [name for name, field in fields.items() if field.required]:
        schema["required"] = required
    return schema


def field_schema(field: StrictField) -> Schema:
    schema = value_schema(field)
    if not field.required:
        schema = nullable(schema)
    default, minimum = field.default, getattr(field, "minimum", None)
    if isinstance(default, bool | int | float | str) and (minimum is None or default >= minimum):
        schema |= {"default": default}
    return schema


def value_schema(field: StrictField) -> Schema:
    """The schema of a value that is given."""
    for cls in type(field).__mro__:
        if cls in KINDS:
            return KINDS[cls](field)
        if cls in SHAPES:
            return dict(SHAPES[cls])
    raise TypeError(f"{type(field).__name__} has no schema: add one to openapi/shapes.py")


def nullable(schema: Schema) -> Schema:
    if "enum" in schema:
        return schema | {"type": [schema["type"], "null"], "enum": [*schema["enum"], None]}
    if isinstance(schema.get("type"), str):
        return schema | {"type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def string(field: String) -> Schema:
    schema: Schema = {"type": "string"}
    if field.choices:
        schema["enum"] = list(field.choices)
    if field.pattern:
        schema["pattern"] = f"^{field.pattern}$"
    if field.max_length is not None:
        schema["maxLength"] = field.max_length
    return schema


def number(field: Number) -> Schema:
    bounds = {
        "minimum": field.minimum,
        "maximum": field.maximum,
    }
    kind = "integer" if isinstance(field, Integer) else "number"
    return {"type": kind} | {key: bound for key, bound in bounds.items() if bound is not None}


def list_of(field: ListOf) -> Schema:
    child = value_schema(field.child)
    schema: Schema = {"type": "array", "items": child}
    if field.max_length is not None:
        schema["maxItems"] = field.max_length
    return {"anyOf": [child, schema]} if field.single else schema


def union(field: TaggedUnion) -> Schema:
    tag = {"type": "string", "enum": list(field.checkers)}
    return {"type": "object", "properties": {field.tag: tag}, "required": [field.tag]}


KINDS: dict[type, Callable[[Any], Schema]] = {
    String: string,
    QueryBoolean: lambda field: {"type": "string", "enum": ["true", "false"]},
    Boolean: lambda field: {"type": "boolean"},
    Number: number,
    ListOf: list_of,
    TaggedUnion: union,
}


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
