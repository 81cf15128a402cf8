"""What may keep a server from starting, or from being what its operator thinks: found before."""

import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from django.core.exceptions import ImproperlyConfigured

from inference.config import EngineConfig
from nanollmserve_site import env
from nanollmserve_site.config import BASE_DIR, ServerConfig
from nanollmserve_site.door import is_loopback, safe_address

MIN_FREE_BYTES = 2**30
OK, WARN, FAIL = "ok", "warn", "FAIL"


class Finding(NamedTuple):
    """`mend` is what to do about it; a server would not start with a FAIL."""

    level: str
    topic: str
    text: str
    mend: str = ""


Findings = Iterator[Finding]


def settings_findings(environ: Mapping[str, str]) -> list[Finding]:
    """All settings that are wrong, and not the first alone. Needs no settings of Django's."""
    found = []
    try:
        env.refuse_unknown(environ)
    except ImproperlyConfigured as error:
        found.append(Finding(FAIL, "settings", str(error), "Correct or remove the variable."))
    for setting in env.all_settings():
        try:
            if text := environ.get(setting.variable, ""):
                setting.parse(text)
        except ImproperlyConfigured as error:
            mend = f"Set {setting.variable} to one of these, in .env or the environment."
            found.append(Finding(FAIL, "settings", str(error), mend))
    return found


def python_and_packages() -> Findings:
    shown = ".".join(map(str, sys.version_info[:3]))
    yield Finding(OK, "python", shown)
    wrong = []
    for line in (BASE_DIR / "requirements.txt").read_text().splitlines():
        name, _, wanted = line.partition("==")
        try:
            if wanted and (there := version(name)).partition("+")[0] != wanted:
                wrong.append(f"{name} {there} in place of {wanted}")
        except PackageNotFoundError:
            wrong.append(f"{name} is missing")
    if wrong:
        mend = f"{sys.executable} -m pip install -r requirements.txt"
        yield Finding(WARN, "packages", "; ".join(wrong), mend)
    else:
        yield Finding(OK, "packages", "as in requirements.txt")


def data_folder(config: ServerConfig) -> Findings:
    folder = config.data_dir
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        mend = f"Let {os.environ.get('USER', 'this user')} write there, or name another folder "
        yield Finding(FAIL, "data folder", f"{folder} cannot be written", f"{mend}with --data-dir.")
        return
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        mend = "Free some space, or set --retention-days and run `manage.py prune`."
        yield Finding(WARN, "data folder", f"{folder}: only {free / 2**20:.0f} MiB are free", mend)
    else:
        yield Finding(OK, "data folder", f"{folder}, {free / 2**30:.0f} GiB free")
    secret = folder / "secret_key"
    if secret.exists() and stat.S_IMODE(secret.stat().st_mode) & 0o077:
        yield Finding(WARN, "secret key", f"{secret} can be read by others", f"chmod 600 {secret}")


def database() -> Findings:
    from django.db import DatabaseError, connection
    from django.db.migrations.executor import MigrationExecutor

    place = f"{connection.vendor}, {connection.settings_dict['NAME']}"
    try:
        executor = MigrationExecutor(connection)
        missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    except (DatabaseError, ImproperlyConfigured) as error:
        text = f"{place}: {' '.join(str(error).split())}"
        mend = "Is it running, and is --database-url right? For SQLite: may the file be written?"
        yield Finding(FAIL, "database", text, mend)
        return
    finally:
        connection.close()
    told = f", {missing} migrations to be applied by the next start" if missing else ""
    yield Finding(OK, "database", f"{place}{told}")


def door(config: ServerConfig, *, has_keys: bool) -> Findings:
    """Who can come in, and whether they are asked for a key."""
    try:
        address = safe_address(config, has_keys=has_keys)
    except ImproperlyConfigured as error:
        text, _, mend = str(error).partition(". ")
        yield Finding(FAIL, "host and keys", text, mend or "Name another with --host.")
        return
    if has_keys:
        told = "a key is asked for"
    else:
        told = "no key is asked for: `manage.py apikey create NAME` makes the first"
    is_open = not (has_keys or is_loopback(address))
    yield Finding(WARN if is_open else OK, "host and keys", f"{address}; {told}")
    if config.debug:
        yield Finding(WARN, "debug", "clients see the inside of the server", "Unset NANOLLM_DEBUG.")
    if not is_loopback(address) and not config.tls:
        mend = "Put a proxy with TLS before it, and set NANOLLM_TLS (docs/operations.md)."
        yield Finding(WARN, "tls", f"keys and texts go to {address} unencrypted", mend)


