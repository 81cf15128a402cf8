"""What is kept: keys, Responses, chats and conversations, and a line of history for every request.

What a key has made belongs to it, and what was made without one belongs to nobody. A key that owns
something cannot be deleted: what it leaves behind would be nobody's, and so everybody's.
"""

import hashlib
import hmac
import secrets

from django.core.validators import MinValueValidator, RegexValidator
from django.db import models
from django.utils.timezone import now

from openai_api.protocol.ids import new_conversation_id, new_request_id, new_response_id

BOOT_ID = secrets.token_hex(8)  # tells this process's rows from those of a dead one


def boot_id() -> str:
    return BOOT_ID


def _limit(help_text: str) -> models.PositiveBigIntegerField:
    return models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text=help_text
    )


class ApiKey(models.Model):
    """Who may use the API, and how much. The secret itself is not kept."""

    PREFIX_LEN, SUFFIX_LEN = 8, 4

    name = models.CharField(
        max_length=64,
        unique=True,
        # No name is a formula to the program that opens the CSV.
        validators=[RegexValidator(r"^[A-Za-z0-9][A-Za-z0-9 @._-]*\Z")],
        help_text="Letters, digits, spaces and @ . _ -",
    )
    prefix = models.CharField(max_length=PREFIX_LEN, editable=False)
    suffix = models.CharField(max_length=SUFFIX_LEN, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Never, if left out.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    allowed_models = models.CharField(
        max_length=1000, blank=True, help_text="Names, separated by commas; all, if left out."
    )
    requests_per_minute = _limit("Requests to the model and its tokenizer.")
    tokens_per_minute = _limit("Tokens of prompts and answers.")
    concurrent_requests = _limit("Requests that are answered at the same time.")
    tokens_per_day = _limit("Tokens of prompts and answers, by the day of UTC.")

    class Meta:
        ordering = ["name"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return self.name

    def set_secret(self) -> str:
        """A new secret, to be shown this once."""
        # 43 random characters; those that are shown leave 200 bits in the dark.
        secret = f"sk-{secrets.token_urlsafe(32)}"
        self.prefix, self.suffix = secret[: self.PREFIX_LEN], secret[-self.SUFFIX_LEN :]
        self.digest = hashlib.sha256(secret.encode()).hexdigest()
        return secret

    def is_of(self, secret: str) -> bool:
        """Whether it is the key of this secret; takes as long whatever the secret is."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return hmac.compare_digest(digest, self.digest)

    @property
    def hint(self) -> str:
        """What may be shown of the secret."""
        return f"{self.prefix}…{self.suffix}"

    @property
    def state(self) -> str:
        if self.revoked_at is not None:
            return "revoked"
        is_over = self.expires_at is not None and self.expires_at <= now()
        return "expired" if is_over else "active"

    def revoke(self) -> None:
        self.revoked_at = now()
        self.save(update_fields=["revoked_at"])

    def allows(self, model: str) -> bool:
        allowed = {name.strip() for name in self.allowed_models.split(",")} - {""}
        return not allowed or model in allowed


class Usage(models.Model):
    """What a key, or all without one, used on a day of UTC: that on which its requests ended."""

    key = models.ForeignKey(ApiKey, models.PROTECT, null=True, related_name="usage")
    day = models.DateField(db_index=True)
    num_requests = models.PositiveBigIntegerField("requests", default=0)
    num_prompt_tokens = models.PositiveBigIntegerField("prompt tokens", default=0)
    num_cached_tokens = models.PositiveBigIntegerField("of them cached", default=0)
    num_completion_tokens = models.PositiveBigIntegerField("completion tokens", default=0)

    class Meta:
        ordering = ["-day", "key"]
        verbose_name_plural = "usage"
        constraints = [
            models.UniqueConstraint(fields=["key", "day"], name="one_usage_per_day"),
            models.UniqueConstraint(  # to a database, no two nobodies are the same
                fields=["day"], condition=models.Q(key=None), name="one_usage_of_nobody_per_day"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.key or 'no key'} on {self.day}"


def _owner(**options) -> models.ForeignKey:
    """The key that a row belongs to, found by the row's own id and not the other way round."""
    options = {"db_index": False, "editable": False} | options
    return models.ForeignKey(ApiKey, models.PROTECT, null=True, related_name="+", **options)


class Conversation(models.Model):
    """Items that responses go on from and add to, one response at a time.

    `run_id` is the response that is at it: whoever sets it where it is empty has the lock.
    """

    id = models.CharField(
        primary_key=True, max_length=64, default=new_conversation_id, editable=False
    )
    key = _owner()
    created_at = models.DateTimeField(default=now, editable=False, db_index=True)
    metadata = models.JSONField(default=dict)
    used_at = models.DateTimeField(default=now, editable=False, db_index=True)
    run_id = models.CharField(max_length=64, blank=True, editable=False)
    boot_id = models.CharField(max_length=16, blank=True, editable=False)

    class Meta:
        ordering = ["-created_at"]

    def __str__(self) -> str:
        return self.id

    def to_dict(self) -> dict:
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": int(self.created_at.timestamp()),
            "metadata": self.metadata,
        }


class ConversationItem(models.Model):
    """An item of a conversation, in the shape the API returns it. The key gives the order."""

    conversation = models.ForeignKey(
        Conversation, models.CASCADE, related_name="items", db_index=False
    )
    item_id = models.CharField(max_length=64, db_index=True)
    item = models.JSONField()
    response_id = models.CharField(
        max_length=64, blank=True, help_text="The response that brought it."
    )

    class Meta:
        ordering = ["pk"]
        indexes = [models.Index(fields=["conversation", "id"])]
        constraints = [
            models.UniqueConstraint(fields=["conversation", "item_id"], name="one_item_per_id")
        ]

    def __str__(self) -> str:
        return self.item_id


class StoredResponse(models.Model):
    """One model response. JSON fields are in the shape the API returns them.

    queued → in_progress → completed | incomplete | failed | cancelled: `finish` is the only way
    out of the active states, and only the first to try succeeds.
    """

    class Status(models.TextChoices):
        QUEUED = "queued"
        IN_PROGRESS = "in_progress"
        COMPLETED = "completed"
        INCOMPLETE = "incomplete"
        FAILED = "failed"
        CANCELLED = "cancelled"

    ACTIVE = (Status.QUEUED, Status.IN_PROGRESS)

    id = models.CharField(primary_key=True, max_length=64, default=new_response_id, editable=False)
    key = _owner()
    # Not enforced by the database: a deleted response must stay missing in the chain, so that
    # continuing it is an error and not a conversation with a hole.
    previous = models.ForeignKey(
        "self",
        models.DO_NOTHING,
        null=True,
        blank=True,
        db_constraint=False,
        related_name="continuations",
    )
    conversation = models.ForeignKey(
        Conversation,
        models.DO_NOTHING,
        null=True,
        blank=True,
        db_constraint=False,  # as above: a conversation may go, what was said in it stays
        related_name="responses",
    )
    conversation_position = models.BigIntegerField(
        null=True, editable=False, help_text="Key of the conversation's last item before this."
    )
    created_at = models.DateTimeField(default=now, editable=False, db_index=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    status = models.CharField(max_length=12, choices=Status.choices, default=Status.IN_PROGRESS)
    model = models.CharField(max_length=200)
    request = models.JSONField(help_text="The settings of the request, as the API echoes them.")
    input = models.JSONField(default=list, help_text="The request's own input items.")
    output = models.JSONField(default=list)
    usage = models.JSONField(null=True, blank=True)
    error = models.JSONField(null=True, blank=True)
    incomplete_details = models.JSONField(null=True, blank=True)
    background = models.BooleanField(default=False)
    attempts = models.PositiveSmallIntegerField(default=1, editable=False)
    body = models.JSONField(
        null=True, blank=True, help_text="A background request as sent, until it has ended."
    )
    boot_id = models.CharField(max_length=16, default=boot_id, editable=False)
    # The caller's name for the request, and sha256 of what the request said. Only of nulls may
    # there be many.
    idempotency_key = models.CharField(  # noqa: DJ001
        max_length=255, null=True, blank=True, editable=False
    )
    body_digest = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["status", "-created_at"]),
            models.Index(fields=["model", "-created_at"]),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["key", "idempotency_key"], name="one_response_per_idempotency_key"
            ),
            models.UniqueConstraint(  # to a database, no two nobodies are the same
                fields=["idempotency_key"],
                condition=models.Q(key=None),
                name="one_response_of_nobody_per_idempotency_key",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.id} ({self.status})"

    def to_dict(self) -> dict:
        """The Response resource, all keys present (openai-api 3.4)."""
        resource = self.request | {
            "id": self.id,
            "object": "response",
            "created_at": int(self.created_at.timestamp()),
            "completed_at": int(self.completed_at.timestamp()) if self.completed_at else None,
            "status": self.status,
            "model": self.model,
            "previous_response_id": self.previous_id,
            "output": self.output,
            "usage": self.usage,
            "error": self.error,
            "incomplete_details": self.incomplete_details,
        }
        if self.conversation_id is not None:
            resource["conversation"] = {"id": self.conversation_id}
        return resource

    def finish(self, **values) -> bool:
        """Leave the active state, once: False if someone (a cancel, say) got there first."""
        active = StoredResponse.objects.filter(pk=self.pk, status__in=self.ACTIVE)
        return active.update(**values) == 1


