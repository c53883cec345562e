"""Transfers: at once or in two phases, linked, in bulk, reversed."""

from __future__ import annotations

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core.refusals import Reason, Refused
from tbot.ledger import transfers_flow as flow
from tbot.ledger import transfers_store as store
from tbot.ledger.members import Access
from tbot.ledger.transfers import Transfer, TransferState
from tbot.web.answers import json_answer, json_body
from tbot.web.dependencies import (
    AccountFilter,
    AccountReader,
    PageCursor,
    PageLimit,
    Parts,
    TransferWriter,
    actor_of,
    page_limit,
)
from tbot.web.fields import Id
from tbot.web.once import KeyHeader, keyed, request_key, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account, own_accounts, own_transfer, owned
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.problems import Problem, invalid, refused
from tbot.web.routes import router
from tbot.web.transfer_bulk import Bulk
from tbot.web.transfer_forms import (
    BulkBody,
    BulkOut,
    LinkedBody,
    LinkedOut,
    PostBody,
    ReverseBody,
    TransferBody,
    TransferOut,
    TransferPage,
    new_transfer,
    transfer_bytes,
    transfer_json,
)

routes = router("transfers")

_MAKING: Final = (
    Reason.ACCOUNT_CLOSED,
    Reason.ACCOUNT_FROZEN,
    Reason.ACCOUNT_NEGATIVE,
    Reason.AMOUNT_TOO_PRECISE,
    Reason.ASSET_UNKNOWN,
    Reason.INSUFFICIENT_FUNDS,
    Reason.TARGET_NOT_FOUND,
    Reason.TRANSFER_CROSSES_VENUES,
    Reason.TRANSFER_SAME_ACCOUNT,
    Reason.TRANSFERS_HALTED,
    Reason.TRANSFERS_PENDING_MAX,
)
_ALWAYS: Final = ("not_found", "overloaded", "outcome_unknown")
_CREATED: Final[dict[int | str, dict[str, Any]]] = {
    201: {"headers": {"Location": {"schema": {"type": "string"}}}}
}


def _made(made: tuple[Transfer, ...]) -> Response:
    return _new(made[0])


def _new(transfer: Transfer) -> Response:
    headers = {"Location": f"/v1/transfers/{transfer.id}"}
    return json_body(transfer_bytes(transfer), 201, headers)


def _one(transfer: Transfer) -> Response:
    return json_body(transfer_bytes(transfer))


@routes.post(
    "/transfers",
    operation_id="create_transfer",
    status_code=201,
    response_model=TransferOut,
    responses={**_CREATED, **problems(*_ALWAYS, *_MAKING)},
)
async def create_transfer(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    body: TransferBody,
    _key: KeyHeader = None,
) -> Response:
    """Transfer money from an account of yours to another one.

    With `pending` it is only held: post it (in full or in part), void it, or let it expire.
    """
    new = new_transfer(body, parts.settings.ledger)
    if owned(parts, principal, new.source_id) is None:
        await own_account(parts, principal, new.source_id)
    once = await keyed(request, parts, principal, _made)
    desk = parts.orders.accounts
    outcome = await flow.create(desk, actor_of(request, principal), new, once)
    return respond(outcome, _made, once)


@routes.post(
    "/transfers/linked",
    operation_id="create_linked_transfers",
    status_code=201,
    response_model=LinkedOut,
    responses={**_CREATED, **problems(*_ALWAYS, *_MAKING)},
)
async def create_linked_transfers(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    body: LinkedBody,
    _key: KeyHeader = None,
) -> Response:
    """Make several transfers, all of them or none.

    Each sees what the ones before it did, so money can pass through an account. The first that
    cannot be made refuses all; `facts.transfer` is its index.
    """
    settings = parts.settings.ledger
    new = [new_transfer(one, settings, f"/transfers/{n}") for n, one in enumerate(body.transfers)]
    for source_id in dict.fromkeys(one.source_id for one in new):
        await own_account(parts, principal, source_id)
    once = await keyed(request, parts, principal, _linked)
    desk = parts.orders.accounts
    outcome = await flow.create_linked(desk, actor_of(request, principal), new, once)
    return respond(outcome, _linked)


def _linked(made: tuple[Transfer, ...]) -> Response:
    content = {"group_id": made[0].group_id, "transfers": [transfer_json(one) for one in made]}
    return json_answer(content, 201, {"Location": f"/v1/transfers/{made[0].id}"})


@routes.post(
    "/transfers/bulk",
    operation_id="create_transfers_in_bulk",
    response_model=BulkOut,
)
async def create_transfers_in_bulk(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    body: BulkBody,
    _key: KeyHeader = None,
) -> Response:
    """Make many transfers that stand or fall each for itself; the answer has a result for each.

    It is 200 whatever the results are. Repeat it whole under the same `Idempotency-Key` after a
    timeout, or where items have a status from 500 on: those that were made are answered again. Any
    other list under that key is refused.
    """
    most = parts.settings.ledger.bulk_transfers_max
    if len(body.transfers) > most:
        raise invalid(f"at most {most} at once", pointer="/transfers")
    actor = actor_of(request, principal)
    bulk = Bulk(request, parts, principal, actor, request_key(request))
    return await bulk.results(body.transfers)


