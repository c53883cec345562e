"""Binance Spot's public messages, as pure translation.

Entry points: `stream_names`, `market_event`, `depth_snapshot`, `past_trade`, `kline`.

These are the hottest messages of the program, so prices are read with `Decimal` directly instead
of `money.parse`: the venue writes them, no person does. Text that is no number raises here, and a
NaN raises where it is first compared (`tbot.core.money` traps it).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from tbot.core.clock import from_ms
from tbot.venues.base import (
    BestPrices,
    DepthDiff,
    DepthSnapshot,
    Instrument,
    Kline,
    Level,
    MarketTrade,
)

type Json = Mapping[str, Any]

STREAMS_PER_INSTRUMENT: Final = 3


def stream_names(instruments: Iterable[Instrument]) -> list[str]:
    """The streams that carry depth, trades and best prices of these markets."""
    return [
        f"{instrument.venue_symbol.lower()}@{kind}"
        for instrument in instruments
        for kind in ("depth@100ms", "trade", "bookTicker")
    ]


def levels(pairs: Sequence[Sequence[str]]) -> tuple[Level, ...]:
    """Book levels of `[["price", "size"], …]`."""
    return tuple([Level(Decimal(price), Decimal(size)) for price, size, *_ in pairs])


def market_event(frame: Json) -> DepthDiff | MarketTrade | BestPrices | None:
    """The event of a combined-stream frame; None for streams that nobody asked for.

    Raises:
        KeyError, ValueError, TypeError, decimal.InvalidOperation: The frame is not what its
            stream promises. Treat the connection as broken: events may be missing.
    """
    data = frame["data"]
    kind = frame["stream"].partition("@")[2]
    if kind == "bookTicker":
        return BestPrices(
            data["s"],
            data["u"],
            Decimal(data["b"]),
            Decimal(data["B"]),
            Decimal(data["a"]),
            Decimal(data["A"]),
        )
    if kind == "trade":
        return MarketTrade(
            data["s"],
            data["t"],
            Decimal(data["p"]),
            Decimal(data["q"]),
            data["m"],
            from_ms(data["T"]),
        )
    if kind.startswith("depth"):
        return DepthDiff(
            data["s"],
            data["U"],
            data["u"],
            levels(data["b"]),
            levels(data["a"]),
            from_ms(data["E"]),
        )
    return None


def depth_snapshot(venue_symbol: str, answer: Json) -> DepthSnapshot:
    """The book of a `depth` answer."""
    return DepthSnapshot(
        venue_symbol, answer["lastUpdateId"], levels(answer["bids"]), levels(answer["asks"])
    )


def past_trade(venue_symbol: str, item: Json) -> MarketTrade:
    """A trade of a `historicalTrades` answer."""
    return MarketTrade(
        venue_symbol,
        item["id"],
        Decimal(item["price"]),
        Decimal(item["qty"]),
        item["isBuyerMaker"],
        from_ms(item["time"]),
    )


def kline(item: Sequence[Any]) -> Kline:
    """A candle of a `klines` answer."""
    start_ms, open_, high, low, close, volume, end_ms, quote_volume, trades = item[:9]
    return Kline(
        start_ms,
        end_ms,
        Decimal(open_),
        Decimal(high),
        Decimal(low),
        Decimal(close),
        Decimal(volume),
        Decimal(quote_volume),
        trades,
    )
