"""Input items of the Responses API that are more than a message: what the model gets to see."""

import asyncio
import json
import threading

import openai
import pytest
from django.db.backends.utils import CursorWrapper
from openai.types.responses.response_input_item_param import ResponseInputItemParam
from pydantic import TypeAdapter

from openai_api import background
from openai_api.models import EventBatch, StoredResponse
from tests.openai_api.showing import Listener, listening_engine

EXTRA = {
    "type": "function",
    "name": "extra",
    "description": "An additional one.",
    "parameters": {"type": "object", "properties": {"n": {"type": "integer"}}},
    "strict": False,
}
WEATHER = EXTRA | {"name": "weather", "description": "The weather."}
PATCH = {"type": "custom", "name": "patch", "description": "Edits files."}
CRM = {"type": "namespace", "name": "crm", "description": "Customers.", "tools": [EXTRA]}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "enum": ["ja"]}},
    "required": ["a"],
    "additionalProperties": False,
}
JA = {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}}

NO, YES = '{"a":"no"}', '{"a":"ja"}'


@pytest.fixture
def script():
    return Listener()


@pytest.fixture
def engine(script):
    with listening_engine(script) as engine:
        yield engine


@pytest.fixture
def create(client):
    async def create(*items, **fields):
        return await client.responses.create(model="m", input=list(items), **fields)

    return create


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def reference(item, **fields) -> dict:
    return {"id": item.id, **fields}


def call(name: str, arguments: dict | str) -> str:
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {text}}}\n</tool_call>'


def output_of(call_item, text: str = "done") -> dict:
    return {"type": f"{call_item.type}_output", "call_id": call_item.call_id, "output": text}


def texts(script: Listener) -> list[str]:
    return [message["content"] for message in script.messages]


async def refused(making) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as caught:
        await making
    return caught.value


async def ended(client, response_id: str):
    for _ in range(500):
        response = await client.responses.retrieve(response_id)
        if response.status not in ("queued", "in_progress"):
            return response
        await asyncio.sleep(0.01)
    raise AssertionError("the response does not end")


