"""The venue's memory: whether it is still the venue that we traded on.

The paper exchange tells a session id that changes when it lost its data. An order that it then
denies was not "never placed": trading on it halts until an administrator looks and resumes it
(`tbot switches resume`).
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg
import structlog

from tbot.gateway.switches import halt
from tbot.journal.commands import GATEWAY
from tbot.venues.base import Venue

_KNOWN: Final = (
    "INSERT INTO venue_sessions (venue, session_id, since) VALUES ($1, $2, now())"
    " ON CONFLICT (venue) DO UPDATE SET venue = excluded.venue RETURNING session_id, found_id"
)
_HALTED: Final = "SELECT halted FROM switches WHERE name = $1"
_FOUND: Final = "UPDATE venue_sessions SET found_id = $2 WHERE venue = $1"

_log = structlog.get_logger(__name__)


class VenueSession:
    """Compares a venue's session with the one that we know from before.

    Attributes:
        halted: Whether it was another one when last looked at: nothing is sent, nothing believed.
        resumed: How often trading was resumed after that; each time the gateway begins anew.
    """

    def __init__(self, venue: Venue, pool: asyncpg.Pool[Any]) -> None:
        self._venue = venue
        self._pool = pool
        self.halted = False
        self.resumed = 0

    async def check(self) -> bool:
        """Ask for the session; a changed one halts trading on the venue, durably.

        Returns:
            Whether the venue is the one we know, or that somebody has accepted since (see
            `resume`).

        Raises:
            VenueError: The venue did not answer.
        """
        session_id = await self._venue.session_id()
        if session_id is None:
            return True
        name = self._venue.name
        row = await self._pool.fetchrow(_KNOWN, name, session_id)
        assert row is not None, "it was just inserted"
        known = row["session_id"]
        if known == session_id:
            if self.halted:
                self.halted = False
                self.resumed += 1
                _log.warning("venue_session_accepted", venue=name, session=session_id)
            return True
        halted = await self._pool.fetchval(_HALTED, f"venue:{name}")
        if not (halted and row["found_id"] == session_id):
            _log.critical("venue_lost_its_memory", venue=name, known=known, found=session_id)
            # Durable first: were the write to fail, the next check would have to write it.
            why = (
                f"{name} lost its memory: it is in session {session_id}, orders were placed in"
                f" {known}"
            )
            async with self._pool.acquire() as connection, connection.transaction():
                await connection.execute(_FOUND, name, session_id)
                await halt(connection, f"venue:{name}", why, GATEWAY)
        self.halted = True
        return False
