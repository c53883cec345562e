"""Candles from a recording, through the exchange, the feed and the store; and what gaps leave."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from tbot.core.clock import from_ms
from tbot.core.errors import VenueDown, VenueError, VenueRefused
from tbot.core.settings import CandleSettings, GatewaySettings, MarketSettings
from tbot.market import candle_recorder
from tbot.market import candle_store as store
from tbot.market.candle_builder import CandleBuilder, Span
from tbot.market.candle_feed import CandleClosed, CandleEvent, CandleFeed, Doubted
from tbot.market.candle_recorder import CandleRecorder
from tbot.market.candles import INTERVALS, Candle, Interval, aggregate
from tbot.market.feed import MarketFeed, Traded
from tbot.venues.base import Instrument, Kline, MarketTrade
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import HmacSigner

HOUR = datetime(2024, 8, 8, 23, tzinfo=UTC)
CLOSES = {"BTCUSDT": Decimal("61685.99"), "ETHUSDT": Decimal("2682.50")}
BASE_MS = 1_723_075_200_000


def recorded(shared_dir: Path, symbol: str, *days: str) -> Iterator[MarketTrade]:
    """Every recorded trade, in the order of arrival."""
    for day in days:
        path = shared_dir / "market-data" / "l2" / f"binance-spot_{symbol}_{day}.raw.gz"
        with gzip.open(path, "rt") as lines:
            for line in lines:
                if '@trade"' in line:
                    data = json.loads(line.partition(" ")[2])["data"]
                    price, quantity = Decimal(data["p"]), Decimal(data["q"])
                    at = from_ms(data["T"])
                    yield MarketTrade(symbol, data["t"], price, quantity, data["m"], at)


async def stored(pool: Any, symbol: str, interval: Interval) -> list[Candle]:
    async with pool.acquire() as connection:
        found = await store.page(
            connection, "paper", symbol, interval, None, None, 100_000, newest_first=False
        )
    return [one.candle for one in found]


@pytest.mark.parametrize("symbol", CLOSES)
async def test_the_recorded_hour_closes_as_at_the_venue(
    shared_dir: Path, pool: Any, symbol: str
) -> None:
    builder = CandleBuilder()
    closed: list[Candle] = []
    count = 0
    for trade in recorded(shared_dir, symbol, "20240808", "20240809"):
        closed += builder.add(trade)
        count += 1
    async with pool.acquire() as connection:
        await store.save(connection, "paper", [(symbol, one) for one in closed])
        (hour,) = await store.page(
            connection, "paper", symbol, Interval.H1, HOUR, None, 10, newest_first=False
        )
    assert hour.candle.start == HOUR
    assert hour.candle.close == CLOSES[symbol]
    path = shared_dir / "market-data" / "candles" / f"binance-spot_{symbol}_1h.csv.gz"
    with gzip.open(path, "rt") as lines:
        theirs = {row["open_time_ms"]: row for row in csv.DictReader(lines)}
    if (theirs_now := theirs.get(str(int(HOUR.timestamp() * 1000)))) is not None:
        assert hour.candle.close == Decimal(theirs_now["close"])
    assert not hour.candle.complete, "it began before the recording"
    seconds = await stored(pool, symbol, Interval.S1)
    assert [one for one in closed if one.interval is Interval.S1] == seconds
    assert all(one.complete for one in seconds[1:])
    assert sum(one.trades for one in seconds) + builder.view(Interval.S1).trades == count
    for larger in (Interval.M1, Interval.M5):
        made = await stored(pool, symbol, larger)
        assert aggregate(seconds, larger)[: len(made)] == made


@pytest.mark.parametrize("symbol", CLOSES)
async def test_a_played_recording_ends_in_the_table_complete(
    shared_dir: Path, start_exchange: Any, pool: Any, eventually: Any, symbol: str
) -> None:
    """The exchange plays, the adapter and the feed read, the recorder stores and repairs."""
    days = ("20240808", "20240809")
    trades = list(recorded(shared_dir, symbol, *days))
    folder = shared_dir / "market-data" / "l2"
    paths = [folder / f"binance-spot_{symbol}_{day}.raw.gz" for day in days]
    streams = [f"{symbol.lower()}@{kind}" for kind in ("trade", "depth@100ms", "bookTicker")]
    access = await start_exchange(
        *("--speed", "0"),
        *(word for path in paths for word in ("--replay", str(path))),
        *(word for stream in streams for word in ("--wait-for", stream)),
    )
    signer = HmacSigner(access.api_key, access.api_secret)
    venue = BinanceVenue("paper", Endpoints.at(access.url), signer, GatewaySettings(), paper=True)
    settings = CandleSettings(store_interval_s=0.05, repair_interval_s=0.05)
    feed = MarketFeed(venue, MarketSettings())
    candles = CandleFeed(venue, settings)
    feed.listen(candles.hear)
    heard: list[MarketTrade] = []
    feed.listen(lambda _, event: heard.append(event.trade) if isinstance(event, Traded) else None)
    recorder = CandleRecorder(pool, candles, settings)
    try:
        (market,) = await venue.instruments()
        candles.start([market])
        recording = asyncio.create_task(recorder.run())
        feed.start([market])
        await eventually(lambda: heard and heard[-1].trade_id == trades[-1].trade_id, 120)

        async def whole() -> bool:
            found = [
                one
                for interval in (Interval.H1, Interval.M1)
                for one in await stored(pool, market.symbol, interval)
            ]
            return len(found) > 10 and all(one.complete for one in found)

        await eventually(whole, 60)
        recording.cancel()
        await asyncio.wait({recording})
        (found,) = await stored(pool, market.symbol, Interval.H1)
        # The adapter's own words: what the venue remembers is what was recorded.
        newest = [one for one in trades if one.trade_id > trades[-1].trade_id - 11]
        assert await venue.trades_from(market, newest[0].trade_id) == newest
        before_ms = int(HOUR.timestamp() * 1000) + 3_600_000
        hours = await venue.klines(market, "1h", before_ms - 3_600_000, before_ms - 1)
        assert [one.close for one in hours] == [CLOSES[symbol]]
        with pytest.raises(VenueRefused):
            await venue.klines(market, "1s", 0, before_ms)
    finally:
        await feed.stop()
        await candles.stop()
        await venue.stop()
    last_hour = [one for one in trades if one.at < datetime(2024, 8, 9, tzinfo=UTC)]
    assert (found.start, found.close) == (HOUR, CLOSES[symbol])
    assert (found.open, found.trades) == (trades[0].price, len(last_hour))
    assert found.volume == sum((one.quantity for one in last_hour), Decimal(0))
    # The trades' own quote volume has ten decimals, the venue's candle eight.
    minutes = await stored(pool, market.symbol, Interval.M1)
    ended = [one for one in trades if one.at < from_ms(minutes[-1].end_ms)]
    assert sum(one.trades for one in minutes) == len(ended)
    assert [trade.trade_id for trade in heard] == [trade.trade_id for trade in trades]


# What gaps leave, with a venue that a test plays


def instrument(symbol: str = "BTC-USDT") -> Instrument:
    base, quote = symbol.split("-")
    one = Decimal(1)
    return Instrument("paper", symbol, base + quote, base, quote, 8, 8, *[one] * 8, one, None, True)  # type: ignore[call-arg]


class Memory:
    """A venue that remembers trades, and makes its candles of them."""

    name = "paper"

    def __init__(self, trades: Sequence[MarketTrade]) -> None:
        self.trades = {trade.trade_id: trade for trade in trades}
        self.broken = 0
        self.asked: list[tuple[Any, ...]] = []
        self.forgets_before = 0

    async def trades_from(self, market: Instrument, trade_id: int) -> list[MarketTrade]:
        self.asked.append(("trades", trade_id))
        self._fail()
        first = max(trade_id, self.forgets_before)
        return [self.trades[n] for n in sorted(self.trades) if n >= first][:1000]

    async def klines(
        self, market: Instrument, interval: str, from_ms: int, to_ms: int
    ) -> list[Kline]:
        self.asked.append((interval, from_ms, to_ms))
        self._fail()
        if interval == "1s":
            raise VenueRefused("Invalid interval.")
        builder = CandleBuilder(min(self.trades) - 1)
        made = [c for n in sorted(self.trades) for c in builder.add(self.trades[n])]
        wanted = Interval(interval)
        if (candle := builder.view(wanted)) is not None:
            made.append(candle)
        return [
            Kline(
                c.start_ms, c.end_ms - 1, c.open, c.high, c.low, c.close, c.volume,
                c.quote_volume, c.trades,
            )
            for c in made
            if c.interval is wanted and from_ms <= c.start_ms <= to_ms
        ][:3]  # fmt: skip

    def _fail(self) -> None:
        if self.broken:
            self.broken -= 1
            raise VenueDown("away")


def history(seconds: int, every_ms: int = 500, first_id: int = 1) -> list[MarketTrade]:
    """Trades at a steady pace from the beginning of a day."""
    return [
        MarketTrade(
            "BTCUSDT", first_id + n, Decimal(100 + n % 7), Decimal(1 + n % 3), False,
            from_ms(BASE_MS + n * every_ms),
        )
        for n in range(seconds * 1000 // every_ms)
    ]  # fmt: skip


@pytest.fixture
async def candle_feeds() -> AsyncIterator[Callable[..., CandleFeed]]:
    """Makes candle feeds of BTC-USDT."""
    made: list[CandleFeed] = []

    def make(source: Memory, **settings: Any) -> CandleFeed:
        feed = CandleFeed(source, CandleSettings(**settings))
        feed.start([instrument()])
        made.append(feed)
        return feed

    yield make
    for feed in made:
        await feed.stop()


def hear(feed: CandleFeed, trades: Sequence[MarketTrade]) -> None:
    for trade in trades:
        feed.hear("BTC-USDT", Traded(trade))


def missing(feed: CandleFeed) -> tuple[int, int] | None:
    return feed._markets["BTC-USDT"].builder.missing


async def test_missing_trades_are_fetched_and_every_candle_is_exact(
    candle_feeds: Any, eventually: Any
) -> None:
    trades = history(180)
    source = Memory(trades)
    feed = candle_feeds(source)
    source.broken = 1
    hear(feed, trades[:100])
    heard: list[CandleEvent] = []
    feed.listen(lambda _, event: heard.append(event))
    hear(feed, trades[110:250])
    hear(feed, trades[260:])
    await eventually(lambda: missing(feed) is None)
    expected = CandleBuilder(0)
    closed = [candle for trade in trades for candle in expected.add(trade)]
    told = [event.candle for event in heard if isinstance(event, CandleClosed)]
    for interval in (Interval.S1, Interval.M1):
        ours = [one for one in told if one.interval is interval and one.complete]
        theirs = [one for one in closed if one.interval is interval]
        assert ours == theirs[-len(ours) :]
        assert len(ours) >= len(theirs) - 51
    await eventually(lambda: feed.open("BTC-USDT", Interval.D1).complete)
    day = expected.view(Interval.D1)
    assert feed.open("BTC-USDT", Interval.D1) == replace(day, first_id=None)  # type: ignore[type-var]


async def test_what_cannot_be_repaired_yet_does_not_stand_before_what_can(
    candle_feeds: Any, pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hundreds of markets, their open days alone are more than one round asks for."""
    monkeypatch.setattr(candle_recorder, "_GAPS_AT_ONCE", 1)
    feed = candle_feeds(Memory(history(200)), history=0)
    recorder = CandleRecorder(pool, feed, CandleSettings(history=0))
    hear(feed, history(200))
    gaps = [("GONE-USDT", Interval.M1), ("BTC-USDT", Interval.D1), ("BTC-USDT", Interval.M1)]
    async with pool.acquire() as connection:
        wanted = [store.Gap(*gap, BASE_MS, BASE_MS) for gap in gaps]
        await store.save_gaps(connection, "paper", wanted)
        await recorder.repair()
        left = await store.gaps(connection, "paper")
    assert [(gap.symbol, gap.interval) for gap in left] == gaps[:2]
    assert len(await stored(pool, "BTC-USDT", Interval.M1)) == 1


