"""An account's orders and positions as part of its state: pure.

Entry points: `Orders` (the part), `apply`, `settle`.

What a fill does to holds, balances and position is decided here once (`settle`) and stored in the
entry; `apply` only copies it from there.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from tbot.core import clock, money
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState, Posting
from tbot.ledger.entries import AVAILABLE, HELD, move, venue_holder
from tbot.orders.model import (
    Fill,
    Order,
    Position,
    State,
    bought,
    fill_data,
    sold,
)
from tbot.venues.base import OrderType, Side, VenueFill


class Orders:
    """An account's open orders and positions, and the final orders that a batch asked for.

    Attributes:
        open: Every order that is not final, by id.
        recalled: Final orders that were read for this batch or became final in it.
        created: The first versions of those that are not in the table yet.
        new_fills: Booked since the tables were last written.
    """

    __slots__ = (
        "_client_ids",
        "changed",
        "created",
        "new_fills",
        "open",
        "positions",
        "positions_changed",
        "recalled",
    )

    def __init__(self) -> None:
        self.open: dict[UUID, Order] = {}
        self.recalled: dict[UUID, Order] = {}
        self._client_ids: dict[str, UUID] = {}
        self.positions: dict[str, Position] = {}
        self.created: dict[UUID, Order] = {}
        self.changed: set[UUID] = set()
        self.positions_changed: set[str] = set()
        self.new_fills: list[Fill] = []

    def find(self, order_id: UUID) -> Order | None:
        """An open or recalled order."""
        return self.open.get(order_id) or self.recalled.get(order_id)

    def find_client(self, client_order_id: str) -> Order | None:
        """The order with the user's own id; final ones only when they were recalled."""
        order_id = self._client_ids.get(client_order_id)
        return None if order_id is None else self.find(order_id)

    def position(self, symbol: str) -> Position:
        """What is held of an instrument; an empty position when nothing is."""
        return self.positions.get(symbol) or Position(symbol=symbol)

    def put(self, order: Order) -> None:
        """Take in an order that was read from the tables, or its next version."""
        if order.final:
            self.open.pop(order.id, None)
            self.recalled[order.id] = order
        else:
            self.open[order.id] = order
        if order.client_order_id is not None:
            self._client_ids[order.client_order_id] = order.id

    def unfinished(self) -> str | None:
        """What keeps the account from being closed."""
        return f"{len(self.open)} open orders" if self.open else None

    def forget(self) -> None:
        """Drop what only one batch needed; the tables are up to date."""
        if self.recalled:
            for order in self.recalled.values():
                if order.client_order_id is not None:
                    self._client_ids.pop(order.client_order_id, None)
            self.recalled.clear()
        self.created.clear()
        self.changed.clear()
        self.positions_changed.clear()
        self.new_fills.clear()


def apply(state: AccountState, entry: Entry) -> None:
    """Carry out an `order.*` entry's effects on the account's orders and positions."""
    orders = state.part(Orders)
    data = entry.data
    if "accepted" in data:
        made: Order | None = state.made
        if made is None:
            order = Order.from_data(data["accepted"], seq=entry.seq, at=entry.at)
        else:
            order = made.accepted(seq=entry.seq, at=entry.at)
        orders.created[order.id] = order
        orders.put(order)
        return
    order_id = UUID(data["order"])
    found = orders.find(order_id)
    assert found is not None, f"entry {entry.seq} changes order {order_id}, which is not there"
    order = found.changed(data["set"], seq=entry.seq, at=entry.at)
    if "fill" in data:
        fill = data["fill"]
        orders.new_fills.append(
            Fill(
                order_id=order_id,
                trade_id=fill["trade_id"],
                account_id=state.account_id,
                seq=entry.seq,
                symbol=order.symbol,
                side=order.side,
                price=Decimal(fill["price"]),
                quantity=Decimal(fill["quantity"]),
                quote_quantity=Decimal(fill["quote_quantity"]),
                fee=Decimal(fill["fee"]),
                fee_asset=fill["fee_asset"],
                maker=fill["maker"],
                at=fill["at"],
            )
        )
        order = order.with_trade(fill["trade_id"])
        position = data["position"]
        orders.positions[order.symbol] = Position(
            symbol=order.symbol,
            quantity=Decimal(position["quantity"]),
            cost=Decimal(position["cost"]),
            realized_pnl=Decimal(position["realized_pnl"]),
        )
        orders.positions_changed.add(order.symbol)
    orders.put(order)
    if order_id not in orders.created:
        orders.changed.add(order_id)


