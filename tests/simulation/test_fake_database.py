"""The fake database does what Postgres does: each of these runs on both."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.core import clock
from tbot.journal import batch
from tbot.journal.batch import compose
from tbot.journal.projections import Write

from .database import Server
from .expressions import UnknownStatement
from .faults import Faults
from .loop import VirtualLoop
from .statements import plan

ONE, TWO = UUID(int=1), UUID(int=2)
INSERT = """INSERT INTO streams SELECT * FROM
 unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::timestamptz[]) ON CONFLICT DO NOTHING"""
ADD = "UPDATE streams SET seq = $2 WHERE account_id = $1"
SEQS = "SELECT account_id, seq FROM streams WHERE account_id = ANY($1::uuid[])"
LOCK = f"{SEQS} ORDER BY account_id FOR NO KEY UPDATE"
COUNT = """INSERT INTO counters AS c (name, asset, lane, amount)
SELECT * FROM unnest({0}::text[], {1}::text[], {2}::smallint[], {3}::numeric[])
ON CONFLICT (name, asset, lane) DO UPDATE SET amount = c.amount + excluded.amount"""

type Connect = Callable[[], Awaitable[Any]]
type Script = Callable[[Connect, Callable[[], Awaitable[None]]], Awaitable[Any]]


@pytest.fixture(params=["fake", "real"])
def run(request: pytest.FixtureRequest) -> Callable[[Script], Any]:
    """Run a script with `connect()` and `pause()`, after which whoever can go on has done so."""
    if request.param == "fake":

        def on_fake(script: Script) -> Any:
            rng = random.Random(1)
            loop = VirtualLoop(rng, shuffled=False)
            server = Server(loop, rng, Faults(rng))
            script_run = script(lambda: server.connect("t"), lambda: asyncio.sleep(0.1))
            return loop.run(script_run, steps_max=10_000, time_s_max=60)

        return on_fake
    dsn = request.getfixturevalue("owner_url")

    def on_real(script: Script) -> Any:
        async def main() -> Any:
            connections: list[Any] = []

            async def connect() -> Any:
                connections.append(await asyncpg.connect(dsn))
                return connections[-1]

            async def pause() -> None:
                """Until every session is idle or waits for a lock."""
                watcher = await asyncpg.connect(dsn)
                busy = 1
                while busy:
                    busy = await watcher.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active'"
                        " AND datname = current_database() AND pid <> pg_backend_pid()"
                        " AND wait_event_type IS DISTINCT FROM 'Lock'"
                    )
                await watcher.close()

            try:
                return await script(connect, pause)
            finally:
                for connection in connections:
                    connection.terminate()

        return asyncio.run(main())

    return on_real


async def _streams(connection: Any, *ids: UUID) -> None:
    zero, at = bytes(32), clock.utc_now()
    await connection.execute(INSERT, list(ids), [0] * len(ids), [zero] * len(ids), [at] * len(ids))


async def _seqs(connection: Any) -> list[tuple[int, int]]:
    rows = await connection.fetch(f"{SEQS} ORDER BY account_id", [ONE, TWO])
    return [(row["account_id"].int, row["seq"]) for row in rows]


def test_a_statement_sees_what_was_committed_when_it_began(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        first, second = await connect(), await connect()
        await _streams(first, ONE)
        await first.execute("BEGIN")
        await first.execute(ADD, ONE, 5)
        seen = [await _seqs(first), await _seqs(second)]
        assert await first.execute("COMMIT") == "COMMIT"
        return [*seen, await _seqs(second)]

    assert run(script) == [[(1, 5)], [(1, 0)], [(1, 5)]]


def test_who_waits_for_a_lock_reads_the_locked_row_anew_but_not_its_companion(run: Any) -> None:
    joined = (
        "SELECT s.account_id, s.seq, t.seq AS other FROM streams s"
        " JOIN streams t ON t.account_id = $2"
        " WHERE s.account_id = $1 FOR NO KEY UPDATE OF s"
    )

    async def script(connect: Connect, pause: Any) -> Any:
        first, second = await connect(), await connect()
        await _streams(first, ONE, TWO)
        await first.execute("BEGIN")
        await first.fetch(LOCK, [ONE, TWO])
        await second.execute("BEGIN")
        waiting = asyncio.ensure_future(second.fetch(joined, ONE, TWO))
        await pause()
        assert not waiting.done()
        await first.execute(ADD, ONE, 7)
        await first.execute(ADD, TWO, 7)
        await first.execute("COMMIT")
        stale = [(row["seq"], row["other"]) for row in await waiting]
        return [stale, await _seqs(second)]

    assert run(script) == [[(7, 0)], [(1, 7), (2, 7)]]


@pytest.mark.parametrize(("end", "expected"), [("COMMIT", [(1, 3)]), ("ROLLBACK", [(1, 0)])])
def test_adding_a_row_waits_for_who_is_adding_it_and_locking_does_not(
    run: Any, end: str, expected: Any
) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        first, second = await connect(), await connect()
        await first.execute("BEGIN")
        await _streams(first, ONE)
        await first.execute(ADD, ONE, 3)
        assert await second.fetch(LOCK, [ONE]) == []
        waiting = asyncio.ensure_future(_streams(second, ONE))
        await pause()
        assert not waiting.done()
        await first.execute(end)
        await waiting
        return await _seqs(second)

    assert run(script) == expected


def test_a_failed_transaction_answers_commit_with_rollback(run: Any) -> None:
    plain = INSERT.replace(" ON CONFLICT DO NOTHING", "")

    async def script(connect: Connect, pause: Any) -> Any:
        one = await connect()
        await _streams(one, ONE)
        await one.execute("BEGIN")
        await one.execute(ADD, ONE, 9)
        codes = []
        for sql, args in ((plain, ([ONE], [0], [b""], [clock.utc_now()])), (ADD, (ONE, 1))):
            try:
                await one.execute(sql, *args)
            except asyncpg.PostgresError as error:
                codes.append(error.sqlstate)
        return [codes, await one.execute("COMMIT"), await _seqs(one)]

    assert run(script) == [["23505", "25P02"], "ROLLBACK", [(1, 0)]]


def test_a_deadlock_ends_with_one_victim(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        first, second = await connect(), await connect()
        await _streams(first, ONE, TWO)
        for connection, account in ((first, ONE), (second, TWO)):
            await connection.execute("BEGIN")
            await connection.fetch(LOCK, [account])
        waiting = asyncio.ensure_future(first.fetch(LOCK, [TWO]))
        await pause()
        other = asyncio.ensure_future(second.fetch(LOCK, [ONE]))
        # The victim's transaction is over with its error: nobody has to roll it back for that.
        ends = await asyncio.gather(waiting, other, return_exceptions=True)
        return sorted(getattr(e, "sqlstate", None) or f"{len(e)} row" for e in ends)

    assert run(script) == ["1 row", "40P01"]


def test_bulk_writes_of_one_statement_take_effect_together(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        one = await connect()
        await _streams(one, ONE, TWO)
        heads = Write(batch._HEADS, [[ONE, TWO], [4, 6], [b"a", b"b"], [clock.utc_now()] * 2])
        counters = Write(COUNT, [["outside"], ["EUR"], [0], [5]])
        for _ in range(2):
            sql, parameters = compose([heads, counters])
            await one.fetch(sql, *parameters, "topic")
        total = await one.fetch("SELECT amount FROM counters WHERE name = $1", "outside")
        return [await _seqs(one), [int(row["amount"]) for row in total]]

    assert run(script) == [[(1, 4), (2, 6)], [10]]


HALTS = (["trading"], [False], [""])
TURN = "UPDATE switches SET halted = $2 WHERE name = $1"


async def _ahead(connection: Any, seq: int, head: bytes, halts: Any, to: int) -> str:
    """Write a head that was decided on top of an assumed one; what became of it."""
    heads = Write(batch._HEADS, [[ONE], [to], [b"new"], [clock.utc_now()]])
    sql, parameters = compose([heads], certified=True)
    try:
        await connection.fetch(sql, *parameters, [ONE], [seq], [head], *halts, "topic")
    except asyncpg.PostgresError as error:
        return str(error.sqlstate)
    return "written"


def test_what_was_decided_ahead_is_written_only_if_all_is_as_assumed(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        one = await connect()
        await _streams(one, ONE)
        await one.execute(
            "INSERT INTO switches (name, halted, reason, at)"
            " SELECT * FROM unnest($1::text[], $2::boolean[], $3::text[], $4::timestamptz[])",
            *HALTS,
            [clock.utc_now()],
        )
        told = [
            await _ahead(one, 1, bytes(32), HALTS, 5),
            await _ahead(one, 0, b"other", HALTS, 5),
            await _ahead(one, 0, bytes(32), (["trading"], [True], [""]), 5),
            await _ahead(one, 0, bytes(32), ([], [], []), 5),
        ]
        seen = await _seqs(one)
        told.append(await _ahead(one, 0, bytes(32), HALTS, 5))
        return [told, seen, await _seqs(one)]

    assert run(script) == [["40001"] * 4 + ["written"], [(1, 0)], [(1, 5)]]


def test_what_was_decided_ahead_waits_for_who_has_the_stream_or_turns_a_switch(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        first, second = await connect(), await connect()
        await _streams(first, ONE)
        await first.execute(
            "INSERT INTO switches (name, halted, reason, at)"
            " SELECT * FROM unnest($1::text[], $2::boolean[], $3::text[], $4::timestamptz[])",
            *HALTS,
            [clock.utc_now()],
        )
        told = []
        for change, arguments in ((ADD, (ONE, 7)), (TURN, ("trading", True))):
            seq = (await _seqs(first))[0][1]
            await first.execute("BEGIN")
            await first.execute(change, *arguments)
            waiting = asyncio.ensure_future(_ahead(second, seq, bytes(32), HALTS, 50))
            await pause()
            assert not waiting.done()
            await first.execute("COMMIT")
            told.append(await waiting)
        return [told, await _seqs(first)]

    assert run(script) == [["40001", "40001"], [(1, 7)]]


def test_a_lane_belongs_to_a_session(run: Any) -> None:
    async def script(connect: Connect, pause: Any) -> Any:
        ask = "SELECT pg_try_advisory_lock($1, $2)"
        first, second = await connect(), await connect()
        taken = [await first.fetchval(ask, 1, 0), await second.fetchval(ask, 1, 0)]
        return [*taken, await second.fetchval(ask, 1, 1)]

    assert run(script) == [True, False, True]


def test_what_it_was_not_taught_is_named() -> None:
    with pytest.raises(UnknownStatement, match="VACUUM"):
        plan("VACUUM streams")
