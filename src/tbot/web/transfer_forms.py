"""What is said about transfers over HTTP: bodies of requests and answers, and what they mean."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from pydantic import Field, WithJsonSchema

from tbot.core import money
from tbot.core.ids import new_id
from tbot.core.money import MoneyText
from tbot.core.settings import LedgerSettings
from tbot.ledger.transfers import LINKED_MAX, NewTransfer, Transfer, TransferState
from tbot.web.fields import Answer, Asset, Id, Metadata, PositiveAmount, Request, Timestamp
from tbot.web.problems import invalid


class TransferBody(Request):
    """A transfer to be made."""

    source_account_id: Annotated[Id, Field(description="Yours: its money goes.")]
    target_account_id: Annotated[Id, Field(description="Anybody's.")]
    asset: Asset
    amount: PositiveAmount
    pending: Annotated[
        bool, Field(strict=True, description="Only hold the amount; post or void it later.")
    ] = False
    expires_in_s: Annotated[
        int | None,
        Field(
            ge=1,
            strict=True,
            description="Pending ones only: when to release it by itself. Never when absent; at "
            "most `ledger.transfer_expiry_s_max`.",
        ),
    ] = None
    metadata: Metadata = Field(default_factory=dict)


class LinkedBody(Request):
    """Transfers of which all are made or none, in their order."""

    transfers: Annotated[list[TransferBody], Field(min_length=2, max_length=LINKED_MAX)]


class BulkItem(TransferBody):
    """One transfer of many that have nothing to do with each other."""

    key: Annotated[
        str | None,
        Field(
            pattern=r"^[\x21\x23-\x5b\x5d-\x7e]{1,128}$",
            strict=True,
            description="An idempotency key of this item alone; else it is the request's with "
            "`#` and the item's index, if the request has one.",
        ),
    ] = None


class BulkBody(Request):
    """Transfers with a result each; what is wrong with one does not concern the others."""

    transfers: Annotated[
        list[Any],
        Field(min_length=1, description="At most `ledger.bulk_transfers_max`."),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "items": BulkItem.model_json_schema(),
                "description": "At most `ledger.bulk_transfers_max`.",
            }
        ),
    ]


class PostBody(Request):
    """How much of a pending transfer to post."""

    amount: Annotated[
        PositiveAmount | None,
        Field(description="The rest is released. All of it when absent."),
    ] = None


class ReverseBody(Request):
    """What to note with a reversal."""

    metadata: Metadata = Field(default_factory=dict)


class TransferOut(Answer):
    """A transfer."""

    id: Id
    source_account_id: Id
    target_account_id: Id
    asset: str
    amount: MoneyText
    state: TransferState
    posted_amount: Annotated[MoneyText, Field(description="What has reached the target.")]
    expires_at: Timestamp | None
    reverses: Annotated[Id | None, Field(description="The transfer that this one takes back.")]
    reversed_by: Annotated[Id | None, Field(description="The one that took this one back.")]
    group_id: Annotated[Id | None, Field(description="Shared by linked transfers.")]
    metadata: dict[str, str]
    created_at: Timestamp
    updated_at: Timestamp


class TransferPage(Answer):
    """A page of transfers, newest first."""

    items: list[TransferOut]
    next: str | None


class LinkedOut(Answer):
    """Transfers that were made together."""

    group_id: Id
    transfers: list[TransferOut]


class BulkResult(Answer):
    """What became of one item: `transfer` with a status below 400, else `problem`."""

    status: Annotated[int, Field(description="What a request of its own would have answered.")]
    transfer: TransferOut | None = None
    problem: dict[str, Any] | None = None
    replayed: Annotated[
        bool, Field(description="Whether it is the answer kept under the item's key.")
    ] = False


class BulkOut(Answer):
    """A result for each item, in their order."""

    results: list[BulkResult]


def transfer_json(transfer: Transfer) -> dict[str, Any]:
    """A transfer as `TransferOut` describes it, in JSON types."""
    return {
        "id": transfer.id,
        "source_account_id": transfer.source_id,
        "target_account_id": transfer.target_id,
        "asset": transfer.asset,
        "amount": money.text(transfer.amount),
        "state": transfer.state,
        "posted_amount": money.text(transfer.posted_amount),
        "expires_at": transfer.expires_at,
        "reverses": transfer.reverses,
        "reversed_by": transfer.reversed_by,
        "group_id": transfer.group_id,
        "metadata": transfer.metadata,
        "created_at": transfer.created_at,
        "updated_at": transfer.updated_at,
    }


_encode = msgspec.json.Encoder().encode


def transfer_bytes(transfer: Transfer) -> bytes:
    """`transfer_json` as it is written: quicker for a transfer that has nothing special."""
    if (
        transfer.metadata
        or transfer.expires_at is not None
        or transfer.reverses is not None
        or transfer.reversed_by is not None
        or transfer.group_id is not None
        or not (transfer.asset.isalnum() and transfer.asset.isascii())
    ):
        return _encode(transfer_json(transfer))
    amount = money.text(transfer.amount)
    posted = amount
    if transfer.posted_amount is not transfer.amount:
        posted = money.text(transfer.posted_amount)
    return (
        f'{{"id":"{transfer.id}","source_account_id":"{transfer.source_id}",'
        f'"target_account_id":"{transfer.target_id}","asset":"{transfer.asset}",'
        f'"amount":"{amount}","state":"{transfer.state.value}",'
        f'"posted_amount":"{posted}","expires_at":null,'
        f'"reverses":null,"reversed_by":null,"group_id":null,"metadata":{{}},'
        f'"created_at":"{transfer.created_at}","updated_at":"{transfer.updated_at}"}}'
    ).encode("ascii")


def new_transfer(body: TransferBody, settings: LedgerSettings, place: str = "") -> NewTransfer:
    """What the ledger is asked for; `place` is the JSON pointer of the body.

    Raises:
        Problem: A rule that no schema expresses is broken.
    """
    expires_in_s = body.expires_in_s
    if expires_in_s is not None:
        if not body.pending:
            raise invalid("is for pending transfers only", pointer=f"{place}/expires_in_s")
        if expires_in_s > settings.transfer_expiry_s_max:
            raise invalid(
                f"is at most {settings.transfer_expiry_s_max:.0f}", pointer=f"{place}/expires_in_s"
            )
    return NewTransfer(
        id=new_id(),
        source_id=body.source_account_id,
        target_id=body.target_account_id,
        asset=body.asset,
        amount=body.amount,
        pending=body.pending,
        expires_in_s=expires_in_s,
        metadata=body.metadata,
    )
