"""Work that exactly one of several processes does at a time.

Whoever holds an advisory lock of Postgres has the duty. The lock lives as long as the connection
that took it, so a killed process gives it up at once, and its successor begins where the tables
say. A holder that is cut off may go on for a moment beside its successor: what is done under a
duty has to be repeatable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS

_log = structlog.get_logger(__name__)

_CLASS: Final = 0x7B0A
_LOOK_INTERVAL_S: Final = 1.0
_QUERY_TIMEOUT_S: Final = 5.0

PAYMENTS: Final = 1
WEBHOOKS: Final = 2
CANDLES: Final = 3


class Duty:
    """Runs something for as long as the duty is this process's.

    Args:
        connect: Opens a connection of its own, which holds the lock.
        number: Of the duty, in this module.
        work: Runs until it is cancelled; started again when it fails or the duty comes back.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection[Any]]],
        number: int,
        work: Callable[[], Awaitable[None]],
    ) -> None:
        self._connect = connect
        self._number = number
        self._work = work
        self._tasks = Tasks(f"duty-{number}")
        self.held = asyncio.Event()

    def start(self) -> None:
        """Try to get the duty from now on."""
        self._tasks.start(self._run(), "run")

    async def stop(self) -> None:
        """Stop the work and give the duty up; safe to call twice."""
        await self._tasks.stop()

    async def _run(self) -> None:
        while True:
            try:
                connection = await self._connect()
            except DATABASE_FAULTS as error:
                _log.warning("duty_not_reached", duty=self._number, error=repr(error))
                await asyncio.sleep(_LOOK_INTERVAL_S)
                continue
            try:
                await self._hold(connection)
            except DATABASE_FAULTS as error:
                _log.warning("duty_interrupted", duty=self._number, error=repr(error))
            finally:
                self.held.clear()
                connection.terminate()

    async def _hold(self, connection: asyncpg.Connection[Any]) -> None:
        """Wait for the lock, then work until the connection is lost or the work fails."""
        lock = "SELECT pg_try_advisory_lock($1, $2)"
        while not await connection.fetchval(lock, _CLASS, self._number, timeout=_QUERY_TIMEOUT_S):
            await asyncio.sleep(_LOOK_INTERVAL_S)
        _log.info("duty_taken", duty=self._number)
        self.held.set()
        working = asyncio.ensure_future(self._work())
        try:
            while not working.done():
                await asyncio.wait({working}, timeout=_LOOK_INTERVAL_S)
                await connection.fetchval("SELECT 1", timeout=_QUERY_TIMEOUT_S)
        finally:
            working.cancel()
            await asyncio.wait({working})
        if not working.cancelled() and working.exception() is not None:
            _log.error("duty_failed", duty=self._number, exc_info=working.exception())
            await asyncio.sleep(_LOOK_INTERVAL_S)
