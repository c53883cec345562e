"""The venue's memory: whether it is still the venue that we traded on.

The paper exchange tells a session id that changes when it lost its data. An order that it then
denies was not "never placed": trading on it halts until an administrator looks.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import structlog

from tbot.venues.base import Venue

_log = structlog.get_logger(__name__)


class VenueSession:
    """Compares a venue's session with the one that we know from before.

    Args:
        halted: Becomes true for good once the session was found changed.
    """

    def __init__(self, venue: Venue, pool: asyncpg.Pool[Any]) -> None:
        self._venue = venue
        self._pool = pool
        self.halted = False

    async def check(self) -> bool:
        """Ask for the session; a changed one halts trading on the venue, durably.

        Returns:
            Whether the venue is the one we know.

        Raises:
            VenueError: The venue did not answer.
        """
        if self.halted:
            return False
        session_id = await self._venue.session_id()
        if session_id is None:
            return True
        name = self._venue.name
        known = await self._pool.fetchval(
            "INSERT INTO venue_sessions (venue, session_id, since) VALUES ($1, $2, now())"
            " ON CONFLICT (venue) DO UPDATE SET venue = excluded.venue RETURNING session_id",
            name,
            session_id,
        )
        if known == session_id:
            return True
        _log.critical("venue_lost_its_memory", venue=name, known=known, found=session_id)
        # Durable first: were the write to fail, the next check would have to write it.
        await self._pool.execute(
            "INSERT INTO switches (name, halted, reason, at) VALUES ($1, true, $2, now())"
            " ON CONFLICT (name) DO UPDATE SET halted = true, reason = excluded.reason, at = now()",
            f"venue:{name}",
            f"{name} lost its memory: it is in session {session_id}, orders were placed in {known}",
        )
        self.halted = True
        return False
