"""Candles in Postgres. Functions take a connection first; every write may be repeated.

Two writers cannot harm each other: a complete candle replaces an incomplete one, one of more trades
replaces one of fewer, and nothing else changes a row (`tbot.market.candles.better`, in SQL).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg

from tbot.core.clock import from_ms, to_ms
from tbot.market.candles import Candle, Interval, better

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

BY_SECONDS: Final = {interval.ms // 1000: interval for interval in Interval}

_COLUMNS: Final = (
    "interval_s, start_at, open, high, low, close, volume, quote_volume, trades, first_id, last_id,"
    " complete"
)

_UPSERT: Final = f"""
INSERT INTO candles (venue, symbol, {_COLUMNS}, stored_at)
SELECT $1, u.*, now() FROM unnest(
    $2::text[], $3::integer[], $4::timestamptz[], $5::numeric[], $6::numeric[], $7::numeric[],
    $8::numeric[], $9::numeric[], $10::numeric[], $11::bigint[], $12::bigint[], $13::bigint[],
    $14::boolean[]) AS u
ON CONFLICT (venue, symbol, interval_s, start_at) DO UPDATE SET
    open = excluded.open, high = excluded.high, low = excluded.low, close = excluded.close,
    volume = excluded.volume, quote_volume = excluded.quote_volume, trades = excluded.trades,
    first_id = CASE WHEN excluded.first_id IS NULL AND excluded.trades = candles.trades
        THEN candles.first_id ELSE excluded.first_id END,
    last_id = CASE WHEN excluded.first_id IS NULL AND excluded.trades = candles.trades
        THEN candles.last_id ELSE excluded.last_id END,
    complete = excluded.complete, stored_at = excluded.stored_at
WHERE (excluded.complete, excluded.trades) > (candles.complete, candles.trades)
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A candle, and when the row was last changed."""

    candle: Candle
    at: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """Candles to be asked for: those of an interval that begin in a stretch of time."""

    symbol: str
    interval: Interval
    from_ms: int
    to_ms: int
    id: int = 0


async def save(connection: Connection, venue: str, candles: Iterable[tuple[str, Candle]]) -> int:
    """Store closed candles with their symbols, in one statement.

    Returns:
        How many of them said something new.
    """
    found: dict[tuple[str, Interval, int], Candle] = {}
    for symbol, one in candles:
        key = (symbol, one.interval, one.start_ms)
        known = found.get(key)
        found[key] = one if known is None else better(known, one)
    # In one order, so that two writers never wait for each other.
    rows = [
        (
            key[0], one.interval.ms // 1000, from_ms(one.start_ms), one.open, one.high, one.low,
            one.close, one.volume, one.quote_volume, one.trades, one.first_id, one.last_id,
            one.complete,
        )
        for key, one in sorted(found.items(), key=lambda item: (item[0][0], item[0][2], item[0][1]))
    ]  # fmt: skip
    if not rows:
        return 0
    done = await connection.execute(
        _UPSERT, venue, *(list(column) for column in zip(*rows, strict=True))
    )
    return int(done.rpartition(" ")[2])


async def page(
    connection: Connection,
    venue: str,
    symbol: str,
    interval: Interval,
    from_at: datetime | None,
    to_at: datetime | None,
    limit: int,
    *,
    newest_first: bool,
) -> list[Stored]:
    """Stored candles that begin at or after `from_at` and before `to_at`, by time."""
    conditions, values = "", [venue, symbol, interval.ms // 1000, limit]
    for bound, comparison in ((from_at, ">="), (to_at, "<")):
        if bound is not None:
            values.append(bound)
            conditions += f" AND start_at {comparison} ${len(values)}"
    rows = await connection.fetch(
        f"SELECT {_COLUMNS}, stored_at FROM candles WHERE venue = $1 AND symbol = $2"
        f" AND interval_s = $3{conditions}"
        f" ORDER BY start_at {'DESC' if newest_first else 'ASC'} LIMIT $4",
        *values,
    )
    return [_stored(row) for row in rows]


def _stored(row: Sequence[Any]) -> Stored:
    seconds, start_at, *figures, stored_at = row
    return Stored(Candle(BY_SECONDS[seconds], to_ms(start_at), *figures), stored_at)


async def newest(connection: Connection, venue: str, symbol: str) -> dict[Interval, int]:
    """Start of the newest stored candle of each interval that has any, in epoch milliseconds."""
    rows = await connection.fetch(
        "SELECT s.interval_s, c.start_at FROM unnest($3::integer[]) AS s(interval_s),"
        " LATERAL (SELECT start_at FROM candles WHERE venue = $1 AND symbol = $2"
        "  AND interval_s = s.interval_s ORDER BY start_at DESC LIMIT 1) AS c",
        venue,
        symbol,
        list(BY_SECONDS),
    )
    return {BY_SECONDS[seconds]: to_ms(start_at) for seconds, start_at in rows}


async def save_gaps(connection: Connection, venue: str, gaps: Iterable[Gap]) -> None:
    """Remember candles to be asked for; the same ones twice change nothing."""
    rows = [
        (venue, gap.symbol, gap.interval.ms // 1000, from_ms(gap.from_ms), from_ms(gap.to_ms))
        for gap in gaps
    ]
    await connection.executemany(
        "INSERT INTO candle_gaps (venue, symbol, interval_s, from_at, to_at)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING",
        rows,
    )


async def gaps(connection: Connection, venue: str) -> list[Gap]:
    """Every candle that is still to be asked for, oldest wish first."""
    rows = await connection.fetch(
        "SELECT id, symbol, interval_s, from_at, to_at FROM candle_gaps WHERE venue = $1"
        " ORDER BY id",
        venue,
    )
    return [Gap(row[1], BY_SECONDS[row[2]], to_ms(row[3]), to_ms(row[4]), row[0]) for row in rows]


async def is_settled(
    connection: Connection,
    venue: str,
    symbol: str,
    interval: Interval,
    from_at: datetime | None,
    to_at: datetime,
) -> bool:
    """Whether nothing more is to be expected of the candles that begin in a span.

    The recorder stores what it has to ask for before any candle that closed after it learned that.
    So a candle from the span's end on says that all that is missing before it is known.

    Args:
        from_at: None for all time before `to_at`, which itself is beyond the span.
    """
    settled: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM candles WHERE venue = $1 AND symbol = $2 AND interval_s = $3"
        "  AND start_at >= $5)"
        " AND NOT EXISTS (SELECT FROM candle_gaps WHERE venue = $1 AND symbol = $2"
        "  AND interval_s = $3 AND from_at < $5 AND ($4::timestamptz IS NULL OR to_at >= $4))",
        venue,
        symbol,
        interval.ms // 1000,
        from_at,
        to_at,
    )
    return settled


async def close_gap(connection: Connection, gap: Gap) -> None:
    """It was asked for."""
    await connection.execute("DELETE FROM candle_gaps WHERE id = $1", gap.id)


async def prune(
    connection: Connection,
    venue: str,
    symbol: str,
    interval: Interval,
    before: datetime,
    limit: int,
) -> int:
    """Delete candles that began before a time, at most `limit` at once.

    Returns:
        How many were deleted; less than `limit` when none are left.
    """
    done = await connection.execute(
        "DELETE FROM candles WHERE ctid = ANY (ARRAY(SELECT ctid FROM candles WHERE venue = $1"
        " AND symbol = $2 AND interval_s = $3 AND start_at < $4 ORDER BY start_at LIMIT $5))",
        venue,
        symbol,
        interval.ms // 1000,
        before,
        limit,
    )
    return int(done.rpartition(" ")[2])
