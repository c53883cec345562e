"""Accounts: opening them, and what is on them."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query
from pydantic import Discriminator, Field, Tag
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.scopes import Scope
from tbot.core import clock, money
from tbot.core.money import MoneyText
from tbot.core.refusals import Reason
from tbot.ledger import flow, store
from tbot.ledger.entries import Account, AccountAt, LimitChanges, Limits
from tbot.orders import store as orders_store
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
    Answer,
    Asset,
    Id,
    Moment,
    Name,
    PositiveAmount,
    Request,
    Share,
    Symbol,
    Timestamp,
)
from tbot.web.market import VenueName
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.problems import invalid
from tbot.web.routes import router
from tbot.web.statements import past_balances
from tbot.web.valuation import Prices, positions_json, value

routes = router("accounts")

_ASSETS_MAX = 50


class StartingAmount(Request):
    """An amount that an account starts with."""

    asset: Asset
    amount: PositiveAmount


class NewLimits(Request):
    """Risk limits of a new account; what is left out takes the server's default."""

    max_order_notional: Annotated[
        PositiveAmount | None, Field(description="Largest order, in its quote asset.")
    ] = None
    max_open_orders: Annotated[int | None, Field(ge=0, le=100_000, strict=True)] = None
    price_collar: Annotated[
        Share | None, Field(description="How far through the market a price may be: 0.05 is 5 %.")
    ] = None
    allowed_instruments: Annotated[
        list[Symbol] | None, Field(max_length=1000, description="Null allows all.")
    ] = None
    overdraft: Annotated[
        dict[Asset, PositiveAmount] | None,
        Field(
            max_length=_ASSETS_MAX,
            description="How far below zero transfers and withdrawals may take a cash account; "
            "only an administrator can give one.",
            examples=[{"EUR": "500"}],
        ),
    ] = None


def _shape_of(value: Any) -> str:
    return "@map" if isinstance(value, dict) else "@list"


StartingBalance = Annotated[
    Annotated[
        dict[Asset, PositiveAmount],
        Field(max_length=_ASSETS_MAX, examples=[{"USDT": "10000"}]),
        Tag("@map"),
    ]
    | Annotated[list[StartingAmount], Field(max_length=_ASSETS_MAX), Tag("@list")],
    Discriminator(_shape_of),
]


class ChangedLimits(Request):
    """Changes of limits, as a merge patch: null takes the server's default again."""

    max_order_notional: PositiveAmount | None = None
    max_open_orders: Annotated[int | None, Field(ge=0, le=100_000, strict=True)] = None
    price_collar: Share | None = None
    allowed_instruments: Annotated[
        list[Symbol] | None, Field(max_length=1000, description="Null allows all.")
    ] = None
    overdraft: Annotated[
        dict[Asset, PositiveAmount | None] | None,
        Field(
            max_length=_ASSETS_MAX,
            description="For administrators. Null takes an asset's overdraft away; assets that "
            "are not named keep theirs.",
            examples=[{"EUR": "500", "USD": None}],
        ),
    ] = None


class AccountChanges(Request):
    """Changes of an account, as a merge patch (RFC 7396): what is left out stays as it is."""

    name: Name | None = None
    status: Annotated[
        Literal["open", "frozen", "closed"] | None,
        Field(
            description="For administrators. On a frozen account money may come in and holds may "
            "be released, nothing else. Closing is for ever, and only for an account with "
            "nothing on it."
        ),
    ] = None
    limits: ChangedLimits | None = None


Kind = Literal["trading", "cash"]


class NewAccount(Request):
    """An account to be opened."""

    kind: Annotated[
        Kind, Field(description="`trading` at a venue, or `cash` for payments, without one.")
    ] = "trading"
    name: Name
    venue: Annotated[
        VenueName | None, Field(description="Trading accounts only; `paper` when absent.")
    ] = None
    starting_balance: Annotated[
        StartingBalance,
        Field(description="Paper money, as a list or as a map from asset to amount."),
    ] = Field(default_factory=dict)
    limits: NewLimits | None = None


class LimitsOut(Answer):
    """Risk limits of an account."""

    max_order_notional: MoneyText
    max_open_orders: int
    price_collar: MoneyText
    allowed_instruments: list[str] | None
    overdraft: Annotated[
        dict[str, MoneyText],
        Field(description="Asset → how far below zero a cash account may go."),
    ]


