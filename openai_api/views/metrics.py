"""Metrics, for whoever has a key: they tell how much others use the server."""

from django.http import HttpRequest, HttpResponse, JsonResponse

from openai_api import keys, metrics
from openai_api.errors import Unauthorized, error_body


async def show(request: HttpRequest) -> HttpResponse:
    """GET /metrics. Leaves no row in the history: it is read every few seconds."""
    await keys.refresh()
    try:
        keys.identify(request.headers)
    except Unauthorized as exc:
        return JsonResponse({"error": error_body(exc)}, status=exc.status_code, headers=exc.headers)
    return HttpResponse(metrics.text(), content_type=metrics.CONTENT_TYPE)
