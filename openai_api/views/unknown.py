from openai_api.errors import NotFound
from openai_api.views.base import AsyncAPIView


class UnknownView(AsyncAPIView):
    """Any other path under /v1: a 404 that a client library can read."""

    async def refuse(self, request, *args, **kwargs):
        raise NotFound(f"Invalid URL ({request.method} {request.path})")

    get = post = put = patch = delete = head = options = refuse
    http_method_names = ["get", "post", "put", "patch", "delete", "head", "options"]
