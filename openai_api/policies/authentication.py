"""Each request needs a key as soon as there are keys. Named in settings: so for every view."""

from rest_framework.authentication import BaseAuthentication

from openai_api import keys


class KeyAuthentication(BaseAuthentication):
    """`request.auth` is the key, or None where there are no keys."""

    async def prepare(self, request) -> None:
        await keys.refresh()

    def authenticate(self, request):
        key = keys.identify(request.headers)
        return None if key is None else (None, key)
