"""The venues' instruments, in memory, in step with what the gateway's process has learned.

Reads never wait: they are of this process's memory. A process hears over the bus
(`instruments:<venue>`) that another one has saved some, and reads them again; one that misses the
news does so after `cache.instruments_s`. At a start Valkey may have them already.
"""

from __future__ import annotations

from typing import Final

import asyncpg
import msgspec
import structlog

from tbot.core.bus import Bus, wait_for_wake
from tbot.core.cache import Cache, Form, Shared
from tbot.core.cache_settings import CacheSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.orders import store
from tbot.orders.flow import Instruments
from tbot.venues.base import Instrument

_log = structlog.get_logger(__name__)

TOPIC: Final = "instruments"
_VENUES_MAX: Final = 100

_FORM: Final[Form[str, list[Instrument]]] = Form(
    key=str,
    encode=lambda found: msgspec.json.encode(found) if found else None,
    decode=lambda content: msgspec.json.decode(content, type=list[Instrument]),
)


class InstrumentsFollower:
    """Keeps one venue's instruments up to date.

    Args:
        known: Is given them.
        shared: What processes tell each other; None keeps to this one.
    """

    def __init__(
        self,
        pool: asyncpg.Pool[asyncpg.Record],
        bus: Bus,
        known: Instruments,
        venue: str,
        settings: CacheSettings,
        shared: Shared | None = None,
    ) -> None:
        self._pool = pool
        self._bus = bus
        self._known = known
        self._venue = venue
        self._interval_s = settings.instruments_s
        self._tasks = Tasks("instruments")
        self._cache: Cache[str, list[Instrument]] = Cache(
            "instruments",
            self._ask,
            ttl_s=settings.instruments_s,
            size_max=_VENUES_MAX,
            shared=shared,
            form=_FORM,
            group=lambda venue, _found: venue,
        )
        bus.hear(TOPIC, self._changed)

    async def start(self) -> None:
        """Read them once, and follow them from then on.

        Raises:
            OSError, asyncpg.PostgresError: They could not be read.
        """
        await self._load()
        self._tasks.start(self._follow(), "follow")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop()
        await self._cache.stop()

    def _changed(self, venue: str | None) -> None:
        self._cache.forget(*(() if venue is None else (venue,)))

    async def _follow(self) -> None:
        with self._bus.listening(f"{TOPIC}:{self._venue}") as woken:
            while True:
                await wait_for_wake(woken, self._interval_s)
                try:
                    await self._load()
                except DATABASE_FAULTS as error:
                    _log.warning("instruments_not_read", venue=self._venue, error=repr(error))

    async def _load(self) -> None:
        found = await self._cache.get(self._venue)
        if found:  # none saved yet: what this process may have learned itself stays
            self._known.put(self._venue, found)

    async def _ask(self, venue: str) -> list[Instrument]:
        async with self._pool.acquire() as connection:
            return await store.load_instruments(connection, venue)
