"""What T-Bot asks of an exchange, in T-Bot's words.

An adapter (`venues/<name>/client.py`) implements `Venue`; its `wire.py` holds the pure translation.
Two distinctions carry the whole design:

1. *What became of an order request* is told by the type of what comes back: a report (the venue
   spoke), `VenueRefused` (a definite no to this attempt), `VenueRateLimited` (a definite no, budget
   frozen), `VenueNotSent` (never left the process), `VenueAmbiguous` (anything else). An adapter
   that is not sure raises `VenueAmbiguous`.
2. *Absence* is only ever the `None` that `query` returns after the venue itself answered "no such
   order". A failed question raises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Protocol


class Side(StrEnum):
    """Which way an order trades."""

    BUY = "buy"
    SELL = "sell"


class OrderType(StrEnum):
    """How an order is priced."""

    MARKET = "market"
    LIMIT = "limit"


class TimeInForce(StrEnum):
    """How long an order rests."""

    GTC = "gtc"
    IOC = "ioc"
    FOK = "fok"


class VenueStatus(StrEnum):
    """What a venue says an order is. T-Bot's own states are in `tbot.orders.model`."""

    NEW = "new"
    PARTIALLY_FILLED = "partially_filled"
    FILLED = "filled"
    CANCELED = "canceled"
    REJECTED = "rejected"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Instrument:
    """A spot market and its trading rules.

    Attributes:
        venue: Our name of the venue, as `paper`.
        symbol: Our name of the market, `BASE-QUOTE`.
        venue_symbol: The venue's name of it, as `BTCUSDT`.
        base_scale: Decimals of the base asset at the venue; likewise `quote_scale`.
        tick: Prices are multiples of it. `price_min` and `price_max` bound them.
        step: Quantities of limit orders are multiples of it; `market_step` of market orders.
        notional_min: Smallest price times quantity; `notional_max` is None where unbounded.
        trading: Whether the venue accepts orders now.
    """

    venue: str
    symbol: str
    venue_symbol: str
    base: str
    quote: str
    base_scale: int
    quote_scale: int
    tick: Decimal
    price_min: Decimal
    price_max: Decimal
    step: Decimal
    quantity_min: Decimal
    quantity_max: Decimal
    market_step: Decimal
    market_quantity_max: Decimal
    notional_min: Decimal
    notional_max: Decimal | None
    trading: bool


@dataclass(frozen=True, slots=True)
class Placement:
    """An order as it goes to the venue.

    Attributes:
        client_id: `tbot.core.ids.venue_client_id` of the order; never sent twice.
        quantity: In the base asset; None for a market order by `quote_amount`.
        quote_amount: In the quote asset; only for market orders.
        price: Of a limit order.
        post_only: Refuse instead of taking liquidity (limit orders).
    """

    client_id: str
    instrument: Instrument
    side: Side
    type: OrderType
    time_in_force: TimeInForce
    quantity: Decimal | None
    quote_amount: Decimal | None
    price: Decimal | None
    post_only: bool = False


