"""Transfers between two accounts, at once or in two phases: pure.

Entry points: `Transfer`, `Transfers` (an account's part), `apply`, and `create_transfers`, which
makes the command for one or several linked ones. What is done to a transfer that is there is in
`transfers_commands`.

Invariants:

1. A transfer belongs to its source: its row follows from the source's stream alone. The target's
   stream has an entry for the money that came in, under the same command.
2. A pending transfer holds its amount at the source, and nowhere else. It is resolved at most
   once: posted (in full or in part, the rest is released), voided or expired.
3. Money leaves an account only while it is open, and never takes it below its overdraft. Money
   comes in unless the account is closed.
4. Both accounts are of one place: cash accounts, or trading accounts on one venue. Otherwise the
   ledger would move what stays where it is.
5. A posted transfer is reversed at most once, by a transfer of the whole posted amount.
6. Linked transfers are one command: all of them, or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.refusals import Reason, Refused
from tbot.journal.chain import Entry
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
from tbot.ledger.entries import AVAILABLE, CLOSED, HELD, OPEN, Account, Ledger, move

LINKED_MAX: Final = 100
"""Most transfers that stand or fall together: they are one command, and lock all their accounts."""
PENDING_MAX: Final = 10_000
"""Most pending transfers out of one account, unless the caller of a command says otherwise."""


class TransferState(StrEnum):
    """What became of a transfer."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


class Transfer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One transfer, as its row has it.

    Attributes:
        posted_amount: What has reached the target; zero unless posted.
        expires_at: When a pending one is released by itself; None for never.
        reverses: The transfer that this one takes back.
        reversed_by: The transfer that took this one back.
        group_id: Shared by linked transfers.
        metadata: The caller's own, never looked at here.
    """

    id: UUID
    source_id: UUID
    target_id: UUID
    asset: str
    amount: Decimal
    state: TransferState
    posted_amount: Decimal = money.ZERO
    expires_at: str | None = None
    reverses: UUID | None = None
    reversed_by: UUID | None = None
    group_id: UUID | None = None
    metadata: dict[str, str] = {}
    created_at: str = ""
    updated_at: str = ""

    @property
    def pending(self) -> bool:
        """Whether it still holds its amount."""
        return self.state is TransferState.PENDING


class TransferFacts(msgspec.Struct, frozen=True, gc=False):
    """What never changes about a transfer: the accounts to be locked for it."""

    id: UUID
    source_id: UUID
    target_id: UUID
    asset: str


class Transfers:
    """An account's pending transfers as their source, and the final ones that a batch asked for.

    Attributes:
        open: Every pending transfer out of the account, by id.
        recalled: Final ones that were read for this batch or became final in it.
        created, changed: Since the table was last written, in order.
    """

    __slots__ = ("changed", "created", "open", "recalled")

    def __init__(self) -> None:
        self.open: dict[UUID, Transfer] = {}
        self.recalled: dict[UUID, Transfer] = {}
        self.created: dict[UUID, None] = {}
        self.changed: dict[UUID, None] = {}

    def find(self, transfer_id: UUID) -> Transfer | None:
        """A pending or recalled transfer."""
        return self.open.get(transfer_id) or self.recalled.get(transfer_id)

    def put(self, transfer: Transfer) -> None:
        """Take in a transfer that was read from the table, or its next version."""
        if transfer.state is TransferState.PENDING:
            self.open[transfer.id] = transfer
        else:
            self.open.pop(transfer.id, None)
            self.recalled[transfer.id] = transfer

    def forget(self) -> None:
        """Drop what only one batch needed; the table is up to date."""
        self.recalled.clear()
        self.created.clear()
        self.changed.clear()

    def unfinished(self) -> str | None:
        """What keeps the account from being closed."""
        return f"{len(self.open)} pending transfers" if self.open else None


def apply(state: AccountState, entry: Entry) -> None:
    """Carry out a `transfer.*` entry's effects on the transfers out of the account."""
    kind, data = entry.kind, entry.data
    if kind == "transfer.created":
        made: Transfer | None = state.made
        if made is None:
            times = {"created_at": entry.at, "updated_at": entry.at}
            data = {**data["transfer"], "source_id": entry.account, **times}
            made = msgspec.convert(data, Transfer)
        elif made.created_at != entry.at:  # an entry is never earlier than the one before it
            made = msgspec.structs.replace(made, created_at=entry.at, updated_at=entry.at)
        transfers = state.part(Transfers)
        transfers.created[made.id] = None
        if made.state is TransferState.PENDING:
            transfers.open[made.id] = made
        else:
            transfers.recalled[made.id] = made
        return
    if kind == "transfer.received":
        if "reverses" not in data:
            return
        transfer_id, changes = UUID(data["reverses"]), {"reversed_by": UUID(data["transfer"])}
    else:
        transfer_id, changes = UUID(data["transfer"]), _changes(data["set"])
    transfers = state.part(Transfers)
    found = transfers.find(transfer_id)
    assert found is not None, f"entry {entry.seq} changes transfer {transfer_id}: not there"
    transfers.put(msgspec.structs.replace(found, updated_at=entry.at, **changes))
    if transfer_id not in transfers.created:
        transfers.changed[transfer_id] = None


