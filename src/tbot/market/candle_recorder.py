"""Stores closed candles, asks the venue for those that are incomplete, deletes the old ones.

One process of several does this at a time (a duty); that two overlap for a moment does no harm,
because every write may be repeated. Whoever takes the duty over asks the venue for everything
since the newest stored candle, so nothing that its predecessor had in memory is missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from itertools import islice
from typing import Any, Final

import asyncpg
import structlog
from prometheus_client import Counter, Gauge

from tbot.core.clock import boot_s, from_ms
from tbot.core.errors import VenueError, VenueRefused
from tbot.core.settings import CandleSettings
from tbot.db.pool import DATABASE_FAULTS
from tbot.market import candle_store as store
from tbot.market.candle_builder import GRACE_MS
from tbot.market.candle_feed import CandleClosed, CandleEvent, CandleFeed, Doubted
from tbot.market.candle_store import Connection, Gap
from tbot.market.candles import INTERVALS, Candle, Interval
from tbot.venues.base import Instrument

_log = structlog.get_logger(__name__)

_ROWS_AT_ONCE: Final = 2_000
_GAPS_AT_ONCE: Final = 500
_LAST_STORE_TIMEOUT_S: Final = 2.0
_BAD_ROW: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)

_stored_total: Final = Counter("tbot_candles_stored", "Candles stored or bettered.")
_dropped_total: Final = Counter(
    "tbot_candles_dropped", "Candles that found no place to wait; they are fetched again."
)
_waiting: Final = Gauge("tbot_candles_waiting", "Closed candles waiting to be stored.")
_gaps_gauge: Final = Gauge("tbot_candles_gaps", "Stretches of candles to be asked for.")


class CandleRecorder:
    """Keeps the table of candles; `run` it as a duty.

    Args:
        candles: Tells of closed candles, and reaches the venue.
    """

    def __init__(
        self, pool: asyncpg.Pool[Any], candles: CandleFeed, settings: CandleSettings
    ) -> None:
        self._pool = pool
        self._candles = candles
        self._settings = settings
        self._venue = candles.source.name
        self._queue: deque[tuple[str, Candle]] = deque()
        self._gaps: dict[tuple[str, Interval], tuple[int, int]] = {}
        self._planned: set[str] = set()
        self._refused: set[tuple[str, Interval]] = set()
        self._stopped_at = 0

    async def run(self) -> None:
        """Work until cancelled; what waits then is stored, if the database takes it."""
        self._queue.clear()
        self._gaps.clear()
        self._planned.clear()
        stop_listening = self._candles.listen(self._hear)
        repaired_s = pruned_s = boot_s()
        try:
            while True:
                await asyncio.sleep(self._settings.store_interval_s)
                with suppress(*DATABASE_FAULTS):
                    await self.store()
                    if boot_s() - repaired_s >= self._settings.repair_interval_s:
                        await self.repair()
                        repaired_s = boot_s()
                    if boot_s() - pruned_s >= self._settings.prune_interval_s:
                        await self.prune()
                        pruned_s = boot_s()
        finally:
            stop_listening()
            with suppress(*DATABASE_FAULTS):
                async with asyncio.timeout(_LAST_STORE_TIMEOUT_S):
                    await self.store()

    def _hear(self, symbol: str, event: CandleEvent) -> None:
        if isinstance(event, CandleClosed):
            if len(self._queue) >= self._settings.queue_max:
                dropped_symbol, dropped = self._queue.popleft()
                _dropped_total.inc()
                self._want(dropped_symbol, dropped.interval, dropped.start_ms, dropped.start_ms)
            self._queue.append((symbol, event.candle))
        elif isinstance(event, Doubted):
            for interval in INTERVALS:
                self._want(symbol, interval, event.span.from_ms, event.span.to_ms)

    def _want(self, symbol: str, interval: Interval, from_ms: int, to_ms: int) -> None:
        """Candles to be asked for; one stretch for each market and interval until it is stored."""
        known = self._gaps.get((symbol, interval))
        if known is not None:
            from_ms, to_ms = min(from_ms, known[0]), max(to_ms, known[1])
        self._gaps[symbol, interval] = (from_ms, to_ms)

    async def store(self) -> None:
        """Store what waits.

        Raises:
            DATABASE_FAULTS: The database is away; nothing is lost, the call may be repeated.
        """
        async with self._pool.acquire() as connection:
            for instrument in self._candles.instruments():
                await self._plan(connection, instrument.symbol)
            # Only what has closed by now, so that no gap is learned of later than a candle after
            # it is stored: see `candle_store.is_settled`.
            due = len(self._queue)
            if self._gaps:
                wanted = [
                    Gap(symbol, interval, interval.floor(from_ms), interval.floor(to_ms))
                    for (symbol, interval), (from_ms, to_ms) in self._gaps.items()
                    if (symbol, interval) not in self._refused
                ]
                stored, self._gaps = self._gaps, {}
                try:
                    await store.save_gaps(connection, self._venue, wanted)
                except DATABASE_FAULTS:
                    for (symbol, interval), (from_ms, to_ms) in stored.items():
                        self._want(symbol, interval, from_ms, to_ms)
                    raise
            while due > 0 and self._queue:
                some = list(islice(self._queue, min(due, _ROWS_AT_ONCE)))
                due -= len(some)
                await self._save(connection, some)
                for item in some:
                    # Those that the bound has pushed out meanwhile are not there any more.
                    if self._queue and self._queue[0] is item:
                        self._queue.popleft()
            _waiting.set(len(self._queue))

    async def _save(self, connection: Connection, candles: Iterable[tuple[str, Candle]]) -> None:
        """Store candles; one that the table does not take must not hold up the others."""
        candles = list(candles)
        try:
            _stored_total.inc(await store.save(connection, self._venue, candles))
        except _BAD_ROW as error:
            if len(candles) == 1:
                _log.error("candle_not_stored", candle=str(candles[0]), error=str(error))
                return
            half = len(candles) // 2
            await self._save(connection, candles[:half])
            await self._save(connection, candles[half:])

    async def _plan(self, connection: Connection, symbol: str) -> None:
        """Once for each market: ask for what lies between the newest stored candle and now."""
        now_ms = self._candles.clock_ms(symbol)
        if symbol in self._planned or not now_ms:
            return
        newest = await store.newest(connection, self._venue, symbol)
        for interval in INTERVALS:
            from_ms = newest.get(interval)
            kept_ms = self._kept_ms(interval)
            if from_ms is None:
                from_ms = now_ms - self._settings.history * interval.ms
                if not self._settings.history:
                    continue
            if kept_ms:
                from_ms = max(from_ms, now_ms - kept_ms)
            if from_ms < now_ms:
                self._want(symbol, interval, max(0, from_ms), now_ms)
        self._planned.add(symbol)

    async def repair(self) -> None:
        """Ask the venue for the candles that are wanted and have ended.

        Raises:
            DATABASE_FAULTS: The database is away; the call may be repeated.
        """
        async with self._pool.acquire() as connection:
            gaps = await store.gaps(connection, self._venue)
        _gaps_gauge.set(len(gaps))
        instruments = {one.symbol: one for one in self._candles.instruments()}
        # What has not ended yet, and markets that are gone, must not stand before the others.
        due = [
            gap
            for gap in gaps
            if gap.symbol in instruments and gap.from_ms < self._open_ms(gap.symbol, gap.interval)
        ]
        # A round ends where the venue does not answer; the next one begins behind that place.
        due.sort(key=lambda gap: gap.id <= self._stopped_at)
        self._stopped_at = 0
        for gap in due[:_GAPS_AT_ONCE]:
            try:
                await self._repair(instruments[gap.symbol], gap)
            except VenueError as error:
                _log.info("candles_not_read", symbol=gap.symbol, why=str(error))
                self._stopped_at = gap.id
                return

    def _open_ms(self, symbol: str, interval: Interval) -> int:
        """Where the candle begins that may be open still, also by what the venue has told so far.

        Its answers may lag a little behind its trades.
        """
        return interval.floor(max(0, self._candles.clock_ms(symbol) - GRACE_MS))

    async def _repair(self, instrument: Instrument, gap: Gap) -> None:
        interval = gap.interval
        open_ms = self._open_ms(gap.symbol, interval)
        until_ms = min(gap.to_ms, open_ms - 1)
        found: list[Candle] = []
        try:
            found = await self._candles.past(instrument, interval, gap.from_ms, until_ms)
        except VenueRefused as error:
            # It keeps none of this length, or not of this market: they stay incomplete, and say so.
            _log.info(
                "no_candles_at_venue", symbol=gap.symbol, interval=interval.value, why=str(error)
            )
            self._refused.add((gap.symbol, interval))
        async with self._pool.acquire() as connection:
            for start in range(0, len(found), _ROWS_AT_ONCE):
                some = found[start : start + _ROWS_AT_ONCE]
                await self._save(connection, [(gap.symbol, one) for one in some])
            async with connection.transaction():
                await store.close_gap(connection, gap)
                if gap.to_ms >= open_ms and (gap.symbol, interval) not in self._refused:
                    rest = Gap(gap.symbol, interval, open_ms, gap.to_ms)
                    await store.save_gaps(connection, self._venue, [rest])
        for candle in found:
            self._candles.completed(gap.symbol, candle)

    def _kept_ms(self, interval: Interval) -> int:
        days: float = getattr(self._settings, f"keep_{interval.value}_days")
        return int(days * 86_400_000)

    async def prune(self) -> None:
        """Delete what is older than it is to be kept, by the market's own clock.

        Raises:
            DATABASE_FAULTS: The database is away; the call may be repeated.
        """
        for instrument in self._candles.instruments():
            now_ms = self._candles.clock_ms(instrument.symbol)
            for interval in INTERVALS:
                kept_ms = self._kept_ms(interval)
                if not kept_ms or not now_ms:
                    continue
                before = from_ms(now_ms) - timedelta(milliseconds=kept_ms)
                deleted = _ROWS_AT_ONCE
                while deleted == _ROWS_AT_ONCE:
                    async with self._pool.acquire() as connection:
                        deleted = await store.prune(
                            connection,
                            self._venue,
                            instrument.symbol,
                            interval,
                            before,
                            _ROWS_AT_ONCE,
                        )