class TestReference:
    @pytest.mark.parametrize("fields", [{"type": "item_reference"}, {"type": None}, {}])
    async def test_it_stands_for_what_a_response_said(self, create, script, fields):
        script.answer = lambda prompt: "the first answer"
        first = await create(user("one"))
        await create(user("two"), reference(first.output[0], **fields), user("three"))

        assert texts(script) == ["two", "the first answer", "three"]
        assert script.messages[1]["role"] == "assistant"

    async def test_it_stands_for_what_a_response_was_asked(self, client, create, script):
        first = await create(user("one"))
        [item] = (await client.responses.input_items.list(first.id)).data
        await create(reference(item), user("two"))

        assert texts(script) == ["one", "two"]

    async def test_it_stands_for_an_item_of_a_conversation(self, client, create, script):
        conversation = await client.conversations.create(items=[user("one")])
        [item] = (await client.conversations.items.list(conversation.id)).data
        await create(reference(item), user("two"))

        assert texts(script) == ["one", "two"]

    async def test_a_call_may_be_named_and_its_result_sent(self, create, script):
        script.answer = lambda prompt: call("weather", {"n": 1})
        first = await create(user("one"), tools=[WEATHER])
        [made] = first.output
        await create(user("one"), reference(made), output_of(made))

        assert script.messages[1]["tool_calls"][0]["id"] == made.call_id
        assert texts(script)[2] == "done"

    async def test_the_input_lists_the_item_itself(self, client, create):
        first = await create(user("one"))
        second = await create(reference(first.output[0]), user("two"))
        page = await client.responses.input_items.list(second.id, order="asc")

        assert page.data[0].to_dict() == first.output[0].to_dict()
        assert page.data[1].content[0].text == "two"

    async def test_what_is_unknown_is_named(self, create):
        error = await refused(create(user("one"), {"type": "item_reference", "id": "msg_x"}))

        assert error.body["message"] == "Item with id 'msg_x' not found."
        assert error.param == "input"

    async def test_what_was_deleted_is_unknown(self, client, create):
        first = await create(user("one"))
        await client.responses.delete(first.id)
        error = await refused(create(reference(first.output[0]), user("two")))

        assert error.body["message"] == f"Item with id '{first.output[0].id}' not found."

    async def test_of_what_was_not_stored_nothing_is_known(self, create):
        first = await create(user("one"), store=False)
        error = await refused(create(reference(first.output[0]), user("two")))

        assert error.param == "input"

    async def test_a_conversation_takes_the_item_itself(self, client, create):
        first = await create(user("one"))
        [said] = first.output
        conversation = await client.conversations.create(items=[user("zero"), reference(said)])
        [item] = (await client.conversations.items.list(conversation.id, limit=1)).data
        other = await client.conversations.create()
        added = await client.conversations.items.create(other.id, items=[reference(said)])

        assert item.to_dict() == added.data[0].to_dict() == said.to_dict()

    async def test_a_conversation_takes_nothing_unknown(self, client):
        unknown = {"type": "item_reference", "id": "msg_x"}
        conversation = await client.conversations.create()
        for making in (
            client.conversations.create(items=[unknown]),
            client.conversations.items.create(conversation.id, items=[user("one"), unknown]),
        ):
            error = await refused(making)
            assert error.body["message"] == "Item with id 'msg_x' not found."

        assert (await client.conversations.items.list(conversation.id)).data == []

    async def test_many_items_of_a_response_are_read_at_once(self, client, create, monkeypatch):
        first = await create(*[user(str(i)) for i in range(20)])
        asked = (await client.responses.input_items.list(first.id, limit=20, order="asc")).data
        queries, execute = [], CursorWrapper.execute
        monkeypatch.setattr(
            CursorWrapper, "execute", lambda *args: queries.append(args[1]) or execute(*args)
        )
        await client.conversations.create(items=[reference(item) for item in asked])
        error = await refused(create(*[reference(asked[0])] * 5000, user("two")))

        assert "Duplicate item" in error.body["message"]
        assert sum('"openai_api_storedresponse"."input"' in query for query in queries) == 2
        assert len(queries) < 30

    async def test_in_the_background_it_outlives_the_response_that_it_names(
        self, client, create, script
    ):
        first = await create(user("one"))
        may_answer = threading.Event()
        script.answer = lambda prompt: "ok" if may_answer.wait(10) else ""
        items = [reference(first.output[0]), user("two")]
        second = await create(*items, background=True)
        await client.responses.delete(first.id)
        body = (await StoredResponse.objects.aget()).body
        may_answer.set()
        await ended(client, second.id)
        lost = {"boot_id": "dead", "status": "in_progress", "body": body, "output": []}
        await EventBatch.objects.all().adelete()
        await StoredResponse.objects.filter(pk=second.id).aupdate(**lost)
        await recover()
        again = await ended(client, second.id)

        assert (again.status, again.output_text) == ("completed", "ok")
        assert len(script.prompts) == 3
        assert script.prompts[1] == script.prompts[2]
        assert texts(script) == ["ok", "two"]


async def recover() -> None:
    """As a server does that starts."""
    recovering = asyncio.run_coroutine_threadsafe(background._recover(), background.loop())
    await asyncio.wrap_future(recovering)