@dataclass(frozen=True, slots=True)
class VenueFill:
    """One execution of one order.

    Attributes:
        trade_id: Unique per instrument at the venue (two of our orders that meet share it).
        quote_quantity: What changed hands in the quote asset, as the venue says.
        fee: In `fee_asset`; negative for a rebate.
    """

    trade_id: str
    price: Decimal
    quantity: Decimal
    quote_quantity: Decimal
    fee: Decimal
    fee_asset: str
    maker: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class OrderReport:
    """What a venue said of one order; reports may repeat and arrive in any order.

    Attributes:
        client_id: The id the order was *placed* under (for Binance the original one of a cancel).
        executed_quantity: Cumulative; `fills` may list fewer, and then must be fetched.
        updated_at: The venue's own time of this state.
        reason: The venue's words for a rejection or expiry.
    """

    client_id: str
    venue_symbol: str
    venue_order_id: str
    status: VenueStatus
    executed_quantity: Decimal
    executed_quote: Decimal
    updated_at: datetime
    fills: tuple[VenueFill, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BalanceReport:
    """Balances of the venue account after a change, only of the assets that changed."""

    balances: Mapping[str, tuple[Decimal, Decimal]]
    """asset → (free, locked)"""
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StreamGap:
    """Events may have been missed; what follows is only complete after a sweep."""

    why: str


type UserEvent = OrderReport | BalanceReport | StreamGap


@dataclass(frozen=True, slots=True)
class Level:
    """One price of a book; a quantity of zero deletes it."""

    price: Decimal
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class DepthSnapshot:
    """A whole book as of `last_update_id`; best prices first."""

    venue_symbol: str
    last_update_id: int
    bids: Sequence[Level]
    asks: Sequence[Level]


@dataclass(frozen=True, slots=True)
class DepthDiff:
    """Changed levels, absolute sizes, for updates `first_update_id`..`last_update_id`."""

    venue_symbol: str
    first_update_id: int
    last_update_id: int
    bids: Sequence[Level]
    asks: Sequence[Level]
    at: datetime


@dataclass(frozen=True, slots=True)
class MarketTrade:
    """One public trade. `buyer_is_maker` means the seller was the aggressor."""

    venue_symbol: str
    trade_id: int
    price: Decimal
    quantity: Decimal
    buyer_is_maker: bool
    at: datetime


@dataclass(frozen=True, slots=True)
class Kline:
    """A candle as the venue itself has it.

    Attributes:
        start_ms: First millisecond of its interval; `end_ms` the last, as epoch milliseconds.
        volume: In the base asset; `quote_volume` in the quote asset.
        trades: How many there were.
    """

    start_ms: int
    end_ms: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: Decimal
    quote_volume: Decimal
    trades: int


@dataclass(frozen=True, slots=True)
class BestPrices:
    """Best bid and offer with their sizes."""

    venue_symbol: str
    update_id: int
    bid: Decimal
    bid_quantity: Decimal
    ask: Decimal
    ask_quantity: Decimal


type MarketEvent = DepthDiff | MarketTrade | BestPrices | StreamGap


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an adapter can do, and the figures the gateway's deadlines are made of.

    Attributes:
        request_expiry: The venue refuses requests older than a receive window we set. Without it
            no unresolved order is ever taken over automatically.
        engine_timeout_s: How long the venue itself may still act on a request it accepted.
        deposits: `deposit` works (paper only).
    """

    request_expiry: bool = True
    engine_timeout_s: float = 10.0
    quote_amount_orders: bool = True
    deposits: bool = False


class Venue(Protocol):
    """One account on one exchange. Every method may raise `VenueError` and its children."""

    name: str
    capabilities: Capabilities

    async def start(self) -> None:
        """Open connections and estimate the clock offset; returns when orders could be sent."""

    async def stop(self) -> None:
        """Close everything; safe to call twice."""

    async def session_id(self) -> str | None:
        """An id that changes when the venue lost its memory (paper), None for real venues."""

    async def instruments(self) -> list[Instrument]:
        """All markets that this account may trade."""

    async def place(self, placement: Placement, may_send: Callable[[], bool]) -> OrderReport:
        """Send an order once.

        `may_send` is called, the request stamped, signed and written in one stretch without
        `await`; when it answers False nothing is sent.

        Raises:
            VenueRefused, VenueRateLimited, VenueNotSent: It certainly does not live.
            VenueAmbiguous: Ask with `query`; never send it again.
        """

    async def cancel(
        self, client_id: str, instrument: Instrument, may_send: Callable[[], bool]
    ) -> OrderReport:
        """Cancel an open order.

        Raises:
            VenueRefused: With code `unknown_order` when the venue knows no *open* order of this
                id: it was filled, canceled or never arrived. Only `query` can tell.
        """

    async def query(self, client_id: str, instrument: Instrument) -> OrderReport | None:
        """The order as the venue has it; None when it answered that there is none."""

    async def search(
        self, client_id: str, instrument: Instrument, since: datetime
    ) -> OrderReport | None:
        """The order from any list of the venue; None when all of them agree that there is none."""

    async def open_orders(self) -> list[OrderReport]:
        """All open orders of the venue account, ours or not."""

    async def order_fills(self, instrument: Instrument, venue_order_id: str) -> list[VenueFill]:
        """Every execution of one order."""

    async def balances(self) -> Mapping[str, tuple[Decimal, Decimal]]:
        """Asset → (free, locked) of the venue account."""

    async def deposit(self, deposit_id: str, asset: str, amount: Decimal) -> None:
        """Give the paper account funds; the same id again changes nothing."""

    def user_events(self) -> AsyncIterator[UserEvent]:
        """Private events for ever, reconnecting by itself; a `StreamGap` opens every connection."""

    def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        """Public depth, trades and best prices for ever; a `StreamGap` opens every connection."""

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        """The book now, as deep as the venue gives it."""

    async def trades_from(self, instrument: Instrument, trade_id: int) -> list[MarketTrade]:
        """Public trades from an id on, ascending, as many as the venue gives at once.

        The first may have a higher id: the venue has forgotten those before it.
        """

    async def klines(
        self, instrument: Instrument, interval: str, from_ms: int, to_ms: int
    ) -> list[Kline]:
        """The venue's candles that begin within a span, ascending, as many as it gives at once.

        Args:
            interval: `1s`, `1m`, `5m`, `15m`, `1h`, `4h` or `1d`.
            from_ms: Epoch milliseconds; `to_ms` is within the span. The last one may be open.

        Raises:
            VenueRefused: It has no candles of this interval.
        """


@dataclass(slots=True)
class ClockOffset:
    """Estimate of venue time minus local wall time, from request round trips.

    The sample with the shortest round trip bounds the error best (NTP's clock filter); samples
    age out so that drift is followed.
    """

    offset_ms: float = 0.0
    error_ms: float = float("inf")
    _samples: list[tuple[float, float]] = field(default_factory=list)

    def add(self, sent_ms: float, venue_ms: float, received_ms: float) -> None:
        """Take one sample: local times before and after, and the venue's time in between."""
        round_trip = received_ms - sent_ms
        self._samples.append((round_trip / 2, venue_ms - (sent_ms + received_ms) / 2))
        del self._samples[:-8]
        self.error_ms, self.offset_ms = min(self._samples)
