"""What is done before the first request: tables, somebody who may log in, and old rows closed."""

import logging
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection, connections
from django.db.migrations.executor import MigrationExecutor

from nanollmserve_site import state
from openai_api import response_rows

logger = logging.getLogger("nanollmserve")


def prepare() -> bool:
    """Safe to be done by several processes at once. True for the only server of its data."""
    with locked():
        migrate()
        if not get_user_model().objects.filter(is_superuser=True).exists():
            make_admin()
        alone = only_server()  # otherwise what looks abandoned may be another one's work
        if alone:
            response_rows.reconcile()
    connections.close_all()
    return alone


def prepare_tables() -> None:
    """For a command that may come before the first start."""
    with locked():
        migrate()


@contextmanager
def locked() -> Iterator[None]:
    """One process at a time, on this database."""
    with state.locked(settings.SERVER.data_dir):
        if settings.SERVER.database_url is None:
            yield
            return
        from nanollmserve_site.postgresql import presence  # which needs psycopg

        with presence.locked():
            yield


def only_server() -> bool:
    """Whether no other server uses this database; from now on this one does."""
    if settings.SERVER.database_url is None:
        return state.only_server(settings.SERVER.data_dir)
    from nanollmserve_site.postgresql import presence

    return presence.only_server()


def migrate() -> None:
    executor = MigrationExecutor(connection)
    missing = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if missing:
        call_command("migrate", verbosity=0, interactive=False)
    done = f", {missing} migrations applied" if missing else ""
    logger.info("database: %s%s", connection.settings_dict["NAME"], done)


def make_admin() -> None:
    """The password goes to the terminal and nowhere else: logs are kept, and read by others."""
    password = secrets.token_urlsafe(12)
    get_user_model().objects.create_superuser("admin", password=password)
    sys.stderr.write(
        f'\n    Admin user "admin", password "{password}" (shown only this once;\n'
        "    another one: python manage.py changepassword admin)\n\n"
    )
