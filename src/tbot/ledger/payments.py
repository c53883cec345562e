"""Deposits and withdrawals as part of an account's state: pure.

Entry points: `Payment`, `may_become`, `Payments` (the part), `apply`, `Rules`. The commands are in
`tbot.ledger.payments_commands`.

Invariants:

1. A withdrawal's amount and fee are held from the request until the provider proves what became
   of it. `submitted` already means *may have been paid*; silence never ends it.
2. What the provider says is a fact and only moves a payment forward: open → failed → succeeded →
   returned. So reports may come twice and in any order, and the outcome is the same.
3. What a payment did to the balances follows from its state alone: nothing while it is open (but
   the hold), nothing once it failed, was canceled or returned, its amount once it succeeded.
4. Money that the provider received is credited exactly once per reference of the provider's, even
   after the deposit expired, and on a frozen or closed account: it is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec

from tbot.core import clock, money
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState


class Kind(StrEnum):
    """Which way the money goes."""

    DEPOSIT = "deposit"
    WITHDRAWAL = "withdrawal"


class State(StrEnum):
    """Where a payment is."""

    PENDING = "pending"
    """A deposit whose money has not come."""
    AWAITING_APPROVAL = "awaiting_approval"
    APPROVED = "approved"
    """A withdrawal that may go out; nothing was sent yet."""
    SUBMITTED = "submitted"
    """A withdrawal that the provider may have: from now on only it can tell."""
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    EXPIRED = "expired"
    REJECTED = "rejected"
    CANCELED = "canceled"
    RETURNED = "returned"


OPEN: Final = frozenset({State.PENDING, State.AWAITING_APPROVAL, State.APPROVED, State.SUBMITTED})
FINAL: Final = frozenset(State) - OPEN
COUNTED: Final = OPEN | {State.SUCCEEDED}
"""States that count towards the day's limit: the money moved, or still may."""

_NEXT: Final[Mapping[Kind, Mapping[State, frozenset[State]]]] = {
    Kind.DEPOSIT: {
        State.PENDING: frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED, State.CANCELED}),
        # The money came all the same: late, or against the provider's own first word.
        State.EXPIRED: frozenset({State.SUCCEEDED}),
        State.CANCELED: frozenset({State.SUCCEEDED}),
        State.FAILED: frozenset({State.SUCCEEDED}),
    },
    Kind.WITHDRAWAL: {
        State.AWAITING_APPROVAL: frozenset({State.APPROVED, State.REJECTED, State.CANCELED}),
        # An administrator may still stop what nobody has sent.
        State.APPROVED: frozenset({State.SUBMITTED, State.REJECTED, State.CANCELED}),
        # Returned at once: the report of the success in between is late, or lost.
        State.SUBMITTED: frozenset({State.SUCCEEDED, State.FAILED, State.RETURNED}),
        # The provider contradicts itself; whoever says that the money left, is believed.
        State.FAILED: frozenset({State.SUCCEEDED, State.RETURNED}),
        State.SUCCEEDED: frozenset({State.RETURNED}),
    },
}


def may_become(kind: Kind, state: State, following: State) -> bool:
    """Whether a payment may go from one state to another.

    Example:
        >>> may_become(Kind.WITHDRAWAL, State.SUBMITTED, State.CANCELED)
        False
    """
    return following in _NEXT[kind].get(state, frozenset())


