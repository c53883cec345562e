"""The table of transfers.

`TransfersProjection` keeps it in step with the journal; the functions below it read it. Every
function takes a connection first and commits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.core.ids import FIRST_ID, LAST_ID
from tbot.journal.commands import AccountState, Command, States
from tbot.journal.projections import Projection, Write
from tbot.ledger import transfers
from tbot.ledger.transfers import Transfer, Transfers, TransferState
from tbot.ledger.transfers_commands import TransferCommand

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

_COLUMNS: Final = Transfer.__struct_fields__
_SELECT: Final = ", ".join(f"t.{name}" for name in _COLUMNS)
# Amounts, times and metadata travel as texts: the server reads them faster than we could write
# them in its binary form.
_INSERT: Final = f"""INSERT INTO transfers ({", ".join(_COLUMNS)})
SELECT id, source_id, target_id, asset, amount::numeric, state, posted_amount::numeric,
 expires_at::timestamptz, reverses, reversed_by, group_id, metadata::jsonb,
 created_at::timestamptz, updated_at::timestamptz
FROM unnest({{0}}::uuid[], {{1}}::uuid[], {{2}}::uuid[], {{3}}::text[], {{4}}::text[],
 {{5}}::text[], {{6}}::text[], {{7}}::text[], {{8}}::uuid[], {{9}}::uuid[], {{10}}::uuid[],
 {{11}}::text[], {{12}}::text[], {{13}}::text[]) AS u ({", ".join(_COLUMNS)})"""
# Of those that were posted at once, with nothing special: nearly all.
_INSERT_PLAIN: Final = """INSERT INTO transfers
 (id, source_id, target_id, asset, amount, state, posted_amount, metadata, created_at, updated_at)
SELECT id, source_id, target_id, asset, amount::numeric, 'posted', amount::numeric, '{{}}', at, at
FROM unnest({0}::uuid[], {1}::uuid[], {2}::uuid[], {3}::text[], {4}::text[], {5}::timestamptz[])
 AS u (id, source_id, target_id, asset, amount, at)"""
_UPDATE: Final = """UPDATE transfers t SET state = u.state,
 posted_amount = u.posted_amount::numeric, reversed_by = u.reversed_by,
 updated_at = u.updated_at::timestamptz
