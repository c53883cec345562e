"""Proof that the tables say what the journal says.

For every account: recompute its hash chain, replay its entries through the projections' `apply`,
and compare the outcome with the tables. Over all accounts: every command's postings sum to zero
per asset, the counter-accounts equal what was posted to them, and every asset sums to zero.
Nothing is changed, and everything is read in one snapshot, so a running server is no hindrance.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import money
from tbot.core.errors import IntegrityError
from tbot.journal import chain
from tbot.journal.batch import OWN_HOLDERS
from tbot.journal.commands import AccountState, Projection
from tbot.ledger import store as ledger_store
from tbot.ledger import transfers_store
from tbot.ledger.entries import Balance, Ledger
from tbot.ledger.transfers import Transfers
from tbot.orders import store as orders_store
from tbot.orders.book import Orders
from tbot.orders.model import Fill

PAGE_ENTRIES = 2000


@dataclass(slots=True)
class Verdict:
    """What a verification saw.

    Attributes:
        faults: One sentence each; empty when all is well. At most `FAULTS_MAX` are kept.
    """

    accounts: int = 0
    entries: int = 0
    assets: int = 0
    faults: list[str] = field(default_factory=list)
    faults_left_out: int = 0

    FAULTS_MAX = 1000

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def fault(self, sentence: str) -> None:
        """Note something that does not hold."""
        if len(self.faults) < self.FAULTS_MAX:
            self.faults.append(sentence)
        else:
            self.faults_left_out += 1


type Progress = Callable[[int, int], None]
"""Called with entries done and entries in all."""


async def verify(
    dsn: str, projections: Sequence[Projection], progress: Progress | None = None
) -> Verdict:
    """Verify a database.

    Args:
        dsn: Its URL, for any role that may read the tables.
        projections: As the server registers them.

    Returns:
        The verdict; the caller looks at `sound`.

    Raises:
        OSError, asyncpg.PostgresError: The database cannot be read.
    """
    connection: asyncpg.Connection[Any] = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _verify(connection, projections, progress)
    finally:
        await connection.close()


async def _verify(
    connection: asyncpg.Connection[Any],
    projections: Sequence[Projection],
    progress: Progress | None,
) -> Verdict:
    verdict = Verdict()
    total = await connection.fetchval("SELECT coalesce(sum(seq), 0)::bigint FROM streams")
    open_commands: defaultdict[str, defaultdict[str, Decimal]] = defaultdict(_amounts)
    counters: defaultdict[tuple[str, str], Decimal] = defaultdict(Decimal)
    streams = await connection.fetch("SELECT account_id, seq, hash, at FROM streams ORDER BY 1")
    for stream in streams:
        verdict.accounts += 1
        state = AccountState(
            stream["account_id"], 0, chain.genesis(stream["account_id"]), stream["at"]
        )
        fills: list[Fill] = []
        try:
            async for entry in _entries(connection, stream["account_id"]):
                state.seq = entry.seq
                for projection in projections:
                    projection.apply(state, entry)
                for holder, asset, text in entry.postings:
                    amount = Decimal(text)
                    if holder not in OWN_HOLDERS:
                        counters[holder, asset] += amount
                    sums = open_commands[entry.command]
                    sums[asset] += amount
                    if not sums[asset]:
                        del sums[asset]
                if not open_commands[entry.command]:
                    del open_commands[entry.command]
                verdict.entries += 1
                if progress is not None and verdict.entries % 500 == 0:
                    progress(verdict.entries, total)
        except (IntegrityError, AssertionError, KeyError, ValueError) as error:
            verdict.fault(f"account {stream['account_id']}, after entry {state.seq}: {error}")
            continue
        fills = state.part(Orders).new_fills
        await _compare_head(connection, stream, state, verdict)
        await _compare_ledger(connection, state, verdict)
        await _compare_transfers(connection, state, verdict)
        await _compare_orders(connection, state, fills, verdict)
    for command, sums in open_commands.items():
        for asset, amount in sums.items():
            verdict.fault(f"command {command}: postings of {asset} miss zero by {amount}")
    await _compare_counters(connection, counters, verdict)
    await _check_strays(connection, verdict)
    if progress is not None:
        progress(verdict.entries, total)
    return verdict


def _amounts() -> defaultdict[str, Decimal]:
    return defaultdict(Decimal)


async def _entries(
    connection: asyncpg.Connection[Any], account_id: UUID
) -> AsyncIterator[chain.Entry]:
    """An account's entries in order, each hash recomputed."""
    after_seq, previous = 0, None
    while True:
        rows = await connection.fetch(
            "SELECT seq, body, hash FROM journal WHERE account_id = $1 AND seq > $2"
            " ORDER BY seq LIMIT $3",
            account_id,
            after_seq,
            PAGE_ENTRIES,
        )
        for entry in chain.check(account_id, [tuple(row) for row in rows], previous, after_seq):
            yield entry
        if len(rows) < PAGE_ENTRIES:
            return
        after_seq, previous = rows[-1]["seq"], rows[-1]["hash"]


async def _compare_head(
    connection: asyncpg.Connection[Any],
    stream: asyncpg.Record,
    state: AccountState,
    verdict: Verdict,
) -> None:
    account_id = state.account_id
    if state.seq != stream["seq"]:
        verdict.fault(
            f"account {account_id}: the journal ends at {state.seq}, its head says {stream['seq']}"
        )
        return
    if not state.seq:
        return
    last = await connection.fetchval(
        "SELECT hash FROM journal WHERE account_id = $1 AND seq = $2", account_id, state.seq
    )
    if last != stream["hash"]:
        verdict.fault(f"account {account_id}: its head has another hash than entry {state.seq}")


