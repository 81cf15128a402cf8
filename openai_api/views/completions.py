from inference.request import ModelInfo
from openai_api.answers import Choice
from openai_api.prompts import check_choices, sampling_params, tokenize
from openai_api.protocol.completions import CompletionChunks
from openai_api.serializers.completions import CompletionSerializer
from openai_api.views.generate import GenerateView


class CompletionsView(GenerateView):
    """POST /v1/completions"""

    serializer_class = CompletionSerializer

    async def post(self, request):
        body, model = self.read_body()
        check_choices("prompt", len(body["prompt"]))
        check_choices("n", len(body["prompt"]) * body["n"])
        choices = [
            Choice(
                await self._token_ids(model, prompt, body),
                sampling_params(
                    model,
                    body,
                    max_tokens=body["max_tokens"],
                    logprobs=body.get("logprobs"),
                    choice=i,
                ),
                prompt_index=index,
            )
            for index, prompt in enumerate(body["prompt"])
            for i in range(body["n"])
        ]
        answers = self.queue(choices, body, chat=False, param="prompt")
        return await self.answer(CompletionChunks(body, answers), body)

    @staticmethod
    async def _token_ids(model: ModelInfo, prompt: str | list[int], body: dict) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        return await tokenize(
            model, prompt, "prompt", add_special_tokens=body["add_special_tokens"]
        )
