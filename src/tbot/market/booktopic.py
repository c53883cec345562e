"""The book as a topic: snapshots, deltas and a checksum of the top. Pure.

Applying the deltas in order to any of the snapshots gives every later book.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol

from tbot.core import clock, money
from tbot.market.topics import Frame, Slow, Topic
from tbot.venues.base import Level

CHECKSUM_LEVELS: Final = 10
"""Levels of each side that a book's checksum covers."""

type Levels = Sequence[tuple[str, str]]
"""Price and quantity as text, best first."""


class BookView(Protocol):
    """An order book to read from: the feed's, which changes under our feet between events."""

    @property
    def update_id(self) -> int:
        """The venue's number of this state."""

    def levels(self, depth: int) -> tuple[Iterable[Level], Iterable[Level]]:
        """Best `depth` bids and asks, best first; `depth` 0 stands for all."""


class BookTopic(Topic):
    """An order book to a depth: snapshots and deltas with a checksum of the top.

    With a depth it publishes what changed in its window, so levels that move into it are told
    too. Without one (depth 0) changes pass through as the venue sent them.
    """

    __slots__ = ("_changed", "_view", "_window", "at", "depth", "ready")

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
        view: Callable[[], BookView | None],
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.depth: int = parameters["depth"]
        self._view = view
        self._window: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
        self._changed: tuple[dict[Decimal, Decimal], dict[Decimal, Decimal]] = ({}, {})
        self.ready = False
        """Whether subscribers hold a book that deltas may be applied to."""
        self.at: datetime | None = None

    def update(self, bids: Iterable[Level], asks: Iterable[Level], at: datetime) -> None:
        """Take changed levels (absolute sizes); the view already includes them."""
        if not self.ready:
            self.reset(at)
            return
        self.at = at
        if self.depth == 0:
            for side, levels in zip(self._changed, (bids, asks), strict=True):
                side.update((level.price, level.quantity) for level in levels)
        self.pending = True
        if self.interval_ms == 0:
            self.flush()

    def flush(self) -> bool:
        """Publish the changes since the last delta."""
        view = self._view()
        if not self.pending or not self.ready or view is None:
            return False
        self.pending = False
        bids, asks = (list(side) for side in view.levels(self.depth or CHECKSUM_LEVELS))
        if self.depth == 0:
            changed_bids, changed_asks = self._changed
            self._changed = ({}, {})
        else:
            windows = tuple(
                {level.price: level.quantity for level in side} for side in (bids, asks)
            )
            changed_bids, changed_asks = (
                difference(old, new) for old, new in zip(self._window, windows, strict=True)
            )
            self._window = (windows[0], windows[1])
            if not changed_bids and not changed_asks:
                return False
        self.seq += 1
        self.push(
            "delta",
            prev=self.seq - 1,
            data={
                "bids": _texts(changed_bids.items()),
                "asks": _texts(changed_asks.items()),
                "checksum": checksum(_pairs(bids), _pairs(asks)),
                "update_id": view.update_id,
                "at": _time(self.at),
            },
        )
        return True

    def reset(self, at: datetime | None = None) -> None:
        """The book was rebuilt: everybody gets the whole of it."""
        view = self._view()
        if view is None:
            return
        self.at = at or self.at
        self.ready = True
        self.pending = False
        self._changed = ({}, {})
        if self.depth:
            sides = view.levels(self.depth)
            self._window = tuple(  # type: ignore[assignment]
                {level.price: level.quantity for level in side} for side in sides
            )
        self.seq += 1
        self.snapshot_frame = self.push("snap", data=self.state())

    def invalidate(self, why: str) -> None:
        """The book is not to be trusted until the next snapshot."""
        if self.ready:
            self.ready = False
            self.pending = False
            self.gap(why)

    @property
    def begun(self) -> bool:
        """Whether there is a book to be trusted."""
        return self.ready and self._view() is not None

    def state(self) -> Any:
        """The levels; None while they are not to be trusted."""
        view = self._view()
        if not self.ready or view is None:
            return None
        bids, asks = (_pairs(side) for side in view.levels(self.depth))
        return {
            "bids": bids,
            "asks": asks,
            "checksum": checksum(bids, asks),
            "update_id": view.update_id,
            "at": _time(self.at),
        }

    def snapshot(self) -> Frame | None:
        """See `Topic.snapshot`."""
        # Conflated changes are in the view already: without this they would be told twice, and
        # the first time under a number that other readers know as the state before them.
        if self.pending and self.ready:
            self.flush()
        return super().snapshot()


def difference(old: dict[Decimal, Decimal], new: dict[Decimal, Decimal]) -> dict[Decimal, Decimal]:
    """What turns `old` levels into `new` ones; zero deletes.

    Example:
        >>> one, two, three = Decimal(1), Decimal(2), Decimal(3)
        >>> difference({one: one, two: two}, {two: three, three: one})
        {Decimal('2'): Decimal('3'), Decimal('3'): Decimal('1'), Decimal('1'): Decimal('0')}
    """
    changed = {price: quantity for price, quantity in new.items() if old.get(price) != quantity}
    changed.update((price, money.ZERO) for price in old if price not in new)
    return changed


def checksum(bids: Levels, asks: Levels) -> int:
    """CRC-32 over the ten best levels, bids then asks, as `price:quantity` joined by `|`.

    Args:
        bids: Best first, texts exactly as sent; likewise `asks`. Levels beyond ten are ignored.

    Example:
        >>> checksum([("100", "1.5")], [("100.1", "2")]) == zlib.crc32(b"100:1.5|100.1:2")
        True
    """
    top = [*bids[:CHECKSUM_LEVELS], *asks[:CHECKSUM_LEVELS]]
    return zlib.crc32("|".join([f"{price}:{quantity}" for price, quantity in top]).encode())


def _pairs(levels: Iterable[Level]) -> list[tuple[str, str]]:
    return [(money.text(level.price), money.text(level.quantity)) for level in levels]


def _texts(levels: Iterable[tuple[Decimal, Decimal]]) -> list[tuple[str, str]]:
    return [(money.text(price), money.text(quantity)) for price, quantity in levels]


def _time(at: datetime | None) -> str | None:
    return None if at is None else clock.stamp(at)
