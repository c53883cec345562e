"""Rolling 24-hour statistics of one market, from its trades: pure.

Entry points: `Ticker`, `DayWindow`.

Trades are added up by the minute and leave by the minute, so the window is between 24 hours and
24 hours and a minute long; before that it reaches back to the first trade that was heard.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from tbot.core import money
from tbot.core.clock import from_ms, to_ms
from tbot.venues.base import MarketTrade

_MINUTE_MS: Final = 60_000
_MINUTES: Final = 1440


@dataclass(frozen=True, slots=True)
class Ticker:
    """A market in figures.

    Attributes:
        last: Price of the newest trade.
        open: Price of the oldest trade in the window.
        volume: In the base asset; `quote_volume` in the quote asset.
        trades: How many there were.
        since: Start of the window.
        at: Time of the newest trade.
    """

    symbol: str
    last: Decimal
    open: Decimal
    high: Decimal
    low: Decimal
    volume: Decimal
    quote_volume: Decimal
    trades: int
    since: datetime
    at: datetime


@dataclass(slots=True)
class _Minute:
    start_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    volume: Decimal = money.ZERO
    quote_volume: Decimal = money.ZERO
    trades: int = 0


class DayWindow:
    """Adds up trades; at most 1,441 minutes are kept."""

    __slots__ = ("_high", "_low", "_minutes", "_quote_volume", "_symbol", "_trades", "_volume")

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._minutes: deque[_Minute] = deque()
        self._high = self._low = money.ZERO
        self._volume = self._quote_volume = money.ZERO
        self._trades = 0

    def add(self, trade: MarketTrade) -> Ticker:
        """Count a trade and return the statistics with it."""
        at_ms = to_ms(trade.at)
        start_ms = at_ms - at_ms % _MINUTE_MS
        price = trade.price
        minutes = self._minutes
        if not minutes or start_ms > minutes[-1].start_ms:
            minutes.append(_Minute(start_ms, price, price, price))
            self._expire(start_ms - _MINUTES * _MINUTE_MS)
        minute = minutes[-1]
        quote_quantity = price * trade.quantity
        minute.high, minute.low = max(minute.high, price), min(minute.low, price)
        minute.volume += trade.quantity
        minute.quote_volume += quote_quantity
        minute.trades += 1
        self._high, self._low = max(self._high, price), min(self._low, price)
        self._volume += trade.quantity
        self._quote_volume += quote_quantity
        self._trades += 1
        first = minutes[0]
        return Ticker(
            symbol=self._symbol,
            last=price,
            open=first.open,
            high=self._high,
            low=self._low,
            volume=self._volume,
            quote_volume=self._quote_volume,
            trades=self._trades,
            since=from_ms(first.start_ms),
            at=trade.at,
        )

    def _expire(self, before_ms: int) -> None:
        """Drop old minutes; extremes are looked up again, once a minute at most."""
        while self._minutes[0].start_ms < before_ms:
            old = self._minutes.popleft()
            self._volume -= old.volume
            self._quote_volume -= old.quote_volume
            self._trades -= old.trades
        self._high = max(minute.high for minute in self._minutes)
        self._low = min(minute.low for minute in self._minutes)
