"""What is said about accounts over HTTP: bodies of requests and answers, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from tbot.core.money import MoneyText
from tbot.ledger.entries import Account, LimitChanges, Limits
from tbot.web.fields import (
    Answer,
    Asset,
    Id,
    Name,
    PositiveAmount,
    Request,
    Share,
    Symbol,
    Timestamp,
)
from tbot.web.market import VenueName
from tbot.web.problems import invalid

_ASSETS_MAX = 50

Kind = Literal["trading", "cash"]
Status = Literal["open", "frozen", "closed"]


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
        Status | None,
        Field(
            description="For administrators. On a frozen account money may come in and holds may "
            "be released, nothing else. Closing is for ever, and only for an account with "
            "nothing on it."
        ),
    ] = None
    limits: ChangedLimits | None = None


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
    status: Status
    limits: LimitsOut
    sequence: Annotated[int, Field(description="Of its newest journal entry.")]
    created_at: Timestamp
    updated_at: Timestamp


class AccountPage(Answer):
    """A page of accounts: your own oldest first, shared ones in the order of their ids."""

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


def limits_of(asked: NewLimits | None, default: Limits) -> Limits:
    """The limits of a new account."""
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


def deposits_of(body: NewAccount) -> Mapping[str, Decimal]:
    """What a new account starts with, by asset.

    Raises:
        Problem: An asset is given twice.
    """
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


def check_new(body: NewAccount) -> None:
    """Check rules that no schema expresses.

    Raises:
        Problem: One is broken.
    """
    if body.kind == "trading":
        return
    if body.venue is not None:
        raise invalid("a cash account has no venue", pointer="/venue")
    if body.starting_balance:
        raise invalid("a cash account starts with nothing", pointer="/starting_balance")


def limit_changes(asked: ChangedLimits | None, default: Limits) -> LimitChanges | None:
    """What a merge patch changes of an account's limits; null is the default again."""
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
