"""A chat template that hides nothing: the model is told all messages and tools as JSON."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inference import service
from inference.service import EngineClient
from tests.helpers import scripted_engine

TEMPLATE = (
    "{{ {'messages': messages, 'tools': tools or [], 'effort': reasoning_effort or ''} | tojson }}"
    "{# <think></think> #}"
)


class Listener:
    """A script that writes down what it was told."""

    def __init__(self) -> None:
        self.prompts: list[dict] = []
        self.answer: Callable[[dict], str] = lambda prompt: "ok"

    def __call__(self, prompt: str) -> str:
        self.prompts.append(json.loads(prompt))
        return self.answer(self.prompts[-1])

    @property
    def messages(self) -> list[dict]:
        """What it was told last."""
        return self.prompts[-1]["messages"]

    @property
    def tools(self) -> list[str]:
        return [tool["function"]["name"] for tool in self.prompts[-1]["tools"]]


@contextmanager
def listening_engine(script: Listener) -> Iterator[EngineClient]:
    engine = scripted_engine(script, max_model_len=65536)
    engine.model.tokenizer.chat_template = TEMPLATE
    service.install(engine)
    yield engine
    service.install(None)
    engine.close()
