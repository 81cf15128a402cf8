from openai_api.answers import Choice
from openai_api.prompts import chat_prompt, check_choices, sampling_params
from openai_api.protocol.chat import ChatChunks
from openai_api.serializers.chat import ChatCompletionSerializer
from openai_api.views.generate import GenerateView


class ChatCompletionsView(GenerateView):
    """POST /v1/chat/completions"""

    serializer_class = ChatCompletionSerializer

    async def post(self, request):
        body, model = self.read_body()
        check_choices("n", body["n"])
        prompt = await chat_prompt(model, body["messages"], body)
        max_tokens = body.get("max_completion_tokens") or body.get("max_tokens")
        logprobs = (body.get("top_logprobs") or 0) if body["logprobs"] else None
        choices = [
            Choice(
                prompt,
                sampling_params(model, body, max_tokens=max_tokens, logprobs=logprobs, choice=i),
            )
            for i in range(body["n"])
        ]
        answers = self.queue(choices, body, chat=True, param="messages")
        return await self.answer(ChatChunks(body, answers), body)
