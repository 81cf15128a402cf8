"""Strict fields: a value of the wrong type or range is refused by name, never bent into shape.

DRF's own fields take "0.5" for a number, "yes" for a boolean, and trim strings. These raise
`InvalidRequest` at once, in the words and with the codes of OpenAI.
"""

import logging
import re
from heapq import nsmallest

from rest_framework import serializers
from rest_framework.utils.serializer_helpers import BindingDict

from openai_api.errors import InvalidRequest, UnsupportedParameter

logger = logging.getLogger(__name__)

TYPE_NAMES = {
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def type_name(value) -> str:
    return TYPE_NAMES.get(type(value), type(value).__name__)


def wrong_type(param: str, expected: str, value) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead.",
        param,
        "invalid_type",
    )


def wrong_value(param: str, value, supported) -> InvalidRequest:
    names = ", ".join(f"'{name}'" for name in supported)
    message = f"Invalid value: '{str(value)[:100]}'. Supported values are: {names}."
    return InvalidRequest(message, param, "invalid_value")


def missing(param: str) -> InvalidRequest:
    message = f"Missing required parameter: '{param}'."
    return InvalidRequest(message, param, "missing_required_parameter")


def empty_array(param: str) -> InvalidRequest:
    message = f"Invalid '{param}': empty array. Expected an array with minimum length 1."
    return InvalidRequest(message, param, "empty_array")


def check_type(param: str, value, cls: type, expected: str = ""):
    """`value` if it is exactly a `cls` (a boolean is no integer)."""
    if type(value) is not cls:
        raise wrong_type(param, expected or TYPE_NAMES[cls], value)
    return value


class StrictField(serializers.Field):
    """A field that may be left out; null means the same as leaving it out."""

    def __init__(self, **kwargs) -> None:
        kwargs.setdefault("required", False)
        super().__init__(**kwargs)

    def to_internal_value(self, data):
        return self.check(self.field_name, data)

    def check(self, param: str, value):
        raise NotImplementedError


class String(StrictField):
    def __init__(
        self, *, max_length: int | None = None, choices=(), pattern: str = "", **kwargs
    ) -> None:
        self.max_length, self.choices, self.pattern = max_length, choices, pattern
        super().__init__(**kwargs)

    def check(self, param: str, value) -> str:
        check_type(param, value, str)
        if self.choices and value not in self.choices:
            raise wrong_value(param, value, self.choices)
        if self.pattern and not re.fullmatch(self.pattern, value):
            message = f"Invalid '{param}': expected a string that matches {self.pattern}."
            raise InvalidRequest(message, param, "invalid_value")
        if self.max_length is not None and len(value) > self.max_length:
            raise InvalidRequest(
                f"Invalid '{param}': string too long. Expected a string with maximum length "
                f"{self.max_length}, but got a string with length {len(value)} instead.",
                param,
                "string_above_max_length",
            )
        return value


class Boolean(StrictField):
    def check(self, param: str, value) -> bool:
        return check_type(param, value, bool)


class Number(StrictField):
    """A number within [minimum, maximum]."""

    kind, expected = "decimal", "a number"

    def __init__(self, minimum=None, maximum=None, **kwargs) -> None:
        self.minimum, self.maximum = minimum, maximum
        super().__init__(**kwargs)

    def check(self, param: str, value):
        value = self.convert(param, value)
        if self.minimum is not None and value < self.minimum:
            raise self._out_of_range(param, "below minimum", ">=", self.minimum, value)
        if self.maximum is not None and value > self.maximum:
            raise self._out_of_range(param, "above maximum", "<=", self.maximum, value)
        return value

    def convert(self, param: str, value) -> float:
        if type(value) not in (int, float):
            raise wrong_type(param, self.expected, value)
        if type(value) is int and abs(value) > 2**63:
            raise InvalidRequest(f"Invalid '{param}': number too large.", param, "invalid_value")
        return float(value)

    def _out_of_range(self, param: str, side: str, sign: str, bound, value) -> InvalidRequest:
        code = f"{self.kind}_{side.replace('imum', '').replace(' ', '_')}_value"
        return InvalidRequest(
            f"Invalid '{param}': {self.kind} {side} value. Expected a value {sign} {bound}, "
            f"but got {value} instead.",
            param,
            code,
        )


