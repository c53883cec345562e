"""What users can ask of payments: pure decisions.

`RequestDeposit`, `RequestWithdrawal`, `CancelPayment` and `DecideWithdrawal`; what the dispatcher
does and the provider says is in `payments_reports`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID

from tbot.core import clock, money
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import (
    AccountState,
    Actor,
    Context,
    Draft,
    Drafts,
    Posting,
    Priority,
    States,
)
from tbot.ledger.entries import AVAILABLE, CASH, HELD, Ledger, move
from tbot.ledger.payments import (
    Kind,
    Payment,
    Payments,
    Rules,
    State,
    may_become,
)

WAKE = "payments"
"""Bus topic: there may be something for the dispatcher to do."""


@dataclass(frozen=True, slots=True)
class PaymentCommand:
    """A command about one payment of one account."""

    id: UUID
    actor: Actor
    account_id: UUID
    payment_id: UUID

    opens = False

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """The account, which a payment never changes."""
        return (self.account_id,)

    @property
    def payment_ids(self) -> tuple[UUID, ...]:
        """The payments that it has to know, open or not."""
        return (self.payment_id,)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """See the class; a payment that the account does not have is refused."""
        state = states[self.account_id]
        payment = state.part(Payments).find(self.payment_id)
        if payment is None:
            return Refused(Reason.PAYMENT_NOT_FOUND, "no such payment")
        return self._decide(payment, state, context)

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        raise NotImplementedError

    def result(self, states: States) -> Payment:
        """The payment as it is now."""
        payment = states[self.account_id].part(Payments).find(self.payment_id)
        assert payment is not None
        return payment


def changed(
    payment: Payment,
    kind: str,
    postings: tuple[Posting, ...] = (),
    said: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Draft:
    """A draft that changes a payment; `said` is what a decision was based on."""
    state = changes.get("state")
    assert state is None or may_become(payment.kind, payment.state, State(state)), (payment, state)
    data = {"payment": str(payment.id), "set": changes}
    if said is not None:
        data["said"] = dict(said)
    return Draft(payment.account_id, kind, data, postings)


def released(payment: Payment, kind: str, said: Mapping[str, Any] | None, **changes: Any) -> Draft:
    """A draft that ends a payment and gives back what it held."""
    if payment.held:
        changes["held"] = "0"
    postings = move(payment.asset, payment.held, HELD, AVAILABLE)
    return changed(payment, kind, postings, said, **changes)


def late(payment: Payment, wanted: str) -> Refused:
    """The refusal of what a payment's state does not allow."""
    return Refused(
        Reason.PAYMENT_STATE,
        f"a {payment.kind} that is {payment.state} cannot be {wanted}",
        {"state": payment.state.value},
    )


def _no_payments(ledger: Ledger) -> Refused | None:
    """Why nothing may be asked for on an account."""
    account = ledger.account
    assert account is not None
    if account.status == "closed":
        return Refused(Reason.ACCOUNT_CLOSED, "the account is closed")
    if account.kind != CASH:
        return Refused(Reason.ACCOUNT_KIND, "payments are for cash accounts")
    return None


def frozen_refusal(ledger: Ledger) -> Refused | None:
    """Why no money may leave an account."""
    account = ledger.account
    assert account is not None
    if account.status == "frozen":
        return Refused(Reason.ACCOUNT_FROZEN, "the account is frozen: no money may leave it")
    return None


def halted_refusal(context: Context) -> Refused | None:
    """Why no money may leave any account."""
    halt = context.halt("withdrawals")
    return None if halt is None else Refused(Reason.WITHDRAWALS_HALTED, halt.reason)


def _beyond_limits(
    rules: Rules, payments: Payments, kind: Kind, asset: str, amount: Decimal, at: Any
) -> Refused | None:
    """Which limit a new payment would break."""
    if len(payments.open) >= rules.open_max:
        return Refused(
            Reason.PAYMENTS_OPEN_MAX,
            f"the account has {len(payments.open)} open payments",
            {"max": rules.open_max},
        )
    largest = rules.largest(kind, asset)
    if largest is not None and amount > largest:
        return Refused(
            Reason.PAYMENT_TOO_LARGE,
            f"one {kind} of {asset} is at most {money.text(largest)}",
            {"max": money.text(largest)},
        )
    of_day = rules.largest_of_day(kind, asset)
    before = payments.day_total(at.date(), kind, asset)
    if of_day is not None and before + amount > of_day:
        return Refused(
            Reason.PAYMENT_DAY_LIMIT,
            f"{money.text(before)} of {money.text(of_day)} {asset} a day are taken",
            {"max": money.text(of_day), "taken": money.text(before)},
        )
    return None


