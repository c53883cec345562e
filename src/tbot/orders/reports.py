"""What the gateway learns of an order: pure decisions.

`ApplyReport` says what the venue said, `MarkUnknown` that it said nothing, `KeepOrder` that a
cancel was refused, `RejectOrder` that an order certainly does not live, `AdoptOrder` that one
turned up after all.

Reports are facts: they may repeat, overtake each other and contradict older ones. `ApplyReport`
merges them monotonically: fills by trade id, states along `model.TRANSITIONS`, never backwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Context, Draft, Drafts, Priority, States
from tbot.orders.book import Orders, settle, settlement_data
from tbot.orders.commands import OrderCommand
from tbot.orders.model import FINAL, Order, State
from tbot.venues.base import OrderReport, VenueFill, VenueStatus

REASON_LENGTH_MAX: Final = 500
_UNPLACED: Final = frozenset({State.PENDING_NEW, State.PENDING_CANCEL, State.UNKNOWN})


def told(text: str) -> str:
    """A venue's words as we keep them: no control characters (Postgres refuses NUL), 500 at most.

    Example:
        >>> told("no" + chr(0) + "pe")
        'no pe'
    """
    return "".join(c if c.isprintable() else " " for c in text[:REASON_LENGTH_MAX])


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
class _GatewayCommand(OrderCommand):
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

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Book new fills, then move the state as far as the report proves."""
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
            reason = told(report.reason) or ("user" if order.cancel_requested else None)
            if ended is State.FILLED:
                reason = None
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

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Only an order that the venue has not yet confirmed can become unknown."""
        if order.venue_order_id is not None or order.state not in _UNPLACED:
            return Drafts()
        if order.state is State.UNKNOWN:
            return Drafts()
        return Drafts(
            (self._changed(order, "order.unknown", state="unknown", reason=told(self.why)),)
        )


@dataclass(frozen=True, slots=True)
class KeepOrder(_GatewayCommand):
    """The venue refused a cancel and the order lives on."""

    why: str

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Back to what it was, so that a new cancel can be asked for."""
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
            reason=told(self.why),
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

    def _decide(self, order: Order, orders: Orders) -> Drafts | Refused:
        """Reject it, unless the venue has meanwhile shown that it lives."""
        if order.venue_order_id is not None or order.state not in _UNPLACED:
            return Drafts()
        if self.reason == "never_sent" and order.cancel_requested:
            return Drafts(
                (self._changed(order, "order.canceled", state="canceled", reason="user"),)
            )
        text = told(f"{self.reason}: {self.evidence}" if self.evidence else self.reason)
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
