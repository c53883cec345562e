"""Tables of accounts and balances.

`LedgerProjection` keeps them in step with the journal; the functions below it read them. Every
function takes a connection first and commits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.core.ids import FIRST_ID
from tbot.journal.commands import AccountState
from tbot.journal.projections import Projection, Write
from tbot.ledger import entries
from tbot.ledger.entries import Account, Balance, Ledger, Limits

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

_EVER: Final = datetime.min.replace(tzinfo=UTC)
_ACCOUNT_COLUMNS = "id, owner_id, name, kind, venue, status, limits, opened_at, updated_at"
_WRITE_ACCOUNTS = """INSERT INTO accounts
 (id, owner_id, name, kind, venue, status, limits, opened_at, updated_at)
SELECT * FROM unnest({0}::uuid[], {1}::uuid[], {2}::text[], {3}::text[], {4}::text[],
                     {5}::text[], {6}::jsonb[], {7}::timestamptz[], {8}::timestamptz[])
ON CONFLICT (id) DO UPDATE SET name = excluded.name, status = excluded.status,
                               limits = excluded.limits, updated_at = excluded.updated_at"""
_WRITE_BALANCES = """INSERT INTO balances (account_id, asset, available, held)
SELECT account_id, asset, available::numeric, held::numeric
FROM unnest({0}::uuid[], {1}::text[], {2}::text[], {3}::text[])
 AS u (account_id, asset, available, held)
ON CONFLICT (account_id, asset) DO UPDATE
SET available = excluded.available, held = excluded.held"""


class LedgerProjection(Projection):
    """Keeps `accounts` and `balances` in step with the journal."""

    async def load(
        self, connection: asyncpg.Connection[Any], states: Sequence[AccountState]
    ) -> None:
        """Read the accounts' descriptions and balances."""
        by_id = {state.account_id: state.part(Ledger) for state in states}
        ids = list(by_id)
        for row in await connection.fetch(
            f"SELECT {_ACCOUNT_COLUMNS} FROM accounts WHERE id = ANY($1::uuid[])", ids
        ):
            by_id[row["id"]].account = _account(row)
        for row in await connection.fetch(
            "SELECT account_id, asset, available, held FROM balances"
            " WHERE account_id = ANY($1::uuid[])",
            ids,
        ):
            by_id[row["account_id"]].balances[row["asset"]] = Balance(row["available"], row["held"])

    apply = staticmethod(entries.apply)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """Changed accounts and changed balances."""
        accounts: list[tuple[Any, ...]] = []
        ids: list[UUID] = []
        assets: list[str] = []
        available: list[str] = []
        held: list[str] = []
        for state in states:
            ledger = state.part(Ledger)
            if ledger.account_changed and ledger.account is not None:
                account = ledger.account
                accounts.append(
                    (
                        account.id,
                        account.owner_id,
                        account.name,
                        account.kind,
                        account.venue,
                        account.status,
                        msgspec.json.encode(account.limits.to_json()).decode(),
                        clock.unstamp(account.opened_at),
                        clock.unstamp(account.updated_at),
                    )
                )
                ledger.account_changed = False
            for asset in ledger.assets_changed:
                balance = ledger.balances[asset]
                ids.append(state.account_id)
                assets.append(asset)
                # As texts: the server reads them faster than we could write their binary form.
                available.append(str(balance.available))
                held.append(str(balance.held))
            ledger.assets_changed.clear()
        writes = []
        if accounts:
            writes.append(Write(_WRITE_ACCOUNTS, [list(c) for c in zip(*accounts, strict=True)]))
        if ids:
            writes.append(Write(_WRITE_BALANCES, [ids, assets, available, held]))
        return writes


def _account(row: asyncpg.Record) -> Account:
    return Account(
        id=row["id"],
        owner_id=row["owner_id"],
        name=row["name"],
        venue=row["venue"],
        status=row["status"],
        limits=Limits.from_json(msgspec.json.decode(row["limits"])),
        opened_at=clock.stamp(row["opened_at"]),
        updated_at=clock.stamp(row["updated_at"]),
    )


