"""JSON schemas of callers: OpenAI's limits, and what may be left out of them.

Whether a schema can be followed at all is for the grammar's compiler to say. Here it is kept small
enough to be handed over, and rid of annotations that the compiler would take for demands.
"""

import json
from decimal import Decimal

from openai_api.errors import InvalidRequest
from openai_api.serializers.fields import check_type

MAX_SIZE = 256 * 1024  # characters of JSON
MAX_PROPERTIES = 5_000
MAX_OBJECT_DEPTH = 10  # objects inside objects, as at OpenAI
MAX_DEPTH = 100  # of schemas inside schemas of any kind
MAX_ENUM_VALUES = 1_000
MAX_NAME_CHARS = 120_000  # of all names and enum values together
MAX_PATTERN = 1_024
MAX_BOUND = 2**63  # llguidance counts in 64 bits
MAX_DIVISOR = 10_000  # a multiple is found by an automaton of that many states
MAX_COMMON_PATTERNS = 4  # that one text must fit at the same time

# Formats that are followed. Any other is an annotation, as JSON Schema lets a reader take it.
FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
)
NAMED_SCHEMAS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTED_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
SINGLE_SCHEMAS = ("items", "additionalProperties", "contains", "not", "if", "then", "else")
LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")


def check_schema(param: str, schema) -> dict:
    """The schema, ready to be compiled. Raises InvalidRequest naming `param`."""
    check_type(param, schema, dict)
    text = json.dumps(schema)
    if len(text) > MAX_SIZE:
        raise too_complex(param, f"longer than {MAX_SIZE} characters")
    schema = json.loads(text)  # a copy
    num_properties = num_enum_values = num_chars = 0
    pending = [(schema, 0, 0)]
    while pending:
        node, depth, object_depth = pending.pop()
        if depth > MAX_DEPTH or object_depth > MAX_OBJECT_DEPTH:
            raise too_complex(param, f"nested more than {MAX_OBJECT_DEPTH} objects deep")
        _simplify(param, node)
        _check_numbers(param, node)
        names = [*_dict(node, "properties"), *_dict(node, "$defs"), *_dict(node, "definitions")]
        values = node["enum"] if isinstance(node.get("enum"), list) else []
        num_properties += len(_dict(node, "properties"))
        num_enum_values += len(values)
        num_chars += sum(map(len, names)) + sum(len(str(value)) for value in values)
        if num_properties > MAX_PROPERTIES:
            raise too_complex(param, f"more than {MAX_PROPERTIES} properties")
        if num_enum_values > MAX_ENUM_VALUES:
            raise too_complex(param, f"more than {MAX_ENUM_VALUES} enum values")
        if num_chars > MAX_NAME_CHARS:
            raise too_complex(param, f"names and values of more than {MAX_NAME_CHARS} characters")
        pending += _children(node, depth + 1, object_depth)
    return schema


def _check_numbers(param: str, node: dict) -> None:
    """Refuse what would take for ever, or more memory than there is."""
    for key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        bound = node.get(key)
        if isinstance(bound, int | float) and abs(bound) > MAX_BOUND:
            raise too_complex(param, f"a {key} beyond {MAX_BOUND}")
    divisor = node.get("multipleOf")
    if type(divisor) in (int, float) and _significand(divisor) > MAX_DIVISOR:
        raise too_complex(param, f"a multipleOf of more than {MAX_DIVISOR} in its last digit")
    options = node.get("allOf")
    if isinstance(options, list):
        patterns = [option for option in options if "pattern" in json.dumps(option)]
        if len(patterns) > MAX_COMMON_PATTERNS:
            raise too_complex(param, f"an allOf of more than {MAX_COMMON_PATTERNS} patterns")


def _significand(number: float) -> int:
    """The digits of a decimal, as a number: 12 of 0.012."""
    digits = Decimal(str(number)).as_tuple().digits
    return int("".join(map(str, digits)) or 0)


def too_complex(param: str, reason: str) -> InvalidRequest:
    message = f"Invalid schema for '{param}': too complex, {reason}."
    return InvalidRequest(message, param, "schema_too_complex")


def _children(node: dict, depth: int, object_depth: int) -> list[tuple[dict, int, int]]:
    children = []
    for key in NAMED_SCHEMAS:
        below = object_depth + (key == "properties")
        children += [(child, depth, below) for child in _dict(node, key).values()]
    for key in LISTED_SCHEMAS:
        if isinstance(node.get(key), list):
            children += [(child, depth, object_depth) for child in node[key]]
    children += [(node[key], depth, object_depth) for key in SINGLE_SCHEMAS if key in node]
    return [child for child in children if isinstance(child[0], dict)]


def _simplify(param: str, node: dict) -> None:
    """Leave out what demands nothing, or nothing that is not demanded in another way."""
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        if len(pattern) > MAX_PATTERN:
            raise too_complex(param, f"a pattern of more than {MAX_PATTERN} characters")
        # zod gives its formats a pattern as well, with look-around that no grammar can follow
        if node.get("format") in FORMATS and any(sign in pattern for sign in LOOK_AROUND):
            del node["pattern"]
    if isinstance(node.get("format"), str) and node["format"] not in FORMATS:
        del node["format"]
    names = node.get("propertyNames")  # zod writes it for every record
    if isinstance(names, dict) and names.keys() <= {"type"} and names.get("type") == "string":
        del node["propertyNames"]


def _dict(node: dict, key: str) -> dict:
    value = node.get(key)
    return value if isinstance(value, dict) else {}
