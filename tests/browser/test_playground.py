"""The playground as a person uses it: a real browser, a live daphne, the demo model."""

import json
import subprocess
import sys
import time

import httpx2
import jsonschema
import pytest

from tests.browser.chromium import Page, chromium, program
from tests.helpers import LiveServer

pytestmark = pytest.mark.skipif(program() is None, reason="no Chromium: apt-get install chromium")

QUESTION = "What is a KV cache?"
ANSWER = "A KV cache stores the attention keys and values of earlier tokens"
HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> **<b>bold</b>** "
    "`<i>code</i>` [here](javascript:window.hacked=1) [there](https://example.org/<u>)"
)
TABS = ("chat", "responses", "schema", "tools", "logprobs", "code", "raw")


class Playground:
    """What one does on the page; `log` is the conversation of the tab that is open."""

    def __init__(self, page: Page, server: LiveServer) -> None:
        self.page, self.server = page, server

    def open(self) -> None:
        self.page.open(f"{self.server.url}/playground/")
        self.page.wait("document.querySelector('#model option')")
        self.choose(temperature="0")

    def tab(self, name: str) -> None:
        self.page.click(f"#tab-{name}")
        self.page.wait(f"!document.querySelector('#{name}').hidden")

    def choose(self, **settings: str) -> None:
        for name, value in settings.items():
            self.page.run(f"document.querySelector('#{name}').value = {json.dumps(value)}")

    def begin(self, text: str) -> None:
        self.page.fill("#prompt", text)
        self.page.press("Enter")

    def ask(self, text: str) -> str:
        """The answer, when it has ended."""
        before = self.count(".message.assistant")
        self.begin(text)
        self.ended(before + 1)
        return self.last(".message.assistant .passage:not(details *)")

    def ended(self, num_answers: int) -> None:
        self.page.wait(
            f"{self._all('.message.assistant:not([aria-busy])')}.length >= {num_answers}"
        )

    def stop(self) -> None:
        """The button moves while the first lines come, and the mouse may miss it."""
        while self.page.run("!document.querySelector('#stop').hidden"):
            self.page.click("#stop")
            time.sleep(0.2)

    def count(self, selector: str) -> int:
        return self.page.run(f"{self._all(selector)}.length")

    def last(self, selector: str) -> str:
        return self.page.run(f"[...{self._all(selector)}].at(-1)?.innerText")

    def facts(self) -> dict[str, str]:
        """What is said of the last answer."""
        pairs = f"[...[...{self._all('.facts')}].at(-1).children]"
        return dict(self.page.run(f"{pairs}.map((fact) => fact.innerText.split('\\n'))"))

    def also_send(self, **fields) -> None:
        """What the page has no field for."""
        self.page.run(
            f"""(() => {{
                const before = window.before ??= window.fetch;
                window.fetch = (url, options) => before(url, options?.body ? {{
                    ...options,
                    body: JSON.stringify({{...JSON.parse(options.body), ...{json.dumps(fields)}}}),
                }} : options);
            }})()"""
        )

    def _all(self, selector: str) -> str:
        inside = f"#playground section:not([hidden]) {selector}"
        return f"document.querySelectorAll({json.dumps(inside)})"


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    """Logged in, by way of the address that the server tells at its start."""
    with chromium(tmp_path_factory.mktemp("chromium")) as page:
        page.open(server.url)
        page.wait("document.querySelector('#id_username')")
        page.fill("#id_username", "admin")
        page.fill("#id_password", server.password)
        page.press("Enter")
        page.wait("location.pathname === '/playground/'")
        yield page


@pytest.fixture
def playground(page, server):
    playground = Playground(page, server)
    page.resize(1280, 800)
    playground.open()
    page.complaints.clear()
    yield playground
    page.run("0")  # what it complained of has come by now
    assert page.complaints == []


def health(server: LiveServer) -> dict:
    return httpx2.get(f"{server.url}/health").json()


def wait_until_free(server: LiveServer) -> None:
    deadline = time.monotonic() + 10
    while (now := health(server))["num_running"] or now["kv_cache_usage"]:
        assert time.monotonic() < deadline, now
        time.sleep(0.05)


