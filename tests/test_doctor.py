"""`manage.py doctor`: what is wrong is found, with its mend, before a start fails of it."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from inference.config import EngineConfig
from nanollmserve_site import doctor
from nanollmserve_site.config import ServerConfig
from nanollmserve_site.doctor import FAIL, OK, WARN, Finding
from tests.helpers import ROOT, free_port


@pytest.fixture
def server(tmp_path: Path) -> ServerConfig:
    return ServerConfig(data_dir=tmp_path, port=free_port())


def only(findings) -> Finding:
    [finding] = findings
    return finding


@pytest.mark.django_db
def test_nothing_is_wrong_with_the_defaults(capsys, monkeypatch):
    monkeypatch.setattr(settings, "SERVER", replace(settings.SERVER, port=free_port()))
    call_command("doctor")
    out = capsys.readouterr().out

    assert "FAIL" not in out and "`serve` can start" in out
    topics = [line[6:20].strip() for line in out.splitlines() if line[0] != " "][:-1]
    assert topics == ["settings", "python", "packages", "data folder", "database",
                      "host and keys", "port", "device", "model", "compiler"]  # fmt: skip
    assert "float32, 32,768 tokens, fits" in out


def test_every_wrong_setting_is_named_and_nothing_else_is_tried(tmp_path: Path):
    environ = {"NANOLLM_DATA_DIR": str(tmp_path / "not" / "made"), "NANOLLM_DTYPE": "int8"}
    environ |= {"NANOLLM_MODLE": "x"}
    done = subprocess.run(
        [sys.executable, "manage.py", "doctor", "--port", "0"],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "FAIL  settings       NANOLLM_MODLE is not a setting; did you mean" in done.stdout
    assert "NANOLLM_DTYPE (--dtype) is 'int8'; allowed: auto, float32" in done.stdout
    assert "NANOLLM_PORT (--port) is '0'; allowed: a whole number from 1" in done.stdout
    assert done.stdout.count("-> ") == 3
    assert "3 settings to be mended" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "not").exists()


@pytest.mark.django_db
def test_the_exit_status_tells_that_something_has_to_be_mended(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(settings, "SERVER", replace(settings.SERVER, port=port))
        with pytest.raises(CommandError, match="1 to be mended"):
            call_command("doctor")
    out = capsys.readouterr().out
    assert f"FAIL  port           127.0.0.1:{port}: Address already in use\n" in out
    assert "-> Stop what listens there" in out


@pytest.mark.parametrize(
    ("changed", "has_keys", "level", "text", "mend"),
    [
        ({}, False, OK, "no key is asked for", ""),
        ({"host": "0.0.0.0"}, False, FAIL, "which others can reach", "apikey create"),
        ({"host": "0.0.0.0"}, True, FAIL, "name the hosts that clients", "--host"),
        ({"host": "nowhere.invalid"}, True, FAIL, "nowhere.invalid", "--host"),
        ({"allow_no_auth": True, "host": "127.0.0.2"}, False, OK, "127.0.0.2", ""),
    ],
)
def test_who_can_come_in(server, changed, has_keys, level, text, mend):
    found = only(doctor.door(replace(server, **changed), has_keys=has_keys))
    assert found.level == level and text in found.text and mend in found.mend


def test_an_open_door_is_a_warning(server):
    server = replace(server, host="0.0.0.0", allow_no_auth=True, allowed_hosts=("*",), debug=True)
    found = {finding.topic: finding.level for finding in doctor.door(server, has_keys=False)}
    assert found == {"host and keys": WARN, "debug": WARN, "tls": WARN}


def test_a_folder_that_cannot_be_written_and_a_secret_that_all_can_read(server, tmp_path):
    (tmp_path / "secret_key").touch(mode=0o644)
    space, secret = doctor.data_folder(server)
    assert space.level == OK
    assert (secret.level, secret.mend) == (WARN, f"chmod 600 {tmp_path}/secret_key")

    gone = only(doctor.data_folder(replace(server, data_dir=tmp_path / "gone")))
    assert gone.level == FAIL and "--data-dir" in gone.mend


@pytest.mark.parametrize(
    ("changed", "level", "topic", "text"),
    [
        ({"device": "cuda:7"}, FAIL, "device", "There is no device cuda:7 on this machine"),
        ({"quantization": "fp8"}, FAIL, "device", "fp8"),
        ({"model": "/no/such/folder"}, FAIL, "model", "/no/such/folder"),
        ({"model": "nobody/nothing"}, WARN, "model", "nobody/nothing"),
        ({"engine_address": Path("/tmp/no/engine")}, WARN, "engine process", "nobody listens at"),
    ],
)
def test_devices_and_models(changed, level, topic, text):
    *_, found = doctor.engine(EngineConfig(**changed))
    assert (found.level, found.topic) == (level, topic)
    assert text in found.text and found.mend


def test_a_model_that_does_not_fit(monkeypatch):
    from inference.model import loader

    monkeypatch.setattr(loader, "NUM_ACTIVATION_BYTES", 2**60)
    *_, found = doctor.engine(EngineConfig(device="cpu"))
    assert found.level == FAIL and "of memory to be loaded" in found.text
    assert "choose a smaller model" in found.mend


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = only(doctor.compiler())
    assert found.level == WARN and "there is no no-such-compiler" in found.text
    assert "g++" in found.mend


def test_packages_of_other_versions(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "0.1")
    _, found = doctor.python_and_packages()
    assert found.level == WARN and "daphne 0.1 in place of 4." in found.text
    assert found.mend.endswith("pip install -r requirements.txt")
