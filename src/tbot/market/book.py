"""A local order book and the rule that keeps it equal to the venue's: pure.

Entry points: `Book`, `BookSync`, `Reference`.

Invariants:

1. A live book equals the venue's after update `update_id`: the snapshot plus every change after it.
2. A change that does not follow the last one (`first_update_id > update_id + 1`) ends that: the
   book is void until a snapshot joins the changes again. A book is never read across a gap.
3. Both sides are strictly sorted and hold no empty level.

Rule of Binance's "How to manage a local order book correctly": buffer changes, take a snapshot,
take another if it is older than the first buffered change, drop the changes that it already
contains, apply the rest.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import Enum, auto
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec

from tbot.core import money
from tbot.venues.base import DepthDiff, DepthSnapshot, Level


class Reference(msgspec.Struct, frozen=True, gc=False):
    """A market's prices as a risk check uses them.

    Attributes:
        bid: Best bid, `ask` best offer; None on an empty side.
        last: Price of the last trade; None before the first.
        at_boot_s: `clock.boot_s` when the market was last heard of.
    """

    symbol: str
    bid: Decimal | None
    ask: Decimal | None
    last: Decimal | None
    at_boot_s: float

    def to_json(self) -> dict[str, Any]:
        """The prices in JSON types."""
        found = {}
        if self.bid is not None:
            found["bid"] = _text(self.bid)
        if self.ask is not None:
            found["ask"] = _text(self.ask)
        if self.last is not None:
            found["last"] = _text(self.last)
        return found


_text = lru_cache(1024)(money.text)  # many orders are checked against the same few prices


class Book:
    """Price levels of one market.

    Each side is a sorted list of prices beside a dictionary of quantities: a change of a known
    level is one dictionary write, a new or deleted one a binary search and a short memory move.
    """

    __slots__ = ("_ask_prices", "_asks", "_bid_prices", "_bids", "update_id")

    def __init__(self) -> None:
        self.update_id = 0
        self._bids: dict[Decimal, Decimal] = {}
        self._asks: dict[Decimal, Decimal] = {}
        self._bid_prices: list[Decimal] = []  # both ascending: the best bid is the last
        self._ask_prices: list[Decimal] = []

    def replace(self, snapshot: DepthSnapshot) -> None:
        """Become the snapshot."""
        self._bids = {level.price: level.quantity for level in snapshot.bids if level.quantity}
        self._asks = {level.price: level.quantity for level in snapshot.asks if level.quantity}
        self._bid_prices = sorted(self._bids)
        self._ask_prices = sorted(self._asks)
        self.update_id = snapshot.last_update_id

    def apply(self, diff: DepthDiff) -> None:
        """Take changed levels (absolute sizes; zero deletes)."""
        _change(self._bids, self._bid_prices, diff.bids)
        _change(self._asks, self._ask_prices, diff.asks)
        self.update_id = diff.last_update_id

    def levels(self, depth: int = 0) -> tuple[list[Level], list[Level]]:
        """The best `depth` bids and asks, best first; 0 stands for all."""
        bids, asks = self._bids, self._asks
        bid_prices: Iterable[Decimal] = reversed(self._bid_prices)
        ask_prices: Iterable[Decimal] = self._ask_prices
        if depth:
            bid_prices, ask_prices = islice(bid_prices, depth), islice(ask_prices, depth)
        return (
            [Level(price, bids[price]) for price in bid_prices],
            [Level(price, asks[price]) for price in ask_prices],
        )

    @property
    def bid(self) -> Decimal | None:
        """The best bid."""
        return self._bid_prices[-1] if self._bid_prices else None

    @property
    def ask(self) -> Decimal | None:
        """The best offer."""
        return self._ask_prices[0] if self._ask_prices else None

    @property
    def crossed(self) -> bool:
        """Whether the best bid is not below the best offer: then something was missed."""
        return bool(
            self._bid_prices and self._ask_prices and self._bid_prices[-1] >= self._ask_prices[0]
        )

    def __len__(self) -> int:
        return len(self._bids) + len(self._asks)


def _change(side: dict[Decimal, Decimal], prices: list[Decimal], levels: Sequence[Level]) -> None:
    for level in levels:
        price, quantity = level.price, level.quantity
        if quantity:
            if price not in side:
                prices.insert(bisect_left(prices, price), price)
            side[price] = quantity
        elif side.pop(price, None) is not None:
            del prices[bisect_left(prices, price)]


class Step(Enum):
    """What a change did."""

    BUFFERED = auto()
    """No book yet; it waits for a snapshot."""
    OLD = auto()
    """The book already contains it."""
    APPLIED = auto()
    GAP = auto()
    """Changes are missing: the book is void, and a snapshot is needed."""


class BookSync:
    """A book with its resync rule.

    Feed it every change in the order of arrival; when `live` turns false, fetch a snapshot and
    give it to `join`, again and again until that answers True.

    Args:
        buffered_max: Changes kept while there is no book.
    """

    __slots__ = ("_buffer", "_buffered_max", "book", "live")

    def __init__(self, buffered_max: int = 10_000) -> None:
        self._buffered_max = buffered_max
        self.book = Book()
        self.live = False
        self._buffer: list[DepthDiff] = []

    def lose(self) -> None:
        """Changes may have been missed: the book is void."""
        self.live = False
        self._buffer.clear()

    def take(self, diff: DepthDiff) -> Step:
        """Take the next change."""
        if not self.live:
            if len(self._buffer) >= self._buffered_max:
                # No snapshot in so long: the oldest are of no use any more.
                del self._buffer[: self._buffered_max // 2]
            if self._buffer and diff.first_update_id > self._buffer[-1].last_update_id + 1:
                self._buffer.clear()
            self._buffer.append(diff)
            return Step.BUFFERED
        if diff.last_update_id <= self.book.update_id:
            return Step.OLD
        if diff.first_update_id <= self.book.update_id + 1:
            self.book.apply(diff)
            if not self.book.crossed:
                return Step.APPLIED
        self.lose()
        self._buffer.append(diff)
        return Step.GAP

    def join(self, snapshot: DepthSnapshot) -> bool:
        """Take a snapshot and the buffered changes after it.

        Returns:
            False when the snapshot is older than the first buffered change: fetch another.
        """
        if self.live:
            return True
        if self._buffer and snapshot.last_update_id + 1 < self._buffer[0].first_update_id:
            return False
        self.book.replace(snapshot)
        for diff in self._buffer:
            if diff.last_update_id > snapshot.last_update_id:
                self.book.apply(diff)
        self._buffer.clear()
        self.live = not self.book.crossed
        return self.live
