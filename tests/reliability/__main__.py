"""python -m tests.reliability [--save] [--report] [NAME [BOUND=NUMBER ...] ...]

Runs all programmes by default. `--save` keeps what they find in `docs/reliability/`; `--report`
writes `docs/reliability.md` from what is kept, and alone runs nothing.
"""

import asyncio
import importlib
import inspect
import json
import sys

from tests.reliability import report

PROGRAMMES = [
    "burst",
    "overload",
    "disconnect",
    "engine",
    "kill9",
    "sigterm",
    "slow_reader",
    "slow_upload",
    "db",
    "preempt",
    "fuzz",
    "schema",
    "mixed",
    "soak",
]
SAVE, REPORT = "--save", "--report"


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


def run(name: str, bounds: dict[str, float]) -> dict:
    result = importlib.import_module(f"tests.reliability.{name}").run(**bounds)
    return asyncio.run(result) if inspect.isawaitable(result) else result


def main() -> int:
    all_passed, arguments = True, [a for a in sys.argv[1:] if a not in (SAVE, REPORT)]
    programmes = {} if sys.argv[1:] == [REPORT] else chosen(arguments)
    for name, bounds in programmes.items():
        result = run(name, bounds)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()
        all_passed &= result["passed"]
        if SAVE in sys.argv:
            report.save(result, bounds)
    if REPORT in sys.argv:
        report.PAGE.write_text(report.page())
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
