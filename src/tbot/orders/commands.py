"""What can be asked of an order: pure decisions.

A user places and cancels (`PlaceOrder`, `RequestCancel`); the gateway reports what the venue said
(`ApplyReport`), that it said nothing (`MarkUnknown`), that a cancel was refused (`KeepOrder`), that
an order certainly does not live (`RejectOrder`) or turned up after all (`AdoptOrder`).

Reports are facts: they may repeat, overtake each other and contradict older ones. `ApplyReport`
merges them monotonically: fills by trade id, states along `model.TRANSITIONS`, never backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from tbot.core import clock, money
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import GATEWAY, Actor, Context, Draft, Drafts, Posting, Priority, States
from tbot.ledger.entries import AVAILABLE, HELD, Ledger, move
from tbot.market.book import Reference
from tbot.orders import rules
from tbot.orders.book import Orders, settle, settlement_data
from tbot.orders.model import FINAL, Order, State, may_become
from tbot.orders.rules import OrderRequest
from tbot.venues.base import Instrument, OrderReport, VenueFill, VenueStatus

_UNPLACED: Final = frozenset({State.PENDING_NEW, State.PENDING_CANCEL, State.UNKNOWN})


@dataclass(frozen=True, slots=True)
class Placed:
    """Answer to `PlaceOrder`: the order, and whether it had been there already."""

    order: Order
    replayed: bool


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """Accept an order: check it, hold its funds, write it down. Sending comes after the commit.

    Attributes:
        instrument: None when the account's venue has no such symbol.
        reference: A market price fresh enough for the checks, or None.
        send_within_s: The order is never signed later than this after its acceptance.
    """

    id: UUID
    actor: Actor
    account_id: UUID
    order_id: UUID
    request: OrderRequest
    instrument: Instrument | None
    reference: Reference | None
    send_within_s: float

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
        account = ledger.account
        assert account is not None
        if account.status != "open":
            closed = account.status == "closed"
            reason = Reason.ACCOUNT_CLOSED if closed else Reason.ACCOUNT_FROZEN
            return Refused(reason, f"the account is {account.status}")
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
            send_by=clock.stamp(context.now + timedelta(seconds=self.send_within_s)),
            created_at="",
            updated_at="",
            seq=0,
        )
        data: dict[str, Any] = {"accepted": order.to_data()}
        if self.reference is not None:
            data["reference"] = self.reference.to_json()
        postings = move(hold.asset, hold.amount, AVAILABLE, HELD)
        draft = Draft(self.account_id, "order.accepted", data, postings)
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
class _OrderCommand:
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
class RequestCancel(_OrderCommand):
    """A user wants an order canceled; the gateway asks the venue."""

    priority = Priority.CANCEL

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Write the wish down; a second one changes nothing."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
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


@dataclass(frozen=True, slots=True)
class Applied:
    """Answer to the gateway's commands.

    Attributes:
        fills_missing: The venue reported more executions than it listed: fetch them and report
            again; until then the order is not made final.
    """

    order: Order
    fills_missing: bool = False


@dataclass(frozen=True, slots=True)
class _GatewayCommand(_OrderCommand):
    priority = Priority.REPORT

    def result(self, states: States) -> Applied:
        """The order as it is now."""
        order = self._order(states)
        assert order is not None
        return Applied(order)


@dataclass(frozen=True, slots=True)
class ApplyReport(_GatewayCommand):
    """Merge what a venue said of an order."""

    report: OrderReport

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Book new fills, then move the state as far as the report proves."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        orders = states[self.account_id].part(Orders)
        drafts: list[Draft] = []
        seen = set(order.trade_ids)
        position = orders.position(order.symbol)
        for fill in _in_order(self.report.fills):
            if fill.trade_id in seen:
                continue
            seen.add(fill.trade_id)
            draft, order, position = self._book(order, position, fill)
            drafts.append(draft)
        draft_or_none = self._move(order)
        if draft_or_none is not None:
            drafts.append(draft_or_none)
        return Drafts(tuple(drafts))

    def _book(self, order: Order, position: Any, fill: VenueFill) -> tuple[Draft, Order, Any]:
        filled = order.filled_quantity + fill.quantity
        state = order.state
        if not order.final:
            if order.quantity is not None and filled >= order.quantity:
                state = State.FILLED
            else:
                state = _live_state(order, filled=True)
        settlement = settle(order, position, fill, state)
        changes = settlement.changes
        if order.venue_order_id is None:
            changes["venue_order_id"] = self.report.venue_order_id
        if order.state is State.UNKNOWN:
            changes["reason"] = None
        draft = Draft(
            self.account_id,
            "order.filled",
            settlement_data(order, fill, settlement),
            settlement.postings,
        )
        after = order.changed(changes, seq=order.seq, at=order.updated_at)
        return draft, after.with_trade(fill.trade_id), settlement.position

    def _move(self, order: Order) -> Draft | None:
        """The change of state that is left once the fills are booked."""
        report = self.report
        if order.final:
            return None
        ended = _ENDS.get(report.status)
        if ended is not None and report.executed_quantity <= order.filled_quantity:
            kind = f"order.{ended.value}"
            reason = report.reason or ("user" if order.cancel_requested else None)
            return self._changed(
                order,
                kind,
                state=ended.value,
                reason=reason,
                venue_order_id=order.venue_order_id or report.venue_order_id,
            )
        state = _live_state(order, filled=bool(order.filled_quantity))
        if state is order.state and order.venue_order_id is not None:
            return None
        changes: dict[str, Any] = {
            "state": state.value,
            "venue_order_id": order.venue_order_id or report.venue_order_id,
        }
        if order.state is State.UNKNOWN:
            changes["reason"] = None
        return self._changed(order, "order.acknowledged", **changes)

    def result(self, states: States) -> Applied:
        """The order as it is now, and whether executions are missing."""
        order = self._order(states)
        assert order is not None
        return Applied(order, self.report.executed_quantity > order.filled_quantity)


_ENDS: Final = {
    VenueStatus.FILLED: State.FILLED,
    VenueStatus.CANCELED: State.CANCELED,
    VenueStatus.REJECTED: State.REJECTED,
    VenueStatus.EXPIRED: State.EXPIRED,
}


def _live_state(order: Order, *, filled: bool) -> State:
    if order.cancel_requested:
        return State.PENDING_CANCEL
    return State.PARTIALLY_FILLED if filled else State.NEW


def _in_order(fills: tuple[VenueFill, ...]) -> Iterator[VenueFill]:
    """Fills by the venue's own order: time, then number."""
    return iter(sorted(fills, key=lambda f: (f.at, len(f.trade_id), f.trade_id)))


