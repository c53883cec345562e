"""Who may speak for a venue account: one holder at a time, by a row in Postgres.

The holder believes in its lease until the boot clock passes *the reading taken before the renewal
query* plus the time to live. The database sets the expiry after that reading, so nobody else can
take the lease while the holder still believes in it; and because the boot clock runs on while a
process is stopped, a holder that was paused knows at once that it holds nothing any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.clock import boot_s
from tbot.db.pool import DATABASE_FAULTS
from tbot.venues.backoff import FullJitter

_log = structlog.get_logger(__name__)

type Connect = Callable[[], Awaitable[asyncpg.Connection[Any]]]

_QUERY_TIMEOUT_S: Final = 2.0

_ACQUIRE: Final = """
INSERT INTO leases AS l (name, holder, epoch, expires_at)
VALUES ($1, $2, 1, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE
   SET holder = excluded.holder, epoch = l.epoch + 1, expires_at = excluded.expires_at
 WHERE l.expires_at < clock_timestamp()
RETURNING epoch"""
_RENEW: Final = """
UPDATE leases SET expires_at = clock_timestamp() + make_interval(secs => $4)
 WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires_at > clock_timestamp()
RETURNING epoch"""
_RELEASE: Final = """
UPDATE leases SET expires_at = clock_timestamp()
 WHERE name = $1 AND holder = $2 AND epoch = $3"""


class Lease:
    """A lease on one name.

    Args:
        connect: Opens a connection of the lease's own.
        name: Of what is leased, as `venue:paper`.
        holder: Unique to this process run.
        ttl_s: Time to live of one renewal; renewed three times as often.
    """

    def __init__(self, connect: Connect, name: str, holder: str, ttl_s: float) -> None:
        self._connect = connect
        self._name = name
        self._holder = holder
        self._ttl_s = ttl_s
        self._connection: asyncpg.Connection[Any] | None = None
        self._until_s = 0.0
        self.epoch = 0

    def valid(self) -> bool:
        """Whether the lease is held at this instant."""
        return boot_s() < self._until_s

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        backoff = FullJitter(base_s=self._ttl_s / 8, cap_s=self._ttl_s / 2)
        told = False
        while True:
            before_s = boot_s()
            try:
                epoch = await self._query(_ACQUIRE, self._name, self._holder, self._ttl_s)
            except DATABASE_FAULTS as error:
                _log.warning("lease_not_reached", lease=self._name, error=repr(error))
            else:
                if epoch is not None:
                    self.epoch = epoch
                    self._until_s = before_s + self._ttl_s
                    _log.info("lease_acquired", lease=self._name, epoch=epoch)
                    return
                if not told:
                    told = True
                    _log.info("lease_held_by_another", lease=self._name)
            await asyncio.sleep(backoff.next_s())

    async def keep(self) -> None:
        """Renew until the lease is lost, then return."""
        while self.valid():
            await asyncio.sleep(self._ttl_s / 3)
            before_s = boot_s()
            try:
                epoch = await self._query(_RENEW, self._name, self._holder, self.epoch, self._ttl_s)
            except DATABASE_FAULTS as error:
                _log.warning("lease_not_renewed", lease=self._name, error=repr(error))
                continue
            if epoch is None:
                break
            self._until_s = before_s + self._ttl_s
        self._until_s = 0.0
        _log.error("lease_lost", lease=self._name, epoch=self.epoch)

    async def release(self) -> None:
        """Give the lease up, so that another need not wait; safe to call twice."""
        held, self._until_s = self.valid(), 0.0
        if held:
            try:
                await self._query(_RELEASE, self._name, self._holder, self.epoch)
            except DATABASE_FAULTS as error:
                _log.warning("lease_not_released", lease=self._name, error=repr(error))
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _query(self, sql: str, *args: Any) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            async with asyncio.timeout(min(_QUERY_TIMEOUT_S, self._ttl_s / 2)):
                return await self._connection.fetchval(sql, *args)
        except DATABASE_FAULTS:
            self._connection.terminate()
            self._connection = None
            raise
