"""An order and its states: pure.

Entry points: `Order`, `State`, `TRANSITIONS`, `may_become`, `Fill`, `Position`, `bought`, `sold`.

Invariants:

1. `TRANSITIONS` lists every change of state that can happen; everything else is a bug.
2. A final state is never left. A fill that arrives for a final order is booked all the same: the
   venue's executions are facts; only the state stays.
3. An order is immutable; `Order.changed` makes the next version from an entry's `set`.
"""

from __future__ import annotations

import decimal
from collections.abc import Callable, Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.ids import venue_client_id
from tbot.venues.base import OrderType, Side, TimeInForce, VenueFill


class State(StrEnum):
    """FIX order states, and our own `unknown`."""

    PENDING_NEW = "pending_new"
    """Durable here; may have been sent."""
    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    PENDING_CANCEL = "pending_cancel"
    PENDING_REPLACE = "pending_replace"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"
    HELD = "held"
    """Waits for T-Bot itself to trigger it; the venue has not seen it."""
    UNKNOWN = "unknown"
    """Sent, and nobody has told what became of it. Funds stay held until the venue tells."""

    @property
    def final(self) -> bool:
        """Whether nothing more is to happen to an order in this state."""
        return self in FINAL


FINAL: Final = frozenset({State.FILLED, State.CANCELED, State.REJECTED, State.EXPIRED})
_S = State

TRANSITIONS: Final[Mapping[State, frozenset[State]]] = {
    _S.PENDING_NEW: frozenset(
        {
            _S.NEW,
            # A fill can overtake the acknowledgement.
            _S.PARTIALLY_FILLED,
            _S.FILLED,
            _S.PENDING_CANCEL,
            # Immediate-or-cancel orders end without ever having rested.
            _S.CANCELED,
            _S.EXPIRED,
            _S.REJECTED,
            _S.UNKNOWN,
        }
    ),
    _S.UNKNOWN: frozenset(
        {
            _S.NEW,
            _S.PARTIALLY_FILLED,
            _S.FILLED,
            # A cancel that the user asked for meanwhile becomes possible once the order is found.
            _S.PENDING_CANCEL,
            _S.CANCELED,
            _S.EXPIRED,
            # Only after the venue itself proved its absence: see `reconcile`.
            _S.REJECTED,
        }
    ),
    _S.NEW: frozenset(
        {
            _S.PARTIALLY_FILLED,
            _S.FILLED,
            _S.PENDING_CANCEL,
            _S.PENDING_REPLACE,
            _S.CANCELED,
            _S.EXPIRED,
            # Venues reject resting orders too (a delisting, a margin check that came late).
            _S.REJECTED,
        }
    ),
    _S.PARTIALLY_FILLED: frozenset(
        {_S.FILLED, _S.PENDING_CANCEL, _S.PENDING_REPLACE, _S.CANCELED, _S.EXPIRED, _S.REJECTED}
    ),
    _S.PENDING_CANCEL: frozenset(
        {
            _S.CANCELED,
            # The fill won the race against the cancel.
            _S.FILLED,
            _S.EXPIRED,
            _S.REJECTED,
            # The venue refused the cancel, and the order lives on.
            _S.NEW,
            _S.PARTIALLY_FILLED,
            # The cancel was asked for before the placement's outcome was lost.
            _S.UNKNOWN,
        }
    ),
    _S.PENDING_REPLACE: frozenset(
        {
            _S.NEW,
            _S.PARTIALLY_FILLED,
            _S.FILLED,
            _S.PENDING_CANCEL,
            _S.CANCELED,
            _S.EXPIRED,
            _S.REJECTED,
            _S.UNKNOWN,
        }
    ),
    _S.HELD: frozenset({_S.PENDING_NEW, _S.CANCELED, _S.REJECTED, _S.EXPIRED}),
    _S.FILLED: frozenset(),
    _S.CANCELED: frozenset(),
    _S.REJECTED: frozenset(),
    _S.EXPIRED: frozenset(),
}


def may_become(state: State, next_state: State) -> bool:
    """Whether the table allows this change; staying is always allowed.

    Example:
        >>> may_become(State.NEW, State.FILLED), may_become(State.FILLED, State.CANCELED)
        (True, False)
    """
    return state is next_state or next_state in TRANSITIONS[state]


