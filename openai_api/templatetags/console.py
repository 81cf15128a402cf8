"""Numbers with units in templates."""

from django import template

from openai_api.console import formats

register = template.Library()


@register.filter
def seconds(value: float | None) -> str:
    return " ".join(formats.duration(value)).strip()


@register.filter
def number(value: float | None) -> str:
    return "–" if value is None else formats.number(value)


@register.filter
def short(endpoint: str) -> str:
    """`POST /v1/chat/completions` as `chat/completions`; another method stays."""
    return endpoint.removeprefix("POST ").replace("/v1/", "", 1)


@register.filter
def compact(value: float) -> str:
    """As an axis has it: 1.5k, 2M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
