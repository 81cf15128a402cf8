"""What several tests need: a tokenizer of bytes, an engine with a script, a live server."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from inference.engine.client import EngineClient, QueueLimits
from inference.engine.core import EngineCore
from inference.engine.scheduler import EngineLimits
from inference.engine.thread import ThreadEngine
from inference.model.inputs import ModelInputs
from inference.request import ModelInfo
from tests.postgres import variables

ROOT = Path(__file__).parents[1]

CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    "{# a reasoning model's: <think></think> #}"
)


def byte_tokenizer(words: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """One token for each byte, for the three special ones of ChatML, and for each of `words`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer.add_tokens(list(words))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")


FAILURE = "\a"  # where the script has this character the model's step fails
Script = Callable[[str], str]  # the prompt's text to the answer's


class ScriptedRunner:
    """A model that answers what the script says, a token at a time, and then ends."""

    num_blocks = 4096

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        script: Script,
        before_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.tokenizer, self.script, self.before_step = tokenizer, script, before_step
        self._prompts: dict[int, list[int]] = {}
        self._answers: dict[int, tuple[int, list[int]]] = {}

    def forward(self, inputs: ModelInputs) -> Tensor:
        self.before_step()
        logits, row = torch.zeros(len(inputs.logit_rows), len(self.tokenizer)), 0
        token_ids = inputs.tokens(torch.device("cpu")).tolist()
        columns = (inputs.counts, inputs.context_lens, inputs.sequence_ids)
        for count, context_len, key in zip(*columns, strict=True):
            tokens = token_ids[row : row + count]
            row += count
            if context_len == count:  # a sequence begins, perhaps under the id of a dead one
                self._prompts[key] = []
                self._answers.pop(key, None)
            self._prompts[key] += tokens
            if row - 1 in inputs.logit_rows:
                token = self._next(key, context_len)
                logits[inputs.logit_rows.index(row - 1), token] = 20.0
        return logits

    def _next(self, key: int, context_len: int) -> int:
        if key not in self._answers:
            text = self.script(self.tokenizer.decode(self._prompts[key]))
            token_ids = [*self.tokenizer.encode(text), self.tokenizer.eos_token_id]
            self._answers[key] = context_len, token_ids
        prompt_len, answer = self._answers[key]
        token = answer[min(context_len - prompt_len, len(answer) - 1)]
        if self.tokenizer.decode([token]) == FAILURE:
            raise RuntimeError("a secret of the inside")
        return token


def scripted_engine(
    script: Script,
    *,
    max_model_len: int = 2048,
    max_num_seqs: int = 32,
    words: Iterable[str] = (),
    before_step: Callable[[], object] = lambda: None,
    step_timeout_s: float = 60,
) -> EngineClient:
    """An engine whose model says `script(prompt)`. Close it when done.

    `words` are the tokens that are no bytes; `before_step` may hold up the model, and raise.
    """
    tokenizer = byte_tokenizer(words)
    tokenizer.chat_template = CHAT_TEMPLATE
    limits = EngineLimits(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        block_size=32,
        eos_token_ids=frozenset({tokenizer.eos_token_id}),
        enable_prefix_caching=False,
    )
    info = ModelInfo(
        name="m",
        tokenizer=tokenizer,
        max_model_len=max_model_len,
        vocab_size=len(tokenizer),
        eos_token_ids=limits.eos_token_ids,
        generation_defaults={},
        fingerprint="fp_1",
        created=1764000000,
    )
    engine = ThreadEngine(
        lambda report: (EngineCore(ScriptedRunner(tokenizer, script, before_step), limits), info),
        QueueLimits(64),
        step_timeout_s=step_timeout_s,
    )
    while engine.status.state == "loading":
        time.sleep(0.001)
    return engine


def in_process_client(api_key: str = "unused") -> openai.AsyncOpenAI:
    """The official client on the ASGI application of this process, without a server."""
    from nanollmserve_site.handlers import http_application

    transport = httpx2.ASGITransport(app=http_application())
    return openai.AsyncOpenAI(
        base_url="http://localhost/v1",
        api_key=api_key,
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport),
    )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class LiveServer:
    """A server process on the demo model, started as an operator would."""

    def __init__(self, data_dir: Path, port: int, process: subprocess.Popen, log: Path) -> None:
        self.data_dir, self.port, self.process, self.log = data_dir, port, process, log
        self.url = f"http://127.0.0.1:{port}"
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0)
        self.async_client = lambda: openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="unused", max_retries=0
        )

    @property
    def password(self) -> str:
        return re.search(r'password "([^"]+)"', self.log.read_text())[1]


@contextmanager
def live_server(data_dir: Path, *, serve: bool = False, **environ: str) -> Iterator[LiveServer]:
    """`daphne nanollmserve_site.asgi:application`, or `manage.py serve`, ready to answer."""
    port, log = free_port(), data_dir / "server.log"
    asgi = ["-b", "127.0.0.1", "-p", str(port), "nanollmserve_site.asgi:application"]
    command = ["manage.py", "serve", "--port", str(port)] if serve else ["-m", "daphne", *asgi]
    settings = {"NANOLLM_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    settings |= {"NANOLLM_SHUTDOWN_GRACE_S": "1"} | variables(data_dir) | environ
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = LiveServer(data_dir, port, process, log)
    try:
        wait_until_ready(server)
        yield server
    finally:
        server.client.close()
        process.terminate()
        process.wait(20)


def wait_until_ready(server: LiveServer, num_looks: int = 900) -> None:
    """Looks and not seconds are counted: those go by, too, while the machine stands still."""
    for _ in range(num_looks):
        if server.process.poll() is not None:
            break
        try:
            if httpx2.get(f"{server.url}/health/ready").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"the server did not get ready:\n{server.log.read_text()}")
