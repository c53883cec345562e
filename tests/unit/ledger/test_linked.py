"""Of linked transfers, each sees what the ones before it did."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.journal import chain
from tbot.journal.commands import SYSTEM, AccountState, Context, Drafts
from tbot.ledger.entries import Account, Balance, Ledger, Limits
from tbot.ledger.transfers import NewTransfer, create_transfers

AT = datetime(2026, 11, 22, tzinfo=UTC)
LIMITS = Limits(max_order_notional=Decimal(1), max_open_orders=0, price_collar=Decimal(0))


def account(usd: str, eur: str = "0") -> AccountState:
    state = AccountState(new_id(), 1, chain.genesis(new_id()), AT)
    ledger = state.part(Ledger)
    ledger.account = Account(
        id=state.account_id,
        owner_id=state.account_id,
        name="one",
        venue=None,
        status="open",
        limits=LIMITS,
        opened_at="",
        updated_at="",
    )
    ledger.balances = {"USD": Balance(Decimal(usd)), "EUR": Balance(Decimal(eur))}
    return state


def decided(*moves: tuple[AccountState, AccountState, str, str]) -> Drafts | Refused:
    transfers = tuple(
        NewTransfer(
            id=new_id(),
            source_id=source.account_id,
            target_id=target.account_id,
            asset=asset,
            amount=Decimal(amount),
        )
        for source, target, asset, amount in moves
    )
    command = create_transfers(new_id(), SYSTEM, transfers, group_id=new_id())
    states = {state.account_id: state for move in moves for state in move[:2]}
    return command.decide(states, Context(now=AT, switches={}))


def test_who_is_below_zero_may_pay_from_what_comes_in_first() -> None:
    below, rich, other = account("-5"), account("100"), account("0")
    answer = decided((rich, below, "USD", "50"), (below, other, "USD", "45"))
    assert isinstance(answer, Drafts), answer
    answer = decided((rich, below, "USD", "50"), (below, other, "USD", "45.01"))
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.INSUFFICIENT_FUNDS
    answer = decided((rich, below, "USD", "4.99"), (below, other, "EUR", "1"))
    assert isinstance(answer, Refused)
    assert answer.reason is Reason.ACCOUNT_NEGATIVE
