"""One account's journal: its chain, its columns, its head, and what a replay of it gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg

from tbot.core import clock
from tbot.core.errors import IntegrityError
from tbot.journal import chain
from tbot.journal.batch import OWN_HOLDERS
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState
from tbot.journal.projections import Projections
from tbot.verify.verdict import Verdict

PAGE_ENTRIES: Final = 2000


def _amounts() -> defaultdict[str, Decimal]:
    return defaultdict(Decimal)


@dataclass(slots=True)
class Sums:
    """What the postings of all accounts come to.

    Attributes:
        commands: Per command and asset, what its entries so far miss zero by; only while they do.
        counters: Per counter-account and asset, what was posted to it.
    """

    commands: defaultdict[str, defaultdict[str, Decimal]] = field(
        default_factory=lambda: defaultdict(_amounts)
    )
    counters: defaultdict[tuple[str, str], Decimal] = field(
        default_factory=lambda: defaultdict(Decimal)
    )

    def add(self, entry: Entry) -> None:
        """Take an entry's postings in."""
        sums = self.commands[entry.command]
        for holder, asset, text in entry.postings:
            amount = Decimal(text)
            if holder not in OWN_HOLDERS:
                self.counters[holder, asset] += amount
            sums[asset] += amount
            if not sums[asset]:
                del sums[asset]
        if not sums:
            del self.commands[entry.command]


async def replay(
    connection: asyncpg.Connection[Any],
    stream: asyncpg.Record,
    projections: Projections,
    sums: Sums,
    verdict: Verdict,
    counted: Callable[[], None],
) -> AccountState | None:
    """Replay an account's journal.

    Args:
        stream: Its row of `streams`.
        counted: Called after every entry.

    Returns:
        Its state after the last entry; None when the replay could not be finished, which is noted.

    Raises:
        OSError, asyncpg.PostgresError, asyncpg.InterfaceError: The database cannot be read.
    """
    account_id = stream["account_id"]
    state = AccountState(account_id, 0, chain.genesis(account_id), stream["at"])
    at = ""
    try:
        async for entry, row in _entries(connection, account_id):
            _compare_columns(account_id, entry, row, verdict)
            if entry.at < at:
                verdict.fault(
                    f"account {account_id}, entry {entry.seq}: earlier than the entry before it"
                )
            at = entry.at
            state.seq, state.hash = entry.seq, row["hash"]
            projections.apply(state, entry)
            sums.add(entry)
            verdict.entries += 1
            counted()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        raise
    except IntegrityError as error:
        verdict.fault(f"account {account_id}, after entry {state.seq}: {error}")
        return None
    except Exception as error:  # noqa: BLE001
        # An entry that was written by somebody else can make `apply` raise anything.
        verdict.fault(f"account {account_id}, entry {state.seq} cannot be applied: {error!r}")
        return None
    _compare_head(stream, state, at, verdict)
    return state


async def _entries(
    connection: asyncpg.Connection[Any], account_id: UUID
) -> AsyncIterator[tuple[Entry, asyncpg.Record]]:
    """An account's entries in order, each hash recomputed, with their rows."""
    after_seq, previous = 0, None
    while True:
        rows = await connection.fetch(
            "SELECT seq, body, hash, kind, at, command_id FROM journal"
            " WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
            account_id,
            after_seq,
            PAGE_ENTRIES,
        )
        linked = [(row["seq"], row["body"], row["hash"]) for row in rows]
        # Not strict: the rows after the first fault have no entry.
        for entry, row in zip(
            chain.check(account_id, linked, previous, after_seq), rows, strict=False
        ):
            yield entry, row
        if len(rows) < PAGE_ENTRIES:
            return
        after_seq, previous = rows[-1]["seq"], rows[-1]["hash"]


def _compare_columns(account_id: UUID, entry: Entry, row: asyncpg.Record, verdict: Verdict) -> None:
    """The columns beside a body are copies for queries, and not under its hash."""
    for name, hashed, stored in (
        ("kind", entry.kind, row["kind"]),
        ("at", entry.at, clock.stamp(row["at"])),
        ("command_id", entry.command, str(row["command_id"])),
    ):
        if hashed != stored:
            verdict.fault(
                f"account {account_id}, entry {entry.seq}: its column {name} says {stored},"
                f" its body {hashed}"
            )


def _compare_head(stream: asyncpg.Record, state: AccountState, at: str, verdict: Verdict) -> None:
    where = f"account {state.account_id}"
    if state.seq != stream["seq"]:
        verdict.fault(f"{where}: the journal ends at {state.seq}, its head says {stream['seq']}")
        return
    if state.hash != stream["hash"]:
        verdict.fault(f"{where}: its head has another hash than entry {state.seq}")
    if state.seq and clock.stamp(stream["at"]) != at:
        verdict.fault(
            f"{where}: its head is of {clock.stamp(stream['at'])}, entry {state.seq} of {at}"
        )
