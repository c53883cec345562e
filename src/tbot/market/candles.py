"""Candles from trades, exactly: pure.

Entry points: `Interval`, `Candle`, `CandleBuilder`, `aggregate`, `better`.

Invariants:

1. A candle holds every trade whose time lies in `[start, start + interval)`, in the order of the
   trades' ids: open and close are those of the lowest and the highest id. Arithmetic is exact.
2. A market's trade ids are contiguous, and that is the proof of completeness: a complete candle
   has `trades == last_id - first_id + 1`, and the trade before `first_id` lies before its start.
   When ids are missing for good, every candle that they may belong to is incomplete.
3. A larger candle is the sum of the smaller ones in it: the same as if built from the trades.
4. An interval without a trade has no candle. That nothing was traded shows in the ids: the next
   candle's `first_id` follows the last one's `last_id`.

Whatever order, batches or repetitions trades are delivered in, the same candles come out: trades
beyond a missing one wait for it, as segments of a TCP stream do.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from tbot.core import clock, money
from tbot.core.clock import from_ms, to_ms
from tbot.venues.base import MarketTrade

PENDING_MAX: Final = 10_000
GRACE_MS: Final = 2_000
"""How long after an interval's end, by the market's clock, a trade of it may still arrive."""


class Interval(StrEnum):
    """How long a candle is; each one divides the next, and all of them the UTC day."""

    S1 = "1s"
    M1 = "1m"
    M5 = "5m"
    M15 = "15m"
    H1 = "1h"
    H4 = "4h"
    D1 = "1d"

    @property
    def ms(self) -> int:
        """Its length in milliseconds."""
        return _LENGTHS_MS[self]

    def floor(self, at_ms: int) -> int:
        """The start of the interval that an instant lies in, both in epoch milliseconds."""
        return at_ms - at_ms % _LENGTHS_MS[self]


_LENGTHS_MS: Final = {
    Interval.S1: 1_000,
    Interval.M1: 60_000,
    Interval.M5: 300_000,
    Interval.M15: 900_000,
    Interval.H1: 3_600_000,
    Interval.H4: 14_400_000,
    Interval.D1: 86_400_000,
}
INTERVALS: Final = tuple(Interval)
_MINUTE: Final = INTERVALS.index(Interval.M1)
_ABOVE_MINUTE: Final = _MINUTE + 1


@dataclass(frozen=True, slots=True)
class Candle:
    """The trades of one interval in figures.

    Attributes:
        start_ms: Epoch milliseconds, a multiple of the interval.
        volume: In the base asset; `quote_volume` in the quote asset.
        first_id, last_id: Of its trades; None where only the venue's own candle is known.
        complete: No trade of the interval is missing up to now; a closed one is final then.
    """

    interval: Interval
    start_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trades: int
    first_id: int | None
    last_id: int | None
    complete: bool

    @property
    def end_ms(self) -> int:
        """The first millisecond after it."""
        return self.start_ms + self.interval.ms

    @property
    def start(self) -> datetime:
        """Its beginning."""
        return from_ms(self.start_ms)


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in epoch milliseconds, both ends included, of which trades are missing."""

    from_ms: int
    to_ms: int


def candle_json(candle: Candle, closed: bool) -> dict[str, Any]:
    """A candle as REST and the stream tell it."""
    return {
        "start": clock.stamp(from_ms(candle.start_ms)),
        "open": money.text(candle.open),
        "high": money.text(candle.high),
        "low": money.text(candle.low),
        "close": money.text(candle.close),
        "volume": money.text(candle.volume),
        "quote_volume": money.text(candle.quote_volume),
        "trades": candle.trades,
        "first_trade_id": candle.first_id,
        "last_trade_id": candle.last_id,
        "complete": candle.complete,
        "closed": closed,
    }


def better(one: Candle, other: Candle) -> Candle:
    """Which of two accounts of the same interval to believe: the complete one, or that of more.

    The same rule as the store's, so that it does not matter who writes first.
    """
    first, second = (one.complete, one.trades), (other.complete, other.trades)
    best, worse = (other, one) if second > first else (one, other)
    if best.trades == worse.trades and best.first_id is None:
        return replace(best, first_id=worse.first_id, last_id=worse.last_id)
    return best


def aggregate(parts: Iterable[Candle], interval: Interval) -> list[Candle]:
    """Larger candles from smaller ones, oldest first.

    Args:
        parts: Of one smaller interval each time span, ascending, none twice. A missing one counts
            as an interval without trades, unless the ids around it say otherwise: then the larger
            candle is incomplete.
    """
    made: list[Candle] = []
    tally: _Tally | None = None
    for part in parts:
        start_ms = interval.floor(part.start_ms)
        if tally is None or tally.start_ms != start_ms:
            if tally is not None:
                made.append(tally.candle(interval))
            tally = _Tally(start_ms)
        tally.absorb(part)
    if tally is not None:
        made.append(tally.candle(interval))
    return made