async def _compare_ledger(
    connection: asyncpg.Connection[Any], state: AccountState, verdict: Verdict
) -> None:
    replayed = state.part(Ledger)
    if replayed.account is not None:
        stored, _ = await ledger_store.get_account(connection, state.account_id)
        _compare(verdict, f"account {state.account_id}", replayed.account, stored)
    _, balances = await ledger_store.get_balances(connection, state.account_id)
    for asset in sorted(balances.keys() | replayed.balances.keys()):
        _compare(
            verdict,
            f"account {state.account_id}, balance of {asset}",
            replayed.balances.get(asset, Balance()),
            balances.get(asset, Balance()),
        )


async def _compare_transfers(
    connection: asyncpg.Connection[Any], state: AccountState, verdict: Verdict
) -> None:
    replayed = state.part(Transfers)
    where = f"account {state.account_id}"
    expected = {**replayed.open, **replayed.recalled}
    after = None
    while True:
        page = await transfers_store.list_sent(
            connection, state.account_id, after=after, limit=PAGE_ENTRIES
        )
        for transfer in page:
            found = expected.pop(transfer.id, None)
            _compare(verdict, f"{where}, transfer {transfer.id}", found, transfer)
        if len(page) < PAGE_ENTRIES:
            break
        after = page[-1].id
    for transfer_id in expected:
        verdict.fault(f"{where}: transfer {transfer_id} is in the journal but not in its table")


async def _compare_orders(
    connection: asyncpg.Connection[Any],
    state: AccountState,
    fills: Sequence[Fill],
    verdict: Verdict,
) -> None:
    replayed = state.part(Orders)
    where = f"account {state.account_id}"
    expected = {
        order.id: msgspec.structs.replace(order, trade_ids=frozenset())
        for order in (*replayed.open.values(), *replayed.recalled.values())
    }
    before = None
    while True:
        page = await orders_store.list_orders(
            connection, [state.account_id], before=before, limit=PAGE_ENTRIES
        )
        for order in page:
            _compare(verdict, f"{where}, order {order.id}", expected.pop(order.id, None), order)
        if len(page) < PAGE_ENTRIES:
            break
        before = page[-1].id
    for order_id in expected:
        verdict.fault(f"{where}: order {order_id} is in the journal but not in its table")
    booked = {(fill.order_id, fill.trade_id): fill for fill in fills}
    before_seq = None
    while True:
        found = await orders_store.list_fills(
            connection, state.account_id, before_seq=before_seq, limit=PAGE_ENTRIES
        )
        for fill in found:
            key = fill.order_id, fill.trade_id
            _compare(verdict, f"{where}, fill {key[0]}/{key[1]}", booked.pop(key, None), fill)
        if len(found) < PAGE_ENTRIES:
            break
        before_seq = found[-1].seq
    for order_id, trade_id in booked:
        verdict.fault(f"{where}: fill {order_id}/{trade_id} is not in its table")
    _, positions = await orders_store.get_positions(connection, state.account_id)
    stored = {position.symbol: position for position in positions}
    for symbol in sorted(stored.keys() | replayed.positions.keys()):
        _compare(
            verdict,
            f"{where}, position in {symbol}",
            replayed.positions.get(symbol),
            stored.get(symbol),
        )


def _compare(verdict: Verdict, what: str, replayed: object, stored: object) -> None:
    if replayed == stored:
        return
    if isinstance(replayed, msgspec.Struct) and isinstance(stored, msgspec.Struct):
        names = [
            name
            for name in stored.__struct_fields__
            if getattr(replayed, name) != getattr(stored, name)
        ]
        parts = [
            f"{n}: {getattr(replayed, n)} replayed, {getattr(stored, n)} stored" for n in names
        ]
        verdict.fault(f"{what}: {'; '.join(parts)}")
    else:
        verdict.fault(f"{what}: {replayed} replayed, {stored} stored")


async def _compare_counters(
    connection: asyncpg.Connection[Any],
    replayed: dict[tuple[str, str], Decimal],
    verdict: Verdict,
) -> None:
    rows = await connection.fetch(
        "SELECT name, asset, sum(amount) AS s FROM counters GROUP BY 1, 2"
    )
    stored = {(row["name"], row["asset"]): row["s"] for row in rows}
    for key in sorted(stored.keys() | replayed.keys()):
        _compare(
            verdict,
            f"counter-account {key[0]}, {key[1]}",
            replayed.get(key, money.ZERO),
            stored.get(key, money.ZERO),
        )
    sums = await ledger_store.sums_by_asset(connection)
    verdict.assets = len(sums)
    for asset, amount in sums.items():
        if amount:
            verdict.fault(f"{asset} sums to {money.text(amount)} over all accounts, not to zero")


async def _check_strays(connection: asyncpg.Connection[Any], verdict: Verdict) -> None:
    """Rows of accounts that have no stream would never be compared."""
    for table in ("journal", "balances", "positions", "orders", "fills"):
        strays = await connection.fetchval(
            f"SELECT count(*) FROM {table} t"
            " WHERE NOT EXISTS (SELECT FROM streams s WHERE s.account_id = t.account_id)"
        )
        if strays:
            verdict.fault(f"{strays} rows of {table} belong to no stream")
    strays = await connection.fetchval(
        "SELECT count(*) FROM transfers t"
        " WHERE NOT EXISTS (SELECT FROM streams s WHERE s.account_id = t.source_id)"
    )
    if strays:
        verdict.fault(f"{strays} rows of transfers belong to no stream")
