"""What clients subscribe to: numbered frames in a bounded ring. Pure: no I/O, no clock, no task.

Entry points: `Frame`, `Topic` and its kinds `LatestTopic`, `TradesTopic`, `BookTopic`,
`checksum`.

Invariants:

1. A frame is encoded once; every subscriber of its topic gets the same bytes.
2. Sequence numbers of a topic only grow. In contiguous topics (trades, book) every number is the
   number of exactly one frame; in latest-value topics it counts updates, so that a jump tells how
   many were conflated.
3. A ring holds at most `ring_bytes_max` (and always its newest frame). What a reader behind the
   ring is owed is decided by the topic's `slow` policy, never by buffering for that reader.
4. Applying a book topic's deltas in order to any of its snapshots gives the later ones.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Protocol

import msgspec

from tbot.core import clock, money
from tbot.venues.base import Level

CHECKSUM_LEVELS: Final = 10
"""Levels of each side that a book's checksum covers."""

type Levels = Sequence[tuple[str, str]]
"""Price and quantity as text, best first."""

encode = msgspec.json.Encoder().encode


class Slow(StrEnum):
    """What happens to a subscription whose reader fell out of the topic's ring."""

    LATEST = "latest"
    """Everything but the newest frame is skipped."""
    SNAPSHOT = "snapshot"
    """Missed deltas are dropped; a fresh snapshot follows."""
    GAP = "gap"
    """A `gap` names the missed numbers; the ring's newest half follows."""
    CLOSE = "close"
    """Nothing is ever skipped: the connection is closed, and resumes."""


class Frame:
    """One encoded message of a topic, shared by all its readers."""

    __slots__ = ("_framed", "_text", "payload", "seq")

    def __init__(self, seq: int, payload: bytes) -> None:
        self.seq = seq
        self.payload = payload
        self._text: str | None = None
        self._framed: bytes | None = None

    @property
    def text(self) -> str:
        """The payload as text; decoded once."""
        if self._text is None:
            self._text = self.payload.decode()
        return self._text

    @property
    def framed(self) -> bytes:
        """The payload as an unfragmented, unmasked WebSocket text frame (RFC 6455, 5.2)."""
        if self._framed is None:
            size_bytes = len(self.payload)
            if size_bytes < 126:
                header = bytes((0x81, size_bytes))
            elif size_bytes < 1 << 16:
                header = b"\x81\x7e" + size_bytes.to_bytes(2, "big")
            else:
                header = b"\x81\x7f" + size_bytes.to_bytes(8, "big")
            self._framed = header + self.payload
        return self._framed


def control(message: dict[str, Any]) -> Frame:
    """A frame for one client: an answer, an error, a notice."""
    return Frame(0, encode(message))


