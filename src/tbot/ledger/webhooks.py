"""Webhooks: subscriptions to accounts' journals, their places and what became of deliveries.

A subscription is a cursor over one account's journal. Its entries are delivered in order, each
until it is taken or given up for dead; the place is stored after each, so every entry is delivered
at least once, and a receiver that has seen its id already ignores it.

Functions take a connection first and commit nothing, but for single statements.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from tbot.core.errors import NotFound
from tbot.core.payment_settings import WebhookSettings
from tbot.core.refusals import Reason, Refused
from tbot.journal import chain

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

WAKE: Final = "webhooks"
"""Bus topic: a subscription has changed."""
_NOTIFY: Final = f"SELECT pg_notify('tbot', '{WAKE}')"
_CREATION_LOCK: Final = 0x7B0B_0001
_COLUMNS: Final = (
    "id, owner_id, account_id, url, kinds, secret, enabled, disabled_reason, seq, hash, failures,"
    " version, created_at, updated_at, old_secrets, old_until"
)
_OLD_SECRETS_MAX: Final = 3
"""Secrets before the present one that sign at once; of more, the oldest stops."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription.

    Attributes:
        kinds: Of the entries it wants, as `order.*` or `payment.succeeded`; empty for all.
        seq, hash: Its place: the last entry that is done with.
        failures: Dead letters in a row.
        version: Of what its owner wants.
        old_secrets, old_until: What it had before `secret`, the newest first, and until when each
            signs, too.
    """

    id: UUID
    owner_id: UUID
    account_id: UUID
    url: str
    kinds: tuple[str, ...]
    secret: bytes = field(repr=False)
    enabled: bool
    disabled_reason: str | None
    seq: int
    hash: bytes
    failures: int
    version: int
    created_at: datetime
    updated_at: datetime
    old_secrets: tuple[bytes, ...] = field(default=(), repr=False)
    old_until: tuple[datetime, ...] = ()

    def secrets(self, now: datetime) -> tuple[bytes, ...]:
        """What a message of this moment is signed with, the newest first."""
        old = zip(self.old_secrets, self.old_until, strict=True)
        return (self.secret, *(secret for secret, until in old if until > now))

    def wants(self, kind: str) -> bool:
        """Whether entries of this kind are delivered.

        Example:
            >>> from dataclasses import replace
            >>> now = datetime(2026, 1, 1)
            >>> hook = Webhook(
            ...     UUID(int=1), UUID(int=2), UUID(int=3), "https://example.com", ("order.*",),
            ...     b"", True, None, 0, b"", 0, 1, now, now,
            ... )
            >>> hook.wants("order.filled"), hook.wants("orders.x")
            (True, False)
            >>> replace(hook, kinds=()).wants("orders.x")
            True
        """
        return not self.kinds or any(
            kind == wanted or (wanted.endswith("*") and kind.startswith(wanted[:-1]))
            for wanted in self.kinds
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one entry.

    Attributes:
        state: `retrying`, `delivered` or `dead`.
        status: HTTP status of the last attempt; None when there was no answer.
        error: Why the last attempt failed.
        next_at: When the next attempt is due.
    """

    webhook_id: UUID
    seq: int
    kind: str
    state: str
    attempts: int
    status: int | None
    error: str | None
    at: datetime
    next_at: datetime | None = None


async def _begin_anew(connection: Connection, webhook_id: UUID) -> None:
    """Try at once what is being retried, and as often as if it had not been tried before.

    Its owner has come, and knows more than a delay of an hour does. A statement of its own, after
    the one that has locked the subscription: so it sees what `postpone` noted until then.
    """
    await connection.execute(
        "DELETE FROM webhook_deliveries WHERE webhook_id = $1 AND state = 'retrying'", webhook_id
    )


def _webhook(row: asyncpg.Record) -> Webhook:
    lists = {name: tuple(row[name]) for name in ("kinds", "old_secrets", "old_until")}
    return Webhook(**{**dict(row), **lists})


