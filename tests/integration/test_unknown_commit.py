"""A COMMIT whose answer was lost, while the old backend is still about to carry it out."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.core.ids import new_id
from tbot.core.settings import CommitterSettings
from tbot.db.pool import DATABASE_FAULTS, connect_committer
from tbot.journal.batch import Batch, StateCache
from tbot.journal.commands import SYSTEM
from tbot.journal.projections import Projections
from tbot.journal.queue import Pending
from tbot.ledger.entries import OpenAccount
from tbot.ledger.store import LedgerProjection

from .conftest import LIMITS


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_new_account_is_waited_for_though_it_has_no_row_to_lock(
    dsn: str, pool: Any, end: str, eventually: Callable[..., Awaitable[None]]
) -> None:
    old = await connect_committer(dsn, CommitterSettings(idle_timeout_s=30))
    new = await connect_committer(dsn, CommitterSettings())
    projections = Projections(LedgerProjection())
    command = OpenAccount(new_id(), SYSTEM, new_id(), UUID(int=7), "a", "paper", LIMITS, {})
    batch = Batch([Pending(command)])
    await old.execute("BEGIN")
    heads, context = await batch.lock(old)
    await batch.load(old, heads, projections, StateCache(1))
    batch.decide(context, projections, 1.0)
    await batch.write(old, projections, 0)

    asked = asyncio.create_task(batch.landed(new))
    await eventually(lambda: _waits(pool, new.get_server_pid()))
    assert not asked.done()
    await old.execute(end)
    assert await asked is (end == "COMMIT")
    await old.close()
    await new.close()


async def test_a_statement_that_nobody_has_read_yet_is_never_carried_out(dsn: str) -> None:
    old = await connect_committer(dsn, CommitterSettings())
    new = await connect_committer(dsn, CommitterSettings())
    session, pid = await old.fetchval("SELECT this_session()"), old.get_server_pid()
    table = "INSERT INTO streams VALUES ($1, 0, '\\x00', now())"
    await old.fetch("SELECT 1 FROM streams WHERE account_id = $1", new_id())
    statement = await old.prepare(table)
    os.kill(pid, signal.SIGSTOP)
    try:
        sent = asyncio.ensure_future(statement.fetch(new_id()))
        await asyncio.sleep(0)
        old.terminate()
        with pytest.raises(DATABASE_FAULTS):
            await sent
        assert await new.fetchval("SELECT end_session($1, 50)", session) is False
    finally:
        os.kill(pid, signal.SIGCONT)
    assert await new.fetchval("SELECT end_session($1, 10000)", session) is True
    assert await new.fetchval("SELECT count(*) FROM streams") == 0
    assert await new.fetchval("SELECT end_session($1, 50)", session) is True, "it is over"
    assert await new.fetchval("SELECT this_session()") != session
    await new.close()


async def test_a_cancellation_goes_through_whatever_the_connection_says() -> None:
    class Broken:
        """Fails as a connection does that is gone, once its owner is told to stop."""

        async def execute(self, sql: str, *args: Any) -> str:
            if sql == "ROLLBACK":
                raise asyncpg.InterfaceError("connection is closed")
            return sql

        async def fetch(self, sql: str, *args: Any) -> list[Any]:
            await asyncio.Event().wait()
            return []

    asked = asyncio.create_task(Batch([]).landed(Broken()))
    await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def _waits(pool: Any, pid: int) -> bool:
    waits: bool = await pool.fetchval(
        "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1", pid
    )
    return waits
