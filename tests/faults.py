"""Models whose steps go wrong when a file says so, in tests and in programs started by them.

`python -m tests.faults serve ...` (or `engine ...`) is `manage.py` with such a model; the variable
FAULTS names the file. Nothing of this is in the server itself.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.model.inputs import ModelInputs


class FaultyRunner:
    """A runner that looks into a file before each step. Each of its lines is a fault:

    once  fail, hang SECONDS, spin SECONDS (which never leaves Python), die (with its thread)
    while it is there  poison TOKEN (whose steps fail), nan TOKEN (whose logits are no numbers),
        memory N (is there for so many sequences at a time), wait N (before one has so many tokens)
    """

    def __init__(self, runner: Any, file: Path) -> None:
        self._runner, self._file = runner, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    @torch.inference_mode()
    def forward(self, inputs: ModelInputs) -> Tensor:
        while self._is_to_wait(faults := [line.split() for line in self._take()], inputs):
            time.sleep(0.001)
        for kind, *arguments in faults:
            getattr(self, kind)(inputs, *map(float, arguments))
        logits = self._runner.forward(inputs)
        for kind, *arguments in faults:
            if kind == "nan":
                logits[rows_with(inputs, int(arguments[0]))] = torch.nan
        return logits

    def _take(self) -> list[str]:
        """The lines of the file; what is to happen once does not stay there."""
        if not self._file.exists():
            return []
        lines = self._file.read_text().splitlines()
        standing = [
            line for line in lines if line.split()[0] in ("poison", "nan", "memory", "wait")
        ]
        if standing != lines:
            self._file.write_text("\n".join(standing))
        return lines

    @staticmethod
    def _is_to_wait(faults: list[list[str]], inputs: ModelInputs) -> bool:
        return any(
            kind == "wait" and max(inputs.context_lens) >= int(arguments[0])
            for kind, *arguments in faults
        )

    def wait(self, inputs: ModelInputs, num_tokens: float) -> None:
        pass  # it was seen to beforehand

    def fail(self, inputs: ModelInputs) -> None:
        raise RuntimeError("a secret of the inside")

    def hang(self, inputs: ModelInputs, seconds: float) -> None:
        time.sleep(seconds)

    def spin(self, inputs: ModelInputs, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    def die(self, inputs: ModelInputs) -> None:
        raise KeyboardInterrupt

    def poison(self, inputs: ModelInputs, token_id: float) -> None:
        if token_id in inputs.token_ids:
            raise RuntimeError("a secret of the inside")

    def nan(self, inputs: ModelInputs, token_id: float) -> None:
        pass  # it is for afterwards

    def memory(self, inputs: ModelInputs, num_seqs: float) -> None:
        if len(inputs.counts) > num_seqs:
            raise torch.OutOfMemoryError("a secret of the inside")


def rows_with(inputs: ModelInputs, token_id: int) -> list[int]:
    """Which logits are those of a sequence that brings this token."""
    rows, start = [], 0
    for count in inputs.counts:
        end = start + count
        if token_id in inputs.token_ids[start:end]:
            rows += [i for i, row in enumerate(inputs.logit_rows) if start <= row < end]
        start = end
    return rows


def main() -> None:
    import manage
    from inference import service

    make_core = service.make_core

    def make_faulty_core(*arguments: Any) -> Any:
        core, model = make_core(*arguments)
        core._runner = FaultyRunner(core._runner, Path(os.environ["FAULTS"]))
        return core, model

    service.make_core = make_faulty_core
    sys.argv[0] = "manage.py"
    manage.main()


if __name__ == "__main__":
    main()
