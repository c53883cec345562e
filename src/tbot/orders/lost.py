"""Closing an order whose venue lost its memory: pure."""

from __future__ import annotations

from dataclasses import dataclass

from tbot.core.refusals import Refused
from tbot.journal.commands import Drafts, Priority, States
from tbot.orders.book import Orders
from tbot.orders.commands import OrderCommand
from tbot.orders.model import Order
from tbot.orders.reports import told


@dataclass(frozen=True, slots=True)
class CloseLostOrder(OrderCommand):
    """Somebody declares that an order went down with its venue.

    No venue can prove it any more, so it is nobody's guess but a declaration: the entry names who
    made it. What the order still held is released; what was filled of it stays.

    Attributes:
        reason: The declarer's words.
    """

    reason: str

    priority = Priority.REPORT

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Cancel it, unless it has ended."""
        if order.final:
            return Drafts()
        words = told(f"venue_reset: {self.reason}")
        return Drafts((self._changed(order, "order.canceled", state="canceled", reason=words),))

    def result(self, states: States) -> Order:
        """The order as it is now."""
        order = self._order(states)
        assert order is not None
        return order
