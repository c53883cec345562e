"""Transfers against a simple model: whatever is asked, in whatever order and at whatever time.

The model is one page of dictionaries that knows nothing of entries, postings or commands.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.journal import chain
from tbot.journal.batch import Batch
from tbot.journal.commands import SYSTEM, AccountState, Context
from tbot.journal.projections import Projections
from tbot.ledger.entries import Balance, ChangeAccount, Ledger, LimitChanges, Limits, OpenAccount
from tbot.ledger.store import LedgerProjection
from tbot.ledger.transfers import NewTransfer, Transfer, Transfers, create_transfers
from tbot.ledger.transfers_commands import (
    ExpireTransfer,
    PostTransfer,
    ReverseTransfer,
    VoidTransfer,
)
from tbot.ledger.transfers_store import TransfersProjection

PROJECTIONS = Projections(LedgerProjection(), TransfersProjection())
LIMITS = Limits(max_order_notional=Decimal(1), max_open_orders=1, price_collar=Decimal("0.05"))
PLACES = [None, None, None, None, "paper", "paper", "other"]
PENDING_MAX = 3
ZERO = Decimal(0)
# Mostly accounts of one place: else most transfers would be refused for that alone.
CASH = st.integers(0, 3)
ACCOUNTS = CASH | st.integers(0, len(PLACES) - 1)
AMOUNTS = st.integers(1, 12_000).map(lambda cents: Decimal(cents) / 100)


@dataclass
class Held:
    """A transfer, as the model has it."""

    source: int
    target: int
    amount: Decimal
    state: str
    expires: datetime | None = None
    posted: Decimal = ZERO
    reverses: UUID | None = None
    reversed_by: UUID | None = None


@dataclass
class Model:
    """What should be: plain numbers, and each rule written as one sentence of code."""

    free: list[Decimal] = field(default_factory=lambda: [Decimal(100)] * len(PLACES))
    status: list[str] = field(default_factory=lambda: ["open"] * len(PLACES))
    overdraft: list[Decimal] = field(default_factory=lambda: [ZERO] * len(PLACES))
    transfers: dict[UUID, Held] = field(default_factory=dict)

    def pending(self, account: int) -> list[Held]:
        """Pending transfers out of an account."""
        found = self.transfers.values()
        return [one for one in found if one.source == account and one.state == "pending"]

    def why_not(self, source: int, target: int, amount: Decimal) -> Reason | None:
        """Why money cannot move."""
        if source == target:
            return Reason.TRANSFER_SAME_ACCOUNT
        if self.status[source] != "open":
            frozen = self.status[source] == "frozen"
            return Reason.ACCOUNT_FROZEN if frozen else Reason.ACCOUNT_CLOSED
        if self.status[target] == "closed":
            return Reason.ACCOUNT_CLOSED
        if PLACES[source] != PLACES[target]:
            return Reason.TRANSFER_CROSSES_VENUES
        if self.free[source] < -self.overdraft[source]:
            return Reason.ACCOUNT_NEGATIVE
        if self.free[source] - amount < -self.overdraft[source]:
            return Reason.INSUFFICIENT_FUNDS
        return None

    def move(self, source: int, target: int, amount: Decimal) -> None:
        """Money goes from what is free to what is free."""
        self.free[source] -= amount
        self.free[target] += amount


class Desk(RuleBasedStateMachine):
    """Seven accounts in three places."""

    known = Bundle("known")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.ids = [UUID(int=n + 1) for n in range(len(PLACES))]
        self.states = {a: AccountState(a, 0, chain.genesis(a), self.now) for a in self.ids}
        self.journals: dict[UUID, list[Any]] = {a: [] for a in self.ids}
        self.counters: dict[tuple[str, str], Decimal] = {}
        self.table: dict[UUID, Transfer] = {}
        self.model = Model()
        for account_id, place in zip(self.ids, PLACES, strict=True):
            command = OpenAccount(
                new_id(), SYSTEM, account_id, UUID(int=99), "a", place, LIMITS, {"X": Decimal(100)}
            )
            self.run(command)

    def run(self, command: Any) -> Any:
        """What the committer does with a command, and a table in place of Postgres."""
        pending: Any = SimpleNamespace(command=command, once=None)
        batch = Batch([pending], states=self.states)
        for state in self.states.values():
            state.part(Transfers).forget()
        transfer = self.table.get(getattr(command, "transfer_id", None))  # type: ignore[arg-type]
        if transfer is not None and not transfer.pending:
            self.states[transfer.source_id].part(Transfers).put(transfer)
        batch.decide(Context(self.now, {}), PROJECTIONS, 10.0)
        for entry in batch.entries:
            self.journals[entry.account_id].append((entry.seq, entry.body, entry.hash))
        for key, amount in batch.counters.items():
            self.counters[key] = self.counters.get(key, ZERO) + amount
        for state in self.states.values():
            part = state.part(Transfers)
            for transfer_id in (*part.created, *part.changed):
                found = part.find(transfer_id)
                assert found is not None
                self.table[transfer_id] = found
        outcome: Any = batch.outcomes[0][1]
        assert not (isinstance(outcome, Refused) and batch.entries)
        return outcome if isinstance(outcome, Refused) else outcome.result

    def new(self, source: int, target: int, amount: Decimal, **more: Any) -> NewTransfer:
        return NewTransfer(
            id=new_id(),
            source_id=self.ids[source],
            target_id=self.ids[target],
            asset="X",
            amount=amount,
            **more,
        )

    def about(self, kind: Any, transfer_id: UUID, *more: Any) -> Any:
        one = self.model.transfers[transfer_id]
        source, target = self.ids[one.source], self.ids[one.target]
        return self.run(kind(new_id(), SYSTEM, transfer_id, source, target, *more))

    @rule(
        target=known,
        source=ACCOUNTS,
        other=ACCOUNTS,
        amount=AMOUNTS,
        expires_in_s=st.none() | st.integers(1, 50),
        pending=st.booleans(),
    )
    def transfer(
        self, source: int, other: int, amount: Decimal, expires_in_s: int | None, pending: bool
    ) -> Any:
        more = {"pending": True, "expires_in_s": expires_in_s} if pending else {}
        new = self.new(source, other, amount, **more)
        outcome = self.run(create_transfers(new_id(), SYSTEM, (new,), None, PENDING_MAX))
        expected = self.model.why_not(source, other, amount)
        if expected is None and pending and len(self.model.pending(source)) >= PENDING_MAX:
            expected = Reason.TRANSFERS_PENDING_MAX
        if expected is not None:
            assert outcome.reason is expected
            return multiple()
        self.note(new, pending, expires_in_s)
        return new.id

    @rule(
        target=held,
        source=CASH,
        other=CASH,
        amount=st.integers(1, 3000).map(lambda cents: Decimal(cents) / 100),
        expires_in_s=st.none() | st.integers(1, 50),
    )
    def hold(self, source: int, other: int, amount: Decimal, expires_in_s: int | None) -> Any:
        """As `transfer`, but mostly possible."""
        return self.transfer(source, other, amount, expires_in_s, True)

    def note(self, new: NewTransfer, pending: bool, expires_in_s: int | None = None) -> None:
        source, target = self.ids.index(new.source_id), self.ids.index(new.target_id)
        held = Held(source, target, new.amount, "pending")
        if pending:
            self.model.free[source] -= new.amount
            if expires_in_s is not None:
                held.expires = self.now + timedelta(seconds=expires_in_s)
        else:
            held.state, held.posted = "posted", new.amount
            self.model.move(source, target, new.amount)
        self.model.transfers[new.id] = held

    @rule(
        target=known,
        steps=st.lists(
            st.tuples(CASH, ACCOUNTS, AMOUNTS | st.just(Decimal(100)), st.booleans()),
            min_size=2,
            max_size=5,
        ),
    )
    def linked(self, steps: list[tuple[int, int, Decimal, bool]]) -> Any:
        """The model carries out the steps one by one, and goes back when one cannot be."""
        before = list(self.model.free)
        new = [self.new(s, t, amount, pending=p) for s, t, amount, p in steps]
        expected = None
        for index, (source, target, amount, pending) in enumerate(steps):
            expected = self.model.why_not(source, target, amount)
            if expected is None and pending and len(self.model.pending(source)) >= PENDING_MAX:
                expected = Reason.TRANSFERS_PENDING_MAX
            if expected is not None:
                break
            self.note(new[index], pending)
        command = create_transfers(new_id(), SYSTEM, tuple(new), new_id(), PENDING_MAX)
        outcome = self.run(command)
        if expected is not None:
            assert outcome.reason is expected
            assert outcome.facts["transfer"] == index
            self.model.free = before
            for one in new:
                self.model.transfers.pop(one.id, None)
            return multiple()
        assert {one.group_id for one in outcome} == {command.group_id}
        return multiple(*(one.id for one in new))

    @rule(transfer_id=held, percent=st.none() | st.integers(1, 120))
    def post(self, transfer_id: UUID, percent: int | None) -> None:
        one = self.model.transfers[transfer_id]
        amount = None
        if percent is not None:
            cents = int(one.amount * 100) * percent // 100
            amount = Decimal(max(1, cents)) / 100
        outcome = self.about(PostTransfer, transfer_id, amount)
        if one.state != "pending":
            assert outcome.reason is Reason.TRANSFER_NOT_PENDING
        elif one.expires is not None and one.expires <= self.now:
            assert outcome.reason is Reason.TRANSFER_EXPIRED
        elif self.model.status[one.source] == "frozen":
            assert outcome.reason is Reason.ACCOUNT_FROZEN
        elif self.model.status[one.target] == "closed":
            assert outcome.reason is Reason.ACCOUNT_CLOSED
        elif amount is not None and amount > one.amount:
            assert outcome.reason is Reason.TRANSFER_AMOUNT_EXCEEDED
        else:
            one.state, one.posted = "posted", amount or one.amount
            self.model.free[one.source] += one.amount - one.posted
            self.model.free[one.target] += one.posted
            assert outcome.posted_amount == one.posted

    @rule(transfer_id=held, late=st.booleans())
    def post_at_the_last_moment(self, transfer_id: UUID, late: bool) -> None:
        """An instant before its time is over, or just when it is."""
        one = self.model.transfers[transfer_id]
        if one.state == "pending" and one.expires is not None:
            instant = timedelta(microseconds=0 if late else 1)
            self.now = max(self.now, one.expires - instant)
        self.post(transfer_id, None)

    @rule(source=CASH, other=CASH, more=st.integers(-1, 1))
    def pass_through(self, source: int, other: int, more: int) -> None:
        """Linked: all that the target has, with what it was sent just now, goes back: or 0.01 more."""
        back = self.model.free[other] + self.model.overdraft[other] + 5 + Decimal(more) / 100
        if back > 0:
            self.linked([(source, other, Decimal(5), False), (other, source, back, False)])

    @rule(transfer_id=held)
    def void(self, transfer_id: UUID) -> None:
        one = self.model.transfers[transfer_id]
        outcome = self.about(VoidTransfer, transfer_id)
        if one.state != "pending":
            assert outcome.reason is Reason.TRANSFER_NOT_PENDING
        else:
            one.state = "voided"
            self.model.free[one.source] += one.amount

    @rule(seconds=st.integers(0, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(transfer_id=held)
    def expire(self, transfer_id: UUID) -> None:
        """The sweeper may come at any time, twice, and for what is not due."""
        one = self.model.transfers[transfer_id]
        self.about(ExpireTransfer, transfer_id)
        if one.state == "pending" and one.expires is not None and one.expires <= self.now:
            one.state = "expired"
            self.model.free[one.source] += one.amount

    @rule(target=known, transfer_id=known | held)
    def reverse(self, transfer_id: UUID) -> Any:
        one = self.model.transfers[transfer_id]
        reversal_id = new_id()
        outcome = self.about(ReverseTransfer, transfer_id, reversal_id, {})
        if one.state != "posted":
            expected: Reason | None = Reason.TRANSFER_NOT_POSTED
        elif one.reverses is not None:
            expected = Reason.TRANSFER_IS_REVERSAL
        elif one.reversed_by is not None:
            expected = Reason.TRANSFER_REVERSED
        else:
            expected = self.model.why_not(one.target, one.source, one.posted)
        if expected is not None:
            assert outcome.reason is expected
            return multiple()
        one.reversed_by = reversal_id
        self.model.transfers[reversal_id] = Held(
            one.target, one.source, one.posted, "posted", None, one.posted, transfer_id
        )
        self.model.move(one.target, one.source, one.posted)
        return reversal_id

    @rule(account=ACCOUNTS, status=st.sampled_from(["open", "frozen", "closed"]))
    def change_status(self, account: int, status: str) -> None:
        change = ChangeAccount(new_id(), SYSTEM, self.ids[account], status=status)
        outcome = self.run(change)
        if self.model.status[account] == "closed":
            assert outcome.reason is Reason.ACCOUNT_CLOSED
        elif status == "closed" and (self.model.free[account] or self.model.pending(account)):
            assert outcome.reason is Reason.ACCOUNT_NOT_EMPTY
        else:
            self.model.status[account] = status

    @rule(source=ACCOUNTS, other=ACCOUNTS)
    def empty_and_close(self, source: int, other: int) -> None:
        """What chance alone would hardly ever do."""
        rest = self.model.free[source]
        if rest > 0 and self.model.why_not(source, other, rest) is None:
            self.transfer(source, other, rest, None, False)
        self.change_status(source, "closed")

    @rule(source=CASH, other=CASH, number=st.integers(2, PENDING_MAX + 1))
    def hold_several(self, source: int, other: int, number: int) -> None:
        """Linked: those of one command count too."""
        self.linked([(source, other, Decimal("0.01"), True)] * number)

    @rule(transfer_id=held, other=CASH)
    def close_its_target(self, transfer_id: UUID, other: int) -> None:
        """A closed account gets nothing, however long ago it was promised."""
        self.empty_and_close(self.model.transfers[transfer_id].target, other)
        self.post(transfer_id, None)

    @rule(account=CASH, other=CASH)
    def owe(self, account: int, other: int) -> None:
        """An overdraft that is taken away while it is used: nothing goes out any more."""
        self.change_overdraft(account, Decimal(20))
        rest = self.model.free[account] + 20
        if rest > 0:
            self.transfer(account, other, rest, None, False)
        self.change_overdraft(account, ZERO)
        self.transfer(account, other, Decimal(1), None, False)

    @rule(account=ACCOUNTS, most=st.integers(0, 60).map(Decimal))
    def change_overdraft(self, account: int, most: Decimal) -> None:
        """Also below what is used: then nothing goes out until the account has recovered."""
        limits = LimitChanges(overdraft={"X": most})
        outcome = self.run(ChangeAccount(new_id(), SYSTEM, self.ids[account], limits))
        if self.model.status[account] == "closed":
            assert outcome.reason is Reason.ACCOUNT_CLOSED
        elif most and PLACES[account] is not None:
            assert outcome.reason is Reason.OVERDRAFT_NOT_ALLOWED
        else:
            self.model.overdraft[account] = most

    @invariant()
    def balances_are_the_models(self) -> None:
        for number, account_id in enumerate(self.ids):
            held = sum((one.amount for one in self.model.pending(number)), ZERO)
            found = self.states[account_id].part(Ledger).balances["X"]
            assert found == Balance(self.model.free[number], held)

    @invariant()
    def transfers_are_the_models(self) -> None:
        assert self.table.keys() == self.model.transfers.keys()
        for transfer_id, one in self.model.transfers.items():
            found = self.table[transfer_id]
            assert (found.state, found.posted_amount) == (one.state, one.posted)
            assert (found.reverses, found.reversed_by) == (one.reverses, one.reversed_by)

    @invariant()
    def every_asset_sums_to_zero(self) -> None:
        owned = sum((s.part(Ledger).balances["X"].total for s in self.states.values()), ZERO)
        assert owned + sum(self.counters.values(), ZERO) == 0

    def teardown(self) -> None:
        """A replay of every stream gives the same, transfer by transfer."""
        for account_id, state in self.states.items():
            replayed = AccountState(account_id, 0, chain.genesis(account_id), self.now)
            for entry in chain.check(account_id, self.journals[account_id]):
                PROJECTIONS.apply(replayed, entry)
            assert replayed.part(Ledger).balances == state.part(Ledger).balances
            assert replayed.part(Ledger).account == state.part(Ledger).account
            part = replayed.part(Transfers)
            assert part.open == state.part(Transfers).open
            sent = {t.id: t for t in self.table.values() if t.source_id == account_id}
            assert {**part.open, **part.recalled} == sent


TestDesk = Desk.TestCase
TestDesk.settings = settings(max_examples=150, stateful_step_count=50)