class TestAdditionalTools:
    @staticmethod
    def item(*tools: dict) -> dict:
        return {"type": "additional_tools", "role": "developer", "tools": list(tools)}

    async def test_they_can_be_called(self, create, script):
        script.answer = lambda prompt: call("extra", {"n": 1})
        response = await create(self.item(EXTRA), user("one"), tools=[WEATHER])
        [made] = response.output

        assert script.tools == ["weather", "extra"]
        assert (made.type, made.name, made.arguments) == ("function_call", "extra", '{"n": 1}')
        assert texts(script) == ["one"]

    async def test_they_can_be_demanded(self, create, script):
        script.answer = lambda prompt: call("other", {"n": 1})
        choice, other = {"type": "function", "name": "extra"}, EXTRA | {"name": "other"}
        response = await create(
            self.item(EXTRA), user("one"), tools=[other], tool_choice=choice, max_output_tokens=99
        )

        assert response.output[0].name == "extra"

    async def test_they_are_no_tools_of_the_request(self, create):
        response = await create(self.item(EXTRA), user("one"), tools=[WEATHER])

        assert [tool.name for tool in response.tools] == ["weather"]

    async def test_they_stay_for_the_turns_that_follow(self, create, script):
        first = await create(self.item(EXTRA), user("one"))
        second = await create(user("two"), previous_response_id=first.id)
        script.answer = lambda prompt: call("extra", {"n": 1})
        third = await create(user("three"), previous_response_id=second.id)

        assert script.tools == ["extra"]
        assert third.output[0].name == "extra"
        assert third.tools == []

    async def test_they_stay_in_a_conversation(self, client, create, script):
        conversation = await client.conversations.create(items=[self.item(EXTRA)])
        await create(user("one"), conversation=conversation.id)

        assert script.tools == ["extra"]

    async def test_of_two_with_one_name_the_last_counts(self, create, script):
        newer, newest = EXTRA | {"description": "newer"}, EXTRA | {"description": "newest"}
        first = await create(self.item(newer), user("one"), tools=[EXTRA])
        told = script.prompts[-1]["tools"]
        await create(user("two"), self.item(newest), previous_response_id=first.id)

        assert [tool["function"]["description"] for tool in told] == ["newer"]
        told = script.prompts[-1]["tools"]
        assert [tool["function"]["description"] for tool in told] == ["newest"]

    async def test_they_may_be_custom_or_in_a_namespace(self, create, script):
        script.answer = lambda prompt: call("patch", {"input": "text"})
        response = await create(self.item(PATCH, CRM), user("one"))

        assert script.tools == ["patch", "crm__extra"]
        assert (response.output[0].type, response.output[0].input) == ("custom_tool_call", "text")

    async def test_a_wrong_one_is_named(self, create):
        error = await refused(create(user("one"), self.item({"type": "function"})))

        assert error.param == "input[1].tools[0].name"


class TestToolSearch:
    FOUND = [
        {"type": "tool_search_call", "call_id": "c", "arguments": {"query": "x"}, "id": None},
        {"type": "tool_search_output", "call_id": "c", "tools": [EXTRA, CRM], "status": None},
    ]

    async def test_what_was_found_can_be_called(self, create, script):
        script.answer = lambda prompt: call("extra", {"n": 1})
        response = await create(user("one"), *self.FOUND, user("two"))

        assert script.tools == ["extra", "crm__extra"]
        assert response.output[0].name == "extra"
        assert response.tools == []

    async def test_it_was_called_and_answered(self, create, script):
        await create(user("one"), *self.FOUND, user("two"))
        _, asked, found, _ = script.messages

        assert asked["tool_calls"][0]["id"] == found["tool_call_id"] == "c"
        assert asked["tool_calls"][0]["function"] == {
            "name": "tool_search",
            "arguments": {"arguments": {"query": "x"}},
        }
        assert "An additional one." in found["content"]

    async def test_what_was_found_stays_for_the_turns_that_follow(self, create, script):
        first = await create(user("one"), *self.FOUND)
        await create(user("two"), previous_response_id=first.id)

        assert script.tools == ["extra", "crm__extra"]


