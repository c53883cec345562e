"""A recorded market through the real feed and the real stream: every trade, every book, every quote.

The reference is rebuilt here from the recording itself, with nothing but dictionaries.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tbot.client import Book, Gap, TBotClient
from tbot.core.clock import from_ms
from tbot.core.settings import MarketSettings
from tbot.market.feed import MarketFeed
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

SYMBOL = "BTC-USDT"
type Levels = dict[Decimal, Decimal]


def recorded(file: Path, limit: int) -> Iterator[dict[str, Any]]:
    """The recording's messages in the order they were received."""
    with gzip.open(file, "rt") as lines:
        for number, line in enumerate(lines):
            if number >= limit:
                return
            yield json.loads(line.partition(" ")[2])


def levels(pairs: list[list[str]]) -> list[Level]:
    return [Level(Decimal(price), Decimal(quantity)) for price, quantity in pairs]


class Recording:
    """A venue that plays a recording, never further than its reader has come."""

    name = "recorded"

    def __init__(self, messages: list[dict[str, Any]]) -> None:
        self.messages = [message for message in messages if "stream" in message]
        (self.snapshot,) = [message for message in messages if "stream" not in message]
        self.may_play = asyncio.Event()
        self.caught_up: Any = None
        self.played = False

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        bids, asks = levels(self.snapshot["bids"]), levels(self.snapshot["asks"])
        return DepthSnapshot("BTCUSDT", self.snapshot["lastUpdateId"], bids, asks)

    async def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        yield StreamGap("connected")
        await self.may_play.wait()
        for number, message in enumerate(self.messages):
            yield event_of(message)
            if number % 100 == 99:
                await self.caught_up()
        self.played = True
        await asyncio.Event().wait()


def event_of(message: dict[str, Any]) -> MarketEvent:
    kind, data = message["stream"].partition("@")[2], message["data"]
    if kind.startswith("depth"):
        bids, asks = levels(data["b"]), levels(data["a"])
        return DepthDiff("BTCUSDT", data["U"], data["u"], bids, asks, from_ms(data["E"]))
    if kind == "trade":
        price, quantity = Decimal(data["p"]), Decimal(data["q"])
        return MarketTrade("BTCUSDT", data["t"], price, quantity, data["m"], from_ms(data["T"]))
    bid, bid_quantity, ask, ask_quantity = (Decimal(data[name]) for name in "bBaA")
    return BestPrices("BTCUSDT", data["u"], bid, bid_quantity, ask, ask_quantity)


def reference(recording: Recording) -> tuple[dict[int, int], list[tuple[Any, ...]], list[Any]]:
    """Fingerprints of the book after every update, and all trades and quotes, from the raw data."""
    sides: tuple[Levels, Levels] = ({}, {})
    for side, name in zip(sides, ("bids", "asks"), strict=True):
        side.update((Decimal(price), Decimal(q)) for price, q in recording.snapshot[name])
    at = recording.snapshot["lastUpdateId"]
    books = {at: fingerprint(*sides)}
    trades: list[tuple[Any, ...]] = []
    quotes: list[Any] = []
    for message in recording.messages:
        kind, data = message["stream"].partition("@")[2], message["data"]
        if kind == "trade":
            side_text = "sell" if data["m"] else "buy"
            trades.append((data["t"], Decimal(data["p"]), Decimal(data["q"]), side_text))
        elif kind == "bookTicker":
            quotes.append((data["u"], *(Decimal(data[name]) for name in "bBaA")))
        elif data["u"] > at:
            for side, name in zip(sides, "ba", strict=True):
                for price, quantity in data[name]:
                    side.pop(Decimal(price), None)
                    if Decimal(quantity):
                        side[Decimal(price)] = Decimal(quantity)
            at = data["u"]
            books[at] = fingerprint(*sides)
    return books, trades, quotes


def fingerprint(bids: Levels, asks: Levels) -> int:
    return hash((frozenset(bids.items()), frozenset(asks.items())))