async def get_account(connection: Connection, account_id: UUID) -> tuple[Account, int]:
    """An account and the sequence it is at.

    Raises:
        NotFound: No such account.
    """
    row = await connection.fetchrow(
        f"SELECT {_ACCOUNT_COLUMNS}, s.seq FROM accounts JOIN streams s ON s.account_id = id"
        " WHERE id = $1",
        account_id,
    )
    if row is None:
        raise NotFound("no such account")
    return _account(row), row["seq"]


async def get_accounts(
    connection: Connection, account_ids: Sequence[UUID]
) -> list[tuple[Account, int]]:
    """These accounts in id order, with their sequences."""
    rows = await connection.fetch(
        f"SELECT {_ACCOUNT_COLUMNS}, s.seq FROM accounts JOIN streams s ON s.account_id = id"
        " WHERE id = ANY($1::uuid[]) ORDER BY id",
        account_ids,
    )
    return [(_account(row), row["seq"]) for row in rows]


async def list_accounts(
    connection: Connection,
    owner_id: UUID,
    after: tuple[datetime, UUID] | None,
    limit: int,
    *,
    kind: str | None = None,
    status: str | None = None,
) -> list[tuple[Account, int]]:
    """A page of an owner's accounts, oldest first, with their sequences.

    Not by id: the id of an account that was opened under a key follows from the key.

    Args:
        after: When the last one of the page before was opened, and its id.
        limit: At most this many (>= 1).
        kind, status: Only these; None for all.
    """
    # The sequence by a look-up for each row: a join could be planned as one of whole tables.
    rows = await connection.fetch(
        f"SELECT {_ACCOUNT_COLUMNS}, (SELECT s.seq FROM streams s WHERE s.account_id = id) AS seq"
        " FROM accounts WHERE owner_id = $1 AND (opened_at, id) > ($2, $3)"
        " AND ($4::text IS NULL OR kind = $4) AND ($5::text IS NULL OR status = $5)"
        " ORDER BY opened_at, id LIMIT $6",
        owner_id,
        *(after or (_EVER, FIRST_ID)),
        kind,
        status,
        limit,
    )
    return [(_account(row), row["seq"]) for row in rows]


async def get_balances(connection: Connection, account_id: UUID) -> tuple[int, dict[str, Balance]]:
    """The account's sequence and its balances as of that sequence, in one snapshot.

    Raises:
        NotFound: No such account.
    """
    rows = await connection.fetch(
        "SELECT s.seq, b.asset, b.available, b.held FROM streams s"
        " LEFT JOIN balances b USING (account_id) WHERE s.account_id = $1 ORDER BY b.asset",
        account_id,
    )
    if not rows:
        raise NotFound("no such account")
    return rows[0]["seq"], {
        row["asset"]: Balance(row["available"], row["held"]) for row in rows if row["asset"]
    }


async def counter_balance(connection: Connection, name: str) -> dict[str, Decimal]:
    """Balances of a counter-account, summed over its lanes."""
    rows = await connection.fetch(
        "SELECT asset, sum(amount) AS amount FROM counters WHERE name = $1 GROUP BY asset", name
    )
    return {row["asset"]: row["amount"] for row in rows}


async def list_counters(
    connection: Connection, after: tuple[str, str] | None, limit: int
) -> list[tuple[str, str, Decimal]]:
    """A page of all counter-accounts' balances as `(name, asset, amount)`, in that order.

    Args:
        after: Name and asset of the last one of the page before.
        limit: At most this many (>= 1).
    """
    rows = await connection.fetch(
        "SELECT name, asset, sum(amount) AS amount FROM counters WHERE (name, asset) > ($1, $2)"
        " GROUP BY name, asset ORDER BY name, asset LIMIT $3",
        *(after or ("", "")),
        limit,
    )
    return [(row["name"], row["asset"], row["amount"]) for row in rows]


async def sums_by_asset(connection: Connection) -> dict[str, Decimal]:
    """Per asset, the sum over every account and counter-account; all zero or something is wrong."""
    rows = await connection.fetch(
        "SELECT asset, sum(amount) AS amount FROM ("
        " SELECT asset, available + held AS amount FROM balances"
        " UNION ALL SELECT asset, amount FROM counters) AS everything GROUP BY asset"
    )
    return {row["asset"]: row["amount"] for row in rows}
