"""Transfers between accounts: `client.transfers`.

    done = await client.transfers.create(mine, theirs, "EUR", "12.50", metadata={"invoice": "7"})

In two phases: hold now, decide later.

    held = await client.transfers.create(mine, theirs, "EUR", 50, pending=True, expires_in_s=600)
    await client.transfers.post(held.id, "42.10")      # the other 7.90 are released
    await client.transfers.void(other.id)              # or nothing moves at all

All or none, in order, so that money can pass through an account:

    await client.transfers.create_linked([
        NewTransfer(buyer, escrow, "EUR", 100),
        NewTransfer(escrow, seller, "EUR", 97),
        NewTransfer(escrow, fees, "EUR", 3),
    ])

Many at once, each for itself:

    for result in await client.transfers.create_bulk(payroll):
        print(result.transfer or result.problem)

Every write carries an `Idempotency-Key`, made here when none is given, and is repeated under it
while its answer is missing. So money never moves twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

from tbot.client.amounts import Amount, amount_text
from tbot.client.http import Api


@dataclass(frozen=True, slots=True)
class Transfer:
    """A transfer as it is now.

    Attributes:
        state: `pending`, `posted`, `voided` or `expired`.
        posted_amount: What has reached the target.
        reverses, reversed_by: The transfer that this one takes back, and the one that took it back.
        group_id: Shared by linked transfers.
    """

    id: UUID
    source_account_id: UUID
    target_account_id: UUID
    asset: str
    amount: Decimal
    state: str
    posted_amount: Decimal
    created_at: datetime
    updated_at: datetime
    expires_at: datetime | None = None
    reverses: UUID | None = None
    reversed_by: UUID | None = None
    group_id: UUID | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def pending(self) -> bool:
        """Whether it still holds its amount at the source."""
        return self.state == "pending"


@dataclass(frozen=True, slots=True)
class NewTransfer:
    """A transfer to be made.

    Attributes:
        pending: Only hold the amount.
        expires_in_s: Of a pending one: when to release it by itself (>= 1); None for never.
        key: In a bulk request: an idempotency key of this transfer alone.
    """

    source: UUID | str
    target: UUID | str
    asset: str
    amount: Amount
    pending: bool = False
    expires_in_s: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the server takes it."""
        body: dict[str, Any] = {
            "source_account_id": str(self.source),
            "target_account_id": str(self.target),
            "asset": self.asset,
            "amount": amount_text(self.amount),
        }
        if self.pending:
            body["pending"] = True
        if self.expires_in_s is not None:
            body["expires_in_s"] = self.expires_in_s
        if self.metadata:
            body["metadata"] = dict(self.metadata)
        if self.key is not None:
            body["key"] = self.key
        return body


@dataclass(frozen=True, slots=True)
class TransferResult:
    """What became of one transfer of a bulk request.

    Attributes:
        status: As of a request of its own: below 400 there is a `transfer`, else a `problem`.
            From 500 on it may be repeated under the same key.
    """

    status: int
    transfer: Transfer | None = None
    problem: dict[str, Any] | None = None
    replayed: bool = False


class Transfers:
    """The transfers of one client; `TBotClient.transfers` is one.

    Every method raises `Refused` with the reason's `code` (nothing was done), `NotFound`,
    `Unavailable` (nothing was done), or `OutcomeUnknown`: call again with the same `key`.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    async def create(
        self,
        source: UUID | str,
        target: UUID | str,
        asset: str,
        amount: Amount,
        *,
        pending: bool = False,
        expires_in_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Transfer:
        """Transfer money from an account of yours; with `pending` only hold it.

        Args:
            expires_in_s: Of a pending one: when to release it by itself; None for never.
            metadata: At most 20 notes of your own.
            key: An `Idempotency-Key` of your own, to be able to call again after a crash.
        """
        new = NewTransfer(source, target, asset, amount, pending, expires_in_s, metadata or {})
        return await self._api.request(
            Transfer, "POST", "/v1/transfers", json=new.to_json(), key=key
        )

    async def create_linked(
        self, transfers: Sequence[NewTransfer], *, key: str | None = None
    ) -> list[Transfer]:
        """Make 2 to 100 transfers, in their order: all of them, or none."""
        body = {"transfers": [one.to_json() for one in transfers]}
        path = "/v1/transfers/linked"
        return (await self._api.request(_Linked, "POST", path, json=body, key=key)).transfers

    async def create_bulk(
        self, transfers: Sequence[NewTransfer], *, key: str | None = None
    ) -> list[TransferResult]:
        """Make many transfers, each for itself; a result for each, in their order.

        Nothing is raised for what went wrong with one of them: look at its result. A `key` of your
        own stands for this very list: repeat all of it, in its order. Any other list under it is
        refused, and nothing of it made.
        """
        body = {"transfers": [one.to_json() for one in transfers]}
        path = "/v1/transfers/bulk"
        return (await self._api.request(_Bulk, "POST", path, json=body, key=key)).results

    async def get(self, transfer_id: UUID | str) -> Transfer:
        """A transfer as it is now."""
        return await self._api.request(Transfer, "GET", f"/v1/transfers/{transfer_id}")

    def list(
        self,
        account_id: UUID | str | None = None,
        *,
        state: Literal["pending", "posted", "voided", "expired"] | None = None,
    ) -> AsyncIterator[Transfer]:
        """Transfers out of and into an account (or all of yours), newest first."""
        account = None if account_id is None else str(account_id)
        params = {"account_id": account, "state": state}
        return self._api.pages(Transfer, "/v1/transfers", params)

    async def post(
        self, transfer_id: UUID | str, amount: Amount | None = None, *, key: str | None = None
    ) -> Transfer:
        """Let a pending transfer's money reach its target: all of it, or `amount` of it.

        A second call without its `key` is refused with `transfer_not_pending`.
        """
        body = {} if amount is None else {"amount": amount_text(amount)}
        path = f"/v1/transfers/{transfer_id}/post"
        return await self._api.request(Transfer, "POST", path, json=body, key=key)

    async def void(self, transfer_id: UUID | str, *, key: str | None = None) -> Transfer:
        """Release what a pending transfer holds."""
        path = f"/v1/transfers/{transfer_id}/void"
        return await self._api.request(Transfer, "POST", path, key=key)

    async def reverse(
        self,
        transfer_id: UUID | str,
        *,
        metadata: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Transfer:
        """Give back what a posted transfer brought to an account of yours; the new transfer."""
        body = {"metadata": dict(metadata)} if metadata else {}
        path = f"/v1/transfers/{transfer_id}/reverse"
        return await self._api.request(Transfer, "POST", path, json=body, key=key)


@dataclass(frozen=True, slots=True)
class _Linked:
    group_id: UUID
    transfers: list[Transfer]


@dataclass(frozen=True, slots=True)
class _Bulk:
    results: list[TransferResult]