class StoredItem(models.Model):
    """In which response an item is, for those who refer to it."""

    response = models.ForeignKey(StoredResponse, models.CASCADE, related_name="items")
    item_id = models.CharField(max_length=64, db_index=True)

    def __str__(self) -> str:
        return self.item_id


class EventBatch(models.Model):
    """A stretch of a response's events, as they were sent: one JSON text per line."""

    response = models.ForeignKey(StoredResponse, models.CASCADE, related_name="event_batches")
    first = models.PositiveIntegerField(help_text="Sequence number of the first event.")
    events = models.TextField()
    # Of a background response: the tokens behind the events, to go on after a crash.
    token_ids = models.JSONField(default=list)

    class Meta:
        ordering = ["first"]
        constraints = [
            models.UniqueConstraint(fields=["response", "first"], name="one_batch_per_number")
        ]

    def __str__(self) -> str:
        return f"{self.response_id} from {self.first}"


class StoredChatCompletion(models.Model):
    """A finished chat completion. JSON fields are in the shape the API returns them."""

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    key = _owner()
    # When it was finished, not when it began: whoever has read a list to its end finds what was
    # stored since behind that end.
    created_at = models.DateTimeField(default=now, editable=False)
    model = models.CharField(max_length=200)
    # Before the large columns: SQLite would have to read through them to find it.
    metadata = models.JSONField(default=dict)
    messages = models.JSONField(help_text="The request's messages, each with an id.")
    request = models.JSONField(default=dict, help_text="What else the request said.")
    completion = models.JSONField()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["created_at", "id"]),
            models.Index(fields=["key", "created_at", "id"]),
            models.Index(fields=["model", "created_at", "id"]),
        ]

    def __str__(self) -> str:
        return self.id

    def to_dict(self) -> dict:
        """The chat completion, with its metadata of today."""
        return self.completion | {"metadata": self.metadata}


