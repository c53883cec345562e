"""One market's candles of every interval, made of its trades as they come: pure.

Entry points: `CandleBuilder`, and what it says of doubt: `Span`. What candles are, and what holds
of them, is at the top of `tbot.market.candles`.

Whatever order, batches or repetitions trades are delivered in, the same candles come out: trades
beyond a missing one wait for it, as segments of a TCP stream do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tbot.core.clock import to_ms
from tbot.market.candles import INTERVALS, Candle, Interval, Tally
from tbot.venues.base import MarketTrade

PENDING_MAX: Final = 10_000
GRACE_MS: Final = 2_000
"""How long after an interval's end, by the market's clock, a trade of it may still arrive."""
_MINUTE: Final = INTERVALS.index(Interval.M1)
_ABOVE_MINUTE: Final = _MINUTE + 1


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, in epoch milliseconds, both ends included, of which trades are missing."""

    from_ms: int
    to_ms: int


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
        self._levels: list[Tally | None] = [None] * len(INTERVALS)
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
        whole = Tally(interval.floor(parts[0].start_ms))
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
        since_ms = self.last_ms or until_ms
        # A venue's clock that was set back must not turn the stretch round.
        self.doubted.append(Span(min(since_ms, until_ms), max(since_ms, until_ms)))
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
            tally = self._levels[0] = Tally(Interval.S1.floor(at_ms), not self._doubt)
        self._doubt = False  # what is missing lies before this trade
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
                    tally = self._levels[level] = Tally(interval.floor(at_ms))
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
            tally = self._levels[level] = Tally(INTERVALS[level].floor(candle.start_ms))
        tally.absorb(candle)
