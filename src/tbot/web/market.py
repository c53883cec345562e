"""Instruments and market data, from memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import Field, StringConstraints
from starlette.responses import Response

from tbot.core import clock, money
from tbot.core.errors import MarketDataUnavailable, NotFound
from tbot.core.money import MoneyText
from tbot.market.feed import MarketFeed
from tbot.venues.base import BestPrices, Instrument, Level, MarketTrade
from tbot.web.answers import json_answer, not_modified
from tbot.web.dependencies import IfNoneMatch, MarketReader, Parts, matches_tag
from tbot.web.deps import Deps
from tbot.web.fields import Answer, Symbol, Timestamp
from tbot.web.openapi import problems
from tbot.web.routes import router

routes = router("market")

DEPTH_MAX: Final = 1000
TRADES_MAX: Final = 1000
_TAG_HEADER: Final = {"headers": {"ETag": {"schema": {"type": "string"}}}}
_NOT_MODIFIED: Final = {"description": "The entity tag given is current."}

VenueName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
VenueQuery = Annotated[VenueName, Query(description="The venue whose market is meant.")]


class InstrumentOut(Answer):
    """A spot market and its trading rules."""

    venue: Annotated[str, Field(examples=["paper"])]
    symbol: Symbol
    base: Annotated[str, Field(examples=["BTC"])]
    quote: Annotated[str, Field(examples=["USDT"])]
    base_scale: Annotated[int, Field(description="Decimals of the base asset.")]
    quote_scale: Annotated[int, Field(description="Decimals of the quote asset.")]
    tick: Annotated[MoneyText, Field(description="Prices are multiples of it.")]
    price_min: MoneyText
    price_max: MoneyText
    step: Annotated[MoneyText, Field(description="Quantities are multiples of it.")]
    quantity_min: MoneyText
    quantity_max: MoneyText
    market_step: Annotated[MoneyText, Field(description="The step of market orders.")]
    market_quantity_max: MoneyText
    notional_min: MoneyText
    notional_max: MoneyText | None
    trading: Annotated[bool, Field(description="Whether the venue accepts orders now.")]


class Instruments(Answer):
    """Every instrument."""

    items: list[InstrumentOut]


class TickerOut(Answer):
    """A market in figures; what has not been heard yet is null."""

    symbol: Symbol
    last: MoneyText | None
    bid: MoneyText | None
    bid_quantity: MoneyText | None
    ask: MoneyText | None
    ask_quantity: MoneyText | None
    open: Annotated[MoneyText | None, Field(description="24 hours ago, or when we began.")]
    high: MoneyText | None
    low: MoneyText | None
    volume: Annotated[MoneyText | None, Field(description="Of 24 hours, in the base asset.")]
    quote_volume: MoneyText | None
    trades: int
    since: Annotated[Timestamp | None, Field(description="Where the figures begin.")]
    at: Annotated[Timestamp | None, Field(description="Of the last trade.")]
    stale: Annotated[bool, Field(description="Nothing has been heard of this market lately.")]


LevelOut = Annotated[
    list[MoneyText], Field(min_length=2, max_length=2, examples=[["100.5", "0.25"]])
]


class BookOut(Answer):
    """A book: `[price, quantity]`, best prices first."""

    symbol: Symbol
    update_id: Annotated[int, Field(description="The venue's number of this state.")]
    bids: list[LevelOut]
    asks: list[LevelOut]
    stale: bool


class TradeOut(Answer):
    """One public trade."""

    trade_id: int
    price: MoneyText
    quantity: MoneyText
    side: Annotated[Literal["buy", "sell"], Field(description="Of the aggressor.")]
    at: Timestamp


class Trades(Answer):
    """Recent trades, newest first."""

    symbol: Symbol
    items: list[TradeOut]


def instrument_json(instrument: Instrument) -> dict[str, Any]:
    """An instrument as `InstrumentOut` describes it, in JSON types."""
    return {
        name: money.text(value) if isinstance(value, Decimal) else value
        for name in InstrumentOut.model_fields
        for value in (getattr(instrument, name),)
    }


def _tagged(content: Any, if_none_match: str | None) -> Response:
    answer = json_answer(content)
    tag = f'"{hashlib.sha256(bytes(answer.body)).hexdigest()[:24]}"'
    if matches_tag(if_none_match, tag):
        return not_modified(tag)
    answer.headers["ETag"] = tag
    return answer


def _feed(deps: Deps, venue: str, symbol: str) -> MarketFeed:
    if deps.orders.instruments.get(venue, symbol) is None:
        raise NotFound("no such instrument")
    feed = deps.feeds.get(venue)
    if feed is None or not feed.knows(symbol):
        raise MarketDataUnavailable("this process has no data of that market yet")
    return feed


@routes.get(
    "/instruments",
    operation_id="list_instruments",
    response_model=Instruments,
    responses={200: _TAG_HEADER, 304: _NOT_MODIFIED},
)
async def list_instruments(
    parts: Parts,
    _principal: MarketReader,
    venue: VenueQuery = "paper",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """List a venue's instruments with their trading rules."""
    found = parts.orders.instruments.all(venue)
    return _tagged({"items": [instrument_json(one) for one in found]}, if_none_match)


