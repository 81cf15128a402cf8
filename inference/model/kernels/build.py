"""Compile the C++ beside this file when it is first needed, and keep the result.

What was built is found again by everything that it depends on: the source, the flags, the compiler
and the CPU's abilities (`-march=native` uses them all, and a home folder may be on many machines).
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu.cpp")
COMPILE = "-std=c++17 -O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math"
TIMEOUT_S = 300


class BuildError(Exception):
    """The kernels cannot be compiled here; the text says why."""


def built_library() -> Path:
    """The shared library, compiled if it is not in the cache. Raises BuildError or OSError."""
    wanted = os.environ.get("CXX") or "g++"
    compiler = shutil.which(wanted)
    if compiler is None:
        raise BuildError(f"there is no {wanted}")
    folder = cache_folder()
    target = folder / f"cpu-{cache_key(compiler)}.so"
    if not target.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            # Renamed when whole: another process that builds or loads never sees half a file.
            compile_to(compiler, Path(scratch) / "cpu.so").replace(target)
    return target


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "nanollmserve"


def cache_key(compiler: str) -> str:
    version = run([compiler, "-dumpfullversion", "-dumpmachine"])
    parts = (SOURCE.read_text(), COMPILE, compiler, version, cpu_abilities())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def cpu_abilities() -> str:
    """What tells one CPU's instruction set from another's."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.platform() + platform.processor()
    kinds = re.findall(r"^(?:flags|Features|cpu family|model|CPU part)\s*:.*$", text, re.MULTILINE)
    return "\n".join([platform.machine(), *sorted(set(kinds))])


def compile_to(compiler: str, library: Path) -> Path:
    """Linked without -fopenmp: the symbols are found in the libgomp that torch has loaded.

    A second OpenMP runtime would bring its own threads, and they would fight with torch's.
    """
    compiled = library.with_suffix(".o")
    run([compiler, *COMPILE.split(), "-fopenmp", "-fPIC", "-c", str(SOURCE), "-o", str(compiled)])
    run([compiler, "-shared", str(compiled), "-o", str(library)])
    return library


def run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {TIMEOUT_S} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        reason = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"{command[0]} failed: {reason}")
    return done.stdout
