"""The public calls: time, rules, books, trades, candles, tickers. They change nothing."""

from __future__ import annotations

from typing import Any

from tbot.core.errors import ExchangeRefusal
from tbot.core.money import ZERO
from tbot.exchange import wire
from tbot.exchange.events import Trade
from tbot.exchange.model import Side
from tbot.exchange.params import (
    Caller,
    Params,
    integer,
    limit_of,
    mandatory,
    one_or_all,
    symbol_of,
    symbols_of,
)
from tbot.exchange.tickers import INTERVALS


def ping(_caller: Caller, _params: Params) -> Any:
    """Nothing."""
    return {}


def server_time(caller: Caller, _params: Params) -> Any:
    """Wall time of the exchange."""
    return {"serverTime": caller.now_ms}


def exchange_info(caller: Caller, params: Params) -> Any:
    """Limits, symbols and their filters."""
    symbols, _ = symbols_of(caller, params)
    markets = caller.floor.engine.markets
    return {
        "timezone": "UTC",
        "serverTime": caller.now_ms,
        "rateLimits": caller.floor.limits.published(),
        "exchangeFilters": [],
        "symbols": [wire.symbol_info(markets[symbol].instrument) for symbol in symbols],
    }


def depth(caller: Caller, params: Params) -> Any:
    """The published book."""
    symbol = symbol_of(caller, params)
    limit = limit_of(params, 100, 5000)
    tape = caller.floor.tapes[symbol]
    return wire.depth(tape.last_id, tape.levels(Side.BUY, limit), tape.levels(Side.SELL, limit))


def _trades(caller: Caller, params: Params) -> list[Trade]:
    """Kept public trades of a symbol: the newest, or from an id or time on."""
    kept = caller.floor.trades[symbol_of(caller, params)]
    limit = limit_of(params, 500, 1000)
    from_id, start_ms = integer(params, "fromId"), integer(params, "startTime")
    end_ms = integer(params, "endTime")
    found = [
        trade
        for trade in kept
        if trade.id >= (from_id or 0)
        and trade.time_ms >= (start_ms or 0)
        and (end_ms is None or trade.time_ms <= end_ms)
    ]
    from_start = from_id is not None or start_ms is not None
    return found[:limit] if from_start else found[-limit:]


def trades(caller: Caller, params: Params) -> Any:
    """Public trades, oldest first."""
    return [
        {
            "id": trade.id,
            "price": wire.decimal_text(trade.price),
            "qty": wire.decimal_text(trade.quantity),
            "quoteQty": wire.decimal_text(trade.price * trade.quantity),
            "time": trade.time_ms,
            "isBuyerMaker": trade.buyer_is_maker,
            "isBestMatch": True,
        }
        for trade in _trades(caller, params)
    ]


def aggregate_trades(caller: Caller, params: Params) -> Any:
    """The same, each trade as an aggregate of one."""
    return [
        {
            "a": trade.id,
            "p": wire.decimal_text(trade.price),
            "q": wire.decimal_text(trade.quantity),
            "f": trade.id,
            "l": trade.id,
            "T": trade.time_ms,
            "m": trade.buyer_is_maker,
            "M": True,
        }
        for trade in _trades(caller, params)
    ]


def klines(caller: Caller, params: Params) -> Any:
    """Candles of up to a day back."""
    symbol = symbol_of(caller, params)
    interval = mandatory(params, "interval")
    if interval not in INTERVALS:
        raise ExchangeRefusal(-1120, "Invalid interval.")
    return caller.floor.tickers[symbol].klines(
        interval,
        limit_of(params, 500, 1000),
        integer(params, "startTime"),
        integer(params, "endTime"),
    )


def average_price(caller: Caller, params: Params) -> Any:
    """The five-minute average that PERCENT_PRICE_BY_SIDE uses."""
    market = caller.floor.engine.markets[symbol_of(caller, params)]
    return {
        "mins": 5,
        "price": wire.decimal_text(market.average_price or ZERO),
        "closeTime": caller.floor.tapes[market.instrument.symbol].trade_ms,
    }


def _best(caller: Caller, symbol: str) -> tuple[str, str, str, str]:
    best = caller.floor.tapes[symbol].best()
    bid, bid_quantity, ask, ask_quantity = best if best is not None else (ZERO,) * 4
    return (
        wire.decimal_text(bid),
        wire.decimal_text(bid_quantity),
        wire.decimal_text(ask),
        wire.decimal_text(ask_quantity),
    )


def ticker_24hr(caller: Caller, params: Params) -> Any:
    """Rolling figures of 24 hours."""

    def make(symbol: str) -> dict[str, Any]:
        names = ("bidPrice", "bidQty", "askPrice", "askQty")
        figures = caller.floor.tickers[symbol].figures()
        return figures | dict(zip(names, _best(caller, symbol), strict=True))

    return one_or_all(caller, params, make)


def ticker_price(caller: Caller, params: Params) -> Any:
    """Last price, or the best bid before any trade."""

    def make(symbol: str) -> dict[str, Any]:
        market = caller.floor.engine.markets[symbol]
        price = market.last_price or market.average_price or ZERO
        return {"symbol": symbol, "price": wire.decimal_text(price)}

    return one_or_all(caller, params, make)


def ticker_book(caller: Caller, params: Params) -> Any:
    """Best bid and offer."""

    def make(symbol: str) -> dict[str, Any]:
        bid, bid_quantity, ask, ask_quantity = _best(caller, symbol)
        return {
            "symbol": symbol,
            "bidPrice": bid,
            "bidQty": bid_quantity,
            "askPrice": ask,
            "askQty": ask_quantity,
        }

    return one_or_all(caller, params, make)
