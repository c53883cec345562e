"""Payments without I/O: states, limits, holds, approval, and reports in any order."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from tbot.core import clock, money
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.journal.commands import SYSTEM, AccountState, Actor, Context, Drafts, unbalanced
from tbot.journal.projections import Projections
from tbot.ledger import payments
from tbot.ledger.entries import NOTHING, ChangeAccount, Ledger, Limits, OpenAccount
from tbot.ledger.marks import Running
from tbot.ledger.payments import FINAL, Kind, Payment, Payments, Rules, State, may_become
from tbot.ledger.payments_commands import (
    CancelPayment,
    DecideWithdrawal,
    RequestDeposit,
    RequestWithdrawal,
)
from tbot.ledger.payments_reports import (
    ApplyReport,
    ExpireDeposit,
    GiveUpWithdrawal,
    NoteInstructions,
    SubmitWithdrawal,
)
from tbot.ledger.payments_store import PaymentsProjection
from tbot.ledger.provider import Report, Said
from tbot.ledger.statements import Movement, movements_of
from tbot.ledger.store import LedgerProjection

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
OWNER, APPROVER = UUID(int=7), UUID(int=8)
PROJECTIONS = Projections(LedgerProjection(), PaymentsProjection())
RULES = Rules(
    deposit_max={"*": Decimal(1000)},
    deposit_day_max={},
    withdrawal_max={"*": Decimal(500)},
    withdrawal_day_max={"EUR": Decimal(600)},
    approval_above={"*": Decimal(100)},
    approval_day_above={},
    withdrawal_fee={"EUR": Decimal("0.5")},
    open_max=10,
    deposit_ttl=timedelta(hours=24),
)
LIMITS = Limits(max_order_notional=Decimal(1), max_open_orders=1, price_collar=Decimal(1))


class World:
    """One account and the outside, decided and applied as the committer does it."""

    def __init__(self, venue: str | None = None, limits: Limits = LIMITS, **balances: str) -> None:
        self.id = new_id()
        self.now = NOON
        self.state = AccountState(self.id, 0, chain.genesis(self.id), NOON)
        self.counters: dict[tuple[str, str], Decimal] = {}
        self.kinds: list[str] = []
        self.running = Running(self.id)
        self.moved: list[Movement] = []
        amounts = {asset: Decimal(text) for asset, text in balances.items()}
        self.do(OpenAccount(new_id(), SYSTEM, self.id, OWNER, "a", venue, limits, amounts))

    @property
    def part(self) -> Payments:
        return self.state.part(Payments)

    def do(self, command: Any) -> Any:
        """The payment, or the refusal; entries are applied and sums checked."""
        states = {self.id: self.state}
        decision = command.decide(states, Context(now=self.now, switches={}))
        if isinstance(decision, Refused):
            return decision
        assert isinstance(decision, Drafts)
        assert unbalanced(decision.entries) == {}
        for draft in decision.entries:
            self.state.seq += 1
            entry = Entry(
                v=1,
                account=str(self.id),
                seq=self.state.seq,
                at=clock.stamp(self.now),
                kind=draft.kind,
                command=str(command.id),
                by=command.actor.to_json(),
                postings=[(p.holder, p.asset, money.text(p.amount)) for p in draft.postings],
                data=draft.data,
            )
            # What is applied went through JSON, as in a replay.
            body, _ = chain.seal(b"", entry)
            entry = chain.read(body)
            PROJECTIONS.apply(self.state, entry)
            self.kinds.append(entry.kind)
            self.moved += movements_of(entry, self.running)
            for holder, asset, text in entry.postings:
                if holder not in ("available", "held"):
                    key = holder, asset
                    self.counters[key] = self.counters.get(key, Decimal(0)) + Decimal(text)
        return command.result(states)

    def balance(self, asset: str = "EUR") -> tuple[str, str]:
        found = self.state.part(Ledger).balances.get(asset, NOTHING)
        return money.text(found.available), money.text(found.held)

    def deposit(self, amount: str = "10", asset: str = "EUR", rules: Rules = RULES) -> Any:
        return self.do(
            RequestDeposit(
                new_id(), by(OWNER), self.id, new_id(), asset, Decimal(amount), "bank", rules
            )
        )

    def withdraw(self, amount: str = "10", asset: str = "EUR", rules: Rules = RULES) -> Any:
        return self.do(
            RequestWithdrawal(
                new_id(),
                by(OWNER),
                self.id,
                new_id(),
                asset,
                Decimal(amount),
                "bank",
                rules,
                {},
                "DE89",
            )
        )

    def submit(self, payment: Payment) -> Any:
        return self.do(SubmitWithdrawal(new_id(), SYSTEM, self.id, payment.id))

    def cancel(self, payment: Payment) -> Any:
        return self.do(CancelPayment(new_id(), by(OWNER), self.id, payment.id))

    def decide(self, payment: Payment, who: UUID, approve: bool = True) -> Any:
        reason = None if approve else "no"
        return self.do(DecideWithdrawal(new_id(), by(who), self.id, payment.id, approve, reason))

    def hear(self, payment: Payment, said: str, reference: str = "r1", **changes: Any) -> Any:
        report = Report(payment.id, Said(said), payment.asset, payment.amount, reference)
        report = replace(report, **changes)
        return self.do(ApplyReport(new_id(), SYSTEM, self.id, payment.id, report, "cb"))

    def status(self, status: str) -> None:
        self.do(ChangeAccount(new_id(), SYSTEM, self.id, status=status))


def by(user: UUID) -> Actor:
    return Actor("user", user)


def refused(outcome: Any, reason: Reason) -> Refused:
    assert isinstance(outcome, Refused), outcome
    assert outcome.reason is reason
    return outcome


def test_a_withdrawal_holds_amount_and_fee_until_the_provider_has_paid() -> None:
    world = World(EUR="100")
    payment = world.withdraw("40")
    assert payment.state is State.APPROVED
    assert payment.requested_by == OWNER
    assert world.balance() == ("59.5", "40.5")
    payment = world.submit(payment)
    assert (payment.state, world.balance()) == (State.SUBMITTED, ("59.5", "40.5"))
    payment = world.hear(payment, "processing")
    assert payment.state is State.SUBMITTED
    payment = world.hear(payment, "succeeded")
    assert (payment.state, payment.settled, payment.held) == (State.SUCCEEDED, 40, 0)
    assert world.balance() == ("59.5", "0")
    assert world.counters == {
        ("outside:opening", "EUR"): -100,
        ("outside:bank", "EUR"): 40,
        ("fees:withdrawals", "EUR"): Decimal("0.5"),
    }


def test_a_failure_releases_everything_and_a_return_brings_it_back() -> None:
    world = World(EUR="100")
    failed = world.submit(world.withdraw("40"))
    assert world.hear(failed, "failed", reason="closed").reason == "closed"
    assert world.balance() == ("100", "0")
    back = world.submit(world.withdraw("40"))
    world.hear(back, "succeeded", "r2")
    assert world.balance() == ("59.5", "0")
    assert world.hear(back, "returned", "r2").state is State.RETURNED
    assert world.balance() == ("100", "0")
    assert not any(
        amount for (name, _), amount in world.counters.items() if name != "outside:opening"
    )


def test_a_success_after_a_failure_is_believed_though_the_money_is_spent() -> None:
    world = World(EUR="41")
    payment = world.submit(world.withdraw("40"))
    world.hear(payment, "failed")
    spent = world.submit(world.withdraw("40"))
    world.hear(spent, "succeeded", "r2")
    world.hear(payment, "succeeded", "r1")
    assert world.balance() == ("-40", "0")
    refused(world.withdraw("1"), Reason.INSUFFICIENT_FUNDS)


def test_a_deposit_is_credited_on_the_providers_word_alone_and_once() -> None:
    world = World()
    payment = world.deposit("10")
    assert (payment.state, world.balance()) == (State.PENDING, ("0", "0"))
    for _ in range(3):
        payment = world.hear(payment, "succeeded", amount=Decimal("9.99"))
    assert (payment.state, payment.settled) == (State.SUCCEEDED, Decimal("9.99"))
    assert world.balance() == ("9.99", "0")
    assert world.counters == {("outside:bank", "EUR"): Decimal("-9.99")}
    world.hear(payment, "failed")
    assert world.balance() == ("9.99", "0")


def test_money_that_comes_twice_is_two_deposits() -> None:
    world = World()
    payment = world.hear(world.deposit("10"), "succeeded", "r1")
    for _ in range(2):
        world.hear(payment, "succeeded", "r2", amount=Decimal(3))
        world.hear(payment, "succeeded", "r1")
    assert world.balance() == ("13", "0")
    second = world.part.find(payments.repeated_id(payment.id, "r2"))
    assert second is not None
    assert (second.parent_id, second.reference, second.settled) == (payment.id, "r2", 3)


def test_every_movement_of_a_payment_tells_which_one_it_was() -> None:
    world = World(EUR="100")
    withdrawal = world.withdraw("10")
    deposit = world.hear(world.deposit("10"), "succeeded", "r1")
    world.hear(deposit, "succeeded", "r2", amount=Decimal(3))
    told = [(m.kind, m.reference_kind, m.reference) for m in world.moved[1:]]
    assert told == [
        ("payment.requested", "payment", str(withdrawal.id)),
        ("payment.succeeded", "payment", str(deposit.id)),
        ("payment.received", "payment", str(payments.repeated_id(deposit.id, "r2"))),
    ]


def test_late_money_is_credited_to_an_expired_deposit_and_a_closed_account() -> None:
    world = World()
    payment = world.deposit("10")
    expire = ExpireDeposit(new_id(), SYSTEM, world.id, payment.id)
    assert world.do(expire).state is State.PENDING  # not yet due
    world.now += timedelta(hours=24)
    assert world.do(expire).state is State.EXPIRED
    world.status("closed")
    assert world.hear(payment, "succeeded").state is State.SUCCEEDED
    assert world.balance() == ("10", "0")


def test_a_large_withdrawal_waits_for_a_second_person() -> None:
    world = World(EUR="1000")
    payment = world.withdraw("100.01")
    assert payment.state is State.AWAITING_APPROVAL
    refused(world.submit(payment), Reason.PAYMENT_STATE)
    refused(world.decide(payment, OWNER), Reason.APPROVER_IS_REQUESTER)
    payment = world.decide(payment, APPROVER)
    assert (payment.state, payment.decided_by) == (State.APPROVED, APPROVER)
    entries_before = len(world.kinds)
    world.decide(payment, APPROVER)
    assert len(world.kinds) == entries_before
    assert world.submit(payment).state is State.SUBMITTED
    refused(world.decide(payment, APPROVER, approve=False), Reason.PAYMENT_STATE)


def test_a_rejected_or_canceled_withdrawal_gives_its_funds_back_and_ends() -> None:
    world = World(EUR="1000")
    rejected = world.decide(world.withdraw("200"), APPROVER, approve=False)
    assert (rejected.state, rejected.reason) == (State.REJECTED, "no")
    canceled = world.cancel(world.withdraw("50"))
    assert world.cancel(canceled).state is State.CANCELED
    assert world.balance() == ("1000", "0")
    refused(world.submit(canceled), Reason.PAYMENT_STATE)
    refused(world.decide(canceled, APPROVER), Reason.PAYMENT_STATE)
    submitted = world.submit(world.withdraw("50"))
    refused(world.cancel(submitted), Reason.PAYMENT_STATE)


def test_limits_of_a_payment_and_of_a_day() -> None:
    world = World(EUR="10000", BTC="10000")
    facts = refused(world.withdraw("500.01"), Reason.PAYMENT_TOO_LARGE).facts
    assert facts == {"max": "500"}
    world.withdraw("500")
    facts = refused(world.withdraw("100.01"), Reason.PAYMENT_DAY_LIMIT).facts
    assert facts == {"max": "600", "taken": "500"}
    world.withdraw("500", "BTC")  # another asset, without a day's limit
    last = world.withdraw("100")
    refused(world.withdraw("0.01"), Reason.PAYMENT_DAY_LIMIT)
    world.cancel(last)  # gives its share of the day back
    failed = world.submit(world.withdraw("100"))
    world.hear(failed, "failed")
    paid = world.submit(world.withdraw("100"))
    world.hear(paid, "succeeded")
    refused(world.withdraw("0.01"), Reason.PAYMENT_DAY_LIMIT)
    world.now = datetime(2026, 11, 22, 23, 59, 59, 999999, tzinfo=UTC)
    refused(world.withdraw("0.01"), Reason.PAYMENT_DAY_LIMIT)
    world.now += timedelta(microseconds=1)
    assert world.withdraw("400").state is State.AWAITING_APPROVAL
    refused(world.deposit("1000.01"), Reason.PAYMENT_TOO_LARGE)


def test_open_payments_are_limited() -> None:
    world = World()
    for _ in range(10):
        last = world.deposit("1")
    assert world.part.unfinished() == "10 open payments"
    refused(world.deposit("1"), Reason.PAYMENTS_OPEN_MAX)
    world.cancel(last)
    assert world.deposit("1").state is State.PENDING


def test_frozen_accounts_take_money_but_let_none_go() -> None:
    world = World(EUR="1000")
    waiting, approved = world.withdraw("200"), world.withdraw("10")
    world.status("frozen")
    refused(world.withdraw("1"), Reason.ACCOUNT_FROZEN)
    refused(world.decide(waiting, APPROVER), Reason.ACCOUNT_FROZEN)
    refused(world.submit(approved), Reason.ACCOUNT_FROZEN)
    assert world.hear(world.deposit("5"), "succeeded").state is State.SUCCEEDED
    assert world.decide(waiting, APPROVER, approve=False).state is State.REJECTED
    world.cancel(approved)
    assert world.balance() == ("1005", "0")


def test_only_cash_accounts_and_no_closed_ones() -> None:
    trading = World("paper", EUR="10")
    refused(trading.withdraw("1"), Reason.ACCOUNT_KIND)
    refused(trading.deposit("1"), Reason.ACCOUNT_KIND)
    closed = World()
    closed.status("closed")
    refused(closed.deposit("1"), Reason.ACCOUNT_CLOSED)
    refused(closed.withdraw("1"), Reason.ACCOUNT_CLOSED)


def test_an_overdraft_can_be_withdrawn() -> None:
    world = World(limits=structs.replace(LIMITS, overdraft={"EUR": Decimal("9.5")}), EUR="1")
    facts = refused(world.withdraw("10.01"), Reason.INSUFFICIENT_FUNDS).facts
    assert facts == {"needed": "10.51", "available": "10.5"}
    assert world.withdraw("10").state is State.APPROVED
    assert world.balance() == ("-9.5", "10.5")


def test_what_cannot_be_true_changes_nothing() -> None:
    world = World(EUR="100")
    unsent = world.withdraw("40")
    refused(world.hear(unsent, "succeeded"), Reason.PAYMENT_CONTRADICTED)
    sent = world.submit(unsent)
    refused(world.hear(sent, "succeeded", amount=Decimal(39)), Reason.PAYMENT_CONTRADICTED)
    refused(world.hear(sent, "succeeded", asset="BTC"), Reason.PAYMENT_CONTRADICTED)
    deposit = world.deposit("5")
    refused(world.hear(deposit, "returned"), Reason.PAYMENT_CONTRADICTED)
    refused(world.hear(deposit, "succeeded", amount=Decimal(0)), Reason.PAYMENT_CONTRADICTED)
    assert world.balance() == ("59.5", "40.5")


def test_giving_up_releases_only_what_is_still_submitted() -> None:
    world = World(EUR="100")
    payment = world.submit(world.withdraw("40"))
    give_up = GiveUpWithdrawal(new_id(), SYSTEM, world.id, payment.id, "refused")
    assert world.do(give_up).state is State.FAILED
    assert world.balance() == ("100", "0")
    paid = world.hear(world.submit(world.withdraw("40")), "succeeded")
    world.do(replace(give_up, payment_id=paid.id))
    assert world.balance() == ("59.5", "0")


def test_instructions_are_noted_once() -> None:
    world = World()
    payment = world.deposit("5")
    for text in ("pay here", "pay there"):
        note = NoteInstructions(new_id(), SYSTEM, world.id, payment.id, text)
        assert world.do(note).instructions == "pay here"
    assert world.kinds.count("payment.announced") == 1


def test_every_transition_ends_somewhere_and_nothing_goes_back() -> None:
    for kind in Kind:
        for state in State:
            following = [other for other in State if may_become(kind, state, other)]
            assert state not in following
            for other in following:
                assert not may_become(kind, other, state), (kind, state, other)
            if state in FINAL:
                assert set(following) <= {State.SUCCEEDED, State.RETURNED}


_SAID = st.sampled_from(["processing", "failed", "succeeded", "returned"])
_RANK = {"processing": 0, "failed": 1, "succeeded": 2, "returned": 3}


@given(st.lists(_SAID, min_size=1, max_size=8), st.data())
def test_reports_have_one_outcome_in_every_order_and_however_often(
    said: list[str], data: Any
) -> None:
    """What a withdrawal comes to follows from the set of what was said of it."""
    world = World(EUR="100")
    payment = world.submit(world.withdraw("40"))
    for one in data.draw(st.permutations(said + said)):
        payment = world.hear(payment, one)
    furthest = max(said, key=_RANK.__getitem__)
    expected = {
        "processing": (State.SUBMITTED, ("59.5", "40.5")),
        "failed": (State.FAILED, ("100", "0")),
        "succeeded": (State.SUCCEEDED, ("59.5", "0")),
        "returned": (State.RETURNED, ("100", "0")),
    }[furthest]
    assert (payment.state, world.balance()) == expected
    paid = furthest == "succeeded"
    assert world.counters.get(("outside:bank", "EUR"), 0) == (40 if paid else 0)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["withdraw", "deposit", "submit", "cancel", "approve", "reject", "hear"]),
        st.integers(0, 5),
        st.sampled_from(["10", "100", "101", "499", "0.01"]),
        _SAID,
    ),
    max_size=30,
)


@given(_STEPS)
def test_whatever_happens_the_books_follow_from_the_payments(steps: Any) -> None:
    """Sums, holds, the day's total, and the part against one made from the payments themselves."""
    world = World(EUR="1000")
    known: list[UUID] = []
    for action, which, amount, said in steps:
        if action in ("withdraw", "deposit"):
            outcome = getattr(world, action)(amount)
            if not isinstance(outcome, Refused):
                known.append(outcome.id)
            continue
        if not known:
            continue
        payment = world.part.find(known[which % len(known)])
        assert payment is not None
        if action == "hear":
            world.hear(payment, said, f"r{payment.id}")
        elif action in ("approve", "reject"):
            world.decide(payment, APPROVER, action == "approve")
        else:
            getattr(world, action)(payment)
    every = [*world.part.open.values(), *world.part.recalled.values()]
    out = [p for p in every if p.kind is Kind.WITHDRAWAL]
    held = sum((p.held for p in every), Decimal(0))
    fees = sum((p.fee for p in out if p.state is State.SUCCEEDED), Decimal(0))
    gone = sum((p.settled for p in out), Decimal(0)) + fees
    come = sum((p.settled for p in every if p.kind is Kind.DEPOSIT), Decimal(0))
    available, in_hold = world.balance()
    assert Decimal(in_hold) == held
    assert Decimal(available) == 1000 + come - gone - held
    total = sum((p.amount for p in out if p.state in payments.COUNTED), Decimal(0))
    assert world.part.day_total(NOON.date(), Kind.WITHDRAWAL, "EUR") == total <= 600
    assert sum(world.counters.values()) + Decimal(available) + held == 0


