"""What the gateway must never do, and what it must do in the end, on real Postgres."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from tbot.core.clock import boot_s
from tbot.core.errors import VenueRateLimited, VenueRefused
from tbot.core.refusals import Reason, Refused
from tbot.gateway.sender import placement_of
from tbot.orders import store
from tbot.orders.model import State
from tbot.venues.base import OrderReport, Placement, StreamGap, VenueStatus


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_accepted_order_is_sent_and_acknowledged(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    order = await trader.place(account)
    order = await trader.until(order, lambda o: o.state is State.NEW)
    assert order.venue_order_id == "1"
    scripted.fill(order.venue_client_id)
    scripted.tell(scripted.books[order.venue_client_id].report())
    order = await trader.until(order, lambda o: o.state is State.FILLED)
    assert order.held_amount == 0
    assert scripted.placed == [order.venue_client_id]
    await desk.verified()


@pytest.mark.parametrize("landed", [True, False])
async def test_a_lost_answer_is_unknown_until_the_venue_tells(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, nasty_answer: Any, landed: bool
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.on_place = nasty_answer(scripted.book if landed else None)
    scripted.denies = True
    order = await trader.place(account, within_s=5.0 if landed else 1.0)
    order = await trader.until(order, lambda o: o.state is State.UNKNOWN)
    assert order.held_amount == 10, "funds stay held"
    client_id = order.venue_client_id
    if landed:
        await until(lambda: ("query", client_id) in scripted.asked)
        assert (await trader.get(order)).state is State.UNKNOWN, "an early denial proves nothing"
        scripted.denies = False
        order = await trader.until(order, lambda o: o.state is State.NEW)
        assert order.held_amount == 10
    else:
        order = await trader.until(order, lambda o: o.final)
        assert order.state is State.REJECTED
        assert order.reason.startswith("never_landed")
        assert order.held_amount == 0
        assert scripted.asked[-1] == ("search", client_id)
        # send-by 1 s, window 0.1 s, engine 0.1 s, margin 1 s
        age_s = (
            datetime.fromisoformat(order.updated_at) - datetime.fromisoformat(order.created_at)
        ).total_seconds()
        assert age_s >= 2.2
    assert scripted.placed == [client_id]
    await desk.verified()


async def test_failed_questions_never_count_as_absence(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, nasty_answer: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.on_place = nasty_answer()
    order = await trader.place(account, within_s=1.0)
    await trader.until(order, lambda o: o.state is State.UNKNOWN)
    scripted.down = True
    await asyncio.sleep(3.0)  # far past the deadline, and nobody answers
    assert (await trader.get(order)).state is State.UNKNOWN
    scripted.book(placement_of(order, *await scripted.instruments()))
    scripted.down = False
    await trader.until(order, lambda o: o.state is State.NEW)


@pytest.mark.parametrize("landed", [True, False])
async def test_a_restart_never_sends_what_it_finds(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, landed: bool
) -> None:
    """Whether the process before sent it or not, only the venue can tell."""
    account = await desk.open(USDT="1000")
    order = await trader.place(account, within_s=0.2)
    if landed:
        scripted.book(placement_of(order, *await scripted.instruments()))
        scripted.fill(order.venue_client_id)
    await new_gateway(desk, scripted)
    order = await trader.until(order, lambda o: o.final)
    assert scripted.placed == []
    if landed:
        assert order.state is State.FILLED, "its fills were fetched"
    else:
        assert order.reason.startswith("never_landed")
    await desk.verified()


async def test_what_is_accepted_while_the_gateway_starts_is_sent(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    """Under the lease, but before the open orders were asked for: ours, so it goes out in time."""
    account = await desk.open(USDT="1000")
    scripted.down = True  # the first comparison fails, so new orders are held back
    gateway = await new_gateway(desk, scripted, ready=False)
    await until(lambda: gateway._epoch is not None)
    orders = [await trader.place(account) for _ in range(3)]
    scripted.down = False
    for order in orders:
        await trader.until(order, lambda o: o.state is State.NEW)
    assert scripted.placed == [order.venue_client_id for order in orders]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (VenueRefused("Filter failure: LOT_SIZE", "filter_failure"), "venue_refused: filter_f"),
        (VenueRateLimited("Too many new orders", "order_rate_limited"), "venue_refused: order_r"),
    ],
)
async def test_a_definite_no_rejects_and_releases(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, error: Exception, reason: str
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")

    async def refuse(_placement: Placement) -> OrderReport:
        raise error

    scripted.on_place = refuse
    order = await trader.place(account)
    order = await trader.until(order, lambda o: o.final)
    assert order.state is State.REJECTED
    assert order.reason.startswith(reason)
    assert order.held_amount == 0
    assert len(scripted.placed) == 1


async def test_fill_before_ack_and_every_order_of_reports(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    """Reports arrive early, late, twice and out of order; each execution is booked once."""
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="100000")
    rng = random.Random(7)

    async def place(placement: Placement) -> OrderReport:
        held = scripted.book(placement)
        reports = [held.report()]
        for _ in range(rng.randrange(4)):
            held = scripted.fill(placement.client_id, "0.02")
            reports.append(held.report(last_only=True))
        if rng.random() < 0.6:
            held = scripted.fill(placement.client_id)
            reports.append(held.report(last_only=True))
        reports += rng.choices(reports, k=2)
        rng.shuffle(reports)
        early = rng.randrange(len(reports) + 1)
        for report in reports[:early]:
            scripted.tell(report)
        await asyncio.sleep(rng.random() * 0.02)
        for report in reports[early:]:
            scripted.tell(report)
        return held.report(with_fills=rng.random() < 0.5)

    scripted.on_place = place
    orders = [await trader.place(account) for _ in range(60)]
    for order in orders:
        held_until = await trader.until(
            order,
            lambda o: o.filled_quantity == scripted.books[o.venue_client_id].executed
            and o.state.value == scripted.books[o.venue_client_id].status.value,
        )
        assert held_until.venue_order_id is not None
    assert sorted(scripted.placed) == sorted(o.venue_client_id for o in orders)
    await desk.verified()


async def test_missing_fills_are_fetched(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")

    async def place(placement: Placement) -> OrderReport:
        scripted.book(placement)
        scripted.fill(placement.client_id, "0.03")
        return scripted.fill(placement.client_id).report(with_fills=False)

    scripted.on_place = place
    order = await trader.place(account)
    order = await trader.until(order, lambda o: o.final)
    assert order.state is State.FILLED
    assert order.filled_quantity == Decimal("0.1")
    await desk.verified()


async def test_a_late_landing_becomes_a_linked_order(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, nasty_answer: Any, pool: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.on_place = nasty_answer()
    order = await trader.place(account, within_s=1.0)
    order = await trader.until(order, lambda o: o.final)
    assert order.reason.startswith("never_landed")
    scripted.book(placement_of(order, *await scripted.instruments()))
    scripted.tell(scripted.books[order.venue_client_id].report())
    filled = scripted.fill(order.venue_client_id)
    scripted.tell(filled.report(last_only=True))
    scripted.tell(filled.report(last_only=True))

    async def adopted() -> Any:
        async with pool.acquire() as connection:
            return await store.find_external(connection, order.id)

    async with asyncio.timeout(10):
        while (found := await adopted()) is None or found.state is not State.FILLED:
            await asyncio.sleep(0.01)
    assert found.parent_id == order.id
    assert found.filled_quantity == Decimal("0.1")
    assert (await trader.get(order)).state is State.REJECTED, "terminal stays terminal"
    assert await pool.fetchval("SELECT count(*) FROM orders") == 2
    await desk.verified()


async def test_nothing_is_signed_after_send_by(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.down = True
    order = await trader.place(account, within_s=0.3)
    order = await trader.until(order, lambda o: o.final)
    assert order.reason.startswith("never_sent")
    assert order.held_amount == 0
    scripted.down = False
    later = await trader.place(account)
    await trader.until(later, lambda o: o.state is State.NEW)
    assert scripted.placed == [later.venue_client_id]


async def test_a_gap_in_the_stream_is_swept(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    orders = [await trader.place(account) for _ in range(3)]
    for order in orders:
        await trader.until(order, lambda o: o.state is State.NEW)
    # Missed: one filled, one partly, one canceled by somebody else.
    scripted.fill(orders[0].venue_client_id)
    scripted.fill(orders[1].venue_client_id, "0.04")
    scripted.books[orders[2].venue_client_id].status = VenueStatus.CANCELED
    scripted.tell(StreamGap("reconnected"))
    await trader.until(orders[0], lambda o: o.state is State.FILLED)
    await trader.until(orders[1], lambda o: o.filled_quantity == Decimal("0.04"))
    await trader.until(orders[2], lambda o: o.state is State.CANCELED)
    await desk.verified()


async def test_orders_of_another_process_are_found(
    desk: Any, new_desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    """Its committer tells this process's gateway nothing; the table does, within a second."""
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    other = await new_desk()
    outcome = await other.place(account)
    order = outcome.result.order
    await trader.until(order, lambda o: o.state is State.NEW)
    await other.cancel(order)
    await trader.until(order, lambda o: o.state is State.CANCELED)
    assert scripted.placed == [order.venue_client_id]


