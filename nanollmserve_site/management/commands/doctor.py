"""`manage.py doctor`: would a server start here, with these settings?"""

from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from nanollmserve_site import doctor
from nanollmserve_site.env import add_flags
from nanollmserve_site.management.commands.serve import has_keys


class Command(BaseCommand):
    help = (
        "Look for what would keep `serve` from starting, and say how to mend it: settings, "
        "packages, data folder, database, host and keys, port, device, memory for the model, "
        "compiler. Takes the flags of `serve`. Loads and downloads nothing. The exit status is 1 "
        "if something has to be mended."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add_flags(parser)

    def handle(self, **options: Any) -> None:
        """The flags are in the settings already: see manage.py, which has checked those too."""
        levels = []
        for finding in doctor.examine(settings.SERVER, settings.ENGINE, has_keys):
            self.stdout.write(doctor.report(finding))
            levels.append(finding.level)
        if num_failed := levels.count(doctor.FAIL):
            raise CommandError(f"{num_failed} to be mended before `serve` can start.")
        num_warnings = levels.count(doctor.WARN)
        self.stdout.write("`serve` can start" + (f"; {num_warnings} warnings" * bool(num_warnings)))
