"""schemathesis: what the served OpenAPI document allows, and what it does not, to every operation.

python -m tests.reliability.schema [examples for each operation] [seed]
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.helpers import LiveServer, live_server
from tests.reliability.fuzz import MODEL, PATIENCE_S, SMALL, existing_objects
from tests.reliability.programme import Check, result

# Other checks ask for more than a schema can tell, such as that all it allows is accepted: which
# models there are, or that two fields exclude each other, no schema says.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
MODES = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)


def run(max_examples: int = 200, seed: int = 0) -> dict:
    with tempfile.TemporaryDirectory() as folder, live_server(Path(folder), **SMALL) as server:
        return check(server, max_examples, seed)


def check(server: LiveServer, max_examples: int, seed: int = 0) -> dict:
    described = schemathesis.openapi.from_url(f"{server.url}/v1/openapi.json")
    with httpx2.Client(base_url=server.url, timeout=PATIENCE_S) as http:
        ids = existing_objects(http)
    examiner = Examiner(ids, max_examples, seed)
    began, operations, failures = time.monotonic(), 0, []
    for described_one in described.get_all_operations():
        operation, operations = described_one.ok(), operations + 1
        for mode in MODES if operation.body or operation.query else MODES[:1]:  # any text is a path
            if failure := examiner.failure_of(operation, mode):
                failures.append(f"{operation.label}: {failure}"[:4000])
    if server.process.poll() is not None:
        failures.append("the process has ended")
    figures = {
        "operations": operations,
        "sent": sum(examiner.statuses.values()),
        "answers": {str(status): count for status, count in sorted(examiner.statuses.items())},
        "seconds": round(time.monotonic() - began, 1),
        "failures": failures,
    }
    return result("schema", figures, {"failures": Check(len(failures), 0)})


class Examiner:
    def __init__(self, ids: dict[str, str], max_examples: int, seed: int) -> None:
        self.ids = {f"{kind}_id": value for kind, value in ids.items()}
        self.ids["completion_id"] = ids["chat"]
        self.max_examples, self.seed = max_examples, seed
        self.statuses: dict[int, int] = {}
        self.latest = ""

    def failure_of(self, operation: Any, mode: schemathesis.GenerationMode) -> str:
        """How an operation first failed, or nothing."""

        @seeded(self.seed)
        @settings(
            max_examples=self.max_examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            self._make_real(case)
            self.latest = case.as_curl_command()
            answer = case.call(timeout=PATIENCE_S)
            self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
            case.validate_response(answer, checks=CHECKS)

        try:
            send()
        except Unsatisfiable:  # what takes nothing cannot be given anything wrong
            return ""
        except BaseExceptionGroup as exc:
            failures = " ".join(f"{type(e).__name__} {e}" for e in exc.exceptions)
            return f"{self.latest}: {failures}"
        except Exception as exc:
            return f"{type(exc).__name__} {exc}"
        return ""

    def _make_real(self, case: schemathesis.Case) -> None:
        """Names of what exists, every other time: otherwise all ends with a 404."""
        if sum(self.statuses.values()) % 2:
            case.path_parameters = {
                name: self.ids.get(name, value) for name, value in case.path_parameters.items()
            }
        if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
            case.body["model"] = MODEL


def main() -> int:
    found = run(*map(int, sys.argv[1:]))
    sys.stdout.write(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return not found["passed"]


if __name__ == "__main__":
    sys.exit(main())
