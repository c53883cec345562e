"""What the server tells, as frozen dataclasses: amounts are `Decimal`, times are aware `datetime`.

Members that a newer server adds are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

FINAL_STATES: Final = frozenset({"filled", "canceled", "rejected", "expired"})


@dataclass(frozen=True, slots=True)
class AssetAmount:
    """An amount of an asset."""

    asset: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of an account.

    `allowed_instruments` None allows all; `overdraft` says per asset how far below zero a cash
    account may go.
    """

    max_order_notional: Decimal
    max_open_orders: int
    price_collar: Decimal
    allowed_instruments: list[str] | None = None
    overdraft: dict[str, Decimal] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in.

    `role` is `admin`, `trader`, `viewer`, `auditor` or `service`; `status` is `active` or
    `disabled`; `etag` is for `if_match` of a change.
    """

    id: UUID
    username: str
    role: str
    status: str
    created_at: datetime
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """An account; `sequence` is that of its newest journal entry.

    `kind` is `trading`, or `cash` for one without a venue; `etag` is for `if_match` of a change,
    and None in lists.
    """

    id: UUID
    name: str
    venue: str | None
    status: str
    limits: Limits
    sequence: int
    created_at: datetime
    updated_at: datetime
    kind: str = "trading"
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """`total` is `available` plus what is `held` for open orders."""

    asset: str
    total: Decimal
    available: Decimal
    held: Decimal


@dataclass(frozen=True, slots=True)
class Balances:
    """All balances of an account as of one entry of its journal."""

    account_id: UUID
    sequence: int
    balances: list[Balance]

    def available(self, asset: str) -> Decimal:
        """What can be spent of an asset; zero where there is none."""
        return next((one.available for one in self.balances if one.asset == asset), Decimal(0))


@dataclass(frozen=True, slots=True)
class Position:
    """What an account traded of an instrument and still has, at weighted-average cost."""

    symbol: str
    quantity: Decimal
    cost: Decimal
    realized_pnl: Decimal
    average_cost: Decimal | None = None
    market_price: Decimal | None = None
    unrealized_pnl: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Positions:
    """All positions of an account as of one entry of its journal."""

    account_id: UUID
    sequence: int
    positions: list[Position]


@dataclass(frozen=True, slots=True)
class ValuedAmount:
    """An amount of an asset and what it is worth now."""

    asset: str
    amount: Decimal
    price: Decimal | None
    value: Decimal | None


@dataclass(frozen=True, slots=True)
class Equity:
    """What an account is worth; not `complete` when something has no fresh price."""

    account_id: UUID
    quote: str
    equity: Decimal
    balances_value: list[ValuedAmount]
    realized_pnl: Decimal
    unrealized_pnl: Decimal
    complete: bool
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Instrument:
    """A market and its trading rules: prices are multiples of `tick`, quantities of `step`."""

    venue: str
    symbol: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    quantity_min: Decimal
    quantity_max: Decimal
    notional_min: Decimal
    notional_max: Decimal | None
    trading: bool
    base_scale: int = 8
    quote_scale: int = 8
    market_step: Decimal = Decimal(0)
    market_quantity_max: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class Ticker:
    """A market in figures; what has not been heard yet is None."""

    last: Decimal | None = None
    bid: Decimal | None = None
    bid_quantity: Decimal | None = None
    ask: Decimal | None = None
    ask_quantity: Decimal | None = None
    open: Decimal | None = None
    high: Decimal | None = None
    low: Decimal | None = None
    volume: Decimal | None = None
    quote_volume: Decimal | None = None
    trades: int = 0
    since: datetime | None = None
    at: datetime | None = None
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Candle:
    """The trades of one interval in figures.

    Attributes:
        first_trade_id, last_trade_id: None where only the venue's own candle is known.
        complete: No trade of it is missing.
        closed: Its interval is over.
    """

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trades: int
    first_trade_id: int | None
    last_trade_id: int | None
    complete: bool
    closed: bool


@dataclass(frozen=True, slots=True)
class Halt:
    """A switch that keeps new orders out."""

    switch: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class MarketStatus:
    """How a market is.

    Attributes:
        stale: Nothing was heard of it lately.
        book: `live` or `rebuilding`.
        orders: `sent`, `waiting` (no process sends them at the moment) or `halted`.
    """

    venue: str
    stale: bool
    book: str
    orders: str
    halts: list[Halt]


@dataclass(frozen=True, slots=True)
class BestPrices:
    """Best bid and offer with their sizes; an empty side is None."""

    bid: Decimal | None = None
    bid_quantity: Decimal | None = None
    ask: Decimal | None = None
    ask_quantity: Decimal | None = None
    update_id: int = 0


@dataclass(frozen=True, slots=True)
class Trade:
    """A public trade; `side` is the aggressor's."""

    trade_id: int
    price: Decimal
    quantity: Decimal
    side: str
    at: datetime


@dataclass(frozen=True, slots=True)
class BookSnapshot:
    """A book at one moment: `(price, quantity)`, best prices first."""

    symbol: str
    update_id: int
    bids: list[tuple[Decimal, Decimal]]
    asks: list[tuple[Decimal, Decimal]]
    stale: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """An order as it was when the server answered; `sequence` orders its versions."""

    id: UUID
    account_id: UUID
    venue: str
    symbol: str
    side: str
    type: str
    time_in_force: str
    post_only: bool
    state: str
    filled_quantity: Decimal
    filled_quote: Decimal
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime
    sequence: int
    client_order_id: str | None = None
    quantity: Decimal | None = None
    quote_amount: Decimal | None = None
    limit_price: Decimal | None = None
    reason: str | None = None
    average_price: Decimal | None = None
    fees: list[AssetAmount] = field(default_factory=list)
    held: AssetAmount | None = None
    venue_order_id: str | None = None

    @property
    def final(self) -> bool:
        """Whether nothing more can happen to it."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True)
class Fill:
    """One execution of one order; a fee below zero is a rebate."""

    trade_id: str
    order_id: UUID
    account_id: UUID
    symbol: str
    side: str
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    at: datetime
    sequence: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of an account's journal, from its private stream.

    Attributes:
        hash: First 16 hex digits of the entry's hash: with `seq`, where to resume.
        kind: What happened, such as `order.filled`.
        data: The effects, in JSON types.
        postings: `(holder, asset, amount)`.
    """

    seq: int
    hash: str
    kind: str
    at: datetime
    data: dict[str, Any]
    postings: list[tuple[str, str, Decimal]]


@dataclass(frozen=True, slots=True)
class AccountSnapshot:
    """An account's state after entry `seq`: what a private stream begins with.

    It also comes later, when the server could not continue where the stream was: then entries
    were missed, and this replaces everything known.
    """

    account_id: UUID
    seq: int
    hash: str
    balances: list[Balance]
    positions: list[Position]
    orders: list[Order]


@dataclass(frozen=True, slots=True)
class Gap:
    """Something was missed on a public stream.

    Attributes:
        channel, symbol: Where.
        why: `slow` (we read too slowly), `reconnected`, `queue_full` (the program did not take
            what was received), or the server's words for a gap upstream.
        missed: How many messages, where that is known.
    """

    channel: str
    symbol: str
    why: str
    missed: int | None = None


@dataclass(frozen=True, slots=True)
class Ticket:
    """What opens a stream once: see `TBotClient.ticket`.

    Attributes:
        ticket: To be shown on `/v1/stream` (in `auth`) or `/v1/events` (as query parameter).
        expires_at: When it ends if it was not shown.
    """

    ticket: str
    scope: str
    expires_at: datetime
