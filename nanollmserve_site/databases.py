"""Where things are kept, as Django wants to be told: a SQLite file, or PostgreSQL."""

from typing import Any

from django.core.exceptions import ImproperlyConfigured

from nanollmserve_site.config import ServerConfig

# IMMEDIATE: a transaction that reads before it writes would otherwise fail with "database is
# locked" as soon as another one writes, whatever the timeout.
PRAGMAS = [
    "journal_mode=WAL",
    "synchronous=NORMAL",
    "busy_timeout=20000",
    "journal_size_limit=67108864",
    "mmap_size=134217728",
]


def database(config: ServerConfig) -> dict[str, Any]:
    """One entry of Django's DATABASES. Raises ImproperlyConfigured."""
    return sqlite(config) if config.database_url is None else postgresql(config)


def sqlite(config: ServerConfig) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": config.data_dir / "db.sqlite3",
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "; ".join(f"PRAGMA {pragma}" for pragma in PRAGMAS),
        },
        # A file, not memory: a live server's threads each have a connection of their own.
        "TEST": {"NAME": config.data_dir / "test.sqlite3"},
    }


def postgresql(config: ServerConfig) -> dict[str, Any]:
    """The URL as libpq understands it, with all of its parameters."""
    named = "NANOLLM_DATABASE_URL (--database-url)"
    try:
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:
        raise ImproperlyConfigured(
            f"{named} needs psycopg: pip install -r requirements-postgres.txt."
        ) from None
    try:
        given = conninfo_to_dict(config.database_url)
    except ProgrammingError as error:
        raise ImproperlyConfigured(f"{named}: {error}".strip()) from None
    if not given.get("dbname"):
        raise ImproperlyConfigured(f"{named} names no database.")
    places = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host"}
    places["PORT"] = "port"
    entry = {name: given.pop(parameter, "") for name, parameter in places.items()}
    patience = {"connect_timeout": 5, "options": "-c lock_timeout=20s"}
    pool = {"size": config.database_connections}
    return entry | {
        "ENGINE": "nanollmserve_site.postgresql",
        "OPTIONS": patience | given | {"pool": pool},
    }
