"""python -m tests.reliability [NAME [BOUND=NUMBER ...] ...], all programmes by default."""

import asyncio
import importlib
import inspect
import json
import sys

PROGRAMMES = [
    "burst",
    "disconnect",
    "engine",
    "kill9",
    "sigterm",
    "slow_reader",
    "slow_upload",
    "fuzz",
    "schema",
]


def chosen(arguments: list[str]) -> dict[str, dict[str, float]]:
    """The bounds by programme: each follows the name that it is for."""
    found: dict[str, dict[str, float]] = {}
    for argument in arguments:
        name, is_bound, number = argument.partition("=")
        if is_bound and found:
            found[list(found)[-1]][name] = json.loads(number)
        elif name in PROGRAMMES:
            found[name] = {}
        else:
            sys.exit(f"{argument} is none of: {', '.join(PROGRAMMES)}")
    return found or {name: {} for name in PROGRAMMES}


def main() -> int:
    all_passed = True
    for name, bounds in chosen(sys.argv[1:]).items():
        result = importlib.import_module(f"tests.reliability.{name}").run(**bounds)
        if inspect.isawaitable(result):
            result = asyncio.run(result)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        all_passed &= result["passed"]
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
