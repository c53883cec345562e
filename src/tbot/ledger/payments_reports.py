"""What the dispatcher does with payments, and what their provider says of them: pure decisions.

`SubmitWithdrawal`, `RepeatWithdrawal`, `NoteInstructions`, `ExpireDeposit`, `GiveUpWithdrawal` and
`ApplyReport`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from tbot.core import clock, money
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import AccountState, Context, Draft, Drafts, Priority
from tbot.ledger.entries import AVAILABLE, HELD, Ledger, move
from tbot.ledger.payments import (
    FEES,
    Kind,
    Payment,
    Payments,
    State,
    may_become,
    outside,
    repeated_id,
)
from tbot.ledger.payments_commands import (
    PaymentCommand,
    changed,
    frozen_refusal,
    halted_refusal,
    late,
    released,
)
from tbot.ledger.provider import Report, Said


@dataclass(frozen=True, slots=True)
class SubmitWithdrawal(PaymentCommand):
    """Before the request leaves: from now on the provider may have it."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Only what is approved, on an account that money may leave, while it may."""
        if payment.state is not State.APPROVED:
            return late(payment, "submitted")
        stopped = frozen_refusal(state.part(Ledger)) or halted_refusal(context)
        if stopped is not None:
            return stopped
        at = clock.stamp(max(context.now, state.at))
        draft = changed(payment, "payment.submitted", state="submitted", submitted_at=at)
        return Drafts((draft,))


@dataclass(frozen=True, slots=True)
class RepeatWithdrawal(PaymentCommand):
    """Before a submitted one that its provider never got leaves again: whether it may."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Nothing is written: its funds are held, and it counts as submitted already."""
        if payment.state is not State.SUBMITTED:
            return late(payment, "submitted again")
        return frozen_refusal(state.part(Ledger)) or halted_refusal(context) or Drafts()


@dataclass(frozen=True, slots=True)
class NoteInstructions(PaymentCommand):
    """The provider expects a deposit, and says how it is to be paid."""

    instructions: str

    priority = Priority.REPORT

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Once; a deposit that has ended needs none."""
        if payment.instructions is not None or payment.final:
            return Drafts()
        return Drafts((changed(payment, "payment.announced", instructions=self.instructions),))


@dataclass(frozen=True, slots=True)
class ExpireDeposit(PaymentCommand):
    """A deposit's time is over; should the money come later, it is credited all the same."""

    priority = Priority.CANCEL

    def _decide(self, payment: Payment, state: AccountState, context: Context) -> Drafts | Refused:
        """Only when it is due, and still pending."""
        due = payment.expires_at is not None and clock.unstamp(payment.expires_at) <= context.now
        if payment.state is not State.PENDING or not due:
            return Drafts()
        return Drafts((changed(payment, "payment.expired", state="expired"),))


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
        draft = released(payment, "payment.failed", None, state="failed", reason=self.reason)
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
            draft = changed(
                payment, "payment.failed", (), said, state="failed", reason=report.reason
            )
            return Drafts((draft,))
        credit = move(payment.asset, report.amount, outside(payment.provider), AVAILABLE)
        amount = money.text(report.amount)
        if payment.state is not State.SUCCEEDED:
            draft = changed(
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
            return Drafts((changed(payment, "payment.succeeded", postings, said, **changes),))
        kind = f"payment.{following.value}"
        if payment.settled:  # returned after it had succeeded; the fee comes back too
            postings = move(asset, payment.amount, world, AVAILABLE)
            postings += move(asset, fee, FEES, AVAILABLE)
            changes["settled"] = "0"
            return Drafts((changed(payment, kind, postings, said, **changes),))
        return Drafts((released(payment, kind, said, **changes),))

    def _contradicted(self, payment: Payment) -> Refused:
        report = self.report
        return Refused(
            Reason.PAYMENT_CONTRADICTED,
            f"a {payment.kind} of {money.text(payment.amount)} {payment.asset} that is "
            f"{payment.state} cannot have {report.said} with {money.text(report.amount)} "
            f"{report.asset}",
        )
