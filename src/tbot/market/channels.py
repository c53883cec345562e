"""The channels of the stream: one entry each, and the market topics behind them.

`CHANNELS` is the table: name, access rule, snapshot, slow policy, parameters. A new market channel
is one entry here plus the line in `Market.take` that feeds it; `docs/streaming.md` describes each
(a test looks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol

from tbot.core import clock, money
from tbot.market.hub import Hub, gaps_total
from tbot.market.topics import (
    BookTopic,
    BookView,
    LatestTopic,
    Slow,
    Topic,
    TradesTopic,
)

INTERVALS_MS: Final = (0, 50, 100, 250, 500, 1000, 5000)
"""Conflation intervals that may be asked for: few, so that frames stay shared."""
DEPTHS: Final = (0, 5, 10, 20, 50, 100, 500, 1000)
"""Depths of a book that may be asked for; 0 stands for every level."""
DEPTH_DEFAULT: Final = 50


@dataclass(frozen=True, slots=True)
class Channel:
    """What a channel is.

    Attributes:
        scope: The token must cover it.
        private: Whether it is one account's, for its owner only; otherwise it is a symbol's.
        snapshot: What its first message holds.
        slow: What readers get who cannot keep up.
        intervals_ms, depths: Values that the parameters `interval_ms` and `depth` may take; empty
            where the channel has no such parameter.
    """

    name: str
    scope: str
    private: bool
    snapshot: str
    slow: Slow
    intervals_ms: tuple[int, ...] = ()
    depths: tuple[int, ...] = ()


CHANNELS: Final = {
    channel.name: channel
    for channel in (
        Channel("ticker", "market:read", False, "latest", Slow.LATEST, INTERVALS_MS),
        Channel("bbo", "market:read", False, "latest", Slow.LATEST, INTERVALS_MS),
        Channel("book", "market:read", False, "levels", Slow.SNAPSHOT, INTERVALS_MS, DEPTHS),
        Channel("trades", "market:read", False, "newest trades", Slow.GAP),
        Channel("account", "account:read", True, "balances, positions, open orders", Slow.CLOSE),
    )
}


@dataclass(frozen=True, slots=True)
class Denied:
    """A subscription that was not granted, and why: a value, part of the answer."""

    code: str
    message: str
    temporary: bool = False


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
        ("depth", channel.depths, DEPTH_DEFAULT),
        ("interval_ms", channel.intervals_ms, 0),
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
    """What the market's topics read besides events: the feed."""

    def knows(self, symbol: str) -> bool:
        """Whether there is such a market."""

    def book(self, symbol: str) -> BookView | None:
        """The market's book, None while it is not in sync."""


class Market:
    """The market topics: made when first asked for, fed from the feed's events.

    Args:
        hub: Publishes what changes.
        source: The feed.
        trades_recent_max: Trades in a snapshot of the channel `trades`.
    """

    def __init__(self, hub: Hub, source: Source, trades_recent_max: int = 20) -> None:
        self._hub = hub
        self._source = source
        self._trades_recent_max = trades_recent_max
        self._topics: dict[tuple[Any, ...], Topic] = {}
        self._of: dict[tuple[str, str], list[Topic]] = {}
        self._latest: dict[tuple[str, str], dict[str, Any]] = {}

    def topic(self, wish: Wanted) -> Topic | Denied:
        """The topic of a checked wish."""
        found = self._topics.get(wish.key)
        if found is not None:
            return found
        if not self._source.knows(wish.symbol):
            return Denied("unknown_symbol", "there is no such market")
        topic = self._make(wish)
        self._topics[wish.key] = topic
        self._of.setdefault((wish.channel.name, wish.symbol), []).append(topic)
        return topic

    def _make(self, wish: Wanted) -> Topic:
        number = self._hub.next_number()
        ring_bytes_max = self._hub.settings.queue_bytes_max
        name, slow, parameters = wish.channel.name, wish.channel.slow, wish.parameters
        if name == "book":
            view: Callable[[], BookView | None] = lambda: self._source.book(wish.symbol)
            book = BookTopic(number, name, parameters, slow, ring_bytes_max, view)
            book.reset()
            return book
        if name == "trades":
            return TradesTopic(
                number, name, parameters, slow, ring_bytes_max, self._trades_recent_max
            )
        latest = LatestTopic(number, name, parameters, slow, ring_bytes_max)
        latest.latest = self._latest.get((name, wish.symbol))
        return latest

    def retire(self, topic: Topic) -> None:
        """Forget a topic that nobody reads; register it with `Hub.start`."""
        symbol = topic.parameters["symbol"]
        self._topics = {key: kept for key, kept in self._topics.items() if kept is not topic}
        siblings = self._of.get((topic.channel, symbol), [])
        if topic in siblings:
            siblings.remove(topic)

    # What the feed tells

    def traded(
        self,
        symbol: str,
        trade_id: int,
        price: Decimal,
        quantity: Decimal,
        aggressor: str,
        at: datetime,
    ) -> None:
        """One public trade; `aggressor` is `buy` or `sell`."""
        topics = self._of.get(("trades", symbol))
        if not topics:
            return
        data = {
            "trade_id": trade_id,
            "price": money.text(price),
            "quantity": money.text(quantity),
            "side": aggressor,
            "at": clock.stamp(at),
        }
        for topic in topics:
            assert isinstance(topic, TradesTopic)
            topic.update(data)
            self._hub.changed(topic)

    def latest(self, channel: str, symbol: str, data: dict[str, Any]) -> None:
        """A new value of a channel of which only the newest matters: `bbo`, `ticker`."""
        self._latest[channel, symbol] = data
        for topic in self._of.get((channel, symbol), ()):
            assert isinstance(topic, LatestTopic)
            topic.update(data)
            self._hub.changed(topic)

    def book_topics(self, symbol: str) -> list[BookTopic]:
        """The topics of a market's book."""
        return [topic for topic in self._of.get(("book", symbol), ()) if isinstance(topic, BookTopic)]

    def announce(self, topic: Topic) -> None:
        """Publish what an update of a topic left to publish."""
        self._hub.changed(topic)

    def missed(self, symbol: str, why: str) -> None:
        """Trades may have been missed and the book is void until it is rebuilt."""
        for topic in (*self._of.get(("trades", symbol), ()), *self.book_topics(symbol)):
            gaps_total.labels(topic.channel, why).inc()
            if isinstance(topic, BookTopic):
                topic.invalidate(why)
            else:
                topic.gap(why)
            self._hub.changed(topic)
