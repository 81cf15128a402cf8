"""Without API keys only this machine is served, unless the operator says otherwise."""

from ipaddress import ip_address

from django.conf import settings

from nanollmserve_site.guard import Application, Message, Receive, Send, error_messages


def loopback_only(app: Application) -> Application:
    """For servers that choose their address themselves, as `daphne -b` does."""
    if settings.SERVER.allow_no_auth:
        return app
    refusal = error_messages(
        403,
        "invalid_request_error",
        "This server asks for no API key, and so is open to its own machine only. Its operator "
        "can change that with NANOLLM_ALLOW_NO_AUTH.",
    )

    async def checked(scope: Message, receive: Receive, send: Send) -> None:
        if reached_from_outside(scope):
            for message in refusal:
                await send(message)
        else:
            await app(scope, receive, send)

    return checked


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