class Payment(msgspec.Struct, frozen=True, kw_only=True):
    """A deposit or a withdrawal.

    Attributes:
        provider: Who moves the money.
        amount: What was asked for.
        fee: Of a withdrawal, on top of its amount.
        destination: Of a withdrawal; None for a deposit.
        reason: Why it failed, was rejected or returned.
        instructions: Of a deposit, how to pay it; None until the provider expects it.
        reference: The provider's id of the movement of money.
        settled: What really moved; zero until it did, and after it was returned.
        held: What the account holds for it now.
        requested_by: Who asked for it; None for money that came unasked.
        decided_by: Who approved or rejected it.
        parent_id: The deposit that this one's money came for a second time.
        expires_at: Of a deposit.
        submitted_at: Of a withdrawal: from then on the provider may have it.
    """

    id: UUID
    account_id: UUID
    kind: Kind
    provider: str
    asset: str
    amount: Decimal
    fee: Decimal = money.ZERO
    destination: str | None = None
    state: State
    reason: str | None = None
    instructions: str | None = None
    reference: str | None = None
    settled: Decimal = money.ZERO
    held: Decimal = money.ZERO
    requested_by: UUID | None = None
    decided_by: UUID | None = None
    parent_id: UUID | None = None
    metadata: dict[str, str] = {}
    expires_at: str | None = None
    submitted_at: str | None = None
    created_at: str = ""
    updated_at: str = ""
    seq: int = 0

    @property
    def final(self) -> bool:
        """Whether it takes a word of the provider's to change it again, if anything does."""
        return self.state in FINAL

    @property
    def hour(self) -> datetime:
        """The UTC hour that it counts for."""
        return hour_of(clock.unstamp(self.created_at))

    @property
    def unapproved(self) -> bool:
        """Whether it is a withdrawal that went out, or will, without a second person."""
        out = self.kind is Kind.WITHDRAWAL and self.state in COUNTED
        return out and self.state is not State.AWAITING_APPROVAL and self.decided_by is None

    def to_data(self) -> dict[str, Any]:
        """As its first entry keeps it, without what the entry says itself."""
        data: dict[str, Any] = {
            name: _jsonable(getattr(self, name))
            for name in self.__struct_fields__
            if name not in ("account_id", "created_at", "updated_at", "seq")
        }
        return {name: value for name, value in data.items() if value is not None}

    @classmethod
    def from_data(cls, data: Mapping[str, Any], account_id: UUID, seq: int, at: str) -> Payment:
        """What `to_data` wrote, at its entry's place and time."""
        return cls(**_typed(data), account_id=account_id, created_at=at, updated_at=at, seq=seq)

    def changed(self, changes: Mapping[str, Any], seq: int, at: str) -> Payment:
        """The next version, with an entry's changes."""
        return msgspec.structs.replace(self, **_typed(changes), updated_at=at, seq=seq)


_AMOUNTS: Final = frozenset({"amount", "fee", "settled", "held"})
_IDS: Final = frozenset({"id", "requested_by", "decided_by", "parent_id"})


def _jsonable(value: Any) -> Any:
    if isinstance(value, Decimal):
        return money.text(value)
    return str(value) if isinstance(value, UUID) else value


def _typed(data: Mapping[str, Any]) -> dict[str, Any]:
    typed = dict(data)
    for name, value in data.items():
        if value is None:
            continue
        if name in _AMOUNTS:
            typed[name] = Decimal(value)
        elif name in _IDS:
            typed[name] = UUID(value)
        elif name == "state":
            typed[name] = State(value)
        elif name == "kind":
            typed[name] = Kind(value)
    return typed


def repeated_id(payment_id: UUID, reference: str) -> UUID:
    """The id of the deposit that stands for money that came again for a payment."""
    return uuid5(payment_id, reference)


def outside(provider: str) -> str:
    """The counter-account that stands for the world behind a provider."""
    return f"outside:{provider}"


