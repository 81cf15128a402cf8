"""What has to be there before the first request: the tables, and somebody who may log in."""

import logging
import secrets
import sys

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from nanollmserve_site.state import locked

logger = logging.getLogger("nanollmserve")


def prepare() -> None:
    with locked(settings.SERVER.data_dir):
        migrate()
        if not get_user_model().objects.filter(is_superuser=True).exists():
            make_admin()


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