async def create(
    connection: Connection, webhook: Webhook, settings: WebhookSettings
) -> Webhook | Refused:
    """Add a subscription; call it inside a transaction."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _CREATION_LOCK)
    total = await connection.fetchval("SELECT count(*) FROM webhooks")
    own = await connection.fetchval(
        "SELECT count(*) FROM webhooks WHERE owner_id = $1", webhook.owner_id
    )
    if own >= settings.per_user_max or total >= settings.subscriptions_max:
        return Refused(Reason.WEBHOOKS_MAX, "there are as many webhooks as there may be")
    await connection.execute(
        f"INSERT INTO webhooks ({_COLUMNS})"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, '{}', '{}')",
        webhook.id,
        webhook.owner_id,
        webhook.account_id,
        webhook.url,
        list(webhook.kinds),
        webhook.secret,
        webhook.enabled,
        webhook.disabled_reason,
        webhook.seq,
        webhook.hash,
        webhook.failures,
        webhook.version,
        webhook.created_at,
        webhook.updated_at,
    )
    await connection.execute(_NOTIFY)
    return webhook


async def place(connection: Connection, account_id: UUID, seq: int) -> bytes | None:
    """The hash of an account's entry, or (0) of its beginning; None when there is no such entry."""
    if seq == 0:
        return chain.genesis(account_id)
    digest: bytes | None = await connection.fetchval(
        "SELECT hash FROM journal WHERE account_id = $1 AND seq = $2", account_id, seq
    )
    return digest


async def head(connection: Connection, account_id: UUID) -> tuple[int, bytes]:
    """Where an account's journal ends now.

    Raises:
        NotFound: There is no such account.
    """
    row = await connection.fetchrow(
        "SELECT seq, hash FROM streams WHERE account_id = $1", account_id
    )
    if row is None:
        raise NotFound("no such account")
    return row["seq"], row["hash"]


async def get(connection: Connection, webhook_id: UUID, owner_id: UUID) -> Webhook:
    """A subscription of an owner's.

    Raises:
        NotFound: No such subscription, or somebody else's.
    """
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM webhooks WHERE id = $1 AND owner_id = $2", webhook_id, owner_id
    )
    if row is None:
        raise NotFound("no such webhook")
    return _webhook(row)


async def list_of(
    connection: Connection, owner_id: UUID, after: UUID | None, limit: int
) -> list[Webhook]:
    """A page of an owner's subscriptions, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM webhooks WHERE owner_id = $1 AND ($2::uuid IS NULL OR id > $2)"
        " ORDER BY id LIMIT $3",
        owner_id,
        after,
        limit,
    )
    return [_webhook(row) for row in rows]


async def list_enabled(connection: Connection, limit: int) -> list[Webhook]:
    """Every subscription that is to be delivered."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM webhooks WHERE enabled ORDER BY id LIMIT $1", limit
    )
    return [_webhook(row) for row in rows]


async def change(
    connection: Connection,
    webhook_id: UUID,
    *,
    url: str | None = None,
    kinds: Sequence[str] | None = None,
    enabled: bool | None = None,
    versions: Collection[str] | None = None,
) -> Webhook | None:
    """Change what is not None; enabling one that was disabled lets it go on where it stood.

    What is being retried is tried again at once. Call it inside a transaction.

    Args:
        versions: Those that the change is for; None for any.

    Returns:
        The webhook as it is now; None when it is of another version, or gone.
    """
    row = await connection.fetchrow(
        "WITH told AS (SELECT pg_notify('tbot', $6)) "
        "UPDATE webhooks SET url = coalesce($2, url), kinds = coalesce($3::text[], kinds),"
        " enabled = coalesce($4, enabled), failures = 0, version = version + 1,"
        " updated_at = now(), disabled_reason = CASE WHEN coalesce($4, enabled) THEN NULL"
        "                                       ELSE coalesce(disabled_reason, $5) END"
        " FROM told WHERE id = $1 AND ($7::text[] IS NULL OR version::text = ANY($7))"
        f" RETURNING {_COLUMNS}",
        webhook_id,
        url,
        None if kinds is None else list(kinds),
        enabled,
        "owner",
        WAKE,
        None if versions is None else list(versions),
    )
    if row is not None:
        await _begin_anew(connection, webhook_id)
    return None if row is None else _webhook(row)


