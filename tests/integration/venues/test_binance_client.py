"""The adapter against a hostile exchange over real sockets: no outcome is ever guessed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tbot.core.errors import (
    VenueAmbiguous,
    VenueDown,
    VenueError,
    VenueNotSent,
    VenueRateLimited,
    VenueRefused,
)
from tbot.core.ids import new_id, venue_client_id
from tbot.venues.base import (
    Instrument,
    MarketTrade,
    OrderReport,
    OrderType,
    Placement,
    Side,
    StreamGap,
    TimeInForce,
    VenueStatus,
)
from tbot.venues.binance.client import BinanceVenue
from tbot.venues.budgets import Priority


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def order(venue: BinanceVenue) -> Placement:
    (instrument,) = await venue.instruments()
    return Placement(
        venue_client_id(new_id()),
        instrument,
        Side.BUY,
        OrderType.LIMIT,
        TimeInForce.GTC,
        Decimal("0.01"),
        None,
        Decimal(50000),
    )


async def test_place_query_and_the_clock(venue: BinanceVenue, nasty: Any) -> None:
    placement = await order(venue)
    report = await venue.place(placement, lambda: True)
    assert (report.client_id, report.status) == (placement.client_id, VenueStatus.NEW)
    assert await venue.query(placement.client_id, placement.instrument) is not None
    assert await venue.query("tbNever", placement.instrument) is None
    stamped = next(r for r in nasty.requests if r["method"] == "order.place")["params"]
    assert abs(stamped["timestamp"] - nasty.now_ms()) < 1000


@pytest.mark.parametrize(
    ("mood", "error", "executed"),
    [
        ("drop_before", VenueAmbiguous, False),
        ("drop_after", VenueAmbiguous, True),
        ("timeout_lost", VenueAmbiguous, False),
        ("timeout_executed", VenueAmbiguous, True),
        ("truncated", VenueAmbiguous, True),
        ("unreadable", VenueAmbiguous, True),
        ("html", VenueAmbiguous, False),
        ("duplicate", VenueAmbiguous, False),
        ("rate", VenueRateLimited, False),
        ("orders", VenueRateLimited, False),
        ("banned", VenueRateLimited, False),
    ],
)
async def test_outcomes(
    venue: BinanceVenue, nasty: Any, mood: str, error: type[VenueError], executed: bool
) -> None:
    placement = await order(venue)
    nasty.mood = mood
    with pytest.raises(error):
        await venue.place(placement, lambda: True)
    sent = [r for r in nasty.requests if r["method"] == "order.place"]
    assert len(sent) == 1, "a placement is never repeated"
    assert (placement.client_id in nasty.orders) is executed


@pytest.mark.long
async def test_silence_is_no_answer(venue: BinanceVenue, nasty: Any) -> None:
    placement = await order(venue)
    nasty.mood = "silent"
    with pytest.raises(VenueAmbiguous):
        await venue.place(placement, lambda: True)
    assert nasty.orders == {placement.client_id: 1}


async def test_one_lost_connection_makes_everything_in_flight_unknown(
    venue: BinanceVenue, nasty: Any
) -> None:
    nasty.mood = "silent"
    placements = [await order(venue) for _ in range(10)]
    tasks = [asyncio.create_task(venue.place(each, lambda: True)) for each in placements]
    await until(lambda: len(nasty.orders) == 10)
    for socket in list(nasty.sockets):
        socket.transport.abort()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, VenueAmbiguous) for outcome in outcomes)
    # And it comes back by itself.
    nasty.mood = "fine"
    async with asyncio.timeout(10):
        await venue.wait_ready()
    again = await order(venue)
    assert (await venue.place(again, lambda: True)).status is VenueStatus.NEW


async def test_without_leave_or_connection_nothing_is_sent(venue: BinanceVenue, nasty: Any) -> None:
    placement = await order(venue)
    with pytest.raises(VenueNotSent) as late:
        await venue.place(placement, lambda: False)
    assert late.value.code == "too_late"
    await nasty.stop()
    await until(lambda: not nasty.sockets)
    with pytest.raises(VenueNotSent):
        await venue.place(placement, lambda: True)
    with pytest.raises(VenueDown):
        await venue.query(placement.client_id, placement.instrument)
    assert nasty.orders == {}


async def test_nothing_runs_between_leave_and_the_transport(
    venue: BinanceVenue, nasty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes are with the transport before any other callback of the loop can run."""
    placement = await order(venue)
    connection = venue._session.connection()
    written: list[str] = []
    write = connection._socket.transport.write

    def spy(data: bytes) -> None:
        written.append("bytes")
        write(data)

    monkeypatch.setattr(connection._socket.transport, "write", spy, raising=False)

    def leave() -> bool:
        written.append("leave")
        asyncio.get_running_loop().call_soon(written.append, "other callback")
        return True

    await venue.place(placement, leave)
    assert written[:3] == ["leave", "bytes", "other callback"]


