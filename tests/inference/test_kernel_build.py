"""How the compiled kernels come to be, and what happens where they cannot be had."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from inference.config import EngineConfig
from inference.model.kernels import build, cpu
from inference.model.loader import load_model
from inference.model.runner import make_runner
from tests.inference.test_parity import continue_in_chunks, generate, random_prompt, silent
from tests.inference.tiny_models import save_model

# Notes each call, takes its time, and writes a "library" in two pieces
COMPILER = """#!/bin/sh
case "$*" in *-dumpfullversion*) echo {version}; exit;; esac
echo "$*" >> {log}
while [ "$1" != -o ]; do shift; done
echo first half > "$2"; sleep 0.05; echo second half >> "$2"
"""


@pytest.fixture
def fresh_kernels():
    """Forget the kernels of this process, before and after."""
    cpu._library.cache_clear()
    yield
    cpu._library.cache_clear()


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Installs a compiler of a version; its log of calls."""

    def install(version: str):
        script = tmp_path / "compiler"
        script.write_text(COMPILER.format(version=version, log=tmp_path / "log"))
        script.chmod(0o755)
        return tmp_path / "log"

    monkeypatch.setenv("CXX", str(tmp_path / "compiler"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return install


def num_compiled(log) -> int:
    return log.read_text().count(" -c ")


def test_what_was_built_is_found_again(compiler, monkeypatch):
    log = compiler("12.2")
    first = build.built_library()
    assert build.built_library() == first
    assert num_compiled(log) == 1
    compiler("12.3")
    second = build.built_library()
    monkeypatch.setattr(build, "COMPILE", "-O1")
    third = build.built_library()
    monkeypatch.setattr(build, "cpu_abilities", lambda: "flags: none")
    assert len({first, second, third, build.built_library()}) == 4
    assert num_compiled(log) == 4


def test_builders_do_not_see_each_others_halves(compiler):
    compiler("12.2")
    with ThreadPoolExecutor(4) as pool:
        paths = [pool.submit(build.built_library) for _ in range(4)]
        texts = [path.result().read_text() for path in paths]
    assert texts == ["first half\nsecond half\n"] * 4
    assert [path.name for path in build.cache_folder().iterdir()] == [paths[0].result().name]


def test_a_file_that_is_no_library_is_not_used(compiler, fresh_kernels, caplog):
    compiler("12.2")
    assert cpu.library() is None
    assert "No compiled CPU kernels" in caplog.text


def test_without_a_compiler_torch_takes_over(fresh_kernels, monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    oracle = save_model(tmp_path, "qwen3")
    config = EngineConfig(model=str(tmp_path), device="cpu", kv_cache_memory=2**22)
    loaded = load_model(config, silent)
    prompts = [random_prompt(length) for length in (3, 40)]
    answers = continue_in_chunks(make_runner(loaded, config, silent), prompts, config.block_size)
    assert answers == [generate(oracle, prompt) for prompt in prompts]
    assert [record.getMessage() for record in caplog.records] == [
        "No compiled CPU kernels, torch's slower operations do: there is no /nowhere/g++."
    ]


def test_a_failed_compilation_says_why(compiler, tmp_path):
    compiler("12.2")
    script = tmp_path / "compiler"
    script.write_text(
        "#!/bin/sh\ncase $1 in -dump*) exit;; esac\necho 'x.cpp:1: error: no' >&2\nexit 1"
    )
    with pytest.raises(build.BuildError, match="compiler failed: x.cpp:1: error: no"):
        build.built_library()
    assert list(build.cache_folder().iterdir()) == []


def test_kernels_that_compute_nonsense_are_found_out():
    with pytest.raises(build.BuildError, match="self check"):
        cpu.check(SimpleNamespace(paged_attention=lambda arguments: None))