class NotOfEth(Memory):
    """A venue that has no candles of one of its markets."""

    def __init__(self, trades: Sequence[MarketTrade], says: VenueError) -> None:
        super().__init__(trades)
        self.says = says

    async def klines(
        self, market: Instrument, interval: str, from_ms: int, to_ms: int
    ) -> list[Kline]:
        if market.symbol == "ETH-USDT":
            raise self.says
        return await super().klines(market, interval, from_ms, to_ms)


@pytest.mark.parametrize("says", [VenueRefused("Invalid symbol."), VenueDown("never")])
async def test_a_market_without_candles_takes_nothing_from_the_others(
    candle_feeds: Any, pool: Any, says: VenueError
) -> None:
    feed = candle_feeds(NotOfEth(history(200), says), history=0)
    symbols = ["ETH-USDT", "BTC-USDT"]
    feed.start([instrument(symbol) for symbol in symbols])
    recorder = CandleRecorder(pool, feed, CandleSettings(history=0))
    for trade in history(200):
        for symbol in symbols:
            feed.hear(symbol, Traded(trade))
    for symbol in symbols:
        recorder._hear(symbol, Doubted(Span(BASE_MS, BASE_MS)))
        await recorder.store()
        await recorder.repair()
    for _ in INTERVALS:
        await recorder.repair()
    assert len(await stored(pool, "BTC-USDT", Interval.M1)) == 1


