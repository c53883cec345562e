"""Deposits and withdrawals: what the edge calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Final
from uuid import UUID

import asyncpg
import structlog
from prometheus_client import Counter

from tbot.core.errors import NotFound
from tbot.core.ids import new_id
from tbot.core.payment_settings import PaymentSettings
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Accepted, Actor
from tbot.journal.committer import Committer
from tbot.journal.once import Kept, Once
from tbot.ledger import payments_store as store
from tbot.ledger.flow import AccountDesk
from tbot.ledger.payments import Payment, Rules
from tbot.ledger.payments_commands import (
    CancelPayment,
    DecideWithdrawal,
    RequestDeposit,
    RequestWithdrawal,
)
from tbot.ledger.payments_reports import ApplyReport
from tbot.ledger.provider import Provider, Report

PROVIDER: Final = Actor("provider")
"""Who speaks in a report; callbacks add their address and request."""

_log = structlog.get_logger(__name__)
_CONTRADICTED: Final = Counter(
    "tbot_payments_contradicted", "Reports of a provider that cannot be true."
)


@dataclass(frozen=True, slots=True)
class PaymentDesk:
    """What the functions below need.

    Attributes:
        provider: Who moves the money; None takes no payments.
    """

    pool: asyncpg.Pool[asyncpg.Record]
    committer: Committer
    accounts: AccountDesk
    provider: Provider | None
    rules: Rules


def rules_of(settings: PaymentSettings) -> Rules:
    """The limits and fees of the settings."""
    return Rules(
        deposit_max=settings.deposit_max,
        deposit_day_max=settings.deposit_day_max,
        withdrawal_max=settings.withdrawal_max,
        withdrawal_day_max=settings.withdrawal_day_max,
        approval_above=settings.approval_above,
        approval_day_above=settings.approval_day_above,
        withdrawal_fee=settings.withdrawal_fee,
        open_max=settings.open_max,
        deposit_ttl=timedelta(seconds=settings.deposit_ttl_s),
    )


def _provider(desk: PaymentDesk) -> Provider:
    if desk.provider is None:
        raise NotFound("this server takes no payments")
    return desk.provider


async def request_deposit(
    desk: PaymentDesk,
    actor: Actor,
    account_id: UUID,
    asset: str,
    amount: Decimal,
    metadata: Mapping[str, str] | None = None,
    once: Once | None = None,
) -> Payment | Refused | Kept:
    """Expect money from outside.

    Raises:
        NotFound: No such account, or this server takes no payments.
        Unavailable, OutcomeUnknown: See `Committer.commit`.
    """
    provider = _provider(desk)
    wrong = await desk.accounts.assets.check([(asset, amount)])
    if wrong is not None:
        return wrong
    command = RequestDeposit(
        id=new_id(),
        actor=actor,
        account_id=account_id,
        payment_id=new_id(),
        asset=asset,
        amount=amount,
        provider=provider.name,
        rules=desk.rules,
        metadata=metadata or {},
    )
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def request_withdrawal(
    desk: PaymentDesk,
    actor: Actor,
    account_id: UUID,
    asset: str,
    amount: Decimal,
    destination: str,
    metadata: Mapping[str, str] | None = None,
    once: Once | None = None,
) -> Payment | Refused | Kept:
    """Pay money out: durable and held when this returns, sent by the dispatcher afterwards.

    Raises:
        NotFound: No such account, or this server takes no payments.
        Unavailable, OutcomeUnknown: See `Committer.commit`.
    """
    provider = _provider(desk)
    wrong = await desk.accounts.assets.check([(asset, amount)])
    if wrong is not None:
        return wrong
    command = RequestWithdrawal(
        id=new_id(),
        actor=actor,
        account_id=account_id,
        payment_id=new_id(),
        asset=asset,
        amount=amount,
        provider=provider.name,
        rules=desk.rules,
        metadata=metadata or {},
        destination=destination,
    )
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def cancel_payment(
    desk: PaymentDesk, actor: Actor, payment: Payment, once: Once | None = None
) -> Payment | Refused | Kept:
    """Cancel what has not been sent.

    Raises:
        Unavailable, OutcomeUnknown: See `Committer.commit`; repeating it is harmless.
    """
    command = CancelPayment(new_id(), actor, payment.account_id, payment.id)
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def decide_withdrawal(
    desk: PaymentDesk,
    actor: Actor,
    payment: Payment,
    approve: bool,
    reason: str | None = None,
    once: Once | None = None,
) -> Payment | Refused | Kept:
    """Approve a withdrawal as a second person, or reject it.

    Raises:
        Unavailable, OutcomeUnknown: See `Committer.commit`; repeating it is harmless.
    """
    command = DecideWithdrawal(new_id(), actor, payment.account_id, payment.id, approve, reason)
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def apply_report(
    desk: PaymentDesk, report: Report, actor: Actor = PROVIDER, callback: str | None = None
) -> Payment | Refused:
    """Book what a provider says; saying it again changes nothing.

    Raises:
        NotFound: No such payment: the provider is to say it again later.
        Unavailable, OutcomeUnknown: See `Committer.commit`; likewise.
    """
    async with desk.pool.acquire() as connection:
        account_id = await store.account_of(connection, report.payment_id)
    if account_id is None:
        raise NotFound("no such payment")
    command = ApplyReport(new_id(), actor, account_id, report.payment_id, report, callback)
    try:
        outcome = await desk.committer.commit(command)
    except asyncpg.UniqueViolationError:
        # The table's last word: this movement of money is credited elsewhere already.
        outcome = Refused(
            Reason.PAYMENT_CONTRADICTED, f"{report.reference} has been credited to another payment"
        )
    if isinstance(outcome, Accepted):
        return outcome.result
    assert isinstance(outcome, Refused)
    _CONTRADICTED.inc()
    _log.error(
        "payment_contradicted",
        payment=str(report.payment_id),
        reference=report.reference,
        detail=outcome.detail,
    )
    return outcome


async def find_payment(desk: PaymentDesk, payment_id: UUID) -> Payment:
    """A payment as it is now.

    Raises:
        NotFound: No such payment.
    """
    async with desk.pool.acquire() as connection:
        return await store.get_payment(connection, payment_id)
