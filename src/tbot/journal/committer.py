"""Group commit: many commands, one transaction, each caller its own answer.

`Committer.commit` answers `Accepted` or `Refused`, and only after the database confirmed the
COMMIT. Exceptions are faults with an exact meaning: `Overloaded` and `JournalUnavailable` mean
certainly not executed, `OutcomeUnknown` means repeat it under the same key to learn.

One task owns the connection. Requests await a future of their own, so a client that goes away never
cancels SQL. There is no timer: a batch is whatever waits when the connection becomes free.

There are two ways. The usual one decides ahead (`tbot.journal.ahead`): commands are decided as they
come, a few in a row, while the batch before theirs is written. Whatever needs a look into the
database first, and whatever the usual way could not confirm, waits in the queue and goes the
careful way (`tbot.journal.batch`): lock, read, decide, write, commit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter
from typing import Any, Final, overload

import structlog
from prometheus_client import Counter, Gauge, Histogram

from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.errors import (
    JournalUnavailable,
    OutcomeUnknown,
    Overloaded,
    TBotError,
)
from tbot.core.refusals import Refused
from tbot.core.settings import CommitterSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.ahead import AheadBatch
from tbot.journal.batch import Batch, CommandFailed, Connection, StateCache
from tbot.journal.commands import Accepted, Command, Committed, Priority, Switch
from tbot.journal.faults import RolledBack, is_conflict, is_outage, is_refusal
from tbot.journal.once import Kept, Once
from tbot.journal.projections import Projections
from tbot.journal.queue import Answers, CommandQueue, Outcome, Pending, PendingOfMany
from tbot.journal.session import bounded, end_session, free_lane

_log = structlog.get_logger(__name__)

ATTEMPTS_MAX: Final = 5
_BATCH_WHOLE: Final = 64
_ROW: Final = 32
"""Commands that are decided in a row, where so many come at once."""
_CAREFUL_BATCHES: Final = 8
_SINCE: Final = attrgetter("since_s")

_BATCH_SIZE = Histogram(
    "tbot_committer_batch_commands",
    "Commands in a batch.",
    buckets=[1, 2, 4, 8, 16, 32, 64, 128, 256],
)
_BATCH_TIME = Histogram(
    "tbot_committer_batch_seconds",
    "From BEGIN to COMMIT's answer.",
    buckets=[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2],
)
_WAITING = Gauge("tbot_committer_waiting", "Commands in the queue.")
_OUTCOMES = Counter("tbot_commands_total", "Commands: accepted, refused or kept.", ["outcome"])
_AHEAD = Counter(
    "tbot_committer_ahead_total", "Batches decided ahead: written, refuted or lost.", ["end"]
)
_UNKNOWN = Counter("tbot_committer_unknown_commits_total", "COMMITs whose answer was lost.")

type Listener = Callable[[Sequence[Committed]], None]


class Committer:
    """The one way into the journal.

    Args:
        connect: Opens a connection for the committer's own use.
        projections: What keeps tables in step with the journal, in the order they apply.
        settings: Bounds of queue and batch.
        bus: Is woken with the topics of every committed batch.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        projections: Projections,
        settings: CommitterSettings,
        bus: Bus,
    ) -> None:
        self._connect = connect
        self._projections = projections
        self._settings = settings
        self._bus = bus
        self._queue = CommandQueue(settings.queue_max, settings.queue_reserved)
        self._cache = StateCache(settings.accounts_cached_max)
        self._tasks = Tasks("committer")
        self._run_task: asyncio.Task[None] | None = None
        self._connection: Connection | None = None
        self._lane = 0
        self._session = ""
        self._listeners: list[Listener] = []
        self._outages = 0
        self._running: list[Pending] = []
        self._next: AheadBatch | None = None
        self._writing = False
        self._offering = False
        self._stuck = False
        self._switches: dict[str, Switch] | None = None
        self._careful = 0
        self.healthy = False
        _WAITING.set_function(self._waiting)

    def _decided(self) -> int:
        """Commands that are decided ahead and not being written yet."""
        return 0 if self._next is None else len(self._next.pendings)

    def _waiting(self) -> int:
        return len(self._queue) + self._decided()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with the entries of every batch, right after its COMMIT.

        It runs on the committer's task: it must be quick and must not raise.
        """
        self._listeners.append(listener)

    async def start(self) -> None:
        """Connect and begin to take commands.

        Raises:
            JournalUnavailable: The database cannot be reached.
        """
        try:
            await self._open()
        except DATABASE_FAULTS as error:
            raise JournalUnavailable(f"no connection for the committer: {error}") from error
        self._run_task = self._tasks.start(self._run(), "run")
        self._tasks.start(self._sweep(), "sweep")

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Commit what waits, then end; safe to call twice."""
        self._queue.close()
        if self._run_task is not None:
            await asyncio.wait({self._run_task}, timeout=timeout_s)
        await self._tasks.stop(1.0)
        self._give_up_next()
        for pending in self._queue.take(len(self._queue)):
            pending.fail(JournalUnavailable("the server is stopping", retry_after_s=2.0))
        for pending in self._running:  # answered ones ignore it
            pending.fail(OutcomeUnknown("the server stopped before the database answered"))
        self._discard()

    @overload
    def commit[R](
        self, command: Command[R], once: None = None
    ) -> Awaitable[Accepted[R] | Refused]: ...

    @overload
    def commit[R](
        self, command: Command[R], once: Once | None
    ) -> Awaitable[Accepted[R] | Refused | Kept]: ...

    def commit(self, command: Command[Any], once: Once | None = None) -> Awaitable[Outcome]:
        """Decide a command and make it durable.

        Args:
            once: Its caller's idempotency key, if there is one. `Kept` answers a repetition.

        Returns:
            To be awaited at once: the outcome.

        Raises:
            Overloaded: The queue is full or the command waited too long: not executed.
            JournalUnavailable: No database: not executed.
            OutcomeUnknown: Its COMMIT's answer was lost and could not be recovered in time:
                repeat it under the same key.
            NotFound: An account that it names does not exist.
        """
        if command.priority is Priority.REPORT:
            return self._commit_report(command, once)
        pending = Pending(command, once)
        self._take(pending)
        # A caller that goes away cancels this future of its own and nothing else.
        return pending.future

    async def _commit_report(self, command: Command[Any], once: Once | None) -> Outcome:
        pending = Pending(command, once)
        await self._queue.room()
        self._take(pending)
        return await pending.future

    async def commit_all(
        self, asked: Sequence[tuple[Command[Any], Once | None]]
    ) -> list[Outcome | Exception]:
        """Decide many commands, each for itself, and make them durable: one wait for all.

        Args:
            asked: Commands (no reports) and their idempotency keys. They are decided in this
                order, though not necessarily in one transaction.

        Returns:
            In the same order what `commit` would have answered or raised.
        """
        if not asked:
            return []
        answers, now_s = Answers(len(asked)), clock.boot_s()
        for place, (command, once) in enumerate(asked):
            self._take(PendingOfMany(command, once, now_s, answers, place))
        return await answers.future

    def _take(self, pending: Pending) -> None:
        """Let a command wait until a few can be decided in a row, or nobody else comes.

        Between two requests each would find the processor's caches full of what requests need:
        a tenth of an order's time and more.
        """
        self._queue.put(pending, self._decided())
        if self._next is None or self._stuck:
            return
        waiting = len(self._queue)
        if waiting >= _ROW:
            self._offer()
        elif not self._offering:
            self._offering = True
            asyncio.get_running_loop().call_soon(self._offer_row, waiting)

    def _offer_row(self, seen: int) -> None:
        """Decide what waits, unless more came since the loop's last turn and there is time."""
        waiting = len(self._queue)
        if waiting > seen and self._writing:
            asyncio.get_running_loop().call_soon(self._offer_row, waiting)
            return
        self._offering = False
        self._offer()

    def _offer(self) -> None:
        """Decide what waits, up to the first command that cannot be decided ahead."""
        if self._next is not None and not self._stuck:
            self._stuck = not self._queue.offer(self._join)

    def _join(self, pending: Pending) -> bool:
        """Decide a command ahead, as one of the next batch; False if it has to wait its turn.

        Should that fail, it waits already, behind the others of its batch.
        """
        batch = self._next
        if batch is None or batch.prepared is not None or self._queue.closed:
            return False
        try:
            joined = batch.join(pending, self._projections, self._cache)
        except CommandFailed as failed:
            batch.pendings.append(pending)
            self._give_up_next()
            _log.warning("batch_given_up", error=repr(failed.error))
            return True
        if joined:
            count = len(batch.pendings)
            if count >= self._settings.batch_max:
                self._prepare(batch)
            elif count == _BATCH_WHOLE and self._writing:
                asyncio.get_running_loop().call_soon(self._look, batch, count)
        return joined

    def _look(self, batch: AheadBatch, seen: int) -> None:
        """Make a large batch's statement while the one before it is written and nobody joins."""
        if batch is not self._next or batch.prepared is not None or not self._writing:
            return
        count = len(batch.pendings)
        if count == seen:
            self._prepare(batch)
        else:
            asyncio.get_running_loop().call_soon(self._look, batch, count)

    def _prepare(self, batch: AheadBatch) -> None:
        try:
            batch.statement(self._projections, self._lane)
        except Exception as error:  # noqa: BLE001 - told to whom it concerns by the careful way
            self._give_up_next()
            _log.warning("batch_given_up", error=repr(error))

    def _open_next(self) -> None:
        """Let commands be decided ahead from now on; those that wait come first."""
        if self._careful or self._switches is None or self._connection is None:
            return
        self._next = AheadBatch([], switches=self._switches)
        self._stuck = False
        self._offer()

    def _give_up_next(self) -> None:
        """Undo what was decided ahead: its commands wait again, in front of the others."""
        batch, self._next = self._next, None
        if batch is not None:
            self._cache.drop(list(batch.states))
            self._queue.put_back(batch.pendings)

    async def _run(self) -> None:
        while True:
            if not self._waiting():
                if self._queue.closed:
                    return
                await self._queue.wait()
            self._refuse_late()
            if self._next is None:
                self._open_next()
            else:
                self._offer()
            batch, self._next = self._next, None
            if batch is not None and batch.pendings:
                await self._guarded(batch.pendings, self._settle_ahead(batch))
                continue
            # Half of many: while one half is written, the other half of the callers are served.
            most = max(_BATCH_WHOLE, len(self._queue) // 2)
            pendings = self._queue.take(min(most, self._settings.batch_max))
            if pendings:
                self._careful = max(0, self._careful - 1)
                await self._guarded(pendings, self._settle(pendings))

    async def _guarded(self, pendings: list[Pending], settling: Awaitable[None]) -> None:
        """Answer in any case: a bug must not leave callers waiting."""
        self._running = pendings
        try:
            await settling
        except Exception as error:  # noqa: BLE001
            _log.exception("batch_failed", commands=len(pendings))
            self._discard()
            self._give_up_next()
            for pending in pendings:
                pending.fail(error)

    async def _settle_ahead(self, batch: AheadBatch) -> None:
        """Write a batch that was decided ahead, while the next one is being decided."""
        connection = self._connection
        if connection is None or connection.is_closed():
            self._cache.drop(list(batch.states))
            await self._settle(batch.pendings)
            return
        started_s = clock.boot_s()
        sending: asyncio.Future[Any] | None = None
        try:
            sql, parameters = batch.statement(self._projections, self._lane)
            batch.committing = True
            self._writing = True
            sending = asyncio.ensure_future(_send(connection, sql, parameters))
            with bounded(connection, self._settings.transaction_timeout_s + 1):
                await asyncio.sleep(0)  # until it is on its way
                self._open_next()
                await sending
        except Exception as error:  # noqa: BLE001 - sorted out in _recover
            self._give_up_next()  # it rests on this one
            self._cache.drop(list(batch.states))
            certain = is_refusal(error)
            _AHEAD.labels("refuted" if certain else "lost").inc()
            self._careful = _CAREFUL_BATCHES
            groups = [batch.pendings] if certain else await self._recover(batch, error)
            for group in groups:
                await self._settle(group)
        else:
            _AHEAD.labels("written").inc()
            _BATCH_TIME.observe(clock.boot_s() - started_s)
            _BATCH_SIZE.observe(len(batch.pendings))
            self._finish(batch, keep=False)
        finally:
            self._writing = False
            if sending is not None:
                sending.cancel()  # only if the committer itself is being stopped

    async def _sweep(self) -> None:
        """Keep the promise about waiting while a batch, or a silent database, takes its time."""
        while True:
            await asyncio.sleep(self._settings.queue_age_s_max / 4)
            self._refuse_late()

    def _refuse_late(self) -> None:
        """Answer what waited longer than it may: certainly not executed."""
        before_s = clock.boot_s() - self._settings.queue_age_s_max
        if self._next is not None and _some_late(self._next.pendings, before_s):
            self._give_up_next()
        for late in self._queue.expired(self._settings.queue_age_s_max):
            if self.healthy and not self._outages:
                late.fail(Overloaded("the command waited too long to be committed"))
            else:
                late.fail(JournalUnavailable("the database is not there to commit to"))

    async def _settle(self, pendings: list[Pending]) -> None:
        """Run commands until each one is answered or back in the queue."""
        work = [pendings]
        while work:
            group = await self._ready(work.pop())
            if not group:
                continue
            batch = Batch(group)
            try:
                await self._attempt(batch)
            except CommandFailed as failed:
                await self._rollback(batch)
                failed.pending.fail(failed.error)
                if not isinstance(failed.error, TBotError):
                    _log.error(
                        "command_failed",
                        command=repr(failed.pending.command),
                        exc_info=failed.error,
                    )
                work.append([p for p in group if p is not failed.pending])
            except Exception as error:  # noqa: BLE001 - sorted out in _recover
                work.extend(await self._recover(batch, error))
            else:
                if batch.left:  # what comes after those waits behind them
                    batch.left += [pending for later in reversed(work) for pending in later]
                    work.clear()
                self._finish(batch)

    async def _ready(self, group: list[Pending]) -> list[Pending]:
        """Have a connection; commands that cannot wait for one any longer are answered."""
        delay_s = 0.05
        while group and (self._connection is None or self._connection.is_closed()):
            try:
                await self._open()
            except DATABASE_FAULTS as error:
                self.healthy = False
                _log.warning("journal_unavailable", error=str(error))
                group = self._patient(group)
                self._refuse_late()
                await asyncio.sleep(delay_s * random.uniform(0.5, 1))
                delay_s = min(1.0, delay_s * 2)
        return group

    def _patient(self, group: list[Pending]) -> list[Pending]:
        """During an outage: those who can still wait. The others learn that nothing was done."""
        before_s = clock.boot_s() - self._settings.queue_age_s_max
        waiting = []
        for pending in group:
            report = pending.command.priority is Priority.REPORT
            if not self._queue.closed and (report or pending.since_s > before_s):
                waiting.append(pending)
            else:
                pending.fail(JournalUnavailable("the database cannot be reached"))
        return waiting

    async def _open(self) -> None:
        connection = await self._connect()
        try:
            with bounded(connection, self._settings.transaction_timeout_s):
                self._lane = await free_lane(connection)
                session = await connection.fetchval("SELECT this_session()")
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        self._session = session
        self.healthy = True

    def _discard(self) -> None:
        if self._connection is not None:
            self._connection.terminate()  # never cancel: a late cancel hits the next statement
            self._connection = None

    async def _attempt(self, batch: Batch) -> None:
        connection = self._connection
        assert connection is not None
        started_s = clock.boot_s()
        with bounded(connection, self._settings.transaction_timeout_s + 1):
            await connection.execute("BEGIN")
            heads, context = await batch.lock(connection)
            await batch.load(connection, heads, self._projections, self._cache)
            batch.decide(context, self._projections, self._settings.batch_time_s_max)
            self._switches = dict(context.switches)
            if batch.writing:
                await batch.write(connection, self._projections, self._lane)
            batch.committing = True
            tag = await connection.execute("COMMIT")
            if tag != "COMMIT":
                batch.committing = False
                raise RolledBack(f"COMMIT answered {tag}")
        _BATCH_TIME.observe(clock.boot_s() - started_s)
        _BATCH_SIZE.observe(len(batch.pendings) - len(batch.left))

    async def _rollback(self, batch: Batch) -> None:
        self._cache.drop(batch.account_ids)
        if self._connection is not None:
            try:
                with bounded(self._connection, self._settings.transaction_timeout_s):
                    await self._connection.execute("ROLLBACK")
            except DATABASE_FAULTS:
                self._discard()

    async def _recover(self, batch: Batch, error: Exception) -> list[list[Pending]]:
        """After a failed attempt: what is to be run again, in which groups."""
        if batch.committing and batch.writing and not is_refusal(error):
            return await self._resolve(batch)
        group = batch.pendings
        if is_outage(error):
            _log.warning("batch_interrupted", error=repr(error), commands=len(group))
            self._cache.drop(batch.account_ids)
            self._discard()
            # A database that answers and refuses (a full disk, a standby) must not be hammered.
            self._outages += 1
            await asyncio.sleep(min(1.0, 0.01 * 2 ** min(self._outages, 7)))
            self._refuse_late()
            return [self._patient(group)]
        await self._rollback(batch)
        if is_conflict(error):
            again = []
            for pending in group:
                pending.attempts += 1
                if pending.attempts < ATTEMPTS_MAX:
                    again.append(pending)
                else:
                    pending.fail(JournalUnavailable("the transaction keeps meeting conflicts"))
            return [again]
        if len(group) == 1:
            _log.error("command_poisonous", command=repr(group[0].command), exc_info=error)
            group[0].fail(error)
            return []
        _log.warning("batch_bisected", error=repr(error), commands=len(group))
        half = len(group) // 2
        return [group[half:], group[:half]]

    async def _resolve(self, batch: Batch) -> list[list[Pending]]:
        """Find out whether a COMMIT whose answer was lost took effect."""
        _UNKNOWN.inc()
        _log.warning("commit_unknown", commands=len(batch.pendings))
        self._cache.drop(batch.account_ids)
        self._discard()
        session = self._session
        until_s = clock.boot_s() + self._settings.resolve_timeout_s
        while clock.boot_s() < until_s:
            try:
                await self._open()
                assert self._connection is not None
                rest_s = max(0.1, until_s - clock.boot_s())
                with bounded(self._connection, rest_s):
                    # First of all: what is still unread in the old session's socket must never be
                    # carried out, after we have found that it was not.
                    await end_session(self._connection, session, rest_s / 2)
                    # Without entries only keys were written: asking again finds them.
                    landed = bool(batch.entries) and await batch.landed(self._connection)
            except (*DATABASE_FAULTS, JournalUnavailable) as error:
                self.healthy = False
                self._discard()
                _log.warning("commit_still_unknown", error=repr(error))
                await asyncio.sleep(0.1)
                continue
            _log.warning("commit_resolved", landed=landed, commands=len(batch.pendings))
            if landed:
                self._finish(batch, keep=False)
                return []
            return [batch.pendings]
        unknown = OutcomeUnknown("the database did not say whether this was committed")
        for pending in batch.pendings:
            pending.fail(unknown)
        return []

    def _finish(self, batch: Batch, keep: bool = True) -> None:
        """Answer everybody; the batch is durable."""
        self._outages = 0
        if keep:
            for state in batch.states.values():
                self._cache.put(state)
        if batch.left:
            self._queue.put_back(batch.left)
        counts: dict[type, int] = {}
        for pending, outcome in batch.outcomes:
            if isinstance(outcome, TBotError):
                pending.fail(outcome)
            else:
                pending.answer(outcome)
                counts[type(outcome)] = counts.get(type(outcome), 0) + 1
        for kind, count in counts.items():
            _OUTCOMES.labels(kind.__name__.lower()).inc(count)
        if batch.entries:
            for listener in self._listeners:
                listener(batch.entries)
            self._bus.wake(batch.wakes)


def _some_late(pendings: Sequence[Pending], before_s: float) -> bool:
    """Whether one that may not wait for ever came before then; more urgent ones stand before it."""
    if min(map(_SINCE, pendings), default=before_s) >= before_s:  # nearly always
        return False
    return any(
        pending.since_s < before_s and pending.command.priority is not Priority.REPORT
        for pending in pendings
    )


async def _send(connection: Connection, sql: str, parameters: Sequence[Any]) -> None:
    await connection.fetch(sql, *parameters)
