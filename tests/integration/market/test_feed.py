"""The feed over a scripted venue: nothing dropped, gaps told, books never read across one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from tbot.core.errors import VenueDown
from tbot.core.settings import MarketSettings
from tbot.market.feed import (
    BestChanged,
    BookChanged,
    BookReset,
    FeedEvent,
    MarketFeed,
    Missed,
    StaleChanged,
    TickerChanged,
    Traded,
)
from tbot.venues.base import (
    BestPrices,
    DepthDiff,
    DepthSnapshot,
    Instrument,
    Level,
    MarketEvent,
    MarketTrade,
    StreamGap,
)

AT = datetime(2024, 8, 9, tzinfo=UTC)
ONE = Decimal(1)


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def instrument() -> Instrument:
    zero = Decimal(0)
    return Instrument(
        venue="paper",
        symbol="BTC-USDT",
        venue_symbol="BTCUSDT",
        base="BTC",
        quote="USDT",
        base_scale=8,
        quote_scale=8,
        tick=Decimal("0.01"),
        price_min=zero,
        price_max=zero,
        step=Decimal("0.00001"),
        quantity_min=zero,
        quantity_max=zero,
        market_step=zero,
        market_quantity_max=zero,
        notional_min=zero,
        notional_max=None,
        trading=True,
    )


class ScriptedVenue:
    """Yields what the test puts in; answers snapshots from a list, the last one for ever."""

    name = "paper"

    def __init__(self) -> None:
        self.events: asyncio.Queue[MarketEvent] = asyncio.Queue()
        self.snapshots: list[DepthSnapshot | Exception] = []
        self.asked = 0

    async def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        while True:
            yield await self.events.get()

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        self.asked += 1
        answer = self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def snapshot(update_id: int) -> DepthSnapshot:
    return DepthSnapshot("BTCUSDT", update_id, [Level(ONE, ONE)], [Level(Decimal(9), ONE)])


def change(first: int, last: int) -> DepthDiff:
    return DepthDiff("BTCUSDT", first, last, [Level(Decimal(2), Decimal(last))], [], AT)


def trade(trade_id: int) -> MarketTrade:
    return MarketTrade("BTCUSDT", trade_id, Decimal(5), ONE, False, AT)


@pytest.fixture
async def scripted() -> ScriptedVenue:
    return ScriptedVenue()


async def test_the_feed(scripted: ScriptedVenue) -> None:
    feed = MarketFeed(scripted, MarketSettings(trades_kept=3))
    heard: list[FeedEvent] = []
    stop_listening = feed.listen(lambda _symbol, event: heard.append(event))

    def broken(_symbol: str, _event: FeedEvent) -> None:
        raise RuntimeError("a listener's own fault")

    feed.listen(broken)
    feed.start([instrument()])
    assert feed.reference("BTC-USDT") is None
    assert feed.knows("BTC-USDT")
    assert not feed.knows("ETH-USDT")
    # First connection: the snapshot cannot be had, is too old, then joins.
    scripted.snapshots = [VenueDown("no"), snapshot(3), snapshot(6)]
    for event in (StreamGap("connected"), change(5, 6), change(7, 7)):
        scripted.events.put_nowait(event)
    await until(lambda: feed.synced)
    assert scripted.asked == 3
    scripted.events.put_nowait(change(8, 9))
    for number in range(1, 6):
        scripted.events.put_nowait(trade(number))
    scripted.events.put_nowait(trade(5))  # repeated
    scripted.events.put_nowait(BestPrices("BTCUSDT", 9, Decimal(2), ONE, Decimal(9), ONE))
    await until(lambda: any(isinstance(event, BestChanged) for event in heard))
    book = feed.book("BTC-USDT")
    assert book is not None
    assert (book.update_id, book.bid, book.ask) == (9, 2, 9)
    assert [event.trade.trade_id for event in heard if isinstance(event, Traded)] == [1, 2, 3, 4, 5]
    assert sum(isinstance(event, TickerChanged) for event in heard) == 5
    assert [each.trade_id for each in feed.trades("BTC-USDT", 10)] == [5, 4, 3]
    changes = [event for event in heard if isinstance(event, BookReset | BookChanged)]
    assert [event.seq for event in changes] == [1, 2]
    reference = feed.reference("BTC-USDT")
    assert reference is not None
    assert (reference.bid, reference.ask, reference.last) == (2, 9, 5)
    ticker = feed.ticker("BTC-USDT")
    assert ticker is not None
    assert ticker.volume == 5

    # Updates are missed: void until a snapshot joins.
    heard.clear()
    scripted.snapshots = [snapshot(20)]
    scripted.events.put_nowait(change(19, 19))
    await until(lambda: any(isinstance(event, BookReset) for event in heard))
    assert isinstance(heard[0], Missed)
    # Trades jump: told, and the book stays.
    heard.clear()
    scripted.events.put_nowait(trade(9))
    await until(lambda: any(isinstance(event, Traded) for event in heard))
    assert heard[0] == Missed("trades were missed", trades_only=True)
    assert feed.book("BTC-USDT") is not None
    # A new connection: everything before it is in doubt.
    heard.clear()
    scripted.snapshots = [VenueDown("no")]
    scripted.events.put_nowait(StreamGap("connected"))
    await until(lambda: any(isinstance(event, Missed) for event in heard))
    assert feed.book("BTC-USDT") is None
    stop_listening()
    await feed.stop()


async def test_silence_is_told(scripted: ScriptedVenue) -> None:
    feed = MarketFeed(scripted, MarketSettings(stale_after_s=0.2))
    heard: list[FeedEvent] = []
    feed.listen(lambda _symbol, event: heard.append(event))
    feed.start([instrument()])
    assert feed.stale("BTC-USDT")
    scripted.events.put_nowait(trade(1))
    await until(lambda: StaleChanged(False) in heard)
    assert not feed.stale("BTC-USDT")
    await until(lambda: StaleChanged(True) in heard)
    assert feed.stale("BTC-USDT")
    assert feed.reference("BTC-USDT") is not None, "old prices are told with their age"
    await feed.stop()
