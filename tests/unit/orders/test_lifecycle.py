"""Orders through every order of events that a venue can think of, without any I/O.

A random venue executes random orders and tells of it late, twice, out of order and in part. However
it does, the account's postings balance, holds match the open orders, final states stay, and
replaying the journal gives the same state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from tbot.boot import projections
from tbot.core import clock, money
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.journal import chain
from tbot.journal.batch import Batch
from tbot.journal.commands import GATEWAY, SYSTEM, AccountState, Context
from tbot.ledger.entries import Ledger, Limits, OpenAccount
from tbot.market.book import Reference
from tbot.orders.book import Orders
from tbot.orders.commands import PlaceOrder, RequestCancel
from tbot.orders.reports import (
    AdoptOrder,
    Applied,
    ApplyReport,
    KeepOrder,
    MarkUnknown,
    RejectOrder,
)
from tbot.orders.rules import OrderRequest
from tbot.venues.base import (
    Instrument,
    OrderReport,
    OrderType,
    Side,
    TimeInForce,
    VenueFill,
    VenueStatus,
)

ACCOUNT = UUID(int=1)
PROJECTIONS = projections()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(
    max_order_notional=Decimal(100_000), max_open_orders=50, price_collar=Decimal("0.05")
)
INSTRUMENT = Instrument(
    venue="paper",
    symbol="BTC-USDT",
    venue_symbol="BTCUSDT",
    base="BTC",
    quote="USDT",
    base_scale=8,
    quote_scale=8,
    tick=Decimal("0.01"),
    price_min=Decimal("0.01"),
    price_max=Decimal(1_000_000),
    step=Decimal("0.001"),
    quantity_min=Decimal("0.001"),
    quantity_max=Decimal(9000),
    market_step=Decimal(0),
    market_quantity_max=Decimal(0),
    notional_min=Decimal(1),
    notional_max=None,
    trading=True,
)


@dataclass
class VenueOrder:
    """The truth about an order at the random venue."""

    order_id: UUID
    side: Side
    price: Decimal
    quantity: Decimal
    landed: bool = False
    status: VenueStatus = VenueStatus.NEW
    fills: list[VenueFill] = field(default_factory=list)

    @property
    def executed(self) -> Decimal:
        return sum((f.quantity for f in self.fills), money.ZERO)

    def report(self, fills: list[VenueFill] | None = None) -> OrderReport:
        return OrderReport(
            client_id="",
            venue_symbol="BTCUSDT",
            venue_order_id=str(self.order_id),
            status=self.status,
            executed_quantity=self.executed,
            executed_quote=money.ZERO,
            updated_at=NOW,
            fills=tuple(self.fills if fills is None else fills),
        )


class Account(RuleBasedStateMachine):
    """One account, one venue, and whatever can happen between them."""

    orders = Bundle("orders")
    reports = Bundle("reports")

    def __init__(self) -> None:
        super().__init__()
        self.state = AccountState(ACCOUNT, 0, chain.genesis(ACCOUNT), NOW)
        self.journal: list[Any] = []
        self.counters: dict[tuple[str, str], Decimal] = {}
        self.venue: dict[UUID, VenueOrder] = {}
        self.final: dict[UUID, Any] = {}
        self.trades = 0
        deposits = {"USDT": Decimal(1000), "BTC": Decimal(5)}
        self.run(
            OpenAccount(new_id(), SYSTEM, ACCOUNT, UUID(int=2), "a", "paper", LIMITS, deposits)
        )

    def run(self, command: Any) -> Any:
        pending: Any = SimpleNamespace(command=command, once=None)
        batch = Batch([pending], states={ACCOUNT: self.state})
        batch.decide(Context(NOW, {}), PROJECTIONS, 10.0)
        self.journal += [(e.seq, e.body, e.hash) for e in batch.entries]
        for key, amount in batch.counters.items():
            self.counters[key] = self.counters.get(key, money.ZERO) + amount
        outcome: Any = batch.outcomes[0][1]
        return outcome if isinstance(outcome, Refused) else outcome.result

    @rule(
        target=orders,
        side=st.sampled_from(Side),
        price=st.integers(90_00, 110_00).map(lambda n: Decimal(n) / 100),
        quantity=st.integers(20, 3000).map(lambda n: Decimal(n) / 1000),
    )
    def place(self, side: Side, price: Decimal, quantity: Decimal) -> Any:
        request = OrderRequest(
            "BTC-USDT", side, OrderType.LIMIT, TimeInForce.GTC, quantity, None, price
        )
        order_id = new_id()
        market = Reference("BTC-USDT", Decimal(100), Decimal(100), None, clock.boot_s())
        outcome = self.run(
            PlaceOrder(new_id(), SYSTEM, ACCOUNT, order_id, request, INSTRUMENT, market, 5.0)
        )
        if isinstance(outcome, Refused):
            return multiple()
        self.venue[order_id] = VenueOrder(order_id, side, price, quantity)
        return order_id

    @rule(target=reports, order=orders, part=st.integers(1, 10), better=st.integers(0, 300))
    def execute(self, order: UUID, part: int, better: int) -> Any:
        """The venue fills a part of what is left; its report may be delivered later, or never."""
        truth = self.venue[order]
        truth.landed = True
        if truth.status not in (VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED):
            return order, truth.report()
        left = truth.quantity - truth.executed
        quantity = (
            left if part == 10 else money.floor_to(left * part / 10, Decimal("0.001")) or left
        )
        gain = Decimal(better) / 100
        price = truth.price - gain if truth.side is Side.BUY else truth.price + gain
        self.trades += 1
        received = quantity if truth.side is Side.BUY else price * quantity
        fill = VenueFill(
            str(self.trades),
            price,
            quantity,
            price * quantity,
            received / 1000,
            "BTC" if truth.side is Side.BUY else "USDT",
            False,
            NOW,
        )
        truth.fills.append(fill)
        done = truth.executed == truth.quantity
        truth.status = VenueStatus.FILLED if done else VenueStatus.PARTIALLY_FILLED
        return order, truth.report([fill])

    @rule(target=reports, order=orders)
    def acknowledge(self, order: UUID) -> Any:
        self.venue[order].landed = True
        return order, self.venue[order].report()

    @rule(target=reports, order=orders, how=st.sampled_from(["canceled", "expired"]))
    def end(self, order: UUID, how: str) -> Any:
        truth = self.venue[order]
        if truth.status in (VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED):
            truth.landed = True
            truth.status = VenueStatus(how)
        return order, truth.report([])

    @rule(report=reports)
    def deliver(self, report: Any) -> None:
        order, message = report
        if self.find(order).reason and "never_landed" in self.find(order).reason:
            return
        self.run(ApplyReport(new_id(), GATEWAY, ACCOUNT, order, message))

    @rule(order=orders)
    def sweep(self, order: UUID) -> None:
        """The gateway asks, and gets the whole truth."""
        truth = self.venue[order]
        if not truth.landed or "never_landed" in (self.find(order).reason or ""):
            return
        outcome = self.run(ApplyReport(new_id(), GATEWAY, ACCOUNT, order, truth.report()))
        assert isinstance(outcome, Applied)
        assert not outcome.fills_missing
        assert outcome.order.filled_quantity == truth.executed
        ended = truth.status not in (VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED)
        assert outcome.order.final is ended

    @rule(order=orders)
    def lose_the_answer(self, order: UUID) -> None:
        self.run(MarkUnknown(new_id(), GATEWAY, ACCOUNT, order, "no answer"))

    @rule(order=orders)
    def cancel(self, order: UUID) -> None:
        self.run(RequestCancel(new_id(), SYSTEM, ACCOUNT, order))

    @rule(order=orders)
    def refuse_the_cancel(self, order: UUID) -> None:
        self.run(KeepOrder(new_id(), GATEWAY, ACCOUNT, order, "too late"))

    @rule(order=orders)
    def prove_absence(self, order: UUID) -> None:
        if not self.venue[order].landed:
            self.run(RejectOrder(new_id(), GATEWAY, ACCOUNT, order, "never_landed", ""))

    @rule(order=orders)
    def land_late(self, order: UUID) -> None:
        """What was proven absent turns up after all."""
        if "never_landed" not in (self.find(order).reason or "") or self.venue[order].landed:
            return
        external = new_id()
        self.run(AdoptOrder(new_id(), GATEWAY, ACCOUNT, external, order, "99"))
        truth = self.venue[order]
        truth.landed = True
        self.execute_all(truth)
        outcome = self.run(ApplyReport(new_id(), GATEWAY, ACCOUNT, external, truth.report()))
        assert outcome.order.final
        assert outcome.order.parent_id == order

    def execute_all(self, truth: VenueOrder) -> None:
        self.trades += 1
        price, quantity = truth.price, truth.quantity
        buying = truth.side is Side.BUY
        fee = (quantity if buying else price * quantity) / 1000
        truth.fills.append(
            VenueFill(
                str(self.trades),
                price,
                quantity,
                price * quantity,
                fee,
                "BTC" if buying else "USDT",
                True,
                NOW,
            )
        )
        truth.status = VenueStatus.FILLED

    def find(self, order: UUID) -> Any:
        found = self.state.part(Orders).find(order)
        assert found is not None
        return found

    @invariant()
    def holds_are_those_of_open_orders(self) -> None:
        held: dict[str, Decimal] = {}
        for order in self.state.part(Orders).open.values():
            held[order.held_asset] = held.get(order.held_asset, money.ZERO) + order.held_amount
        for asset, balance in self.state.part(Ledger).balances.items():
            assert balance.held == held.get(asset, money.ZERO), asset

    @invariant()
    def every_asset_sums_to_zero(self) -> None:
        sums = {a: b.total for a, b in self.state.part(Ledger).balances.items()}
        for (_, asset), amount in self.counters.items():
            sums[asset] = sums.get(asset, money.ZERO) + amount
        assert not any(sums.values()), sums

    @invariant()
    def final_orders_stay_final(self) -> None:
        for order in self.state.part(Orders).recalled.values():
            before = self.final.setdefault(order.id, order.state)
            assert order.state is before
            assert not order.held_amount

    @invariant()
    def positions_are_what_the_fills_made(self) -> None:
        orders = self.state.part(Orders)
        position = orders.position("BTC-USDT")
        assert position.quantity >= 0
        assert position.cost >= 0
        if not position.quantity:
            assert position.cost == 0

    def teardown(self) -> None:
        replayed = AccountState(ACCOUNT, 0, chain.genesis(ACCOUNT), NOW)
        for entry in chain.check(ACCOUNT, self.journal):
            PROJECTIONS.apply(replayed, entry)
        mine, theirs = self.state.part(Orders), replayed.part(Orders)
        assert mine.open == theirs.open
        assert mine.recalled == theirs.recalled
        assert mine.positions == theirs.positions
        assert self.state.part(Ledger).balances == replayed.part(Ledger).balances


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=60, stateful_step_count=40)