async def test_one_of_two_gateways_sends_and_the_other_takes_over(
    desk: Any, new_desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    first = await new_gateway(desk, scripted)
    second = await new_gateway(await new_desk(), scripted, ready=False)
    account = await desk.open(USDT="1000")
    orders = [await trader.place(account) for _ in range(5)]
    for order in orders:
        await trader.until(order, lambda o: o.state is State.NEW)
    assert not second.ready.is_set()
    await first.stop()
    async with asyncio.timeout(10):
        await second.ready.wait()
    later = await trader.place(account)
    await trader.until(later, lambda o: o.state is State.NEW)
    assert sorted(scripted.placed) == sorted(o.venue_client_id for o in [*orders, later])


async def test_without_a_lease_nothing_is_sent(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, quick: Any
) -> None:
    """As a process that was stopped for longer than its lease: it knows before it writes."""
    # So long that it is not renewed while the order waits.
    gateway = await new_gateway(desk, scripted, quick.model_copy(update={"lease_ttl_s": 60.0}))
    account = await desk.open(USDT="1000")
    gateway._lease._until_s = 0.0
    order = await trader.place(account, within_s=0.3)
    order = await trader.until(order, lambda o: o.final)
    assert scripted.placed == []


async def test_a_venue_that_lost_its_memory_halts_trading(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, nasty_answer: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    resting = await trader.place(account)
    await trader.until(resting, lambda o: o.state is State.NEW)
    scripted.on_place = nasty_answer()
    doubtful = await trader.place(account, within_s=1.0)
    await trader.until(doubtful, lambda o: o.state is State.UNKNOWN)
    scripted.books.clear()
    scripted.session = "two"

    async def halted() -> bool:
        outcome = await desk.committer.commit(desk.order(account))
        return isinstance(outcome, Refused) and outcome.reason is Reason.VENUE_HALTED

    async with asyncio.timeout(10):
        while not await halted():
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    assert (await trader.get(resting)).state is State.NEW, "nothing was taken for absent"
    assert (await trader.get(doubtful)).state is State.UNKNOWN
    await desk.verified()


async def test_a_lost_lease_begins_a_new_epoch(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, pool: Any
) -> None:
    """A lost lease ends the epoch; the next one asks for everything and goes on."""
    gateway = await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    order = await trader.place(account)
    await trader.until(order, lambda o: o.state is State.NEW)
    await pool.execute("UPDATE leases SET epoch = epoch + 1, expires_at = now()")
    await until(lambda: not gateway.ready.is_set())
    scripted.fill(order.venue_client_id)  # while nobody listens
    await trader.until(order, lambda o: o.state is State.FILLED)
    await until(gateway.ready.is_set)
    later = await trader.place(account)
    await trader.until(later, lambda o: o.state is State.NEW)
    await desk.verified()


async def test_a_lease_has_one_holder(database_url: str) -> None:
    from tbot.gateway.lease import Lease

    def lease(holder: str) -> Lease:
        return Lease(lambda: asyncpg.connect(database_url), "venue:x", holder, 3.0)

    first, second = lease("a"), lease("b")
    await first.acquire()
    unrenewed_until_s = first._until_s
    waiting = asyncio.create_task(second.acquire())
    keeping = asyncio.create_task(first.keep())
    await until(lambda: boot_s() > unrenewed_until_s)
    assert first.valid()
    assert not waiting.done()
    keeping.cancel()  # as when the holder dies
    await until(lambda: waiting.done())
    assert not first.valid(), "the old holder stopped believing before the new one began"
    assert second.epoch == first.epoch + 1
    await first.release()
    await second.release()
