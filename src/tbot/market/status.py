"""How a market is: whether it is heard, whether its book is good, and what halts its trading."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import structlog

from tbot.core import clock
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.market.book import Book

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Halt:
    """A switch that is turned off.

    Attributes:
        name: As `trading`, `venue:paper` or `instrument:paper:BTC-USDT`.
    """

    name: str
    reason: str
    since: datetime


@dataclass(frozen=True, slots=True)
class StatusChanged:
    """Something besides the feed changed a market's status."""


class Heard(Protocol):
    """What the feed knows of it: `tbot.market.feed.MarketFeed`."""

    def symbols(self) -> Sequence[str]:
        """The markets."""

    def book(self, symbol: str) -> Book | None:
        """The book, None while it is not in sync."""

    def stale(self, symbol: str) -> bool:
        """Whether nothing was heard for too long."""


class StatusBoard:
    """The status of every market of one venue.

    Args:
        venue: Our name of it.
        heard: The feed.
        read_halts: Reads every switch that is off now.
        served: Whether any process sends orders to the venue.
        interval_s: How often the last two are asked.
    """

    def __init__(
        self,
        venue: str,
        heard: Heard,
        read_halts: Callable[[], Awaitable[Sequence[Halt]]],
        served: Callable[[], bool],
        interval_s: float,
    ) -> None:
        self._venue = venue
        self._heard = heard
        self._read_halts = read_halts
        self._served = served
        self._interval_s = interval_s
        self._halts: Sequence[Halt] = ()
        self._was_served = False
        self._tasks = Tasks("market-status")

    def start(self, tell: Callable[[str, StatusChanged], None]) -> None:
        """Look from now on.

        Args:
            tell: Called for every market when halts or the sending of orders change.
        """
        self._tasks.start(self._watch(tell), "watch")

    async def stop(self) -> None:
        """Look no more; safe to call twice."""
        await self._tasks.stop()

    async def _watch(self, tell: Callable[[str, StatusChanged], None]) -> None:
        while True:
            if await self.look():
                for symbol in self._heard.symbols():
                    tell(symbol, StatusChanged())
            await asyncio.sleep(self._interval_s)

    async def look(self) -> bool:
        """Look once; whether anything changed. While the database is away the last word stands."""
        before = (self._halts, self._was_served)
        self._was_served = self._served()
        try:
            self._halts = tuple(await self._read_halts())
        except DATABASE_FAULTS as error:
            _log.info("halts_not_read", error=repr(error))
        return before != (self._halts, self._was_served)

    def status_json(self, symbol: str) -> dict[str, Any]:
        """A market's status as REST and the stream tell it."""
        names = ("trading", f"venue:{self._venue}", f"instrument:{self._venue}:{symbol}")
        halts = [
            {"switch": halt.name, "reason": halt.reason, "since": clock.stamp(halt.since)}
            for halt in self._halts
            if halt.name in names
        ]
        return {
            "venue": self._venue,
            "stale": self._heard.stale(symbol),
            "book": "live" if self._heard.book(symbol) is not None else "rebuilding",
            "orders": "halted" if halts else "sent" if self._was_served else "waiting",
            "halts": halts,
        }
