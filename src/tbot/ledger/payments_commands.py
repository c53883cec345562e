"""What can be asked and learned of payments: pure decisions.

Of users: `RequestDeposit`, `RequestWithdrawal`, `CancelPayment`, `DecideWithdrawal`. Of the
dispatcher: `SubmitWithdrawal`, `NoteInstructions`, `ExpireDeposit`, `GiveUpWithdrawal`. Of the
provider: `ApplyReport`.
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
    FEES,
    Kind,
    Payment,
    Payments,
    Rules,
    State,
    may_become,
    outside,
    repeated_id,
)
from tbot.ledger.provider import Report, Said

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


def _changed(
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


def _released(payment: Payment, kind: str, said: Mapping[str, Any] | None, **changes: Any) -> Draft:
    """A draft that ends a payment and gives back what it held."""
    if payment.held:
        changes["held"] = "0"
    postings = move(payment.asset, payment.held, HELD, AVAILABLE)
    return _changed(payment, kind, postings, said, **changes)


def _late(payment: Payment, wanted: str) -> Refused:
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


def _frozen(ledger: Ledger) -> Refused | None:
    """Why no money may leave an account."""
    account = ledger.account
    assert account is not None
    if account.status == "frozen":
        return Refused(Reason.ACCOUNT_FROZEN, "the account is frozen: no money may leave it")
    return None


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
            or _frozen(ledger)
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
        waits = self.rules.needs_approval(asset, amount)
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
            return _late(payment, "canceled")
        return Drafts((_released(payment, "payment.canceled", None, state="canceled"),))


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
            return _late(payment, wanted.value)
        if not self.approve:
            draft = _released(
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
        frozen = _frozen(state.part(Ledger))
        if frozen is not None:
            return frozen
        draft = _changed(payment, "payment.approved", state="approved", decided_by=str(by))
        return Drafts((draft,), wakes=(WAKE,))


@dataclass(frozen=True, slots=True)
class SubmitWithdrawal(PaymentCommand):
    """Before the request leaves: from now on the provider may have it."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Only what is approved, on an account that money may leave."""
        if payment.state is not State.APPROVED:
            return _late(payment, "submitted")
        frozen = _frozen(state.part(Ledger))
        if frozen is not None:
            return frozen
        at = clock.stamp(max(context.now, state.at))
        draft = _changed(payment, "payment.submitted", state="submitted", submitted_at=at)
        return Drafts((draft,))


@dataclass(frozen=True, slots=True)
class NoteInstructions(PaymentCommand):
    """The provider expects a deposit, and says how it is to be paid."""

    instructions: str

    priority = Priority.REPORT

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Once; a deposit that has ended needs none."""
        if payment.instructions is not None or payment.final:
            return Drafts()
        return Drafts((_changed(payment, "payment.announced", instructions=self.instructions),))


@dataclass(frozen=True, slots=True)
class ExpireDeposit(PaymentCommand):
    """A deposit's time is over; should the money come later, it is credited all the same."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Only when it is due, and still pending."""
        due = payment.expires_at is not None and clock.unstamp(payment.expires_at) <= context.now
        if payment.state is not State.PENDING or not due:
            return Drafts()
        return Drafts((_changed(payment, "payment.expired", state="expired"),))


