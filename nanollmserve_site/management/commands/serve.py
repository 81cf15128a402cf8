"""`manage.py serve`: daphne, in this process, with our application."""

import logging
import os
import time
from argparse import ArgumentParser
from typing import Any

from daphne.server import Server
from django.conf import settings
from django.core.management import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.utils.module_loading import import_string
from twisted.internet import reactor
from twisted.python.failure import Failure

from inference import service
from nanollmserve_site import request_id
from nanollmserve_site.config import ServerConfig
from nanollmserve_site.door import safe_address
from nanollmserve_site.env import add_flags

logger = logging.getLogger("nanollmserve")


class Command(BaseCommand):
    help = "Serve a model over HTTP, with OpenAI's API."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_flags(parser)

    def handle(self, **options: Any) -> None:
        """The flags are in the settings already: see manage.py."""
        logging.getLogger("daphne").setLevel(logging.WARNING)  # we tell where it listens
        server = Daphne(settings.SERVER)
        server.run()
        if server.failure:
            raise CommandError(
                f"{server.failure} Choose another with --port (NANOLLM_PORT) "
                "or --host (NANOLLM_HOST)."
            )
        if service.get_engine().status.state == "loading":
            logging.shutdown()
            os._exit(0)  # loading cannot be stopped, and would complain about Python's end


def has_keys() -> bool:
    """Asked before the first migration, too: no table, no keys."""
    from openai_api.models import ApiKey  # Django is not set up when this module is imported

    try:
        return ApiKey.objects.exists()
    except DatabaseError:
        return False
    finally:
        connection.close()


class Daphne(Server):
    """daphne, listening before our application is imported: a taken port costs no model load."""

    def __init__(self, config: ServerConfig) -> None:
        self.has_keys = has_keys()
        interface = safe_address(config, has_keys=self.has_keys).replace(":", r"\:")
        super().__init__(
            application=None,
            # With daphne's backlog of 50, many clients at once wait for a second.
            endpoints=[f"tcp:port={config.port}:interface={interface}:backlog=2048"],
            ready_callable=self.load,
            server_name="nanollmserve",
            websocket_max_message_size=settings.API.max_body_size,
            websocket_max_frame_size=settings.API.max_body_size,
        )
        self.config, self.began = config, time.monotonic()
        self.failure = ""

    def load(self) -> None:
        """Called when the port is open. The import starts the engine: see asgi.py."""
        self.application = import_string(settings.ASGI_APPLICATION)
        tell(self.config, self.has_keys)
        self.tell_when_ready()

    def tell_when_ready(self) -> None:
        state = service.get_engine().status.state
        if state == "ready":
            request_id.current.set("")  # the reactor's timers take over whatever context is there
            took_s = time.monotonic() - self.began
            name = service.get_engine().model.name
            logger.info("ready: %s/v1, %s, after %.1f s", url(self.config), name, took_s)
        elif state == "loading":
            reactor.callLater(0.1, self.tell_when_ready)

    def listen_error(self, failure: Failure) -> None:
        self.failure = failure.getErrorMessage()
        self.stop()


def tell(config: ServerConfig, has_keys: bool) -> None:
    paths = "/v1 /playground /docs /admin /health /metrics"
    logger.info("listening on %s (%s); the model is loading", url(config), paths)
    if not config.tls:
        logger.info(
            "plain HTTP: secure cookies and HSTS are off; set NANOLLM_TLS=true behind a TLS proxy"
        )
    if config.allow_no_auth and not has_keys:
        logger.warning("no API key is asked for: whoever reaches %s can use it", url(config))
    if config.debug:
        logger.warning("debug mode shows internals to every client: never on a real server")


def url(config: ServerConfig) -> str:
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"http://{host}:{config.port}"
