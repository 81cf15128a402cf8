"""Parameters written as plain text, and what their schemas make of them."""

import json
from typing import Any


def properties_of(function: dict[str, Any]) -> dict[str, Any]:
    """The schemas of a function's parameters, with references to definitions followed."""
    parameters = function.get("parameters") or {}
    definitions = parameters.get("$defs") or parameters.get("definitions")
    properties = _dict(parameters.get("properties"))
    return {name: followed(schema, definitions) for name, schema in properties.items()}


def followed(schema: Any, definitions: Any) -> Any:
    """The schema itself in place of a reference to one of the definitions.

    Schemas that no grammar is made of may be anything: what is no schema in them is passed over.
    """
    if not isinstance(schema, dict):
        return schema
    if len(options := _list(schema.get("allOf"))) == 1:
        schema = schema | _dict(options[0])
    if "$ref" in schema:
        schema = schema | _dict(_dict(definitions).get(str(schema["$ref"]).rpartition("/")[2]))
    return schema


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


_JSON_TYPES = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,), "string": (str,),
}  # fmt: skip


def typed(text: str, schema: Any) -> Any:
    """A parameter written as plain text, as what its schema says it is; text in case of doubt."""
    types = _types(schema)
    if types <= {"string"}:
        return text
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        return text
    kinds = {kind for name in types for kind in _JSON_TYPES.get(name, ())}
    return value if type(value) in kinds else text  # exactly: a bool is an int, too


def _types(schema: Any) -> set[str]:
    if not isinstance(schema, dict):
        return set()
    declared = schema.get("type")
    names = [declared] if isinstance(declared, str) else _list(declared)
    types = {name for name in names if isinstance(name, str)}
    for union in ("anyOf", "oneOf"):
        for option in _list(schema.get(union)):
            types |= _types(option)
    if not types:
        values = [schema["const"]] if "const" in schema else _list(schema.get("enum"))
        types = {name for name, kinds in _JSON_TYPES.items() for v in values if type(v) in kinds}
    return types
