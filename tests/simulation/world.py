"""A whole simulation: one seed in, what happened and what was wrong out.

Entry points: `simulate`, `World`.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final
from uuid import UUID

import structlog

from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.errors import JournalUnavailable
from tbot.core.settings import CommitterSettings
from tbot.journal import committer as committing
from tbot.journal.commands import Accepted, Priority
from tbot.journal.committer import Committer
from tbot.journal.projections import Projections
from tbot.ledger.store import LedgerProjection

from . import oracle, toy
from .clients import Attempt, Client, Process, Request
from .database import Server
from .faults import Faults
from .loop import Stuck, VirtualLoop

STEPS_MAX: Final = 400_000
TIME_S_MAX: Final = 900.0
_EPOCH: Final = datetime(2024, 8, 8, tzinfo=UTC)


@dataclass(slots=True)
class Outcome:
    """What a seed showed."""

    seed: int
    faults: list[str]
    commands: int = 0
    struck: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    virtual_s: float = 0.0
    entries: int = 0
    unknown: int = 0


@dataclass(slots=True)
class Program:
    """What is simulated: the real write path, or one with a bug planted in it."""

    committer: type[Committer] = Committer
    connection: Callable[[Any], Any] | None = None


class World:
    """Everything of one seed."""

    def __init__(
        self, seed: int, program: Program, trace: Callable[[str], None] | None = None
    ) -> None:
        self.seed = seed
        self.program = program
        self.rng = rng = random.Random(seed)
        self.loop = VirtualLoop(rng, shuffled=rng.random() < 0.5)
        self.faults = Faults.draw(rng)
        self.trace = None if trace is None else self._traced(trace)
        self.settings = CommitterSettings(
            queue_max=rng.choice((3, 8, 64)),
            queue_reserved=rng.choice((0, 1, 2)),
            queue_age_s_max=rng.choice((0.05, 0.5, 2.0)),
            batch_max=rng.choice((1, 3, 16, 16)),
            batch_time_s_max=0.05,
            transaction_timeout_s=rng.choice((1.0, 10.0)),
            idle_timeout_s=1.0,
            resolve_timeout_s=rng.choice((0.3, 2.0, 10.0)),
            accounts_cached_max=rng.choice((1, 2, 100)),
        )
        self.server = Server(
            self.loop,
            rng,
            self.faults,
            self.trace,
            transaction_timeout_s=self.settings.transaction_timeout_s,
            idle_timeout_s=self.settings.idle_timeout_s,
        )
        for table in toy.tables():
            self.server.add(table)
        self.accounts = [UUID(int=rng.getrandbits(112) << 8 | n) for n in range(rng.randint(1, 4))]
        self.processes: list[Process] = []
        self.attempts: list[Attempt] = []
        self.told: dict[UUID, int] = {}
        self.found: list[str] = []
        self.pause_s = rng.choice((0.0001, 0.002, 0.05, 0.3))
        self.repeats = rng.choice((0.0, 0.2))
        self.twins = rng.choice((0.0, 0.1, 0.5))
        self.bursts = rng.choice((0.0, 0.3, 1.0))
        self.rare = rng.choice((0.0, 0.1))
        self.slow = rng.choice((0.0, 0.0, 0.3))
        self.heeding = rng.choice((0.2, 0.2, 0.2, 1.0))
        self.patiences = rng.choice((("",), ("", "time"), ("", "step"), ("", "step", "time")))
        self.ledger = rng.random() < 0.2
        self.wall_skew_s = 0.0
        self._stopping: list[asyncio.Task[None]] = []
        self._names = 0
        self._calm = False

    def _traced(self, trace: Callable[[str], None]) -> Callable[[str], None]:
        return lambda text: trace(f"{self.loop.now_s:10.6f} {self.loop.steps:6d}  {text}")

    # What the others use.

    def new_id(self) -> UUID:
        return UUID(int=self.rng.getrandbits(128))

    def burn(self) -> None:
        self.loop.burn(0.03)

    def fault(self, text: str) -> None:
        self.found.append(text)

    def learned(self, made: Attempt) -> None:
        """Somebody knows now that a stream has got so far."""
        if isinstance(made.outcome, Accepted):
            for entry in made.outcome.entries:
                account = entry.account_id
                self.told[account] = max(self.told.get(account, 0), entry.seq)

    async def pick(self) -> Process:
        """A process that takes commands."""
        while True:
            ready = [process for process in self.processes if process.ready]
            if ready:
                return self.rng.choice(ready)
            await asyncio.sleep(0.05)

    # Processes.

    async def start_process(self) -> Process:
        self._names += 1
        name = f"p{self._names}"

        async def connect() -> Any:
            connection = await self.server.connect(name)
            process.connections.append(connection)
            wrap = self.program.connection
            return connection if wrap is None else wrap(connection)

        kept = [toy.ToyProjection(), *([LedgerProjection()] if self.ledger else [])]
        projections = Projections(*kept)
        committer = self.program.committer(connect, projections, self.settings, Bus())
        process = Process(name, committer)
        committer.listen(process.heard.extend)
        self.processes.append(process)
        while not process.ended:
            try:
                await committer.start()
            except JournalUnavailable:
                await asyncio.sleep(0.2)
            else:
                process.ready = not process.ended
                break
        return process

    def _restart(self, process: Process) -> None:
        self._stopping.append(self.loop.create_task(self._restarted(process)))

    async def _restarted(self, process: Process) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 0.5))
        self.processes.remove(process)
        oracle.check_heard(self, process)
        await self.start_process()

    def _kill(self) -> None:
        process = self._ready_process()
        if process is not None:
            self.faults.other("killed")
            self.server.say(f"{process.name}: kill -9")
            process.kill()
            self._restart(process)

    def _stop(self) -> None:
        process = self._ready_process()
        if process is not None:
            self.faults.other("stopped")
            self.server.say(f"{process.name}: told to stop")
            process.ready = False
            self._stopping.append(self.loop.create_task(self._stopped(process)))

    async def _stopped(self, process: Process) -> None:
        await process.committer.stop(timeout_s=self.rng.choice((0.0, 0.001, 0.1, 10.0)))
        process.ended = True
        await self._restarted(process)

    def _ready_process(self) -> Process | None:
        ready = [process for process in self.processes if process.ready]
        return self.rng.choice(ready) if ready else None

    # Other trouble.

    def _terminate(self) -> None:
        process = self._ready_process()
        if process is not None:
            self.server.terminate_backends(process.name)

    def _skew(self) -> None:
        self.faults.other("clock_step")
        self.wall_skew_s += self.rng.uniform(-30, 10)

    def _switch(self) -> None:
        self.faults.other("switch")
        self._stopping.append(self.loop.create_task(self._switched()))

    async def _switched(self) -> None:
        connection = await self._admin()
        if connection is None:
            return
        halted = self.rng.random() < 0.5
        try:
            await connection.execute("BEGIN")
            await connection.execute(
                "UPDATE switches SET halted = $2, reason = $3 WHERE name = $1",
                *(toy.HALT, halted, "x"),
            )
            await asyncio.sleep(self.rng.choice((0.0, 0.01, 0.5)))
            await connection.execute("COMMIT")
        except Exception as error:
            self.server.say(f"admin: {error!r}")
        connection.terminate()

    def _intrude(self) -> None:
        self.faults.other("intruder")
        self._stopping.append(self.loop.create_task(self._intruded()))

    async def _intruded(self) -> None:
        """Somebody else's transaction keeps a stream's row locked for a while."""
        connection = await self._admin()
        if connection is None:
            return
        try:
            await connection.execute("BEGIN")
            await connection.execute(
                "SELECT account_id FROM streams WHERE account_id = $1 FOR UPDATE",
                self.rng.choice(self.accounts),
            )
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
        except Exception as error:
            self.server.say(f"admin: {error!r}")
        connection.terminate()

    async def _admin(self) -> Any:
        try:
            return await self.server.connect("admin")
        except Exception:
            return None

    def _schedule(self) -> None:
        """Trouble that strikes at a time, not at a statement."""
        rng = self.rng
        horizon_s = rng.choice((0.01, 0.3, 3.0))
        events: list[Callable[[], None]] = [
            self._kill,
            self._stop,
            self._terminate,
            self._skew,
            self._switch,
            self._intrude,
            self.server.crash,
            lambda: self.server.refuse(rng.uniform(0.05, 4.0)),
        ]
        if self.heeding == 1.0:
            for _ in range(8):
                self.loop.at_step(rng.randint(50, 1500), partial(self._unless_calm, self._switch))
        for _ in range(rng.choice((0, 0, 1, 2, 4))):
            event = partial(self._unless_calm, rng.choice(events))
            if rng.random() < 0.5:
                self.loop.at_step(rng.randint(50, 4000), event)
            else:
                self.loop.call_later(rng.uniform(0.0, horizon_s), event)

    def _unless_calm(self, event: Callable[[], None]) -> None:
        if not self._calm:
            event()

    # The run.

    async def _main(self) -> None:
        rng = self.rng
        await self._prepare()
        await asyncio.gather(*(self.start_process() for _ in range(rng.randint(1, 3))))
        self._schedule()
        clients = [
            Client(self, f"c{n}", self._requests(rng.randint(2, 9)))
            for n in range(rng.randint(1, 6))
        ]
        if rng.random() < 0.8:
            await Client(self, "founder", [self._opening(a) for a in self.accounts]).run()
        await asyncio.gather(*(client.run() for client in clients))
        self.faults.left = 0
        self._calm = True
        await self._rest()
        await asyncio.gather(*(client.insist() for client in clients))
        await self._rest()
        for process in self.processes:
            oracle.check_cache(self, process)
        for process in self.processes:
            await process.committer.stop()
            process.ended = True
            oracle.check_heard(self, process)
        for _ in range(200):
            if not self.server.backends:
                break
            await asyncio.sleep(0.1)

    async def _rest(self) -> None:
        while self._stopping:
            await self._stopping.pop()

    async def _prepare(self) -> None:
        table = self.server.tables["switches"]
        values = {"name": toy.HALT, "halted": False, "reason": "", "at": _EPOCH}
        row = tuple(values.get(name) for name in table.columns)
        table.rows[table.key_of(row)] = [(0, row)]

    def _opening(self, account: UUID) -> Request:
        key = f"k{account.int & 0xFF}"
        once = f"o{account.int & 0xFF}" if self.rng.random() < 0.5 else None
        kind, amount = "open", Decimal(self.rng.choice((0, 20)))
        return Request(kind, (account,), amount, key, once, Priority.NEW, heed=False, slow=False)

    def _requests(self, count: int) -> list[Request]:
        rng = self.rng
        kinds = (*["put"] * 5, *["take"] * 4, *["spread"] * 4, "open", "look")
        rare = ("poison", "poison", "raise", "unknown")
        requests = []
        for number in range(count):
            kind = rng.choice(rare) if rng.random() < self.rare else rng.choice(kinds)
            if number == 0 and rng.random() < 0.3:
                kind = "open"
            accounts = rng.sample(self.accounts, len(self.accounts))
            many = min(len(accounts), rng.choice((2, 2, 3))) if kind == "spread" else 1
            if kind == "spread" and many == 1:
                kind = "take"
            if kind == "unknown":
                kind, accounts = "put", [UUID(int=rng.getrandbits(112) << 8 | 0xEE)]
            way = rng.random()
            key = f"k{rng.getrandbits(32):08x}" if way < 0.4 or kind == "open" else None
            once = f"o{rng.getrandbits(32):08x}" if 0.3 < way < 0.8 else None
            if kind in ("poison", "raise"):
                key = None
            requests.append(
                Request(
                    kind,
                    tuple(accounts[:many]),
                    Decimal(rng.randint(0 if kind == "open" else 1, 9)),
                    key,
                    once,
                    rng.choice((Priority.NEW, Priority.NEW, Priority.CANCEL, Priority.REPORT)),
                    rng.random() < self.heeding,
                    rng.random() < self.slow,
                )
            )
        return requests

    def run(self) -> Outcome:
        """Simulate, then judge."""
        with self._virtual():
            try:
                self.loop.run(self._main(), steps_max=STEPS_MAX, time_s_max=TIME_S_MAX)
            except Stuck as stuck:
                waiting = [a.number for a in self.attempts if a.note == "open"]
                self.fault(f"somebody waits for ever ({stuck}); open attempts {waiting}")
                self.loop.abandon()
            else:
                oracle.check(self)
        self.found += [f"the loop was told: {text}" for text in self.loop.complaints]
        return Outcome(
            self.seed,
            list(dict.fromkeys(self.found)),
            len(self.attempts),
            dict(self.faults.struck),
            self.loop.steps,
            self.loop.now_s,
            sum(1 for _ in self.server.tables["journal"].latest()),
            sum(a.outcome is None or not a.certainly_not for a in self.attempts),
        )

    @contextmanager
    def _virtual(self) -> Iterator[None]:
        """Clocks and chance of the program are the world's own."""
        before = clock.boot_s, clock.boot_ns, clock.utc_now
        whole = committing._BATCH_WHOLE
        state = random.getstate()
        random.seed(self.seed)
        # Batches are small here: in every other world two commands already make a large one, whose
        # statement is made while the one before it is still being written.
        committing._BATCH_WHOLE = whole if self.seed % 2 else 2  # type: ignore[misc]
        clock.boot_s = lambda: 1000.0 + self.loop.now_s
        clock.boot_ns = lambda: int((1000.0 + self.loop.now_s) * 1e9)
        clock.utc_now = lambda: _EPOCH + timedelta(seconds=self.loop.now_s + self.wall_skew_s)
        try:
            yield
        finally:
            clock.boot_s, clock.boot_ns, clock.utc_now = before
            committing._BATCH_WHOLE = whole  # type: ignore[misc]
            random.setstate(state)


def simulate(
    seed: int, program: Program | None = None, trace: Callable[[str], None] | None = None
) -> Outcome:
    """Run one seed.

    Args:
        trace: Is called with every line of what happens; without it nothing is written down.
    """
    return World(seed, program or Program(), trace).run()


@contextmanager
def hushed() -> Iterator[None]:
    """Let the program's own log be still: a simulation fails on purpose all the time."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