DAILY = replace(
    RULES, withdrawal_day_max={}, approval_day_above={"EUR": Decimal(250)}, open_max=1000
)


def test_many_small_withdrawals_need_approval_as_one_large_does() -> None:
    world = World(EUR="1000", BTC="1000")
    first = [world.withdraw("100", rules=DAILY) for _ in range(2)]
    assert [one.state for one in first] == [State.APPROVED, State.APPROVED]
    waiting = world.withdraw("51", rules=DAILY)
    assert waiting.state is State.AWAITING_APPROVAL
    assert world.withdraw("50", rules=DAILY).state is State.APPROVED, "it comes to 250, not above"
    assert world.withdraw("0.01", rules=DAILY).state is State.AWAITING_APPROVAL
    assert world.withdraw("100", "BTC", rules=DAILY).state is State.APPROVED, "no limit for it"
    # Approved by a second person, it takes nothing of what may go out without one; what is
    # canceled gives back what it took.
    world.decide(waiting, APPROVER, True)
    world.cancel(first[0])
    assert world.withdraw("100", rules=DAILY).state is State.APPROVED
    assert world.withdraw("0.01", rules=DAILY).state is State.AWAITING_APPROVAL


def test_no_midnight_begins_the_sum_anew() -> None:
    world = World(EUR="1000")
    world.now = NOON.replace(hour=23, minute=30)
    for _ in range(2):
        assert world.withdraw("100", rules=DAILY).state is State.APPROVED
    world.now += timedelta(hours=1)
    assert world.withdraw("51", rules=DAILY).state is State.AWAITING_APPROVAL
    world.now = NOON.replace(hour=23, minute=59) + timedelta(days=1)
    assert world.withdraw("51", rules=DAILY).state is State.AWAITING_APPROVAL, "the hour counts"
    world.now += timedelta(minutes=1)
    assert world.withdraw("100", rules=DAILY).state is State.APPROVED


