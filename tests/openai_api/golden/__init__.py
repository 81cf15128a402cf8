"""Whole event sequences that the SDK's own classes and accumulators accept."""

import json
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("*.json"))


def golden(name: str) -> list[dict]:
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())
