"""What goes wrong, each kind a function; which comes when follows from the seed alone.

A fault returns once it is over (what was paused goes on, what was silent speaks again) or has done
all it does (what was killed is being started again by its keeper).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from .proxy import AtCommit
from .world import World

BEHIND_PROXY = 1
"""The API process whose database connections go through the proxy."""
COMMIT_TIMEOUT_S = 5.0
STOP_TIMEOUT_S = 60.0
FOR_GOOD = 0.3
"""How often a connection that fell silent never speaks again."""
FIRST: tuple[str, ...] = ("kill_api", "kill_postgres")
SILENT_FOR_S = 20.0
"""When the network itself gives such a connection up; by then its client must long have."""


class Missed(Exception):
    """There was nothing to break: the fault did not happen and does not count."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of trouble.

    Attributes:
        inflict: Does it.
        hits: Indices of the API processes that it may keep from acknowledging anything.
        lingers: What it hits goes on for a while: recovery counts from when that is over.
        trading: It hits the venue: recovery is the next execution of a new order.
    """

    kind: str
    inflict: Callable[[World, random.Random], Awaitable[None]]
    hits: tuple[int, ...] = (0, 1)
    trading: bool = False
    lingers: bool = False


def schedule(kinds: list[str], seed: int) -> Iterator[str]:
    """Kinds for ever: each round has every kind once, in an order of its own.

    The first round begins with `FIRST`, so that a short run kills something, too.
    """
    rng = random.Random(f"schedule:{seed}")
    first = FIRST
    while True:
        order = list(kinds)
        rng.shuffle(order)
        order.sort(key=lambda kind: first.index(kind) if kind in first else len(first))
        first = ()
        yield from order


def _span_s(rng: random.Random) -> float:
    """Mostly shorter than any timeout, sometimes longer than most of them."""
    return rng.uniform(0.2, 1.2) if rng.random() < 0.75 else rng.uniform(3.0, 5.5)


def _kill(pid: int | None, number: signal.Signals = signal.SIGKILL) -> None:
    if pid is None:
        raise Missed("no such process")
    try:
        os.kill(pid, number)
    except ProcessLookupError as error:
        raise Missed("it has just ended") from error


async def _kill_api(world: World, rng: random.Random) -> None:
    _kill(rng.choice(world.programs).pid)


async def _restart_api(world: World, rng: random.Random) -> None:
    """An orderly stop and a new start, as when a new version is rolled out."""
    program = rng.choice(world.programs)
    pid = program.pid
    _kill(pid, signal.SIGTERM)
    async with asyncio.timeout(STOP_TIMEOUT_S):
        while program.pid == pid:
            await asyncio.sleep(0.02)


async def _kill_exchange(world: World, _rng: random.Random) -> None:
    _kill(world.exchange())


async def _kill_postgres(world: World, _rng: random.Random) -> None:
    _kill(next(iter(world.postgres()), None))


async def _kill_backend(world: World, rng: random.Random) -> None:
    """The postmaster restarts all of its children after this: a crash of another shape."""
    pids = await _backends(world, "tbot committer")
    _kill(rng.choice(pids) if pids else None)


async def _kill_everything(world: World, _rng: random.Random) -> None:
    """As a power cut would, but for the disk's cache."""
    for program in world.programs:
        program.signal(signal.SIGKILL)
    for pid in world.postgres():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def _backends(world: World, *names: str) -> list[int]:
    async with _session(world) as connection:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = ANY($1)"
            " AND pid <> pg_backend_pid()",
            list(names),
        )
    return [row["pid"] for row in rows]


@contextlib.asynccontextmanager
async def _session(world: World) -> Any:
    try:
        connection = await world.connect()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
        raise Missed(f"no database: {error!r}") from error
    try:
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Missed(f"the database went away: {error!r}") from error
    finally:
        connection.terminate()


async def _terminate(world: World, *names: str) -> None:
    async with _session(world) as connection:
        ended = await connection.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = ANY($1) AND pid <> pg_backend_pid()",
            list(names),
        )
    if not ended:
        raise Missed("no such session")


async def _terminate_committers(world: World, _rng: random.Random) -> None:
    await _terminate(world, "tbot committer")


async def _terminate_pools(world: World, _rng: random.Random) -> None:
    await _terminate(world, "tbot", "tbot listener")


