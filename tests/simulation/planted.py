"""Bugs planted on purpose: what a simulator that deserves trust has to find.

Each one is a mistake that a careful author could make in the write path. Most are planted at the
connection, as a committer that says or believes something else than ours, so that they hold on
while the write path is rewritten; the others replace one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import asyncpg

from tbot.core.errors import JournalUnavailable, OutcomeUnknown
from tbot.journal import committer, faults, once
from tbot.journal.ahead import AheadBatch
from tbot.journal.batch import Batch, StateCache
from tbot.journal.commands import Accepted
from tbot.journal.committer import Committer
from tbot.journal.once import KeptAnswers
from tbot.journal.projections import Projections
from tbot.journal.queue import CommandQueue, Pending

from . import statements
from .world import Outcome, Program, simulate

LOCKING = "FOR NO KEY UPDATE"


class Through:
    """A connection that does what the one within does; planted ones change a word of it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def is_closed(self) -> bool:
        closed: bool = self.inner.is_closed()
        return closed

    def terminate(self) -> None:
        self.inner.terminate()

    async def execute(self, sql: str, *args: Any, **more: Any) -> Any:
        return await self.inner.execute(sql, *args, **more)

    async def fetch(self, sql: str, *args: Any, **more: Any) -> Any:
        return await self.inner.fetch(sql, *args, **more)

    async def fetchrow(self, sql: str, *args: Any) -> Any:
        return await self.inner.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self.inner.fetchval(sql, *args)


class TagBelieved(Through):
    async def execute(self, sql: str, *args: Any, **more: Any) -> Any:
        tag = await super().execute(sql, *args, **more)
        return "COMMIT" if sql.startswith("COMMIT") else tag


class RollbackForgotten(Through):
    async def execute(self, sql: str, *args: Any, **more: Any) -> Any:
        if sql.startswith("ROLLBACK"):
            return "ROLLBACK"
        return await super().execute(sql, *args, **more)


class LaneTaken(Through):
    async def fetchval(self, sql: str, *args: Any) -> Any:
        return "advisory" in sql or await super().fetchval(sql, *args)


class OutOfOrder(Through):
    """Locks upwards on one connection and downwards on the next."""

    async def fetch(self, sql: str, *args: Any, **more: Any) -> Any:
        if LOCKING in sql:
            sql = sql.replace("ORDER BY account_id FOR", "FOR")
            flip = int(self.inner.name.rpartition("#")[2]) % 2 == 0
            args = (sorted(args[0], reverse=flip), *args[1:])
        return await super().fetch(sql, *args, **more)


