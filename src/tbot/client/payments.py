"""Deposits and withdrawals: `client.payments`; webhooks: `client.webhooks`.

    deposit = await client.payments.deposit(account, "EUR", 250)
    print((await client.payments.get(deposit.id)).instructions)

    withdrawal = await client.payments.withdraw(account, "EUR", "99.90", "DE89 3704 …")
    done = await client.payments.wait(withdrawal.id)
    print(done.state, done.reason)

A large withdrawal waits for somebody else, who may `approve` or `reject` it:

    async for waiting in boss.payments.approvals():
        await boss.payments.approve(waiting.id)

Every write carries an `Idempotency-Key`, made here when none is given, and is repeated under it
while its answer is missing. So nothing is paid twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

from tbot.client.amounts import Amount, amount_text
from tbot.client.http import Api

OPEN_STATES: Final = frozenset({"pending", "awaiting_approval", "approved", "submitted"})


@dataclass(frozen=True, slots=True)
class Payment:
    """A deposit or a withdrawal as it is now.

    Attributes:
        kind: `deposit` or `withdrawal`.
        amount: What was asked for; `settled` is what moved.
        state: `pending`, `awaiting_approval`, `approved`, `submitted`, `succeeded`, `failed`,
            `expired`, `rejected`, `canceled` or `returned`.
        instructions: How a deposit is to be paid; None until the provider expects it.
        held: What the account holds for it.
        submitted_at: From then on the provider may have it.
    """

    id: UUID
    account_id: UUID
    kind: str
    provider: str
    asset: str
    amount: Decimal
    fee: Decimal
    state: str
    settled: Decimal
    held: Decimal
    created_at: datetime
    updated_at: datetime
    sequence: int
    destination: str | None = None
    reason: str | None = None
    instructions: str | None = None
    reference: str | None = None
    requested_by: UUID | None = None
    decided_by: UUID | None = None
    parent_id: UUID | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    expires_at: datetime | None = None
    submitted_at: datetime | None = None

    @property
    def open(self) -> bool:
        """Whether it still has to end."""
        return self.state in OPEN_STATES


class Payments:
    """The payments of one client; `TBotClient.payments` is one.

    Every method raises `Refused` with the reason's `code` (nothing was done), `NotFound`,
    `Unavailable` (nothing was done), or `OutcomeUnknown`: call again with the same `key`.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def deposit(
        self,
        account_id: UUID | str,
        asset: str,
        amount: Amount,
        *,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Payment:
        """Announce a deposit to a cash account; it is credited when the money has come.

        Args:
            metadata: At most 20 notes of your own.
            key: An `Idempotency-Key` of your own, to be able to call again after a crash.
        """
        body = _body(account_id, asset, amount, metadata)
        return await self._api.request(Payment, "POST", "/v1/deposits", json=body, key=key)

    async def withdraw(
        self,
        account_id: UUID | str,
        asset: str,
        amount: Amount,
        destination: str,
        *,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Payment:
        """Withdraw from a cash account: held and durable when this returns, paid afterwards.

        Args:
            destination: Where to, in the provider's words.
            metadata, key: As for `deposit`.
        """
        body = _body(account_id, asset, amount, metadata) | {"destination": destination}
        return await self._api.request(Payment, "POST", "/v1/withdrawals", json=body, key=key)

    async def get(self, payment_id: UUID | str) -> Payment:
        """A payment as it is now."""
        return await self._api.request(Payment, "GET", f"/v1/payments/{payment_id}")

    def list(
        self,
        account_id: UUID | str | None = None,
        *,
        state: str | None = None,
        kind: Literal["deposit", "withdrawal"] | None = None,
    ) -> AsyncIterator[Payment]:
        """Payments of an account (or of all of yours), newest first."""
        account = None if account_id is None else str(account_id)
        params = {"account_id": account, "state": state, "kind": kind}
        return self._api.pages(Payment, "/v1/payments", params)

    async def wait(self, payment_id: UUID | str, timeout_s: float = 60.0) -> Payment:
        """Wait until a payment has ended; look at its `state`, it need not have succeeded.

        Raises:
            TimeoutError: It is still open after `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        delay_s = 0.05
        while True:
            payment = await self.get(payment_id)
            if not payment.open:
                return payment
            if time.monotonic() + delay_s > deadline_s:
                raise TimeoutError(f"payment {payment_id} is still {payment.state}")
            await asyncio.sleep(delay_s)
            delay_s = min(2.0, delay_s * 1.5)

    async def cancel(self, payment_id: UUID | str, *, key: str | None = None) -> Payment:
        """Cancel what the provider has not got yet.

        Raises:
            Refused: `payment_state`: it is too late.
        """
        path = f"/v1/payments/{payment_id}/cancel"
        return await self._api.request(Payment, "POST", path, key=key)

    def approvals(self) -> AsyncIterator[Payment]:
        """Everybody's withdrawals that wait for approval, oldest first (`payments:approve`)."""
        return self._api.pages(Payment, "/v1/payments/approvals", {})

    async def approve(self, payment_id: UUID | str, *, key: str | None = None) -> Payment:
        """Let somebody else's withdrawal go out."""
        path = f"/v1/payments/{payment_id}/approve"
        return await self._api.request(Payment, "POST", path, key=key)

    async def reject(
        self, payment_id: UUID | str, reason: str, *, key: str | None = None
    ) -> Payment:
        """Reject a withdrawal that has not gone out; its owner reads why."""
        path = f"/v1/payments/{payment_id}/reject"
        return await self._api.request(Payment, "POST", path, json={"reason": reason}, key=key)


@dataclass(frozen=True, slots=True)
class Webhook:
    """A subscription to an account's journal.

    Attributes:
        kinds: Of the entries it gets; all when empty.
        sequence: The last entry that it is done with.
        secret: Verifies its messages; only in the answers to `create` and `rotate_secret`.
        old_secret_until: Until when they are signed with an older one, too; None when not.
        etag: For `if_match` of a change; None in lists.
    """

    id: UUID
    account_id: UUID
    url: str
    kinds: list[str]
    enabled: bool
    sequence: int
    created_at: datetime
    updated_at: datetime
    disabled_reason: str | None = None
    old_secret_until: datetime | None = None
    secret: str | None = field(default=None, repr=False)
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one entry: `retrying`, `delivered` or `dead`."""

    sequence: int
    kind: str
    state: str
    attempts: int
    at: datetime
    status: int | None = None
    error: str | None = None
    next_at: datetime | None = None


class Webhooks:
    """The webhooks of one client; `TBotClient.webhooks` is one. It raises what `Payments` does."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(
        self,
        account_id: UUID | str,
        url: str,
        kinds: Sequence[str] = (),
        *,
        from_sequence: int | None = None,
        key: str | None = None,
    ) -> Webhook:
        """Have an account's journal delivered to a URL; keep the `secret` of the answer.

        Args:
            kinds: As `order.*` or `payment.succeeded`; all when empty.
            from_sequence: The first entry; None for what comes from now on.
        """
        body: dict[str, Any] = {"account_id": str(account_id), "url": url, "kinds": list(kinds)}
        if from_sequence is not None:
            body["from_sequence"] = from_sequence
        return await self._api.request(Webhook, "POST", "/v1/webhooks", json=body, key=key)

    def list(self) -> AsyncIterator[Webhook]:
        """Your webhooks, oldest first."""
        return self._api.pages(Webhook, "/v1/webhooks", {})

    async def get(self, webhook_id: UUID | str) -> Webhook:
        """A webhook as it is now."""
        return await self._api.request(Webhook, "GET", f"/v1/webhooks/{webhook_id}")

    async def change(
        self,
        webhook_id: UUID | str,
        *,
        url: str | None = None,
        kinds: Sequence[str] | None = None,
        enabled: bool | None = None,
        if_match: str | None = None,
        key: str | None = None,
    ) -> Webhook:
        """Change what is given; `enabled=True` lets a disabled one go on.

        Args:
            if_match: The `etag` of the webhook as you saw it; None for whatever it is now.

        Raises:
            Refused: `precondition_failed`: it was changed since; look again.
        """
        given = {"url": url, "kinds": None if kinds is None else list(kinds), "enabled": enabled}
        body = {name: value for name, value in given.items() if value is not None}
        path = f"/v1/webhooks/{webhook_id}"
        return await self._api.request(
            Webhook, "PATCH", path, json=body, key=key, if_match=if_match
        )

    async def replay(
        self, webhook_id: UUID | str, from_sequence: int, *, key: str | None = None
    ) -> Webhook:
        """Deliver again from an entry on; the messages keep their ids."""
        path = f"/v1/webhooks/{webhook_id}/replay"
        body = {"from_sequence": from_sequence}
        return await self._api.request(Webhook, "POST", path, json=body, key=key)

    async def rotate_secret(
        self, webhook_id: UUID | str, *, overlap_s: int | None = None, key: str | None = None
    ) -> Webhook:
        """Give a webhook a new secret; keep the `secret` of the answer.

        Args:
            overlap_s: How long messages are signed with the old one, too; None for as long as the
                server allows, 0 when it has leaked.
        """
        path = f"/v1/webhooks/{webhook_id}/rotate-secret"
        body = {} if overlap_s is None else {"overlap_s": overlap_s}
        return await self._api.request(Webhook, "POST", path, json=body, key=key)

    def deliveries(self, webhook_id: UUID | str, *, dead: bool = False) -> AsyncIterator[Delivery]:
        """Recent deliveries, newest entry first; `dead` lists those that were given up."""
        name = "dead-letters" if dead else "deliveries"
        return self._api.pages(Delivery, f"/v1/webhooks/{webhook_id}/{name}", {})


def _body(
    account_id: UUID | str, asset: str, amount: Amount, metadata: Mapping[str, str] | None
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "account_id": str(account_id),
        "asset": asset,
        "amount": amount_text(amount),
    }
    if metadata:
        body["metadata"] = dict(metadata)
    return body
