"""The markets of one venue, live: books, trades, best prices, tickers, and who is told of them.

The feed owns the market connections. Every event of the venue updates the feed's own view first and
then goes to the listeners, in order and without a queue: a listener that is slow slows the reading
of the socket down, and nothing is ever dropped here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from itertools import batched, islice
from typing import Final, Protocol, cast

import structlog

from tbot.core.clock import boot_s
from tbot.core.errors import VenueError
from tbot.core.settings import MarketSettings
from tbot.core.tasks import Tasks
from tbot.market.book import Book, BookSync, Reference, Step
from tbot.market.ticker import DayWindow, Ticker
from tbot.venues.backoff import FullJitter
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

_log = structlog.get_logger(__name__)
_INSTRUMENTS_PER_CONNECTION: Final = 200
_EVENTS_PER_TURN: Final = 64


@dataclass(frozen=True, slots=True)
class Traded:
    """One public trade."""

    trade: MarketTrade


@dataclass(frozen=True, slots=True)
class BookChanged:
    """Levels of a live book changed (absolute sizes); the feed's book includes them already.

    Attributes:
        prev: Number of the change before, in this feed; every book counts from 1 without gaps.
        update_id: The venue's number.
    """

    prev: int
    seq: int
    update_id: int
    bids: Sequence[Level]
    asks: Sequence[Level]
    at: datetime


@dataclass(frozen=True, slots=True)
class BookReset:
    """The book was built anew: whoever follows it takes the whole of `MarketFeed.book`."""

    seq: int
    update_id: int


@dataclass(frozen=True, slots=True)
class BestChanged:
    """The best bid or offer changed, in price or size."""

    best: BestPrices


@dataclass(frozen=True, slots=True)
class TickerChanged:
    """The statistics changed: there was a trade."""

    ticker: Ticker


@dataclass(frozen=True, slots=True)
class Missed:
    """Something was missed: trades may lack, and the book is void until its `BookReset`.

    Attributes:
        trades_only: The book is whole; only trade numbers jumped.
    """

    why: str
    trades_only: bool = False


@dataclass(frozen=True, slots=True)
class StaleChanged:
    """The market fell silent, or is heard again."""

    stale: bool


type FeedEvent = (
    Traded | BookChanged | BookReset | BestChanged | TickerChanged | Missed | StaleChanged
)
type FeedListener = Callable[[str, FeedEvent], None]


class MarketSource(Protocol):
    """What the feed needs of a venue."""

    name: str

    def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        """See `tbot.venues.base.Venue.market_events`."""

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        """See `tbot.venues.base.Venue.depth_snapshot`."""


class _Market:
    """What the feed keeps of one market."""

    __slots__ = (
        "best", "heard_s", "instrument", "resync", "seq", "stale", "sync", "ticker", "trade_id",
        "trades", "window",
    )  # fmt: skip

    def __init__(self, instrument: Instrument, settings: MarketSettings) -> None:
        self.instrument = instrument
        self.sync = BookSync(settings.changes_buffered_max)
        self.seq = 0
        self.resync: asyncio.Task[None] | None = None
        self.trades: deque[MarketTrade] = deque(maxlen=settings.trades_kept)
        self.trade_id: int | None = None
        self.best: BestPrices | None = None
        self.window = DayWindow(instrument.symbol)
        self.ticker: Ticker | None = None
        self.heard_s: float | None = None
        self.stale = True


class MarketFeed:
    """Live market data of one venue.

    Args:
        source: The venue.
        settings: Trades kept per market; silence after which one is stale.
    """

    def __init__(self, source: MarketSource, settings: MarketSettings) -> None:
        self._source = source
        self._settings = settings
        self._markets: dict[str, _Market] = {}
        self._by_venue_symbol: dict[str, _Market] = {}
        self._listeners: list[FeedListener] = []
        self._tasks = Tasks(f"feed-{source.name}")
        self._snapshots = asyncio.Semaphore(settings.snapshots_in_flight_max)

    def start(self, instruments: Sequence[Instrument]) -> None:
        """Begin to follow these markets; returns at once, see `synced`."""
        for instrument in instruments:
            market = _Market(instrument, self._settings)
            self._markets[instrument.symbol] = market
            self._by_venue_symbol[instrument.venue_symbol] = market
        for chunk in batched(instruments, _INSTRUMENTS_PER_CONNECTION):
            self._tasks.start(self._follow(chunk), "follow")
        self._tasks.start(self._watch(), "watch")

    async def stop(self) -> None:
        """Close the connections; safe to call twice."""
        await self._tasks.stop()

    def listen(self, listener: FeedListener) -> Callable[[], None]:
        """Call `listener(symbol, event)` for every event, in order.

        It runs on the reading task: it must be quick, and what it raises is logged and dropped.

        Returns:
            A function that ends it.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    @property
    def synced(self) -> bool:
        """Whether every market has a live book."""
        return all(market.sync.live for market in self._markets.values())

    def symbols(self) -> list[str]:
        """The markets, by our names."""
        return list(self._markets)

    def knows(self, symbol: str) -> bool:
        """Whether there is such a market."""
        return symbol in self._markets

    def book(self, symbol: str) -> Book | None:
        """The market's book as it is now; None while it is not in sync. Do not keep it."""
        market = self._markets.get(symbol)
        return market.sync.book if market is not None and market.sync.live else None

    def trades(self, symbol: str, limit: int) -> list[MarketTrade]:
        """The newest trades, newest first."""
        market = self._markets.get(symbol)
        return [] if market is None else list(islice(reversed(market.trades), limit))

    def best(self, symbol: str) -> BestPrices | None:
        """Best bid and offer; None before they were heard."""
        market = self._markets.get(symbol)
        return None if market is None else market.best

    def ticker(self, symbol: str) -> Ticker | None:
        """Statistics of the last 24 hours; None before the first trade."""
        market = self._markets.get(symbol)
        return None if market is None else market.ticker

    def stale(self, symbol: str) -> bool:
        """Whether nothing was heard of the market for too long."""
        market = self._markets.get(symbol)
        return market is None or self._silent(market)

    def reference(self, symbol: str) -> Reference | None:
        """The last prices heard, however old; None before the first."""
        market = self._markets.get(symbol)
        if market is None or market.heard_s is None:
            return None
        book = market.sync.book if market.sync.live else None
        bid = ask = None
        if market.best is not None:
            bid = market.best.bid or None  # the venue writes 0 for an empty side
            ask = market.best.ask or None
        elif book is not None:
            bid, ask = book.bid, book.ask
        last = market.trades[-1].price if market.trades else None
        if bid is None and ask is None and last is None:
            return None
        return Reference(symbol, bid, ask, last, market.heard_s)

    async def _follow(self, instruments: Sequence[Instrument]) -> None:
        markets = [self._markets[instrument.symbol] for instrument in instruments]
        events = cast("AsyncGenerator[MarketEvent]", self._source.market_events(instruments))
        taken = 0
        async with aclosing(events):
            async for event in events:
                if isinstance(event, StreamGap):
                    for market in markets:
                        self._lose(market, event.why)
                else:
                    self._take(event)
                taken += 1
                if taken % _EVENTS_PER_TURN == 0:
                    # Frames that are buffered already are read without suspending.
                    await asyncio.sleep(0)

    def _take(self, event: DepthDiff | MarketTrade | BestPrices) -> None:
        market = self._by_venue_symbol.get(event.venue_symbol)
        if market is None:
            return
        market.heard_s = boot_s()
        if market.stale:
            market.stale = False
            self._tell(market, StaleChanged(False))
        if isinstance(event, DepthDiff):
            self._take_diff(market, event)
        elif isinstance(event, MarketTrade):
            self._take_trade(market, event)
        else:
            market.best = event
            self._tell(market, BestChanged(event))

    def _take_diff(self, market: _Market, diff: DepthDiff) -> None:
        step = market.sync.take(diff)
        if step is Step.APPLIED:
            market.seq += 1
            self._tell(
                market,
                BookChanged(
                    market.seq - 1, market.seq, diff.last_update_id, diff.bids, diff.asks, diff.at
                ),
            )
        elif step is Step.GAP:
            self._tell(market, Missed("book updates were missed"))
            self._start_resync(market)

    def _take_trade(self, market: _Market, trade: MarketTrade) -> None:
        if market.trade_id is not None:
            if trade.trade_id <= market.trade_id:
                return  # told before
            if trade.trade_id > market.trade_id + 1:
                self._tell(market, Missed("trades were missed", trades_only=True))
        market.trade_id = trade.trade_id
        market.trades.append(trade)
        market.ticker = market.window.add(trade)
        self._tell(market, Traded(trade))
        self._tell(market, TickerChanged(market.ticker))

    def _lose(self, market: _Market, why: str) -> None:
        """The connection is new: whatever came before it may lack something."""
        market.sync.lose()
        # Numbers may begin anew too, when a venue lost its memory.
        market.trade_id = None
        if market.heard_s is not None:
            self._tell(market, Missed(why))
        self._start_resync(market)

    def _start_resync(self, market: _Market) -> None:
        if market.resync is None or market.resync.done():
            market.resync = self._tasks.start(self._resync(market), "resync")

    async def _resync(self, market: _Market) -> None:
        """Fetch snapshots until one joins the changes."""
        backoff = FullJitter(base_s=0.1, cap_s=5.0)
        while not market.sync.live:
            try:
                async with self._snapshots:
                    snapshot = await self._source.depth_snapshot(market.instrument)
            except VenueError as error:
                _log.info("snapshot_failed", symbol=market.instrument.symbol, error=str(error))
            else:
                if market.sync.join(snapshot):
                    market.seq += 1
                    update_id = market.sync.book.update_id
                    _log.info("book_synced", symbol=market.instrument.symbol, update_id=update_id)
                    self._tell(market, BookReset(market.seq, update_id))
                    return
            await asyncio.sleep(backoff.next_s())

    def _silent(self, market: _Market) -> bool:
        return market.heard_s is None or boot_s() - market.heard_s > self._settings.stale_after_s

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.stale_after_s / 4))
            for market in self._markets.values():
                if not market.stale and self._silent(market):
                    market.stale = True
                    _log.warning("market_stale", symbol=market.instrument.symbol)
                    self._tell(market, StaleChanged(True))

    def _tell(self, market: _Market, event: FeedEvent) -> None:
        for listener in self._listeners:
            try:
                listener(market.instrument.symbol, event)
            except Exception:  # noqa: BLE001 - one listener must not end the feed
                _log.exception("feed_listener_failed", symbol=market.instrument.symbol)