class _Remembering(Through):
    """Reads the tables at the wrong moment, and answers the later reading from that."""

    ACCOUNTS = "SELECT account_id, amount, seq FROM toy_accounts WHERE account_id = ANY($1::uuid[])"

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.read: list[Any] | None = None

    async def early(self, ids: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    async def fetch(self, sql: str, *args: Any, **more: Any) -> Any:
        if LOCKING in sql:
            self.read = await self.early(args[0])
        elif " FROM toy_accounts " in sql and self.read is not None:
            return [row for row in self.read if row["account_id"] in args[0]]
        return await super().fetch(sql, *args, **more)


class ReadsBeforeLocking(_Remembering):
    async def early(self, ids: Sequence[Any]) -> list[Any]:
        rows: list[Any] = await self.inner.fetch(self.ACCOUNTS, ids)
        return rows


class LocksAndReadsAtOnce(_Remembering):
    async def early(self, ids: Sequence[Any]) -> list[Any]:
        rows: list[Any] = await self.inner.fetch(
            "SELECT s.account_id, t.amount, t.seq FROM streams s"
            " JOIN toy_accounts t ON t.account_id = s.account_id"
            " WHERE s.account_id = ANY($1::uuid[])"
            " ORDER BY s.account_id FOR NO KEY UPDATE OF s",
            ids,
        )
        return rows


class _Unlocked(Through):
    async def execute(self, sql: str, *args: Any, **more: Any) -> Any:
        return "" if sql.startswith("INSERT") else await super().execute(sql, *args, **more)

    async def fetch(self, sql: str, *args: Any, **more: Any) -> Any:
        return [] if LOCKING in sql else await super().fetch(sql, *args, **more)


class _NotOpened(Through):
    async def execute(self, sql: str, *args: Any, **more: Any) -> Any:
        return "" if sql.startswith("INSERT") else await super().execute(sql, *args, **more)


_write, _landed = Batch.write, Batch.landed
_recover, _fail = Committer._recover, Pending.fail


async def _answers_early(self: Batch, connection: Any, *more: Any) -> None:
    await _write(self, connection, *more)
    for pending, outcome in self.outcomes:
        pending.answer(outcome)


async def _never_landed(self: Batch, connection: Any) -> bool:
    return False


async def _always_landed(self: Batch, connection: Any) -> bool:
    return True


async def _landed_unlocked(self: Batch, connection: Any) -> bool:
    return await _landed(self, _Unlocked(connection))  # type: ignore[arg-type]


async def _landed_unopened(self: Batch, connection: Any) -> bool:
    return await _landed(self, _NotOpened(connection))  # type: ignore[arg-type]


def _trusted(self: StateCache, account_id: Any, seq: int, head: bytes) -> Any:
    return self._states.get(account_id)


def _same_length(self: StateCache, account_id: Any, seq: int, head: bytes) -> Any:
    state = self._states.get(account_id)
    return state if state is not None and state.seq == seq else None


async def _half_lost(self: Committer, batch: Any, error: Exception) -> Any:
    return (await _recover(self, batch, error))[:1]


def _called_unavailable(self: Pending, error: Exception) -> None:
    _fail(self, JournalUnavailable("?") if isinstance(error, OutcomeUnknown) else error)


def _twins_unseen(self: KeptAnswers, key: Any, outcome: Any) -> None:
    answer = key.render(outcome.result if isinstance(outcome, Accepted) else outcome)
    if answer is not None:
        self._added.append(key.key)
        _later.setdefault(id(self), {})[key.key] = once.Record(key.content, answer)


_later: dict[int, dict[Any, Any]] = {}
_kept_write = KeptAnswers.write


def _twins_written(self: KeptAnswers, now: Any) -> Any:
    self._known.update(_later.pop(id(self), {}))
    self._added[:] = list(dict.fromkeys(self._added))
    return _kept_write(self, now)


_keep = KeptAnswers.keep


def _refusals_unkept(self: KeptAnswers, key: Any, outcome: Any) -> None:
    if isinstance(outcome, Accepted):
        _keep(self, key, outcome)


_is_conflict = faults.is_conflict


def _taken_key_is_none(error: Exception) -> bool:
    return not isinstance(error, asyncpg.UniqueViolationError) and _is_conflict(error)


def _content_ignored(self: KeptAnswers, key: Any) -> Any:
    record = self._known.get(key.key)
    return None if record is None else record.answer


_certify = statements._certify


async def _left_alone(connection: Any, session: str, patience_s: float) -> None:
    """The old session may live on."""


async def _never_refuted(running: Any, *assumed: Any) -> None:
    """Nothing is compared."""


def _never_doubtful(self: AheadBatch, *ignored: Any) -> bool:
    return False


def _nobody(self: Projections, command: Any) -> tuple[()]:
    return ()


async def _switches_believed(
    running: Any, ids: Any, seqs: Any, hashes: Any, *switches: Any
) -> None:
    table = running.transaction.table("switches")
    rows = sorted(running.transaction.scan(table), key=table.key_of)
    places = [table.columns.index(name) for name in ("name", "halted", "reason")]
    now = [[row[place] for row in rows] for place in places]
    await _certify(running, ids, seqs, hashes, *now)


@contextmanager
def _unbounded(connection: Any, time_s_max: float) -> Iterator[None]:
    yield


def _forget(self: Any, *ignored: Any) -> None:
    """Nothing is done."""


@dataclass(frozen=True)
class Planted:
    """A bug.

    Attributes:
        what: In one sentence.
        connection: Wraps every connection of a committer.
        patches: `(owner, attribute, replacement)`.
    """

    name: str
    what: str
    connection: Callable[[Any], Any] | None = None
    patches: tuple[tuple[Any, str, Any], ...] = ()

    @contextmanager
    def planted(self) -> Iterator[Program]:
        """The program with this bug in it."""
        with ExitStack() as stack:
            for owner, attribute, replacement in self.patches:
                stack.enter_context(mock.patch.object(owner, attribute, replacement))
            yield Program(connection=self.connection)

    def find(self, seeds: Sequence[int]) -> Outcome | None:
        """The first of these seeds that shows it."""
        with self.planted() as program:
            for seed in seeds:
                outcome = simulate(seed, program)
                if outcome.faults:
                    return outcome
        return None


PLANTED = (
    Planted(
        "answers_before_commit",
        "Callers are answered when the statements ran, before COMMIT answered.",
        patches=((Batch, "write", _answers_early),),
    ),
    Planted(
        "unknown_commit_retried",
        "A COMMIT whose answer was lost is taken for rolled back, and run again.",
        patches=((Batch, "landed", _never_landed),),
    ),
    Planted(
        "unknown_commit_believed",
        "A COMMIT whose answer was lost is taken for done.",
        patches=((Batch, "landed", _always_landed),),
    ),
    Planted(
        "resolved_without_lock",
        "Whether a COMMIT took effect is read without ending or waiting for the old session.",
        patches=((Batch, "landed", _landed_unlocked), (committer, "end_session", _left_alone)),
    ),
    Planted(
        "opening_not_waited_for",
        "The same, only for accounts that the lost batch opens: they have no row to lock yet.",
        patches=((Batch, "landed", _landed_unopened), (committer, "end_session", _left_alone)),
    ),
    Planted(
        "cache_trusted",
        "A state in memory is used without comparing it with the locked head.",
        patches=((StateCache, "get", _trusted),),
    ),
    Planted(
        "cache_kept_after_rollback",
        "States stay in memory after a rollback, and only their sequence is compared.",
        patches=((StateCache, "get", _same_length), (StateCache, "drop", _forget)),
    ),
    Planted(
        "heads_not_certified",
        "What was decided ahead is written whatever others have written meanwhile.",
        patches=((statements, "_certify", _never_refuted),),
    ),
    Planted(
        "switches_not_certified",
        "What was decided ahead is written although a switch was turned meanwhile.",
        patches=((statements, "_certify", _switches_believed),),
    ),
    Planted(
        "refusals_trusted",
        "A refusal that was decided ahead is told to who may have been accepted before.",
        patches=((AheadBatch, "_doubtful", _never_doubtful),),
    ),
    Planted(
        "nobody_concerned",
        "No projection is asked whether a command was carried out before.",
        patches=((Projections, "concerned", _nobody),),
    ),
    Planted("commit_tag_unchecked", "COMMIT may answer ROLLBACK unseen.", TagBelieved),
    Planted(
        "rollback_forgotten",
        "A conflict's retry begins in the failed transaction.",
        RollbackForgotten,
    ),
    Planted(
        "leftovers_forgotten",
        "What the time limit left undecided is not put back.",
        patches=((CommandQueue, "put_back", _forget),),
    ),
    Planted(
        "half_lost",
        "Bisecting a poisoned batch loses one half.",
        patches=((Committer, "_recover", _half_lost),),
    ),
    Planted(
        "unknown_called_unavailable",
        "An outcome that stays unknown is called certainly not executed.",
        patches=((Pending, "fail", _called_unavailable),),
    ),
    Planted(
        "twins_both_run",
        "Two commands of one key in one batch are both carried out.",
        patches=((KeptAnswers, "keep", _twins_unseen), (KeptAnswers, "write", _twins_written)),
    ),
    Planted(
        "refusal_not_kept",
        "A refusal is not kept under its key.",
        patches=((KeptAnswers, "keep", _refusals_unkept),),
    ),
    Planted(
        "taken_key_is_a_fault",
        "A key that another account's command has taken meanwhile is not looked for again.",
        patches=((committer, "is_conflict", _taken_key_is_none),),
    ),
    Planted(
        "other_content_answered",
        "A key's answer is given to a request of other content.",
        patches=((KeptAnswers, "replay", _content_ignored),),
    ),
    Planted("read_before_lock", "Accounts are read before they are locked.", ReadsBeforeLocking),
    Planted(
        "read_with_lock",
        "Accounts are locked and read in one statement, which waited for the lock.",
        LocksAndReadsAtOnce,
    ),
    Planted("lane_shared", "Two committers write the same lane of the counters.", LaneTaken),
    Planted("locks_unsorted", "Accounts are not locked in one order.", OutOfOrder),
    Planted(
        "no_watchdog",
        "Nobody watches a connection that went silent.",
        patches=((committer, "bounded", _unbounded),),
    ),
)
