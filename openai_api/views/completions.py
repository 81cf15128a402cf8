from inference.request import ModelInfo
from openai_api.answers import Choice
from openai_api.prompts import (
    check_choices,
    fill_in_the_middle,
    sampling_params,
    tokenize,
    truncated,
)
from openai_api.protocol.completions import CompletionChunks
from openai_api.serializers.completions import CompletionSerializer
from openai_api.structured import constraint_of
from openai_api.views.generate import GenerateView


class CompletionsView(GenerateView):
    """POST /v1/completions"""

    serializer_class = CompletionSerializer

    async def post(self, request):
        body, model = await self.read_body()
        num_choices = max(body["n"], body.get("best_of") or 1)
        check_choices("prompt", len(body["prompt"]))
        check_choices("best_of" if body.get("best_of") else "n", len(body["prompt"]) * num_choices)
        prompts = [await self._token_ids(model, prompt, body) for prompt in body["prompt"]]
        constraint = await constraint_of(model, body, prompts[0], chat=False)
        scores = self._scores(body)
        choices = [
            Choice(
                prompt,
                sampling_params(model, body, max_tokens=body["max_tokens"], choice=i, **scores),
                prompt_index=index,
                constraint=constraint,
            )
            for index, prompt in enumerate(prompts)
            for i in range(num_choices)
        ]
        answers = self.queue(choices, body, chat=False, param="prompt")
        echoes = self._echoes(model, body, prompts) if body["echo"] else None
        return await self.answer(CompletionChunks(body, answers, echoes), body)

    @staticmethod
    async def _token_ids(model: ModelInfo, prompt: str | list[int], body: dict) -> list[int]:
        if isinstance(prompt, str):
            special = body["add_special_tokens"]
            if body["suffix"]:
                prompt, special = fill_in_the_middle(model, prompt, body["suffix"]), False
            prompt = await tokenize(model, prompt, "prompt", add_special_tokens=special)
        return truncated(model, prompt, body, body["max_tokens"])

    @staticmethod
    def _scores(body: dict) -> dict:
        """Which log probabilities the engine has to find."""
        logprobs, best_of = body.get("logprobs"), body.get("best_of") or 1
        wanted = [body.get("prompt_logprobs"), logprobs if body["echo"] else None]
        return {
            "logprobs": 0 if logprobs is None and best_of > body["n"] else logprobs,
            "prompt_logprobs": max((k for k in wanted if k is not None), default=None),
        }

    @staticmethod
    def _echoes(model: ModelInfo, body: dict, prompts: list[list[int]]) -> list[str]:
        """Each prompt's text: as it was sent, or what its tokens say."""
        skip = body["skip_special_tokens"]
        return [
            sent
            if isinstance(sent, str) and body.get("truncate_prompt_tokens") is None
            else model.tokenizer.decode(ids, skip_special_tokens=skip)
            for sent, ids in zip(body["prompt"], prompts, strict=True)
        ]
