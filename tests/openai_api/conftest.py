import pytest

from inference import service
from openai_api import keys, limits
from tests.helpers import in_process_client, scripted_engine

HELLO = "Hello, wörld 🎉!"


@pytest.fixture(autouse=True)
def nothing_is_remembered_of_keys():
    """Between tests tables are emptied without a word to anyone."""
    keys.outdate()
    limits._accounts.clear()


@pytest.fixture
def script():
    """What the model says to a prompt; override it for more than a greeting."""
    return lambda prompt: HELLO


@pytest.fixture
def engine(script):
    engine = scripted_engine(script)
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()


@pytest.fixture
def client(engine, transactional_db):
    return in_process_client()