async def test_a_pause_after_the_clock_was_read_makes_the_request_stale(
    venue: BinanceVenue, nasty: Any
) -> None:
    """As a process stopped between its lease check and its write: the venue must refuse."""
    placement = await order(venue)

    def leave() -> bool:
        time.sleep(3.2)  # the whole process stands still
        return True

    with pytest.raises(VenueRefused) as stale:
        await venue.place(placement, leave)
    assert stale.value.code == "timestamp_outside_window"
    assert nasty.orders == {}


async def test_a_skewed_venue_clock_is_followed(venue: BinanceVenue, nasty: Any) -> None:
    placement = await order(venue)
    nasty.skew_ms = 60_000
    with pytest.raises(VenueRefused):
        await venue.place(placement, lambda: True)
    await until(lambda: abs(venue._clock.now_ms() - nasty.now_ms()) < 500)
    assert await venue.place(await order(venue), lambda: True)


async def test_order_rate_freezes_only_new_orders(venue: BinanceVenue, nasty: Any) -> None:
    nasty.mood = "orders"
    with pytest.raises(VenueRateLimited):
        await venue.place(await order(venue), lambda: True)
    assert venue.estimate_wait_s() > 20
    placement = await order(venue)
    assert await venue.query(placement.client_id, placement.instrument) is None
    with pytest.raises(VenueRefused) as unknown:
        await venue.cancel(placement.client_id, placement.instrument, lambda: True)
    assert unknown.value.code == "unknown_order"


async def test_after_a_ban_nothing_is_sent(venue: BinanceVenue, nasty: Any) -> None:
    nasty.mood = "banned"
    placement = await order(venue)
    with pytest.raises(VenueRateLimited):
        await venue.place(placement, lambda: True)
    before = len(nasty.requests) + len(nasty.paths)
    for costs in ({"weight:1m": 1}, {"orders:10s": 1}, {"connections:5m": 1}):
        assert venue.governor.try_take(costs, Priority.CANCEL) is None
    assert len(nasty.requests) + len(nasty.paths) == before


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, "<html>oops</html>", VenueDown),
        (200, '{"orders": [', VenueDown),
        (200, '[{"symbol":"BTCUSDT"}]', VenueDown),
        (429, '{"code":-1003,"msg":"Too many"}', VenueRateLimited),
        (401, '{"code":-2015,"msg":"Invalid API-key"}', VenueRefused),
    ],
)
async def test_failed_questions_prove_nothing(
    venue: BinanceVenue, nasty: Any, status: int, body: str, error: type[VenueError]
) -> None:
    nasty.rest["/api/v3/openOrders"] = (status, body)
    with pytest.raises(error):
        await venue.open_orders()


async def test_search_looks_everywhere_and_refuses_contradictions(
    venue: BinanceVenue, nasty: Any
) -> None:
    placement = await order(venue)
    since = datetime.now(UTC)
    nasty.rest["/api/v3/openOrders"] = (200, "[]")
    nasty.rest["/api/v3/allOrders"] = (200, "[]")
    nasty.rest["/api/v3/myTrades"] = (200, "[]")
    assert await venue.search(placement.client_id, placement.instrument, since) is None
    nasty.rest["/api/v3/myTrades"] = (200, '[{"id": 1, "orderId": 9}]')
    with pytest.raises(VenueDown):
        await venue.search(placement.client_id, placement.instrument, since)
    nasty.orders[placement.client_id] = 1
    found = nasty.order(placement.client_id) | {
        "status": "CANCELED",
        "clientOrderId": "tc" + placement.client_id[2:],  # our cancel renamed it
    }
    nasty.rest["/api/v3/allOrders"] = (200, json.dumps([found]))
    report = await venue.search(placement.client_id, placement.instrument, since)
    assert report is not None
    assert (report.client_id, report.status) == (placement.client_id, VenueStatus.CANCELED)


