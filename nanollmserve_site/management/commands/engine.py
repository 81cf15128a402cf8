"""`manage.py engine`: the engine in a process of its own, for servers that name its address."""

import asyncio
import logging
import os
import threading
from argparse import ArgumentParser
from importlib.metadata import version
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from inference import service
from inference.config import EngineConfig
from inference.engine.address import AddressRefused
from inference.text.grammar import STACK_SIZE
from nanollmserve_site.env import add_flags, settings_of

logger = logging.getLogger("nanollmserve")

STATUSES = {"stopped": 0, "broken": os.EX_SOFTWARE}  # of the process, by the engine's last state


class Command(BaseCommand):
    help = "Run the engine for servers that are started with the same --engine-address."

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_flags(parser, settings_of(EngineConfig))

    def handle(self, **options: Any) -> None:
        """The flags are in the settings already: see manage.py."""
        if settings.ENGINE.engine_address is None:
            raise CommandError("Name a socket with --engine-address (NANOLLM_ENGINE_ADDRESS).")
        logger.info("nanollmserve %s, torch %s", settings.VERSION, version("torch"))
        threading.stack_size(STACK_SIZE)  # grammars are compiled in this process's threads
        try:
            state = asyncio.run(service.serve())
        except AddressRefused as error:
            raise CommandError(f"--engine-address (NANOLLM_ENGINE_ADDRESS): {error}.") from None
        logging.shutdown()
        # Loading cannot be stopped, and would be in the way
        os._exit(STATUSES.get(state, 1))