# It reads no row but its own: a rotation that waited for another one sees what that left.
_ROTATE: Final = f"""
WITH told AS (SELECT pg_notify('tbot', $4))
UPDATE webhooks SET secret = $2, version = version + 1, updated_at = now(),
    old_secrets = ARRAY(
        SELECT o.secret
        FROM unnest(array_prepend(webhooks.secret, old_secrets),
                    array_prepend(now() + $3::interval, old_until))
            WITH ORDINALITY AS o (secret, until, place)
        WHERE o.until > now() ORDER BY o.place LIMIT {_OLD_SECRETS_MAX}),
    old_until = ARRAY(
        SELECT o.until
        FROM unnest(array_prepend(now() + $3::interval, old_until))
            WITH ORDINALITY AS o (until, place)
        WHERE o.until > now() ORDER BY o.place LIMIT {_OLD_SECRETS_MAX})
FROM told WHERE id = $1 RETURNING {_COLUMNS}"""


async def rotate(
    connection: Connection, webhook_id: UUID, secret: bytes, overlap: timedelta
) -> Webhook:
    """Give a subscription a new secret.

    Args:
        overlap: How long the present one signs, too. At most three old ones do.

    Raises:
        NotFound: It is gone.
    """
    row = await connection.fetchrow(_ROTATE, webhook_id, secret, overlap, WAKE)
    if row is None:
        raise NotFound("no such webhook")
    return _webhook(row)


async def forget_old_secrets(connection: Connection) -> None:
    """Drop the secrets of subscriptions of whose old ones none signs any more."""
    await connection.execute(
        "UPDATE webhooks SET old_secrets = '{}', old_until = '{}'"
        " WHERE old_until <> '{}' AND NOT now() < ANY(old_until)"
    )


async def replay(connection: Connection, webhook: Webhook, seq: int, digest: bytes) -> Webhook:
    """Set the place back (or forward): the next delivery is of entry `seq + 1`.

    Call it inside a transaction.

    Raises:
        NotFound: It is gone.
    """
    row = await connection.fetchrow(
        "WITH told AS (SELECT pg_notify('tbot', $4)) "
        "UPDATE webhooks SET seq = $2, hash = $3, version = version + 1, failures = 0,"
        f" updated_at = now() FROM told WHERE id = $1 RETURNING {_COLUMNS}",
        webhook.id,
        seq,
        digest,
        WAKE,
    )
    if row is None:
        raise NotFound("no such webhook")
    await _begin_anew(connection, webhook.id)
    return _webhook(row)


async def delete(connection: Connection, webhook: Webhook) -> None:
    """Remove a subscription and its deliveries."""
    await connection.execute("DELETE FROM webhooks WHERE id = $1", webhook.id)
    await connection.execute(_NOTIFY)


async def disable(connection: Connection, webhook: Webhook, reason: str) -> None:
    """Stop delivering, unless its owner has changed it meanwhile."""
    await connection.execute(
        "UPDATE webhooks SET enabled = false, disabled_reason = $3, version = version + 1,"
        " updated_at = now() WHERE id = $1 AND version = $2",
        webhook.id,
        webhook.version,
        reason,
    )


async def advance(connection: Connection, webhook: Webhook, seq: int, digest: bytes) -> bool:
    """Store a place after entries that were not wanted; False when it is not ours to move."""
    tag: str = await connection.execute(
        "UPDATE webhooks SET seq = $3, hash = $4"
        " WHERE id = $1 AND version = $2 AND enabled AND seq < $3",
        webhook.id,
        webhook.version,
        seq,
        digest,
    )
    return tag == "UPDATE 1"


