"""Looks at everything that a start needs, and at the health of what runs; changes nothing."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
from pydantic import BaseModel

from tbot.audit.anchoring import newest, place_of
from tbot.boot import database_url
from tbot.core.clock import utc_now
from tbot.core.errors import ConfigurationError
from tbot.core.settings import Settings
from tbot.db.access import require_durable
from tbot.db.cluster import FileLock, check_cluster
from tbot.db.migrate import require_current
from tbot.db.placement import binaries_for, runner_for

FREE_BYTES_MIN: Final = 1 << 30
_BUILT: Final = datetime(2026, 1, 1, tzinfo=UTC)

_OTHER_VARIABLES: Final = (
    "TBOT_PYTHON", "TBOT_SHARED", "TBOT_URL", "TBOT_USER", "TBOT_PASSWORD", "TBOT_ACCOUNT",
)  # fmt: skip
"""What the bootstrap, the tests and the examples read."""

_BROKEN_HEADS: Final = """
SELECT count(*) FROM streams s LEFT JOIN journal j
  ON j.account_id = s.account_id AND j.seq = s.seq
WHERE s.seq > 0 AND j.hash IS DISTINCT FROM s.hash"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        sound: True, False, or None where there was nothing to look at.
        detail: What was found; for what is not sound, also what to do.
    """

    name: str
    sound: bool | None
    detail: str


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Look at one thing after the other."""
    yield Finding("Python", sys.version_info >= (3, 12), sys.version.split()[0])
    yield _variables(os.environ)
    yield _clock()
    data_dir = settings.data_dir.absolute()
    yield _disk(data_dir)
    in_use, finding = _use(data_dir)
    yield finding
    yield _binaries(data_dir)
    yield _cluster(data_dir)
    for name, host, port, variable in (
        ("API port", settings.http.host, settings.http.port, "TBOT_HTTP__PORT"),
        (
            "Exchange port",
            settings.exchange.host,
            settings.exchange.port,
            "TBOT_EXCHANGE__PORT",
        ),
    ):
        yield _port(name, host, port, variable, in_use)
    yield _recordings(settings)
    yield _anchors(settings)
    async for finding in _database(settings):
        yield finding


def _variables(environment: Mapping[str, str]) -> Finding:
    """A misspelt variable would otherwise change nothing, silently."""
    known = set(_OTHER_VARIABLES)
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            known |= {f"TBOT_{name}__{part}".upper() for part in section.model_fields}
        known.add(f"TBOT_{name}".upper())
    strange = sorted(n for n in environment if n.startswith("TBOT_") and n not in known)
    if strange:
        return Finding("Settings", False, f"no such setting: {', '.join(strange)}")
    return Finding("Settings", True, "every TBOT_ variable is one")


def _clock() -> Finding:
    now = utc_now()
    if now < _BUILT:
        return Finding("Clock", False, f"it says {now:%Y-%m-%d}: set the machine's clock")
    return Finding("Clock", True, f"{now:%Y-%m-%d %H:%M:%S} UTC")


def _disk(data_dir: Path) -> Finding:
    place = next(path for path in (data_dir, *data_dir.parents) if path.exists())
    if not os.access(place, os.W_OK):
        return Finding("Data directory", False, f"{place} is not writable: set TBOT_DATA_DIR")
    free = shutil.disk_usage(place).free
    detail = f"{data_dir}, {free / (1 << 30):.1f} GiB free"
    if free < FREE_BYTES_MIN:
        return Finding("Data directory", False, f"{detail}: make room, at least 1 GiB")
    return Finding("Data directory", True, detail)


def _use(data_dir: Path) -> tuple[bool, Finding]:
    path = data_dir / "postgres.lock"
    if not path.exists():
        return False, Finding("In use", None, "no T-Bot has run here yet")
    lock = FileLock(path)
    try:
        free = lock.acquire()
    except OSError as error:
        return False, Finding("In use", False, f"{path} cannot be opened: {error.strerror}")
    lock.release()
    if free:
        return False, Finding("In use", True, "no, it is free to start")
    return True, Finding("In use", True, f"yes, by the T-Bot with process id {lock.holder()}")