@dataclass(frozen=True, slots=True)
class Settlement:
    """What one fill does: the order's changes, the position after it, and the postings."""

    changes: dict[str, Any]
    position: Position
    postings: tuple[Posting, ...]


def base_and_quote(symbol: str) -> tuple[str, str]:
    """The two assets of a symbol.

    Example:
        >>> base_and_quote("BTC-USDT")
        ('BTC', 'USDT')
    """
    base, _, quote = symbol.partition("-")
    return base, quote


def settle(order: Order, position: Position, fill: VenueFill, state: State) -> Settlement:
    """Book one fill.

    What the order pays comes from its hold as far as that reaches and else from what is
    available, which may then fall below zero: the venue has executed it. A limit order's hold
    shrinks to what its rest can still cost; a final order's is released.

    Args:
        state: What the order is after this fill.
    """
    base, quote = base_and_quote(order.symbol)
    venue = venue_holder(order.venue)
    filled = order.filled_quantity + fill.quantity
    if order.side is Side.BUY:
        paid_asset, paid, got_asset, got = quote, fill.quote_quantity, base, fill.quantity
        position = bought(
            position,
            got - (fill.fee if fill.fee_asset == base else money.ZERO),
            paid + (fill.fee if fill.fee_asset == quote else money.ZERO),
        )
    else:
        paid_asset, paid, got_asset, got = base, fill.quantity, quote, fill.quote_quantity
        position = sold(
            position,
            paid + (fill.fee if fill.fee_asset == base else money.ZERO),
            got - (fill.fee if fill.fee_asset == quote else money.ZERO),
        )
    from_hold = min(order.held_amount, paid) if order.held_asset == paid_asset else money.ZERO
    held = order.held_amount - from_hold
    release = held - (money.ZERO if state.final else _needed(order, filled, held))
    postings = (
        *move(paid_asset, from_hold, HELD, venue),
        *move(paid_asset, paid - from_hold, AVAILABLE, venue),
        *move(got_asset, got, venue, AVAILABLE),
        *move(fill.fee_asset, fill.fee, AVAILABLE, venue),
        *move(order.held_asset, release, HELD, AVAILABLE),
    )
    fees = dict(order.fees)
    fees[fill.fee_asset] = money.text(Decimal(fees.get(fill.fee_asset, "0")) + fill.fee)
    changes = {
        "state": state.value,
        "filled_quantity": money.text(filled),
        "filled_quote": money.text(order.filled_quote + fill.quote_quantity),
        "fees": fees,
        "held_amount": money.text(held - release),
    }
    return Settlement(changes, position, merged(postings))


def _needed(order: Order, filled: Decimal, held: Decimal) -> Decimal:
    """What of the hold the rest of a live order may still take."""
    if order.type is OrderType.MARKET or order.quantity is None or order.limit_price is None:
        return held
    rest = max(money.ZERO, order.quantity - filled)
    if order.side is Side.SELL:
        return min(held, rest)
    scale = max(money.scale_of(held), money.scale_of(order.held_amount))
    return min(held, money.quantize(rest * order.limit_price, scale, decimal.ROUND_UP))


def merged(postings: Iterable[Posting]) -> tuple[Posting, ...]:
    """The postings with those of one holder and asset added up; zeros are left out."""
    sums: dict[tuple[str, str], Decimal] = {}
    for posting in postings:
        key = posting.holder, posting.asset
        sums[key] = sums.get(key, money.ZERO) + posting.amount
    return tuple(
        Posting(holder, asset, amount) for (holder, asset), amount in sums.items() if amount
    )


def settlement_data(order: Order, fill: VenueFill, settlement: Settlement) -> dict[str, Any]:
    """A settlement in JSON types, as an `order.filled` entry keeps it."""
    position = settlement.position
    return {
        "order": str(order.id),
        "fill": fill_data(fill, clock.stamp(fill.at)),
        "set": settlement.changes,
        "position": {
            "quantity": money.text(position.quantity),
            "cost": money.text(position.cost),
            "realized_pnl": money.text(position.realized_pnl),
        },
    }
