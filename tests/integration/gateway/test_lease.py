"""A lease outlives a holder that may wake, and not one that was killed on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import asyncpg
import pytest

from tbot.gateway.lease import Lease, LeaseWatch, is_dead, this_process

_HOLD = (
    "import sys; from tbot.gateway.lease import this_process;"
    "print(this_process(), flush=True); sys.stdin.read()"
)


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    yield process, process.stdout.readline().strip()
    process.kill()
    process.communicate()


def test_who_is_dead(holder: tuple[subprocess.Popen[str], str]) -> None:
    process, name = holder
    assert not is_dead(this_process())
    assert not is_dead(name)
    process.send_signal(signal.SIGSTOP)
    assert not is_dead(name), "a stopped process may wake"
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_dead(name), "a zombie sends nothing"
    process.wait()
    assert is_dead(name)
    machine, _, started, run = name.split("/")
    assert is_dead(f"{machine}/{os.getpid()}/{started}/{run}"), "the number was given again"
    assert not is_dead(f"elsewhere/{process.pid}/{started}/{run}")
    assert not is_dead("host/1/x")


async def test_a_dead_holders_lease_is_taken_at_once(
    database_url: str, pool: asyncpg.Pool[asyncpg.Record], holder: tuple[subprocess.Popen[str], str]
) -> None:
    process, name = holder

    async def connect() -> asyncpg.Connection[asyncpg.Record]:
        return await asyncpg.connect(database_url)

    watch = LeaseWatch(pool, "venue:x")
    assert not watch.served()
    theirs = Lease(connect, "venue:x", name, 60.0)
    await theirs.acquire()
    watch.start()
    ours = Lease(connect, "venue:x", this_process(), 60.0)
    waiting = asyncio.create_task(ours.acquire())
    async with asyncio.timeout(10):
        while not (ours.served() and watch.served()):
            await asyncio.sleep(0.01)
    assert not ours.valid()
    process.kill()
    process.wait()
    async with asyncio.timeout(50):
        await waiting
    assert ours.valid()
    assert ours.epoch == theirs.epoch + 1
    await ours.release()
    async with asyncio.timeout(10):
        while watch.served():
            await asyncio.sleep(0.01)
    await watch.stop()
    await theirs.release()