async def _drop(world: World, _rng: random.Random) -> None:
    if not world.proxy.drop():
        raise Missed("no connection")


async def _delay(world: World, rng: random.Random) -> None:
    world.proxy.delay_s = rng.uniform(0.02, 0.3)
    try:
        await asyncio.sleep(_span_s(rng))
    finally:
        world.proxy.delay_s = 0.0


def _silence(up: bool, down: bool) -> Callable[[World, random.Random], Awaitable[None]]:
    async def inflict(world: World, rng: random.Random) -> None:
        span_s, for_good = _span_s(rng), rng.random() < FOR_GOOD
        resume = world.proxy.silence(up, down, for_good_s=SILENT_FOR_S if for_good else None)
        try:
            await asyncio.sleep(span_s)
        finally:
            if not for_good:
                resume()

    return inflict


def _at_commit(*ways: AtCommit) -> Callable[[World, random.Random], Awaitable[None]]:
    async def inflict(world: World, rng: random.Random) -> None:
        done = world.proxy.arm(rng.choice(ways))
        span_s = _span_s(rng)
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await done
            if set(ways) & {AtCommit.SILENT_BEFORE, AtCommit.SILENT_AFTER}:
                await asyncio.sleep(span_s)
        except TimeoutError as error:
            raise Missed("no COMMIT came along") from error
        finally:
            world.proxy.disarm()
            world.proxy.resume()

    return inflict


async def _pause(pids: list[int], span_s: float) -> None:
    stopped = []
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                stopped.append(pid)
        if not stopped:
            raise Missed("no such process")
        await asyncio.sleep(span_s)
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def _pause_api(world: World, rng: random.Random) -> None:
    pid = rng.choice(world.programs).pid
    await _pause([] if pid is None else [pid], _span_s(rng))


async def _pause_exchange(world: World, rng: random.Random) -> None:
    pid = world.exchange()
    await _pause([] if pid is None else [pid], _span_s(rng))


async def _pause_postgres(world: World, rng: random.Random) -> None:
    """The whole server, or one committer's session with all its locks."""
    if rng.random() < 0.5:
        await _pause(world.postgres(), _span_s(rng))
    else:
        await _pause((await _backends(world, "tbot committer"))[:1], _span_s(rng))


async def _lock_stream(world: World, rng: random.Random) -> None:
    """Somebody's open transaction sits on an account's row."""
    async with _session(world) as connection:
        accounts = await connection.fetch("SELECT account_id FROM streams ORDER BY 1")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "SELECT 1 FROM streams WHERE account_id = $1 FOR UPDATE",
            rng.choice(accounts)["account_id"],
        )
        await asyncio.sleep(_span_s(rng))
        await transaction.rollback()


_ALL = [
    Fault("kill_api", _kill_api),
    Fault("restart_api", _restart_api, lingers=True),
    Fault("kill_exchange", _kill_exchange, trading=True),
    Fault("kill_postgres", _kill_postgres),
    Fault("kill_backend", _kill_backend),
    Fault("kill_everything", _kill_everything),
    Fault("terminate_committer", _terminate_committers),
    Fault("terminate_pool", _terminate_pools),
    Fault("drop", _drop, (BEHIND_PROXY,)),
    Fault("delay", _delay, (BEHIND_PROXY,)),
    Fault("half_open_up", _silence(up=True, down=False), (BEHIND_PROXY,)),
    Fault("half_open_down", _silence(up=False, down=True), (BEHIND_PROXY,)),
    Fault(
        "cut_before_commit", _at_commit(AtCommit.CUT_BEFORE, AtCommit.CUT_WITHIN), (BEHIND_PROXY,)
    ),
    Fault("cut_after_commit", _at_commit(AtCommit.CUT_AFTER), (BEHIND_PROXY,)),
    Fault("silent_before_commit", _at_commit(AtCommit.SILENT_BEFORE), (BEHIND_PROXY,)),
    Fault("silent_after_commit", _at_commit(AtCommit.SILENT_AFTER), (BEHIND_PROXY,)),
    Fault("pause_api", _pause_api),
    Fault("pause_postgres", _pause_postgres),
    Fault("pause_exchange", _pause_exchange, trading=True),
    Fault("lock_stream", _lock_stream),
]
FAULTS = {fault.kind: fault for fault in _ALL}
