"""What the programmes found, kept in `docs/reliability/` and written as `docs/reliability.md`."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDER, PAGE = ROOT / "docs/reliability", ROOT / "docs/reliability.md"
SERVER = ["inference", "openai_api", "nanollmserve_site", "requirements.txt"]  # what is tried
MARK = "<!-- From here on: `python -m tests.reliability --report` -->\n"  # above it is prose
PROMISES = {
    "mixed": "Clients of all kinds at once each get all that they asked for.",
    "overload": "Who comes when the queue is full hears of it at once, and health checks go on.",
    "burst": "Many connections in the same moment are all accepted.",
    "disconnect": "Who leaves frees its place, its cache, and all that was opened for it.",
    "slow_reader": "Who does not read costs no memory, and is cut off.",
    "slow_upload": "An upload that trickles or stops is given up, and disturbs nobody.",
    "sigterm": "At SIGTERM every stream ends properly, within the grace time.",
    "kill9": "What a client saw completed outlives `kill -9`, byte for byte.",
    "engine": "A step that fails, hangs or dies costs those it must, and the engine comes back.",
    "db": "While the database is locked, full or away nothing acknowledged is lost.",
    "preempt": "A cache too small for all changes no greedy answer.",
    "fuzz": "No body, frame or broken HTTP gets a 5xx, or anything but OpenAI's errors.",
    "schema": "Nothing that the OpenAPI document allows, or forbids, gets a 5xx.",
    "soak": "Memory, descriptors and threads stay level.",
}


def save(result: dict, bounds: dict[str, float]) -> None:
    """Keep a result, with what has to be known to get it again."""
    words = [result["name"], *(f"{name}={value}" for name, value in bounds.items())]
    about = {
        "command": f'make reliability ARGS="{" ".join(words)}"',
        "commit": _output("git", "log", "-1", "--format=%h", "--", *SERVER),
        "changed": bool(_output("git", "status", "--porcelain", "--", *SERVER)),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load_of_a_minute": round(os.getloadavg()[0], 1),
    }
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps(result | about, indent=1, ensure_ascii=False)
    (FOLDER / f"{'-'.join(words)}.json").write_text(text + "\n")


def machine() -> str:
    model = "an unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return f"{os.cpu_count()} cores of {model}, {platform.system()}"


def _output(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


def page() -> str:
    """The page's prose as it is, and below it what has been kept."""
    prose = PAGE.read_text().partition(MARK)[0]
    kept = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    results = sorted(kept, key=lambda found: list(PROMISES).index(found["name"]))
    lines = ["| Promise | Programme | Targets met |", "| --- | --- | --- |"]
    for found in results:
        missed = f"all but: {', '.join(found['missed'])}" if found["missed"] else "all"
        name = found["name"]
        lines.append(f"| {PROMISES[name]} | [`{name}`](#{name}) | {missed} |")
    return prose + MARK + "\n" + "\n".join([*lines, *map(section, results)]) + "\n"


def section(found: dict) -> str:
    lines = [
        "",
        f"## {found['name']}",
        "",
        f"{PROMISES[found['name']]} `{found['command']}`, {found['date']}, commit "
        f"`{found['commit']}`{' with changes' if found['changed'] else ''}, on "
        f"{found['machine']} (load {found['load_of_a_minute']}).",
        "",
        "| Target | Figure | At most | Met |",
        "| --- | --- | --- | --- |",
    ]
    for check, target in found["targets"].items():
        numbers = f"{shown(target.get('figure', ''))} | {shown(target.get('at_most', ''))}"
        lines.append(f"| {check} | {numbers} | {'yes' if target['met'] else '**no**'} |")
    facts = [f"{name} {shown(value)}" for name, value in found["figures"].items()]
    return "\n".join([*lines, "", "Figures: " + "; ".join(facts) + "."])


def shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {shown(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(shown, value)) or "none"
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
