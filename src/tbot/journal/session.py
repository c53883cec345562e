"""The committer's session with the database: its bounds, its lane, and its certain end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tbot.core.errors import JournalUnavailable
from tbot.journal.batch import Connection

_LANE_CLASS: Final = 0x7B07
_LANES: Final = 256


@contextmanager
def bounded(connection: Connection, time_s_max: float) -> Iterator[None]:
    """Terminate the connection when what is done on it takes longer: its waiter gets an error.

    Never a cancellation: that could hit the next statement.
    """
    watchdog = asyncio.get_running_loop().call_later(time_s_max, connection.terminate)
    try:
        yield
    finally:
        watchdog.cancel()


async def end_session(connection: Connection, session: str, patience_s: float) -> None:
    """Have a lost connection's session end.

    Raises:
        JournalUnavailable: It does not end.
    """
    sql = "SELECT end_session($1, $2)"
    if not await connection.fetchval(sql, session, max(1, int(patience_s * 1000))):
        raise JournalUnavailable("the session of the lost connection does not end")


async def free_lane(connection: Connection) -> int:
    """A lane of the counters that no other committer on this database writes to."""
    for lane in range(_LANES):
        if await connection.fetchval("SELECT pg_try_advisory_lock($1, $2)", _LANE_CLASS, lane):
            return lane
    raise JournalUnavailable(f"more than {_LANES} committers on this database")
