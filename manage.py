#!/usr/bin/env python
"""Django's command line. `python manage.py serve --help` tells how to start the server."""

import os
import sys
from importlib import import_module

from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, execute_from_command_line


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "nanollmserve_site.settings")
    try:
        if sys.argv[1:2] in (["serve"], ["engine"], ["doctor"]):
            turn_flags_into_variables(sys.argv[1], sys.argv[2:])
        if sys.argv[1:2] == ["doctor"]:
            stop_at_wrong_settings()
        execute_from_command_line(sys.argv)
    except CommandError as error:  # a flag that does not exist
        sys.exit(str(error))
    except ImproperlyConfigured as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def turn_flags_into_variables(command: str, flags: list[str]) -> None:
    """Settings are read once, when Django imports them: the flags must be there before."""
    from nanollmserve_site.env import apply_flags

    module = import_module(f"nanollmserve_site.management.commands.{command}")
    options = module.Command().create_parser("manage.py", command).parse_args(flags)
    apply_flags(vars(options), os.environ)


def stop_at_wrong_settings() -> None:
    """With all that is wrong in them: Django's settings would stop at the first."""
    from dotenv import load_dotenv

    from nanollmserve_site import doctor
    from nanollmserve_site.config import BASE_DIR

    load_dotenv(BASE_DIR / ".env")
    if found := doctor.settings_findings(os.environ):
        sys.stdout.writelines(doctor.report(finding) + "\n" for finding in found)
        sys.exit(f"{len(found)} settings to be mended before anything else can be looked at.")


if __name__ == "__main__":
    main()