class Integer(Number):
    kind, expected = "integer", "an integer"

    def convert(self, param: str, value) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)
        return check_type(param, value, int)


class ListOf(StrictField):
    """A list whose entries are checked by `child`; with `single`, one entry may stand alone."""

    def __init__(
        self, child: StrictField, *, single: bool = False, max_length: int | None = None, **kwargs
    ) -> None:
        self.child, self.single, self.max_length = child, single, max_length
        super().__init__(**kwargs)

    def check(self, param: str, value) -> list:
        if self.single and not isinstance(value, list):
            return [self.child.check(param, value)]
        check_type(param, value, list)
        if self.max_length is not None and len(value) > self.max_length:
            raise InvalidRequest(
                f"Invalid '{param}': array too long. Expected an array with maximum length "
                f"{self.max_length}, but got an array with length {len(value)} instead.",
                param,
                "array_above_max_length",
            )
        return [self.child.check(f"{param}[{i}]", entry) for i, entry in enumerate(value)]


class TaggedUnion(StrictField):
    """An object whose `tag` key names the checker that knows its shape.

    `checkers` maps tag values to functions `(param, object) -> object`. A plain table costs a
    tenth of nested serializers on long histories.
    """

    def __init__(self, tag: str, checkers: dict, **kwargs) -> None:
        self.tag, self.checkers = tag, checkers
        super().__init__(**kwargs)

    def check(self, param: str, value):
        check_type(param, value, dict)
        if (name := value.get(self.tag)) is None:
            raise missing(f"{param}.{self.tag}")
        check_type(f"{param}.{self.tag}", name, str)
        if (checker := self.checkers.get(name)) is None:
            raise wrong_value(f"{param}.{self.tag}", name, self.checkers)
        return checker(param, value)


class Metadata(StrictField):
    """At most 16 pairs of strings, keys up to 64 and values up to 512 characters."""

    key, value = String(max_length=64), String(max_length=512)

    def check(self, param: str, value) -> dict:
        check_type(param, value, dict)
        if len(value) > 16:
            message = f"Invalid '{param}': too many properties. Expected at most 16."
            raise InvalidRequest(message, param, "object_above_max_properties")
        for key, text in value.items():
            self.key.check(param, key)
            self.value.check(f"{param}.{key}", text)
        return value


class BodySerializer(serializers.Serializer):
    """A request body. Null means "not given"; unknown fields are ignored, and said in the log.

    `UNSUPPORTED` maps a known field that would change the answer, and cannot be honoured, to the
    values at which it would not.
    """

    UNSUPPORTED: dict[str, tuple] = {}
    IGNORED: tuple[str, ...] = ()  # known, and unable to change the answer

    @property
    def fields(self) -> BindingDict:
        """Made once for each class: these fields keep no state, and copying them takes 2 ms."""
        cls = type(self)
        if "_class_fields" not in cls.__dict__:
            cls._class_fields = super(BodySerializer, cls()).fields
        return cls._class_fields

    def to_internal_value(self, data):
        body = {name: value for name, value in data.items() if value is not None}
        for name, harmless in self.UNSUPPORTED.items():
            if name in body and body[name] not in harmless:
                message = f"Unsupported parameter: '{name}' is not supported by this server."
                raise UnsupportedParameter(message, name)
        unknown = body.keys() - self.fields.keys() - self.UNSUPPORTED.keys() - set(self.IGNORED)
        if unknown:
            names = [name[:40] for name in nsmallest(20, unknown)]
            logger.info("ignored unknown fields: %s", ", ".join(names))
        return super().to_internal_value(body)


def validated(serializer_class: type[BodySerializer], data: dict) -> dict:
    """The checked body, with defaults. Raises InvalidRequest or DRF's ValidationError."""
    serializer = serializer_class(data=data)
    serializer.is_valid(raise_exception=True)
    return serializer.validated_data