class AccountOut(Answer):
    """An account."""

    id: Id
    kind: Kind
    name: str
    venue: Annotated[str | None, Field(examples=["paper"], description="Null for a cash account.")]
    status: Annotated[str, Field(examples=["open"], description="`open`, `frozen` or `closed`.")]
    limits: LimitsOut
    sequence: Annotated[int, Field(description="Of its newest journal entry.")]
    created_at: Timestamp
    updated_at: Timestamp


class AccountPage(Answer):
    """A page of accounts, in the order of their ids."""

    items: list[AccountOut]
    next: str | None


class BalanceOut(Answer):
    """What an account has of an asset: `total` is `available` plus `held` for open orders."""

    asset: str
    total: MoneyText
    available: MoneyText
    held: MoneyText


class Balances(Answer):
    """All balances of an account, as of one entry of its journal."""

    account_id: Id
    sequence: int
    balances: list[BalanceOut]


class PositionOut(Answer):
    """What an account traded of an instrument and still has, at weighted-average cost."""

    symbol: Symbol
    quantity: MoneyText
    average_cost: MoneyText | None
    cost: MoneyText
    realized_pnl: MoneyText
    market_price: Annotated[MoneyText | None, Field(description="Null without a fresh price.")]
    unrealized_pnl: MoneyText | None


class Positions(Answer):
    """All positions of an account, as of one entry of its journal."""

    account_id: Id
    sequence: int
    positions: list[PositionOut]


class ValuedAmount(Answer):
    """An amount of an asset, and what it is worth now."""

    asset: str
    amount: MoneyText
    price: MoneyText | None
    value: MoneyText | None


class EquityOut(Answer):
    """What an account is worth in one asset, at the middle of the market."""

    account_id: Id
    quote: str
    equity: MoneyText
    balances_value: list[ValuedAmount]
    realized_pnl: MoneyText
    unrealized_pnl: MoneyText
    complete: Annotated[
        bool, Field(description="False when something has no fresh price in the quote asset.")
    ]
    as_of: Timestamp


def account_json(account: Account, sequence: int) -> dict[str, Any]:
    """An account as `AccountOut` describes it, in JSON types."""
    return {
        "id": account.id,
        "kind": account.kind,
        "name": account.name,
        "venue": account.venue,
        "status": account.status,
        "limits": account.limits.to_json(),
        "sequence": sequence,
        "created_at": account.opened_at,
        "updated_at": account.updated_at,
    }


def _limits(asked: NewLimits | None, default: Limits) -> Limits:
    if asked is None:
        return default
    given = {name: getattr(asked, name) for name in asked.model_fields_set}
    allowed = given.get("allowed_instruments")
    return Limits(
        max_order_notional=_or(given.get("max_order_notional"), default.max_order_notional),
        max_open_orders=_or(given.get("max_open_orders"), default.max_open_orders),
        price_collar=_or(given.get("price_collar"), default.price_collar),
        allowed_instruments=(
            tuple(dict.fromkeys(allowed)) if allowed is not None else default.allowed_instruments
        ),
        overdraft=given.get("overdraft") or {},
    )


def _or[T](given: T | None, default: T) -> T:
    return default if given is None else given


def _deposits(body: NewAccount) -> Mapping[str, Decimal]:
    start = body.starting_balance
    if isinstance(start, dict):
        return start
    amounts: dict[str, Decimal] = {}
    for number, item in enumerate(start):
        if item.asset in amounts:
            raise invalid(
                f"{item.asset} is given twice", pointer=f"/starting_balance/{number}/asset"
            )
        amounts[item.asset] = item.amount
    return amounts


def _check_new(body: NewAccount) -> None:
    """Rules that no schema expresses."""
    if body.kind == "trading":
        return
    if body.venue is not None:
        raise invalid("a cash account has no venue", pointer="/venue")
    if body.starting_balance:
        raise invalid("a cash account starts with nothing", pointer="/starting_balance")