def _changes(data: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {"state": TransferState(data["state"])}
    if "posted_amount" in data:
        changes["posted_amount"] = Decimal(data["posted_amount"])
    return changes


class NewTransfer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A transfer that somebody asks for.

    Attributes:
        amount: Above zero, within the asset's scale.
        expires_in_s: Of a pending one; None keeps it pending until it is posted or voided.
    """

    id: UUID
    source_id: UUID
    target_id: UUID
    asset: str
    amount: Decimal
    pending: bool = False
    expires_in_s: float | None = None
    metadata: dict[str, str] = {}


class CreateTransfers(msgspec.Struct, frozen=True):
    """Make one transfer, or a linked group of which all are made or none.

    Make it with `create_transfers`. Each of a group sees what the ones before it did.

    Attributes:
        accounts: Every source and target, once.
        group_id: Of linked transfers.
        pending_max: Most pending transfers out of one account.
    """

    id: UUID
    actor: Actor
    accounts: tuple[UUID, ...]
    transfers: tuple[NewTransfer, ...]
    group_id: UUID | None = None
    pending_max: int = PENDING_MAX

    priority = Priority.NEW
    opens = False

    def decide(self, states: States, context: Context) -> Drafts | Refused:
        """Check each in turn; the first that cannot be made refuses all."""
        halted = halted_refusal(context)
        if halted is not None:
            return halted
        drafts: list[Draft] = []
        moved: dict[UUID, dict[str, Decimal]] = {}
        held: dict[UUID, int] = {}
        linked = len(self.transfers) > 1
        for index, new in enumerate(self.transfers):
            source, target = states[new.source_id], states[new.target_id]
            refusal = hindrance(
                source.part(Ledger),
                target.part(Ledger),
                new.asset,
                new.amount,
                moved.get(new.source_id) if moved else None,
            )
            if refusal is None and new.pending:
                count = len(source.part(Transfers).open) + held.get(new.source_id, 0)
                if count >= self.pending_max:
                    refusal = _too_many(self.pending_max)
                held[new.source_id] = held.get(new.source_id, 0) + 1
            if refusal is not None:
                if linked:
                    facts = {**(refusal.facts or {}), "transfer": index}
                    return Refused(refusal.reason, f"transfer {index}: {refusal.detail}", facts)
                return refusal
            self._make(new, source, target, context, drafts)
            if linked:
                out = moved.setdefault(new.source_id, {})
                out[new.asset] = out.get(new.asset, money.ZERO) - new.amount
                if not new.pending:
                    into = moved.setdefault(new.target_id, {})
                    into[new.asset] = into.get(new.asset, money.ZERO) + new.amount
        return Drafts(tuple(drafts))

    def _make(
        self,
        new: NewTransfer,
        source: AccountState,
        target: AccountState,
        context: Context,
        drafts: list[Draft],
    ) -> None:
        amount, transfer_id, at = money.text(new.amount), str(new.id), context.stamp()
        data: dict[str, Any] = {
            "id": transfer_id,
            "target_id": target.text,
            "asset": new.asset,
            "amount": amount,
        }
        if new.metadata:
            data["metadata"] = new.metadata
        if self.group_id is not None:
            data["group_id"] = str(self.group_id)
        expires_at = None
        if new.pending:
            data["state"] = "pending"
            if new.expires_in_s is not None:
                expires_at = data["expires_at"] = context.stamp(new.expires_in_s)
            postings = move(new.asset, new.amount, AVAILABLE, HELD)
        else:
            data["state"] = "posted"
            data["posted_amount"] = amount
            postings = (Posting(AVAILABLE, new.asset, -new.amount),)
        exact = Decimal(amount)
        made = Transfer(
            id=new.id,
            source_id=new.source_id,
            target_id=new.target_id,
            asset=new.asset,
            amount=exact,
            state=TransferState.PENDING if new.pending else TransferState.POSTED,
            posted_amount=money.ZERO if new.pending else exact,
            expires_at=expires_at,
            group_id=self.group_id,
            metadata=new.metadata,
            created_at=at,
            updated_at=at,
        )
        drafts.append(Draft(new.source_id, "transfer.created", {"transfer": data}, postings, made))
        if not new.pending:
            received = {"transfer": transfer_id, "source_id": source.text}
            postings = (Posting(AVAILABLE, new.asset, new.amount),)
            drafts.append(Draft(new.target_id, "transfer.received", received, postings))

    def result(self, states: States) -> tuple[Transfer, ...]:
        """The transfers, in the order they were asked for."""
        if len(self.transfers) == 1:  # nearly always
            (new,) = self.transfers
            return (there(states, new.source_id, new.id),)
        return tuple([there(states, new.source_id, new.id) for new in self.transfers])


def create_transfers(
    command_id: UUID,
    actor: Actor,
    transfers: tuple[NewTransfer, ...],
    group_id: UUID | None = None,
    pending_max: int = PENDING_MAX,
) -> CreateTransfers:
    """The command that makes these transfers (1 to `LINKED_MAX`)."""
    if len(transfers) == 1:
        # A transfer to its own source is refused, not crashed on: hence each account once.
        (one,) = transfers
        accounts: tuple[UUID, ...] = (one.source_id, one.target_id)
        if one.source_id == one.target_id:
            accounts = (one.source_id,)
    else:
        accounts = tuple({a: None for t in transfers for a in (t.source_id, t.target_id)})
    return CreateTransfers(command_id, actor, accounts, transfers, group_id, pending_max)


def halted_refusal(context: Context) -> Refused | None:
    """Why no transfer may move money."""
    halt = context.halt("transfers")
    return None if halt is None else Refused(Reason.TRANSFERS_HALTED, halt.reason)


def hindrance(
    source: Ledger,
    target: Ledger,
    asset: str,
    amount: Decimal,
    moved: Mapping[str, Decimal] | None = None,
) -> Refused | None:
    """Why money cannot move from source to target.

    Args:
        moved: asset → what this command has added to the source before, if anything.
    """
    paying, receiving = source.account, target.account
    assert paying is not None, "the store loads the account with its balances"
    assert receiving is not None, "the store loads the account with its balances"
    if paying is receiving:
        return Refused(Reason.TRANSFER_SAME_ACCOUNT, "source and target are the same account")
    if paying.status != OPEN:
        return not_open(paying, "source")
    if receiving.status == CLOSED:
        return not_open(receiving, "target")
    if paying.venue != receiving.venue:
        places = [account.venue or "no venue" for account in (paying, receiving)]
        return Refused(
            Reason.TRANSFER_CROSSES_VENUES,
            f"the source's money is at {places[0]}, the target's at {places[1]}",
        )
    overdrawn = source.overdrawn(moved)
    if overdrawn:
        return Refused(
            Reason.ACCOUNT_NEGATIVE, f"{', '.join(overdrawn)} below zero", {"assets": overdrawn}
        )
    spendable = source.spendable(asset)
    if moved:
        spendable += moved.get(asset, money.ZERO)
    if spendable < amount:
        needed, has = money.text(amount), money.text(spendable)
        return Refused(
            Reason.INSUFFICIENT_FUNDS,
            f"the transfer needs {needed} {asset}; {has} can be spent",
            {"asset": asset, "needed": needed, "available": has},
        )
    return None


def not_open(account: Account, which: str) -> Refused:
    """The refusal of an account that is frozen or closed."""
    closed = account.status == CLOSED
    reason = Reason.ACCOUNT_CLOSED if closed else Reason.ACCOUNT_FROZEN
    return Refused(reason, f"the {which} account is {account.status}")


def _too_many(most: int) -> Refused:
    return Refused(
        Reason.TRANSFERS_PENDING_MAX,
        f"the account has {most} pending transfers; it may not have more",
        {"limit": most},
    )


def there(states: States, source_id: UUID, transfer_id: UUID) -> Transfer:
    """A transfer that is in its source's part."""
    transfer = states[source_id].part(Transfers).find(transfer_id)
    assert transfer is not None, "it was applied to this part just now"
    return transfer
