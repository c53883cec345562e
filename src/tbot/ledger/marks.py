"""Balances as of any moment: marks along the streams, and the few entries that follow one.

`MarksProjection` writes down what an account has after every 256th entry of its stream, in the
transaction of that entry. `balances_at` and `balances_after` start from the last mark and carry on
with the entries that follow it, at most 255. A mark that is missing only makes the way longer, not
the answer wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock, money
from tbot.core.errors import IntegrityError
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState
from tbot.journal.projections import Projection, Write
from tbot.ledger.entries import AVAILABLE, HELD, Balance, Ledger

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

EVERY: Final = 256
"""Entries between two marks of a stream. The table's check says the same."""

_WRITE: Final = """INSERT INTO marks (account_id, seq, at, balances)
SELECT * FROM unnest({0}::uuid[], {1}::bigint[], {2}::timestamptz[], {3}::jsonb[])"""
_MARK_AT: Final = """SELECT seq, balances FROM marks WHERE account_id = $1 AND at <= $2
ORDER BY at DESC, seq DESC LIMIT 1"""
_MARK_AFTER: Final = """SELECT seq, balances FROM marks WHERE account_id = $1 AND seq <= $2
ORDER BY seq DESC LIMIT 1"""
# Not limited by time: a scan for the few entries before a moment would go on to the stream's end.
_FOLLOWING: Final = """SELECT seq, at, body FROM journal WHERE account_id = $1 AND seq > $2
ORDER BY seq LIMIT $3"""


class Marks:
    """An account's marks that are not in the table yet, as part of its state."""

    __slots__ = ("new",)

    def __init__(self) -> None:
        self.new: list[tuple[int, str, str]] = []
        """Sequence, time and balances as JSON."""


class MarksProjection(Projection):
    """Keeps `marks`; registered after the ledger, whose balances it copies."""

    def apply(self, state: AccountState, entry: Entry) -> None:
        """Copy the balances when the stream reaches a multiple, which may be amid a batch."""
        if entry.seq % EVERY or entry.kind.startswith("security."):
            return  # a user's stream has no balances
        balances = state.part(Ledger).balances
        state.part(Marks).new.append((entry.seq, entry.at, encode(balances)))

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """New marks."""
        rows = []
        for state in states:
            marks = state.parts.get(Marks)
            if marks is not None and marks.new:
                rows += [(state.account_id, *mark) for mark in marks.new]
                marks.new.clear()
        if not rows:
            return []
        columns = [list(column) for column in zip(*rows, strict=True)]
        columns[2] = [clock.unstamp(at) for at in columns[2]]
        return [Write(_WRITE, columns)]


def encode(balances: Mapping[str, Balance]) -> str:
    """Balances as the table keeps them.

    Example:
        >>> encode({"USDT": Balance(Decimal("1.50"), Decimal(0))})
        '{"USDT":["1.5","0"]}'
    """
    pairs = {
        asset: (money.text(balance.available), money.text(balance.held))
        for asset, balance in sorted(balances.items())
    }
    return msgspec.json.encode(pairs).decode()


_decode: Final = msgspec.json.Decoder(dict[str, tuple[str, str]]).decode


class Moved(msgspec.Struct, frozen=True):
    """Of an entry, what moved money; the rest of it is skipped unread."""

    postings: list[tuple[str, str, str]]


_moved: Final = msgspec.json.Decoder(Moved).decode


@dataclass(slots=True)
class Running:
    """Balances of an account as its entries go by.

    Attributes:
        seq: The last entry that is in them; 0 before the first.
        balances: By asset; every asset that the account ever had.
    """

    account_id: UUID
    seq: int = 0
    balances: dict[str, Balance] = field(default_factory=dict)

    def take(self, seq: int, postings: Sequence[tuple[str, str, str]]) -> dict[str, Balance]:
        """Add the next entry's postings to this account's own holders.

        Returns:
            By how much each asset changed; without those that the entry does not move.

        Raises:
            IntegrityError: It is not the next entry.
        """
        if seq != self.seq + 1:
            raise IntegrityError(
                f"account {self.account_id}: entry {self.seq + 1} is missing; the next is {seq}"
            )
        changes: dict[str, Balance] = {}
        for holder, asset, amount in postings:
            if holder not in (AVAILABLE, HELD):
                continue
            changed = changes.get(asset, Balance())
            if holder == AVAILABLE:
                changes[asset] = Balance(changed.available + Decimal(amount), changed.held)
            else:
                changes[asset] = Balance(changed.available, changed.held + Decimal(amount))
        for asset, change in changes.items():
            known = self.balances.get(asset, Balance())
            self.balances[asset] = Balance(
                known.available + change.available, known.held + change.held
            )
        self.seq = seq
        return changes


async def balances_at(connection: Connection, account_id: UUID, moment: datetime) -> Running:
    """An account's balances after every entry whose time is not later than a moment.

    An entry's time is taken when its transaction begins. So for a moment within the last seconds
    another entry may still turn up; `seq` says which was the last one that counted.

    Args:
        moment: With its time zone. Before the account's first entry, there are no balances.

    Raises:
        IntegrityError: The journal has a hole.
    """
    row = await connection.fetchrow(_MARK_AT, account_id, moment)
    return await _replayed(connection, _from_mark(account_id, row), moment, None)


async def balances_after(connection: Connection, account_id: UUID, seq: int) -> Running:
    """An account's balances after one entry of its stream.

    Args:
        seq: The entry (>= 0; 0 stands before the first). One that does not exist yet answers as
            the newest there is.

    Raises:
        IntegrityError: The journal has a hole.
    """
    row = await connection.fetchrow(_MARK_AFTER, account_id, seq)
    return await _replayed(connection, _from_mark(account_id, row), None, seq)


def _from_mark(account_id: UUID, row: asyncpg.Record | None) -> Running:
    if row is None:
        return Running(account_id)
    balances = {
        asset: Balance(Decimal(available), Decimal(held))
        for asset, (available, held) in _decode(row["balances"]).items()
    }
    return Running(account_id, row["seq"], balances)


async def _replayed(
    connection: Connection, running: Running, moment: datetime | None, last_seq: int | None
) -> Running:
    """Carry on from a mark; where none is missing, one page is enough."""
    while True:
        most = EVERY if last_seq is None else min(EVERY, last_seq - running.seq)
        if most <= 0:
            return running
        rows = await connection.fetch(_FOLLOWING, running.account_id, running.seq, most)
        for row in rows:
            if moment is not None and row["at"] > moment:
                return running
            running.take(row["seq"], _moved(row["body"]).postings)
        if len(rows) < most:
            return running
