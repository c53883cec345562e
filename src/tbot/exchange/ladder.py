"""One side of an order book: prices in order, a quantity at each.

Pure. Entry point: `Ladder`. Invariants: `prices` ascends without repeats and holds exactly the keys
of `quantities`; no quantity is zero.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from decimal import Decimal

from tbot.core.money import ZERO
from tbot.exchange.events import Levels


class Ladder:
    """Prices of one side. A sorted list beats a tree here: a few thousand levels, mostly updates.

    Args:
        is_bid: Whether the best price is the highest.
    """

    __slots__ = ("is_bid", "prices", "quantities")

    def __init__(self, is_bid: bool) -> None:
        self.is_bid = is_bid
        self.prices: list[Decimal] = []
        self.quantities: dict[Decimal, Decimal] = {}

    def set(self, price: Decimal, quantity: Decimal) -> None:
        """Make the level exactly `quantity`; zero or less removes it."""
        if quantity > 0:
            if price not in self.quantities:
                insort(self.prices, price)
            self.quantities[price] = quantity
        elif self.quantities.pop(price, None) is not None:
            del self.prices[bisect_left(self.prices, price)]

    def get(self, price: Decimal) -> Decimal:
        """The quantity at a price, zero where there is no level."""
        return self.quantities.get(price, ZERO)

    def best(self) -> Decimal | None:
        """The best price, None on an empty side."""
        if not self.prices:
            return None
        return self.prices[-1] if self.is_bid else self.prices[0]

    def better(self, than: Decimal) -> list[Decimal]:
        """Prices strictly better than `than`, in ascending order."""
        if self.is_bid:
            return self.prices[bisect_right(self.prices, than) :]
        return self.prices[: bisect_left(self.prices, than)]

    def best_first(self) -> Iterator[Decimal]:
        """Prices from the best to the worst. The ladder must not change meanwhile."""
        return reversed(self.prices) if self.is_bid else iter(self.prices)

    def load(self, levels: Levels) -> None:
        """Replace everything by these levels."""
        self.quantities = {price: quantity for price, quantity in levels if quantity > 0}
        self.prices = sorted(self.quantities)
