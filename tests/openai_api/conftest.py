import pytest

from inference import service
from tests.helpers import in_process_client, scripted_engine

HELLO = "Hello, wörld 🎉!"


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