_DAYS = st.lists(
    st.tuples(
        st.sampled_from(
            ["withdraw", "withdraw", "wait", "submit", "cancel", "approve", "reject", "hear"]
        ),
        st.integers(0, 5),
        st.sampled_from(["10", "60", "100", "101", "0.01"]),
        _SAID,
        st.integers(1, 14 * 60),
    ),
    max_size=40,
)


@given(_DAYS)
def test_what_nobody_approved_never_exceeds_its_threshold(steps: Any) -> None:
    """In no 24 hours; and nothing waits that 25 hours leave room for."""
    world = World(EUR="100000")
    known: list[UUID] = []

    def unapproved(hours: int) -> Decimal:
        every = [p for p in map(world.part.find, known) if p is not None and p.unapproved]
        since = world.now - timedelta(hours=hours)
        return sum((p.amount for p in every if clock.unstamp(p.created_at) >= since), Decimal(0))

    for action, which, amount, said, minutes in steps:
        if action == "wait":
            world.now += timedelta(minutes=minutes)
            continue
        if action == "withdraw":
            before, longer = unapproved(24), unapproved(25)
            payment = world.withdraw(amount, rules=DAILY)
            known.append(payment.id)
            if payment.state is State.APPROVED:
                assert before + Decimal(amount) <= 250
            else:
                assert Decimal(amount) > 100 or longer + Decimal(amount) > 250
            continue
        if not known:
            continue
        payment = world.part.find(known[which % len(known)])
        assert payment is not None
        if action == "hear":
            world.hear(payment, said, f"r{payment.id}")
        elif action in ("approve", "reject"):
            world.decide(payment, APPROVER, action == "approve")
        else:
            getattr(world, action)(payment)


def test_a_payment_is_read_from_its_entry_as_it_was_written() -> None:
    world = World(EUR="1000")
    payment = world.withdraw("200")
    data = payment.to_data()
    again = Payment.from_data(data, world.id, payment.seq, payment.created_at)
    assert again == payment


@pytest.mark.parametrize("asset", ["EUR", "BTC"])
def test_rules_by_name_before_the_star(asset: str) -> None:
    rules = replace(RULES, withdrawal_max={"EUR": Decimal(1), "*": Decimal(2)})
    assert rules.largest(Kind.WITHDRAWAL, asset) == (1 if asset == "EUR" else 2)
    assert rules.largest_of_day(Kind.DEPOSIT, asset) is None