def test_a_chat_streams_and_says_how_it_went(playground):
    playground.choose(reasoning_effort="medium", max_tokens="400")
    playground.also_send(ignore_eos=True)
    playground.begin(QUESTION)
    playground.page.wait("document.querySelector('#chat [aria-busy] > .passage')?.innerText")
    assert playground.page.run("document.querySelector('#stop').hidden") is False
    playground.ended(1)
    facts = playground.facts()
    assert facts["end"] == "length"
    assert facts["answer"].startswith("400 tokens (") and facts["answer"].endswith(" thought)")
    assert facts["first token"].endswith(" ms") and facts["speed"].endswith(" tok/s")
    assert playground.page.run("document.querySelector('#chat details').open") is False
    playground.page.click("#chat summary")
    assert "KV cache" in playground.page.text("#chat details .passage")
    assert ANSWER in playground.last(".message.assistant > .passage")


def test_a_conversation_goes_on_is_asked_again_and_cleared(playground):
    first, second = playground.ask(QUESTION), playground.ask("Why does it matter?")
    assert first.startswith(ANSWER)
    assert playground.facts()["end"] == "stop"
    playground.page.click("#again")
    playground.page.wait("!document.querySelector('#again').disabled")
    assert playground.count(".message") == 4
    assert playground.last(".message.assistant .passage") == second
    playground.tab("raw")
    raw = playground.page.text("#raw pre")
    sent = json.loads(raw[raw.index("{") : raw.index("\n\nHTTP 200\n")])
    assert [message["role"] for message in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["messages"][1]["content"] == first
    assert raw.rstrip().endswith("data: [DONE]")
    playground.tab("chat")
    playground.page.click("#clear")
    assert playground.count(".message") == 0


def test_stop_frees_the_engine_and_the_history_tells(playground):
    wait_until_free(playground.server)
    playground.choose(max_tokens="20000")
    playground.also_send(ignore_eos=True)
    playground.begin(QUESTION)
    playground.page.wait("document.querySelector('#chat [aria-busy] .passage')?.innerText")
    assert health(playground.server)["kv_cache_usage"] > 0
    playground.stop()
    playground.ended(1)
    assert playground.facts()["end"] == "stopped"
    assert len(playground.last(".message.assistant .passage")) > 10
    wait_until_free(playground.server)
    playground.page.click("#chat .facts a")
    playground.page.wait("document.querySelector('.field-state')")
    row = playground.page.text("#content")
    assert "client left" in row and "POST /playground/v1/chat/completions" in row
    assert "admin" in playground.page.text(".field-user")


@pytest.mark.parametrize("tab", ["chat", "responses", "logprobs"])
def test_what_a_model_writes_stays_text(playground, tab):
    playground.tab(tab)
    playground.also_send(structured_outputs={"choice": [HOSTILE]})
    shown = playground.ask("Hack me")
    if tab == "logprobs":
        tokens = playground.page.text("#logprobs .tokens")
        assert tokens.strip() == HOSTILE
    else:
        assert "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>" in shown
        assert "<b>bold</b>" in shown and "[here](javascript:window.hacked=1)" in shown
        assert playground.count(".passage :is(strong, code)") == 2  # Markdown it is
    assert playground.count(":is(script, img, b, i, u, iframe)") == 0
    assert playground.page.run("[...document.links].every((a) => /^https?:/.test(a.href))")
    assert playground.page.run("window.hacked") is None


def test_responses_continue_each_other_and_are_in_the_admin(playground):
    playground.tab("responses")
    assert playground.ask("What is prefill?").startswith("Prefill is the first phase")
    first = playground.page.run("document.querySelector('#previous').value")
    assert playground.ask("Why?").startswith("Prefill decides")  # it knows of what
    assert playground.count(".chain li") == 2
    second = playground.page.run("document.querySelector('#previous').value")
    assert first.startswith("resp_") and second not in ("", first)
    playground.page.click("#responses .chain li:first-child button")
    playground.ask("What is decode?")
    branch = playground.page.run("document.querySelector('#previous').value")
    client = playground.server.client
    assert client.responses.retrieve(second).previous_response_id == first
    assert client.responses.retrieve(branch).previous_response_id == first
    playground.page.click("#responses .chain li:nth-child(2) a")
    playground.page.wait("document.querySelector('nav.chain [aria-current]')")
    assert second in playground.page.text("nav.chain [aria-current]")
    assert first in playground.page.text("nav.chain") and branch not in playground.page.text(
        "nav.chain"
    )
    assert "Prefill decides" in playground.page.text("#content")


def test_a_stopped_response_is_not_continued(playground):
    playground.tab("responses")
    playground.also_send(ignore_eos=True)
    playground.choose(max_tokens="20000")
    playground.begin("What is prefill?")
    playground.page.wait("document.querySelector('#responses [aria-busy] .passage')?.innerText")
    playground.page.press("Escape")
    playground.ended(1)
    assert "cancelled" in playground.page.text("#responses .chain")
    assert playground.page.run("document.querySelector('#previous').value") == ""
    wait_until_free(playground.server)


def test_an_answer_keeps_to_its_schema(playground):
    playground.tab("schema")
    answer = playground.ask("Tell me about batching")
    schema = playground.page.run("document.querySelector('#json-schema').value")
    jsonschema.validate(json.loads(answer), json.loads(schema))
    playground.page.fill("#json-schema", "{")
    playground.begin("And now?")
    assert "JSON schema of the answer" in playground.page.text("#composer .failure")
    assert playground.page.run("document.querySelector('#prompt').value") == "And now?"
    assert playground.count(".message") == 2


def test_one_is_the_function_that_the_model_calls(playground):
    playground.tab("tools")
    playground.ask("What is the weather in Paris?")
    call = playground.last(".call")
    assert call.startswith("get_weather(") and '"city": "Paris"' in call
    assert playground.facts()["end"] == "tool_calls"
    playground.page.type('{"temperature": 18, "condition": "sunny"}')  # the field has the focus
    playground.page.click("#tools .results button")
    playground.ended(2)
    answer = playground.last(".message.assistant .passage")
    assert "18" in answer and "sunny" in answer
    assert playground.count(".results") == 0


def test_tokens_show_what_else_was_likely(playground):
    playground.tab("logprobs")
    playground.ask(QUESTION)
    assert playground.page.text("#logprobs .tokens").startswith(ANSWER)
    playground.page.run("document.querySelector('#logprobs .tokens .token').focus()")
    first = playground.page.text("#logprobs .readout .chosen")
    playground.page.press("ArrowRight")
    second = playground.page.text("#logprobs .readout .chosen")
    assert first.startswith("A") and second != first
    assert playground.count(".readout tbody tr") == 5
    shares = playground.page.run(
        "[...document.querySelectorAll('#logprobs .readout meter')].map((meter) => meter.value)"
    )
    assert shares == sorted(shares, reverse=True) and 0.5 < sum(shares) <= 1.001


@pytest.mark.parametrize("tab", ["chat", "responses"])
def test_the_program_in_python_gets_the_same_answer(playground, tab, tmp_path):
    playground.tab(tab)
    playground.choose(top_k="5", seed="7", system='Say "it" \\ ☃')
    answer = playground.ask(QUESTION)
    playground.tab("code")
    program = tmp_path / "program.py"
    program.write_text(
        playground.page.run("document.querySelector('#code [data-language=Python]').textContent")
    )
    run = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, answer), run.stderr
    curl = playground.page.run("document.querySelector('#code [data-language=curl]').textContent")
    assert f"{playground.server.url}/v1/" in curl


