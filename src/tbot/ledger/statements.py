"""Statements of an account: what it had, every movement, what it has then.

Entry points: `span_between` (from moments to places in the stream), `movements_after` (a page),
`movements_of` (one entry's movements, pure).

A statement is the entries of a *span* of the stream, so it never changes once it was read, and it
is read in pages by sequence: no long snapshot holds the hot tables back. Per asset

    opening + the sum of all movements = closing,

for what is available, what is held, and their total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.ledger.entries import AVAILABLE, HELD, Balance
from tbot.ledger.marks import EVERY, Running, balances_after, balances_at

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

SCAN_MAX: Final = 1024
"""Most entries that are read for one page: a filter that finds little must not read for ever."""

_TICK: Final = timedelta(microseconds=1)
# A stream has no gaps, so a number of entries is as good as an upper bound, and cannot tempt the
# planner to collect and sort everything below that.
_ENTRIES: Final = """SELECT seq, body FROM journal
WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"""


@dataclass(frozen=True, slots=True)
class Movement:
    """How one entry changed one asset of the account.

    Attributes:
        at: As in the entry.
        amount: By how much the total changed; zero when money only went between available and
            held.
        change: By how much each of both changed.
        balance: After the entry.
        counterpart: The counter-account that the money came from or went to, or the other account
            of a transfer; None when it stayed on the account.
        reference_kind, reference: What it belongs to: `order`, `transfer` or `payment`, and its id.
    """

    sequence: int
    at: str
    kind: str
    command: str
    asset: str
    amount: Decimal
    change: Balance
    balance: Balance
    counterpart: str | None
    reference_kind: str | None
    reference: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """Part of an account's stream: the entries after `first_seq` up to and with `last_seq`."""

    account_id: UUID
    first_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which movements are wanted.

    Attributes:
        asset: Only this one; None for all.
        holds: Also those that leave the total as it was.
    """

    asset: str | None = None
    holds: bool = True

    def passes(self, movement: Movement) -> bool:
        """Whether it is one of them."""
        if self.asset is not None and movement.asset != self.asset:
            return False
        return self.holds or bool(movement.amount)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of movements ends: after entry `seq` and `skip` movements of the next one."""

    seq: int
    skip: int = 0


def movements_of(entry: Entry, running: Running) -> list[Movement]:
    """An entry's movements, one per asset; `running` takes the entry in.

    Raises:
        IntegrityError: It does not follow the last one.
    """
    changes = running.take(entry.seq, entry.postings)
    if not changes:
        return []
    kind, reference = _reference(entry.data)
    other = _other_account(entry)
    return [
        Movement(
            sequence=entry.seq,
            at=entry.at,
            kind=entry.kind,
            command=entry.command,
            asset=asset,
            amount=change.total,
            change=change,
            balance=running.balances[asset],
            counterpart=_counterpart(entry.postings, asset, change, other),
            reference_kind=kind,
            reference=reference,
        )
        for asset, change in changes.items()
    ]


def _reference(data: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What an entry belongs to: its data holds the thing itself when it begins, later its id."""
    accepted = data.get("accepted")
    if isinstance(accepted, dict):
        return "order", accepted.get("id")
    new = data.get("new")
    if isinstance(new, dict):  # a payment that was asked for, or one that came unasked
        return "payment", new.get("id")
    for kind in ("order", "transfer", "payment"):
        thing = data.get(kind)
        if isinstance(thing, dict):
            return kind, thing.get("id")
        if isinstance(thing, str):
            return kind, thing
    return None, None


def _other_account(entry: Entry) -> str | None:
    """The other account of a transfer, where the entry names both."""
    for thing in (entry.data, entry.data.get("transfer")):
        if not isinstance(thing, dict):
            continue
        for name in ("source_id", "target_id", "counterpart"):
            other = thing.get(name)
            if isinstance(other, str) and other != entry.account:
                return other
    return None


def _counterpart(
    postings: Sequence[tuple[str, str, str]], asset: str, change: Balance, other: str | None
) -> str | None:
    holders = sorted({h for h, a, _ in postings if a == asset and h not in (AVAILABLE, HELD)})
    if holders:
        return " ".join(holders)
    return other if change.total else None


async def span_between(
    connection: Connection, account_id: UUID, begin: datetime | None, end: datetime
) -> tuple[Span, Running, Running]:
    """The part of a stream from one moment, included, to another, not included.

    Args:
        begin: None stands before the account's first entry.

    Returns:
        The span, and the balances before and after it.
    """
    opening = Running(account_id)
    if begin is not None:
        opening = await balances_at(connection, account_id, begin - _TICK)
    closing = await balances_at(connection, account_id, end - _TICK)
    if closing.seq < opening.seq:  # the end lies before the beginning
        closing = opening
    return Span(account_id, opening.seq, closing.seq), opening, closing


async def movements_after(
    connection: Connection, span: Span, place: Place, wanted: Filter, limit: int
) -> tuple[list[Movement], Place | None]:
    """A page of a span's movements, in the stream's order.

    Args:
        place: Where the page before ended; `Place(span.first_seq)` for the first.
        limit: At most this many (>= 1). There may be fewer, or none, although more follow: one
            page reads a bounded number of entries.

    Returns:
        The page, and where it ends; None when nothing follows.
    """
    running = await balances_after(connection, span.account_id, place.seq)
    # About as many entries as movements are wanted; a filter may pass few of them.
    most = SCAN_MAX if wanted != Filter() else min(SCAN_MAX, 2 * limit + 16)
    most = min(most, span.last_seq - place.seq)
    rows = await connection.fetch(_ENTRIES, span.account_id, place.seq, most)
    found: list[Movement] = []
    skip = place.skip
    for row in rows:
        before = running.seq
        passing = [m for m in movements_of(chain.read(row["body"]), running) if wanted.passes(m)]
        room = limit - len(found)
        taken = passing[skip : skip + room]
        found += taken
        if skip + len(taken) < len(passing):
            return found, Place(before, skip + len(taken))
        skip = 0
    ended = running.seq >= span.last_seq or not rows
    return found, None if ended else Place(running.seq)


async def entries_between(
    connection: Connection, running: Running, last_seq: int, wanted: Filter
) -> list[Movement]:
    """The movements of the next entries of an export; `running` says how far it has come.

    Returns:
        What of the next `EVERY` entries passes the filter: maybe nothing.
    """
    most = min(EVERY, last_seq - running.seq)
    rows = await connection.fetch(_ENTRIES, running.account_id, running.seq, most)
    found: list[Movement] = []
    for row in rows:
        found += [m for m in movements_of(chain.read(row["body"]), running) if wanted.passes(m)]
    return found


def listed(
    running: Running, asset: str | None = None, other: Running | None = None
) -> list[tuple[str, Balance]]:
    """A statement's opening or closing balances, by asset.

    Args:
        other: The statement's other end: both list the same assets, with zero where there was
            nothing, so that whoever reconciles finds a pair for each asset.
    """
    assets = {*running.balances, *(() if other is None else other.balances)}
    if asset is not None:
        assets = {asset}
    return [(one, running.balances.get(one, Balance())) for one in sorted(assets)]
