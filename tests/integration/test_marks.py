"""Balances as of any moment: marks and replays against the plain sum of the postings."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from tbot.db.migrate import DIRECTORY
from tbot.journal.batch import OWN_HOLDERS
from tbot.ledger import marks
from tbot.ledger.marks import EVERY, balances_after, balances_at


def replayed(rows: list[asyncpg.Record]) -> dict[str, tuple[Decimal, Decimal]]:
    """What entries add up to, in the plainest way."""
    sums: dict[tuple[str, str], Decimal] = {}
    for row in rows:
        for holder, asset, amount in msgspec.json.decode(row["body"])["postings"]:
            if holder in OWN_HOLDERS:
                sums[asset, holder] = sums.get((asset, holder), Decimal(0)) + Decimal(amount)
    return {
        asset: (sums.get((asset, "available"), Decimal(0)), sums.get((asset, "held"), Decimal(0)))
        for asset in {asset for asset, _ in sums}
    }


def plain(balances: Any) -> dict[str, tuple[Decimal, Decimal]]:
    return {asset: (one.available, one.held) for asset, one in balances.items()}


async def journal(connection: Any, account_id: UUID) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(
        "SELECT seq, at, body FROM journal WHERE account_id = $1 ORDER BY seq", account_id
    )
    return rows


async def busy(desk: Any, account_id: UUID, orders: int) -> None:
    """Place and cancel orders at once, so that batches hold many entries of the account."""
    placed = await asyncio.gather(*(desk.place(account_id, "0.1", "100") for _ in range(orders)))
    await asyncio.gather(*(desk.cancel(outcome.result.order) for outcome in placed[::3]))


async def test_marks_are_exact_wherever_in_a_batch_they_fall(desk: Any, pool: Any) -> None:
    account = await desk.open(USDT="100000", BTC="3")
    for _ in range(4):
        await busy(desk, account, 150)
    async with pool.acquire() as connection:
        rows = await journal(connection, account)
        found = await connection.fetch(
            "SELECT seq, at, balances FROM marks WHERE account_id = $1 ORDER BY seq", account
        )
    assert len(rows) > 3 * EVERY
    assert [row["seq"] for row in found] == list(range(EVERY, len(rows) + 1, EVERY))
    ends = {row["at"] for row in rows[:-1] if row["at"] != rows[row["seq"]]["at"]}
    assert any(
        row["at"] not in ends or rows[row["seq"]]["at"] == row["at"] for row in found
    ), "no batch crossed a multiple in its middle: the test shows nothing"
    for mark in found:
        stored = {
            asset: (Decimal(available), Decimal(held))
            for asset, (available, held) in msgspec.json.decode(mark["balances"]).items()
        }
        assert stored == replayed(rows[: mark["seq"]])
        assert mark["at"] == rows[mark["seq"] - 1]["at"]
    await desk.verified()


async def test_two_committers_leave_balances_that_any_moment_agrees_with(
    new_desk: Any, pool: Any
) -> None:
    one, two = await new_desk(), await new_desk(batch_max=7)
    accounts = [await one.open(USDT="100000") for _ in range(2)]
    await asyncio.gather(*(busy(desk, account, 180) for desk in (one, two) for account in accounts))
    async with pool.acquire() as connection:
        for account in accounts:
            rows = await journal(connection, account)
            assert len(rows) > EVERY
            expected: dict[datetime, int] = {row["at"]: row["seq"] for row in rows}
            assert len(expected) < len(rows), "no two entries share a time: the test is too easy"
            for at, last in expected.items():
                found = await balances_at(connection, account, at)
                assert found.seq == last
                assert plain(found.balances) == replayed(rows[:last])
                before = await balances_at(connection, account, at - timedelta(microseconds=1))
                assert before.seq < last and rows[before.seq]["at"] == at
            for last in (0, 1, EVERY - 1, EVERY, EVERY + 1, len(rows)):
                after = await balances_after(connection, account, last)
                assert (after.seq, plain(after.balances)) == (last, replayed(rows[:last]))
    await one.verified()


async def test_before_the_first_entry_there_is_nothing_and_later_all(desk: Any, pool: Any) -> None:
    account = await desk.open(USDT="10")
    async with pool.acquire() as connection:
        early = await balances_at(connection, account, datetime(2020, 1, 1, tzinfo=UTC))
        late = await balances_at(connection, account, datetime(2120, 1, 1, tzinfo=UTC))
        assert (early.seq, early.balances) == (0, {})
        assert (late.seq, plain(late.balances)) == (2, {"USDT": (Decimal(10), Decimal(0))})
        beyond = await balances_after(connection, account, 99)
        assert beyond == late


@pytest.mark.parametrize("backfilled", [False, True])
async def test_accounts_from_before_the_marks_are_as_exact(
    desk: Any, pool: Any, owner_url: str, backfilled: bool
) -> None:
    account = await desk.open(USDT="100000", BTC="1")
    quiet = await desk.open(USDT="5")
    for _ in range(2):
        await busy(desk, account, 210)
    owner = await asyncpg.connect(owner_url)
    try:
        written = await owner.fetch("SELECT * FROM marks ORDER BY account_id, seq")
        assert len(written) == 2
        await owner.execute("TRUNCATE marks")
        if backfilled:
            migration = (DIRECTORY / "0005_marks.sql").read_text()
            fill = migration[migration.index("WITH moved") :].partition(";")[0]
            await owner.execute(fill)
            again = await owner.fetch("SELECT * FROM marks ORDER BY account_id, seq")
            assert [tuple(row)[:3] for row in again] == [tuple(row)[:3] for row in written]
            assert [msgspec.json.decode(row["balances"]) for row in again] == [
                msgspec.json.decode(row["balances"]) for row in written
            ]
    finally:
        await owner.close()
    async with pool.acquire() as connection:
        rows = await journal(connection, account)
        for row in rows[::37]:
            last = max(one["seq"] for one in rows if one["at"] == row["at"])
            found = await balances_at(connection, account, row["at"])
            assert (found.seq, plain(found.balances)) == (last, replayed(rows[:last]))
        other = await balances_at(connection, quiet, rows[-1]["at"])
        assert plain(other.balances) == {"USDT": (Decimal(5), Decimal(0))}


async def test_the_way_from_a_mark_is_short(desk: Any, pool: Any) -> None:
    """However long a stream is, a moment costs one mark and at most one page of entries."""
    account = await desk.open(USDT="100000")
    for _ in range(3):
        await busy(desk, account, 200)
    seen: list[tuple[str, int]] = []

    class Counting:
        async def fetchrow(self, sql: str, *args: Any) -> Any:
            seen.append(("mark", 1))
            return await connection.fetchrow(sql, *args)

        async def fetch(self, sql: str, *args: Any) -> Any:
            rows = await connection.fetch(sql, *args)
            seen.append(("entries", len(rows)))
            return rows

    async with pool.acquire() as connection:
        rows = await journal(connection, account)
        assert len(rows) > 3 * EVERY
        for row in rows[::41]:
            seen.clear()
            await balances_at(Counting(), account, row["at"])  # type: ignore[arg-type]
            assert [kind for kind, _ in seen] == ["mark", "entries"]
            assert seen[1][1] <= EVERY


async def test_the_past_is_append_only(desk: Any, pool: Any) -> None:
    await desk.open(USDT="1")
    for statement in ("UPDATE marks SET seq = 256", "DELETE FROM marks", "TRUNCATE marks"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)
    assert marks.EVERY == 256, "the table's check says so too"
