"""A Postgres that exists only in virtual time, with the connections that asyncpg would give.

A statement runs in its *backend*, which does not notice that its client has gone until it is idle,
and which finishes a COMMIT that it has begun: so a COMMIT may take effect long after the client
lost the connection, and the rows stay locked until then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import asyncpg

from .expressions import Record, Rows, Running
from .faults import FATES, NORMAL, ROLLED_BACK, Fate, Faults
from .loop import Handle, VirtualLoop
from .statements import Calls, Control, Plan, Refuted, UniqueViolation, With, plan
from .tables import DeadlockDetected, Locks, Place, Table, Transaction, new_tables

LATENCY_S: Final = (0.00005, 0.0002)
RUN_S_MAX: Final = 0.0005
TCP_USER_TIMEOUT_S: Final = 10.0
_LOST: Final = "connection was closed in the middle of operation"


class Failed(Exception):
    """A statement failed as Postgres has it."""

    def __init__(
        self, sqlstate: str, message: str = "", *, fatal: bool = False, constraint: str = ""
    ) -> None:
        super().__init__(f"{sqlstate} {message}")
        self.constraint = constraint
        self.sqlstate = sqlstate
        self.fatal = fatal

    def for_client(self) -> asyncpg.PostgresError:
        fields = {"S": "FATAL" if self.fatal else "ERROR", "C": self.sqlstate, "M": str(self)}
        if self.constraint:
            fields["n"] = self.constraint
        error: asyncpg.PostgresError = asyncpg.PostgresError.new(fields)
        return error


def lost(rng: random.Random) -> Exception:
    """What asyncpg raises when the other end is gone; which one depends on the moment."""
    return rng.choice(
        (
            asyncpg.ConnectionDoesNotExistError(_LOST),
            ConnectionResetError("connection reset by peer"),
            asyncpg.InternalClientError("got result for unknown protocol state 3"),
        )
    )


class Server:
    """Tables, locks, backends, and whether anybody is let in.

    Attributes:
        order: Every transaction that took effect, as the places that it wrote.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        rng: random.Random,
        faults: Faults,
        trace: Callable[[str], None] | None = None,
        *,
        transaction_timeout_s: float = 10.0,
        idle_timeout_s: float = 1.0,
    ) -> None:
        self.loop = loop
        self.rng = rng
        self.faults = faults
        self.trace = trace
        self.transaction_timeout_s = transaction_timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.tables: dict[str, Table] = new_tables()
        self.commits = 0
        self.locks = Locks(loop, rng)
        self.advisory: dict[tuple[Any, ...], Backend] = {}
        self.backends: list[Backend] = []
        self.order: list[tuple[str, list[Place]]] = []
        self._numbers = 0
        self._refusing_until_s = 0.0
        self._refusal = 0

    def add(self, table: Table) -> None:
        self.tables[table.name] = table

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace(text)

    def latency_s(self) -> float:
        low, high = LATENCY_S
        return low + (high - low) * self.rng.random()

    async def connect(self, owner: str) -> FakeConnection:
        """A connection, or what asyncpg raises instead."""
        await asyncio.sleep(self.latency_s() * 4)
        if self.loop.now_s < self._refusing_until_s:
            self.say(f"{owner}: refused")
            if self._refusal == 0:
                raise ConnectionRefusedError("connection refused")
            if self._refusal == 1:
                raise Failed("57P03", "the database system is starting up", fatal=True).for_client()
            if self._refusal == 2:
                raise Failed("53300", "too many clients already", fatal=True).for_client()
            await asyncio.sleep(5.0)
            raise TimeoutError
        self._numbers += 1
        backend = Backend(self, f"{owner}#{self._numbers}")
        self.backends.append(backend)
        self.say(f"{backend.name}: connected")
        return FakeConnection(self, backend)

    def refuse(self, seconds: float) -> None:
        """Let nobody in for a while."""
        self.faults.other("refused")
        self._refusal = self.rng.randrange(4)
        self._refusing_until_s = max(self._refusing_until_s, self.loop.now_s + seconds)
        self.say(f"server: lets nobody in for {seconds:.2f} s")

    def terminate_backends(self, owner: str) -> None:
        """An administrator's `pg_terminate_backend` of somebody's sessions."""
        for backend in list(self.backends):
            if backend.name.startswith(f"{owner}#"):
                self.faults.other("terminated")
                backend.strike(Failed("57P01", "terminating connection", fatal=True))

    def crash(self) -> None:
        """`kill -9`: what is committed stays; a COMMIT under way goes either way."""
        self.faults.other("crash")
        self.say("server: crashes")
        for backend in list(self.backends):
            backend.crash()
        self.refuse(self.rng.uniform(0.05, 1.5))


