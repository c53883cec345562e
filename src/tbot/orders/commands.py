"""What a user can ask of an order: pure decisions.

`PlaceOrder` and `RequestCancel`; what the gateway learns of an order is in `reports`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Actor, Context, Draft, Drafts, Posting, Priority, States
from tbot.ledger.entries import AVAILABLE, HELD, Ledger, move
from tbot.market.book import Reference
from tbot.orders import rules
from tbot.orders.book import Orders
from tbot.orders.model import Order, State, may_become
from tbot.orders.rules import OrderRequest
from tbot.venues.base import Instrument


class Placed(msgspec.Struct, frozen=True):
    """Answer to `PlaceOrder`: the order, and whether it had been there already."""

    order: Order
    replayed: bool


class PlaceOrder(msgspec.Struct, frozen=True):
    """Accept an order: check it, hold its funds, write it down. Sending comes after the commit.

    Attributes:
        instrument: None when the account's venue has no such symbol.
        reference: A market price fresh enough for the checks, or None.
        send_within_s: The order is never signed later than this after its acceptance.
        hindrance: Why no *new* order can be taken now; a known one is answered all the same.
    """

    id: UUID
    actor: Actor
    account_id: UUID
    order_id: UUID
    request: OrderRequest
    instrument: Instrument | None
    reference: Reference | None
    send_within_s: float
    hindrance: Refused | None = None

    priority = Priority.NEW
    opens = False

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The account."""
        return (self.account_id,)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """A known client id first, before any other check; then switches, rules and funds."""
        state = states[self.account_id]
        orders, ledger = state.part(Orders), state.part(Ledger)
        request = self.request
        if request.client_order_id is not None:
            known = orders.find_client(request.client_order_id)
            if known is not None:
                return Drafts() if _same(known, request) else _reused(known)
        if self.hindrance is not None:
            return self.hindrance
        account = ledger.account
        assert account is not None
        if account.status != "open":
            closed = account.status == "closed"
            reason = Reason.ACCOUNT_CLOSED if closed else Reason.ACCOUNT_FROZEN
            return Refused(reason, f"the account is {account.status}")
        if account.venue is None:
            return Refused(Reason.ACCOUNT_KIND, "a cash account does not trade")
        if self.instrument is None:
            return Refused(
                Reason.INSTRUMENT_UNKNOWN, f"{account.venue} has no instrument {request.symbol}"
            )
        halt = context.halt("trading", f"venue:{account.venue}")
        if halt is not None:
            return Refused(Reason.VENUE_HALTED, halt.reason)
        halt = context.halt(f"instrument:{account.venue}:{request.symbol}")
        if halt is not None:
            return Refused(Reason.INSTRUMENT_HALTED, halt.reason)
        hold = rules.check(
            request, self.instrument, self.reference, account.limits, ledger, len(orders.open)
        )
        if isinstance(hold, Refused):
            return hold
        now = context.stamp()
        order = Order(
            id=self.order_id,
            account_id=self.account_id,
            client_order_id=request.client_order_id,
            parent_id=None,
            venue=account.venue,
            symbol=request.symbol,
            side=request.side,
            type=request.type,
            time_in_force=request.time_in_force,
            post_only=request.post_only,
            quantity=request.quantity,
            quote_amount=request.quote_amount,
            limit_price=request.limit_price,
            state=State.PENDING_NEW,
            reason=None,
            filled_quantity=money.ZERO,
            filled_quote=money.ZERO,
            fees={},
            held_asset=hold.asset,
            held_amount=hold.amount,
            cancel_requested=False,
            venue_order_id=None,
            send_by=context.stamp(self.send_within_s),
            # As the entry will have them, unless the stream is ahead of the clock.
            created_at=now,
            updated_at=now,
            seq=state.seq + 1,
        )
        data: dict[str, Any] = {"accepted": order.to_data()}
        if self.reference is not None:
            data["reference"] = self.reference.to_json()
        postings = move(hold.asset, hold.amount, AVAILABLE, HELD)
        draft = Draft(self.account_id, "order.accepted", data, postings, order)
        return Drafts((draft,), wakes=(f"orders:{account.venue}",))

    def result(self, states: States) -> Placed:
        """The new order, or the one that this client id already names."""
        orders = states[self.account_id].part(Orders)
        order = orders.find(self.order_id)
        if order is not None:
            return Placed(order, replayed=False)
        assert self.request.client_order_id is not None
        known = orders.find_client(self.request.client_order_id)
        assert known is not None
        return Placed(known, replayed=True)


def _same(order: Order, request: OrderRequest) -> bool:
    return (
        order.symbol == request.symbol
        and order.side is request.side
        and order.type is request.type
        and order.time_in_force is request.time_in_force
        and order.post_only == request.post_only
        and order.quantity == request.quantity
        and order.quote_amount == request.quote_amount
        and order.limit_price == request.limit_price
    )


def _reused(order: Order) -> Refused:
    return Refused(
        Reason.CLIENT_ORDER_ID_REUSED,
        f"{order.client_order_id} names order {order.id}, which has other content",
        {"order_id": str(order.id)},
    )


@dataclass(frozen=True, slots=True)
class OrderCommand:
    """A command about one existing order of one account."""

    id: UUID
    actor: Actor
    account_id: UUID
    order_id: UUID

    opens = False

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The account, which an order never changes."""
        return (self.account_id,)

    def _order(self, states: States) -> Order | None:
        return states[self.account_id].part(Orders).find(self.order_id)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """See the class; an order that the account does not have is refused."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        return self._decide(order, states[self.account_id].part(Orders))

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        raise NotImplementedError

    def _changed(self, order: Order, kind: str, **changes: Any) -> Draft:
        """A draft that changes the order; a final state releases what is still held."""
        state = changes.get("state")
        assert state is None or may_become(order.state, State(state)), (order.state, state)
        postings: tuple[Posting, ...] = ()
        if state is not None and State(state).final and order.held_amount:
            changes["held_amount"] = "0"
            postings = move(order.held_asset, order.held_amount, HELD, AVAILABLE)
        data = {"order": str(order.id), "set": changes}
        return Draft(self.account_id, kind, data, postings)


@dataclass(frozen=True, slots=True)
class RequestCancel(OrderCommand):
    """A user wants an order canceled; the gateway asks the venue."""

    priority = Priority.CANCEL

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Write the wish down; a second one changes nothing."""
        if order.final:
            return Refused(Reason.ORDER_CLOSED, f"the order is {order.state}")
        if order.cancel_requested:
            return Drafts()
        if order.state is State.HELD:
            draft = self._changed(order, "order.canceled", state="canceled", reason="user")
            return Drafts((draft,))
        # An unknown order stays unknown: whether there is anything to cancel is not known either.
        state = order.state if order.state is State.UNKNOWN else State.PENDING_CANCEL
        draft = self._changed(
            order, "order.cancel_requested", state=state.value, cancel_requested=True
        )
        return Drafts((draft,), wakes=(f"orders:{order.venue}",))

    def result(self, states: States) -> Order:
        """The order as it is now."""
        order = self._order(states)
        assert order is not None
        return order
