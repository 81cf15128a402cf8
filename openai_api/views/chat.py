from rest_framework.response import Response

from openai_api import stored_chats
from openai_api.answers import Choice
from openai_api.database import read, write
from openai_api.prompts import chat_prompt, check_choices, sampling_params, truncated
from openai_api.protocol.chat import ChatChunks
from openai_api.protocol.sse import data
from openai_api.serializers.chat import ChatCompletionSerializer
from openai_api.structured import constraint_of
from openai_api.tools import tool_use
from openai_api.views.generate import GenerateView
from openai_api.views.stored_chats import list_stored_chats


class ChatCompletionsView(GenerateView):
    """POST /v1/chat/completions; GET lists those that were stored."""

    serializer_class = ChatCompletionSerializer
    get = list_stored_chats

    async def post(self, request):
        body, model = await self.read_body()
        check_choices("n", body["n"])
        if body["store"] and body.get("request_id"):
            await read(stored_chats.refuse_taken, body["request_id"])
        use, messages = tool_use(body), body["messages"]
        max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
        prompt = await chat_prompt(model, messages, body, tools=use.tools)
        prompt = truncated(model, prompt, body, max_tokens)
        constraint = await constraint_of(model, body, prompt, use)
        logprobs = (body.get("top_logprobs") or 0) if body["logprobs"] else None
        choices = [
            Choice(
                prompt,
                sampling_params(
                    model,
                    body,
                    max_tokens=max_tokens,
                    logprobs=logprobs,
                    prompt_logprobs=None if i else body.get("prompt_logprobs"),
                    choice=i,
                ),
                constraint=constraint,
            )
            for i in range(body["n"])
        ]
        answers = self.queue(choices, body, chat=True, param="messages", use=use)
        continued = body["echo"] and messages[-1]["role"] == "assistant"
        chunks = ChatChunks(body, answers, messages[-1]["content"] if continued else "")
        return (
            await self._stored(chunks, body) if body["store"] else await self.answer(chunks, body)
        )

    async def _stored(self, chunks: ChatChunks, body: dict):
        """The same, kept once it is whole and before its end is sent."""
        self.record.row.response_id = chunks.head["id"]

        async def keep(completion: dict) -> None:
            await write(stored_chats.save, completion, self.request.data, self.owner)

        if body["stream"]:
            return await self.stream(chunks.recorded(keep), data)
        completion = await chunks.collect()
        await keep(completion)
        return Response(completion)