async def test_what_the_venue_has_forgotten_is_repaired_from_its_candles(
    candle_feeds: Any, pool: Any, eventually: Any
) -> None:
    trades = history(200)
    source = Memory(trades)
    source.forgets_before = 200
    feed = candle_feeds(source, history=0)
    recorder = CandleRecorder(pool, feed, CandleSettings(history=0))
    feed.listen(recorder._hear)
    hear(feed, trades[:100])
    hear(feed, trades[300:])
    await eventually(lambda: missing(feed) is None)
    await recorder.store()
    found = await stored(pool, "BTC-USDT", Interval.M1)
    assert [one.complete for one in found] == [False, False, True]
    told: list[CandleEvent] = []
    feed.listen(lambda _, event: told.append(event))
    source.broken = 1
    await recorder.repair()
    await recorder.repair()
    expected = CandleBuilder(0)
    closed = [candle for trade in trades for candle in expected.add(trade)]
    theirs = [one for one in closed if one.interval is Interval.M1]
    repaired = await stored(pool, "BTC-USDT", Interval.M1)
    assert repaired == [
        one if known.complete else replace(one, first_id=None, last_id=None)
        for one, known in zip(theirs, found, strict=True)
    ]
    completed = [event.candle for event in told if isinstance(event, CandleClosed)]
    assert [one.start_ms for one in completed if one.interval is Interval.M1] == [
        BASE_MS,
        BASE_MS + 60_000,
    ]
    # Candles of a second are not to be had: they stay, say that they are not whole, and are not
    # asked for again. What is still open is asked for when it has ended.
    seconds = await stored(pool, "BTC-USDT", Interval.S1)
    assert [one.complete for one in seconds].count(False) == 3
    async with pool.acquire() as connection:
        left = {gap.interval for gap in await store.gaps(connection, "paper")}
    assert left == set(INTERVALS) - {Interval.S1, Interval.M1}


