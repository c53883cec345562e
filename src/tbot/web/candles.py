"""Candles: stored ones in pages or whole as files, with the one that is open; a market's status."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core.clock import from_ms, stamp, to_ms, utc_now
from tbot.core.errors import MarketDataUnavailable, NotFound
from tbot.core.money import MoneyText
from tbot.market import candle_store as store
from tbot.market.candle_store import Stored
from tbot.market.candles import Candle, Interval, better, candle_json
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    MarketReader,
    PageCursor,
    PageLimit,
    Parts,
    page_limit,
)
from tbot.web.deps import Deps
from tbot.web.exports import (
    EXPORTED,
    Export,
    Format,
    csv_lines,
    exports_of,
    format_of,
    ndjson,
    refuse_paging,
)
from tbot.web.fields import Answer, Moment, Symbol, Timestamp
from tbot.web.market import VenueQuery
from tbot.web.openapi import problems
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.problems import invalid
from tbot.web.routes import router

routes = router("market")

EXPORT_PAGE: Final = 1000
CLOSED_MAX_AGE_S: Final = 86_400
OPEN_MAX_AGE_S: Final = 1

_COLUMNS: Final = (
    "start", "open", "high", "low", "close", "volume", "quote_volume", "trades",
    "first_trade_id", "last_trade_id", "complete", "closed",
)  # fmt: skip
_CACHED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "headers": {
            name: {"schema": {"type": "string"}}
            for name in ("ETag", "Last-Modified", "Cache-Control")
        },
        **EXPORTED[200],
    },
    304: {"description": "What the caller has is current."},
}


class CandleOut(Answer):
    """The trades of one interval in figures."""

    start: Timestamp
    open: MoneyText
    high: MoneyText
    low: MoneyText
    close: MoneyText
    volume: Annotated[MoneyText, Field(description="In the base asset.")]
    quote_volume: MoneyText
    trades: int
    first_trade_id: Annotated[
        int | None, Field(description="Null where only the venue's own candle is known.")
    ]
    last_trade_id: int | None
    complete: Annotated[bool, Field(description="No trade of it is missing.")]
    closed: Annotated[bool, Field(description="Its interval is over.")]


class CandlePage(Answer):
    """A page of candles, newest first. Intervals without a trade have none."""

    symbol: Symbol
    interval: Interval
    stale: Annotated[
        bool, Field(description="The page reaches up to now, and nothing was heard lately.")
    ]
    items: list[CandleOut]
    next: str | None


class HaltOut(Answer):
    """A switch that keeps new orders out."""

    switch: Annotated[str, Field(examples=["instrument:paper:BTC-USDT"])]
    reason: str
    since: Timestamp


class StatusOut(Answer):
    """How a market is."""

    symbol: Symbol
    venue: str
    stale: Annotated[bool, Field(description="Nothing was heard of it lately.")]
    book: Literal["live", "rebuilding"]
    orders: Annotated[
        Literal["sent", "waiting", "halted"],
        Field(description="`waiting`: accepted, but no process sends them at the moment."),
    ]
    halts: list[HaltOut]


IntervalQuery = Annotated[Interval, Query(description="How long each candle is.")]
From = Annotated[
    Moment | None, Query(alias="from", description="Only candles that begin at or after it.")
]
To = Annotated[Moment | None, Query(description="Only candles that begin before it.")]


@routes.get(
    "/instruments/{symbol}/candles",
    operation_id="list_candles",
    response_model=CandlePage,
    responses={**_CACHED, **problems("invalid_cursor", "not_acceptable", "overloaded")},
)
async def list_candles(
    request: HttpRequest,
    parts: Parts,
    principal: MarketReader,
    symbol: Symbol,
    interval: IntervalQuery = Interval.M1,
    begin: From = None,
    to: To = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
    venue: VenueQuery = "paper",
) -> Response:
    """List candles, newest first, the open one included.

    A page of closed and complete candles may be kept for a day, others for a second.
    As NDJSON or CSV all of them come at once, oldest first, without the open one.
    """
    if parts.orders.instruments.get(venue, symbol) is None:
        raise NotFound("no such instrument")
    if begin is not None and to is not None and begin > to:
        raise invalid("from is after to", parameter="from")
    form = format_of(request)
    if form is not Format.JSON:
        refuse_paging(limit, cursor)
        chunks = _exported(parts, venue, symbol, interval, begin, to, form)
        return Export(exports_of(request), form, f"candles-{symbol}-{interval.value}", chunks)
    size = page_limit(limit, parts)
    filters = _filters(interval, begin, to, venue)
    secret, reader, name = parts.auth.keys.cursor_secret, principal.user_id, f"candles:{symbol}"
    before = to
    if cursor is not None:
        before = from_ms(int(decode_cursor(secret, reader, name, filters, cursor)[0]))
    async with parts.pool.acquire() as connection:
        found = await store.page(
            connection, venue, symbol, interval, begin, before, size + 1, newest_first=True
        )
        oldest = found[size - 1].candle.start if len(found) > size else begin
        over = before is not None and await store.is_settled(
            connection, venue, symbol, interval, oldest, before
        )
    found, open_ = _with_live(parts, venue, symbol, interval, begin, before, found, size)
    shown = found[:size]
    headers: dict[str, str] = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, name, filters, [shown[-1].candle.start_ms])
        headers["Link"] = next_link(request, filters, size, following)
    feed, reaches_now = parts.feeds.get(venue), before is None or open_ is not None
    page = {
        "symbol": symbol,
        "interval": interval.value,
        "stale": reaches_now and (feed is None or feed.stale(symbol)),
        "items": [candle_json(one.candle, one.candle is not open_) for one in shown],
        "next": following,
    }
    settled = over and bool(shown) and all(one.candle.complete for one in shown)
    return _cacheable(page, headers, shown, settled)


def _filters(
    interval: Interval, begin: datetime | None, to: datetime | None, venue: str
) -> dict[str, str]:
    given = {"from": begin, "to": to}
    moments = {name: stamp(moment) for name, moment in given.items() if moment is not None}
    return {"interval": interval.value, "venue": venue, **moments}


def _with_live(
    parts: Deps,
    venue: str,
    symbol: str,
    interval: Interval,
    begin: datetime | None,
    before: datetime | None,
    stored: Sequence[Stored],
    size: int,
) -> tuple[list[Stored], Candle | None]:
    """Stored candles with those that are only in memory yet: closed a moment ago, or open.

    Args:
        stored: The newest of them, one more than `size` if there are more.
    """
    feed = parts.candles.get(venue)
    if feed is None:
        return list(stored), None
    found = {one.candle.start_ms: one for one in stored}
    # What is on a later page is not on this one.
    least_ms = stored[-1].candle.start_ms if len(stored) > size else 0
    if begin is not None:
        least_ms = max(least_ms, to_ms(begin))
    open_ = feed.open(symbol, interval)
    live = feed.recent(symbol, interval, parts.settings.candles.recent)
    for candle in [*live, *([open_] if open_ is not None else [])]:
        if candle.start_ms < least_ms or (before is not None and candle.start >= before):
            continue
        known = found.get(candle.start_ms)
        if known is None or better(known.candle, candle) != known.candle:
            at = min(from_ms(feed.clock_ms(symbol)), from_ms(candle.end_ms))
            found[candle.start_ms] = Stored(candle, at)
    shown = [found[start_ms] for start_ms in sorted(found, reverse=True)]
    return shown, open_ if any(one.candle is open_ for one in shown) else None


def _cacheable(
    page: dict[str, Any],
    headers: dict[str, str],
    shown: Sequence[Stored],
    settled: bool,
) -> Response:
    """The page, and how long it may be kept."""
    if not settled:
        headers["Cache-Control"] = f"private, max-age={OPEN_MAX_AGE_S}"
        return json_answer(page, headers=headers)
    headers["Cache-Control"] = f"private, max-age={CLOSED_MAX_AGE_S}, immutable"
    # Whole seconds, rounded up: a change within the second must not be taken for none.
    newest = max(one.at for one in shown) + timedelta(microseconds=999_999)
    modified = newest.astimezone(UTC).replace(microsecond=0)
    if modified <= utc_now():
        headers["Last-Modified"] = format_datetime(modified, usegmt=True)
    return json_answer(page, headers=headers)


async def _exported(
    parts: Deps,
    venue: str,
    symbol: str,
    interval: Interval,
    begin: datetime | None,
    to: datetime | None,
    form: Format,
) -> AsyncGenerator[bytes]:
    """Stored candles, oldest first."""
    if form is Format.CSV:
        yield csv_lines([_COLUMNS])
    while True:
        async with parts.pool.acquire() as connection:
            found = await store.page(
                connection, venue, symbol, interval, begin, to, EXPORT_PAGE, newest_first=False
            )
        rows = [candle_json(one.candle, closed=True) for one in found]
        if rows and form is Format.CSV:
            yield csv_lines([_cell(row[column]) for column in _COLUMNS] for row in rows)
        elif rows:
            yield ndjson(rows)
        if len(found) < EXPORT_PAGE:
            return
        begin = from_ms(found[-1].candle.end_ms)


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else value


@routes.get(
    "/instruments/{symbol}/status",
    operation_id="get_market_status",
    response_model=StatusOut,
    responses=problems("unavailable"),
)
async def get_market_status(
    parts: Parts, _principal: MarketReader, symbol: Symbol, venue: VenueQuery = "paper"
) -> Response:
    """Get how a market is: heard or stale, its book, and what halts its orders."""
    if parts.orders.instruments.get(venue, symbol) is None:
        raise NotFound("no such instrument")
    board = parts.statuses.get(venue)
    if board is None:
        raise MarketDataUnavailable("this process has no data of that market yet")
    return json_answer({"symbol": symbol, **board.status_json(symbol)})
