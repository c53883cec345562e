"""Connections to Postgres: the pool for reads, and the committer's own.

Entry points: `create_pool`, `transaction`, `connect_committer`, `connect_listener`,
`DATABASE_FAULTS`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast
from uuid import UUID

import asyncpg
from asyncpg.pgproto import pgproto

from tbot.core import ids
from tbot.core.errors import OutcomeUnknown
from tbot.core.settings import CommitterSettings, DatabaseSettings
from tbot.db import arrays

CONNECT_TIMEOUT_S: Final = 5.0

DATABASE_FAULTS: Final = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    # A server that dies between two steps of asyncpg's own state machine.
    asyncpg.InternalClientError,
)
"""What a database call may raise when the database is away; `TimeoutError` is an `OSError`."""
_TCP_USER_TIMEOUT_MS: Final = 10_000
_SENT_AT_ONCE_BYTES: Final = 1 << 21


# Ids of our own are of the kind that rows have: ten times as quick to make, write and look up.
ids.make_with(cast("Callable[[bytes | str], UUID]", pgproto.UUID))


async def create_pool(dsn: str, settings: DatabaseSettings) -> asyncpg.Pool[asyncpg.Record]:
    """A pool for reads and small writes outside the journal.

    Returns:
        An open pool; the caller closes it.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=1,
        max_size=settings.pool_size_max,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=settings.statement_timeout_s,
        server_settings={
            "application_name": "tbot",
            "statement_timeout": _ms(settings.statement_timeout_s),
            "idle_in_transaction_session_timeout": _ms(settings.statement_timeout_s),
        },
        init=_bound_silence,
    )


@asynccontextmanager
async def transaction(
    pool: asyncpg.Pool[Any],
) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[Any]]:
    """A transaction on a pooled connection, committed if the block ends well.

    Raises:
        OutcomeUnknown: The connection broke at COMMIT, or COMMIT did not answer `COMMIT`: asyncpg
            by itself would not notice a COMMIT that rolled back.
    """
    async with pool.acquire() as connection:
        await connection.execute("BEGIN")
        try:
            yield connection
        except asyncio.CancelledError:
            connection.terminate()  # a cancel request could hit the connection's next statement
            raise
        except BaseException:
            with suppress(*DATABASE_FAULTS):
                await connection.execute("ROLLBACK")
            raise
        try:
            answer = await connection.execute("COMMIT")
        except DATABASE_FAULTS as error:
            raise OutcomeUnknown("the database went away while the change was committed") from error
        if answer != "COMMIT":
            raise OutcomeUnknown(f"COMMIT was answered by {answer}")


async def connect_committer(dsn: str, settings: CommitterSettings) -> asyncpg.Connection[Any]:
    """A connection whose transactions the server itself bounds.

    A committer that is paused, or cut off in the middle of a transaction, would hold its row
    locks; `idle_in_transaction_session_timeout` makes the server end it.
    """
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        server_settings={
            "application_name": "tbot committer",
            "transaction_timeout": _ms(settings.transaction_timeout_s),
            "idle_in_transaction_session_timeout": _ms(settings.idle_timeout_s),
            "synchronous_commit": "on",
            # Statements are bulk writes of known shape; compiling them costs more than it saves.
            "jit": "off",
            # Every one of them looks rows up by key. While statistics lag behind a growing table
            # the planner would rather scan it.
            "enable_seqscan": "off",
            "enable_hashjoin": "off",
            "enable_mergejoin": "off",
            "plan_cache_mode": "force_generic_plan",
        },
    )
    await _bound_silence(connection)
    _send_at_once(connection)
    arrays.install(connection)
    return connection


async def connect_listener(dsn: str) -> asyncpg.Connection[Any]:
    """A connection for LISTEN."""
    connection: asyncpg.Connection[Any] = await asyncpg.connect(
        dsn, timeout=CONNECT_TIMEOUT_S, server_settings={"application_name": "tbot listener"}
    )
    await _bound_silence(connection)
    return connection


def _send_at_once(connection: asyncpg.Connection[Any]) -> None:
    """Have a whole batch's statement fit into the socket.

    What does not fit is sent when the event loop looks again: by then the next batch has been
    decided, and the server has waited for the rest meanwhile. Over TCP the kernel sees to it.
    No more than a wish: Linux gives what `net.core.wmem_max` allows, twice, others may refuse.
    """
    raw = _socket(connection)
    if raw is not None and raw.family == socket.AF_UNIX:
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SENT_AT_ONCE_BYTES)


def _socket(connection: asyncpg.Connection[Any]) -> Any:
    """Asyncpg offers no public way to it; None where there is no other either."""
    transport = getattr(connection, "_transport", None)
    return transport.get_extra_info("socket") if transport is not None else None


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


async def _bound_silence(connection: asyncpg.Connection[Any]) -> None:
    """Give up on a peer that no longer acknowledges: a half-open TCP connection hangs for ever.

    asyncpg sets no such option itself.
    """
    raw = _socket(connection)
    if raw is None or raw.family not in (socket.AF_INET, socket.AF_INET6):
        return
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)
