"""What webhooks' routes take and tell."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, StringConstraints

from tbot.core import clock
from tbot.ledger.entry_kinds import WANTED
from tbot.ledger.webhooks import Delivery, Webhook
from tbot.ledger.webhooks_target import URL_LENGTH_MAX
from tbot.web.fields import Answer, Id, Request, Timestamp

Url = Annotated[
    str,
    StringConstraints(min_length=1, max_length=URL_LENGTH_MAX),
    Field(
        description="Where to: http or https, and (unless the server says otherwise) a public "
        "address.",
        examples=["https://example.com/hooks/tbot"],
        strict=True,
    ),
]


def _known_kind(kind: str) -> str:
    # One that is not would be taken, and never bring anything.
    if kind not in WANTED:
        raise ValueError(f"is no kind of entry; there are {', '.join(WANTED)}")
    return kind


Kinds = Annotated[
    list[
        Annotated[
            str,
            Field(strict=True, json_schema_extra={"enum": list(WANTED)}),
            AfterValidator(_known_kind),
        ]
    ],
    Field(
        max_length=len(WANTED),
        description="Kinds of journal entries, as `payment.succeeded`, or all of a group, as "
        "`order.*`; all when empty.",
        examples=[["payment.*"]],
    ),
]
Sequence_ = Annotated[int, Field(ge=1, le=2**62, strict=True)]


class NewWebhook(Request):
    """A subscription to an account's journal."""

    account_id: Id
    url: Url
    kinds: Kinds = Field(default_factory=list)
    from_sequence: Annotated[
        Sequence_ | None,
        Field(description="The first entry to deliver; what comes from now on when absent."),
    ] = None


class WebhookChange(Request):
    """What is to be different; what is left out stays."""

    url: Url | None = None
    kinds: Kinds | None = None
    enabled: Annotated[
        bool | None, Field(strict=True, description="True also lets a disabled one go on.")
    ] = None


class Replay(Request):
    """Where to deliver from."""

    from_sequence: Annotated[Sequence_, Field(description="The next entry to deliver.")]


class Rotation(Request):
    """How a secret is to be replaced."""

    overlap_s: Annotated[
        int | None,
        Field(
            ge=0,
            le=31_536_000,
            strict=True,
            description="Seconds for which messages are signed with the old secret, too; at most, "
            "and by default, `webhooks.secret_overlap_s`. 0 when it has leaked.",
        ),
    ] = None


class WebhookOut(Answer):
    """A subscription as it is now."""

    id: Id
    account_id: Id
    url: str
    kinds: list[str]
    enabled: bool
    disabled_reason: Annotated[
        str | None,
        Field(
            description="`owner`; `dead_letters`: too many in a row; `gone`: it answered 410; "
            "`journal_changed`: the journal was restored, replay from where you want."
        ),
    ]
    sequence: Annotated[int, Field(description="The last entry that it is done with.")]
    old_secret_until: Annotated[
        Timestamp | None,
        Field(
            description="Until when messages are signed with an older secret, too; null when "
            "they are not."
        ),
    ]
    created_at: Timestamp
    updated_at: Timestamp


class WebhookCreated(WebhookOut):
    """A new subscription with its secret, which is shown this once."""

    secret: Annotated[str, Field(examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])]


class WebhookRotated(WebhookCreated):
    """A subscription with its new secret, which is shown this once."""


class WebhookPage(Answer):
    """A page of subscriptions, oldest first."""

    items: list[WebhookOut]
    next: str | None


class DeliveryOut(Answer):
    """What became of one entry."""

    sequence: Annotated[int, Field(description="Of the entry in its account's journal.")]
    kind: str
    state: Annotated[str, Field(description="`retrying`, `delivered` or `dead`.")]
    attempts: int
    status: Annotated[int | None, Field(description="HTTP status of the last answer.")]
    error: str | None
    at: Timestamp
    next_at: Timestamp | None


class DeliveryPage(Answer):
    """A page of deliveries, newest entry first."""

    items: list[DeliveryOut]
    next: str | None


def webhook_json(webhook: Webhook) -> dict[str, Any]:
    """A subscription as `WebhookOut` describes it, in JSON types."""
    until = max(webhook.old_until, default=None)
    return {
        "id": webhook.id,
        "account_id": webhook.account_id,
        "url": webhook.url,
        "kinds": list(webhook.kinds),
        "enabled": webhook.enabled,
        "disabled_reason": webhook.disabled_reason,
        "sequence": webhook.seq,
        "old_secret_until": None if until is None else clock.stamp(until),
        "created_at": clock.stamp(webhook.created_at),
        "updated_at": clock.stamp(webhook.updated_at),
    }


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """A delivery as `DeliveryOut` describes it, in JSON types."""
    next_at = delivery.next_at
    return {
        "sequence": delivery.seq,
        "kind": delivery.kind,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "error": delivery.error,
        "at": clock.stamp(delivery.at),
        "next_at": None if next_at is None else clock.stamp(next_at),
    }