def port(config: ServerConfig) -> Findings:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            mend = "Stop what listens there (perhaps this server, already running), or --port N."
            text = f"{config.host}:{config.port}: {error.strerror}"
            yield Finding(FAIL, "port", text, mend)
        else:
            yield Finding(OK, "port", f"{config.host}:{config.port} is free")


def engine(config: EngineConfig) -> Findings:
    """The device, and whether the model fits. Nothing is downloaded or loaded."""
    if config.engine_address is not None:
        yield from engine_process(config.engine_address)
        return
    import torch

    from inference.errors import ModelLoadError
    from inference.model import loader
    from inference.model.memory import available_memory, readable

    try:
        device = loader.pick_device(config.device)
        loader.check_quantization(config, device)
    except ModelLoadError as error:
        yield split(FAIL, "device", error)
        return
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    free = readable(available_memory(device))
    yield Finding(
        OK, "device", f"{device}{threads}, {free} of memory free, torch {version('torch')}"
    )
    try:
        folder = loader.find_checkpoint(replace(config, local_files_only=True), lambda stage: None)
    except ModelLoadError as error:
        is_folder = Path(config.model).is_absolute() or config.local_files_only
        told = split(FAIL if is_folder else WARN, "model", error)
        yield told if is_folder else told._replace(mend="The first start downloads it, if it can.")
        return
    try:
        hf_config = loader.read_config(config, folder)
        dtype = loader.pick_dtype(config.dtype, hf_config, device)
        max_model_len = loader.pick_max_model_len(config, hf_config)
        loader.check_memory(folder, hf_config, dtype, device)
    except ModelLoadError as error:
        yield split(FAIL, "model", error)
        return
    shown = str(dtype).removeprefix("torch.")
    yield Finding(OK, "model", f"{config.model} as {shown}, {max_model_len:,} tokens, fits")


def split(level: str, topic: str, error: Exception) -> Finding:
    """These sentences say what is wrong, and after a colon or a full stop what to do."""
    text, mark, mend = str(error).partition(": ")
    if not mark:
        text, _, mend = str(error).partition(". ")
    return Finding(level, topic, text, mend or f"Choose another with --{topic}.")


def engine_process(address: Path) -> Findings:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(address))
        except OSError as error:
            text = f"nobody listens at {address} ({error.strerror})"
            yield Finding(WARN, "engine process", text, "Start it: python manage.py engine")
        else:
            yield Finding(OK, "engine process", f"listens at {address}")


def compiler() -> Findings:
    """Without one the CPU's kernels cannot be made, and everything takes several times as long."""
    from inference.model.kernels.build import BuildError, built_library

    try:
        library = built_library()
    except (BuildError, OSError) as error:
        mend = (
            "apt-get install g++ (or set CXX). Without the kernels a CPU is several times slower."
        )
        yield Finding(WARN, "compiler", f"no kernels: {error}", mend)
    else:
        yield Finding(OK, "compiler", f"kernels in {library}")


def examine(
    server: ServerConfig, engine_config: EngineConfig, has_keys: Callable[[], bool]
) -> Findings:
    """Everything; `has_keys` asks the database, and is asked only where there may be one."""
    yield Finding(OK, "settings", "all are allowed")
    yield from python_and_packages()
    yield from data_folder(server)
    yield from database()
    yield from door(server, has_keys=has_keys())
    yield from port(server)
    yield from engine(engine_config)
    if engine_config.engine_address is None and engine_config.device in ("auto", "cpu"):
        yield from compiler()


def report(finding: Finding) -> str:
    lines = f"{finding.level:4}  {finding.topic:14} {finding.text}"
    return f"{lines}\n{'':6}{'':14} -> {finding.mend}" if finding.mend else lines
