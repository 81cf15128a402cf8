"""The ASGI application. Importing it starts the server's engine, as daphne sends no lifespan.

The port can open at once: the model loads in the background, and until then requests are told so.
"""

import atexit
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import django
from channels.routing import ProtocolTypeRouter
from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import get_resolver

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nanollmserve_site.settings")
try:
    if not apps.ready:  # `serve` has set Django up, and set daphne's log level since
        django.setup()
except ImproperlyConfigured as error:
    sys.exit(f"Error: {error}")

# Only now can anything be imported that has models.
from inference import service
from inference.errors import EngineFailed
from nanollmserve_site import __version__, first_start
from nanollmserve_site.door import loopback_only, same_origin
from nanollmserve_site.drain import Drain
from nanollmserve_site.guard import Message, Receive, Send, guard
from nanollmserve_site.handlers import http_application, websocket_application
from nanollmserve_site.loop_watch import LoopWatch
from nanollmserve_site.request_id import with_request_id
from nanollmserve_site.stats_log import StatsLog
from openai_api import background, keys
from openai_api.console.samples import sampler

logger = logging.getLogger("nanollmserve")


LAST_WORDS_S = 2.0  # for what was running to tell its clients and the database that it failed


def leave(error: BaseException) -> None:
    """Without its engine the process is of no use; whoever started it must see that.

    Status 70 where the engine has lived, so that starting it once more may help, and 1 where not.
    """
    is_broken = isinstance(error, EngineFailed)
    time.sleep(LAST_WORDS_S if is_broken else 0)
    logging.shutdown()
    sys.stderr.flush()
    os._exit(os.EX_SOFTWARE if is_broken else 1)


async def lifespan(scope: Message, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":  # uvicorn has waited for the requests
            await drain.run()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


logger.info(
    "nanollmserve %s, Django %s, torch %s", __version__, version("django"), version("torch")
)
try:
    with ThreadPoolExecutor(1) as thread:  # uvicorn imports this in its event loop: no ORM there
        is_alone = thread.submit(first_start.prepare).result()
except ImproperlyConfigured as error:
    logging.shutdown()
    sys.stderr.write(f"Error: {error}\n")
    os._exit(1)  # within `serve`, an exception would be logged and nothing more
get_resolver().url_patterns  # noqa: B018 - imported now, and not while the first request waits
engine = service.start(on_failure=leave)
sampler.begin(engine)
StatsLog(engine).start()
if is_alone:
    background.start()
atexit.register(service.close)

drain = Drain(settings.SERVER.shutdown_grace_s)
if "daphne.server" in sys.modules:  # it has chosen Twisted's reactor; others need none
    from twisted.internet import reactor

    from nanollmserve_site import daphne_errors, daphne_patch

    daphne_errors.apply()
    daphne_patch.apply(settings.API.max_body_size, settings.SERVER)
    drain.install(reactor)

http = guard(loopback_only(http_application(), keys.exist))
websocket = loopback_only(same_origin(websocket_application()), keys.exist)
application = LoopWatch()(
    ProtocolTypeRouter(
        {
            "http": with_request_id(drain.wrap(http)),
            "websocket": with_request_id(drain.wrap(websocket)),
            "lifespan": lifespan,
        }
    )
)