async def test_a_successor_asks_for_what_its_predecessor_had_in_memory(
    candle_feeds: Any, pool: Any
) -> None:
    trades = history(300)
    source = Memory(trades)
    first = candle_feeds(source)
    recorder = CandleRecorder(pool, first, CandleSettings(history=0))
    first.listen(recorder._hear)
    hear(first, trades[:150])
    await recorder.store()
    hear(first, trades[150:400])  # and it dies
    second = candle_feeds(source)
    hear(second, trades[450:])
    successor = CandleRecorder(pool, second, CandleSettings(history=0))
    await successor.store()
    await successor.repair()
    minutes = await stored(pool, "BTC-USDT", Interval.M1)
    assert [one.start_ms for one in minutes] == [BASE_MS + n * 60_000 for n in range(4)]
    assert all(one.complete for one in minutes)


async def test_a_first_start_fetches_history(candle_feeds: Any, pool: Any) -> None:
    trades = history(3600, every_ms=1000)
    feed = candle_feeds(Memory(trades))
    recorder = CandleRecorder(pool, feed, CandleSettings(history=40))
    feed.listen(recorder._hear)
    hear(feed, trades[3590:])
    await recorder.store()
    await recorder.repair()
    minutes = await stored(pool, "BTC-USDT", Interval.M1)
    assert len(minutes) == 40 and all(one.trades == 60 for one in minutes)


