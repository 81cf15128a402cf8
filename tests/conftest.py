"""The tests' settings are theirs alone: Django is set up here, in a folder that goes away.

pytest-django would read the settings before this file, were they named in pyproject.toml.
"""

import asyncio
import os
import tempfile

import django
import pytest
from asgiref.sync import sync_to_async
from django.db import connections

from tests import postgres

DATA_DIR = tempfile.TemporaryDirectory(prefix="nanollmserve-tests-")

for name in [name for name in os.environ if name.startswith("NANOLLM_")]:
    del os.environ[name]
os.environ["NANOLLM_DATA_DIR"] = DATA_DIR.name
os.environ |= postgres.variables(DATA_DIR.name)
os.environ["OMP_NUM_THREADS"] = "1"  # more only wait for each other on so little work
os.environ["PYTHON_DOTENV_DISABLED"] = "true"  # a developer's .env
os.environ["DJANGO_SETTINGS_MODULE"] = "nanollmserve_site.settings"
django.setup()


def pytest_configure() -> None:
    """Without a GPU Triton interprets its kernels: it decides on that when it is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One daphne on the demo model for all tests that only talk to it."""
    from tests.helpers import live_server  # which needs Django's apps

    with live_server(tmp_path_factory.mktemp("live")) as server:
        yield server


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    """PostgreSQL does not drop a database to which somebody is still connected."""
    yield
    asyncio.run(sync_to_async(connections.close_all)())  # of the thread of tests' own queries


@pytest.fixture
def _django_db_helper(_django_db_helper):
    """What a test has left to be written is written before its tables are emptied."""
    yield
    from openai_api import database  # which needs Django's apps

    database._writer.submit(int).result()
