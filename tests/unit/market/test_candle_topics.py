"""The channels `candles` and `status`: numbers, conflation, snapshots."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from streamfakes import FakeFeed, FakeOutput
from tbot.core.settings import StreamSettings
from tbot.market.candle_feed import CandleClosed, CandlesMoved
from tbot.market.candles import Candle, Interval
from tbot.market.channels import CHANNELS, Denied, Market, Wanted, wanted
from tbot.market.feed import Missed, StaleChanged
from tbot.market.hub import Hub
from tbot.market.status import Halt, StatusBoard, StatusChanged
from tbot.market.subscribers import Subscriber

SYMBOL = "BTC-USDT"
MINUTE = Candle(Interval.M1, 60_000, *[Decimal(100)] * 6, 3, 1, 3, True)  # type: ignore[call-arg]


class FakeCandles:
    """Candles that a test sets by hand."""

    def __init__(self) -> None:
        self.opened: Candle | None = None
        self.closed: list[Candle] = []

    def open(self, symbol: str, interval: Interval) -> Candle | None:
        return self.opened

    def recent(self, symbol: str, interval: Interval, limit: int) -> list[Candle]:
        return self.closed[-limit:]


class Desk:
    def __init__(self) -> None:
        self.hub = Hub(StreamSettings(flush_interval_ms=0))
        self.feed = FakeFeed(SYMBOL)
        self.candles = FakeCandles()
        self.halts: list[Halt] = []
        self.board = StatusBoard("paper", self.feed, self.read, lambda: True, 60.0)
        self.market = self.feed.market = Market(self.hub, self.feed, self.candles, self.board)
        self.hub.start(self.market.retire)

    async def read(self) -> list[Halt]:
        return self.halts

    def sub(self, channel: str, **parameters: Any) -> FakeOutput:
        output = FakeOutput()
        subscriber = Subscriber(self.hub, output, lambda: None)
        self.hub.add(subscriber)
        wish = wanted(CHANNELS[channel], {"channel": channel, "symbol": SYMBOL, **parameters})
        assert isinstance(wish, Wanted)
        topic = self.market.topic(wish)
        assert not isinstance(topic, Denied)
        self.hub.subscribe(subscriber, [(topic, None)])
        return output


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def test_closed_candles_come_at_once_and_open_ones_conflated(eventually: Any) -> None:
    desk = Desk()
    desk.candles.closed = [MINUTE]
    desk.candles.opened = replace(MINUTE, start_ms=120_000, trades=1, last_id=1)
    output = desk.sub("candles", interval_ms=50)
    other = desk.sub("candles", interval="5m")
    await settle()
    (snapshot,) = output.received
    assert [one["closed"] for one in snapshot["data"]["candles"]] == [True, False]
    for number in range(2, 6):
        desk.candles.opened = replace(desk.candles.opened, trades=number, last_id=number)
        desk.feed.tell(SYMBOL, CandlesMoved())
    await eventually(lambda: len(output.received) == 2)
    moved = output.received[1]
    assert (moved["seq"], moved["prev"]) == (1, 0)
    assert (moved["data"]["trades"], moved["data"]["closed"]) == (5, False)
    # A trade closes a candle and opens the next: the closed one does not wait.
    ended, desk.candles.opened = desk.candles.opened, replace(MINUTE, start_ms=180_000)
    desk.feed.tell(SYMBOL, CandlesMoved())
    desk.feed.tell(SYMBOL, CandleClosed(ended))
    await settle()
    closed, following = output.received[2:]
    assert (closed["data"]["closed"], following["data"]["closed"]) == (True, False)
    assert [one["seq"] for one in output.received] == [0, 1, 2, 3]
    assert not any(one["data"].get("closed") for one in other.received[1:])


async def test_a_server_without_candles_says_so() -> None:
    market = Market(Hub(StreamSettings()), FakeFeed(SYMBOL))
    for name in ("candles", "status"):
        wish = wanted(CHANNELS[name], {"channel": name, "symbol": SYMBOL})
        assert isinstance(wish, Wanted)
        denied = market.topic(wish)
        assert isinstance(denied, Denied) and denied.code == "unavailable"
    bad = wanted(CHANNELS["candles"], {"symbol": SYMBOL, "interval": "2m"})
    assert isinstance(bad, Denied) and "interval" in bad.message


async def test_status_tells_of_staleness_books_and_halts() -> None:
    desk = Desk()
    await desk.board.look()
    output = desk.sub("status")
    await settle()
    assert output.received[-1]["data"] == {
        "venue": "paper", "stale": False, "book": "live", "orders": "sent", "halts": [],
    }  # fmt: skip
    desk.feed.void.add(SYMBOL)
    desk.feed.tell(SYMBOL, Missed("connection lost"))
    desk.feed.tell(SYMBOL, StaleChanged(True))
    await settle()
    assert output.received[-1]["data"]["book"] == "rebuilding"
    since = datetime(2024, 8, 8, tzinfo=UTC)
    desk.halts = [Halt("venue:paper", "maintenance", since), Halt("venue:other", "x", since)]
    assert await desk.board.look()
    desk.feed.tell(SYMBOL, StatusChanged())
    await settle()
    told = output.received[-1]["data"]
    assert told["orders"] == "halted"
    assert [(one["switch"], one["reason"]) for one in told["halts"]] == [
        ("venue:paper", "maintenance")
    ]
    assert not await desk.board.look(), "nothing new"
