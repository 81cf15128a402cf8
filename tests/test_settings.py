import argparse
import logging
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from inference.config import EngineConfig
from nanollmserve_site import env, state
from nanollmserve_site.config import BASE_DIR, ServerConfig
from nanollmserve_site.request_id import AddRequestId
from openai_api.config import ApiConfig

SETTINGS = [
    (config, setting) for config in env.CONFIGS for setting in list(env.settings_of(config))
]
IDS = [setting.name for _, setting in SETTINGS]


def other_than_default(setting: env.Setting) -> str:
    """An allowed value as one would write it, which is not the default."""
    if setting.kind is bool:
        return str(not setting.default)
    if setting.kind is tuple:
        return "a,b"
    if setting.kind in (int, "bytes"):
        return str(max(setting.facts.get("minimum", 0), 123))
    if "choices" in setting.facts:
        return str(setting.facts["choices"][-1])
    samples = {"device": "cuda:1", "gpu_memory_utilization": "0.5", "data_dir": "/somewhere/else"}
    samples["database_url"] = "postgresql://localhost/name"
    return samples.get(setting.name, "1")


def from_flags(*flags: str) -> dict[str, str]:
    parser, environ = argparse.ArgumentParser(), {}
    env.add_flags(parser)
    env.apply_flags(vars(parser.parse_args(flags)), environ)
    return environ


@pytest.mark.parametrize(("config", "setting"), SETTINGS, ids=IDS)
def test_every_setting_is_a_variable_and_a_flag(config: type, setting: env.Setting) -> None:
    text = other_than_default(setting)
    if setting.kind is bool:
        flags = [setting.flag if text == "True" else setting.flag.replace("--", "--no-")]
    else:
        flags = [setting.flag, *(text.split(",") if setting.kind is tuple else [text])]

    by_variable = env.read(config, {setting.variable: text})
    by_flag = env.read(config, from_flags(*flags))

    assert by_flag == by_variable
    assert getattr(by_variable, setting.name) != setting.default


@pytest.mark.parametrize("config", env.CONFIGS)
def test_defaults_are_used_where_nothing_is_set_and_are_allowed(config: type) -> None:
    assert env.read(config, {}) == config()
    assert env.read(config, {s.variable: "" for s in env.settings_of(config)}) == config()
    for setting in env.settings_of(config):
        if setting.kind in (int, float, str) and setting.default is not None:
            assert setting.parse(str(setting.default)) == setting.default


def test_the_model_may_stand_without_its_flag() -> None:
    assert from_flags("org/model", "--port", "1") == {
        "NANOLLM_MODEL": "org/model",
        "NANOLLM_PORT": "1",
    }


def test_flags_that_are_not_given_leave_the_environment_alone() -> None:
    assert from_flags() == {}


@pytest.mark.parametrize(
    ("config", "variable", "value", "allowed"),
    [
        (ServerConfig, "NANOLLM_PORT", "http", "a whole number from 1 to 65535"),
        (ServerConfig, "NANOLLM_PORT", "0", "a whole number from 1 to 65535"),
        (ServerConfig, "NANOLLM_TLS", "yes", "true, false, 1 or 0"),
        (ServerConfig, "NANOLLM_LOG_LEVEL", "info", "DEBUG, INFO, WARNING, ERROR"),
        (EngineConfig, "NANOLLM_DTYPE", "int8", "auto, float32, bfloat16, float16"),
        (EngineConfig, "NANOLLM_DEVICE", "cuda:", "auto, cpu, cuda, cuda:N"),
        (EngineConfig, "NANOLLM_MAX_NUM_SEQS", "-1", "a whole number, at least 1"),
        (EngineConfig, "NANOLLM_GPU_MEMORY_UTILIZATION", "nan", "a number from 0.05 to 1.0"),
        (EngineConfig, "NANOLLM_KV_CACHE_MEMORY", "2 elephants", "512MiB"),
        (ApiConfig, "NANOLLM_PING_INTERVAL_S", "inf", "a number, at least 0.05"),
    ],
)
def test_a_bad_value_is_named(config: type, variable: str, value: str, allowed: str) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        env.read(config, {variable: value})

    for part in (variable, variable[8:].lower().replace("_", "-"), repr(value), allowed):
        assert part in str(caught.value)


def test_a_misspelt_variable_is_refused() -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"LENGTH .*did you mean NANOLLM_MAX_MODEL_LEN\?"
    ):
        env.refuse_unknown({"PATH": "/bin", "NANOLLM_MAX_MODEL_LENGTH": "9"})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("4096B", 4096),
        ("2GiB", 2 * 2**30),
        ("1.5 MiB", 3 * 2**19),
        ("10kb", 10_000),
        ("3GB", 3 * 10**9),
    ],
)
def test_sizes(text: str, value: int) -> None:
    config = env.read(EngineConfig, {"NANOLLM_KV_CACHE_MEMORY": text})
    assert config.kv_cache_memory == value


def test_the_table_of_settings_is_up_to_date() -> None:
    assert (BASE_DIR / "docs/settings.md").read_text() == env.markdown(), "run `make docs`"


def test_the_example_names_settings_that_exist() -> None:
    lines = (BASE_DIR / ".env.example").read_text().splitlines()
    pairs = [line.removeprefix("# ").split("=", 1) for line in lines if "=" in line]
    environ = {name: value for name, value in pairs if name.startswith(env.PREFIX)}

    env.refuse_unknown(environ)
    for config in env.CONFIGS:
        env.read(config, environ)
    assert environ


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    shutil.copytree(BASE_DIR / "nanollmserve_site", tmp_path / "nanollmserve_site")
    (tmp_path / ".env").write_text("NANOLLM_PORT=1111\nNANOLLM_SEED=2222\nHF_TOKEN=secret\n")
    environ = {"PYTHONPATH": str(BASE_DIR), "NANOLLM_PORT": "3333"}
    code = (
        "import os; from nanollmserve_site.settings import ENGINE, SERVER;"
        "print(SERVER.port, ENGINE.seed, os.environ['HF_TOKEN'], SERVER.data_dir)"
    )

    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environ, text=True, capture_output=True
    )

    assert shown.stdout.split() == ["3333", "2222", "secret", str(tmp_path / "data")], shown.stderr


def test_the_secret_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"
    with ThreadPoolExecutor(8) as threads:
        keys = set(threads.map(state.secret_key, [data_dir] * 8))

    assert len(keys) == 1
    assert len(keys.pop()) > 50
    assert [path.name for path in data_dir.iterdir()] == ["secret_key"]
    assert stat.S_IMODE((data_dir / "secret_key").stat().st_mode) == 0o600
    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700


def test_a_data_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImproperlyConfigured, match=f"NANOLLM_DATA_DIR.*{tmp_path}.*directory"):
        state.secret_key(tmp_path / "file" / "data")


def test_a_second_server_knows_that_it_is_not_the_only_one(tmp_path: Path) -> None:
    assert state.only_server(tmp_path)
    assert not state.only_server(tmp_path)


def test_a_caller_cannot_write_a_line_of_the_log():
    record = logging.LogRecord("a", 20, "", 0, "unknown: %s", ("x\n2026 forged\x1b[0m",), None)
    AddRequestId().filter(record)

    assert record.getMessage() == r"unknown: x\n2026 forged\x1b[0m"