@dataclass(frozen=True, slots=True)
class GiveUpWithdrawal(PaymentCommand):
    """It certainly never became a payment: the provider refused it, and has none of this id.

    Attributes:
        reason: The provider's.
    """

    reason: str

    priority = Priority.REPORT

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Release its funds."""
        if payment.state is not State.SUBMITTED:
            return Drafts()
        draft = _released(payment, "payment.failed", None, state="failed", reason=self.reason)
        return Drafts((draft,))


@dataclass(frozen=True, slots=True)
class ApplyReport(PaymentCommand):
    """The provider's word on a payment: a monotone merge.

    Attributes:
        callback: The id of the callback that it came in, if it did.
    """

    report: Report
    callback: str | None = None

    priority = Priority.REPORT

    @property
    def payment_ids(self) -> tuple[UUID, ...]:
        """The payment, and the one that a second arrival of its money would be."""
        return (self.payment_id, repeated_id(self.payment_id, self.report.reference))

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Book what is news; what is known already, or overtaken, changes nothing."""
        report = self.report
        if report.said is Said.PROCESSING:
            return Drafts()
        if report.asset != payment.asset or report.amount <= 0:
            return self._contradicted(payment)
        said = {
            "said": report.said.value,
            "reference": report.reference,
            "amount": money.text(report.amount),
        }
        if self.callback is not None:
            said["callback"] = self.callback
        if payment.kind is Kind.DEPOSIT:
            return self._deposit(payment, state.part(Payments), said)
        if report.amount != payment.amount or payment.submitted_at is None:
            return self._contradicted(payment)
        return self._withdrawal(payment, said)

    def _deposit(
        self, payment: Payment, payments: Payments, said: Mapping[str, Any]
    ) -> Drafts | Refused:
        report = self.report
        if report.said is Said.RETURNED:
            return self._contradicted(payment)
        if report.said is Said.FAILED:
            if not may_become(payment.kind, payment.state, State.FAILED):
                return Drafts()  # overtaken
            draft = _changed(
                payment, "payment.failed", (), said, state="failed", reason=report.reason
            )
            return Drafts((draft,))
        credit = move(payment.asset, report.amount, outside(payment.provider), AVAILABLE)
        amount = money.text(report.amount)
        if payment.state is not State.SUCCEEDED:
            draft = _changed(
                payment,
                "payment.succeeded",
                credit,
                said,
                state="succeeded",
                reference=report.reference,
                settled=amount,
            )
            return Drafts((draft,))
        again = repeated_id(payment.id, report.reference)
        if payment.reference == report.reference or payments.find(again) is not None:
            return Drafts()
        # Other money, for a deposit that had come already: the customer paid twice.
        second = Payment(
            id=again,
            account_id=payment.account_id,
            kind=Kind.DEPOSIT,
            provider=payment.provider,
            asset=payment.asset,
            amount=report.amount,
            state=State.SUCCEEDED,
            reference=report.reference,
            settled=report.amount,
            parent_id=payment.id,
        )
        data = {"new": second.to_data(), "said": dict(said)}
        return Drafts((Draft(payment.account_id, "payment.received", data, credit),))

    def _withdrawal(self, payment: Payment, said: Mapping[str, Any]) -> Drafts | Refused:
        report, fee = self.report, payment.fee
        following = State(report.said.value)
        if not may_become(payment.kind, payment.state, following):
            return Drafts()  # known, or overtaken
        changes: dict[str, Any] = {
            "state": following.value,
            "reference": report.reference,
            "reason": report.reason,
        }
        asset, world = payment.asset, outside(payment.provider)
        if following is State.SUCCEEDED:
            # From what is held, or, when it was released for a failure that was none, from what
            # is available, however little that is.
            source = HELD if payment.held else AVAILABLE
            postings = move(asset, payment.amount, source, world) + move(asset, fee, source, FEES)
            changes |= {"held": "0", "settled": money.text(payment.amount)}
            return Drafts((_changed(payment, "payment.succeeded", postings, said, **changes),))
        kind = f"payment.{following.value}"
        if payment.settled:  # returned after it had succeeded; the fee comes back too
            postings = move(asset, payment.amount, world, AVAILABLE)
            postings += move(asset, fee, FEES, AVAILABLE)
            changes["settled"] = "0"
            return Drafts((_changed(payment, kind, postings, said, **changes),))
        return Drafts((_released(payment, kind, said, **changes),))

    def _contradicted(self, payment: Payment) -> Refused:
        report = self.report
        return Refused(
            Reason.PAYMENT_CONTRADICTED,
            f"a {payment.kind} of {money.text(payment.amount)} {payment.asset} that is "
            f"{payment.state} cannot have {report.said} with {money.text(report.amount)} "
            f"{report.asset}",
        )
