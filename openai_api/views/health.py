"""Whether the process lives, and whether it can answer. Without checks, rows or waiting."""

from dataclasses import asdict

from django.http import HttpRequest, JsonResponse

from inference.errors import EngineNotReady
from inference.service import get_engine
from openai_api.errors import as_api_error, error_body


async def live(request: HttpRequest) -> JsonResponse:
    """GET /health: 200 as long as the process answers and its engine has not died."""
    engine = get_engine()
    state = engine.status.state
    body = {"status": state, "stage": engine.status.stage, **asdict(engine.stats)}
    return JsonResponse(body, status=200 if state in ("loading", "ready") else 503)


async def ready(request: HttpRequest) -> JsonResponse:
    """GET /health/ready: 503 with the progress until the model can answer."""
    try:
        model = get_engine().model
    except EngineNotReady as exc:
        error = as_api_error(exc)
        return JsonResponse(
            {"error": error_body(error)}, status=error.status_code, headers=error.headers
        )
    return JsonResponse({"status": "ready", "model": model.name})
