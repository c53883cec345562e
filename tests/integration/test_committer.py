"""The committer on a real Postgres: answers, groups, races between processes, and faults."""

from __future__ import annotations

import asyncio
import contextlib
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from tbot.boot import projections
from tbot.core.errors import JournalUnavailable, NotFound, Overloaded
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Accepted
from tbot.ledger import store as ledger_store
from tbot.orders import store as orders_store
from tbot.orders.model import State
from tbot.venues.base import Side, VenueStatus
from tbot.verify import verify


async def balances(pool: Any, account_id: Any) -> dict[str, tuple[str, str]]:
    async with pool.acquire() as connection:
        _, found = await ledger_store.get_balances(connection, account_id)
    return {
        a: (f"{b.available.normalize():f}", f"{b.held.normalize():f}") for a, b in found.items()
    }


async def test_an_order_holds_funds_and_a_fill_settles_them(desk: Any, pool: Any) -> None:
    account = await desk.open(USDT="1000")
    order = (await desk.place(account, "2", "100")).result.order
    assert order.state is State.PENDING_NEW
    assert await balances(pool, account) == {"USDT": ("800", "200")}

    order = (await desk.report(order, VenueStatus.PARTIALLY_FILLED, ("1", "90", "1"))).order
    # 90 paid from the hold; the rest can still cost 100, so 10 come free.
    assert await balances(pool, account) == {"USDT": ("810", "100"), "BTC": ("0.999", "0")}
    assert order.state is State.PARTIALLY_FILLED

    order = (await desk.report(order, VenueStatus.FILLED, ("2", "100", "1"))).order
    assert order.state is State.FILLED
    assert await balances(pool, account) == {"USDT": ("810", "0"), "BTC": ("1.998", "0")}
    async with pool.acquire() as connection:
        _, positions = await orders_store.get_positions(connection, account)
        assert await ledger_store.counter_balance(connection, "venue:paper") == {
            "USDT": Decimal(-810),
            "BTC": Decimal("-1.998"),
        }
    assert positions[0].quantity == Decimal("1.998")
    assert positions[0].cost == Decimal(190)
    await desk.verified()


async def test_a_report_is_applied_once_however_often_and_in_whatever_order(
    desk: Any, pool: Any
) -> None:
    account = await desk.open(USDT="1000")
    order = (await desk.place(account, "3", "100")).result.order
    # The end arrives before two of three fills.
    early = await desk.report(order, VenueStatus.FILLED, ("3", "100", "1"), executed="3")
    assert early.fills_missing
    assert early.order.state is State.PARTIALLY_FILLED
    complete = [("1", "99", "1"), ("2", "100", "1"), ("3", "100", "1")]
    for _ in range(3):
        done = await desk.report(order, VenueStatus.FILLED, *complete, executed="3")
    assert done.order.state is State.FILLED
    assert not done.fills_missing
    stale = await desk.report(order, VenueStatus.NEW, executed="0")
    assert stale.order.state is State.FILLED
    assert await balances(pool, account) == {"USDT": ("701", "0"), "BTC": ("2.997", "0")}
    await desk.verified()


async def test_a_cancel_releases_what_is_held(desk: Any, pool: Any) -> None:
    account = await desk.open(USDT="1000", BTC="1")
    order = (await desk.place(account, "1", "100", side=Side.SELL)).result.order
    await desk.report(order, VenueStatus.NEW)
    asked = (await desk.cancel(order)).result
    assert asked.state is State.PENDING_CANCEL
    # The order fills in part while the cancel is on its way.
    asked = (await desk.report(asked, VenueStatus.PARTIALLY_FILLED, ("1", "100", "0.4"))).order
    assert asked.state is State.PENDING_CANCEL
    ended = (await desk.report(asked, VenueStatus.CANCELED)).order
    assert ended.state is State.CANCELED
    assert await balances(pool, account) == {"USDT": ("1039.96", "0"), "BTC": ("0.6", "0")}
    refused = await desk.cancel(order)
    assert refused.reason is Reason.ORDER_CLOSED
    await desk.verified()


async def test_a_client_order_id_names_one_order_for_ever(desk: Any, new_desk: Any) -> None:
    account = await desk.open(USDT="1000")
    first = await desk.place(account, client_order_id="mine")
    again = await desk.place(account, client_order_id="mine")
    assert isinstance(again, Accepted), again
    assert again.result.replayed
    assert again.result.order.id == first.result.order.id
    assert again.entries == ()
    other = await desk.place(account, quantity="0.2", client_order_id="mine")
    assert other.reason is Reason.CLIENT_ORDER_ID_REUSED

    await desk.report(first.result.order, VenueStatus.CANCELED)
    fresh = await new_desk()  # another process, with nothing in memory
    for target in (desk, fresh):
        replayed = await target.place(account, client_order_id="mine")
        assert replayed.result.replayed
        assert replayed.result.order.state is State.CANCELED
    await desk.verified()


