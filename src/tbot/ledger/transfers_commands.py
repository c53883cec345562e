"""What is done to a transfer that is there: posted, voided, expired, reversed. Pure.

The invariants are at the top of `transfers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Actor, Context, Draft, Drafts, Posting, Priority, States
from tbot.ledger.entries import AVAILABLE, CLOSED, HELD, OPEN, Ledger, move
from tbot.ledger.transfers import (
    Transfer,
    Transfers,
    TransferState,
    halted_refusal,
    hindrance,
    not_open,
    there,
)


@dataclass(frozen=True, slots=True)
class TransferCommand:
    """A command about one existing transfer; its accounts never change."""

    id: UUID
    actor: Actor
    transfer_id: UUID
    source_id: UUID
    target_id: UUID

    priority = Priority.NEW
    opens = False

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """Those that its entries go to."""
        return (self.source_id,)

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """See the class; a transfer that the source does not have is refused."""
        transfer = states[self.source_id].part(Transfers).find(self.transfer_id)
        if transfer is None:
            return Refused(Reason.TRANSFER_NOT_FOUND, "no such transfer")
        return self._decide(transfer, states, context)

    def _decide(self, transfer: Transfer, states: States, context: Context) -> Drafts | Refused:
        raise NotImplementedError

    def _release(self, transfer: Transfer, kind: str, state: TransferState) -> Drafts:
        """Give the held amount back."""
        data = {"transfer": str(transfer.id), "set": {"state": state.value}}
        postings = move(transfer.asset, transfer.amount, HELD, AVAILABLE)
        return Drafts((Draft(self.source_id, kind, data, postings),))

    def result(self, states: States) -> Transfer:
        """The transfer as it is now."""
        return there(states, self.source_id, self.transfer_id)


def _not_pending(transfer: Transfer) -> Refused:
    return Refused(
        Reason.TRANSFER_NOT_PENDING,
        f"the transfer is {transfer.state}",
        {"state": transfer.state.value},
    )


@dataclass(frozen=True, slots=True)
class PostTransfer(TransferCommand):
    """Let a pending transfer's money reach its target.

    Attributes:
        amount: Of it, above zero; the rest is released. None posts all.
    """

    amount: Decimal | None = None

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """Source and target."""
        return (self.source_id, self.target_id)

    def _decide(self, transfer: Transfer, states: States, context: Context) -> Drafts | Refused:
        """Refuse one that is resolved, or whose time is over though nobody has released it yet."""
        if not transfer.pending:
            return _not_pending(transfer)
        if _overdue(transfer, context):
            return Refused(
                Reason.TRANSFER_EXPIRED, f"the transfer's time was over at {transfer.expires_at}"
            )
        halted = halted_refusal(context)
        if halted is not None:
            return halted
        source = states[self.source_id].part(Ledger).account
        target = states[self.target_id].part(Ledger).account
        assert source is not None
        assert target is not None
        if source.status != OPEN:
            return not_open(source, "source")
        if target.status == CLOSED:
            return not_open(target, "target")
        amount = transfer.amount if self.amount is None else self.amount
        if amount > transfer.amount:
            return Refused(
                Reason.TRANSFER_AMOUNT_EXCEEDED,
                f"the transfer holds {money.text(transfer.amount)} {transfer.asset}",
                {"held": money.text(transfer.amount)},
            )
        asset, transfer_id = transfer.asset, str(transfer.id)
        paid = (
            Posting(HELD, asset, -transfer.amount),
            *((Posting(AVAILABLE, asset, rest),) if (rest := transfer.amount - amount) else ()),
        )
        changes = {"state": "posted", "posted_amount": money.text(amount)}
        return Drafts(
            (
                Draft(
                    self.source_id,
                    "transfer.posted",
                    {
                        "transfer": transfer_id,
                        "target_id": str(self.target_id),
                        "set": changes,
                    },
                    paid,
                ),
                Draft(
                    self.target_id,
                    "transfer.received",
                    {"transfer": transfer_id, "source_id": str(self.source_id)},
                    (Posting(AVAILABLE, asset, amount),),
                ),
            )
        )


@dataclass(frozen=True, slots=True)
class VoidTransfer(TransferCommand):
    """Release a pending transfer: nothing moves. Possible on a frozen account too."""

    def _decide(self, transfer: Transfer, states: States, context: Context) -> Drafts | Refused:
        if not transfer.pending:
            return _not_pending(transfer)
        return self._release(transfer, "transfer.voided", TransferState.VOIDED)


@dataclass(frozen=True, slots=True)
class ExpireTransfer(TransferCommand):
    """Release a pending transfer whose time is over; does nothing to any other."""

    priority = Priority.CANCEL

    def _decide(self, transfer: Transfer, states: States, context: Context) -> Drafts | Refused:
        if not transfer.pending or not _overdue(transfer, context):
            return Drafts()
        return self._release(transfer, "transfer.expired", TransferState.EXPIRED)


def _overdue(transfer: Transfer, context: Context) -> bool:
    # Both are of one form: the texts sort as the moments do.
    return transfer.expires_at is not None and transfer.expires_at <= context.stamp()


@dataclass(frozen=True, slots=True)
class ReverseTransfer(TransferCommand):
    """Take a posted transfer back, whole, by a new transfer from its target to its source.

    Attributes:
        source_id, target_id: Of the transfer to be taken back.
        reversal_id: Of the new one.
    """

    reversal_id: UUID
    metadata: dict[str, str]

    @property
    def accounts(self) -> tuple[UUID, ...]:
        """Source and target."""
        return (self.source_id, self.target_id)

    def _decide(self, transfer: Transfer, states: States, context: Context) -> Drafts | Refused:
        """Refuse what is not posted, what is a reversal, and what was reversed."""
        if transfer.state is not TransferState.POSTED:
            return Refused(
                Reason.TRANSFER_NOT_POSTED,
                f"the transfer is {transfer.state}",
                {"state": transfer.state.value},
            )
        if transfer.reverses is not None:
            return Refused(Reason.TRANSFER_IS_REVERSAL, "the transfer is a reversal itself")
        if transfer.reversed_by is not None:
            return Refused(
                Reason.TRANSFER_REVERSED,
                f"transfer {transfer.reversed_by} has reversed it",
                {"reversed_by": str(transfer.reversed_by)},
            )
        asset, amount = transfer.asset, transfer.posted_amount
        refusal = halted_refusal(context) or hindrance(
            states[self.target_id].part(Ledger),
            states[self.source_id].part(Ledger),
            asset,
            amount,
        )
        if refusal is not None:
            return refusal
        data: dict[str, Any] = {
            "id": str(self.reversal_id),
            "target_id": str(self.source_id),
            "asset": asset,
            "amount": money.text(amount),
            "state": "posted",
            "posted_amount": money.text(amount),
            "reverses": str(transfer.id),
        }
        if self.metadata:
            data["metadata"] = self.metadata
        received = {
            "transfer": str(self.reversal_id),
            "source_id": str(self.target_id),
            "reverses": str(transfer.id),
        }
        return Drafts(
            (
                Draft(
                    self.target_id,
                    "transfer.created",
                    {"transfer": data},
                    (Posting(AVAILABLE, asset, -amount),),
                ),
                Draft(
                    self.source_id,
                    "transfer.received",
                    received,
                    (Posting(AVAILABLE, asset, amount),),
                ),
            )
        )

    def result(self, states: States) -> Transfer:
        """The new transfer."""
        return there(states, self.target_id, self.reversal_id)