# gc=False: open orders stay in memory by the hundred thousand and are part of no cycle; the garbage
# collector would stop everything for a fifth of a second to look through them.
class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One version of an order.

    Attributes:
        client_order_id: The user's own id; unique in the account for ever, never sent anywhere.
        parent_id: For an *external* order: the order that it turned out to belong to.
        quantity: In the base asset; None for a market order by `quote_amount`.
        reason: Why it was rejected, canceled or expired, or is unknown.
        fees: asset → sum of its fills' fees.
        held_amount: What of `held_asset` is still held for it.
        send_by: RFC 3339; it is never signed after this instant.
        trade_ids: Of the fills that are booked. Not written to the orders table: the fills
            table has them.
        seq: Sequence of the journal entry that made this version.
    """

    id: UUID
    account_id: UUID
    client_order_id: str | None
    parent_id: UUID | None
    venue: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    post_only: bool
    quantity: Decimal | None
    quote_amount: Decimal | None
    limit_price: Decimal | None
    state: State
    reason: str | None
    filled_quantity: Decimal
    filled_quote: Decimal
    fees: dict[str, str]
    held_asset: str
    held_amount: Decimal
    cancel_requested: bool
    venue_order_id: str | None
    send_by: str
    created_at: str
    updated_at: str
    seq: int
    trade_ids: frozenset[str] = frozenset()

    @property
    def final(self) -> bool:
        """Whether nothing more is to happen to it."""
        return self.state in FINAL

    def with_trade(self, trade_id: str) -> Order:
        """The same version, with one more trade known as booked."""
        return msgspec.structs.replace(self, trade_ids=self.trade_ids | {trade_id})

    @property
    def venue_client_id(self) -> str:
        """The client id that the venue knows it by (an external order: its parent's)."""
        return venue_client_id(self.parent_id or self.id)

    @property
    def average_price(self) -> Decimal | None:
        """What a unit cost on average, to 18 decimals; None before the first fill."""
        if not self.filled_quantity:
            return None
        return money.divide(
            self.filled_quote, self.filled_quantity, money.SCALE_MAX, decimal.ROUND_HALF_EVEN
        )

    def to_data(self) -> dict[str, Any]:
        """In JSON types, as `order.accepted` keeps it; `seq` and times belong to the entry."""
        text = money.text
        return {
            "id": str(self.id),
            "account_id": str(self.account_id),
            "client_order_id": self.client_order_id,
            "parent_id": None if self.parent_id is None else str(self.parent_id),
            "venue": self.venue,
            "symbol": self.symbol,
            "side": self.side,
            "type": self.type,
            "time_in_force": self.time_in_force,
            "post_only": self.post_only,
            "quantity": None if self.quantity is None else text(self.quantity),
            "quote_amount": None if self.quote_amount is None else text(self.quote_amount),
            "limit_price": None if self.limit_price is None else text(self.limit_price),
            "state": self.state,
            "reason": self.reason,
            "filled_quantity": text(self.filled_quantity),
            "filled_quote": text(self.filled_quote),
            "fees": self.fees,
            "held_asset": self.held_asset,
            "held_amount": text(self.held_amount),
            "cancel_requested": self.cancel_requested,
            "venue_order_id": self.venue_order_id,
            "send_by": self.send_by,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any], *, seq: int, at: str) -> Order:
        """The order that an `order.accepted` entry with this sequence and time made."""
        fields = {**data, "seq": seq, "created_at": at, "updated_at": at}
        return msgspec.convert(fields, cls)

    def accepted(self, *, seq: int, at: str) -> Order:
        """What `from_data` makes of this order's `to_data`, without the way there and back."""
        if self.seq == seq and self.created_at == at:
            return self
        return msgspec.structs.replace(self, seq=seq, created_at=at, updated_at=at)

    def changed(self, changes: Mapping[str, Any], *, seq: int, at: str) -> Order:
        """The next version: `changes` in JSON types, as an entry's `set` keeps them."""
        fields = {name: _read(name, value) for name, value in changes.items()}
        return msgspec.structs.replace(self, **fields, seq=seq, updated_at=at)


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "id": UUID,
    "account_id": UUID,
    "parent_id": UUID,
    "side": Side,
    "type": OrderType,
    "time_in_force": TimeInForce,
    "state": State,
    "quantity": Decimal,
    "quote_amount": Decimal,
    "limit_price": Decimal,
    "filled_quantity": Decimal,
    "filled_quote": Decimal,
    "held_amount": Decimal,
}