class Backend:
    """One session on the server."""

    def __init__(self, server: Server, name: str) -> None:
        self.server = server
        self.name = name
        self.waits_for: tuple[Any, ...] = ()
        self.client: FakeConnection | None = None
        self.alive = True
        self._transaction: Transaction | None = None
        self._failed = False
        self._task: asyncio.Task[None] | None = None
        self._committing = False
        self._gone = False
        self._idle: Handle | None = None
        self._idle_since_s = 0.0
        self._limit: Handle | None = None

    def commits(self, one: Plan) -> bool:
        """Whether a statement ends with something that lasts, one way or the other."""
        if isinstance(one, Control):
            return one.word == "COMMIT"
        return self._transaction is None and isinstance(one, With | Calls)

    async def end_other(self, name: str, patience_ms: int) -> bool:
        server = self.server
        until_s = server.loop.now_s + patience_ms / 1000
        while True:
            others = [one for one in server.backends if one.name == name]
            for other in others:
                other.strike(Failed("57P01", "terminating connection", fatal=True))
            if not any(other.alive for other in others):
                return True
            if server.loop.now_s >= until_s:
                return False
            await asyncio.sleep(0.01)

    def try_advisory(self, key: tuple[Any, ...]) -> bool:
        holder = self.server.advisory.setdefault(key, self)
        return holder is self

    # From the network.

    def receive(self, sql: str, args: Sequence[Any], fate: Fate, token: object) -> None:
        """A statement has arrived."""
        if not self.alive or (self._gone and fate.lost != "late"):
            return
        serving = self._serve(sql, args, fate, token)
        task = asyncio.Task(serving, loop=self.server.loop, eager_start=True)
        self._task = None if task.done() else task

    def hang_up(self) -> None:
        """The client's end of the connection is gone; noticed now or after the statement."""
        self._gone = True
        if self.alive and self._task is None:
            self._end("client gone")

    # Statements.

    async def _serve(self, sql: str, args: Sequence[Any], fate: Fate, token: object) -> None:
        try:
            if fate.slow:
                await asyncio.sleep(self.server.rng.uniform(0.05, 3.0))
            if fate.sqlstate and not fate.after:
                raise Failed(fate.sqlstate, "injected", fatal=fate.fatal)
            answer: Rows | Failed = await self._run(plan(sql), args, fate)
            if fate.after:
                raise Failed(fate.sqlstate, "injected after the fact", fatal=True)
        except Failed as failed:
            answer = failed
        except DeadlockDetected:
            answer = Failed("40P01", "deadlock detected")
        except Refuted as refuted:
            answer = Failed("40001", str(refuted))
        except UniqueViolation as taken:
            answer = Failed("23505", f"duplicate key: {taken}", constraint=taken.constraint)
        if isinstance(answer, Failed) and self._transaction is not None:
            self._failed = True  # until it is told to roll back; its locks are gone already
            self._transaction.end()
        self._task = None
        self._answer(answer, fate, token)

    def _answer(self, answer: Rows | Failed, fate: Fate, token: object) -> None:
        server = self.server
        ending = isinstance(answer, Failed) and answer.fatal
        if self.client is not None and fate.lost not in ("answer", "late"):
            server.loop.call_later(server.latency_s(), self.client.answered, answer, token)
        elif fate.lost == "answer" and self.client is not None and not fate.silent:
            self.client.drop()
        if ending or self._gone:
            self._end("fatal" if ending else "client gone")
        elif self._transaction is not None:
            self._idle_since_s = server.loop.now_s
            if self._idle is None:
                self._idle = server.loop.call_later(server.idle_timeout_s, self._look_idle)

    async def _run(self, plans: Sequence[Plan], args: Sequence[Any], fate: Fate) -> Rows:
        answer = Rows()
        for one in plans:
            if isinstance(one, Control):
                answer = await self._control(one.word, fate)
            elif self._failed:
                raise Failed("25P02", "current transaction is aborted")
            else:
                answer = await self._one(one, args, fate)
        return answer

    async def _one(self, one: Plan, args: Sequence[Any], fate: Fate) -> Rows:
        server = self.server
        alone = self._transaction is None
        transaction = self._transaction or Transaction(self, server.tables, server.locks)
        transaction.snapshot = server.commits
        before = dict(transaction.writes)
        try:
            answer = await one.run(Running(self, transaction, args))
        except BaseException:
            transaction.writes = before
            if alone:
                transaction.end()
            raise
        if alone and transaction.writes:
            if fate is ROLLED_BACK:
                transaction.end()
                raise Failed("40001", "rolled back at its end")
            await self._commit(transaction, fate)
        elif alone:
            transaction.end()
        return answer

    async def _control(self, word: str, fate: Fate) -> Rows:
        server = self.server
        if word == "BEGIN":
            if self._failed:
                raise Failed("25P02", "current transaction is aborted")
            if self._transaction is None:
                self._transaction = Transaction(self, server.tables, server.locks)
                self._limit = server.loop.call_later(
                    server.transaction_timeout_s, self.strike, Failed("25P04", "", fatal=True)
                )
            return Rows(tag="BEGIN")
        transaction = self._transaction
        if word == "COMMIT" and transaction is not None and not self._failed:
            if fate is ROLLED_BACK:
                self._forget()
                return Rows(tag="ROLLBACK")
            await self._commit(transaction, fate)
            self._forget()
            return Rows(tag="COMMIT")
        self._forget()
        return Rows(tag="ROLLBACK")

    async def _commit(self, transaction: Transaction, fate: Fate) -> None:
        """Make it last, which takes a while; once it has begun only a crash can stop it."""
        self._committing = True
        low, high = (0.05, 3.0) if fate.lost == "late" or fate.slow else (0.0001, 0.0005)
        self._transaction = transaction
        await asyncio.sleep(self.server.rng.uniform(low, high))
        if not self.alive:
            raise Failed("57P01", "crashed", fatal=True)
        self._committing = False
        self._apply(transaction)
        self._transaction = None
        transaction.end()

    def _apply(self, transaction: Transaction) -> None:
        server = self.server
        if transaction.writes:
            server.commits += 1
            server.order.append((self.name, list(transaction.writes)))
            server.say(f"{self.name}: takes effect as commit {server.commits}")
        transaction.apply(server.commits)

    def _forget(self) -> None:
        """The transaction is over: without effect, unless it was applied."""
        transaction, self._transaction = self._transaction, None
        self._failed = False
        if self._limit is not None:
            self._limit.cancel()
        if transaction is not None:
            transaction.end()

    # Ends.

    def _look_idle(self) -> None:
        """End a transaction in which nothing was said for too long."""
        self._idle = None
        if self._transaction is None or not self.alive:
            return
        server = self.server
        until_s = self._idle_since_s + server.idle_timeout_s
        if self._task is None and server.loop.now_s >= until_s:
            self.strike(Failed("25P03", "idle in transaction", fatal=True))
        else:
            at_s = max(until_s, server.loop.now_s + 0.01)
            self._idle = server.loop.call_at(at_s, self._look_idle)

    def strike(self, failed: Failed) -> None:
        """End the session now; a COMMIT that has begun is finished first."""
        if not self.alive or self._committing:
            return
        if self._task is not None:
            self._task.cancel()
            self._task = None
            if self.client is not None:
                self.server.loop.call_later(
                    self.server.latency_s(), self.client.answered, failed, None
                )
        self._end(failed.sqlstate)

    def crash(self) -> None:
        """The server dies under it."""
        if not self.alive:
            return
        if self._committing and self._transaction is not None and self.server.rng.random() < 0.5:
            self._apply(self._transaction)
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._end("crash")

    def _end(self, why: str) -> None:
        if not self.alive:
            return
        self.alive = False
        server = self.server
        server.say(f"{self.name}: session ends ({why})")
        self._forget()
        server.backends.remove(self)
        for key in [k for k, holder in server.advisory.items() if holder is self]:
            del server.advisory[key]
        if self.client is not None:
            server.loop.call_later(server.latency_s(), self.client.drop)


