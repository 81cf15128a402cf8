"""`manage.py apikey`: make, list and revoke the keys of the API."""

from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management import BaseCommand, CommandError
from django.utils.timezone import localtime, now

from nanollmserve_site.first_start import prepare_tables
from openai_api.models import ApiKey

LIMITS = {
    "rpm": ("requests_per_minute", "Most requests in a minute."),
    "tpm": ("tokens_per_minute", "Most tokens in a minute."),
    "concurrent": ("concurrent_requests", "Most requests at a time."),
    "tokens_per_day": ("tokens_per_day", "Most tokens in a day of UTC."),
}
COLUMNS = ("name", "key", "state", "created", "expires", "last used", "models", "limits")
MAX_DAYS = 36500  # beyond a hundred years, dates could overflow


class Command(BaseCommand):
    help = "Make, list and revoke API keys. As soon as there is one, each request needs one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(dest="action", required=True)
        create = actions.add_parser("create", help="Make a key, and print its secret this once.")
        create.add_argument("name", help="By which it is listed and revoked.")
        create.add_argument("--expires-days", type=int, metavar="N", help="Days that it is valid.")
        create.add_argument(
            "--models", default="", metavar="A,B", help="Models it may use; all by default."
        )
        for name, (_, help) in LIMITS.items():
            flag = "--" + name.replace("_", "-")
            create.add_argument(flag, type=int, metavar="N", help=f"{help} No limit by default.")
        actions.add_parser("list", help="All keys, without their secrets.")
        revoke = actions.add_parser("revoke", help="End a key. What belongs to it stays its own.")
        revoke.add_argument("name")

    def handle(self, *, action: str, **options: Any) -> None:
        prepare_tables()
        getattr(self, action)(**options)

    def create(self, name: str, expires_days: int | None, models: str, **options: Any) -> None:
        key = ApiKey(name=name, allowed_models=models, expires_at=expiry(expires_days))
        for flag, (field, _) in LIMITS.items():
            setattr(key, field, options[flag])
        secret = key.set_secret()
        try:
            key.full_clean()
        except ValidationError as error:
            raise CommandError(told(error)) from None
        key.save()
        self.stderr.write(f'Key "{name}". Its secret is shown this once:')
        self.stdout.write(secret)

    def list(self, **options: Any) -> None:
        rows = [COLUMNS, *map(described, ApiKey.objects.all())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.stdout.write("  ".join(cells).rstrip())

    def revoke(self, name: str, **options: Any) -> None:
        key = ApiKey.objects.filter(name=name).first()
        if key is None:
            raise CommandError(f'There is no key "{name}".')
        if key.revoked_at is not None:
            raise CommandError(f'The key "{name}" was revoked {shown(key.revoked_at)}.')
        key.revoke()
        self.stdout.write(f'The key "{name}" is revoked. Running servers know within seconds.')


def expiry(days: int | None) -> datetime | None:
    if days is None:
        return None
    if not 1 <= days <= MAX_DAYS:
        raise CommandError(f"--expires-days is {days}; allowed: a whole number from 1 to 36500.")
    return now() + timedelta(days=days)


def described(key: ApiKey) -> tuple[str, ...]:
    limits = {flag: getattr(key, field) for flag, (field, _) in LIMITS.items()}
    return (
        key.name,
        key.hint,
        key.state,
        shown(key.created_at),
        shown(key.expires_at, "never"),
        shown(key.last_used_at, "never"),
        key.allowed_models or "all",
        " ".join(f"{flag}={limit}" for flag, limit in limits.items() if limit) or "none",
    )


def shown(at: datetime | None, otherwise: str = "") -> str:
    return f"{localtime(at):%Y-%m-%d %H:%M}" if at else otherwise


def told(error: ValidationError) -> str:
    """In the words of the flags: `tokens_per_minute` is --tpm here."""
    flags = {field: "--" + flag.replace("_", "-") for flag, (field, _) in LIMITS.items()}
    flags |= {"name": "NAME", "allowed_models": "--models"}
    lines = [
        f"{flags.get(field, field)}: {' '.join(texts)}"
        for field, texts in error.message_dict.items()
    ]
    return "\n".join(lines)
