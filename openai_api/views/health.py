"""Whether the process lives, and whether it can answer. Without checks, rows or waiting."""

from dataclasses import asdict

from django.http import HttpRequest, JsonResponse

from inference import service
from inference.errors import EngineNotReady
from openai_api.errors import as_api_error, error_body


async def live(request: HttpRequest) -> JsonResponse:
    """GET /health: 200 as long as the process answers and its engine has not died."""
    engine, state = service.get_engine(), service.state()
    body = {"status": state, "stage": engine.status.stage, **asdict(engine.stats)}
    return JsonResponse(body, status=503 if state is service.State.BROKEN else 200)


async def ready(request: HttpRequest) -> JsonResponse:
    """GET /health/ready: 503 with the reason unless new requests are taken."""
    try:
        model = service.check_ready()
    except EngineNotReady as exc:
        error = as_api_error(exc)
        return JsonResponse(
            {"error": error_body(error)}, status=error.status_code, headers=error.headers
        )
    return JsonResponse({"status": "ready", "model": model.name})
