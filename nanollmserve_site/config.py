"""What the server around the API can be told. Each field is also a flag and a variable."""

from dataclasses import dataclass
from pathlib import Path

from inference.config import setting

BASE_DIR = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Settings of the web server, and of what it keeps on disk."""

    host: str = setting("127.0.0.1", "Address that `serve` listens on.")
    port: int = setting(8000, "Port that `serve` listens on.", minimum=1, maximum=65535)
    allow_no_auth: bool = setting(
        False, "Let `serve` listen beyond this machine although no API key is asked for."
    )
    data_dir: Path = setting(
        BASE_DIR / "data",
        "Folder of the database and the secret key.",
        shown_default="`data/` beside `manage.py`",
    )
    database_url: str | None = setting(
        None,
        "PostgreSQL in place of the SQLite file in the data folder; needs "
        "requirements-postgres.txt.",
        pattern=r"postgres(ql)?://.*",
        allowed="a URL such as postgresql://user:password@host:5432/name",
    )
    database_connections: int = setting(
        10, "Most connections to PostgreSQL at a time.", minimum=2, maximum=1000
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "Host names that clients may use, besides localhost and the host setting; * for any."
    )
    csrf_trusted_origins: tuple[str, ...] = setting(
        (), "Origins trusted for posts to the admin, such as https://llm.example.org."
    )
    tls: bool = setting(
        False, "A proxy serves this over TLS: secure cookies, HSTS, trust in X-Forwarded-Proto."
    )
    shutdown_grace_s: float = setting(
        30.0, "Seconds that running requests have to end after SIGTERM.", minimum=0
    )
    upload_timeout_s: float = setting(
        120.0, "Seconds in which a request must have arrived, headers and body.", minimum=1
    )
    send_timeout_s: float = setting(
        60.0, "Seconds after which a client that takes nothing of its answer is cut off.", minimum=1
    )
    debug: bool = setting(False, "Django's debug mode; never on a server that others reach.")
    log_level: str = setting(
        "INFO", "Least level of log lines shown.", choices=("DEBUG", "INFO", "WARNING", "ERROR")
    )
    log_format: str = setting(
        "text", "How log lines are written: text, or a JSON object each.", choices=("text", "json")
    )
