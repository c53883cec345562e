"""The channels of the stream: one entry each, and the market topics behind them.

`CHANNELS` is the table: name, access rule, snapshot, slow policy, parameters. A new market channel
is one entry here plus the case in `Market.hear` that feeds it; `docs/streaming.md` describes each
(a test looks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from tbot.core import clock, money
from tbot.market.booktopic import BookTopic, BookView
from tbot.market.candle_feed import CandleClosed, CandleEvent, CandlesMoved
from tbot.market.candles import Candle, Interval
from tbot.market.candletopics import CandlesTopic
from tbot.market.feed import (
    BestChanged,
    BookChanged,
    BookReset,
    FeedEvent,
    Missed,
    StaleChanged,
    TickerChanged,
    Traded,
)
from tbot.market.hub import Hub, gaps_total
from tbot.market.status import StatusChanged
from tbot.market.ticker import Ticker
from tbot.market.topics import JSON, Codec, LatestTopic, Slow, Topic, TradesTopic
from tbot.venues.base import BestPrices, MarketTrade

INTERVALS_MS: Final = (0, 50, 100, 250, 500, 1000, 5000)
"""Conflation intervals that may be asked for: few, so that frames stay shared."""
DEPTHS: Final = (0, 5, 10, 20, 50, 100, 500, 1000)
"""Depths of a book that may be asked for; 0 stands for every level."""
DEPTH_DEFAULT: Final = 50
EVERY: Final = "*"
"""The symbol that stands for every market."""
TRADES_RECENT: Final = 20
"""Trades in a snapshot of the channel `trades`."""
CANDLES_RECENT: Final = 20
"""Closed candles in a snapshot of the channel `candles`."""
CANDLE_DEFAULT: Final = Interval.M1
CANDLE_INTERVAL_MS: Final = 250
"""How often an open candle is told when the subscriber does not say."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What a channel is.

    Attributes:
        scope: The token must cover it.
        private: Whether it is one account's, for its owner only; otherwise it is a symbol's.
        snapshot: What its first message holds.
        slow: What readers get who cannot keep up.
        intervals_ms, depths: Values that the parameters `interval_ms` and `depth` may take; empty
            where the channel has no such parameter; `interval_ms` is what the first one is
            when it is left out.
        candles: Values of the parameter `interval`, likewise.
    """

    name: str
    scope: str
    private: bool
    snapshot: str
    slow: Slow
    intervals_ms: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()
    candles: tuple[str, ...] = ()
    interval_ms: int = 0


CHANNELS: Final = {
    channel.name: channel
    for channel in (
        Channel("ticker", "market:read", False, "latest", Slow.LATEST, INTERVALS_MS),
        Channel("bbo", "market:read", False, "latest", Slow.LATEST, INTERVALS_MS),
        Channel("book", "market:read", False, "levels", Slow.SNAPSHOT, INTERVALS_MS, DEPTHS),
        Channel("trades", "market:read", False, "newest trades", Slow.GAP),
        Channel(
            "candles",
            "market:read",
            False,
            "newest candles",
            Slow.GAP,
            INTERVALS_MS,
            candles=tuple(Interval),
            interval_ms=CANDLE_INTERVAL_MS,
        ),
        Channel("status", "market:read", False, "latest", Slow.LATEST),
        Channel("account", "account:read", True, "balances, positions, open orders", Slow.CLOSE),
    )
}


@dataclass(frozen=True, slots=True)
class Denied:
    """A subscription that was not granted, and why: a value, part of the answer."""

    code: str
    message: str
    temporary: bool = False


UNKNOWN_YET: Final = Denied("unavailable", "the markets are not known yet", temporary=True)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a subscriber asked for, checked."""

    channel: Channel
    symbol: str
    parameters: dict[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for subscriptions that share frames."""
        return (self.channel.name, *self.parameters.values())


def wanted(channel: Channel, request: dict[str, Any]) -> Wanted | Denied:
    """Check the parameters of a market subscription.

    Args:
        request: As the client sent it; unknown members are refused, so that a typing error does
            not silently mean the default.
    """
    known = {"channel", "symbol"}
    symbol = request.get("symbol")
    if not isinstance(symbol, str) or not 0 < len(symbol) <= 32:
        return Denied("bad_parameter", "symbol must be a market's name such as BTC-USDT")
    parameters: dict[str, Any] = {"symbol": symbol}
    for name, allowed, default in (
        ("interval", channel.candles, CANDLE_DEFAULT.value),
        ("depth", channel.depths, DEPTH_DEFAULT),
        ("interval_ms", channel.intervals_ms, channel.interval_ms),
    ):
        if not allowed:
            continue
        known.add(name)
        value = request.get(name, default)
        if isinstance(value, bool) or value not in allowed:
            return Denied("bad_parameter", f"{name} must be one of {list(allowed)}")
        parameters[name] = value
    if channel.slow is Slow.GAP:
        known.add("resume")
    unknown = sorted(set(request) - known)
    if unknown:
        return Denied("bad_parameter", f"{channel.name} has no parameter {unknown[0]!r:.40}")
    return Wanted(channel, symbol, parameters)


class Source(Protocol):
    """What the market's topics read besides events: `tbot.market.feed.MarketFeed`."""

    def knows(self, symbol: str) -> bool:
        """Whether there is such a market."""

    def symbols(self) -> Sequence[str]:
        """All markets."""

    def book(self, symbol: str) -> BookView | None:
        """The market's book, None while it is not in sync."""

    def trades(self, symbol: str, limit: int) -> Sequence[MarketTrade]:
        """The newest trades, newest first."""

    def best(self, symbol: str) -> BestPrices | None:
        """Best bid and offer."""

    def ticker(self, symbol: str) -> Ticker | None:
        """Statistics of the last 24 hours."""

    def stale(self, symbol: str) -> bool:
        """Whether nothing was heard of the market for too long."""


class Candles(Protocol):
    """Where candles are read: `tbot.market.candle_feed.CandleFeed`."""

    def open(self, symbol: str, interval: Interval) -> Candle | None:
        """The open candle."""

    def recent(self, symbol: str, interval: Interval, limit: int) -> Sequence[Candle]:
        """The newest closed candles, oldest first."""


class Statuses(Protocol):
    """Where a market's status is read: `tbot.market.status.StatusBoard`."""

    def status_json(self, symbol: str) -> dict[str, Any]:
        """The status as the stream tells it."""


class Market:
    """The market topics: made when first asked for, fed from the feed's events.

    Register `hear` with `MarketFeed.listen` and `CandleFeed.listen`.

    Args:
        hub: Publishes what changes.
        source: The feed.
        candles, statuses: None leaves those channels out.
    """

    def __init__(
        self,
        hub: Hub,
        source: Source,
        candles: Candles | None = None,
        statuses: Statuses | None = None,
    ) -> None:
        self._hub = hub
        self._source = source
        self._candles = candles
        self._statuses = statuses
        self._topics: dict[tuple[Any, ...], Topic] = {}
        self._of: dict[tuple[str, str], list[Topic]] = {}
        self._heard = False

    def symbols(self) -> Sequence[str] | Denied:
        """The markets that `*` stands for."""
        return self._source.symbols() if self._heard else UNKNOWN_YET

    def topic(self, wish: Wanted, codec: Codec = JSON) -> Topic | Denied:
        """The topic of a checked wish, written in a codec; made when first asked for."""
        key = (codec.protocol, *wish.key)
        found = self._topics.get(key)
        if found is not None:
            return found
        if not self._source.knows(wish.symbol):
            if not self._heard:  # just started: who comes back early need not give up
                return UNKNOWN_YET
            return Denied("unknown_symbol", "there is no such market")
        if (wish.channel.candles and self._candles is None) or (
            wish.channel.name == "status" and self._statuses is None
        ):
            return Denied("unavailable", f"this server has no channel {wish.channel.name}")
        topic = self._make(wish, codec)
        topic.codec = codec
        self._topics[key] = topic
        self._of.setdefault((wish.channel.name, wish.symbol), []).append(topic)
        return topic

    def _make(self, wish: Wanted, codec: Codec) -> Topic:
        name, slow, symbol = wish.channel.name, wish.channel.slow, wish.symbol
        common = (self._hub.next_number(), name, wish.parameters, slow)
        ring_bytes_max = self._hub.settings.queue_bytes_max
        if name == "book":
            book = BookTopic(*common, ring_bytes_max, partial(self._source.book, symbol))
            book.codec = codec  # before the first frame, which is made now
            book.reset()
            return book
        if name == "trades":
            trades = TradesTopic(*common, ring_bytes_max, TRADES_RECENT)
            newest = self._source.trades(symbol, TRADES_RECENT)
            trades.recent.extend(trade_json(trade) for trade in reversed(newest))
            return trades
        if name == "candles":
            assert self._candles is not None
            interval = Interval(wish.parameters["interval"])
            view = partial(self._candles.open, symbol, interval)
            recent = partial(self._candles.recent, symbol, interval, CANDLES_RECENT)
            return CandlesTopic(*common, ring_bytes_max, view, recent)
        latest = LatestTopic(*common, ring_bytes_max)
        read = {"bbo": self._bbo, "ticker": self._ticker, "status": self._status}[name]
        latest.latest = read(symbol)
        return latest

    def retire(self, topic: Topic) -> None:
        """Forget a topic that nobody reads; register it with `Hub.start`."""
        symbol = topic.parameters["symbol"]
        self._topics = {key: kept for key, kept in self._topics.items() if kept is not topic}
        siblings = self._of.get((topic.channel, symbol), [])
        if topic in siblings:
            siblings.remove(topic)

    def hear(self, symbol: str, event: FeedEvent | CandleEvent | StatusChanged) -> None:
        """Take one event of the feed, in order: encode it once and hand it to the hub."""
        self._heard = True
        match event:
            case Traded():
                self._traded(symbol, event.trade)
            case BestChanged():
                self._latest("bbo", symbol, self._bbo)
            case TickerChanged():
                self._latest("ticker", symbol, self._ticker)
            case StaleChanged():
                self._latest("ticker", symbol, self._ticker)
                self._latest("status", symbol, self._status)
            case StatusChanged():
                self._latest("status", symbol, self._status)
            case CandlesMoved() | CandleClosed():
                self._candle(symbol, event)
            case BookChanged():
                for book in self._books(symbol):
                    book.update(event.bids, event.asks, event.at)
                    self._hub.changed(book)
            case BookReset():
                for book in self._books(symbol):
                    book.reset()
                    self._hub.changed(book)
                self._latest("status", symbol, self._status)
            case Missed():
                self._missed(symbol, event)

    def _books(self, symbol: str) -> list[BookTopic]:
        return [
            topic for topic in self._of.get(("book", symbol), ()) if isinstance(topic, BookTopic)
        ]

    def _traded(self, symbol: str, trade: MarketTrade) -> None:
        topics = self._of.get(("trades", symbol))
        if not topics:
            return
        data = trade_json(trade)
        for topic in topics:
            assert isinstance(topic, TradesTopic)
            topic.update(data)
            self._hub.changed(topic)

    def _latest(
        self, channel: str, symbol: str, read: Callable[[str], dict[str, Any] | None]
    ) -> None:
        topics = self._of.get((channel, symbol))
        data = read(symbol) if topics else None
        if data is None:
            return
        for topic in topics or ():
            assert isinstance(topic, LatestTopic)
            topic.update(data)
            self._hub.changed(topic)

    def _candle(self, symbol: str, event: CandlesMoved | CandleClosed) -> None:
        for topic in self._of.get(("candles", symbol), ()):
            assert isinstance(topic, CandlesTopic)
            if isinstance(event, CandlesMoved):
                topic.moved()
            elif topic.interval is event.candle.interval:
                topic.closed(event.candle)
            else:
                continue
            self._hub.changed(topic)

    def _missed(self, symbol: str, missed: Missed) -> None:
        topics: list[Topic] = list(self._of.get(("trades", symbol), ()))
        if not missed.trades_only:
            topics.extend(self._books(symbol))
        for topic in topics:
            gaps_total.labels(topic.channel).inc()
            if isinstance(topic, BookTopic):
                topic.invalidate(missed.why)
            else:
                topic.gap(missed.why)
            self._hub.changed(topic)
        self._latest("status", symbol, self._status)

    def _status(self, symbol: str) -> dict[str, Any] | None:
        return None if self._statuses is None else self._statuses.status_json(symbol)

    def _bbo(self, symbol: str) -> dict[str, Any] | None:
        best = self._source.best(symbol)
        return None if best is None else bbo_json(best)

    def _ticker(self, symbol: str) -> dict[str, Any] | None:
        ticker = self._source.ticker(symbol)
        if ticker is None:
            return None
        best = self._source.best(symbol)
        return {
            "last": money.text(ticker.last),
            **({} if best is None else bbo_json(best)),
            "open": money.text(ticker.open),
            "high": money.text(ticker.high),
            "low": money.text(ticker.low),
            "volume": money.text(ticker.volume),
            "quote_volume": money.text(ticker.quote_volume),
            "trades": ticker.trades,
            "since": clock.stamp(ticker.since),
            "at": clock.stamp(ticker.at),
            "stale": self._source.stale(symbol),
        }


def trade_json(trade: MarketTrade) -> dict[str, Any]:
    """A public trade as the stream tells it; `side` is the aggressor's."""
    return {
        "trade_id": trade.trade_id,
        "price": money.text(trade.price),
        "quantity": money.text(trade.quantity),
        "side": "sell" if trade.buyer_is_maker else "buy",
        "at": clock.stamp(trade.at),
    }


def bbo_json(best: BestPrices) -> dict[str, Any]:
    """Best prices as the stream tells them; an empty side, which venues write as 0, is null."""
    return {
        "bid": money.text(best.bid) if best.bid else None,
        "bid_quantity": money.text(best.bid_quantity) if best.bid else None,
        "ask": money.text(best.ask) if best.ask else None,
        "ask_quantity": money.text(best.ask_quantity) if best.ask else None,
        "update_id": best.update_id,
    }