class TestConfigurationUpdate:
    """The model says no, unless a schema makes it say ja."""

    @pytest.fixture
    def script(self, script):
        script.answer = lambda prompt: NO
        return script

    @staticmethod
    def item(**changes) -> dict:
        return {"type": "configuration_update", **changes}

    async def test_a_format_holds_until_the_next(self, create):
        first = await create(self.item(text=JA), user("one"))
        second = await create(user("two"), previous_response_id=first.id)
        plain = self.item(text={"format": {"type": "text"}})
        third = await create(plain, user("three"), previous_response_id=second.id)
        fourth = await create(user("four"), previous_response_id=third.id)

        texts = [response.output_text for response in (first, second, third, fourth)]
        assert texts == [YES] * 2 + [NO] * 2
        kinds = [response.text.format.type for response in (first, second, third, fourth)]
        assert kinds == ["json_schema"] * 2 + ["text"] * 2

    async def test_an_effort_holds_until_the_next(self, create, script):
        first = await create(self.item(reasoning={"effort": "high"}), user("one"))
        second = await create(user("two"), previous_response_id=first.id)
        low = self.item(reasoning={"effort": "low"})
        third = await create(low, user("three"), previous_response_id=second.id)

        assert [prompt["effort"] for prompt in script.prompts] == ["high", "high", "low"]
        efforts = [response.reasoning.effort for response in (first, second, third)]
        assert efforts == ["high", "high", "low"]

    async def test_one_setting_leaves_the_other_alone(self, create, script):
        first = await create(self.item(text=JA), user("one"), reasoning={"effort": "high"})
        change = self.item(reasoning={"effort": "low"}, text=None)
        second = await create(change, user("two"), previous_response_id=first.id)

        assert [prompt["effort"] for prompt in script.prompts] == ["high", "low"]
        assert second.output_text == YES

    async def test_it_holds_in_a_conversation(self, client, create):
        items = [self.item(text=JA)]
        conversation = await client.conversations.create(items=items)
        response = await create(user("one"), conversation=conversation.id)

        assert response.output_text == YES

    async def test_the_model_is_not_told(self, create, script):
        await create(user("one"), self.item(reasoning={"effort": "high"}), user("two"))

        assert texts(script) == ["one", "two"]

    @pytest.mark.parametrize(
        "changes",
        [{"reasoning": {"effort": "huge"}}, {"text": {"format": {"type": "xml"}}}, {"text": "x"}],
    )
    async def test_a_wrong_one_is_refused(self, create, changes):
        error = await refused(create(self.item(**changes), user("one")))

        assert error.param.startswith("input")


class TestCompactionTrigger:
    @pytest.fixture
    def script(self, script):
        def answer(prompt):
            is_summary = prompt["messages"][0]["content"].startswith("Summarise")
            return "the gist" if is_summary else "ok"

        script.answer = answer
        return script

    TRIGGER = {"type": "compaction_trigger"}
    GIST = "Summary of the conversation so far:\nthe gist"

    async def test_the_answer_is_a_compaction_and_no_text(self, create, script):
        response = await create(user("one"), self.TRIGGER)
        [item] = response.output

        assert (item.type, response.status, response.output_text) == ("compaction", "completed", "")
        assert script.prompts[0]["messages"][1]["content"] == "User: one"

    async def test_all_that_came_before_is_compacted(self, create, script):
        first = await create(user("one"))
        response = await create(user("two"), self.TRIGGER, previous_response_id=first.id)
        told = script.prompts[1]["messages"][1]["content"]

        assert [item.type for item in response.output] == ["compaction"]
        assert told == "User: one\n\nAssistant: ok\n\nUser: two"

    async def test_a_response_goes_on_from_it(self, create, script):
        first = await create(user("one"), self.TRIGGER)
        await create(user("two"), previous_response_id=first.id)

        assert texts(script) == ["one", self.GIST, "two"]

    async def test_the_item_goes_on_where_nothing_is_stored(self, create, script):
        first = await create(user("one"), self.TRIGGER, store=False)
        response = await create(first.output[0].model_dump(), user("two"), store=False)

        assert texts(script) == [self.GIST, "two"]
        assert response.output_text == "ok"

    async def test_a_stream_has_the_item_and_nothing_else(self, create):
        stream = await create(user("one"), self.TRIGGER, stream=True)
        events = [event async for event in stream]

        assert [event.type.removeprefix("response.") for event in events] == [
            "created",
            "in_progress",
            "output_item.added",
            "output_item.done",
            "completed",
        ]
        assert events[3].item == events[-1].response.output[0]


