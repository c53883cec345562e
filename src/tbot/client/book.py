"""A market's order book, kept equal to the server's by snapshot, deltas and checksum: pure."""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

CHECKSUM_LEVELS: Final = 10


class _Side:
    """Price levels, ascending, with their texts as sent: the checksum is over those."""

    __slots__ = ("levels", "prices")

    def __init__(self) -> None:
        self.prices: list[Decimal] = []
        self.levels: dict[Decimal, tuple[str, str]] = {}

    def set(self, price_text: str, quantity_text: str) -> None:
        """Set one level; a quantity of zero deletes it."""
        price = Decimal(price_text)
        if quantity_text == "0":
            if self.levels.pop(price, None) is not None:
                del self.prices[bisect_left(self.prices, price)]
            return
        if price not in self.levels:
            self.prices.insert(bisect_left(self.prices, price), price)
        self.levels[price] = (price_text, quantity_text)

    def drop(self, surplus: slice) -> None:
        """Forget some levels, by their places."""
        for price in self.prices[surplus]:
            del self.levels[price]
        del self.prices[surplus]


class Book:
    """One market's book. The stream keeps it current; read it between two events.

    Attributes:
        depth: Levels of each side that are kept; 0 for all.
        synced: False while it must not be trusted: after a gap, until the next snapshot.
        seq: The stream's number of the last update; `update_id` is the venue's.
    """

    def __init__(self, symbol: str, depth: int) -> None:
        self.symbol = symbol
        self.depth = depth
        self.synced = False
        self.seq = 0
        self.update_id = 0
        self._bids = _Side()
        self._asks = _Side()

    def replace(
        self, seq: int, update_id: int, bids: Sequence[Sequence[str]], asks: Sequence[Sequence[str]]
    ) -> None:
        """Become a snapshot."""
        self._bids, self._asks = _Side(), _Side()
        self.seq = seq
        self.apply(seq, update_id, bids, asks)
        self.synced = True

    def apply(
        self, seq: int, update_id: int, bids: Sequence[Sequence[str]], asks: Sequence[Sequence[str]]
    ) -> None:
        """Take changed levels."""
        for price, quantity in bids:
            self._bids.set(price, quantity)
        for price, quantity in asks:
            self._asks.set(price, quantity)
        if self.depth:  # a server that forgets to delete must not make us grow
            self._bids.drop(slice(0, max(0, len(self._bids.prices) - self.depth)))
            self._asks.drop(slice(self.depth, None))
        self.seq = seq
        self.update_id = update_id

    def checksum(self) -> int:
        """CRC-32 over the ten best levels of each side, as the server computes it."""
        bids, asks = self._bids, self._asks
        top = [bids.levels[price] for price in reversed(bids.prices[-CHECKSUM_LEVELS:])]
        top += [asks.levels[price] for price in asks.prices[:CHECKSUM_LEVELS]]
        return zlib.crc32("|".join([f"{price}:{quantity}" for price, quantity in top]).encode())

    @property
    def best_bid(self) -> Decimal | None:
        """The highest bid."""
        return self._bids.prices[-1] if self._bids.prices else None

    @property
    def best_ask(self) -> Decimal | None:
        """The lowest offer."""
        return self._asks.prices[0] if self._asks.prices else None

    @property
    def spread(self) -> Decimal | None:
        """Offer minus bid; None while a side is empty."""
        bid, ask = self.best_bid, self.best_ask
        return None if bid is None or ask is None else ask - bid

    def bids(self, depth: int = 0) -> list[tuple[Decimal, Decimal]]:
        """`(price, quantity)`, best first; `depth` 0 for all that are kept."""
        prices = self._bids.prices[-depth:] if depth else self._bids.prices
        return [(price, Decimal(self._bids.levels[price][1])) for price in reversed(prices)]

    def asks(self, depth: int = 0) -> list[tuple[Decimal, Decimal]]:
        """`(price, quantity)`, best first; `depth` 0 for all that are kept."""
        prices = self._asks.prices[:depth] if depth else self._asks.prices
        return [(price, Decimal(self._asks.levels[price][1])) for price in prices]

    def __repr__(self) -> str:
        return f"Book({self.symbol}, {self.best_bid} / {self.best_ask}, seq {self.seq})"
