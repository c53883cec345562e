"""What a market source plays: snapshots, depth diffs, best prices and trades.

Each event may carry `frame`, the bytes of its Binance combined-stream message, ready to be sent.
While no user's order touches the symbol, clients get exactly those bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import msgspec

type Levels = Sequence[tuple[Decimal, Decimal]]
"""(price, quantity) pairs; in a diff a quantity is absolute and zero deletes the level."""


class Snapshot(msgspec.Struct, frozen=True, gc=False):
    """A whole book; diffs up to `last_id` are already in it."""

    symbol: str
    last_id: int
    bids: Levels
    asks: Levels


class Depth(msgspec.Struct, frozen=True, gc=False):
    """Changed levels for the update ids `first_id`..`last_id`."""

    symbol: str
    first_id: int
    last_id: int
    bids: Levels
    asks: Levels
    event_ms: int
    frame: bytes = b""


class Best(msgspec.Struct, frozen=True, gc=False):
    """Best bid and offer as of one update id."""

    symbol: str
    update_id: int
    bid: Decimal
    bid_quantity: Decimal
    ask: Decimal
    ask_quantity: Decimal
    frame: bytes = b""


class Trade(msgspec.Struct, frozen=True, gc=False):
    """A trade between strangers. `buyer_is_maker`: the seller was the aggressor."""

    symbol: str
    id: int
    price: Decimal
    quantity: Decimal
    buyer_is_maker: bool
    time_ms: int
    event_ms: int
    frame: bytes = b""


type MarketEvent = Snapshot | Depth | Best | Trade


class Timed(msgspec.Struct, frozen=True, gc=False):
    """An event with its place on the source's own time line.

    Attributes:
        at_ns: Source time: the recorder's receive time, or synthetic time. Never decreases.
        index: How many events came before it; the position that a restart continues from.
    """

    at_ns: int
    index: int
    event: MarketEvent
