"""Table of deposits and withdrawals.

`PaymentsProjection` keeps it in step with the journal; the functions below it read it. Every
function takes a connection first and commits nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, time
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock, money
from tbot.core.errors import NotFound
from tbot.core.ids import LAST_ID
from tbot.journal.commands import AccountState, Command, States
from tbot.journal.projections import Projection, Write
from tbot.ledger import payments
from tbot.ledger.payments import COUNTED, OPEN, Kind, Payment, Payments, State, first_day

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

# Column, its SQL array type, and whether it can change after the payment was created.
_COLUMNS: Final = (
    ("id", "uuid", False),
    ("account_id", "uuid", False),
    ("kind", "text", False),
    ("provider", "text", False),
    ("asset", "text", False),
    ("amount", "numeric", False),
    ("fee", "numeric", False),
    ("destination", "text", False),
    ("state", "text", True),
    ("reason", "text", True),
    ("instructions", "text", True),
    ("reference", "text", True),
    ("settled", "numeric", True),
    ("held", "numeric", True),
    ("requested_by", "uuid", False),
    ("decided_by", "uuid", True),
    ("parent_id", "uuid", False),
    ("metadata", "jsonb", False),
    ("expires_at", "timestamptz", False),
    ("submitted_at", "timestamptz", True),
    ("created_at", "timestamptz", False),
    ("updated_at", "timestamptz", True),
    ("seq", "bigint", True),
)
_NAMES: Final = [name for name, _, _ in _COLUMNS]
_SELECT: Final = ", ".join(f"p.{name}" for name in _NAMES)
_CHANGING: Final = [("id", "uuid"), *((n, t) for n, t, changes in _COLUMNS if changes)]
_OPEN_SQL: Final = "('pending', 'awaiting_approval', 'approved', 'submitted')"
_COUNTED_SQL: Final = "('pending', 'awaiting_approval', 'approved', 'submitted', 'succeeded')"

_INSERT: Final = "INSERT INTO payments ({}) SELECT * FROM unnest({})".format(
    ", ".join(_NAMES), ", ".join(f"{{{i}}}::{t}[]" for i, (_, t, _) in enumerate(_COLUMNS))
)
_UPDATE: Final = "UPDATE payments p SET {} FROM unnest({}) AS u ({}) WHERE p.id = u.id".format(
    ", ".join(f"{n} = u.{n}" for n, _ in _CHANGING[1:]),
    ", ".join(f"{{{i}}}::{t}[]" for i, (_, t) in enumerate(_CHANGING)),
    ", ".join(n for n, _ in _CHANGING),
)
_TOTALS: Final = f"""SELECT account_id, date_trunc('hour', created_at, 'UTC') AS hour, kind, asset,
 sum(amount) AS total, sum(amount) FILTER (WHERE kind = 'withdrawal'
  AND state <> 'awaiting_approval' AND decided_by IS NULL) AS unapproved FROM payments
WHERE account_id = ANY($1::uuid[]) AND created_at >= $2 AND state IN {_COUNTED_SQL}
GROUP BY 1, 2, 3, 4"""


class PaymentsProjection(Projection):
    """Keeps `payments` in step with the journal."""

    entries = "payment."

    async def load(
        self, connection: asyncpg.Connection[Any], states: Sequence[AccountState]
    ) -> None:
        """Read open payments and what counts towards the days' limits."""
        by_id = {state.account_id: state.part(Payments) for state in states}
        ids = list(by_id)
        for row in await connection.fetch(
            f"SELECT {_SELECT} FROM payments p WHERE p.account_id = ANY($1::uuid[])"
            f" AND p.state IN {_OPEN_SQL}",
            ids,
        ):
            by_id[row["account_id"]].put(_payment(row))
        since = datetime.combine(first_day(clock.utc_now().date()), time(), UTC)
        for row in await connection.fetch(_TOTALS, ids, since):
            by_id[row["account_id"]].put_sums(
                row["hour"].astimezone(UTC),
                Kind(row["kind"]),
                row["asset"],
                row["total"],
                row["unapproved"] or money.ZERO,
            )

    async def fetch(
        self, connection: asyncpg.Connection[Any], commands: Sequence[Command[Any]], states: States
    ) -> None:
        """Read final payments that commands name."""
        for state in states.values():
            state.part(Payments).forget()
        wanted: list[UUID] = []
        for command in commands:
            named: Sequence[UUID] = getattr(command, "payment_ids", ())
            locked = states.get(command.accounts[0]) if named else None
            if locked is not None:
                wanted += [one for one in named if one not in locked.part(Payments).open]
        if not wanted:
            return
        for row in await connection.fetch(
            f"SELECT {_SELECT} FROM payments p WHERE p.id = ANY($1::uuid[])", wanted
        ):
            owner = states.get(row["account_id"])
            if owner is not None:
                owner.part(Payments).put(_payment(row))

    def concerns(self, command: Command[Any]) -> bool:
        """Those that name payments."""
        return hasattr(command, "payment_ids")

    def reads(self, command: Command[Any], states: States) -> bool:
        """Whether it names a payment that is not open."""
        named: Sequence[UUID] = getattr(command, "payment_ids", ())
        if not named:
            return False
        part = states[command.accounts[0]].part(Payments)
        return any(one not in part.open for one in named)

    apply = staticmethod(payments.apply)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """New payments and changed ones."""
        created: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for state in states:
            part = state.parts.get(Payments)
            if part is None or not (part.created or part.changed or part.recalled):
                continue
            for ids, rows in ((part.created, created), (part.changed, changed)):
                found = [part.find(payment_id) for payment_id in sorted(ids)]
                rows.extend(_row(payment) for payment in found if payment is not None)
            part.forget()
        writes = []
        if created:
            writes.append(Write(_INSERT, [[row[name] for row in created] for name in _NAMES]))
        if changed:
            writes.append(Write(_UPDATE, [[row[name] for row in changed] for name, _ in _CHANGING]))
        return writes