FROM unnest({0}::uuid[], {1}::text[], {2}::text[], {3}::uuid[], {4}::text[])
 AS u (id, state, posted_amount, reversed_by, updated_at) WHERE t.id = u.id"""

_encode = msgspec.json.Encoder().encode
_decode_metadata = msgspec.json.Decoder(dict[str, str]).decode


class TransfersProjection(Projection):
    """Keeps `transfers` in step with the journal."""

    entries = "transfer."

    async def load(
        self, connection: asyncpg.Connection[Any], states: Sequence[AccountState]
    ) -> None:
        """Read the pending transfers out of the accounts."""
        by_id = {state.account_id: state.part(Transfers) for state in states}
        for row in await connection.fetch(
            f"SELECT {_SELECT} FROM transfers t WHERE t.source_id = ANY($1::uuid[])"
            " AND t.state = 'pending'",
            list(by_id),
        ):
            by_id[row["source_id"]].put(_transfer(row))

    async def fetch(
        self, connection: asyncpg.Connection[Any], commands: Sequence[Command[Any]], states: States
    ) -> None:
        """Read final transfers that commands name."""
        for state in states.values():
            part = state.parts.get(Transfers)
            if part is not None and (part.recalled or part.created or part.changed):
                part.forget()
        wanted = [
            command.transfer_id
            for command in commands
            if isinstance(command, TransferCommand)
            and command.source_id in states
            and command.transfer_id not in states[command.source_id].part(Transfers).open
        ]
        if not wanted:
            return
        for row in await connection.fetch(
            f"SELECT {_SELECT} FROM transfers t WHERE t.id = ANY($1::uuid[])", wanted
        ):
            if row["source_id"] in states and row["state"] != "pending":
                states[row["source_id"]].part(Transfers).put(_transfer(row))

    def concerns(self, command: Command[Any]) -> bool:
        """Those about one transfer that is there."""
        return isinstance(command, TransferCommand)

    def reads(self, command: Command[Any], states: States) -> bool:
        """Whether it names a transfer that is not pending."""
        return (
            isinstance(command, TransferCommand)
            and command.source_id in states
            and command.transfer_id not in states[command.source_id].part(Transfers).open
        )

    apply = staticmethod(transfers.apply)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """New transfers, and those that were resolved or reversed."""
        plain: list[Transfer] = []
        created: list[Transfer] = []
        changed: list[Transfer] = []
        for state in states:
            part = state.parts.get(Transfers)
            if part is None or not (part.created or part.changed):
                continue
            for transfer_id in part.created:
                one = part.find(transfer_id)
                (plain if _is_plain(one) else created).append(one)
            changed += [part.find(transfer_id) for transfer_id in part.changed]
            part.forget()
        writes = []
        if plain:
            times = {text: clock.unstamp(text) for text in {t.created_at for t in plain}}
            writes.append(
                Write(
                    _INSERT_PLAIN,
                    [
                        [t.id for t in plain],
                        [t.source_id for t in plain],
                        [t.target_id for t in plain],
                        [t.asset for t in plain],
                        [str(t.amount) for t in plain],
                        [times[t.created_at] for t in plain],
                    ],
                )
            )
        if created:
            writes.append(
                Write(
                    _INSERT,
                    [
                        [t.id for t in created],
                        [t.source_id for t in created],
                        [t.target_id for t in created],
                        [t.asset for t in created],
                        [str(t.amount) for t in created],
                        [t.state for t in created],
                        [str(t.posted_amount) for t in created],
                        [t.expires_at for t in created],
                        [t.reverses for t in created],
                        [t.reversed_by for t in created],
                        [t.group_id for t in created],
                        [_encode(t.metadata).decode() if t.metadata else "{}" for t in created],
                        [t.created_at for t in created],
                        [t.updated_at for t in created],
                    ],
                )
            )
        if changed:
            writes.append(
                Write(
                    _UPDATE,
                    [
                        [t.id for t in changed],
                        [t.state for t in changed],
                        [str(t.posted_amount) for t in changed],
                        [t.reversed_by for t in changed],
                        [t.updated_at for t in changed],
                    ],
                )
            )
        return writes


def _is_plain(transfer: Transfer) -> bool:
    """Whether the short statement says all of a new transfer."""
    return (
        transfer.posted_amount is transfer.amount
        and transfer.state is TransferState.POSTED
        and transfer.reverses is None
        and transfer.reversed_by is None
        and transfer.group_id is None
        and transfer.expires_at is None
        and not transfer.metadata
        and transfer.updated_at == transfer.created_at
    )


def _transfer(row: asyncpg.Record) -> Transfer:
    expires_at = row["expires_at"]
    return Transfer(
        id=row["id"],
        source_id=row["source_id"],
        target_id=row["target_id"],
        asset=row["asset"],
        amount=row["amount"],
        state=TransferState(row["state"]),
        posted_amount=row["posted_amount"],
        expires_at=None if expires_at is None else clock.stamp(expires_at),
        reverses=row["reverses"],
        reversed_by=row["reversed_by"],
        group_id=row["group_id"],
        metadata=_decode_metadata(row["metadata"]),
        created_at=clock.stamp(row["created_at"]),
        updated_at=clock.stamp(row["updated_at"]),
    )


async def get_transfer(connection: Connection, transfer_id: UUID) -> Transfer:
    """One transfer.

    Raises:
        NotFound: No such transfer.
    """
    row = await connection.fetchrow(
        f"SELECT {_SELECT} FROM transfers t WHERE t.id = $1", transfer_id
    )
    if row is None:
        raise NotFound("no such transfer")
    return _transfer(row)


async def list_transfers(
    connection: Connection,
    account_ids: Sequence[UUID],
    *,
    state: TransferState | None = None,
    before: UUID | None = None,
    limit: int = 100,
) -> list[Transfer]:
    """A page of the transfers out of and into these accounts, newest first; each once.

    Args:
        before: Only transfers older than this id (ids sort by time).
        limit: At most this many (>= 1).
    """
    # An index scan for each account and side, each of which stops at the limit: a condition on all
    # of them at once would sort everything that they ever moved.
    side = (
        "(SELECT {} FROM unnest($1::uuid[]) AS a (id) CROSS JOIN LATERAL ("
        "SELECT * FROM transfers t WHERE t.{} = a.id"
        " AND ($2::text IS NULL OR t.state = $2) AND t.id < $3"
        " ORDER BY t.id DESC LIMIT $4) AS t)"
    )
    rows = await connection.fetch(
        side.format(_SELECT, "source_id")
        + " UNION "
        + side.format(_SELECT, "target_id")
        + " ORDER BY 1 DESC LIMIT $4",
        list(account_ids),
        state,
        before or LAST_ID,
        limit,
    )
    return [_transfer(row) for row in rows]


async def list_sent(
    connection: Connection, source_id: UUID, *, after: UUID | None = None, limit: int = 100
) -> list[Transfer]:
    """Transfers out of one account, oldest first: what a replay of its stream must give again.

    Args:
        after: Only transfers with a higher id.
        limit: At most this many (>= 1).
    """
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM transfers t WHERE t.source_id = $1"
        " AND t.id > $2 ORDER BY t.id LIMIT $3",
        source_id,
        after or FIRST_ID,
        limit,
    )
    return [_transfer(row) for row in rows]


async def list_overdue(connection: Connection, now: datetime, limit: int) -> list[Transfer]:
    """Pending transfers whose time is over, the longest overdue first."""
    rows = await connection.fetch(
        f"SELECT {_SELECT} FROM transfers t WHERE t.state = 'pending' AND t.expires_at <= $1"
        " ORDER BY t.expires_at LIMIT $2",
        now,
        limit,
    )
    return [_transfer(row) for row in rows]