class FakeConnection:
    """What the committer holds: the calls of `asyncpg.Connection` that it makes."""

    def __init__(self, server: Server, backend: Backend) -> None:
        self._server = server
        self._backend = backend
        self.name = backend.name
        backend.client = self
        self._waiter: asyncio.Future[Any] | None = None
        self._token: object = None
        self._closed = False

    def is_closed(self) -> bool:
        return self._closed

    async def execute(self, sql: str, *args: Any, timeout: float | None = None) -> str:
        return (await self._call(sql, args)).tag

    async def fetch(self, sql: str, *args: Any, timeout: float | None = None) -> list[Record]:
        return (await self._call(sql, args)).records()

    async def fetchrow(self, sql: str, *args: Any) -> Record | None:
        records = (await self._call(sql, args)).records()
        return records[0] if records else None

    async def fetchval(self, sql: str, *args: Any, column: int = 0) -> Any:
        record = await self.fetchrow(sql, *args)
        return None if record is None else record[column]

    def terminate(self) -> None:
        """Let go of the connection at once; the server learns of it in its own time."""
        if not self._closed:
            self._server.say(f"{self._backend.name}: terminated by its client")
            self._close(lost(self._server.rng))

    async def close(self, *, timeout: float | None = None) -> None:
        self.terminate()

    async def _call(self, sql: str, args: Sequence[Any]) -> Rows:
        if self._closed:
            raise asyncpg.InterfaceError("connection is closed")
        if self._waiter is not None:
            raise asyncpg.InterfaceError("another operation is in progress")
        server, loop = self._server, self._server.loop
        commit = any(self._backend.commits(one) for one in plan(sql))
        spared = self._backend.name.startswith("admin#")
        fate = NORMAL if spared else server.faults.fate(commit=commit)
        if server.trace is not None:
            struck = "" if fate is NORMAL else f"   << {fate.name}"
            server.say(f"{self._backend.name}: {' '.join(sql.split())[:60]}{struck}")
        waiter = self._waiter = loop.create_future()
        token = self._token = object()
        if fate.silent and server.rng.random() < 0.5:
            # The kernel gives up on a peer that acknowledges nothing, but not on a paused one.
            loop.call_later(TCP_USER_TIMEOUT_S, self.drop)
        if fate.lost != "request":
            on_the_way_s = server.latency_s() + server.rng.random() * RUN_S_MAX
            if fate.lost == "late":
                on_the_way_s = server.rng.choice((on_the_way_s, server.rng.uniform(0.0, 0.8)))
            loop.call_later(on_the_way_s, self._backend.receive, sql, args, fate, token)
        if fate.lost in ("request", "late") and not fate.silent:
            loop.call_later(server.latency_s(), self.drop)
        try:
            answer: Rows = await waiter
            return answer
        finally:
            if self._waiter is waiter:
                self._waiter = None

    # From the network.

    def answered(self, answer: Rows | Failed, token: object) -> None:
        """An answer has arrived; None as its token means whatever is under way."""
        waiter = self._waiter
        if waiter is None or waiter.done() or (token is not None and token is not self._token):
            return
        if isinstance(answer, Failed):
            waiter.set_exception(answer.for_client())
        else:
            waiter.set_result(answer)

    def drop(self) -> None:
        """The connection breaks."""
        if not self._closed:
            self._server.say(f"{self._backend.name}: connection lost")
            self._close(lost(self._server.rng))

    def _close(self, error: Exception) -> None:
        self._closed = True
        server = self._server
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        # The server notices at once, soon, or only when its own limits end the session.
        delay_s = server.rng.choice((0.0, server.latency_s(), server.rng.uniform(0.0, 5.0)))
        server.loop.call_later(delay_s, self._backend.hang_up)


__all__ = ["FATES", "Backend", "Failed", "FakeConnection", "Server"]
