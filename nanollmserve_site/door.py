"""Without API keys only this machine is served, unless the operator says otherwise."""

import socket
from collections.abc import Awaitable, Callable
from ipaddress import ip_address

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.http.request import split_domain_port, validate_host

from nanollmserve_site.config import ServerConfig
from nanollmserve_site.guard import Application, Message, Receive, Send, error_messages


def safe_address(config: ServerConfig, *, has_keys: bool = False) -> str:
    """The address to listen on. Raises ImproperlyConfigured if others could come in unasked."""
    named = f"--host (NANOLLM_HOST) is {config.host!r}"
    try:
        address = str(socket.getaddrinfo(config.host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ImproperlyConfigured(f"{named}: {error.strerror}.") from None
    if is_loopback(address):
        return address
    if not (has_keys or config.allow_no_auth):
        raise ImproperlyConfigured(
            f"{named}, which others can reach, and no API key is asked for. Make one with "
            "`manage.py apikey create NAME`, or listen on 127.0.0.1, or add --allow-no-auth "
            "(NANOLLM_ALLOW_NO_AUTH)."
        )
    if ip_address(address).is_unspecified and not config.allowed_hosts:
        raise ImproperlyConfigured(
            f"{named}: name the hosts that clients will ask for "
            "with --allowed-hosts (NANOLLM_ALLOWED_HOSTS), or * for any."
        )
    return address


def loopback_only(app: Application, has_keys: Callable[[], Awaitable[bool]]) -> Application:
    """For servers that choose their address themselves, as `daphne -b` does."""
    if settings.SERVER.allow_no_auth:
        return app
    refusal = error_messages(
        403,
        "invalid_request_error",
        "This server asks for no API key, and so is open to its own machine only. Its operator "
        "can make a key with `manage.py apikey create`, or set NANOLLM_ALLOW_NO_AUTH.",
    )

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if reached_from_outside(scope) and not await has_keys():
            if scope["type"] == "websocket":
                await send({"type": "websocket.close"})
                return
            for message in refusal:
                await send(message)
        else:
            await app(scope, receive, send)

    return checked


def same_origin(app: Application, *, is_page: bool = False) -> Application:
    """No web page of another site may open a WebSocket here.

    Programs send no Origin, and may come in unless only a page of ours `is_page` should.
    """

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        host = headers.get(b"host", b"").decode(errors="replace")
        allowed = validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)
        if not allowed or (is_page and origin is None) or is_another_site(origin, host):
            await send({"type": "websocket.close"})
        else:
            await app(scope, receive, send)

    return checked


def is_another_site(origin: str | None, host: str) -> bool:
    """By the header of browsers: programs send none. Of some pages it is "null", anybody's."""
    if origin is None or origin in settings.CSRF_TRUSTED_ORIGINS:
        return False
    return origin.partition("://")[2] != host


def reached_from_outside(scope: Message) -> bool:
    """Whether the connection came in at an address that others can reach too."""
    host, port = scope.get("server") or (None, None)
    return port is not None and not is_loopback(host)  # a Unix socket has no port


def is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
