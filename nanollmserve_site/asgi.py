"""The ASGI application. Importing it starts the server's engine, as daphne sends no lifespan.

The port can open at once: the model loads in the background, and until then requests are told so.
"""

import atexit
import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import django
from channels.routing import ProtocolTypeRouter
from django.core.exceptions import ImproperlyConfigured
from django.db import connections

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nanollmserve_site.settings")
if not sys.stderr.isatty():
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
try:
    django.setup()
except ImproperlyConfigured as error:
    sys.exit(f"error: {error}")

# Only now can anything be imported that has models.
from inference import service
from nanollmserve_site import __version__, first_start
from nanollmserve_site.guard import Message, Receive, Send, guard
from nanollmserve_site.handlers import http_application
from openai_api import runs

logger = logging.getLogger("nanollmserve")


def prepare() -> None:
    """In a thread of its own: uvicorn imports this module inside its event loop."""
    first_start.prepare()
    runs.reconcile()
    connections.close_all()


def leave(error: BaseException) -> None:
    """Without its model the process is of no use; whoever started it must see that."""
    logging.shutdown()
    sys.stderr.flush()
    os._exit(1)


async def refuse_websocket(scope: Message, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def lifespan(scope: Message, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


logger.info(
    "nanollmserve %s, Django %s, torch %s", __version__, version("django"), version("torch")
)
with ThreadPoolExecutor(1) as thread:
    thread.submit(prepare).result()
service.start(on_failure=leave)
atexit.register(service.close)

application = ProtocolTypeRouter(
    {
        "http": guard(http_application()),
        "websocket": refuse_websocket,
        "lifespan": lifespan,
    }
)
