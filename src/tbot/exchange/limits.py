"""Request weight per address and order counts per account, in aligned windows. Pure."""

from __future__ import annotations

from typing import Any, Final

_MINUTE_MS: Final = 60_000
_TEN_S_MS: Final = 10_000
_DAY_MS: Final = 86_400_000
_ADDRESSES_MAX: Final = 10_000


class Window:
    """A counter that starts over at every multiple of its length."""

    __slots__ = ("_length_ms", "_number", "count", "limit")

    def __init__(self, limit: int, length_ms: int) -> None:
        self.limit = limit
        self._length_ms = length_ms
        self._number = -1
        self.count = 0

    def roll(self, now_ms: int) -> None:
        """Start over if a new window has begun."""
        number = now_ms // self._length_ms
        if number != self._number:
            self._number, self.count = number, 0

    def left_s(self, now_ms: int) -> int:
        """Whole seconds until the window ends, at least one."""
        return max(1, -(-(self._length_ms - now_ms % self._length_ms) // 1000))


class Limits:
    """All counters.

    Args:
        weight_1m: Weight per address and minute.
        orders_10s, orders_1d: New orders per account.
    """

    def __init__(self, weight_1m: int, orders_10s: int, orders_1d: int) -> None:
        self._weight_1m = weight_1m
        self._orders_10s, self._orders_1d = orders_10s, orders_1d
        self._addresses: dict[str, Window] = {}
        self._accounts: dict[str, tuple[Window, Window]] = {}

    def weight(self, address: str, now_ms: int) -> Window:
        """The weight counter of an address, rolled to now."""
        window = self._addresses.get(address)
        if window is None:
            if len(self._addresses) >= _ADDRESSES_MAX:
                self._addresses.clear()
            window = self._addresses[address] = Window(self._weight_1m, _MINUTE_MS)
        window.roll(now_ms)
        return window

    def orders(self, account: str, now_ms: int) -> tuple[Window, Window]:
        """The order counters of an account (10 s, 1 day), rolled to now."""
        pair = self._accounts.get(account)
        if pair is None:
            pair = self._accounts[account] = (
                Window(self._orders_10s, _TEN_S_MS),
                Window(self._orders_1d, _DAY_MS),
            )
        for window in pair:
            window.roll(now_ms)
        return pair

    def refund(self, account: str) -> None:
        """An order had its first fill: it no longer counts."""
        for window in self._accounts.get(account, ()):
            window.count = max(0, window.count - 1)

    def published(self) -> list[dict[str, Any]]:
        """The limits as `exchangeInfo` lists them."""
        return [
            weight_entry(self._weight_1m),
            order_entry("SECOND", 10, self._orders_10s),
            order_entry("DAY", 1, self._orders_1d),
        ]

    def order_entries(self, account: str, now_ms: int) -> list[dict[str, Any]]:
        """The order counters as answers list them."""
        ten_s, day = self.orders(account, now_ms)
        return [
            order_entry("SECOND", 10, ten_s.limit, ten_s.count),
            order_entry("DAY", 1, day.limit, day.count),
        ]


def weight_entry(limit: int, count: int | None = None) -> dict[str, Any]:
    """One `rateLimits` element for request weight."""
    entry: dict[str, Any] = {
        "rateLimitType": "REQUEST_WEIGHT",
        "interval": "MINUTE",
        "intervalNum": 1,
        "limit": limit,
    }
    if count is not None:
        entry["count"] = count
    return entry


def order_entry(interval: str, number: int, limit: int, count: int | None = None) -> dict[str, Any]:
    """One `rateLimits` element for order counts."""
    entry: dict[str, Any] = {
        "rateLimitType": "ORDERS",
        "interval": interval,
        "intervalNum": number,
        "limit": limit,
    }
    if count is not None:
        entry["count"] = count
    return entry