class Quotes:
    """A raw client that keeps every trade and quote that it is sent."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.trades: list[tuple[Any, ...]] = []
        self.quotes: list[Any] = []
        self.numbers: dict[int, str] = {}

    async def run(self) -> None:
        last: int | None = None
        while True:
            message = json.loads(await self.client.socket.recv())
            data, channel = message["data"], self.numbers[message["ch"]]
            if channel == "trades" and message["op"] == "snap":
                last = message["seq"]
            elif channel == "trades":
                assert message["op"] == "delta" and message["prev"] == last
                last = message["seq"]
                price, quantity = Decimal(data["price"]), Decimal(data["quantity"])
                self.trades.append((data["trade_id"], price, quantity, data["side"]))
            else:
                names = ("bid", "bid_quantity", "ask", "ask_quantity")
                self.quotes.append((data["update_id"], *(Decimal(data[name]) for name in names)))


@pytest.mark.parametrize(
    "messages", [12_000, pytest.param(10**9, marks=pytest.mark.long)], ids=["sample", "whole"]
)
async def test_every_trade_book_and_quote_of_a_recording_arrives(
    new_stack: Any, shared_dir: Path, eventually: Any, messages: int
) -> None:
    file = shared_dir / "market-data" / "l2" / "binance-spot_BTCUSDT_20240808.raw.gz"
    recording = Recording(list(recorded(file, messages)))
    books, trades, quotes = reference(recording)
    feed = MarketFeed(recording, MarketSettings())
    stack = await new_stack(source=feed)
    await stack.user()
    feed.start([instrument()])
    await eventually(lambda: feed.synced)

    raw = Quotes(await stack.client())
    wishes = [{"channel": name, "symbol": SYMBOL} for name in ("trades", "bbo")]
    subs = await raw.client.sub(*wishes)
    raw.numbers = {sub["ch"]: sub["channel"] for sub in subs}
    reading = asyncio.create_task(raw.run())
    seen: dict[int, int] = {}
    gaps: list[Gap] = []

    def check(book: Book) -> None:
        seen[book.update_id] = fingerprint(dict(book.bids()), dict(book.asks()))

    async with (
        TBotClient(stack.url, token=stack.tokens["alice"]) as client,
        client.stream(gaps.append) as stream,
    ):
        stream.book(SYMBOL, depth=0, on_update=check)
        await eventually(lambda: seen)

        async def caught_up() -> None:
            book = feed.book(SYMBOL)
            assert book is not None, "the book was lost on the way"
            newest = feed.trades(SYMBOL, 1)
            told = feed.best(SYMBOL)
            await eventually(
                lambda: book.update_id in seen
                and (not newest or (raw.trades[-1:] and raw.trades[-1][0] == newest[0].trade_id))
                and (told is None or (raw.quotes[-1:] and raw.quotes[-1][0] == told.update_id))
            )

        recording.caught_up = caught_up
        recording.may_play.set()
        await eventually(lambda: recording.played, timeout_s=600)
        await caught_up()
    reading.cancel()
    assert len(trades) > 500 and len(books) > 200 and len(quotes) > 2000
    assert raw.trades == trades
    assert raw.quotes == quotes
    assert seen == books
    assert not gaps
    await feed.stop()


def instrument() -> Instrument:
    big, unit = Decimal(10**9), Decimal("0.00001")
    return Instrument(
        venue="recorded",
        symbol=SYMBOL,
        venue_symbol="BTCUSDT",
        base="BTC",
        quote="USDT",
        base_scale=8,
        quote_scale=8,
        tick=Decimal("0.01"),
        price_min=Decimal("0.01"),
        price_max=big,
        step=unit,
        quantity_min=unit,
        quantity_max=big,
        market_step=unit,
        market_quantity_max=big,
        notional_min=Decimal(5),
        notional_max=None,
        trading=True,
    )