@routes.post(
    "/accounts",
    operation_id="create_account",
    status_code=201,
    response_model=AccountOut,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
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
    _check_new(body)
    if body.limits is not None and body.limits.overdraft:
        principal.require(Scope.ADMIN)
    desk = parts.orders.accounts
    deposits = _deposits(body)

    def opened(account: Account) -> Response:
        headers = {"Location": f"/v1/accounts/{account.id}"}
        return json_answer(account_json(account, 1 + len(deposits)), 201, headers)

    once = await keyed(request, parts, principal, principal.user_id, opened)
    outcome = await flow.open_account(
        desk,
        actor_of(request, principal),
        principal.user_id,
        body.name,
        None if body.kind == "cash" else body.venue or "paper",
        deposits,
        _limits(body.limits, desk.default_limits),
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
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List your accounts, in the order of their ids."""
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    after = None
    if cursor is not None:
        after = UUID(str(decode_cursor(secret, reader, "accounts", {}, cursor)[0]))
    async with parts.pool.acquire() as connection:
        found = await store.list_accounts(connection, principal.user_id, after, size + 1)
    headers = {}
    following = None
    if len(found) > size:
        last, _ = found[size - 1]
        following = encode_cursor(secret, reader, "accounts", {}, [str(last.id)])
        headers["Link"] = next_link(request, {}, size, following)
    page = {"items": [account_json(*item) for item in found[:size]], "next": following}
    return json_answer(page, headers=headers)


def _limit_changes(asked: ChangedLimits | None, default: Limits) -> LimitChanges | None:
    if asked is None:
        return None
    given: dict[str, Any] = {name: getattr(asked, name) for name in asked.model_fields_set}
    for name in ("max_order_notional", "max_open_orders", "price_collar"):
        if name in given:
            given[name] = _or(given[name], getattr(default, name))
    if given.get("allowed_instruments") is not None:
        given["allowed_instruments"] = tuple(dict.fromkeys(given["allowed_instruments"]))
    given["overdraft"] = given.get("overdraft") or {}
    return LimitChanges(**given)


@routes.patch(
    "/accounts/{account_id}",
    operation_id="change_account",
    response_model=AccountOut,
    responses=problems(
        "overloaded",
        "outcome_unknown",
        "insufficient_scope",
        Reason.ACCOUNT_CLOSED,
        Reason.ACCOUNT_NOT_EMPTY,
        Reason.AMOUNT_TOO_PRECISE,
        Reason.ASSET_UNKNOWN,
        Reason.OVERDRAFT_NOT_ALLOWED,
    ),
)
async def change_account(
    request: HttpRequest,
    parts: Parts,
    principal: AccountWriter,
    account_id: Id,
    body: AccountChanges,
    _key: KeyHeader = None,
) -> Response:
    """Change an account's name or limits; for administrators also its status and overdraft.

    An administrator may change anybody's account.
    """
    await own_account(parts, principal, account_id, admins_too=True)
    overdraft = body.limits.overdraft if body.limits is not None else None
    if body.status is not None or overdraft:
        principal.require(Scope.ADMIN)
    for name in ("name", "status", "limits"):
        if name in body.model_fields_set and getattr(body, name) is None:
            raise invalid("cannot be taken away", pointer=f"/{name}")
    desk = parts.orders.accounts

    def changed(result: AccountAt) -> Response:
        return json_answer(account_json(result.account, result.sequence))

    once = await keyed(request, parts, principal, account_id, changed)
    outcome: Any = await desk.assets.check(
        (asset, most) for asset, most in (overdraft or {}).items() if most is not None
    )
    if outcome is None:
        outcome = await flow.change_account(
            desk,
            actor_of(request, principal),
            account_id,
            _limit_changes(body.limits, desk.default_limits),
            body.status,
            body.name,
            once,
        )
    return respond(outcome, changed)


@routes.get("/accounts/{account_id}", operation_id="get_account", response_model=AccountOut)
async def get_account(parts: Parts, principal: AccountReader, account_id: Id) -> Response:
    """Get one account."""
    await own_account(parts, principal, account_id)
    async with parts.pool.acquire() as connection:
        account, sequence = await store.get_account(connection, account_id)
    return json_answer(account_json(account, sequence))


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
    await own_account(parts, principal, account_id)
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
    facts = await own_account(parts, principal, account_id)
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
    facts = await own_account(parts, principal, account_id)
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
