"""A recording, played by the exchange as a process, through adapter and feed: nothing is lost.

Every recorded trade arrives once and in order, and after every book change the feed's book equals
a rebuild from the recording's own numbers.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tbot.core.settings import GatewaySettings, MarketSettings
from tbot.market.feed import (
    BestChanged,
    BookChanged,
    BookReset,
    FeedEvent,
    MarketFeed,
    Missed,
    Traded,
)
from tbot.venues.base import DepthSnapshot, Instrument
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import HmacSigner


def recorded(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt") as file:
        return [json.loads(line.partition(" ")[2]) for line in file]


class Noting(BinanceVenue):
    """A venue that notes how deep its last snapshot was."""

    low = high = Decimal(0)

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        found = await super().depth_snapshot(instrument)
        self.low, self.high = found.bids[-1].price, found.asks[-1].price
        return found


def change(side: dict[Decimal, Decimal], pairs: Any) -> None:
    for price, size in pairs:
        if Decimal(size):
            side[Decimal(price)] = Decimal(size)
        else:
            side.pop(Decimal(price), None)


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
async def test_every_trade_and_every_book(
    shared_dir: Path, start_exchange: Any, symbol: str
) -> None:
    path = shared_dir / "market-data" / "l2" / f"binance-spot_{symbol}_20240808.raw.gz"
    frames = recorded(path)
    lower = symbol.lower()
    access = await start_exchange(
        *("--speed", "0", "--replay", str(path)),
        *("--wait-for", f"{lower}@trade", "--wait-for", f"{lower}@depth@100ms"),
        *("--wait-for", f"{lower}@bookTicker"),
    )
    venue = Noting(
        "paper",
        Endpoints.at(access.url),
        HmacSigner(access.api_key, access.api_secret),
        GatewaySettings(),
        paper=True,
    )
    feed = MarketFeed(venue, MarketSettings(trades_kept=10))
    heard: list[FeedEvent] = []
    wrong: list[int] = []
    snapshot = next(f for f in frames if "stream" not in f)
    sides: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
    change(sides[0], snapshot["bids"])
    change(sides[1], snapshot["asks"])
    diffs = iter(
        [
            f["data"]
            for f in frames
            if "stream" in f
            and f["stream"].endswith("depth@100ms")
            and f["data"]["u"] > snapshot["lastUpdateId"]
        ]
    )
    at = snapshot["lastUpdateId"]

    def hear(name: str, event: FeedEvent) -> None:
        nonlocal at
        heard.append(event)
        if not isinstance(event, BookChanged | BookReset):
            return
        while at < event.update_id:
            diff = next(diffs)
            change(sides[0], diff["b"])
            change(sides[1], diff["a"])
            at = diff["u"]
        book = feed.book(name)
        assert book is not None
        # A snapshot is a thousand levels deep; the recording's book reaches further down, and so
        # may the changes that came while the snapshot was fetched.
        low, high = venue.low, venue.high
        if (
            {p: q for p, q in book._bids.items() if p >= low}
            != {p: q for p, q in sides[0].items() if p >= low}
            or {p: q for p, q in book._asks.items() if p <= high}
            != {p: q for p, q in sides[1].items() if p <= high}
            or book.crossed
        ):
            wrong.append(event.update_id)

    feed.listen(hear)
    try:
        async with asyncio.timeout(20):
            await venue.start()
        feed.start(await venue.instruments())
        trades = [f["data"] for f in frames if f.get("stream") == f"{lower}@trade"]
        async with asyncio.timeout(120):
            while not any(
                isinstance(e, Traded) and e.trade.trade_id == trades[-1]["t"] for e in heard[-2000:]
            ):
                await asyncio.sleep(0.02)
        got = [event.trade for event in heard if isinstance(event, Traded)]
        assert [(t.trade_id, t.price, t.quantity) for t in got] == [
            (t["t"], Decimal(t["p"]), Decimal(t["q"])) for t in trades
        ]
        assert not any(isinstance(event, Missed) for event in heard)
        assert sum(isinstance(event, BookReset) for event in heard) == 1
        assert sum(isinstance(event, BookChanged) for event in heard) > 2000
        assert wrong == []
        bests = [
            (f["data"]["u"], Decimal(f["data"]["b"]), Decimal(f["data"]["a"]))
            for f in frames
            if f.get("stream") == f"{lower}@bookTicker"
        ]
        seen = [
            (e.best.update_id, e.best.bid, e.best.ask) for e in heard if isinstance(e, BestChanged)
        ]
        assert seen == bests[: len(seen)]
        assert len(seen) >= len(bests) - 50  # what follows the last trade may still be under way
    finally:
        await feed.stop()
        await venue.stop()