class _Tally:
    """A candle that grows."""

    __slots__ = (
        "close", "complete", "first_id", "high", "last_id", "low", "open", "quote_volume",
        "start_ms", "trades", "volume",
    )  # fmt: skip

    def __init__(self, start_ms: int, complete: bool = True) -> None:
        self.start_ms = start_ms
        self.open = self.high = self.low = self.close = money.ZERO
        self.volume = self.quote_volume = money.ZERO
        self.trades = 0
        self.first_id: int | None = None
        self.last_id: int | None = None
        self.complete = complete

    def add(self, trade: MarketTrade) -> None:
        """Count a trade; its id is above all before."""
        price = trade.price
        if self.trades == 0:
            self.open = self.high = self.low = price
            self.first_id = trade.trade_id
        elif price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.close = price
        self.volume += trade.quantity
        self.quote_volume += price * trade.quantity
        self.trades += 1
        self.last_id = trade.trade_id

    def absorb(self, later: Candle | _Tally) -> None:
        """Join what follows."""
        if self.trades == 0:
            self.open, self.high, self.low = later.open, later.high, later.low
            self.first_id = later.first_id
        else:
            self.high, self.low = max(self.high, later.high), min(self.low, later.low)
            ids_known = self.last_id is not None and later.first_id is not None
            if ids_known and later.first_id != self.last_id + 1:  # type: ignore[operator]
                self.complete = False
        self.close, self.last_id = later.close, later.last_id
        self.volume += later.volume
        self.quote_volume += later.quote_volume
        self.trades += later.trades
        self.complete = self.complete and later.complete

    def candle(self, interval: Interval) -> Candle:
        """As it is now."""
        first, last = self.first_id, self.last_id
        # Whatever the parts say of themselves: ids that do not add up leave something open.
        whole = first is None or last is None or self.trades == last - first + 1
        return Candle(
            interval, self.start_ms, self.open, self.high, self.low, self.close, self.volume,
            self.quote_volume, self.trades, first, last, self.complete and whole,
        )  # fmt: skip