FOREIGN = [
    {
        "type": "file_search_call",
        "id": "fs_1",
        "queries": ["told: q"],
        "status": "completed",
        "results": None,
    },
    {
        "type": "computer_call",
        "id": "cu_1",
        "call_id": "c",
        "pending_safety_checks": [],
        "status": "completed",
        "action": {"type": "type", "text": "told: typed"},
    },
    {
        "type": "computer_call_output",
        "call_id": "c",
        "output": {"type": "computer_screenshot", "file_id": "told: file"},
        "id": None,
        "acknowledged_safety_checks": None,
        "status": None,
    },
    {
        "type": "web_search_call",
        "id": "ws_1",
        "status": "completed",
        "action": {"type": "open_page", "url": "told: url"},
    },
    {"type": "tool_search_call", "arguments": {"query": "told: x"}, "call_id": None},
    {"type": "tool_search_output", "tools": [EXTRA | {"description": "told: it"}], "call_id": "c"},
    {
        "type": "image_generation_call",
        "id": "ig_1",
        "result": None,
        "status": "completed",
        "revised_prompt": "told: a cat",
    },
    {
        "type": "code_interpreter_call",
        "id": "ci_1",
        "code": "told: 1 + 1",
        "container_id": "cntr_1",
        "outputs": None,
        "status": "completed",
    },
    {
        "type": "local_shell_call",
        "id": "ls_1",
        "call_id": "c",
        "action": {"type": "exec", "command": ["told: ls"], "env": {}},
        "status": "completed",
    },
    {"type": "local_shell_call_output", "id": "c", "output": "told: files", "status": None},
    {
        "type": "shell_call",
        "call_id": "c",
        "action": {"commands": ["told: ls"], "timeout_ms": None},
        "id": None,
        "status": None,
    },
    {
        "type": "shell_call_output",
        "call_id": "c",
        "output": [
            {"stdout": "told: files", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}
        ],
    },
    {
        "type": "apply_patch_call",
        "call_id": "c",
        "operation": {"type": "delete_file", "path": "told: path"},
        "status": "completed",
    },
    {"type": "apply_patch_call_output", "call_id": "c", "status": "failed", "output": "told: no"},
    {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "told: s", "tools": []},
    {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "arguments": "{}",
        "name": "told: n",
        "server_label": "s",
    },
    {
        "type": "mcp_approval_response",
        "approval_request_id": "told: r",
        "approve": True,
        "id": None,
        "reason": None,
    },
    {
        "type": "mcp_call",
        "id": "mcp_1",
        "arguments": "{}",
        "name": "f",
        "server_label": "s",
        "output": "told: result",
        "error": None,
        "approval_request_id": None,
    },
    {
        "type": "program",
        "id": "prog_1",
        "call_id": "c",
        "code": "told: run()",
        "fingerprint": "f",
    },
    {
        "type": "program_output",
        "id": "po_1",
        "call_id": "c",
        "result": "told: 2",
        "status": "completed",
    },
]
INPUT_ITEM = TypeAdapter(ResponseInputItemParam)


class TestForeignItems:
    @pytest.mark.parametrize("item", FOREIGN, ids=lambda item: item["type"])
    async def test_the_model_is_told_what_another_server_did(self, create, script, item):
        INPUT_ITEM.validate_python(item)
        response = await create(user("one"), item, user("two"))
        first, told, last = script.messages

        assert response.status == "completed"
        assert (first["content"], last["content"]) == ("one", "two")
        assert told["role"] == ("tool" if item["type"].endswith("_output") else "assistant")
        assert "told: " in json.dumps(told)

    async def test_a_result_names_its_call(self, create, script):
        items = [item for item in FOREIGN if item["type"].startswith("shell_call")]
        await create(user("one"), *items, user("two"))
        _, made, result, _ = script.messages

        assert made["tool_calls"][0]["id"] == result["tool_call_id"] == "c"
        assert made["tool_calls"][0]["function"]["name"] == "shell"

    async def test_pictures_are_left_out(self, create, script):
        picture = {"type": "image_generation_call", "id": "i", "result": "iVBO" * 20_000}
        await create(user("one"), picture | {"status": "completed"}, user("two"))

        assert len(texts(script)[1]) < 100

    async def test_they_are_kept_as_they_were(self, client, create):
        response = await create(user("one"), FOREIGN[3])
        [item] = (await client.responses.input_items.list(response.id, limit=1)).data

        assert item.to_dict() == FOREIGN[3]

    async def test_they_stay_for_the_turns_that_follow(self, create, script):
        first = await create(user("one"), *FOREIGN)
        await create(user("two"), previous_response_id=first.id)

        assert json.dumps(script.messages).count("told: ") == len(FOREIGN)

    @pytest.mark.parametrize("call_id", [["c"], {"a": 1}, 7])
    async def test_a_wrong_call_id_is_named(self, create, call_id):
        item = {"type": "shell_call", "call_id": call_id, "action": {"commands": ["ls"]}}
        error = await refused(create(user("one"), item))

        assert error.param == "input[1].call_id"

    @pytest.mark.parametrize("kind", ["mesage", "function_cal", "Message", "", "shell-call"])
    async def test_a_typo_is_none_of_them(self, create, kind):
        error = await refused(create({"type": kind, "role": "user", "content": "one"}))

        assert (error.param, error.code) == ("input[0].type", "invalid_value")