def test_a_refusal_says_what_is_wrong_and_keeps_the_text(playground):
    playground.choose(stop_strings="\n".join("abcdefghijklmnopq"))
    playground.begin(QUESTION)
    playground.ended(1)
    assert "16" in playground.last(".failure")
    assert playground.page.run("document.querySelector('#prompt').value") == QUESTION
    playground.choose(stop_strings="")
    assert playground.ask(QUESTION).startswith(ANSWER)
    assert "400" in playground.page.complaints.pop()  # Chromium's own line in the console


def test_it_fits_a_narrow_screen_and_the_keyboard(playground):
    page = playground.page
    page.resize(400, 800)
    page.wait("!document.querySelector('#settings details').open")
    page.run("document.querySelector('#tab-chat').focus()")
    for name, after in zip(TABS, (*TABS[1:], TABS[0]), strict=True):
        assert page.run("document.activeElement.id") == f"tab-{name}"
        assert page.run(
            "[...document.querySelectorAll('#playground section:not([hidden])')].map((s) => s.id)"
        ) == [name]
        assert page.run("document.documentElement.scrollWidth") <= 400, name
        page.press("ArrowRight")
        page.wait(f"location.hash === '#{after}'")
    page.press("Tab")  # into the panel: there is one stop for all tabs
    assert page.run("!document.activeElement.matches('[role=tab]')")