class RequestLog(models.Model):
    """One API request, from its arrival to its last byte. No prompt and no answer is kept here."""

    class Outcome(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        CANCELLED = "cancelled", "client left"
        LOST = "lost", "server stopped"

    id = models.CharField(primary_key=True, max_length=64, default=new_request_id, editable=False)
    key = _owner()
    user = models.CharField(
        max_length=150, blank=True, help_text="Who asked from the playground, without a key."
    )
    created_at = models.DateTimeField(default=now, editable=False, db_index=True)
    endpoint = models.CharField(max_length=80, help_text="Method and route.")
    model = models.CharField(max_length=200, blank=True)
    outcome = models.CharField(max_length=12, choices=Outcome.choices, default=Outcome.RUNNING)
    status = models.PositiveSmallIntegerField(null=True, blank=True, help_text="HTTP status.")
    stream = models.BooleanField(default=False)
    finish_reason = models.CharField(max_length=20, blank=True)
    num_prompt_tokens = models.PositiveIntegerField(null=True, blank=True)
    num_cached_tokens = models.PositiveIntegerField(null=True, blank=True)
    num_completion_tokens = models.PositiveIntegerField(null=True, blank=True)
    time_to_first_token_s = models.FloatField(null=True, blank=True)
    duration_s = models.FloatField(null=True, blank=True)
    error_code = models.CharField(max_length=80, blank=True)
    error_message = models.CharField(max_length=500, blank=True)
    client = models.CharField(max_length=64, blank=True, help_text="Address of the caller.")
    user_agent = models.CharField(max_length=200, blank=True)
    response_id = models.CharField(max_length=64, blank=True, db_index=True)
    boot_id = models.CharField(max_length=16, default=boot_id, editable=False)

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "request"
        indexes = [
            models.Index(fields=["key", "-created_at"]),
            models.Index(fields=["endpoint", "-created_at"]),
            models.Index(fields=["outcome", "-created_at"]),
            models.Index(fields=["model", "-created_at"]),
        ]
        permissions = [
            ("abort_requestlog", "Can end running requests"),
            ("replay_requestlog", "Can repeat stored requests"),
            ("use_playground", "Can use the playground"),
        ]

    def __str__(self) -> str:
        return f"{self.endpoint} {self.status or self.outcome}"