class TestOwnOutput:
    """What the client dumps of an output, nulls and all, is read like the stored original."""

    SAYING = {
        "message": ("Hello", {}),
        "reasoning": ("<think>\nWell.\n</think>\n\nHello", {}),
        "sealed reasoning": (
            "<think>\nWell.\n</think>\n\nHello",
            {"include": ["reasoning.encrypted_content"]},
        ),
        "function_call": (f"Wait.\n{call('weather', {'n': 1})}", {"tools": [WEATHER]}),
        "two calls": (call("weather", {"n": 1}) + call("weather", {"n": 2}), {"tools": [WEATHER]}),
        "custom_tool_call": (call("patch", {"input": "a\n"}), {"tools": [PATCH]}),
        "call in a namespace": (call("crm__extra", {"n": 1}), {"tools": [CRM]}),
        "cut call": (call("weather", {"n": 123456}), {"tools": [WEATHER], "max_output_tokens": 52}),
    }

    @pytest.mark.parametrize("kind", SAYING)
    async def test_a_dump_is_read_like_what_was_stored(self, create, script, kind):
        text, fields = self.SAYING[kind]
        zero = await create(user("zero"))
        script.answer = lambda prompt: text
        first = await create(user("one"), previous_response_id=zero.id, **fields)
        results = [output_of(item) for item in first.output if "call" in item.type]
        script.answer = lambda prompt: "ok"
        await create(*results, user("two"), previous_response_id=first.id)
        stored = script.messages
        dumps = [item.model_dump() for item in first.output]
        before = [user("zero"), zero.output[0].model_dump(), user("one")]
        await create(*before, *dumps, *results, user("two"), store=False)

        assert script.messages == stored
        assert any(value is None for item in dumps for value in item.values())

    async def test_the_kinds_are_what_they_are_called(self, create, script):
        kinds = {}
        for kind, (text, fields) in self.SAYING.items():
            script.answer = lambda prompt, text=text: text
            response = await create(user("one"), **fields)
            kinds[kind] = [item.type for item in response.output]

        assert kinds == {
            "message": ["message"],
            "reasoning": ["reasoning", "message"],
            "sealed reasoning": ["reasoning", "message"],
            "function_call": ["message", "function_call"],
            "two calls": ["function_call", "function_call"],
            "custom_tool_call": ["custom_tool_call"],
            "call in a namespace": ["function_call"],
            "cut call": ["function_call"],
        }

    async def test_a_compaction_stands_for_all_before_it(self, create, script):
        zero = await create(user("zero"))
        compacting = [{"type": "compaction", "compact_threshold": 1}]
        first = await create(
            user("one"), previous_response_id=zero.id, context_management=compacting
        )
        dumps = [item.model_dump() for item in first.output]
        await create(*dumps, user("two"))

        assert [dump["type"] for dump in dumps] == ["compaction", "message"]
        assert texts(script) == ["Summary of the conversation so far:\nok", "ok", "two"]

    async def test_sealed_thoughts_need_no_content(self, create, script):
        script.answer = lambda prompt: "<think>\nWell.\n</think>\n\nHello"
        first = await create(user("one"), include=["reasoning.encrypted_content"], store=False)
        thought = first.output[0].model_dump() | {"content": None}
        await create(user("one"), thought, first.output[1].model_dump(), user("two"))

        assert script.messages[1]["reasoning_content"] == "Well."

    async def test_a_cut_call_is_told_as_far_as_it_came(self, create, script):
        text, fields = self.SAYING["cut call"]
        script.answer = lambda prompt: text
        first = await create(user("one"), **fields)
        [made] = first.output
        await create(user("one"), made.model_dump(), output_of(made), user("two"))

        assert (made.status, first.status) == ("incomplete", "incomplete")
        assert text.startswith('<tool_call>\n{"name": "weather", "arguments": ' + made.arguments)
        assert script.messages[1]["tool_calls"][0]["function"]["arguments"] == {"": made.arguments}

    @pytest.mark.parametrize(
        "arguments",
        ["[" * 5000, '{"a":NaN}', '{"a":"\\ud800"}', "no JSON"],
        ids=["deep", "not a number", "half a pair", "no JSON"],
    )
    async def test_what_cannot_be_read_is_told_as_it_was_written(self, create, script, arguments):
        made = {"type": "function_call", "call_id": "c", "name": "f", "arguments": arguments}
        await create(user("one"), made)

        assert script.messages[1]["tool_calls"][0]["function"]["arguments"] == {"": arguments}

    async def test_a_call_in_a_namespace_keeps_the_name_it_was_made_under(self, create, script):
        script.answer = lambda prompt: call("crm__extra", {"n": 1})
        first = await create(user("one"), tools=[CRM])
        [made] = first.output
        await create(user("one"), made.model_dump(), output_of(made), tools=[CRM])

        assert (made.namespace, made.name) == ("crm", "extra")
        assert script.messages[1]["tool_calls"][0]["function"]["name"] == "crm__extra"
        assert script.tools == ["crm__extra"]


