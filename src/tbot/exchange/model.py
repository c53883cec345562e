"""Orders, executions and the effects that commands have. Pure data.

An *effect* is one change of the exchange's books that needs no further decision: replaying effects
rebuilds the state exactly. A *record* is the effects of one command or one market event, written to
the log before anyone is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum

import msgspec

from tbot.core.money import ZERO


class Side(StrEnum):
    """Which way an order trades."""

    BUY = "BUY"
    SELL = "SELL"

    @property
    def opposite(self) -> Side:
        """The side it trades against."""
        return Side.SELL if self is Side.BUY else Side.BUY


class OrderType(StrEnum):
    """How an order is priced. `LIMIT_MAKER` is refused rather than taking liquidity."""

    LIMIT = "LIMIT"
    LIMIT_MAKER = "LIMIT_MAKER"
    MARKET = "MARKET"


class TimeInForce(StrEnum):
    """How long an order rests."""

    GTC = "GTC"
    IOC = "IOC"
    FOK = "FOK"


class Status(StrEnum):
    """The state of an order."""

    NEW = "NEW"
    PARTIALLY_FILLED = "PARTIALLY_FILLED"
    FILLED = "FILLED"
    CANCELED = "CANCELED"
    EXPIRED = "EXPIRED"


OPEN_STATUSES = frozenset((Status.NEW, Status.PARTIALLY_FILLED))


class Order(msgspec.Struct):
    """An order and how far it has come.

    Attributes:
        base, quote: The assets of its symbol, kept here so that a log replays without a market.
        price: Zero for market orders.
        quantity: Zero for a market order by quote amount until it has ended.
        quote_quantity: The quote amount of such an order, else zero.
        locked: What the account still holds back for it, in the asset it gives.
        ahead: Market quantity in front of it at its price when it came to rest.
    """

    id: int
    account: str
    symbol: str
    base: str
    quote: str
    client_id: str
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    time_ms: int
    updated_ms: int
    locked: Decimal = ZERO
    executed: Decimal = ZERO
    executed_quote: Decimal = ZERO
    status: Status = Status.NEW
    ahead: Decimal = ZERO

    @property
    def remaining(self) -> Decimal:
        """What is still to be executed, in the base asset."""
        return self.quantity - self.executed

    @property
    def is_open(self) -> bool:
        """Whether it may still execute."""
        return self.status in OPEN_STATUSES

    @property
    def gives(self) -> str:
        """The asset that it pays with."""
        return self.quote if self.side is Side.BUY else self.base

    @property
    def gets(self) -> str:
        """The asset that it receives, and pays its fee in."""
        return self.base if self.side is Side.BUY else self.quote


class Execution(msgspec.Struct, frozen=True, gc=False):
    """One fill of one order, as `myTrades` lists it."""

    id: int
    order_id: int
    symbol: str
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    fee: Decimal
    fee_asset: str
    time_ms: int
    is_buyer: bool
    is_maker: bool


class Opened(msgspec.Struct, tag="open", frozen=True):
    """An order was accepted and its funds locked. `order` is as it was at that moment."""

    order: Order


class Filled(msgspec.Struct, tag="fill", frozen=True):
    """An open order was executed, in part or whole. Two users who meet share the trade id.

    Attributes:
        printed: The trade was not the source's: it was printed on the public tape, once.
    """

    order_id: int
    trade_id: int
    price: Decimal
    quantity: Decimal
    fee: Decimal
    maker: bool
    printed: bool = False


class Closed(msgspec.Struct, tag="close", frozen=True):
    """An open order ended otherwise. `client_id` is the id of the cancel request, if any."""

    order_id: int
    status: Status
    client_id: str = ""


class Deposited(msgspec.Struct, tag="deposit", frozen=True):
    """Funds came in; the same id never counts twice."""

    deposit_id: str
    account: str
    asset: str
    amount: Decimal


class Marked(msgspec.Struct, tag="mark", frozen=True):
    """How far the market source had come.

    Attributes:
        source: Which source it was; a mark of another source is not continued.
        position: `Timed.index` of the next event.
        resume: What a synthetic market needs to go on, by symbol.
    """

    source: str
    position: int
    resume: dict[str, list[int]] = {}


type Effect = Opened | Filled | Closed | Deposited | Marked


class Record(msgspec.Struct, omit_defaults=True):
    """One line of the log.

    Attributes:
        number: Contiguous from 1.
        at_ms: Wall time.
        command: What was asked, in the words of the request; empty for what the market caused.
        met: The market it met: symbol, update id, best bid, best ask, source position.
    """

    number: int
    at_ms: int
    effects: Sequence[Effect]
    command: dict[str, str] = {}
    met: dict[str, str] = {}