class Topic:
    """A channel with its parameters: what one server-wide channel number stands for.

    Args:
        number: The number that frames carry as `ch`.
        channel: Name of the channel.
        parameters: What a subscriber asked for, echoed in the answer.
        slow: What readers get who fall out of the ring.
        ring_bytes_max: Bound of the ring.
    """

    __slots__ = (
        "channel",
        "frames",
        "interval_ms",
        "lost_through",
        "number",
        "parameters",
        "pending",
        "ring_bytes_max",
        "seq",
        "size_bytes",
        "slow",
        "snapshot_frame",
    )

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
    ) -> None:
        self.number = number
        self.channel = channel
        self.parameters = parameters
        self.slow = slow
        self.ring_bytes_max = ring_bytes_max
        self.interval_ms: int = parameters.get("interval_ms", 0)
        self.seq = 0
        self.frames: deque[Frame] = deque()
        self.size_bytes = 0
        self.lost_through = 0
        """The number of the newest frame that left the ring."""
        self.pending = False
        """Whether something waits for the end of the conflation interval."""
        self.snapshot_frame: Frame | None = None

    def push(self, op: str, **fields: Any) -> Frame:
        """Encode a message under the current sequence number and keep it in the ring."""
        frame = Frame(self.seq, encode({"op": op, "ch": self.number, "seq": self.seq, **fields}))
        self.frames.append(frame)
        self.size_bytes += len(frame.payload)
        while self.size_bytes > self.ring_bytes_max and len(self.frames) > 1:
            lost = self.frames.popleft()
            self.size_bytes -= len(lost.payload)
            self.lost_through = lost.seq
        return frame

    def holds_after(self, seq: int) -> bool:
        """Whether every frame after `seq` is still in the ring (and `seq` is not in the future)."""
        return self.lost_through <= seq <= self.seq

    def after(self, seq: int) -> list[Frame]:
        """The ring's frames that are newer than `seq`, oldest first."""
        newer: list[Frame] = []
        for frame in reversed(self.frames):
            if frame.seq <= seq:
                break
            newer.append(frame)
        newer.reverse()
        return newer

    def newest_half(self) -> list[Frame]:
        """The newest frames that fill at most half of the ring's bound, at least one if any."""
        kept: list[Frame] = []
        size_bytes = 0
        for frame in reversed(self.frames):
            size_bytes += len(frame.payload)
            if kept and size_bytes > self.ring_bytes_max // 2:
                break
            kept.append(frame)
        kept.reverse()
        return kept

    def snapshot(self) -> Frame | None:
        """The state after `seq` as one frame, encoded once per `seq`; None while there is none."""
        found = self.snapshot_frame
        if found is not None and found.seq == self.seq:
            return found
        data = self.state()
        if data is None:
            return None
        message = {"op": "snap", "ch": self.number, "seq": self.seq, "data": data}
        self.snapshot_frame = Frame(self.seq, encode(message))
        return self.snapshot_frame

    def state(self) -> Any:
        """What a new subscriber is told; None while there is nothing to tell."""
        raise NotImplementedError

    def flush(self) -> bool:
        """Publish what was conflated since the last call; False when there was nothing."""
        raise NotImplementedError

    def gap(self, why: str, **fields: Any) -> None:
        """Tell everybody that something was missed upstream; takes one number of its own."""
        self.seq += 1
        self.push("gap", **{"from": self.seq, "to": self.seq, "why": why}, **fields)


class LatestTopic(Topic):
    """A value of which only the newest matters: best prices, ticker."""

    __slots__ = ("latest",)

    def __init__(
        self, number: int, channel: str, parameters: dict[str, Any], slow: Slow, ring_bytes_max: int
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.latest: dict[str, Any] | None = None

    def update(self, data: dict[str, Any]) -> None:
        """Take a new value; published at once, or by `flush` when there is an interval."""
        self.seq += 1
        self.latest = data
        self.pending = True
        if self.interval_ms == 0:
            self.flush()

    def flush(self) -> bool:
        if not self.pending:
            return False
        self.pending = False
        self.push("snap", data=self.latest)
        return True

    def state(self) -> Any:
        return self.latest


class TradesTopic(Topic):
    """Every trade, one frame each, numbers without gaps."""

    __slots__ = ("recent",)

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
        recent_max: int = 20,
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.recent: deque[dict[str, Any]] = deque(maxlen=recent_max)
        """The newest trades, for the snapshot; fewer than ever happened."""

    def update(self, data: dict[str, Any]) -> None:
        """Publish one trade."""
        self.seq += 1
        self.recent.append(data)
        self.push("delta", prev=self.seq - 1, data=data)

    def flush(self) -> bool:
        return False

    def state(self) -> Any:
        return {"trades": list(self.recent)}


class BookView(Protocol):
    """An order book to read from: the feed's, which changes under our feet between events."""

    @property
    def update_id(self) -> int: ...

    def levels(self, depth: int) -> tuple[Iterable[Level], Iterable[Level]]:
        """Best `depth` bids and asks, best first; `depth` 0 stands for all."""


class BookTopic(Topic):
    """An order book to a depth: snapshots and deltas with a checksum of the top.

    With a depth it publishes what changed in its window, so levels that move into it are told
    too. Without one (depth 0) changes pass through as the venue sent them.
    """

    __slots__ = ("_changed", "_view", "depth", "_window", "ready", "at")

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

    def state(self) -> Any:
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