@dataclass(frozen=True, slots=True)
class MarkUnknown(_GatewayCommand):
    """The placement's outcome was lost: only the venue can tell. Funds stay held."""

    why: str

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Only an order that the venue has not yet confirmed can become unknown."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        if order.venue_order_id is not None or order.state not in _UNPLACED:
            return Drafts()
        if order.state is State.UNKNOWN:
            return Drafts()
        return Drafts((self._changed(order, "order.unknown", state="unknown", reason=self.why),))


@dataclass(frozen=True, slots=True)
class KeepOrder(_GatewayCommand):
    """The venue refused a cancel and the order lives on."""

    why: str

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Back to what it was, so that a new cancel can be asked for."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        if order.final or not order.cancel_requested:
            return Drafts()
        state = order.state
        if state is State.PENDING_CANCEL:
            state = State.PARTIALLY_FILLED if order.filled_quantity else State.NEW
        draft = self._changed(
            order,
            "order.cancel_refused",
            state=state.value,
            cancel_requested=False,
            reason=self.why,
        )
        return Drafts((draft,))


@dataclass(frozen=True, slots=True)
class RejectOrder(_GatewayCommand):
    """An order certainly does not live at the venue; one that was to be canceled is canceled.

    Attributes:
        reason: `venue_refused` (its answer), `never_sent` (send-by passed before it was signed)
            or `never_landed` (the venue proved its absence).
        evidence: What proves it, kept in the entry.
    """

    reason: str
    evidence: str

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Reject it, unless the venue has meanwhile shown that it lives."""
        order = self._order(states)
        if order is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        if order.venue_order_id is not None or order.state not in _UNPLACED:
            return Drafts()
        if self.reason == "never_sent" and order.cancel_requested:
            return Drafts(
                (self._changed(order, "order.canceled", state="canceled", reason="user"),)
            )
        text = f"{self.reason}: {self.evidence}" if self.evidence else self.reason
        return Drafts((self._changed(order, "order.rejected", state="rejected", reason=text),))


@dataclass(frozen=True, slots=True)
class AdoptOrder(_GatewayCommand):
    """An order that was rejected as never landed has landed after all.

    The rejected one stays final. What lives at the venue becomes an *external* order, `order_id`,
    linked to it; its reports are applied to that one. Nothing was held for it, so its fills are
    paid from what is available.

    Attributes:
        parent_id: The order that was taken for absent.
        venue_order_id: The venue's id of it.
    """

    parent_id: UUID
    venue_order_id: str

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Create the external order, once."""
        orders = states[self.account_id].part(Orders)
        parent = orders.find(self.parent_id)
        if parent is None:
            return Refused(Reason.ORDER_NOT_FOUND, "no such order")
        if orders.find(self.order_id) is not None or parent.state not in FINAL:
            return Drafts()
        data = parent.to_data() | {
            "id": str(self.order_id),
            "client_order_id": None,
            "parent_id": str(parent.id),
            "state": State.NEW.value,
            "reason": "landed late",
            "filled_quantity": "0",
            "filled_quote": "0",
            "fees": {},
            "held_amount": "0",
            "cancel_requested": False,
            "venue_order_id": self.venue_order_id,
        }
        return Drafts(
            (Draft(self.account_id, "order.adopted", {"accepted": data}),),
            wakes=(f"orders:{parent.venue}",),
        )


def report_command(
    command_id: UUID, account_id: UUID, order_id: UUID, report: OrderReport
) -> ApplyReport:
    """`ApplyReport` as the gateway sends it."""
    return ApplyReport(command_id, GATEWAY, account_id, order_id, report)
