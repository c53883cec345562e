"""Who uses the write path in a simulation: processes that come and go, clients that lose patience.

Every call of `commit` is an `Attempt`, with what the caller was told and when. The oracle sees
nothing of the program but these, the entries that listeners got, and the tables.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tbot.core.errors import OutcomeUnknown, Unavailable
from tbot.core.refusals import Refused
from tbot.journal.commands import Accepted, Committed, Priority
from tbot.journal.once import Kept, Once, contents_of, key_of

from .database import FakeConnection
from .toy import Move, render

if TYPE_CHECKING:
    from tbot.journal.committer import Committer

    from .world import World

USER = UUID(int=7)
_SECRET = b"s" * 32
TRIES_MAX = 6


@dataclass(slots=True)
class Attempt:
    """One call of `commit`.

    Attributes:
        seen: Per account, the highest sequence that anybody had been told of when it began.
        outcome: What was answered: a value, or the exception; None if the caller never learned.
    """

    number: int
    move: Move
    once: Once | None
    process: str
    begun_s: float
    seen: dict[UUID, int]
    outcome: Any = None
    ended_s: float | None = None
    note: str = ""

    @property
    def certainly_not(self) -> bool:
        """The caller was told that nothing happened."""
        if self.outcome is None or isinstance(self.outcome, OutcomeUnknown | Accepted | Kept):
            return False
        return isinstance(self.outcome, Exception | Refused)


@dataclass(slots=True)
class Request:
    """What a client wants, however many attempts that takes."""

    kind: str
    accounts: tuple[UUID, ...]
    amount: Decimal
    key: str | None
    once: str | None
    priority: Priority
    heed: bool
    slow: bool


@dataclass(slots=True)
class Process:
    """A committer, its connections, and what its listener heard."""

    name: str
    committer: Committer
    connections: list[FakeConnection] = field(default_factory=list)
    attempts: dict[asyncio.Task[Any], Attempt] = field(default_factory=dict)
    heard: list[Committed] = field(default_factory=list)
    ready: bool = False
    ended: bool = False

    def kill(self) -> None:
        """`kill -9`: nothing of it runs on, its callers hear nothing, its sockets close."""
        self.ended = True
        self.ready = False
        for connection in self.connections:
            connection.drop()
        run = self.committer._run_task
        if run is not None:
            run.cancel()
        for task, attempt in list(self.attempts.items()):
            attempt.note = "killed"
            task.cancel()


async def attempt(world: World, process: Process, request: Request, patience: str) -> Attempt:
    """Call `commit` once; however it ends, it is written down."""
    move = Move(
        world.new_id(),
        request.kind,
        request.accounts,
        request.amount,
        request.key,
        request.priority,
        request.heed,
        world.burn if request.slow else None,
    )
    once = None
    if request.once is not None:
        content = f"{request.kind} {request.accounts} {request.amount}".encode()
        once = Once(key_of(USER, request.once), contents_of(_SECRET)(content), render)
    seen = {account: world.told.get(account, 0) for account in request.accounts}
    made = Attempt(
        len(world.attempts), move, once, process.name, world.loop.now_s, seen, note="open"
    )
    world.attempts.append(made)
    if world.trace is not None:
        world.trace(f"a{made.number} -> {process.name}: {describe(move)} once={request.once}")
    if process.ended:  # it was there a moment ago
        made.note = "killed"
        return made
    task = world.loop.create_task(_commit(process.committer, move, once, made.number % 3 == 0))
    process.attempts[task] = made
    task.add_done_callback(lambda task: process.attempts.pop(task, None) and None)
    if patience == "step":
        world.loop.at_step(world.loop.steps + world.rng.randint(1, 300), task.cancel)
    elif patience == "time":
        world.loop.call_later(world.rng.choice((0.0005, 0.003, 0.1, 1.0)), task.cancel)
    try:
        made.outcome = await task
        made.note = "answered"
    except asyncio.CancelledError:
        if made.note != "killed":
            made.note = "cancelled"
    except Exception as error:
        made.outcome = error
        made.note = "answered"
    made.ended_s = world.loop.now_s
    world.learned(made)
    if world.trace is not None:
        world.trace(f"a{made.number} {made.note}: {made.outcome!r}"[:200])
    return made


async def _commit(committer: Committer, move: Move, once: Once | None, bulk: bool) -> Any:
    """Either way in; a bulk of one tells a fault as it tells any other outcome."""
    if not bulk or move.priority is Priority.REPORT:
        return await committer.commit(move, once)
    (outcome,) = await committer.commit_all([(move, once)])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def describe(move: Move) -> str:
    accounts = ",".join(str(account.int & 0xFF) for account in move.accounts)
    return f"{move.kind} {accounts} {move.amount} key={move.key} ({str(move.id)[-4:]})"


def settled(made: Attempt) -> bool:
    """Whether the client knows what became of its request."""
    return made.outcome is not None and not isinstance(made.outcome, OutcomeUnknown | Unavailable)


class Client:
    """Makes requests one after the other, and repeats them under the same key while in doubt."""

    def __init__(self, world: World, name: str, requests: list[Request]) -> None:
        self.world = world
        self.name = name
        self.requests = requests
        self.doubtful: list[Request] = []

    async def run(self) -> None:
        rng = self.world.rng
        if rng.random() < self.world.bursts:
            await asyncio.gather(*(self._one(request) for request in self.requests))
            return
        for request in self.requests:
            if rng.random() < 0.5:
                await asyncio.sleep(rng.expovariate(1 / self.world.pause_s))
            await self._one(request)

    async def _one(self, request: Request) -> None:
        if not await self._pursue(request, TRIES_MAX):
            self.doubtful.append(request)

    async def insist(self) -> None:
        """When all is calm again: learn what became of everything that has a key."""
        for request in self.doubtful:
            if request.once is None and request.key is None:
                continue
            if not await self._pursue(request, 60, patient=True):
                self.world.fault(f"{self.name} gets no answer to {request} though all is calm")

    async def _pursue(self, request: Request, tries: int, *, patient: bool = False) -> bool:
        world, rng = self.world, self.world.rng
        keyed = request.once is not None or request.key is not None
        for _ in range(tries):
            patience = "" if patient else rng.choice(world.patiences)
            made = [await world.pick()]
            asked = [request]
            while keyed and not patient and len(made) < 4 and rng.random() < world.twins:
                made.append(await world.pick())
                asked.append(self._other(request) if rng.random() < 0.2 else request)
            attempts = await asyncio.gather(
                *(attempt(world, p, r, patience) for p, r in zip(made, asked, strict=True))
            )
            if settled(attempts[0]):
                if keyed and rng.random() < world.repeats:
                    again = self._other(request) if rng.random() < 0.2 else request
                    await attempt(world, await world.pick(), again, "")
                return True
            if not keyed:
                return False  # repeating it could do it twice: the client must not
            await asyncio.sleep(rng.uniform(0.0, 0.4) if patient or rng.random() < 0.5 else 0)
        return False

    def _other(self, request: Request) -> Request:
        """Other content under the same idempotency key."""
        if request.once is None or request.kind == "open":
            return request
        accounts = request.accounts
        others = [account for account in self.world.accounts if account not in accounts]
        if others and request.amount % 2:  # for another account: it waits for another lock
            accounts = (others[0], *accounts[1:])
        return replace(request, accounts=accounts, amount=request.amount + 1, key=None)