@routes.get(
    "/transfers",
    operation_id="list_transfers",
    response_model=TransferPage,
    responses=problems("not_found", "invalid_cursor"),
)
async def list_transfers(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    account_id: AccountFilter = None,
    state: Annotated[TransferState | None, Query()] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List transfers out of and into your accounts, newest first."""
    size = page_limit(limit, parts)
    given = {"account_id": account_id, "state": state}
    filters = {name: str(value) for name, value in given.items() if value is not None}
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    before = None
    if cursor is not None:
        before = UUID(str(decode_cursor(secret, reader, "transfers", filters, cursor)[0]))
    account_ids = await own_accounts(parts, principal, account_id)
    async with parts.pool.acquire() as connection:
        found = await store.list_transfers(
            connection, account_ids, state=state, before=before, limit=size + 1
        )
    headers = {}
    following = None
    if len(found) > size:
        position: list[str | int] = [str(found[size - 1].id)]
        following = encode_cursor(secret, reader, "transfers", filters, position)
        headers["Link"] = next_link(request, filters, size, following)
    page = {"items": [transfer_json(one) for one in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.get(
    "/transfers/{transfer_id}",
    operation_id="get_transfer",
    response_model=TransferOut,
    responses=problems("not_found"),
)
async def get_transfer(parts: Parts, principal: AccountReader, transfer_id: Id) -> Response:
    """Get a transfer out of or into an account of yours."""
    await own_transfer(parts, principal, transfer_id, need=Access.READ)
    async with parts.pool.acquire() as connection:
        return _one(await store.get_transfer(connection, transfer_id))


def _not_allowed(who: str) -> Problem:
    return refused(Refused(Reason.TRANSFER_NOT_ALLOWED, f"this is for {who}"))


@routes.post(
    "/transfers/{transfer_id}/post",
    operation_id="post_transfer",
    response_model=TransferOut,
    responses=problems(
        *_ALWAYS,
        Reason.ACCOUNT_CLOSED,
        Reason.ACCOUNT_FROZEN,
        Reason.AMOUNT_TOO_PRECISE,
        Reason.TRANSFER_AMOUNT_EXCEEDED,
        Reason.TRANSFER_EXPIRED,
        Reason.TRANSFERS_HALTED,
        Reason.TRANSFER_NOT_ALLOWED,
        Reason.TRANSFER_NOT_PENDING,
    ),
)
async def post_transfer(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    transfer_id: Id,
    body: PostBody | None = None,
    _key: KeyHeader = None,
) -> Response:
    """Post a pending transfer: its money reaches the target. For the source's owner."""
    side = await own_transfer(parts, principal, transfer_id)
    if not (side.source or side.admin):
        raise _not_allowed("the source's owner")
    once = await keyed(request, parts, principal, _one)
    amount = None if body is None else body.amount
    desk = parts.orders.accounts
    outcome = await flow.post(desk, actor_of(request, principal), transfer_id, amount, once)
    return respond(outcome, _one)


@routes.post(
    "/transfers/{transfer_id}/void",
    operation_id="void_transfer",
    response_model=TransferOut,
    responses=problems(*_ALWAYS, Reason.TRANSFER_NOT_PENDING),
)
async def void_transfer(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    transfer_id: Id,
    _key: KeyHeader = None,
) -> Response:
    """Void a pending transfer: what it held is released. For the owners of source and target."""
    await own_transfer(parts, principal, transfer_id)
    once = await keyed(request, parts, principal, _one)
    desk = parts.orders.accounts
    outcome = await flow.void(desk, actor_of(request, principal), transfer_id, once)
    return respond(outcome, _one)


@routes.post(
    "/transfers/{transfer_id}/reverse",
    operation_id="reverse_transfer",
    status_code=201,
    response_model=TransferOut,
    responses={
        **_CREATED,
        **problems(
            *_ALWAYS,
            Reason.ACCOUNT_CLOSED,
            Reason.ACCOUNT_FROZEN,
            Reason.ACCOUNT_NEGATIVE,
            Reason.INSUFFICIENT_FUNDS,
            Reason.TRANSFER_IS_REVERSAL,
            Reason.TRANSFER_NOT_ALLOWED,
            Reason.TRANSFER_NOT_POSTED,
            Reason.TRANSFER_REVERSED,
            Reason.TRANSFERS_HALTED,
        ),
    },
)
async def reverse_transfer(
    request: HttpRequest,
    parts: Parts,
    principal: TransferWriter,
    transfer_id: Id,
    body: ReverseBody | None = None,
    _key: KeyHeader = None,
) -> Response:
    """Give back what a posted transfer brought, whole, by a new transfer. For the target's owner.

    Entries are never changed: the old transfer stays, and names the new one as `reversed_by`.
    """
    side = await own_transfer(parts, principal, transfer_id)
    if not (side.target or side.admin):
        raise _not_allowed("the target's owner, whose money goes")
    once = await keyed(request, parts, principal, _new)
    metadata = {} if body is None else body.metadata
    desk = parts.orders.accounts
    outcome = await flow.reverse(desk, actor_of(request, principal), transfer_id, metadata, once)
    return respond(outcome, _new)