def execution(client_id: str) -> dict[str, Any]:
    return {
        "e": "executionReport", "s": "BTCUSDT", "c": client_id, "C": "", "x": "NEW", "X": "NEW",
        "r": "NONE", "i": 1, "z": "0.0", "Z": "0.0", "T": 1499405658657, "t": -1,
    }  # fmt: skip


async def test_every_subscription_opens_with_a_gap(venue: BinanceVenue, nasty: Any) -> None:
    events = venue.user_events()
    assert isinstance(await anext(events), StreamGap)
    await nasty.event(execution("tbOne"))
    first = await anext(events)
    assert isinstance(first, OrderReport)
    assert first.client_id == "tbOne"
    # The venue ends the subscription, not the connection.
    await nasty.event({"e": "eventStreamTerminated"})
    assert isinstance(await anext(events), StreamGap)
    assert nasty.subscriptions == 2
    # The venue announces that it closes: a new connection takes over.
    await nasty.event({"e": "serverShutdown"})
    assert isinstance(await anext(events), StreamGap)
    assert nasty.subscriptions == 3
    # The connection breaks.
    for socket in list(nasty.sockets):
        socket.transport.abort()
    async with asyncio.timeout(10):
        assert isinstance(await anext(events), StreamGap)


async def test_an_announced_shutdown_leaves_requests_in_flight_their_answer(
    venue: BinanceVenue, nasty: Any
) -> None:
    nasty.mood = "silent"
    placement = await order(venue)
    placing = asyncio.create_task(venue.place(placement, lambda: True))
    await until(lambda: placement.client_id in nasty.orders)
    (old,) = nasty.sockets
    request = next(r for r in nasty.requests if r["method"] == "order.place")
    await nasty.event({"e": "serverShutdown"})
    await until(lambda: nasty.subscriptions == 2)
    await nasty.answer(old, request, 200, nasty.order(placement.client_id))
    assert (await placing).status is VenueStatus.NEW


def trade(trade_id: int) -> dict[str, Any]:
    data = {"s": "BTCUSDT", "t": trade_id, "p": "1.0", "q": "2.0", "T": 1, "m": True}
    return {"stream": "btcusdt@trade", "data": data}


async def test_market_streams_reconnect_with_a_gap(venue: BinanceVenue, nasty: Any) -> None:
    instruments: list[Instrument] = await venue.instruments()
    events = venue.market_events(instruments)
    async with asyncio.timeout(20):
        assert isinstance(await anext(events), StreamGap)
        await nasty.frames(trade(1), {"result": None, "id": 1}, trade(2))
        assert [(await anext(events)).trade_id for _ in range(2)] == [1, 2]  # type: ignore[union-attr]
        for broken in ("{", '{"stream":"btcusdt@trade","data":{}}', '{"e":"serverShutdown"}'):
            await nasty.frames(broken)
            assert isinstance(await anext(events), StreamGap)
        await nasty.frames(trade(3))
        last = await anext(events)
        assert isinstance(last, MarketTrade)
    await events.aclose()  # type: ignore[attr-defined]
    await until(lambda: not nasty.market)


async def test_readers_of_private_events_come_and_go(venue: BinanceVenue, nasty: Any) -> None:
    first = venue.user_events()
    assert isinstance(await anext(first), StreamGap)
    second = venue.user_events()
    assert isinstance(await anext(second), StreamGap)
    await first.aclose()  # type: ignore[attr-defined]
    await nasty.event(execution("tbOne"))
    report = await anext(second)
    assert isinstance(report, OrderReport)
    await second.aclose()  # type: ignore[attr-defined]
    await nasty.event(execution("tbLost"))
    third = venue.user_events()
    assert isinstance(await anext(third), StreamGap), "what nobody read is a gap"
    await third.aclose()  # type: ignore[attr-defined]
