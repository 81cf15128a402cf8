"""The programme as it is, but that times are for a machine that has nothing else to do."""

import pytest

from tests.reliability import engine
from tests.test_serve import needs_demo_model


@pytest.mark.slow
@needs_demo_model
async def test_engine():
    result = await engine.run()
    assert not set(result["missed"]) - {f"the engine is back in {engine.BACK_S} s"}, result