_SETTLE: Final = """
WITH moved AS (
    UPDATE webhooks SET seq = $3, hash = $4,
           failures = CASE WHEN $6 = 'dead' THEN failures + 1 ELSE 0 END
    WHERE id = $1 AND version = $2 AND enabled AND seq < $3 RETURNING failures
), pruned AS (
    DELETE FROM webhook_deliveries
    WHERE webhook_id = $1 AND state = 'delivered' AND seq <= $3 - $10
      AND EXISTS (SELECT FROM moved)
), noted AS (
    INSERT INTO webhook_deliveries (webhook_id, seq, kind, state, attempts, status, error, at)
    SELECT $1, $3, $5, $6, $7, $8, $9, now() FROM moved
    ON CONFLICT (webhook_id, seq) DO UPDATE SET kind = excluded.kind, state = excluded.state,
        attempts = excluded.attempts, status = excluded.status, error = excluded.error,
        at = excluded.at, next_at = NULL
)
SELECT failures FROM moved"""


async def settle(
    connection: Connection, webhook: Webhook, delivery: Delivery, digest: bytes, kept: int
) -> int | None:
    """Note that an entry was delivered, or is dead, and move the place past it.

    Args:
        kept: Deliveries listed; older ones go. Dead letters stay.

    Returns:
        How many dead letters there are in a row; None when the place is not ours to move.
    """
    failures: int | None = await connection.fetchval(
        _SETTLE,
        webhook.id,
        webhook.version,
        delivery.seq,
        digest,
        delivery.kind,
        delivery.state,
        delivery.attempts,
        delivery.status,
        delivery.error,
        kept,
    )
    return failures


async def postpone(connection: Connection, webhook: Webhook, delivery: Delivery) -> None:
    """Note a failed attempt and when the next one is due, unless its owner has changed it since.

    An attempt that was under way then says nothing about what the owner wants now.
    """
    await connection.execute(
        "WITH ours AS (SELECT FROM webhooks WHERE id = $1 AND version = $9 FOR SHARE)"
        " INSERT INTO webhook_deliveries"
        " (webhook_id, seq, kind, state, attempts, status, error, at, next_at)"
        " SELECT $1, $2, $3, 'retrying', $4, $5, $6, $7, $8 FROM ours"
        " ON CONFLICT (webhook_id, seq) DO UPDATE SET kind = excluded.kind, state = 'retrying',"
        " attempts = excluded.attempts, status = excluded.status, error = excluded.error,"
        " at = excluded.at, next_at = excluded.next_at",
        delivery.webhook_id,
        delivery.seq,
        delivery.kind,
        delivery.attempts,
        delivery.status,
        delivery.error,
        delivery.at,
        delivery.next_at,
        webhook.version,
    )


async def retrying(connection: Connection, webhook_id: UUID, seq: int) -> Delivery | None:
    """The attempts so far on an entry that is being retried."""
    row = await connection.fetchrow(
        "SELECT * FROM webhook_deliveries WHERE webhook_id = $1 AND seq = $2"
        " AND state = 'retrying'",
        webhook_id,
        seq,
    )
    return None if row is None else Delivery(**dict(row))


async def list_deliveries(
    connection: Connection,
    webhook_id: UUID,
    *,
    dead: bool = False,
    before_seq: int | None = None,
    limit: int = 100,
) -> list[Delivery]:
    """A page of a subscription's deliveries, newest entry first; `dead` lists dead letters only."""
    condition = " AND state = 'dead'" if dead else ""
    rows = await connection.fetch(
        "SELECT * FROM webhook_deliveries WHERE webhook_id = $1"
        f" AND ($2::bigint IS NULL OR seq < $2){condition} ORDER BY seq DESC LIMIT $3",
        webhook_id,
        before_seq,
        limit,
    )
    return [Delivery(**dict(row)) for row in rows]
