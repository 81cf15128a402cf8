import pytest

from tests.helpers import live_server


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One daphne on the demo model for all tests that only talk to it."""
    with live_server(tmp_path_factory.mktemp("live")) as server:
        yield server
