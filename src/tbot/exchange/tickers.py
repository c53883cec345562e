"""Rolling statistics of trades: minute candles, 24-hour tickers, the five-minute average. Pure.

Times are the trades' own, so a replay has the statistics of its recording. Candles older than a day
are dropped.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, Final

from tbot.core.money import ZERO, divide
from tbot.exchange.instruments import SCALE
from tbot.exchange.wire import decimal_text

_MINUTE_MS: Final = 60_000
_DAY_MINUTES: Final = 1_440
INTERVALS: Final = {
    "1m": 1, "3m": 3, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "2h": 120, "4h": 240,
    "6h": 360, "8h": 480, "12h": 720, "1d": 1_440,
}  # fmt: skip
"""Candle intervals in minutes."""


class Candle:
    """Trades of some minutes."""

    __slots__ = (
        "bought", "bought_quote", "close", "count", "first_id", "high", "last_id", "low", "minute",
        "open", "quote", "volume",
    )  # fmt: skip

    def __init__(self, minute: int, price: Decimal, trade_id: int) -> None:
        self.minute = minute
        self.open = self.high = self.low = self.close = price
        self.volume = self.quote = self.bought = self.bought_quote = ZERO
        self.count = 0
        self.first_id = self.last_id = trade_id

    def add(self, trade_id: int, price: Decimal, quantity: Decimal, buyer_is_maker: bool) -> None:
        """Count one trade."""
        value = price * quantity
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        self.close = price
        self.volume += quantity
        self.quote += value
        if not buyer_is_maker:
            self.bought += quantity
            self.bought_quote += value
        self.count += 1
        self.last_id = trade_id

    def absorb(self, later: Candle) -> None:
        """Join a candle that follows this one."""
        self.high, self.low = max(self.high, later.high), min(self.low, later.low)
        self.close, self.last_id = later.close, later.last_id
        self.volume += later.volume
        self.quote += later.quote
        self.bought += later.bought
        self.bought_quote += later.bought_quote
        self.count += later.count


class Tickers:
    """One symbol's statistics."""

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._candles: dict[int, Candle] = {}
        self._last_quantity = ZERO
        self._last_ms = 0

    def add(
        self, trade_id: int, price: Decimal, quantity: Decimal, buyer_is_maker: bool, time_ms: int
    ) -> None:
        """Count a public trade."""
        minute = time_ms // _MINUTE_MS
        candle = self._candles.get(minute)
        if candle is None:
            candle = self._candles[minute] = Candle(minute, price, trade_id)
            for old in [m for m in self._candles if m <= minute - _DAY_MINUTES]:
                del self._candles[old]
        candle.add(trade_id, price, quantity, buyer_is_maker)
        self._last_quantity = quantity
        self._last_ms = time_ms

    def _ordered(self) -> list[Candle]:
        return [self._candles[minute] for minute in sorted(self._candles)]

    def average(self, minutes: int = 5) -> Decimal | None:
        """Volume-weighted price of the last minutes that had trades, None before any trade."""
        recent = [
            c for c in self._candles.values() if c.minute > self._last_ms // _MINUTE_MS - minutes
        ]
        volume = sum((candle.volume for candle in recent), ZERO)
        if not volume:
            return None
        quote = sum((candle.quote for candle in recent), ZERO)
        return divide(quote, volume, SCALE, decimal.ROUND_HALF_EVEN)

    def day(self) -> Candle | None:
        """All trades of the last 24 hours as one candle."""
        joined: Candle | None = None
        for candle in self._ordered():
            if joined is None:
                joined = Candle(candle.minute, candle.open, candle.first_id)
                joined.high, joined.low = candle.high, candle.low
            joined.absorb(candle)
        return joined

    def _times(self) -> tuple[int, int]:
        return self._last_ms - _DAY_MINUTES * _MINUTE_MS, self._last_ms

    def figures(self) -> dict[str, Any]:
        """The 24-hour figures by their long names, without best prices."""
        day = self.day()
        none = decimal_text(ZERO)
        opened, closed = self._times()
        if day is None:
            names = (
                "priceChange", "weightedAvgPrice", "prevClosePrice", "lastPrice", "lastQty",
                "openPrice", "highPrice", "lowPrice", "volume", "quoteVolume",
            )  # fmt: skip
            return {
                "symbol": self._symbol, "priceChangePercent": "0.000",
                **dict.fromkeys(names, none),
                "openTime": opened, "closeTime": closed, "firstId": -1, "lastId": -1, "count": 0,
            }  # fmt: skip
        change = day.close - day.open
        percent = divide(change * 100, day.open, 3, decimal.ROUND_HALF_EVEN)
        weighted = divide(day.quote, day.volume, SCALE, decimal.ROUND_HALF_EVEN)
        return {
            "symbol": self._symbol,
            "priceChange": decimal_text(change),
            "priceChangePercent": format(percent, ".3f"),
            "weightedAvgPrice": decimal_text(weighted),
            "prevClosePrice": decimal_text(day.open),
            "lastPrice": decimal_text(day.close),
            "lastQty": decimal_text(self._last_quantity),
            "openPrice": decimal_text(day.open),
            "highPrice": decimal_text(day.high),
            "lowPrice": decimal_text(day.low),
            "volume": decimal_text(day.volume),
            "quoteVolume": decimal_text(day.quote),
            "openTime": opened,
            "closeTime": closed,
            "firstId": day.first_id,
            "lastId": day.last_id,
            "count": day.count,
        }

    def klines(
        self, interval: str, limit: int, from_ms: int | None = None, to_ms: int | None = None
    ) -> list[list[Any]]:
        """Candles of an interval that begin within a span, oldest first, the newest still open.

        The oldest of them where the span has a beginning, else the newest.
        """
        found = [
            candle
            for candle in self._joined(interval)
            if candle.minute * _MINUTE_MS >= (from_ms or 0)
            and (to_ms is None or candle.minute * _MINUTE_MS <= to_ms)
        ]
        chosen = found[-limit:] if from_ms is None else found[:limit]
        return [kline(candle, INTERVALS[interval]) for candle in chosen]

    def current(self, interval: str) -> Candle | None:
        """The newest candle of an interval."""
        newest = None
        for candle in self._joined(interval):
            newest = candle
        return newest

    def _joined(self, interval: str) -> Iterator[Candle]:
        length = INTERVALS[interval]
        joined: Candle | None = None
        for candle in self._ordered():
            start = candle.minute // length * length
            if joined is None or joined.minute != start:
                if joined is not None:
                    yield joined
                joined = Candle(start, candle.open, candle.first_id)
                joined.high, joined.low = candle.high, candle.low
            joined.absorb(candle)
        if joined is not None:
            yield joined


def kline(candle: Candle, minutes: int) -> list[Any]:
    """A candle as the `klines` answer writes it."""
    start_ms = candle.minute * _MINUTE_MS
    return [
        start_ms,
        decimal_text(candle.open),
        decimal_text(candle.high),
        decimal_text(candle.low),
        decimal_text(candle.close),
        decimal_text(candle.volume),
        start_ms + minutes * _MINUTE_MS - 1,
        decimal_text(candle.quote),
        candle.count,
        decimal_text(candle.bought),
        decimal_text(candle.bought_quote),
        "0",
    ]
