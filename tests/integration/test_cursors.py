"""Cursors over a real journal: every entry once, in order, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from uuid import UUID

import pytest

from tbot.core.bus import Bus
from tbot.core.errors import IntegrityError
from tbot.core.ids import new_id
from tbot.core.settings import StreamSettings
from tbot.journal import chain
from tbot.journal.cursors import Cursor, Journal, Place


@pytest.fixture
async def new_journal(pool: Any) -> AsyncIterator[Callable[..., Journal]]:
    """Makes reading ends on the test's database."""
    journals: list[Journal] = []

    def make(bus: Bus, **settings: Any) -> Journal:
        journal = Journal(pool, bus, StreamSettings(**settings))
        journal.start()
        journals.append(journal)
        return journal

    yield make
    for journal in journals:
        await journal.stop()


class Reader:
    """Follows a cursor and notes the sequences it delivers."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.seqs: list[int] = []
        self.pages = 0
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while entries := await self.cursor.next():
            self.pages += 1
            self.seqs.extend(entry.seq for entry in entries)


def start_of(account_id: UUID) -> Place:
    return Place(0, chain.genesis(account_id))


async def cancel_some(desk: Any, account_id: UUID, orders: int) -> None:
    """Two entries an order."""
    for _ in range(orders):
        order = (await desk.place(account_id)).result.order
        await desk.cancel(order)


async def test_entries_come_once_in_order_from_memory_and_table(
    desk: Any, new_journal: Any, eventually: Any
) -> None:
    journal = new_journal(desk.bus, page_entries=7, recent_entries=16)
    desk.committer.listen(journal.remember)
    account_id = await desk.open(USDT="100000")
    await cancel_some(desk, account_id, 30)
    reader = Reader(journal.open(account_id, start_of(account_id)))
    await asyncio.gather(*(cancel_some(desk, account_id, 20) for _ in range(5)))
    head = await journal.head(account_id)
    assert head is not None and head.seq > 250
    await eventually(lambda: len(reader.seqs) >= head.seq)
    assert reader.seqs == list(range(1, head.seq + 1))
    reader.cursor.close()
    await reader.task


async def test_a_reader_at_the_head_costs_no_query_for_what_this_process_commits(
    desk: Any, new_journal: Any, eventually: Any, monkeypatch: Any
) -> None:
    journal = new_journal(desk.bus, sweep_interval_s=3600)
    desk.committer.listen(journal.remember)
    account_id = await desk.open(USDT="1000")
    readers = [Reader(journal.open(account_id, start_of(account_id))) for _ in range(3)]
    await desk.place(account_id)
    head = await journal.head(account_id)
    assert head is not None
    await eventually(lambda: all(reader.seqs[-1:] == [head.seq] for reader in readers))
    # A reader that has just arrived looks once whether the table has more: let that pass.
    lock = journal._watched[account_id].lock
    await eventually(
        lambda: not (lock.locked() or lock._waiters)
        and not any(reader.cursor.news.is_set() for reader in readers)
    )
    queries = 0
    read = Journal._read

    async def counted(self: Journal, *args: Any) -> Any:
        nonlocal queries
        queries += 1
        return await read(self, *args)

    monkeypatch.setattr(Journal, "_read", counted)
    await cancel_some(desk, account_id, 10)
    await eventually(lambda: all(reader.seqs[-1] >= head.seq + 20 for reader in readers))
    assert queries == 0
    for reader in readers:
        assert reader.seqs == list(range(1, reader.seqs[-1] + 1))


async def test_another_processes_entries_come_by_wake_up_and_without_one_by_the_sweep(
    new_desk: Any, new_journal: Any, eventually: Any
) -> None:
    desk, other = await new_desk(), await new_desk()
    woken = new_journal(desk.bus, sweep_interval_s=3600)
    sweeping = new_journal(Bus(), sweep_interval_s=0.05)
    desk.committer.listen(woken.remember)
    account_id = await desk.open(USDT="100000")
    reader = Reader(woken.open(account_id, start_of(account_id)))
    swept = Reader(sweeping.open(account_id, start_of(account_id)))
    # Both committers append in turn; the bus of the second is another process's.
    for _ in range(5):
        await cancel_some(desk, account_id, 1)
        await cancel_some(other, account_id, 1)
        desk.bus.wake([f"head:{account_id}"])
    head = await woken.head(account_id)
    assert head is not None
    for one in (reader, swept):
        await eventually(lambda one=one: one.seqs[-1:] == [head.seq])
        assert one.seqs == list(range(1, head.seq + 1))


async def test_a_place_is_found_only_with_its_hash(desk: Any, new_journal: Any) -> None:
    journal = new_journal(desk.bus)
    account_id = await desk.open(USDT="1000")
    await cancel_some(desk, account_id, 2)
    head = await journal.head(account_id)
    assert head is not None
    assert await journal.find(account_id, head.seq, head.prefix) == head
    genesis = start_of(account_id)
    assert await journal.find(account_id, 0, genesis.prefix) == genesis
    assert await journal.find(account_id, head.seq, genesis.prefix) is None
    assert await journal.find(account_id, head.seq + 1, head.prefix) is None  # ahead of the head
    assert await journal.find(account_id, -1, head.prefix) is None
    assert await journal.find(account_id, 1 << 70, head.prefix) is None
    assert await journal.find(new_id(), head.seq, head.prefix) is None
    assert await journal.head(new_id()) is None


async def test_a_stream_that_went_back_or_changed_is_not_continued(
    desk: Any, new_journal: Any
) -> None:
    """As after a restore under a running server: the reader is told, not fed something else."""
    journal = new_journal(desk.bus)
    account_id = await desk.open(USDT="1000")
    await cancel_some(desk, account_id, 1)
    head = await journal.head(account_id)
    assert head is not None
    for place in (
        Place(head.seq + 5, head.digest),  # the stream is shorter than what was delivered
        Place(head.seq, bytes(32)),  # as long, but another
        Place(head.seq - 1, bytes(32)),  # longer, and another
    ):
        cursor = journal.open(account_id, place)
        with pytest.raises(IntegrityError):
            await cursor.next()
        cursor.close()


async def test_closing_ends_the_wait(desk: Any, new_journal: Any) -> None:
    journal = new_journal(desk.bus)
    account_id = await desk.open(USDT="1000")
    head = await journal.head(account_id)
    cursor = journal.open(account_id, head)
    waiting = asyncio.create_task(cursor.next())
    await asyncio.sleep(0)
    cursor.close()
    cursor.close()
    assert await asyncio.wait_for(waiting, 5) == ()
    assert not journal._watched