_TIMES: Final = ("expires_at", "submitted_at", "created_at", "updated_at")


def _row(payment: Payment) -> dict[str, Any]:
    row = {name: getattr(payment, name) for name in _NAMES}
    row["metadata"] = msgspec.json.encode(payment.metadata).decode()
    for name in _TIMES:
        row[name] = None if row[name] is None else clock.unstamp(row[name])
    return row


def _payment(row: asyncpg.Record) -> Payment:
    values = dict(row)
    for name in _TIMES:
        values[name] = None if values[name] is None else clock.stamp(values[name])
    return Payment(
        **{
            **values,
            "kind": Kind(row["kind"]),
            "state": State(row["state"]),
            "metadata": msgspec.json.decode(row["metadata"]),
        }
    )


async def get_payment(connection: Connection, payment_id: UUID) -> Payment:
    """One payment.

    Raises:
        NotFound: No such payment.
    """
    row = await connection.fetchrow(f"SELECT {_SELECT} FROM payments p WHERE p.id = $1", payment_id)
    if row is None:
        raise NotFound("no such payment")
    return _payment(row)


async def account_of(connection: Connection, payment_id: UUID) -> UUID | None:
    """The account of a payment, which never changes; None when there is no such payment."""
    account_id: UUID | None = await connection.fetchval(
        "SELECT account_id FROM payments WHERE id = $1", payment_id
    )
    return account_id


async def list_payments(
    connection: Connection,
    account_ids: Sequence[UUID],
    *,
    kind: Kind | None = None,
    state: State | None = None,
    before: UUID | None = None,
    limit: int = 100,
) -> list[Payment]:
    """A page of payments of the accounts, newest first.

    Args:
        before: Only payments older than this id (ids sort by time).
        limit: At most this many (>= 1).
    """
    rows = await connection.fetch(
        # Each account's newest, and of those the newest: one condition on all the accounts would
        # sort everything they ever paid.
        f"SELECT {_SELECT} FROM unnest($1::uuid[]) AS a (id) CROSS JOIN LATERAL ("
        "SELECT * FROM payments p WHERE p.account_id = a.id"
        " AND ($2::text IS NULL OR p.kind = $2) AND ($3::text IS NULL OR p.state = $3)"
        " AND p.id < $4 ORDER BY p.id DESC LIMIT $5) AS p ORDER BY p.id DESC LIMIT $5",
        list(account_ids),
        kind,
        state,
        before or LAST_ID,
        limit,
    )
    return [_payment(row) for row in rows]


async def list_approvals(
    connection: Connection, after: UUID | None = None, limit: int = 100
) -> list[Payment]:
    """A page of everybody's withdrawals that wait for approval, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM payments p WHERE p.state = 'awaiting_approval'"
        " AND ($1::uuid IS NULL OR p.id > $1) ORDER BY p.id LIMIT $2",
        after,
        limit,
    )
    return [_payment(row) for row in rows]


async def list_due(connection: Connection, without: Sequence[UUID], limit: int) -> list[Payment]:
    """Payments that the provider has not been told of, oldest first."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM payments p"
        " WHERE (p.state = 'approved' OR (p.state = 'pending' AND p.instructions IS NULL))"
        " AND p.id <> ALL($1::uuid[]) ORDER BY p.id LIMIT $2",
        list(without),
        limit,
    )
    return [_payment(row) for row in rows]


async def list_silent(
    connection: Connection, before: datetime, without: Sequence[UUID], limit: int
) -> list[Payment]:
    """Payments that the provider has, and that nothing was heard of since `before`."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM payments p"
        " WHERE (p.state = 'submitted' OR (p.state = 'pending' AND p.instructions IS NOT NULL))"
        " AND p.updated_at < $1 AND p.id <> ALL($2::uuid[]) ORDER BY p.updated_at LIMIT $3",
        before,
        list(without),
        limit,
    )
    return [_payment(row) for row in rows]


async def list_expired(connection: Connection, now: datetime, limit: int) -> list[Payment]:
    """Deposits whose time is over."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM payments p WHERE p.state = 'pending' AND p.expires_at <= $1"
        " ORDER BY p.expires_at LIMIT $2",
        now,
        limit,
    )
    return [_payment(row) for row in rows]


async def differences(
    connection: Connection, state: AccountState, page_size: int = 2000
) -> AsyncIterator[tuple[UUID, Payment | None, Payment | None]]:
    """Payments that a replay and the table do not agree on: id, as replayed, as stored.

    Args:
        state: An account replayed from its first entry, without its parts being written.
    """
    part = state.part(Payments)
    expected = {**part.open, **part.recalled}
    before = None
    while True:
        page = await list_payments(connection, [state.account_id], before=before, limit=page_size)
        for stored in page:
            replayed = expected.pop(stored.id, None)
            if replayed != stored:
                yield stored.id, replayed, stored
        if len(page) < page_size:
            break
        before = page[-1].id
    for payment_id, replayed in expected.items():
        yield payment_id, replayed, None


def _in_sql(states: frozenset[State], sql: str) -> bool:
    return {state.value for state in states} == set(sql.strip("()").replace("'", "").split(", "))


assert _in_sql(OPEN, _OPEN_SQL) and _in_sql(COUNTED, _COUNTED_SQL)
