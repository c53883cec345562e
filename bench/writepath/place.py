"""Where a benchmark happens: a durable Postgres on one core, servers on the other."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tbot.child import ExchangeChild
from tbot.core.settings import ExchangeSettings
from tbot.db.embedded import DATABASE, EmbeddedPostgres
from tbot.db.migrate import migrate
from tbot.exchange import credentials

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SERVER_CORE = 0
LOAD_CORE = 1


def pin(core: int) -> bool:
    """Keep this process, and what it starts from now on, on one core; False where it cannot be."""
    if not hasattr(os, "sched_setaffinity") or (os.cpu_count() or 1) <= core:
        return False
    os.sched_setaffinity(0, {core})
    return True


MEMORY = Path("/dev/shm")


@contextlib.asynccontextmanager
async def database(*, memory: bool = False) -> AsyncIterator[EmbeddedPostgres]:
    """A migrated Postgres in a temporary directory, with the durability that T-Bot demands.

    Args:
        memory: Where there is a file system in memory, there: for what is not about the disk,
            on machines whose disk now and then takes a second for what usually takes two
            milliseconds. Postgres does all the same, and waits for nothing.
    """
    where = MEMORY if memory and MEMORY.is_dir() else Path("/tmp")
    directory = Path(tempfile.mkdtemp(prefix="tbot-bench-", dir=where))
    directory.chmod(0o711)
    try:
        async with EmbeddedPostgres(directory / "data", die_with_parent=True) as server:
            await migrate(server.dsn("owner"))
            yield server
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def copies(server: EmbeddedPostgres, *names: str) -> list[str]:
    """A database for each of several servers that are compared, as new as the one they are of.

    On one database each would be woken by every commit of the others, also while it is not its
    turn: with three idle ones that took a twentieth of the servers' core.

    Returns:
        Where each finds its own.
    """
    connection = await asyncpg.connect(server.dsn("superuser", "postgres"))
    try:
        for name in names:
            await connection.execute(f"CREATE DATABASE {name} TEMPLATE {DATABASE}")
    finally:
        await connection.close()
    return [server.dsn("app", name) for name in names]


async def durability(dsn: str) -> dict[str, str]:
    """What the figures were reached with."""
    names = ("server_version", "fsync", "full_page_writes", "synchronous_commit", "wal_sync_method")
    connection = await asyncpg.connect(dsn)
    try:
        return {name: await connection.fetchval(f"show {name}") for name in names}
    finally:
        await connection.close()


@dataclass
class Server:
    """A process that serves, and what it said when it was ready."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]

    @property
    def port(self) -> int:
        port: int = self.facts["port"]
        return port

    @property
    def token(self) -> str:
        token: str = self.facts["token"]
        return token

    def processor_s(self) -> float:
        """Processor time that it has taken so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(kind: str, dsn: str, **options: Any) -> Iterator[Server]:
    """A server process of `writepath.servers`, on the servers' core.

    Args:
        kind: A name in `writepath.servers.KINDS`.
        options: For it.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TBOT_")}
    environment["PYTHONPATH"] = f"{REPOSITORY / 'src'}:{HERE.parent}"
    process = subprocess.Popen(
        [sys.executable, "-m", "writepath.servers", kind, dsn, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server {kind} did not start")
        yield Server(process, json.loads(line))
    finally:
        process.stdin.close()  # it ends with its standard input
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.asynccontextmanager
async def exchange() -> AsyncIterator[dict[str, str]]:
    """A paper exchange whose rate limits are no cap; what `PaperAccess` takes."""
    limits = {"ORDERS_10S_MAX": 10**8, "ORDERS_1D_MAX": 10**9, "WEIGHT_1M_MAX": 10**9}
    os.environ.update({f"TBOT_EXCHANGE__{name}": str(most) for name, most in limits.items()})
    directory = Path(tempfile.mkdtemp(prefix="tbot-bench-", dir="/tmp"))
    child = ExchangeChild(ExchangeSettings(port=0), directory, directory / "exchange.log")
    child.start()
    try:
        await child.ready()
        found = credentials.load(directory)
        assert found is not None
        yield {"url": found.url, "api_key": found.api_key, "api_secret": found.api_secret}
    finally:
        await child.stop()
        shutil.rmtree(directory, ignore_errors=True)


async def calm(dsn: str) -> None:
    """Let nothing of one stretch weigh on the next: a checkpoint, and a moment."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    await asyncio.sleep(0.2)


def database_processor_s(server: EmbeddedPostgres) -> float:
    """Processor time that Postgres' processes have taken so far, those that ended included."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(entry.name) == server.pid:
                ticks += sum(map(int, words[11:15]))
            elif int(words[1]) == server.pid:
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")