def _read(name: str, value: Any) -> Any:
    reader = _READERS.get(name)
    return value if reader is None or value is None else reader(value)


class Fill(msgspec.Struct, frozen=True, kw_only=True):
    """One execution of one order, as booked.

    Attributes:
        seq: Sequence of the journal entry that booked it.
    """

    order_id: UUID
    trade_id: str
    account_id: UUID
    seq: int
    symbol: str
    side: Side
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    at: str


def fill_data(fill: VenueFill, at: str) -> dict[str, Any]:
    """A venue's fill in JSON types, as `order.filled` keeps it."""
    return {
        "trade_id": fill.trade_id,
        "price": money.text(fill.price),
        "quantity": money.text(fill.quantity),
        "quote_quantity": money.text(fill.quote_quantity),
        "fee": money.text(fill.fee),
        "fee_asset": fill.fee_asset,
        "maker": fill.maker,
        "at": at,
    }


class Position(msgspec.Struct, frozen=True, kw_only=True):
    """What an account traded of one instrument and still has, at weighted-average cost.

    Only what was bought here counts: coins that were deposited have no known cost.

    Attributes:
        quantity: In the base asset, after fees taken in it.
        cost: What `quantity` cost in the quote asset, fees in it included.
        realized_pnl: In the quote asset, fees in it deducted.
    """

    symbol: str
    quantity: Decimal = money.ZERO
    cost: Decimal = money.ZERO
    realized_pnl: Decimal = money.ZERO

    @property
    def average_cost(self) -> Decimal | None:
        """Cost of a unit to 18 decimals; None when there is none."""
        if not self.quantity:
            return None
        return money.divide(self.cost, self.quantity, money.SCALE_MAX, decimal.ROUND_HALF_EVEN)


def bought(position: Position, quantity: Decimal, cost: Decimal) -> Position:
    """The position after a buy.

    Args:
        quantity: Received, fee in the base asset already deducted (>= 0).
        cost: Paid, fee in the quote asset included (>= 0).

    Example:
        >>> bought(Position(symbol="BTC-USDT"), Decimal(2), Decimal(100)).average_cost
        Decimal('50.000000000000000000')
    """
    return msgspec.structs.replace(
        position, quantity=position.quantity + quantity, cost=position.cost + cost
    )


def sold(position: Position, quantity: Decimal, proceeds: Decimal) -> Position:
    """The position after a sale.

    The cost of what was sold leaves at the average, rounded half-even to 18 decimals; a sale of
    everything takes all of the cost with it, so nothing is left behind by rounding. What is sold
    beyond the position was never bought here; it is taken to have cost what it brought in.

    Args:
        quantity: Given, fee in the base asset included (> 0).
        proceeds: Received, fee in the quote asset already deducted.

    Example:
        >>> held = Position(symbol="BTC-USDT", quantity=Decimal(2), cost=Decimal(100))
        >>> sold(held, Decimal(1), Decimal(60)).realized_pnl
        Decimal('10.000000000000000000')
    """
    own = min(quantity, position.quantity)
    if own == position.quantity:
        relieved = position.cost
    else:
        relieved = money.divide(
            position.cost * own, position.quantity, money.SCALE_MAX, decimal.ROUND_HALF_EVEN
        )
    own_proceeds = (
        proceeds
        if own == quantity
        else money.divide(proceeds * own, quantity, money.SCALE_MAX, decimal.ROUND_HALF_EVEN)
    )
    return msgspec.structs.replace(
        position,
        quantity=position.quantity - own,
        cost=position.cost - relieved,
        realized_pnl=position.realized_pnl + own_proceeds - relieved,
    )