@routes.get(
    "/instruments/{symbol}",
    operation_id="get_instrument",
    response_model=InstrumentOut,
    responses={200: _TAG_HEADER, 304: _NOT_MODIFIED},
)
async def get_instrument(
    parts: Parts,
    _principal: MarketReader,
    symbol: Symbol,
    venue: VenueQuery = "paper",
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Get one instrument."""
    instrument = parts.orders.instruments.get(venue, symbol)
    if instrument is None:
        raise NotFound("no such instrument")
    return _tagged(instrument_json(instrument), if_none_match)


@routes.get(
    "/instruments/{symbol}/ticker",
    operation_id="get_ticker",
    response_model=TickerOut,
    responses=problems("unavailable"),
)
async def get_ticker(
    parts: Parts, _principal: MarketReader, symbol: Symbol, venue: VenueQuery = "paper"
) -> Response:
    """Get last price, best prices and 24-hour figures.

    A process that hears nothing of the market itself tells what another one heard lately.
    """
    feed = parts.feeds.get(venue)
    if parts.tickers is not None and (feed is None or not feed.knows(symbol) or feed.stale(symbol)):
        heard = await parts.tickers.get(venue, symbol)
        if heard is not None:
            return json_answer(heard)
    return json_answer(ticker_json(_feed(parts, venue, symbol), symbol))


def ticker_json(feed: MarketFeed, symbol: str) -> dict[str, Any]:
    """A ticker as `TickerOut` describes it, in JSON types."""
    ticker, best = feed.ticker(symbol), feed.best(symbol)
    content: dict[str, Any] = dict.fromkeys(TickerOut.model_fields)
    content |= {"symbol": symbol, "trades": 0, "stale": feed.stale(symbol), **_best_json(best)}
    if ticker is not None:
        for name in ("last", "open", "high", "low", "volume", "quote_volume"):
            content[name] = money.text(getattr(ticker, name))
        content["trades"] = ticker.trades
        content["since"] = clock.stamp(ticker.since)
        content["at"] = clock.stamp(ticker.at)
    return content


def _best_json(best: BestPrices | None) -> dict[str, str]:
    # The venue writes 0 for an empty side; here that is null.
    if best is None:
        return {}
    prices = {}
    if best.bid:
        prices["bid"], prices["bid_quantity"] = money.text(best.bid), money.text(best.bid_quantity)
    if best.ask:
        prices["ask"], prices["ask_quantity"] = money.text(best.ask), money.text(best.ask_quantity)
    return prices


@routes.get(
    "/instruments/{symbol}/book",
    operation_id="get_book",
    response_model=BookOut,
    responses=problems("unavailable"),
)
async def get_book(
    parts: Parts,
    _principal: MarketReader,
    symbol: Symbol,
    depth: Annotated[int, Query(ge=1, le=DEPTH_MAX, description="Levels of each side.")] = 50,
    venue: VenueQuery = "paper",
) -> Response:
    """Get the book as it is now."""
    feed = _feed(parts, venue, symbol)
    book = feed.book(symbol)
    if book is None:
        raise MarketDataUnavailable("the book is being rebuilt")
    bids, asks = book.levels(depth)
    return json_answer(
        {
            "symbol": symbol,
            "update_id": book.update_id,
            "bids": _levels_json(bids),
            "asks": _levels_json(asks),
            "stale": feed.stale(symbol),
        }
    )


def _levels_json(levels: Sequence[Level]) -> list[tuple[str, str]]:
    return [(money.text(level.price), money.text(level.quantity)) for level in levels]


@routes.get(
    "/instruments/{symbol}/trades",
    operation_id="list_trades",
    response_model=Trades,
    responses=problems("unavailable"),
)
async def list_trades(
    parts: Parts,
    _principal: MarketReader,
    symbol: Symbol,
    limit: Annotated[int, Query(ge=1, le=TRADES_MAX)] = 100,
    venue: VenueQuery = "paper",
) -> Response:
    """List recent trades, newest first."""
    trades = _feed(parts, venue, symbol).trades(symbol, limit)
    return json_answer({"symbol": symbol, "items": [_trade_json(trade) for trade in trades]})


def _trade_json(trade: MarketTrade) -> dict[str, Any]:
    return {
        "trade_id": trade.trade_id,
        "price": money.text(trade.price),
        "quantity": money.text(trade.quantity),
        "side": "sell" if trade.buyer_is_maker else "buy",
        "at": clock.stamp(trade.at),
    }
