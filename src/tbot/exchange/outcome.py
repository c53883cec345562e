"""What is asked of the engine, and what it did. Pure data."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from tbot.exchange.model import Effect, Filled, Order, OrderType, Side, TimeInForce


class NewOrder(NamedTuple):
    """An order as asked for; zero stands for a price or quantity that was not given."""

    account: str
    symbol: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    client_id: str


class Report(NamedTuple):
    """One step of one order, as an execution report tells it.

    Attributes:
        order: A copy as of that step.
        kind: `NEW`, `TRADE`, `CANCELED` or `EXPIRED`.
        client_id: The cancel request's own id, for `CANCELED`.
    """

    order: Order
    kind: str
    fill: Filled | None
    client_id: str


class Print(NamedTuple):
    """A public trade that a user caused."""

    id: int
    price: Decimal
    quantity: Decimal
    buyer_is_maker: bool


@dataclass(slots=True)
class Outcome:
    """What one command or event did, in order.

    Attributes:
        moved: Book levels whose published quantity may have changed.
        touched: Assets of each account whose balance changed.
        order: The order that a command placed or canceled, as it is now.
    """

    symbol: str = ""
    effects: list[Effect] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    prints: list[Print] = field(default_factory=list)
    moved: set[tuple[Side, Decimal]] = field(default_factory=set)
    touched: dict[str, set[str]] = field(default_factory=dict)
    order: Order | None = None

    def touch(self, account: str, *assets: str) -> None:
        """Remember that balances of an account changed."""
        self.touched.setdefault(account, set()).update(assets)