class CandleBuilder:
    """One market's candles of every interval, from its trades.

    Trades are counted in candles of a second; a closed candle is absorbed by the next larger one.
    So a trade costs the same however many intervals there are.

    Args:
        last_id: The trade after which it begins, when all trades before it are of earlier days;
            None begins with whichever trade comes first, with candles that are in doubt.
        pending_max: Trades kept while a missing one is awaited.
    """

    __slots__ = (
        "_closed_ms", "_doubt", "_levels", "_pending", "_pending_max", "doubted", "last_id",
        "last_ms",
    )  # fmt: skip

    def __init__(self, last_id: int | None = None, pending_max: int = PENDING_MAX) -> None:
        self.last_id = last_id
        """Id of the newest trade that was counted; all after the first are without a gap."""
        self.last_ms = 0
        """Time of that trade."""
        self._levels: list[_Tally | None] = [None] * len(INTERVALS)
        self._closed_ms = 0
        self._doubt = last_id is None
        self.doubted: list[Span] = []
        """Of which stretches candles are in doubt; whoever handles them takes them out."""
        self._pending: dict[int, MarketTrade] = {}
        self._pending_max = pending_max

    @property
    def missing(self) -> tuple[int, int] | None:
        """The first and the last id that are missing before the trades that wait for them."""
        if not self._pending or self.last_id is None:
            return None
        return self.last_id + 1, min(self._pending) - 1

    @property
    def full(self) -> bool:
        """Whether no more trades can wait: `skip` what is missing."""
        return len(self._pending) >= self._pending_max

    @property
    def clock_ms(self) -> int:
        """How far the market has come, as far as candles are closed by it."""
        return max(self.last_ms, self._closed_ms)

    def add(self, trade: MarketTrade) -> list[Candle]:
        """Take a trade: counted at once, or when those before it are there; once in any case.

        Returns:
            The candles that it closed, the smallest first.
        """
        last_id = self.last_id
        if last_id is not None and trade.trade_id != last_id + 1:
            if trade.trade_id > last_id and not self.full:
                self._pending[trade.trade_id] = trade
            return []
        closed = self._count(trade)
        while self._pending:
            following = self._pending.pop(trade.trade_id + 1, None)
            if following is None:
                break
            trade = following
            closed += self._count(trade)
        return closed

    def skip(self) -> list[Candle]:
        """Go on without what is missing; every candle that it may belong to is in doubt.

        Returns:
            The candles that are closed by it.
        """
        if not self._pending:
            return []
        first = self._pending.pop(min(self._pending))
        self._lose(to_ms(first.at))
        self.last_id = first.trade_id - 1
        return self.add(first)

    def restart(self, trade: MarketTrade) -> list[Candle]:
        """Begin anew with a trade whose id has nothing to do with those before."""
        self._pending.clear()
        self._lose(to_ms(trade.at))
        self.last_id = trade.trade_id - 1
        return self.add(trade)

    def advance(self, now_ms: int) -> list[Candle]:
        """Close what has ended by the market's clock: no trade has to come for that.

        Args:
            now_ms: Time of something that the venue has told after all trades given so far.
        """
        if self._pending or now_ms - GRACE_MS <= self._closed_ms:
            return []
        return self._close(now_ms - GRACE_MS)

    def view(self, interval: Interval) -> Candle | None:
        """The open candle as it is now; None while nothing was traded in it."""
        levels = self._levels[INTERVALS.index(interval) :: -1]
        parts = [tally for tally in levels if tally is not None]
        if not parts:
            return None
        whole = _Tally(interval.floor(parts[0].start_ms))
        for part in parts:
            whole.absorb(part)
        return whole.candle(interval)

    @property
    def whole(self) -> bool:
        """Whether the open candle of a day, and so each of them, lacks nothing."""
        day = self.view(Interval.D1)
        return day is not None and day.complete

    def rebase(self, minutes: Sequence[Candle], until_ms: int) -> list[Candle]:
        """Take the day's earlier minutes from elsewhere, as after a start in the middle of it.

        Args:
            minutes: All closed minutes of the day, ascending, whose word is taken.
            until_ms: Where they end: the start of the minute that is open here. When it is
                another one by now, nothing is changed.

        Returns:
            The candles above a minute that they close.
        """
        if Interval.M1.floor(self.clock_ms) != until_ms:
            return []
        day_ms = Interval.D1.floor(until_ms)
        for level in range(_ABOVE_MINUTE, len(INTERVALS)):
            self._levels[level] = None
        closed: list[Candle] = []
        for minute in minutes:
            if day_ms <= minute.start_ms < until_ms:
                closed += self._close_levels(minute.start_ms, _ABOVE_MINUTE)
                self._absorb(_ABOVE_MINUTE, minute)
        return closed + self._close_levels(until_ms, _ABOVE_MINUTE)

    def _lose(self, until_ms: int) -> None:
        """What lies between the last trade and this time is in doubt."""
        self.doubted.append(Span(self.last_ms or until_ms, until_ms))
        for tally in self._levels:
            if tally is not None:
                tally.complete = False
        self._doubt = True

    def _count(self, trade: MarketTrade) -> list[Candle]:
        at_ms = to_ms(trade.at)
        if self.last_id is None:
            self.doubted.append(Span(at_ms, at_ms))
        self.last_id = trade.trade_id
        if at_ms < Interval.S1.floor(self._closed_ms):
            self._count_late(trade, at_ms)
            return []
        closed = self._close(at_ms)
        self.last_ms = at_ms
        tally = self._levels[0]
        if tally is None:
            tally = self._levels[0] = _Tally(Interval.S1.floor(at_ms), not self._doubt)
            self._doubt = False
        tally.add(trade)
        return closed

    def _count_late(self, trade: MarketTrade, at_ms: int) -> None:
        """A trade of a candle that is closed already: the larger ones take it, all are in doubt.

        Venues number trades in the order of their times, so this takes a clock that was set back.
        """
        for level, interval in enumerate(INTERVALS):
            if interval.floor(self._closed_ms) == interval.floor(at_ms):
                tally = self._levels[level]
                if tally is None:
                    tally = self._levels[level] = _Tally(interval.floor(at_ms))
                tally.add(trade)
                break
        for tally in self._levels:
            if tally is not None:
                tally.complete = False
        self.doubted.append(Span(at_ms, max(at_ms, self._closed_ms)))

    def _close(self, at_ms: int) -> list[Candle]:
        """Close every candle that ended at or before a time."""
        before_ms, self._closed_ms = self._closed_ms, max(self._closed_ms, at_ms)
        if at_ms // 1000 == before_ms // 1000:
            return []
        return self._close_levels(at_ms, 0)

    def _close_levels(self, at_ms: int, first: int) -> list[Candle]:
        closed: list[Candle] = []
        for level in range(first, len(INTERVALS)):
            tally, interval = self._levels[level], INTERVALS[level]
            if tally is None or tally.start_ms + interval.ms > at_ms:
                continue
            candle = tally.candle(interval)
            closed.append(candle)
            self._levels[level] = None
            self._absorb(level + 1, candle)
        return closed

    def _absorb(self, level: int, candle: Candle) -> None:
        if level == len(INTERVALS):
            return
        tally = self._levels[level]
        if tally is None:
            tally = self._levels[level] = _Tally(INTERVALS[level].floor(candle.start_ms))
        tally.absorb(candle)


def insert(candles: list[Candle], candle: Candle, kept_max: int) -> Candle | None:
    """Put a closed candle among the recent ones of its interval, ascending by time.

    Returns:
        The candle that is kept now; None when it says nothing new.
    """
    at = bisect_left(candles, candle.start_ms, key=lambda one: one.start_ms)
    if at < len(candles) and candles[at].start_ms == candle.start_ms:
        best = better(candles[at], candle)
        if best == candles[at]:
            return None
        candles[at] = best
        return best
    candles.insert(at, candle)
    del candles[: max(0, len(candles) - kept_max)]
    return candle
