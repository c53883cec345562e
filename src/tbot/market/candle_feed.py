"""The candles of one venue's markets, live: from the feed's trades, and from the venue's memory.

Every process that has a feed has this, for the open candles. What is missing between two trades is
fetched by its ids. What was before the first trade, or cannot be fetched, comes from the venue's
own minutes of the day as soon as one whole minute was heard: from then on every open candle is
whole. Candles that were closed before that are completed by `tbot.market.candle_recorder`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from prometheus_client import Counter

from tbot.core.clock import boot_s, to_ms
from tbot.core.errors import VenueError
from tbot.core.settings import CandleSettings
from tbot.core.tasks import Tasks
from tbot.market.candle_builder import GRACE_MS, CandleBuilder, Span
from tbot.market.candles import INTERVALS, Candle, Interval, insert
from tbot.market.feed import BookChanged, FeedEvent, Traded
from tbot.venues.backoff import FullJitter
from tbot.venues.base import Instrument, Kline, MarketTrade

_log = structlog.get_logger(__name__)

_CALLS_AT_ONCE: Final = 2

_fetched_total: Final = Counter("tbot_candles_trades_fetched", "Missing trades that were fetched.")
_lost_total: Final = Counter(
    "tbot_candles_trades_lost", "Missing trades left to the venue's candles."
)


@dataclass(frozen=True, slots=True)
class CandleClosed:
    """A candle ended, or one that had ended was completed."""

    candle: Candle


@dataclass(frozen=True, slots=True)
class CandlesMoved:
    """There was a trade: the open candle of every interval changed."""


@dataclass(frozen=True, slots=True)
class Doubted:
    """Candles around a stretch of time are, or will be closed as, incomplete."""

    span: Span


type CandleEvent = CandleClosed | CandlesMoved | Doubted
type CandleListener = Callable[[str, CandleEvent], None]

_MOVED: Final = CandlesMoved()


class CandleSource(Protocol):
    """What candles need of a venue."""

    name: str

    async def trades_from(self, instrument: Instrument, trade_id: int) -> list[MarketTrade]:
        """See `tbot.venues.base.Venue.trades_from`."""

    async def klines(
        self, instrument: Instrument, interval: str, from_ms: int, to_ms: int
    ) -> list[Kline]:
        """See `tbot.venues.base.Venue.klines`."""


class _Market:
    __slots__ = ("builder", "filling", "instrument", "recent", "turned", "whole")

    def __init__(self, instrument: Instrument, settings: CandleSettings) -> None:
        self.instrument = instrument
        self.builder = CandleBuilder(pending_max=settings.pending_trades_max)
        self.recent: dict[Interval, list[Candle]] = {interval: [] for interval in INTERVALS}
        self.turned = asyncio.Event()
        """A minute was closed."""
        self.filling: asyncio.Task[None] | None = None
        self.whole: asyncio.Task[None] | None = None


class CandleFeed:
    """Live candles of one venue; register `hear` with `MarketFeed.listen`.

    Args:
        source: The venue, for what is missing.
    """

    def __init__(self, source: CandleSource, settings: CandleSettings) -> None:
        self.source = source
        self._settings = settings
        self._markets: dict[str, _Market] = {}
        self._listeners: list[CandleListener] = []
        self._tasks = Tasks(f"candles-{source.name}")
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)

    def start(self, instruments: Sequence[Instrument]) -> None:
        """Build candles of these markets."""
        for instrument in instruments:
            self._markets[instrument.symbol] = _Market(instrument, self._settings)

    async def stop(self) -> None:
        """End what is being fetched; safe to call twice."""
        await self._tasks.stop()

    def listen(self, listener: CandleListener) -> Callable[[], None]:
        """Call `listener(symbol, event)` for every event, in order; it must be quick.

        Returns:
            A function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def instruments(self) -> list[Instrument]:
        """The markets."""
        return [market.instrument for market in self._markets.values()]

    def open(self, symbol: str, interval: Interval) -> Candle | None:
        """The candle that is open; None while nothing was traded in it."""
        market = self._markets.get(symbol)
        return None if market is None else market.builder.view(interval)

    def recent(self, symbol: str, interval: Interval, limit: int) -> list[Candle]:
        """The newest closed candles in memory, oldest first."""
        market = self._markets.get(symbol)
        return [] if market is None else market.recent[interval][-limit:]

    def clock_ms(self, symbol: str) -> int:
        """How far a market has come, by its own times; 0 before its first trade."""
        market = self._markets.get(symbol)
        return 0 if market is None else market.builder.clock_ms

    def hear(self, symbol: str, event: FeedEvent) -> None:
        """Take one event of the feed, in order."""
        if isinstance(event, Traded):
            market = self._markets.get(symbol)
            if market is not None:
                self._traded(market, event.trade)
        elif isinstance(event, BookChanged):
            market = self._markets.get(symbol)
            if market is not None:
                closed = market.builder.advance(to_ms(event.at))
                if closed:
                    self._closed(market, closed)

    def completed(self, symbol: str, candle: Candle) -> None:
        """A closed candle is known better now, from the venue: tell of it if it is recent."""
        market = self._markets.get(symbol)
        if market is None:
            return
        recent = market.recent[candle.interval]
        if recent and candle.start_ms >= recent[0].start_ms:
            kept = insert(recent, candle, self._settings.recent)
            if kept is not None:
                self._tell(symbol, CandleClosed(kept))

    def _traded(self, market: _Market, trade: MarketTrade) -> None:
        builder = market.builder
        last_id = builder.last_id
        if last_id is not None and trade.trade_id <= last_id and to_ms(trade.at) > builder.last_ms:
            # Newer and yet of a lower number: the venue counts anew.
            _log.warning("trade_ids_restarted", symbol=market.instrument.symbol, last_id=last_id)
            closed = builder.restart(trade)
        else:
            closed = builder.add(trade)
        if builder.full:
            closed += self._skip(market)
        if closed or builder.doubted:
            self._closed(market, closed)
        if builder.missing is not None and (market.filling is None or market.filling.done()):
            market.filling = self._tasks.start(self._fill(market), "fill")
        self._tell(market.instrument.symbol, _MOVED)

    def _skip(self, market: _Market) -> list[Candle]:
        missing = market.builder.missing
        if missing is not None:
            _lost_total.inc(missing[1] - missing[0] + 1)
            _log.warning("trades_not_fetched", symbol=market.instrument.symbol, missing=missing)
        return market.builder.skip()

    def _closed(self, market: _Market, closed: Sequence[Candle]) -> None:
        symbol = market.instrument.symbol
        spans, market.builder.doubted = market.builder.doubted, []
        for span in spans:
            self._tell(symbol, Doubted(span))
        for candle in closed:
            kept = insert(market.recent[candle.interval], candle, self._settings.recent)
            if kept is not None:
                self._tell(symbol, CandleClosed(kept))
            if candle.interval is Interval.M1:
                market.turned.set()
        if spans and (market.whole is None or market.whole.done()):
            market.whole = self._tasks.start(self._make_whole(market), "whole")

    def _tell(self, symbol: str, event: CandleEvent) -> None:
        for listener in self._listeners:
            try:
                listener(symbol, event)
            except Exception:  # noqa: BLE001 - one listener must not end the feed
                _log.exception("candle_listener_failed", symbol=symbol)

    async def _fill(self, market: _Market) -> None:
        """Fetch the trades that the newest ones wait for."""
        builder, backoff = market.builder, FullJitter(0.1, 2.0)
        deadline_s = boot_s() + self._settings.backfill_timeout_s
        while (missing := builder.missing) is not None:
            first, last = missing
            found: list[MarketTrade] | None = None
            if last - first < self._settings.backfill_trades_max and boot_s() < deadline_s:
                try:
                    async with self._calls:
                        found = await self.source.trades_from(market.instrument, first)
                except VenueError as error:
                    _log.info("trades_not_read", why=str(error), first=first)
                    await asyncio.sleep(backoff.next_s())
                    continue
            if builder.missing != missing:
                continue  # they came by themselves meanwhile, or were given up
            fetched = [trade for trade in found or () if first <= trade.trade_id <= last]
            _fetched_total.inc(len(fetched))
            closed: list[Candle] = []
            for trade in fetched:
                closed += builder.add(trade)
            if not fetched or fetched[0].trade_id > first:
                closed += self._skip(market)  # the venue has forgotten them
            self._closed(market, closed)
            self._tell(market.instrument.symbol, _MOVED)

    async def _make_whole(self, market: _Market) -> None:
        """Give the open candles the part of the day that was not heard."""
        while not market.builder.whole:
            market.turned.clear()
            try:
                await self._rebase(market)
            except VenueError as error:
                _log.info("minutes_not_read", symbol=market.instrument.symbol, why=str(error))
            if market.builder.whole:
                break
            # The minute that is open lacks something. The next one need not.
            await market.turned.wait()
            await asyncio.sleep(GRACE_MS / 1000)

    async def _rebase(self, market: _Market) -> None:
        symbol = market.instrument.symbol
        until_ms = Interval.M1.floor(market.builder.clock_ms)
        day_ms = Interval.D1.floor(until_ms)
        minutes = {
            one.start_ms: one
            for one in await self.past(market.instrument, Interval.M1, day_ms, until_ms - 1)
        }
        for own in market.recent[Interval.M1]:
            if own.complete and day_ms <= own.start_ms < until_ms:
                minutes[own.start_ms] = own
        ordered = [minutes[start_ms] for start_ms in sorted(minutes)]
        closed = market.builder.rebase(ordered, until_ms)
        for candle in [*ordered, *closed]:
            insert(market.recent[candle.interval], candle, self._settings.recent)
        self._tell(symbol, _MOVED)

    async def past(
        self, instrument: Instrument, interval: Interval, from_ms: int, to_ms: int
    ) -> list[Candle]:
        """The venue's own closed candles that begin within a span, ascending.

        Raises:
            VenueRefused: It has no candles of this interval.
            VenueError: It cannot be asked now.
        """
        found: list[Candle] = []
        while from_ms <= to_ms:
            async with self._calls:
                page = await self.source.klines(instrument, interval, from_ms, to_ms)
            found += [
                candle_of(interval, one) for one in page if one.trades and one.start_ms <= to_ms
            ]
            if not page or page[-1].start_ms < from_ms:
                break
            from_ms = page[-1].start_ms + interval.ms
        return found


def candle_of(interval: Interval, kline: Kline) -> Candle:
    """The venue's candle as ours; that it is closed is the caller's to know."""
    return Candle(
        interval, kline.start_ms, kline.open, kline.high, kline.low, kline.close, kline.volume,
        kline.quote_volume, kline.trades, None, None, True,
    )  # fmt: skip