async def test_what_finds_no_place_in_the_queue_is_asked_for_later(
    candle_feeds: Any, pool: Any
) -> None:
    trades = history(600)
    feed = candle_feeds(Memory(trades))
    recorder = CandleRecorder(pool, feed, CandleSettings(queue_max=5, history=0))
    feed.listen(recorder._hear)
    hear(feed, trades)
    await recorder.store()
    assert len(await stored(pool, "BTC-USDT", Interval.M1)) < 5
    await recorder.repair()
    minutes = await stored(pool, "BTC-USDT", Interval.M1)
    assert [one.start_ms for one in minutes] == [BASE_MS + n * 60_000 for n in range(9)]
    assert all(one.complete for one in minutes)


async def test_writers_agree_whoever_is_first(pool: Any) -> None:
    full = Candle(Interval.M1, BASE_MS, *[Decimal(2)] * 6, 5, 1, 5, True)  # type: ignore[call-arg]
    part = replace(full, trades=3, first_id=3, complete=False)
    venue = replace(full, first_id=None, last_id=None)
    for number, order in enumerate(([full, part, venue], [venue, part, full], [part, venue])):
        symbol = f"C{number}-USDT"
        async with pool.acquire() as connection:
            for one in order:
                await store.save(connection, "paper", [(symbol, one)])
        (found,) = await stored(pool, symbol, Interval.M1)
        assert (found.complete, found.trades) == (True, 5)
    async with pool.acquire() as connection:
        assert await store.save(connection, "paper", [("C0-USDT", part), ("C0-USDT", full)]) == 0

    async def write(candles: list[Candle]) -> None:
        async with pool.acquire() as connection:
            for start in range(0, len(candles), 7):
                some = [("D-USDT", one) for one in candles[start : start + 7]]
                await store.save(connection, "paper", some)

    closed = [c for trade in history(60) for c in CandleBuilder(0).add(trade)]
    builder = CandleBuilder(0)
    closed = [c for trade in history(120) for c in builder.add(trade)]
    doubtful = [replace(one, trades=1, complete=False) for one in reversed(closed)]
    await asyncio.gather(write(closed), write(doubtful), write(list(reversed(closed))))
    seconds = await stored(pool, "D-USDT", Interval.S1)
    assert seconds == [one for one in closed if one.interval is Interval.S1]


async def test_a_row_that_the_table_refuses_does_not_hold_up_the_others(
    candle_feeds: Any, pool: Any
) -> None:
    feed = candle_feeds(Memory(history(1)))
    recorder = CandleRecorder(pool, feed, CandleSettings(history=0))
    good = Candle(Interval.M1, BASE_MS, *[Decimal(2)] * 6, 5, 1, 5, True)  # type: ignore[call-arg]
    bad = replace(good, start_ms=BASE_MS + 60_000, low=Decimal(3))
    later = replace(good, start_ms=BASE_MS + 120_000)
    for one in (good, bad, later):
        recorder._hear("BTC-USDT", CandleClosed(one))
    await recorder.store()
    assert await stored(pool, "BTC-USDT", Interval.M1) == [good, later]


async def test_old_candles_go_by_the_markets_own_clock(candle_feeds: Any, pool: Any) -> None:
    trades = history(7200, every_ms=10_000)
    feed = candle_feeds(Memory(trades))
    settings = CandleSettings(history=0, keep_1s_days=1 / 24, keep_1m_days=0)
    recorder = CandleRecorder(pool, feed, settings)
    feed.listen(recorder._hear)
    hear(feed, trades)
    await recorder.store()
    await recorder.prune()
    seconds = await stored(pool, "BTC-USDT", Interval.S1)
    assert seconds[0].start_ms == BASE_MS + 7_190_000 - 3_600_000
    assert len(await stored(pool, "BTC-USDT", Interval.M1)) == 119
