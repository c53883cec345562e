"""Who may speak for a venue account: one holder at a time, by a row in Postgres.

The holder believes in its lease until the boot clock passes *the reading taken before the renewal
query* plus the time to live. The database sets the expiry after that reading, so nobody else can
take the lease while the holder still believes in it; and because the boot clock runs on while a
process is stopped, a holder that was paused knows at once that it holds nothing any more.

A holder that was killed on this machine is seen to be dead, and its lease ends at once. Its last
requests may still be on their way: what it left open is asked about, never sent again.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.clock import boot_s
from tbot.core.ids import new_id
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.venues.backoff import FullJitter

_log = structlog.get_logger(__name__)

type Connect = Callable[[], Awaitable[asyncpg.Connection[Any]]]

_QUERY_TIMEOUT_S: Final = 2.0
_LOOK_INTERVAL_S: Final = 0.5

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
_HELD: Final = """
SELECT holder, epoch, extract(epoch FROM expires_at - clock_timestamp())::float8 AS rest_s
  FROM leases WHERE name = $1"""
_BURY: Final = """
UPDATE leases SET expires_at = clock_timestamp()
 WHERE name = $1 AND holder = $2 AND epoch = $3 RETURNING epoch"""
_RELEASE: Final = """
UPDATE leases SET expires_at = clock_timestamp()
 WHERE name = $1 AND holder = $2 AND epoch = $3"""


def this_process() -> str:
    """A holder's name that tells, on the same machine, whether the holder still runs."""
    try:
        return f"{_machine()}/{os.getpid()}/{_started(os.getpid())}/{new_id()}"
    except OSError:  # no Linux: nobody will take us for dead
        return f"{socket.gethostname()}/{os.getpid()}/{new_id()}"


def is_dead(holder: str) -> bool:
    """Whether a holder was a process of this machine and runs no more.

    A stopped process runs: it may wake. A process of another machine, or of another process
    namespace, is never taken for dead.
    """
    parts = holder.split("/")
    try:
        if len(parts) != 4 or parts[0] != _machine():
            return False
        try:
            return _started(int(parts[1])) != parts[2]
        except (FileNotFoundError, ProcessLookupError):
            return True
    except (OSError, ValueError):
        return False


def _machine() -> str:
    """This boot of this machine, and this namespace of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> str:
    """When a process started, in the kernel's own ticks; a zombie counts as gone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    state, *rest = fields.rpartition(")")[2].split()
    if state in ("Z", "X"):
        raise ProcessLookupError(pid)
    return rest[18]


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
        self._other_until_s = 0.0
        self.epoch = 0

    def served(self) -> bool:
        """Whether somebody holds the lease: we, or another as of when we last looked."""
        return self.valid() or boot_s() < self._other_until_s

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
                if await self._bury_the_dead():
                    continue
                if not told:
                    told = True
                    _log.info("lease_held_by_another", lease=self._name)
            await asyncio.sleep(backoff.next_s())

    async def _bury_the_dead(self) -> bool:
        """End the lease of a holder that was killed on this machine, instead of waiting it out."""
        now_s = boot_s()
        try:
            row = await self._query(_HELD, self._name, whole=True)
            if row is None:
                return True
            if row["rest_s"] <= 0:
                return False
            if not is_dead(row["holder"]):
                self._other_until_s = now_s + row["rest_s"]
                return False
            buried = await self._query(_BURY, self._name, row["holder"], row["epoch"])
        except DATABASE_FAULTS as error:
            _log.warning("lease_not_reached", lease=self._name, error=repr(error))
            return False
        _log.warning("lease_of_a_dead_process_ended", lease=self._name, holder=row["holder"])
        return buried is not None

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

    async def _query(self, sql: str, *args: Any, whole: bool = False) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._connect()
        try:
            async with asyncio.timeout(min(_QUERY_TIMEOUT_S, self._ttl_s / 2)):
                if whole:
                    return await self._connection.fetchrow(sql, *args)
                return await self._connection.fetchval(sql, *args)
        except DATABASE_FAULTS:
            self._connection.terminate()
            self._connection = None
            raise


class LeaseWatch:
    """Follows a lease without taking part: for processes that send no orders themselves.

    Args:
        pool: Any connections; one short query a second.
        name: Of the lease.
    """

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], name: str) -> None:
        self._pool = pool
        self._name = name
        self._until_s = 0.0
        self._tasks = Tasks("lease-watch")

    def start(self) -> None:
        """Begin to look."""
        self._tasks.start(self._look(), "look")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop()

    def served(self) -> bool:
        """Whether somebody held the lease when it was last looked at, and still may."""
        return boot_s() < self._until_s

    async def _look(self) -> None:
        while True:
            now_s = boot_s()
            try:
                row = await self._pool.fetchrow(_HELD, self._name, timeout=_QUERY_TIMEOUT_S)
            except DATABASE_FAULTS as error:
                _log.warning("lease_not_reached", lease=self._name, error=repr(error))
            else:
                self._until_s = now_s + (row["rest_s"] if row is not None else 0.0)
            await asyncio.sleep(_LOOK_INTERVAL_S)
