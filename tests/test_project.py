"""Rules that no linter knows: who may import whom, how long things get, what the docs must say."""

import ast
from pathlib import Path

import pytest

from openai_api.serializers.chat import ChatCompletionSerializer
from openai_api.serializers.completions import CompletionSerializer
from openai_api.serializers.responses import ResponseSerializer
from tests.helpers import ROOT

PACKAGES = ("nanollmserve_site", "inference", "openai_api")
SOURCES = [
    path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if "migrations" not in path.parts
]


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions; `from a import b` counts as a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_any(path: Path, *prefixes: str) -> set[str]:
    return {
        name
        for name in imports_of(path)
        if any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
    }


def sources(folder: str) -> list[Path]:
    return [path for path in SOURCES if path.is_relative_to(ROOT / folder)]


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("inference", ["openai_api", "nanollmserve_site", "rest_framework", "channels", "openai"]),
        ("openai_api", ["nanollmserve_site", "torch", "transformers", "openai"]),
        ("inference/engine", ["django", "inference.service", "inference.text", "transformers"]),
        ("inference/model", ["django", "inference.service", "inference.text", "inference.engine"]),
        ("inference/text", ["django", "inference.service", "inference.engine", "inference.model"]),
    ],
)
def test_imports_go_one_way(folder, forbidden):
    wrong = {module_of(path): imports_any(path, *forbidden) for path in sources(folder)}
    assert {name: found for name, found in wrong.items() if found} == {}


def test_the_api_uses_only_the_front_doors_of_inference():
    doors = ("service", "request", "errors", "text", "metrics")
    allowed = tuple(f"inference.{door}" for door in doors)
    for path in sources("openai_api"):
        inside = imports_any(path, "inference") - imports_any(path, *allowed)
        inside -= {f"inference.{door}" for door in doors}
        assert not inside, module_of(path)


def test_only_the_service_and_the_commands_of_inference_know_django():
    for path in sources("inference"):
        if imports_any(path, "django"):
            assert path.name in ("apps.py", "service.py") or "commands" in path.parts


def test_nothing_imports_in_a_circle():
    modules = {module_of(path): path for path in SOURCES}
    edges = {
        name: {
            target
            for imported in imports_of(path)
            for target in (imported, imported.rpartition(".")[0])
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    done: set[str] = set()
    while ready := [name for name in edges if name not in done and edges[name] <= done]:
        done |= set(ready)
    assert set(edges) - done == set()


def test_functions_and_modules_stay_short():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 400, module_of(path)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 40, f"{module_of(path)}.{node.name}: {length} lines"


def test_the_engine_stays_small_enough_to_read():
    """4,550 lines of code: without what is there to be read only, and without the kernels."""
    left_out = {"demo_model", "kernels"}
    paths = [path for path in sources("inference") if not left_out.intersection(path.parts)]
    assert sum(map(num_code_lines, paths)) <= 4550


def num_code_lines(path: Path) -> int:
    """Lines that are not empty, a comment, or part of a docstring."""
    text = path.read_text()
    prose: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), 1)
    return sum(number not in prose and line.strip()[:1] not in ("", "#") for number, line in lines)


def test_nothing_unsafe_is_called():
    """No pickle, no eval, no torch.load, and no text of a model marked as safe HTML."""
    for path in SOURCES:
        assert not imports_any(path, "pickle", "marshal", "shelve"), module_of(path)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "torch.load"), module_of(path)
                assert "mark_safe" not in called, module_of(path)
    for template in ROOT.glob("*/templates/**/*.html"):
        text = template.read_text()
        assert "|safe" not in text and "autoescape off" not in text, template.name


def parameters_of(serializer) -> set[str]:
    return set(serializer().fields) | set(serializer.UNSUPPORTED) | set(serializer.IGNORED)


@pytest.mark.parametrize(
    ("headings", "serializer"),
    [
        (["Shared by chat and text completions", "Chat completions"], ChatCompletionSerializer),
        (["Shared by chat and text completions", "Completions"], CompletionSerializer),
        (["Responses"], ResponseSerializer),
    ],
)
def test_every_known_parameter_is_documented(headings, serializer):
    text = (ROOT / "docs" / "api.md").read_text()
    sections = [
        text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        for heading in ["Shared parameters", *headings]
    ]
    said = "".join(sections)
    assert {name for name in parameters_of(serializer) if f"`{name}`" not in said} == set()


def test_every_module_is_on_the_map():
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in SOURCES:
        if path.name not in ("__init__.py", "apps.py") and "demo_model" not in path.parts:
            assert f"`{path.name}`" in text, module_of(path)
