"""Deposits and withdrawals: asking for them, following them, approving them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field, StringConstraints
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.flow import Principal
from tbot.auth.proofs import require_fresh
from tbot.core import money
from tbot.core.errors import NotFound
from tbot.core.money import MoneyText
from tbot.core.refusals import Reason
from tbot.ledger import payments_flow as flow
from tbot.ledger import payments_store as store
from tbot.ledger.members import Access
from tbot.ledger.payments import Kind, Payment, State
from tbot.ledger.payments_flow import PaymentDesk
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    AccountFilter,
    AccountReader,
    PageCursor,
    PageLimit,
    Parts,
    PaymentApprover,
    PaymentWriter,
    actor_of,
    page_limit,
)
from tbot.web.deps import Deps
from tbot.web.fields import (
    Answer,
    Asset,
    Harmless,
    Id,
    Metadata,
    PositiveAmount,
    Request,
    Timestamp,
)
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account, own_accounts
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.routes import router

routes = router("payments")

_REQUEST_REASONS = (
    Reason.ACCOUNT_CLOSED,
    Reason.ACCOUNT_KIND,
    Reason.AMOUNT_TOO_PRECISE,
    Reason.ASSET_UNKNOWN,
    Reason.PAYMENTS_OPEN_MAX,
    Reason.PAYMENT_DAY_LIMIT,
    Reason.PAYMENT_TOO_LARGE,
)

Destination = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    Harmless,
    Field(
        description="Where the money goes, in the provider's words.",
        examples=["DE89370400440532013000"],
        strict=True,
    ),
]
Why = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    Harmless,
    Field(examples=["unknown destination"], strict=True),
]


class NewDeposit(Request):
    """Money that is to come in."""

    account_id: Id
    asset: Asset
    amount: PositiveAmount
    metadata: Metadata = Field(default_factory=dict)


class NewWithdrawal(Request):
    """Money that is to go out."""

    account_id: Id
    asset: Asset
    amount: PositiveAmount
    destination: Destination
    metadata: Metadata = Field(default_factory=dict)


class Rejection(Request):
    """Why a withdrawal is rejected."""

    reason: Why


class PaymentOut(Answer):
    """A deposit or a withdrawal as it is now."""

    id: Id
    account_id: Id
    kind: Kind
    provider: Annotated[str, Field(examples=["simulated"])]
    asset: str
    amount: Annotated[MoneyText, Field(description="What was asked for.")]
    fee: Annotated[MoneyText, Field(description="Of a withdrawal, on top of its amount.")]
    destination: str | None
    state: State
    reason: Annotated[str | None, Field(description="Why it failed, or was rejected or returned.")]
    instructions: Annotated[str | None, Field(description="How a deposit is to be paid.")]
    reference: Annotated[str | None, Field(description="The provider's, of what moved.")]
    settled: Annotated[
        MoneyText, Field(description="What moved; of a deposit it need not be what was asked for.")
    ]
    held: Annotated[MoneyText, Field(description="What the account holds for it now.")]
    requested_by: Id | None
    decided_by: Id | None
    parent_id: Annotated[
        Id | None, Field(description="The deposit whose money came a second time as this one.")
    ]
    metadata: dict[str, str]
    expires_at: Timestamp | None
    submitted_at: Annotated[
        Timestamp | None, Field(description="From then on the provider may have it.")
    ]
    created_at: Timestamp
    updated_at: Timestamp
    sequence: Annotated[int, Field(description="The journal entry that made this version.")]


class PaymentPage(Answer):
    """A page of payments."""

    items: list[PaymentOut]
    next: str | None


def payment_json(payment: Payment) -> dict[str, Any]:
    """A payment as `PaymentOut` describes it, in JSON types."""
    return {
        "id": payment.id,
        "account_id": payment.account_id,
        "kind": payment.kind,
        "provider": payment.provider,
        "asset": payment.asset,
        "amount": money.text(payment.amount),
        "fee": money.text(payment.fee),
        "destination": payment.destination,
        "state": payment.state,
        "reason": payment.reason,
        "instructions": payment.instructions,
        "reference": payment.reference,
        "settled": money.text(payment.settled),
        "held": money.text(payment.held),
        "requested_by": payment.requested_by,
        "decided_by": payment.decided_by,
        "parent_id": payment.parent_id,
        "metadata": payment.metadata,
        "expires_at": payment.expires_at,
        "submitted_at": payment.submitted_at,
        "created_at": payment.created_at,
        "updated_at": payment.updated_at,
        "sequence": payment.seq,
    }


def _created(payment: Payment) -> Response:
    return json_answer(payment_json(payment), 201, {"Location": f"/v1/payments/{payment.id}"})


def _now(payment: Payment) -> Response:
    return json_answer(payment_json(payment))


def desk_of(deps: Deps) -> PaymentDesk:
    """The payment desk.

    Raises:
        NotFound: This server has none.
    """
    if deps.payments is None:
        raise NotFound("this server takes no payments")
    return deps.payments


async def _own_payment(deps: Deps, principal: Principal, payment_id: UUID, need: Access) -> Payment:
    """The asker's own payment; somebody else's answers as one that does not exist."""
    payment = await flow.find_payment(desk_of(deps), payment_id)
    await own_account(deps, principal, payment.account_id, need=need)
    return payment


@routes.post(
    "/deposits",
    operation_id="request_deposit",
    status_code=201,
    response_model=PaymentOut,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems("not_found", "overloaded", "outcome_unknown", *_REQUEST_REASONS),
    },
)
async def request_deposit(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentWriter,
    body: NewDeposit,
    _key: KeyHeader = None,
) -> Response:
    """Announce a deposit to a cash account.

    It is credited when the provider says that the money has come; `instructions` tell, as soon as
    the provider knows of it, how to pay it.
    """
    await own_account(parts, principal, body.account_id)
    once = await keyed(request, parts, principal, _created)
    outcome = await flow.request_deposit(
        desk_of(parts),
        actor_of(request, principal),
        body.account_id,
        body.asset,
        body.amount,
        body.metadata,
        once,
    )
    return respond(outcome, _created)


@routes.post(
    "/withdrawals",
    operation_id="request_withdrawal",
    status_code=201,
    response_model=PaymentOut,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems(
            "not_found",
            "overloaded",
            "outcome_unknown",
            "insufficient_access",
            "step_up_required",
            "key_not_allowed",
            Reason.ACCOUNT_FROZEN,
            Reason.INSUFFICIENT_FUNDS,
            Reason.WITHDRAWALS_HALTED,
            *_REQUEST_REASONS,
        ),
    },
)
async def request_withdrawal(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentWriter,
    body: NewWithdrawal,
    _key: KeyHeader = None,
) -> Response:
    """Withdraw from a cash account.

    Once this answers, amount and fee are held and the withdrawal is durable; it is paid at most
    once, whatever crashes. Large ones wait for a second person (`awaiting_approval`). It needs a
    fresh proof of who asks (`step_up_required`).
    """
    await own_account(parts, principal, body.account_id)
    await require_fresh(parts.auth, principal, keys=parts.settings.auth.keys_withdraw)
    once = await keyed(request, parts, principal, _created)
    outcome = await flow.request_withdrawal(
        desk_of(parts),
        actor_of(request, principal),
        body.account_id,
        body.asset,
        body.amount,
        body.destination,
        body.metadata,
        once,
    )
    return respond(outcome, _created)


@routes.get(
    "/payments",
    operation_id="list_payments",
    response_model=PaymentPage,
    responses=problems("not_found", "invalid_cursor"),
)
async def list_payments(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    account_id: AccountFilter = None,
    state: Annotated[State | None, Query()] = None,
    kind: Annotated[Kind | None, Query()] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List deposits and withdrawals, newest first."""
    desk = desk_of(parts)
    size = page_limit(limit, parts)
    given = {"account_id": account_id, "state": state, "kind": kind}
    filters = {name: str(value) for name, value in given.items() if value is not None}
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    before = None
    if cursor is not None:
        before = UUID(str(decode_cursor(secret, reader, "payments", filters, cursor)[0]))
    account_ids = await own_accounts(parts, principal, account_id)
    async with desk.pool.acquire() as connection:
        found = await store.list_payments(
            connection, account_ids, kind=kind, state=state, before=before, limit=size + 1
        )
    return _page(request, "payments", filters, size, found, secret, reader)