async def test_twins_in_one_batch_have_one_effect(desk: Any) -> None:
    account = await desk.open(USDT="1000")
    outcomes = await asyncio.gather(
        *(desk.place(account, client_order_id="twin") for _ in range(20))
    )
    assert len({outcome.result.order.id for outcome in outcomes}) == 1
    assert sum(not outcome.result.replayed for outcome in outcomes) == 1


@pytest.mark.parametrize("processes", [1, 2])
async def test_twenty_orders_against_funds_for_one(
    new_desk: Any, pool: Any, processes: int
) -> None:
    desks = [await new_desk() for _ in range(processes)]
    account = await desks[0].open(USDT="100")
    outcomes = await asyncio.gather(
        *(desks[i % processes].place(account, "1", "100") for i in range(20))
    )
    accepted = [o for o in outcomes if isinstance(o, Accepted)]
    assert len(accepted) == 1
    assert {o.reason for o in outcomes if isinstance(o, Refused)} == {Reason.INSUFFICIENT_FUNDS}
    assert await balances(pool, account) == {"USDT": ("0", "100")}
    await desks[0].verified()


async def test_two_processes_keep_one_chain(new_desk: Any) -> None:
    desks = [await new_desk() for _ in range(2)]
    accounts = [await desks[0].open(USDT="100000") for _ in range(5)]
    placed = await asyncio.gather(
        *(desks[i % 2].place(accounts[i % 5], "0.1", "100") for i in range(200))
    )
    orders = [outcome.result.order for outcome in placed]
    await asyncio.gather(
        *(
            desks[(i + 1) % 2].report(order, VenueStatus.FILLED, (str(i), "100", "0.1"))
            for i, order in enumerate(orders)
        )
    )
    await desks[0].verified()


async def test_each_command_of_a_batch_gets_its_own_answer(desk: Any) -> None:
    account = await desk.open(USDT="1000")
    good, unknown, off_tick, other = await asyncio.gather(
        desk.place(account),
        desk.place(new_id()),
        desk.place(account, price="100.001"),
        desk.place(account),
        return_exceptions=True,
    )
    assert isinstance(good, Accepted)
    assert isinstance(other, Accepted)
    assert isinstance(unknown, NotFound)
    assert off_tick.reason is Reason.PRICE_OFF_TICK
    await desk.verified()


async def test_commands_that_come_together_have_an_outcome_each(desk: Any) -> None:
    account = await desk.open(USDT="1000")
    asked = [
        desk.order(account),
        desk.order(new_id()),
        desk.order(account, price="100.001"),
        desk.order(account),
    ]
    good, unknown, off_tick, other = await desk.committer.commit_all([(c, None) for c in asked])
    assert isinstance(good, Accepted)
    assert isinstance(other, Accepted)
    assert good.entries[0].seq + 1 == other.entries[0].seq
    assert isinstance(unknown, NotFound)
    assert off_tick.reason is Reason.PRICE_OFF_TICK
    assert await desk.committer.commit_all([]) == []
    await desk.verified()


async def test_commands_that_come_together_take_the_places_there_are(new_desk: Any) -> None:
    desk = await new_desk(queue_max=6, queue_reserved=2)
    account = await desk.open(USDT="1000")
    outcomes = await desk.committer.commit_all([(desk.order(account), None) for _ in range(10)])
    assert [isinstance(o, Accepted) for o in outcomes] == [True] * 4 + [False] * 6
    assert all(isinstance(o, Overloaded) for o in outcomes[4:])
    await desk.committer.stop()
    (stopped,) = await desk.committer.commit_all([(desk.order(account), None)])
    assert isinstance(stopped, JournalUnavailable)
    await desk.verified()


async def test_who_asked_for_many_and_goes_away_undoes_none(desk: Any) -> None:
    account = await desk.open(USDT="1000")
    orders = [(desk.order(account, client_order_id=f"gone{i}"), None) for i in range(3)]
    task = asyncio.create_task(desk.committer.commit_all(orders))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = await desk.committer.commit_all(
        [(desk.order(account, client_order_id=f"gone{i}"), None) for i in range(3)]
    )
    assert [outcome.result.replayed for outcome in again] == [True] * 3
    await desk.verified()


