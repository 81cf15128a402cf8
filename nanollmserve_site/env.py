"""Settings as NANOLLM_* variables and as flags of `serve`.

The dataclasses declare a setting once; its variable, its flag, the check of its value and its
line in docs/settings.md (`python -m nanollmserve_site.env`) are made from that declaration.
"""

import argparse
import dataclasses
import difflib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from django.core.exceptions import ImproperlyConfigured

from inference.config import EngineConfig
from nanollmserve_site.config import ServerConfig
from openai_api.config import ApiConfig

PREFIX = "NANOLLM_"
CONFIGS: tuple[type, ...] = (EngineConfig, ApiConfig, ServerConfig)
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
SIZES |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Config = TypeVar("Config")


def read(config: type[Config], environ: Mapping[str, str]) -> Config:
    """The config as the environment has it; an empty variable counts as not set."""
    given = {s.name: environ.get(s.variable, "") for s in settings_of(config)}
    return config(**{s.name: s.parse(given[s.name]) for s in settings_of(config) if given[s.name]})


def refuse_unknown(environ: Mapping[str, str]) -> None:
    """A misspelt variable must not be ignored: its writer believes that it works."""
    known = [setting.variable for setting in all_settings()]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}? " if nearest else ""
            raise ImproperlyConfigured(
                f"{name} is not a setting; {hint}All are listed in docs/settings.md."
            )


def add_flags(parser: argparse.ArgumentParser, settings: Iterable["Setting"] | None = None) -> None:
    """Settings as flags, all by default, and the model also as the one positional argument."""
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "model", nargs="?", metavar="MODEL", default=argparse.SUPPRESS, help="The same as --model."
    )
    for setting in settings or all_settings():
        target = model if setting.name == "model" else parser
        target.add_argument(setting.flag, **setting.argument())


def apply_flags(options: Mapping[str, Any], environ: MutableMapping[str, str]) -> None:
    """Turn parsed flags into variables: there they are checked like those set by hand."""
    for setting in all_settings():
        if setting.name in options:
            value = options[setting.name]
            environ[setting.variable] = ",".join(value) if isinstance(value, list) else str(value)


def all_settings() -> Iterator["Setting"]:
    for config in CONFIGS:
        yield from settings_of(config)


def settings_of(config: type) -> Iterator["Setting"]:
    hints = get_type_hints(config)
    for field in dataclasses.fields(config):
        yield Setting(field.name, hints[field.name], field.default, field.metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a config, and all that follows from it."""

    name: str
    hint: Any
    default: Any
    facts: Mapping[str, Any]

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def kind(self) -> Any:
        """What KINDS is asked for: a type without its `| None`, or the unit."""
        if get_origin(self.hint) is tuple:
            return tuple
        types = [hint for hint in get_args(self.hint) if hint is not NoneType]
        return self.facts.get("unit") or (types[0] if types else self.hint)

    def parse(self, text: str) -> Any:
        try:
            value = KINDS[self.kind][0](text.strip())
            accepted = self._accepts(value)
        except ValueError:
            accepted = False
        if not accepted:
            raise ImproperlyConfigured(
                f"{self.variable} ({self.flag}) is {text!r}; allowed: {self.allowed}."
            )
        return value

    def _accepts(self, value: Any) -> bool:
        low, high = self.facts.get("minimum"), self.facts.get("maximum")
        return (
            value in self.facts.get("choices", (value,))
            and re.fullmatch(self.facts.get("pattern", "(?s:.*)"), str(value)) is not None
            and (low is None or value >= low)
            and (high is None or value <= high)
        )

    @property
    def allowed(self) -> str:
        if "allowed" in self.facts:
            return str(self.facts["allowed"])
        if "choices" in self.facts:
            return ", ".join(self.facts["choices"])
        low, high = self.facts.get("minimum"), self.facts.get("maximum")
        if high is not None:
            return f"{KINDS[self.kind][1]} from {low} to {high}"
        return KINDS[self.kind][1] + (f", at least {low}" if low is not None else "")

    @property
    def shown_default(self) -> str:
        """The default as one would write it; empty where the help tells what happens."""
        if self.default is None or self.default == ():
            return ""
        shown = str(self.facts.get("shown_default", self.default))
        return num_bytes_text(self.default) if self.kind == "bytes" else shown

    def argument(self) -> dict[str, Any]:
        """How argparse is told. Values stay text: `parse` is the only judge of them."""
        default = f" Default: {self.shown_default}." if self.shown_default else ""
        help = f"{self.facts['help']}{default} [{self.variable}]".replace("%", "%%")
        facts: dict[str, Any] = {"dest": self.name, "help": help, "default": argparse.SUPPRESS}
        if self.kind is bool:
            return facts | {"action": argparse.BooleanOptionalAction}
        if self.kind is tuple:
            return facts | {"nargs": "+", "metavar": "NAME"}
        return facts | {"metavar": "VALUE"}


def boolean(text: str) -> bool:
    if text.lower() not in BOOLEANS:
        raise ValueError(text)
    return BOOLEANS[text.lower()]


def finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def num_bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.upper())
    if match is None or match[2] not in SIZES:
        raise ValueError(text)
    return int(float(match[1]) * SIZES[match[2]])


def num_bytes_text(value: int) -> str:
    for unit in ("GiB", "MiB", "KiB"):
        if value % SIZES[unit.upper()] == 0:
            return f"{value // SIZES[unit.upper()]}{unit}"
    return str(value)


def folder(text: str) -> Path:
    return Path(text).expanduser().resolve()


KINDS = {
    str: (str, "any text"),
    int: (int, "a whole number"),
    float: (finite, "a number"),
    bool: (boolean, "true, false, 1 or 0"),
    tuple: (names, "names, separated by commas"),
    Path: (folder, "a folder"),
    "bytes": (num_bytes, "a number of bytes such as 1048576, 512MiB or 2GiB"),
}

INTRODUCTION = """\
# Settings

Each setting is a flag of `python manage.py serve` and an environment variable, which may also
stand in a file `.env` beside `manage.py`. `python manage.py engine` has the flags of the engine
alone, and reads the same variables. A flag wins over the environment, the environment over
`.env`. `daphne nanollmserve_site.asgi:application` reads the variables alone; there, host and
port are daphne's own flags. An empty variable counts as not set. A value that is not allowed, or
a `NANOLLM_` variable that does not exist, stops the start.

`HF_HOME`, `HF_TOKEN`, `HF_HUB_OFFLINE` and `CUDA_VISIBLE_DEVICES` have their usual meaning.

This page is made from the code by `make docs`.
"""


def markdown() -> str:
    """docs/settings.md"""
    parts = [INTRODUCTION]
    for config in CONFIGS:
        title = config.__name__.removesuffix("Config").replace("Api", "API")
        parts.append(f"\n## {title}\n\n{config.__doc__}\n\n")
        parts.append("| flag | variable | default | meaning | allowed |\n")
        parts.append("| --- | --- | --- | --- | --- |\n")
        parts.extend(table_row(setting) for setting in settings_of(config))
    return "".join(parts)


def table_row(setting: Setting) -> str:
    flag = setting.flag.replace("--", "--[no-]") if setting.kind is bool else setting.flag
    shown = setting.shown_default
    literal = shown and "shown_default" not in setting.facts
    cells = [f"`{flag}`", f"`{setting.variable}`", f"`{shown}`" if literal else shown]
    return "| " + " | ".join([*cells, setting.facts["help"], setting.allowed]) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