def _page(
    request: HttpRequest,
    name: str,
    filters: dict[str, str],
    size: int,
    found: list[Payment],
    secret: bytes,
    reader: UUID,
) -> Response:
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, name, filters, [str(found[size - 1].id)])
        headers["Link"] = next_link(request, filters, size, following)
    page = {"items": [payment_json(payment) for payment in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.get(
    "/payments/approvals",
    operation_id="list_approvals",
    response_model=PaymentPage,
    responses=problems("not_found", "invalid_cursor"),
)
async def list_approvals(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentApprover,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List everybody's withdrawals that wait for approval, oldest first."""
    desk = desk_of(parts)
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    after = None
    if cursor is not None:
        after = UUID(str(decode_cursor(secret, reader, "approvals", {}, cursor)[0]))
    async with desk.pool.acquire() as connection:
        found = await store.list_approvals(connection, after, size + 1)
    return _page(request, "approvals", {}, size, found, secret, reader)


@routes.get("/payments/{payment_id}", operation_id="get_payment", response_model=PaymentOut)
async def get_payment(parts: Parts, principal: AccountReader, payment_id: Id) -> Response:
    """Get one deposit or withdrawal as it is now."""
    return _now(await _own_payment(parts, principal, payment_id, Access.READ))


@routes.post(
    "/payments/{payment_id}/cancel",
    operation_id="cancel_payment",
    response_model=PaymentOut,
    responses=problems("overloaded", "outcome_unknown", Reason.PAYMENT_STATE),
)
async def cancel_payment(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentWriter,
    payment_id: Id,
    _key: KeyHeader = None,
) -> Response:
    """Cancel a payment that the provider has not got yet, and release its funds."""
    payment = await _own_payment(parts, principal, payment_id, Access.OWN)
    once = await keyed(request, parts, principal, _now)
    outcome = await flow.cancel_payment(desk_of(parts), actor_of(request, principal), payment, once)
    return respond(outcome, _now)


@routes.post(
    "/payments/{payment_id}/approve",
    operation_id="approve_payment",
    response_model=PaymentOut,
    responses=problems(
        "overloaded",
        "outcome_unknown",
        "step_up_required",
        "key_not_allowed",
        Reason.ACCOUNT_FROZEN,
        Reason.APPROVER_IS_REQUESTER,
        Reason.PAYMENT_STATE,
        Reason.WITHDRAWALS_HALTED,
    ),
)
async def approve_payment(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentApprover,
    payment_id: Id,
    _key: KeyHeader = None,
) -> Response:
    """Approve somebody else's withdrawal; it goes out at once. Needs a fresh proof."""
    await require_fresh(parts.auth, principal, keys=parts.settings.auth.keys_withdraw)
    return await _decide(request, parts, principal, payment_id, None)


@routes.post(
    "/payments/{payment_id}/reject",
    operation_id="reject_payment",
    response_model=PaymentOut,
    responses=problems("overloaded", "outcome_unknown", Reason.PAYMENT_STATE),
)
async def reject_payment(
    request: HttpRequest,
    parts: Parts,
    principal: PaymentApprover,
    payment_id: Id,
    body: Rejection,
    _key: KeyHeader = None,
) -> Response:
    """Reject a withdrawal that has not gone out, and release its funds."""
    return await _decide(request, parts, principal, payment_id, body.reason)


async def _decide(
    request: HttpRequest,
    parts: Deps,
    principal: Principal,
    payment_id: UUID,
    reason: str | None,
) -> Response:
    desk = desk_of(parts)
    payment = await flow.find_payment(desk, payment_id)
    once = await keyed(request, parts, principal, _now)
    outcome = await flow.decide_withdrawal(
        desk, actor_of(request, principal), payment, reason is None, reason, once
    )
    return respond(outcome, _now)
