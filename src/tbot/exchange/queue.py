"""Users' resting orders of one side, and who is served when something trades against them. Pure.

The queue rule. Between users: price, then time. Between users and the market's own quantity at
the same price: an order that comes to rest stands behind the market quantity that is there at that
moment (`Order.ahead`). Whatever trades at the price serves that quantity first; when the market's
level shrinks below it, the rest of `ahead` is gone too. Orders at prices that a trade went
*through* are served before it reaches its own price.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

from tbot.core.money import ZERO
from tbot.exchange.ladder import Ladder
from tbot.exchange.model import Order, Side


class Match(NamedTuple):
    """A piece of an execution; `maker` is None when the market's own quantity gave it."""

    price: Decimal
    quantity: Decimal
    maker: Order | None


class Resting:
    """Open orders of one side of one symbol; `totals` is their ladder."""

    __slots__ = ("orders", "totals")

    def __init__(self, is_bid: bool) -> None:
        self.totals = Ladder(is_bid)
        self.orders: dict[Decimal, dict[int, Order]] = {}

    def add(self, order: Order) -> None:
        """Put an order at the end of its price's queue."""
        self.orders.setdefault(order.price, {})[order.id] = order
        self.totals.set(order.price, self.totals.get(order.price) + order.remaining)

    def reduce(self, order: Order, quantity: Decimal) -> None:
        """Take `quantity` of the order off the ladder."""
        self.totals.set(order.price, self.totals.get(order.price) - quantity)

    def remove(self, order: Order) -> None:
        """Drop an order whose remaining quantity has been taken off already."""
        queue = self.orders[order.price]
        del queue[order.id]
        if not queue:
            del self.orders[order.price]

    def at(self, price: Decimal) -> Iterator[Order]:
        """The orders at a price, oldest first."""
        return iter(self.orders.get(price, {}).values())

    def clip(self, price: Decimal, quantity: Decimal) -> None:
        """The market's level is now `quantity`: no order there has more than that ahead of it."""
        for order in self.orders.get(price, {}).values():
            order.ahead = min(order.ahead, quantity)

    def pass_by(self, price: Decimal, quantity: Decimal) -> None:
        """Market quantity at a price was served: everyone there moves up by it."""
        for order in self.orders.get(price, {}).values():
            order.ahead = max(ZERO, order.ahead - quantity)


class Budget:
    """How much an aggressor may still take: base quantity, or a quote amount in whole steps."""

    __slots__ = ("_quote", "_step", "quantity")

    def __init__(self, quantity: Decimal, quote: Decimal = ZERO, step: Decimal = ZERO) -> None:
        self.quantity = quantity
        self._quote = quote
        self._step = step

    def room(self, price: Decimal) -> Decimal:
        """The most it may take at a price."""
        if not self._step:
            return self.quantity
        return self._quote // (price * self._step) * self._step

    def spend(self, price: Decimal, quantity: Decimal) -> None:
        """Account for a piece taken."""
        if self._step:
            self._quote -= price * quantity
        else:
            self.quantity -= quantity


def serve(
    price: Decimal, market: Decimal, orders: Iterator[Order], budget: Budget
) -> Iterator[Match]:
    """Pieces of an execution at one price, by the queue rule, until the budget is spent.

    Args:
        market: The market's own quantity at the price.
        orders: Users' orders there, oldest first.
    """
    passed = ZERO
    for order in orders:
        first = min(order.ahead, market) - passed
        if first > 0:
            piece = min(first, budget.room(price))
            if piece:
                budget.spend(price, piece)
                passed += piece
                yield Match(price, piece, None)
        piece = min(order.remaining, budget.room(price))
        if not piece:
            return
        budget.spend(price, piece)
        yield Match(price, piece, order)
    piece = min(market - passed, budget.room(price))
    if piece > 0:
        budget.spend(price, piece)
        yield Match(price, piece, None)


def _within(price: Decimal, limit: Decimal | None, is_bid: bool) -> bool:
    if limit is None:
        return True
    return price >= limit if is_bid else price <= limit


def sweep(market: Ladder, users: Resting, limit: Decimal | None, budget: Budget) -> list[Match]:
    """What an aggressor takes from one side: best price first, at each price by the queue rule.

    Args:
        market: The market's live ladder of the side that is taken from.
        users: The users' orders on the same side.
        limit: Worst price to accept, None for a market order.
        budget: Spent in place.

    Returns:
        The matches in order. Nothing is changed but the budget.
    """
    is_bid = market.is_bid
    ours, theirs = users.totals.best_first(), market.best_first()
    mine, other = next(ours, None), next(theirs, None)
    matches: list[Match] = []
    while mine is not None or other is not None:
        if mine is None:
            price = other
        elif other is None:
            price = mine
        else:
            price = max(mine, other) if is_bid else min(mine, other)
        assert price is not None
        if not _within(price, limit, is_bid) or not budget.room(price):
            break
        matches.extend(serve(price, market.get(price), users.at(price), budget))
        if mine == price:
            mine = next(ours, None)
        if other == price:
            other = next(theirs, None)
    return matches


def touched(users: Resting, side: Side, price: Decimal) -> list[Decimal]:
    """Prices of resting orders that `price`, coming from the other side, reaches, best first.

    Args:
        side: The side of the resting orders.
    """
    reached: list[Decimal] = []
    for own in users.totals.best_first():
        if not _within(own, price, side is Side.BUY):
            break
        reached.append(own)
    return reached
