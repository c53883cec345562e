"""Candles from trades, exactly: pure.

Entry points: `Interval`, `Candle`, `Tally`, `aggregate`, `better`. `CandleBuilder`, in a module of
its own, makes them of trades as they come.

Invariants:

1. A candle holds every trade whose time lies in `[start, start + interval)`, in the order of the
   trades' ids: open and close are those of the lowest and the highest id. Arithmetic is exact.
2. A market's trade ids are contiguous, and that is the proof of completeness: a complete candle
   has `trades == last_id - first_id + 1`, and the trade before `first_id` lies before its start.
   When ids are missing for good, every candle that they may belong to is incomplete.
3. A larger candle is the sum of the smaller ones in it: the same as if built from the trades.
4. An interval without a trade has no candle. That nothing was traded shows in the ids: the next
   candle's `first_id` follows the last one's `last_id`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from tbot.core import clock, money
from tbot.core.clock import from_ms
from tbot.venues.base import MarketTrade


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
    tally: Tally | None = None
    for part in parts:
        start_ms = interval.floor(part.start_ms)
        if tally is None or tally.start_ms != start_ms:
            if tally is not None:
                made.append(tally.candle(interval))
            tally = Tally(start_ms)
        tally.absorb(part)
    if tally is not None:
        made.append(tally.candle(interval))
    return made


class Tally:
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

    def absorb(self, later: Candle | Tally) -> None:
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