FEES: Final = "fees:withdrawals"


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits and fees by asset; `*` stands for every asset that is not named.

    Attributes:
        approval_above: A withdrawal above this needs a second person.
        approval_day_above: So does one that takes the sum of 24 hours above this.
        open_max: Most open payments of one account.
        deposit_ttl: How long a deposit waits for its money.
    """

    deposit_max: Mapping[str, Decimal]
    deposit_day_max: Mapping[str, Decimal]
    withdrawal_max: Mapping[str, Decimal]
    withdrawal_day_max: Mapping[str, Decimal]
    approval_above: Mapping[str, Decimal]
    approval_day_above: Mapping[str, Decimal]
    withdrawal_fee: Mapping[str, Decimal]
    open_max: int
    deposit_ttl: timedelta

    def largest(self, kind: Kind, asset: str) -> Decimal | None:
        """The largest single payment, if there is a limit."""
        limits = self.deposit_max if kind is Kind.DEPOSIT else self.withdrawal_max
        return _of(limits, asset)

    def largest_of_day(self, kind: Kind, asset: str) -> Decimal | None:
        """The largest sum of a UTC day, if there is a limit."""
        limits = self.deposit_day_max if kind is Kind.DEPOSIT else self.withdrawal_day_max
        return _of(limits, asset)

    def fee(self, asset: str) -> Decimal:
        """The fee of a withdrawal."""
        return _of(self.withdrawal_fee, asset) or money.ZERO

    def needs_approval(self, asset: str, amount: Decimal, unapproved: Decimal) -> bool:
        """Whether a second person has to approve a withdrawal.

        Args:
            unapproved: What went out before it without one: see `Payments.unapproved_total`.
        """
        above, day_above = _of(self.approval_above, asset), _of(self.approval_day_above, asset)
        if above is not None and amount > above:
            return True
        return day_above is not None and unapproved + amount > day_above


def _of(amounts: Mapping[str, Decimal], asset: str) -> Decimal | None:
    return amounts[asset] if asset in amounts else amounts.get("*")


type DayKey = tuple[date, Kind, str]
type HourKey = tuple[datetime, str]


class Payments:
    """An account's open payments and what it asked for today.

    Attributes:
        open: Every payment that is not final, by id.
        recalled: Final ones that were read for this batch or became final in it.
        totals: (UTC day, kind, asset) → what counts towards that day's limit; yesterday's too,
            since a day may end between reading and deciding.
        unapproved: (UTC hour, asset) → withdrawals that nobody approved. By the hour, because a
            sum that began anew at midnight would let twice as much out around it.
    """

    __slots__ = ("changed", "created", "open", "recalled", "totals", "unapproved")

    def __init__(self) -> None:
        self.open: dict[UUID, Payment] = {}
        self.recalled: dict[UUID, Payment] = {}
        self.totals: dict[DayKey, Decimal] = {}
        self.unapproved: dict[HourKey, Decimal] = {}
        self.created: set[UUID] = set()
        self.changed: set[UUID] = set()

    def find(self, payment_id: UUID) -> Payment | None:
        """An open or recalled payment."""
        return self.open.get(payment_id) or self.recalled.get(payment_id)

    def day_total(self, day: date, kind: Kind, asset: str) -> Decimal:
        """What counts towards a day's limit so far."""
        return self.totals.get((day, kind, asset), money.ZERO)

    def unapproved_total(self, at: datetime, asset: str) -> Decimal:
        """What was withdrawn without approval in the 24 hours before, and the hour they began in.

        The whole of that hour: the sum is never too small.
        """
        first = hour_of(at) - _UNAPPROVED_FOR
        found = self.unapproved.items()
        return sum((n for (hour, one), n in found if one == asset and hour >= first), money.ZERO)

    def unfinished(self) -> str | None:
        """What keeps the account from being closed."""
        return f"{len(self.open)} open payments" if self.open else None

    def put(self, payment: Payment) -> None:
        """Take in a payment that was read from the tables, or its next version."""
        if payment.final:
            self.open.pop(payment.id, None)
            self.recalled[payment.id] = payment
        else:
            self.recalled.pop(payment.id, None)
            self.open[payment.id] = payment

    def put_sums(
        self, hour: datetime, kind: Kind, asset: str, total: Decimal, unapproved: Decimal
    ) -> None:
        """Take in what the tables have of an hour; once for each, before anything is counted."""
        _add(self.totals, (hour.date(), kind, asset), total)
        _add(self.unapproved, (hour, asset), unapproved)

    def forget(self) -> None:
        """Drop what only one batch needed; the tables are up to date."""
        self.recalled.clear()
        self.created.clear()
        self.changed.clear()

    def count(self, before: Payment | None, after: Payment, today: date) -> None:
        """Keep the sums of days and hours in step with a payment's change."""
        first = first_day(today)
        for day_key in [key for key in self.totals if key[0] < first]:
            del self.totals[day_key]
        for hour_key in [key for key in self.unapproved if key[0].date() < first]:
            del self.unapproved[hour_key]
        hour = after.hour
        if hour.date() < first:
            return
        counted = before is not None and before.state in COUNTED
        if counted != (after.state in COUNTED):
            change = -after.amount if counted else after.amount
            _add(self.totals, (hour.date(), after.kind, after.asset), change)
        unapproved = before is not None and before.unapproved
        if unapproved != after.unapproved:
            change = -after.amount if unapproved else after.amount
            _add(self.unapproved, (hour, after.asset), change)


def _add[Key](sums: dict[Key, Decimal], key: Key, change: Decimal) -> None:
    total = sums.get(key, money.ZERO) + change
    if total:
        sums[key] = total
    else:
        sums.pop(key, None)


_UNAPPROVED_FOR: Final = timedelta(hours=24)


def hour_of(at: datetime) -> datetime:
    """When the UTC hour of a moment began."""
    return at.replace(minute=0, second=0, microsecond=0)


def first_day(today: date) -> date:
    """The oldest day whose totals are kept."""
    return today - timedelta(days=1)


def apply(state: AccountState, entry: Entry) -> None:
    """Carry out a `payment.*` entry's effects on the account's payments."""
    payments = state.part(Payments)
    data = entry.data
    if "new" in data:
        before = None
        after = Payment.from_data(data["new"], state.account_id, entry.seq, entry.at)
        payments.created.add(after.id)
    else:
        payment_id = UUID(data["payment"])
        before = payments.find(payment_id)
        assert before is not None, f"entry {entry.seq} changes payment {payment_id}: not there"
        after = before.changed(data["set"], entry.seq, entry.at)
        if payment_id not in payments.created:
            payments.changed.add(payment_id)
    payments.put(after)
    payments.count(before, after, clock.unstamp(entry.at).date())
