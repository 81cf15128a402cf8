"""`manage.py prune`: what the server's hourly sweep does, now and with any age."""

import time
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError

from openai_api import retention


def num_days(text: str) -> int:
    return int(text.removesuffix("d"))


class Command(BaseCommand):
    help = "Delete stored responses, chat completions and history that ended long ago."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--days",
            "--older-than",
            type=num_days,
            metavar="N",
            help="Age in days, 30 or 30d; NANOLLM_RETENTION_DAYS by default.",
        )
        parser.add_argument(
            "--dry-run", action="store_true", help="Only tell how much would be deleted."
        )

    def handle(self, *, days: int | None, dry_run: bool, **options: Any) -> None:
        days = settings.API.retention_days if days is None else days
        if days is None:
            raise CommandError("Say how old: --days N, or NANOLLM_RETENTION_DAYS.")
        if days < 1:
            raise CommandError(f"--days is {days}; allowed: a whole number, at least 1.")
        before = retention.days_ago(days)
        counts = retention.count(before) if dry_run else deleted(before)
        verb = "would be deleted" if dry_run else "deleted"
        self.stdout.write(f"older than {days} days, {verb}: {retention.told(counts)}")


def deleted(before) -> Counter[str]:
    counts: Counter[str] = Counter()
    for kind in retention.KINDS:
        while num_rows := retention.delete_some(kind, before):
            counts[kind.name] += num_rows
            time.sleep(retention.PAUSE_S)  # SQLite's lock knows no queue: let a server have it
    return counts
