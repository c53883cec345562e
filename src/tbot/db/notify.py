"""Wake-ups between processes, carried by Postgres' NOTIFY.

The committer notifies inside its transaction, so a wake-up never comes before what it is about.
One that is lost costs at most a second: every listener of the bus also looks by itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.bus import EVERYTHING, Bus
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS

CHANNEL: Final = "tbot"
_CHECK_INTERVAL_S: Final = 10.0
_RECONNECT_S_MAX: Final = 2.0

_log = structlog.get_logger(__name__)


class NotifyBridge:
    """Brings what other processes notify to this process's bus.

    Args:
        connect: Opens a connection for LISTEN.
        bus: Is woken; after a reconnection with `EVERYTHING`, since wake-ups may have been missed.
    """

    def __init__(self, connect: Callable[[], Awaitable[asyncpg.Connection[Any]]], bus: Bus) -> None:
        self._connect = connect
        self._bus = bus
        self._tasks = Tasks("notify")

    async def start(self) -> None:
        """Begin listening; returns at once, and keeps trying when the database is away."""
        self._tasks.start(self._run(), "listen")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop()

    async def _run(self) -> None:
        delay_s = 0.05
        while True:
            try:
                connection = await self._connect()
            except DATABASE_FAULTS as error:
                _log.warning("notify_unavailable", error=str(error))
                await asyncio.sleep(delay_s * random.uniform(0.5, 1))
                delay_s = min(_RECONNECT_S_MAX, delay_s * 2)
                continue
            delay_s = 0.05
            try:
                await self._listen(connection)
            except DATABASE_FAULTS as error:
                _log.warning("notify_interrupted", error=str(error))
            finally:
                connection.terminate()

    async def _listen(self, connection: asyncpg.Connection[Any]) -> None:
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _connection: closed.set())
        await connection.add_listener(CHANNEL, self._notified)
        self._bus.wake([EVERYTHING])
        while not closed.is_set():
            try:
                async with asyncio.timeout(_CHECK_INTERVAL_S):
                    await closed.wait()
            except TimeoutError:
                # Silence looks like a dead connection: ask.
                await connection.execute("SELECT 1", timeout=5)

    def _notified(self, _connection: Any, _pid: int, _channel: str, payload: object) -> None:
        self._bus.wake(str(payload).split(","))
