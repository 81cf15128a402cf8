"""The content of messages, shared by chat messages and Responses items."""

from openai_api.errors import InvalidRequest
from openai_api.serializers.fields import TaggedUnion, check_type, wrong_type

Path = str
MAX_ENTRIES = 8192  # messages or items: each costs some microseconds, in which nothing else runs


def text_part(param: Path, part: dict) -> dict:
    return {"type": "text", "text": check_type(f"{param}.text", part.get("text"), str)}


def refusal_part(param: Path, part: dict) -> dict:
    return {"type": "text", "text": check_type(f"{param}.refusal", part.get("refusal"), str)}


def no_text(param: Path, part: dict) -> dict:
    message = f"Invalid value: '{part['type']}'. This model takes text only."
    raise InvalidRequest(message, param, "unsupported_value")


_PARTS = TaggedUnion(
    "type",
    {
        **dict.fromkeys(("text", "input_text", "output_text", "reasoning_text"), text_part),
        "refusal": refusal_part,
        **dict.fromkeys(("image_url", "input_image", "input_audio", "file", "input_file"), no_text),
    },
)


def content_text(param: Path, content) -> str:
    """A string, or a list of text parts, as one string. A text model's template wants no more."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong_type(param, "a string or an array of content parts", content)
    parts = [_PARTS.check(f"{param}[{i}]", part) for i, part in enumerate(content)]
    return "".join(part["text"] for part in parts)