class TestOutputWithoutCall:
    OUTPUT = {"type": "function_call_output", "call_id": "call_x", "output": "1"}
    MESSAGE = "No tool call found for function call output with call_id call_x."

    @pytest.mark.parametrize("kind", ["function_call_output", "custom_tool_call_output"])
    async def test_it_is_refused(self, create, kind):
        error = await refused(create(user("one"), self.OUTPUT | {"type": kind}))

        assert (error.body["message"], error.param) == (self.MESSAGE, "input")

    async def test_it_is_refused_after_a_response(self, create):
        first = await create(user("one"))
        error = await refused(create(self.OUTPUT, previous_response_id=first.id))

        assert (error.body["message"], error.param) == (self.MESSAGE, "input")

    async def test_it_is_refused_in_a_conversation(self, client, create):
        conversation = await client.conversations.create(items=[user("one")])
        error = await refused(create(self.OUTPUT, conversation=conversation.id))

        assert (error.body["message"], error.param) == (self.MESSAGE, "input")

    async def test_the_call_may_have_come_before(self, client, create, script):
        script.answer = lambda prompt: call("weather", {"n": 1})
        conversation = await client.conversations.create()
        first = await create(user("one"), tools=[WEATHER])
        second = await create(user("one"), tools=[WEATHER], conversation=conversation.id)
        script.answer = lambda prompt: "ok"
        after = await create(output_of(first.output[0]), previous_response_id=first.id)
        inside = await create(output_of(second.output[0]), conversation=conversation.id)

        assert after.output_text == inside.output_text == "ok"


async def test_a_trigger_is_the_last_item(client):
    items = [{"type": "compaction_trigger"}, {"role": "user", "content": "Hi"}]
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input=items)
    assert caught.value.param == "input"


TWICE = [{"role": "user", "content": "a", "id": "i"}, {"role": "user", "content": "b", "id": "i"}]
REFUSED = {
    "input": TWICE,
    "input[0].id": [{"role": "user", "content": "Hi", "id": 5}],
    "input[0].reasoning.effort": [
        {"type": "configuration_update", "reasoning": {"effort": "much"}}
    ],
    "input[0].text.format.type": [{"type": "configuration_update", "text": {"format": {}}}],
}


@pytest.mark.parametrize("param", REFUSED)
async def test_what_is_wrong_with_an_item_is_named(client, param):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="m", input=REFUSED[param])
    assert caught.value.param == param


async def test_a_conversation_takes_no_output_without_its_call(client):
    output = {"type": "function_call_output", "call_id": "c", "output": "1"}
    conversation = await client.conversations.create()
    for add in (
        lambda: client.conversations.create(items=[output]),
        lambda: client.conversations.items.create(conversation.id, items=[output]),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await add()
        assert caught.value.param == "items"