def _binaries(data_dir: Path) -> Finding:
    try:
        programs = binaries_for(runner_for(data_dir / "postgres"))
    except ConfigurationError as error:
        return Finding("Postgres programs", False, str(error))
    return Finding("Postgres programs", True, str(programs))


def _cluster(data_dir: Path) -> Finding:
    try:
        there = check_cluster(data_dir)
    except ConfigurationError as error:
        return Finding("Database files", False, str(error))
    return Finding("Database files", there or None, "there" if there else "not made yet")


def _port(name: str, host: str, port: int, variable: str, in_use: bool) -> Finding:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE and in_use:
            return Finding(name, True, f"{port}, in use, probably by the T-Bot that runs")
        return Finding(name, False, f"{port}: {error.strerror}; choose another with {variable}")
    return Finding(name, True, f"{port} is free")


def _recordings(settings: Settings) -> Finding:
    exchange = settings.exchange
    if exchange.source != "replay":
        return Finding("Recordings", None, "the market is synthetic")
    missing = [str(path) for path in exchange.replay_files if not path.is_file()]
    if missing or not exchange.replay_files:
        return Finding(
            "Recordings",
            False,
            f"{', '.join(missing) or 'none'} cannot be read: set TBOT_EXCHANGE__REPLAY_FILES",
        )
    return Finding("Recordings", True, f"{len(exchange.replay_files)} files")


def _anchors(settings: Settings) -> Finding:
    place = place_of(settings)
    try:
        last = newest(place)
    except OSError as error:
        return Finding("Anchors", False, f"{place.anchors} cannot be read: {error.strerror}")
    if last is None:
        return Finding("Anchors", None, "none yet: `tbot audit anchor` makes one")
    return Finding("Anchors", True, f"the newest is {last.anchor.index}, of {last.anchor.at}")


async def _database(settings: Settings) -> AsyncIterator[Finding]:
    try:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            database_url(settings), timeout=5.0
        )
    except ConfigurationError:
        yield Finding("Database", None, "not running")
        return
    except (OSError, asyncpg.PostgresError, TimeoutError) as error:
        yield Finding("Database", False, f"cannot be reached: {error}")
        return
    try:
        version = await connection.fetchval("show server_version")
        yield Finding("Database", True, f"Postgres {version}")
        for name, check in (("Durability", require_durable), ("Schema", require_current)):
            try:
                await check(connection)
            except ConfigurationError as error:
                yield Finding(name, False, str(error))
            else:
                yield Finding(name, True, "as it must be")
        yield await _heads(connection)
        yield await _newest(connection)
        yield await _halts(connection)
    except asyncpg.PostgresError as error:
        yield Finding("Database", False, str(error))
    finally:
        await connection.close()


async def _heads(connection: asyncpg.Connection[Any]) -> Finding:
    broken = await connection.fetchval(_BROKEN_HEADS)
    accounts = await connection.fetchval("select count(*) from streams")
    if broken:
        return Finding("Chain heads", False, f"{broken} of {accounts} differ: run `tbot verify`")
    return Finding("Chain heads", True, f"{accounts} accounts; `tbot verify` proves the rest")


async def _newest(connection: asyncpg.Connection[Any]) -> Finding:
    newest = await connection.fetchval("select max(at) from streams")
    if newest is not None and newest > utc_now() + timedelta(seconds=1):
        return Finding(
            "Clock and journal", False, f"the newest entry is of {newest}: is the clock slow?"
        )
    return Finding("Clock and journal", True, "no entry is of the future")


async def _halts(connection: asyncpg.Connection[Any]) -> Finding:
    rows = await connection.fetch("select name, reason from switches where halted order by name")
    if not rows:
        return Finding("Switches", True, "nothing is halted")
    halted = "; ".join(f"{row['name']} ({row['reason']})" for row in rows)
    return Finding("Switches", False, f"halted: {halted}: see `tbot switches resume --help`")