@dataclass(frozen=True, slots=True)
class PaymentRequest(PaymentCommand):
    """A user wants money moved."""

    asset: str
    amount: Decimal
    provider: str
    rules: Rules
    metadata: Mapping[str, str] = field(default_factory=dict)
    destination: str | None = None

    priority = Priority.NEW

    @property
    def payment_ids(self) -> tuple[UUID, ...]:
        """None that could be there already."""
        return ()


@dataclass(frozen=True, slots=True)
class RequestDeposit(PaymentRequest):
    """Expect money from outside; it is credited when the provider says that it has come."""

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Check account and limits, and write the expectation down."""
        state = states[self.account_id]
        refused = _no_payments(state.part(Ledger)) or _beyond_limits(
            self.rules,
            state.part(Payments),
            Kind.DEPOSIT,
            self.asset,
            self.amount,
            max(context.now, state.at),
        )
        if refused is not None:
            return refused
        payment = Payment(
            id=self.payment_id,
            account_id=self.account_id,
            kind=Kind.DEPOSIT,
            provider=self.provider,
            asset=self.asset,
            amount=self.amount,
            state=State.PENDING,
            requested_by=self.actor.user_id,
            metadata=dict(self.metadata),
            expires_at=clock.stamp(max(context.now, state.at) + self.rules.deposit_ttl),
        )
        draft = Draft(self.account_id, "payment.requested", {"new": payment.to_data()})
        return Drafts((draft,), wakes=(WAKE,))


@dataclass(frozen=True, slots=True)
class RequestWithdrawal(PaymentRequest):
    """Pay money out: check it, hold amount and fee, write it down. Sending comes after."""

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Check account, limits and funds, and hold what it costs."""
        state = states[self.account_id]
        ledger = state.part(Ledger)
        asset, amount = self.asset, self.amount
        refused = (
            _no_payments(ledger)
            or frozen_refusal(ledger)
            or halted_refusal(context)
            or _beyond_limits(
                self.rules,
                state.part(Payments),
                Kind.WITHDRAWAL,
                asset,
                amount,
                max(context.now, state.at),
            )
        )
        if refused is not None:
            return refused
        fee = self.rules.fee(asset)
        spendable = ledger.spendable(asset)
        if spendable < amount + fee:
            return Refused(
                Reason.INSUFFICIENT_FUNDS,
                f"{money.text(amount + fee)} {asset} are needed with the fee, "
                f"{money.text(spendable)} can be spent",
                {"needed": money.text(amount + fee), "available": money.text(spendable)},
            )
        at = max(context.now, state.at)
        unapproved = state.part(Payments).unapproved_total(at, asset)
        waits = self.rules.needs_approval(asset, amount, unapproved)
        payment = Payment(
            id=self.payment_id,
            account_id=self.account_id,
            kind=Kind.WITHDRAWAL,
            provider=self.provider,
            asset=asset,
            amount=amount,
            fee=fee,
            destination=self.destination,
            state=State.AWAITING_APPROVAL if waits else State.APPROVED,
            held=amount + fee,
            requested_by=self.actor.user_id,
            metadata=dict(self.metadata),
        )
        draft = Draft(
            self.account_id,
            "payment.requested",
            {"new": payment.to_data()},
            move(asset, amount + fee, AVAILABLE, HELD),
        )
        return Drafts((draft,), wakes=() if waits else (WAKE,))


@dataclass(frozen=True, slots=True)
class CancelPayment(PaymentCommand):
    """Its owner does not want it any more: only while nothing was sent."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Release what it holds; the second time changes nothing."""
        if payment.state is State.CANCELED:
            return Drafts()
        if payment.final or not may_become(payment.kind, payment.state, State.CANCELED):
            return late(payment, "canceled")
        return Drafts((released(payment, "payment.canceled", None, state="canceled"),))


@dataclass(frozen=True, slots=True)
class DecideWithdrawal(PaymentCommand):
    """A second person approves or rejects a withdrawal.

    Attributes:
        reason: Why it is rejected, for its owner.
    """

    approve: bool
    reason: str | None = None

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Let it go out, or release its funds; deciding the same twice changes nothing."""
        by = self.actor.user_id
        wanted = State.APPROVED if self.approve else State.REJECTED
        if payment.state is wanted and payment.decided_by == by:
            return Drafts()
        if not may_become(payment.kind, payment.state, wanted):
            return late(payment, wanted.value)
        if not self.approve:
            draft = released(
                payment,
                "payment.rejected",
                None,
                state="rejected",
                decided_by=str(by) if by else None,
                reason=self.reason,
            )
            return Drafts((draft,))
        if by is None or by == payment.requested_by:
            return Refused(Reason.APPROVER_IS_REQUESTER, "a second person has to approve it")
        stopped = frozen_refusal(state.part(Ledger)) or halted_refusal(context)
        if stopped is not None:
            return stopped
        draft = changed(payment, "payment.approved", state="approved", decided_by=str(by))
        return Drafts((draft,), wakes=(WAKE,))
