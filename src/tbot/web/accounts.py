"""Accounts: opening them, and what is on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.scopes import Scope
from tbot.core import clock, money
from tbot.core.refusals import Reason
from tbot.ledger import flow, members_store, store
from tbot.ledger.entries import Account, AccountAt, version_of
from tbot.ledger.members import Access
from tbot.orders import store as orders_store
from tbot.web.account_forms import (
    AccountChanges,
    AccountOut,
    AccountPage,
    Balances,
    EquityOut,
    Kind,
    NewAccount,
    Positions,
    Status,
    account_json,
    check_new,
    deposits_of,
    limit_changes,
    limits_of,
)
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    AccountReader,
    AccountWriter,
    PageCursor,
    PageLimit,
    Parts,
    actor_of,
    page_limit,
)
from tbot.web.deps import Deps
from tbot.web.fields import (
    Asset,
    Id,
    Moment,
)
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.preconditions import TAGGED, IfMatch, expected_versions, tag_of
from tbot.web.problems import invalid
from tbot.web.routes import router
from tbot.web.statements import past_balances
from tbot.web.valuation import Prices, positions_json, value

routes = router("accounts")

_LIST: Final = "accounts by age"
"""As cursors name it: those that were given for the order of ids are refused."""


@routes.post(
    "/accounts",
    operation_id="create_account",
    status_code=201,
    response_model=AccountOut,
    responses={
        201: {
            "headers": {
                "Location": {"schema": {"type": "string"}},
                "ETag": {"schema": {"type": "string"}},
            }
        },
        **problems(
            "overloaded",
            "outcome_unknown",
            "insufficient_scope",
            Reason.OVERDRAFT_NOT_ALLOWED,
            Reason.VENUE_UNKNOWN,
            Reason.ASSET_UNKNOWN,
            Reason.AMOUNT_TOO_PRECISE,
        ),
    },
)
async def create_account(
    request: HttpRequest,
    parts: Parts,
    principal: AccountWriter,
    body: NewAccount,
    _key: KeyHeader = None,
) -> Response:
    """Open a paper account with a starting balance, or a cash account."""
    check_new(body)
    if body.limits is not None and body.limits.overdraft:
        principal.require(Scope.ADMIN)
    desk = parts.orders.accounts
    deposits = deposits_of(body)

    def opened(account: Account) -> Response:
        headers = {"Location": f"/v1/accounts/{account.id}"}
        return _answer(account, 1 + len(deposits), 201, headers)

    once = await keyed(request, parts, principal, opened)
    outcome = await flow.open_account(
        desk,
        actor_of(request, principal),
        principal.user_id,
        body.name,
        None if body.kind == "cash" else body.venue or "paper",
        deposits,
        limits_of(body.limits, desk.default_limits),
        once=once,
    )
    return respond(outcome, opened)


@routes.get(
    "/accounts",
    operation_id="list_accounts",
    response_model=AccountPage,
    responses=problems("invalid_cursor"),
)
async def list_accounts(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    shared: Annotated[
        bool, Query(description="Those of others that are shared with you, instead of your own.")
    ] = False,
    kind: Annotated[Kind | None, Query(description="Only of this kind, of your own.")] = None,
    status: Annotated[Status | None, Query(description="Only in this state, of your own.")] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List your accounts, oldest first, or those shared with you, in the order of their ids."""
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    given = {"shared": "true" if shared else None, "kind": kind, "status": status}
    filters: dict[str, str] = {name: value for name, value in given.items() if value is not None}
    if shared and len(filters) > 1:
        raise invalid("is for your own accounts only", parameter="kind" if kind else "status")
    after = None
    if cursor is not None:
        opened_at, last_id = decode_cursor(secret, reader, _LIST, filters, cursor)
        after = clock.unstamp(str(opened_at)), UUID(str(last_id))
    async with parts.pool.acquire() as connection:
        if shared:
            ids = await members_store.shared_with(
                connection, reader, None if after is None else after[1], size + 1
            )
            found = await store.get_accounts(connection, ids)
        else:
            found = await store.list_accounts(
                connection, reader, after, size + 1, kind=kind, status=status
            )
    headers = {}
    following = None
    if len(found) > size:
        last, _ = found[size - 1]
        following = encode_cursor(secret, reader, _LIST, filters, [last.opened_at, str(last.id)])
        headers["Link"] = next_link(request, filters, size, following)
    page = {"items": [account_json(*item) for item in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.patch(
    "/accounts/{account_id}",
    operation_id="change_account",
    response_model=AccountOut,
    responses={
        200: TAGGED,
        **problems(
            "overloaded",
            "outcome_unknown",
            "insufficient_scope",
            Reason.ACCOUNT_CLOSED,
            Reason.ACCOUNT_NOT_EMPTY,
            Reason.AMOUNT_TOO_PRECISE,
            Reason.ASSET_UNKNOWN,
            Reason.OVERDRAFT_NOT_ALLOWED,
            "precondition_required",
            Reason.PRECONDITION_FAILED,
        ),
    },
)
async def change_account(
    request: HttpRequest,
    parts: Parts,
    principal: AccountWriter,
    account_id: Id,
    body: AccountChanges,
    _match: IfMatch = None,
    _key: KeyHeader = None,
) -> Response:
    """Change an account's name or limits; for administrators also its status and overdraft.

    An administrator may change anybody's account. `If-Match` compares what can be changed here:
    orders and money that come and go meanwhile do not matter.
    """
    await own_account(parts, principal, account_id, admins_too=True)
    overdraft = body.limits.overdraft if body.limits is not None else None
    if body.status is not None or overdraft:
        principal.require(Scope.ADMIN)
    for name in ("name", "status", "limits"):
        if name in body.model_fields_set and getattr(body, name) is None:
            raise invalid("cannot be taken away", pointer=f"/{name}")
    versions = expected_versions(request)
    desk = parts.orders.accounts

    def changed(result: AccountAt) -> Response:
        return _answer(result.account, result.sequence)

    once = await keyed(request, parts, principal, changed)
    outcome: Any = await desk.assets.check(
        (asset, most) for asset, most in (overdraft or {}).items() if most is not None
    )
    if outcome is None:
        outcome = await flow.change_account(
            desk,
            actor_of(request, principal),
            account_id,
            limit_changes(body.limits, desk.default_limits),
            body.status,
            body.name,
            once,
            versions,
        )
    return respond(outcome, changed)


@routes.get("/accounts/{account_id}", operation_id="get_account", response_model=AccountOut)
async def get_account(parts: Parts, principal: AccountReader, account_id: Id) -> Response:
    """Get one account."""
    await own_account(parts, principal, account_id, need=Access.READ)
    async with parts.pool.acquire() as connection:
        account, sequence = await store.get_account(connection, account_id)
    return _answer(account, sequence)


def _answer(
    account: Account, sequence: int, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    tag = tag_of(version_of(account), sequence)
    return json_answer(account_json(account, sequence), status, {**(headers or {}), "ETag": tag})


@routes.get("/accounts/{account_id}/balances", operation_id="get_balances", response_model=Balances)
async def get_balances(
    parts: Parts,
    principal: AccountReader,
    account_id: Id,
    at: Annotated[Moment | None, Query(description="As of this moment; default: now.")] = None,
) -> Response:
    """Get an account's balances, as they are or as they were at any moment.

    `sequence` is the last journal entry that counted. For a moment within the last seconds another
    entry may still turn up.
    """
    await own_account(parts, principal, account_id, need=Access.READ)
    if at is not None:
        return json_answer(await past_balances(parts, account_id, at))
    async with parts.pool.acquire() as connection:
        sequence, balances = await store.get_balances(connection, account_id)
    return json_answer(
        {
            "account_id": account_id,
            "sequence": sequence,
            "balances": [
                {
                    "asset": asset,
                    "total": money.text(balance.total),
                    "available": money.text(balance.available),
                    "held": money.text(balance.held),
                }
                for asset, balance in balances.items()
            ],
        }
    )


@routes.get(
    "/accounts/{account_id}/positions", operation_id="get_positions", response_model=Positions
)
async def get_positions(parts: Parts, principal: AccountReader, account_id: Id) -> Response:
    """Get an account's positions with their market values."""
    facts = await own_account(parts, principal, account_id, need=Access.READ)
    async with parts.pool.acquire() as connection:
        sequence, positions = await orders_store.get_positions(connection, account_id)
    listed = positions_json(positions, _prices(parts, facts.venue))
    return json_answer({"account_id": account_id, "sequence": sequence, "positions": listed})


def _prices(deps: Deps, venue: str | None) -> Prices:
    if venue is None:
        return lambda _symbol: None
    return lambda symbol: deps.orders.fresh_reference(venue, symbol)


@routes.get("/accounts/{account_id}/equity", operation_id="get_equity", response_model=EquityOut)
async def get_equity(
    parts: Parts,
    principal: AccountReader,
    account_id: Id,
    quote: Annotated[Asset, Query(description="The asset to value in.")] = "USDT",
) -> Response:
    """Value an account at the market."""
    facts = await own_account(parts, principal, account_id, need=Access.READ)
    async with parts.pool.acquire() as connection:
        _, balances = await store.get_balances(connection, account_id)
        _, positions = await orders_store.get_positions(connection, account_id)
    totals = {asset: balance.total for asset, balance in balances.items()}
    worth = value(totals, positions, quote, _prices(parts, facts.venue))
    return json_answer(
        {
            "account_id": account_id,
            "quote": quote,
            "equity": money.text(worth.equity),
            "balances_value": [
                {
                    "asset": item.asset,
                    "amount": money.text(item.amount),
                    "price": None if item.price is None else money.text(item.price),
                    "value": None if item.worth is None else money.text(item.worth),
                }
                for item in worth.assets
            ],
            "realized_pnl": money.text(worth.realized),
            "unrealized_pnl": money.text(worth.unrealized),
            "complete": worth.complete,
            "as_of": clock.stamp(clock.utc_now()),
        }
    )
