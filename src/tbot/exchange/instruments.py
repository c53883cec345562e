"""Symbols and their trading rules ("filters"), and the checks on a new order. Pure.

The known symbols carry Binance's own ticks, steps and smallest notionals. A recording of any other
symbol gets rules inferred from the numbers in its snapshot.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from tbot.core.errors import ConfigurationError
from tbot.core.money import ONE, ZERO, is_multiple, scale_of
from tbot.exchange.events import Snapshot
from tbot.exchange.model import OrderType, Side

SCALE: Final = 8
"""Decimals of every asset and of every number on the wire."""

_QUOTES: Final = ("FDUSD", "USDT", "USDC", "TUSD", "BUSD", "BTC", "ETH", "BNB", "EUR", "TRY", "USD")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal in the venue's words: its numeric code and text."""

    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Instrument:
    """A spot market and its rules.

    Attributes:
        percent_up, percent_down: PERCENT_PRICE_BY_SIDE multipliers of the average price; a buy may
            be at most `percent_up` times it, a sell at least `percent_down` times; the other two
            bounds are generous, as on the real venue.
    """

    symbol: str
    base: str
    quote: str
    tick: Decimal
    step: Decimal
    notional_min: Decimal
    notional_max: Decimal = Decimal(9_000_000)
    price_max: Decimal = Decimal(1_000_000)
    quantity_max: Decimal = Decimal(9_000)
    market_quantity_max: Decimal = Decimal(1_000)
    orders_max: int = 10_000
    percent_up: Decimal = Decimal(5)
    percent_down: Decimal = Decimal("0.2")

    def __post_init__(self) -> None:
        """Price times quantity must stay exact in the assets' decimals."""
        if scale_of(self.tick) + scale_of(self.step) > SCALE:
            raise ConfigurationError(
                f"{self.symbol}: tick {self.tick} times step {self.step} needs more than "
                f"{SCALE} decimals"
            )


def _known(
    base: str, tick: str, step: str, notional: str, quantity_max: int, price_max: int
) -> Instrument:
    return Instrument(
        symbol=base + "USDT",
        base=base,
        quote="USDT",
        tick=Decimal(tick),
        step=Decimal(step),
        notional_min=Decimal(notional),
        price_max=Decimal(price_max),
        quantity_max=Decimal(quantity_max),
        market_quantity_max=Decimal(quantity_max // 10),
    )


KNOWN: Final = {
    instrument.symbol: instrument
    for instrument in (
        _known("BTC", "0.01", "0.00001", "5", 9_000, 1_000_000),
        _known("ETH", "0.01", "0.0001", "5", 9_000, 1_000_000),
        _known("SOL", "0.01", "0.001", "5", 90_000, 100_000),
        _known("BNB", "0.01", "0.001", "5", 900_000, 100_000),
        _known("XRP", "0.0001", "0.1", "5", 9_222_449, 10_000),
        _known("DOGE", "0.00001", "1", "1", 90_000_000, 1_000),
    )
}


def infer(snapshot: Snapshot) -> Instrument:
    """Rules for a recorded symbol that is not in the table, from the digits of its snapshot.

    Raises:
        ConfigurationError: The symbol ends in no known quote asset, or the snapshot is empty.
    """
    symbol = snapshot.symbol
    quote = next((q for q in _QUOTES if symbol.endswith(q) and len(symbol) > len(q)), None)
    levels = [*snapshot.bids, *snapshot.asks]
    if quote is None or not levels:
        raise ConfigurationError(f"cannot infer the trading rules of {symbol} from its recording")
    price_scale = max(scale_of(price) for price, _ in levels)
    quantity_scale = max(scale_of(quantity) for _, quantity in levels)
    return Instrument(
        symbol=symbol,
        base=symbol.removesuffix(quote),
        quote=quote,
        tick=ONE.scaleb(-price_scale),
        step=ONE.scaleb(-quantity_scale),
        notional_min=Decimal(5) if "USD" in quote else ZERO,
        quantity_max=Decimal(90_000_000),
        market_quantity_max=Decimal(9_000_000),
    )


def _filter(name: str) -> Refusal:
    return Refusal(-1013, f"Filter failure: {name}")


def check(
    instrument: Instrument,
    side: Side,
    kind: OrderType,
    price: Decimal,
    quantity: Decimal,
    quote_quantity: Decimal,
    reference: Decimal | None,
) -> Refusal | None:
    """Whether an order obeys the instrument's filters.

    Args:
        price: Zero for market orders.
        quantity: In the base asset; zero for a market order by quote amount.
        quote_quantity: That amount, else zero.
        reference: Average price of the last minutes, None before there was any trade.
    """
    if kind is not OrderType.MARKET:
        refusal = _check_price(instrument, side, price, reference)
        if refusal is not None:
            return refusal
    if kind is OrderType.MARKET and quote_quantity:
        return _check_notional(instrument, quote_quantity)
    if not instrument.step <= quantity <= instrument.quantity_max or not is_multiple(
        quantity, instrument.step
    ):
        return _filter("LOT_SIZE")
    if kind is OrderType.MARKET and quantity > instrument.market_quantity_max:
        return _filter("MARKET_LOT_SIZE")
    at = price if kind is not OrderType.MARKET else reference
    return None if at is None else _check_notional(instrument, at * quantity)


def _check_price(
    instrument: Instrument, side: Side, price: Decimal, reference: Decimal | None
) -> Refusal | None:
    if not instrument.tick <= price <= instrument.price_max or not is_multiple(
        price, instrument.tick
    ):
        return _filter("PRICE_FILTER")
    if reference is not None and not (
        reference * instrument.percent_down <= price <= reference * instrument.percent_up
    ):
        return _filter("PERCENT_PRICE_BY_SIDE")
    return None


def _check_notional(instrument: Instrument, notional: Decimal) -> Refusal | None:
    if not instrument.notional_min <= notional <= instrument.notional_max:
        return _filter("NOTIONAL")
    return None