async def test_a_poisonous_command_is_isolated(desk: Any, owner_url: str) -> None:
    account = await desk.open(USDT="1000")
    owner = await asyncpg.connect(owner_url)
    await owner.execute("ALTER TABLE orders ADD CHECK (client_order_id <> 'poison')")
    await owner.close()
    outcomes = await asyncio.gather(
        *(desk.place(account, client_order_id=f"c{i}") for i in range(8)),
        desk.place(account, client_order_id="poison"),
        *(desk.place(account, client_order_id=f"d{i}") for i in range(8)),
        return_exceptions=True,
    )
    assert isinstance(outcomes[8], asyncpg.CheckViolationError)
    assert all(isinstance(o, Accepted) for i, o in enumerate(outcomes) if i != 8)
    await desk.verified()


async def test_a_caller_that_goes_away_does_not_undo_its_command(desk: Any) -> None:
    account = await desk.open(USDT="1000")
    task = asyncio.create_task(desk.place(account, client_order_id="gone"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    replayed = await desk.place(account, client_order_id="gone")
    assert replayed.result.replayed
    await desk.verified()


async def test_a_full_queue_refuses_new_orders_but_no_reports(new_desk: Any) -> None:
    desk = await new_desk(queue_max=4, queue_reserved=2)
    account = await desk.open(USDT="1000")
    order = (await desk.place(account)).result.order
    outcomes = await asyncio.gather(
        *(desk.place(account) for _ in range(10)),
        *(desk.report(order, VenueStatus.NEW) for _ in range(10)),
        return_exceptions=True,
    )
    refused = [o for o in outcomes[:10] if isinstance(o, Overloaded)]
    assert len(refused) == 8
    assert all(o.order.state is State.NEW for o in outcomes[10:])
    await desk.verified()


async def test_a_terminated_backend_costs_no_command(
    desk: Any, pool: Any, postgres: Any, database: str
) -> None:
    account = await desk.open(USDT="100000")
    killer = await asyncpg.connect(postgres.url(database, "superuser"))
    stop = asyncio.Event()

    async def kill() -> int:
        killed = 0
        while not stop.is_set():
            killed += await killer.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE application_name = 'tbot committer' AND datname = current_database()"
            )
            with contextlib.suppress(TimeoutError):  # a fault now and then, not a siege
                await asyncio.wait_for(stop.wait(), 0.15)
        return killed

    killing = asyncio.create_task(kill())
    outcomes = []
    for round_number in range(60):
        outcomes += await asyncio.gather(
            *(desk.place(account, client_order_id=f"{round_number}-{i}") for i in range(10)),
            return_exceptions=True,
        )
    stop.set()
    assert await killing > 0
    await killer.close()
    unavailable = [o for o in outcomes if isinstance(o, JournalUnavailable)]
    accepted = [o for o in outcomes if isinstance(o, Accepted)]
    assert len(accepted) + len(unavailable) == len(outcomes)
    stored = await pool.fetchval("SELECT count(*) FROM orders WHERE account_id = $1", account)
    assert stored == len(accepted)
    assert len({o.result.order.id for o in accepted}) == len(accepted)
    await desk.verified()


async def test_the_server_cannot_rewrite_the_past(pool: Any, desk: Any) -> None:
    await desk.open(USDT="1")
    for statement in (
        "UPDATE journal SET kind = 'x'",
        "DELETE FROM journal",
        "UPDATE fills SET price = 1",
        "TRUNCATE journal",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)


async def test_verify_finds_what_does_not_hold(desk: Any, owner_url: str) -> None:
    account = await desk.open(USDT="1000")
    await desk.place(account)
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute("ALTER TABLE journal DISABLE TRIGGER USER")
        for statement, words in (
            ("UPDATE balances SET available = available + 1", "balance of USDT"),
            ("UPDATE orders SET limit_price = 101", "limit_price"),
            ("UPDATE counters SET amount = 0", "counter-account"),
            ("UPDATE streams SET seq = seq - 1", "journal ends at"),
            ("UPDATE journal SET body = body || ' ' WHERE seq = 2", "hash does not match"),
            ("DELETE FROM journal WHERE seq = 2", "missing"),
        ):
            await owner.execute(statement)
            verdict = await verify(desk.dsn, projections())
            assert any(words in fault for fault in verdict.faults), (statement, verdict.faults)
    finally:
        await owner.close()
