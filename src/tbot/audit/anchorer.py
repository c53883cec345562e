"""Anchors on their own, from time to time, while the server runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from tbot.audit import anchoring
from tbot.audit.anchoring import Place, WentBack
from tbot.audit.export import Connection
from tbot.core.clock import unstamp, utc_now
from tbot.core.errors import ConfigurationError
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS

_RETRY_S: Final = 60.0

_log = structlog.get_logger(__name__)


class Anchorer:
    """Makes an anchor whenever the last one is older than the interval and heads moved.

    What goes wrong is logged and tried again; the server does not depend on it.

    Args:
        connect: Opens a connection for one statement.
        interval_s: From one anchor to the next, > 0.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], place: Place, interval_s: float
    ) -> None:
        self._connect = connect
        self._place = place
        self._interval_s = interval_s
        self._tasks = Tasks("anchorer")

    def start(self) -> None:
        """Begin."""
        self._tasks.start(self._run(), "anchors")

    async def stop(self) -> None:
        """End; an anchor under way is finished by its thread. Safe to call twice."""
        await self._tasks.stop()

    async def _run(self) -> None:
        await asyncio.sleep(self._due_s())
        while True:
            done = await self.once()
            await asyncio.sleep(self._interval_s if done else min(_RETRY_S, self._interval_s))

    def _due_s(self) -> float:
        """Seconds until the next anchor is due; a restart of the server does not put it off."""
        try:
            last = anchoring.newest(self._place)
        except OSError:
            return 0.0
        if last is None:
            return 0.0
        age_s = (utc_now() - unstamp(last.anchor.at)).total_seconds()
        return min(self._interval_s, max(0.0, self._interval_s - age_s))

    async def once(self) -> bool:
        """Make an anchor now; whether that went well."""
        try:
            connection = await self._connect()
            try:
                await anchoring.anchor(connection, self._place)
            finally:
                connection.terminate()
        except WentBack as error:
            _log.critical("anchored_history_changed", error=str(error))
            return False
        except (ConfigurationError, *DATABASE_FAULTS) as error:
            _log.error("not_anchored", error=str(error))
            return False
        return True
