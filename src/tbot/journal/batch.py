"""One group of commands, decided in memory and written in one transaction.

The way of a batch, and its round trips: `BEGIN` · lock the streams (and read the switches) · load
what is not in memory · decide and apply, in memory · write everything in one statement · `COMMIT`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog

from tbot.core import clock, money
from tbot.core.errors import IntegrityError, NotFound, TBotError
from tbot.core.refusals import Refused
from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.journal.commands import (
    Accepted,
    AccountState,
    Command,
    Committed,
    Context,
    Draft,
    Drafts,
    Switch,
    unbalanced,
)
from tbot.journal.once import KeptAnswers
from tbot.journal.projections import Projections, Write
from tbot.journal.queue import Outcome, Pending

type Connection = asyncpg.Connection[Any]

OWN_HOLDERS: Final = frozenset({"available", "held"})
NOTIFY_CHANNEL: Final = "tbot"
_NOTIFY_BYTES_MAX: Final = 7000  # Postgres allows 8,000

_log = structlog.get_logger(__name__)

_OPEN = """INSERT INTO streams
SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::timestamptz[])
ON CONFLICT DO NOTHING"""
# The switches' rows exist before anything is traded: a row that was changed meanwhile is read
# again when it is locked, a row that was inserted meanwhile would not be.
_LOCK = """
WITH s AS (
    SELECT account_id, seq, hash, at FROM streams
    WHERE account_id = ANY($1::uuid[]) ORDER BY account_id FOR NO KEY UPDATE
), w AS (
    SELECT name, halted, reason FROM switches ORDER BY name FOR SHARE
)
SELECT account_id, seq, hash, at, NULL AS name, NULL AS halted, NULL AS reason FROM s
UNION ALL
SELECT NULL, NULL, NULL, NULL, name, halted, reason FROM w
"""
_JOURNAL = """INSERT INTO journal (account_id, seq, command_id, kind, at, body, hash)
SELECT * FROM unnest({0}::uuid[], {1}::bigint[], {2}::uuid[], {3}::text[], {4}::timestamptz[],
                     {5}::bytea[], {6}::bytea[])"""
_HEADS = """UPDATE streams s SET seq = u.seq, hash = u.hash, at = u.at
FROM unnest({0}::uuid[], {1}::bigint[], {2}::bytea[], {3}::timestamptz[])
     AS u (account_id, seq, hash, at)
WHERE s.account_id = u.account_id"""
_COUNTERS = """INSERT INTO counters AS c (name, asset, lane, amount)
SELECT * FROM unnest({0}::text[], {1}::text[], {2}::smallint[], {3}::numeric[])
ON CONFLICT (name, asset, lane) DO UPDATE SET amount = c.amount + excluded.amount"""


class StateCache:
    """States of recently used accounts; the least recently used go first.

    A state is only used after its stream row was locked and found to have the same head, so
    another process's commits cannot be missed.
    """

    __slots__ = ("_most", "_states")

    def __init__(self, most: int) -> None:
        self._most = most
        self._states: OrderedDict[UUID, AccountState] = OrderedDict()

    def get(self, account_id: UUID, seq: int, head: bytes) -> AccountState | None:
        """The state, when it is at exactly this head."""
        state = self._states.get(account_id)
        if state is None or state.seq != seq or state.hash != head:
            return None
        self._states.move_to_end(account_id)
        return state

    def last(self, account_id: UUID) -> AccountState | None:
        """The state as this process left it, whatever others have done since."""
        state = self._states.get(account_id)
        if state is not None:
            self._states.move_to_end(account_id)
        return state

    def put(self, state: AccountState) -> None:
        """Keep a state that is as its stream says."""
        self._states[state.account_id] = state
        self._states.move_to_end(state.account_id)
        while len(self._states) > self._most:
            self._states.popitem(last=False)

    def drop(self, account_ids: Sequence[UUID]) -> None:
        """Forget states that may have run ahead of their streams."""
        for account_id in account_ids:
            self._states.pop(account_id, None)


@dataclass(slots=True)
class Batch:
    """Commands on their way through one transaction.

    Attributes:
        committing: COMMIT was sent: from here on a lost connection leaves the outcome unknown.
        outcomes: What each decided command is to be answered, or told, once it is durable.
        left: Commands that the time limit left undecided.
    """

    pendings: list[Pending]
    committing: bool = False
    states: dict[UUID, AccountState] = field(default_factory=dict)
    outcomes: list[tuple[Pending, Outcome | TBotError]] = field(default_factory=list)
    left: list[Pending] = field(default_factory=list)
    entries: list[Committed] = field(default_factory=list)
    counters: dict[tuple[str, str], Decimal] = field(default_factory=dict)
    wakes: dict[str, None] = field(default_factory=dict)
    answers: KeptAnswers = field(default_factory=KeptAnswers)

    @property
    def account_ids(self) -> list[UUID]:
        """Every account that a command of the batch names, in lock order."""
        return sorted({a for p in self.pendings for a in p.command.accounts})

    async def lock(self, connection: Connection) -> tuple[list[asyncpg.Record], Context]:
        """Lock the streams and read the switches; streams to be opened are created first."""
        now = clock.utc_now()
        await self._open(connection, now)
        heads: list[asyncpg.Record] = []
        switches: dict[str, Switch] = {}
        for row in await connection.fetch(_LOCK, self.account_ids):
            if row["name"] is None:
                heads.append(row)
            else:
                switches[row["name"]] = Switch(row["halted"], row["reason"])
        return heads, Context(now=now, switches=switches)

    async def _open(self, connection: Connection, now: datetime) -> None:
        """Create the streams that are to be opened; waits for whoever else is creating them."""
        opening = sorted({a for p in self.pendings if p.command.opens for a in p.command.accounts})
        if opening:
            await connection.execute(
                _OPEN,
                opening,
                [0] * len(opening),
                [chain.genesis(account_id) for account_id in opening],
                [now] * len(opening),
            )

    async def load(
        self,
        connection: Connection,
        heads: Sequence[asyncpg.Record],
        projections: Projections,
        cache: StateCache,
    ) -> None:
        """Get every locked account's state, from memory where its head says that it is current."""
        fresh = []
        for row in heads:
            account_id = row["account_id"]
            state = cache.get(account_id, row["seq"], row["hash"])
            if state is None:
                state = AccountState(account_id, row["seq"], row["hash"], row["at"])
                fresh.append(state)
            self.states[account_id] = state
        commands = [pending.command for pending in self.pendings]
        for projection in projections:
            if fresh:
                await projection.load(connection, fresh)
            await projection.fetch(connection, commands, self.states)
        onces = [pending.once for pending in self.pendings if pending.once is not None]
        if onces:
            await self.answers.fetch(connection, onces)

    def decide(self, context: Context, projections: Projections, time_s_max: float) -> None:
        """Decide and apply each command in turn.

        Raises:
            CommandFailed: A command's own code failed; states may be half applied, so the batch
                must be run again without it.
        """
        until_s = clock.boot_s() + time_s_max
        for index, pending in enumerate(self.pendings):
            if index and clock.boot_s() > until_s:
                self.left = self.pendings[index:]
                break
            try:
                self._decide_one(pending, context, projections)
            except Exception as error:
                raise CommandFailed(pending, error) from error

    def _decide_one(self, pending: Pending, context: Context, projections: Projections) -> None:
        command = pending.command
        for account_id in command.accounts:
            state = self.states.get(account_id)
            if state is None or not (state.seq or command.opens):
                self.outcomes.append((pending, NotFound("no such account")))
                return
        once = pending.once
        if once is not None:
            replay = self.answers.replay(once)
            if replay is not None:
                self.outcomes.append((pending, replay))
                return
        try:
            decision = command.decide(self.states, context)
        except TBotError as error:  # it has changed nothing yet; told when the rest is durable
            self.outcomes.append((pending, error))
            return
        if isinstance(decision, Drafts):
            outcome: Accepted[Any] | Refused = self._carry_out(
                command, decision, context, projections
            )
        else:
            outcome = decision
        if once is not None:
            self.answers.keep(once, outcome)
        self.outcomes.append((pending, outcome))

    def _carry_out(
        self,
        command: Command[Any],
        decision: Drafts,
        context: Context,
        projections: Projections,
    ) -> Accepted[Any]:
        missing = unbalanced(decision.entries)
        if missing:
            raise IntegrityError(f"postings of {command!r} do not sum to zero: {missing}")
        by, name = command.actor.to_json(), str(command.id)
        entries = tuple(
            [
                self._append(draft, command.id, name, by, context, projections)
                for draft in decision.entries
            ]
        )
        for topic in decision.wakes:
            self.wakes[topic] = None
        return Accepted(command.result(self.states), entries)

    def _append(
        self,
        draft: Draft,
        command_id: UUID,
        command: str,
        by: dict[str, str],
        context: Context,
        projections: Projections,
    ) -> Committed:
        state = self.states[draft.account_id]
        at = context.now
        text = context.stamp()
        if state.at > at:
            at = state.at
            text = clock.stamp(at)
        entry = Entry(
            v=1,
            account=state.text,
            seq=state.seq + 1,
            at=text,
            kind=draft.kind,
            command=command,
            by=by,
            postings=[(p.holder, p.asset, money.text(p.amount)) for p in draft.postings],
            data=draft.data,
        )
        body, head = chain.seal(state.hash, entry)
        state.seq, state.hash, state.at = entry.seq, head, at
        state.made = draft.made
        for apply in projections.appliers(draft.kind):
            apply(state, entry)
        state.made = None
        # As written in the entry: without the trailing zeros of a product, which the domain counts.
        for holder, asset, amount in entry.postings:
            if holder not in OWN_HOLDERS:
                key = holder, asset
                self.counters[key] = self.counters.get(key, money.ZERO) + Decimal(amount)
        # The entry itself is let go: its memory is still in the caches, and used again at once.
        written = Committed(state.account_id, entry.seq, head, body, draft.kind, command_id, at)
        self.entries.append(written)
        self.wakes[state.topic] = None
        return written

    @property
    def writing(self) -> bool:
        """Whether anything is to be written: entries, or answers under keys."""
        return bool(self.entries) or self.answers.added

    def changed(self) -> list[AccountState]:
        """The states that have new entries."""
        return [self.states[a] for a in dict.fromkeys(e.account_id for e in self.entries)]

    async def write(self, connection: Connection, projections: Projections, lane: int) -> None:
        """Write journal, heads, counters and every projection's tables in one statement."""
        sql, parameters = compose(self.writes(projections, lane))
        await connection.fetch(sql, *parameters, self.topics())

    def topics(self) -> str:
        """What the other processes are notified of."""
        topics = ",".join(self.wakes)
        return topics if len(topics) <= _NOTIFY_BYTES_MAX else "*"

    def writes(self, projections: Projections, lane: int) -> list[Write]:
        """Everything that the batch writes; asked once, the projections forget what they gave."""
        writes = self._entry_writes(projections, lane) if self.entries else []
        if self.answers.added:
            writes.append(self.answers.write(clock.utc_now()))
        return writes

    def _entry_writes(self, projections: Projections, lane: int) -> list[Write]:
        changed = self.changed()
        entries = self.entries
        writes = [
            Write(
                _JOURNAL,
                [
                    [e.account_id for e in entries],
                    [e.seq for e in entries],
                    [e.command_id for e in entries],
                    [e.kind for e in entries],
                    [e.at for e in entries],
                    [e.body for e in entries],
                    [e.hash for e in entries],
                ],
            ),
            Write(
                _HEADS,
                [
                    [s.account_id for s in changed],
                    [s.seq for s in changed],
                    [s.hash for s in changed],
                    [s.at for s in changed],
                ],
            ),
        ]
        if self.counters:
            names = sorted(self.counters)
            writes.append(
                Write(
                    _COUNTERS,
                    [
                        [name for name, _ in names],
                        [asset for _, asset in names],
                        [lane] * len(names),
                        [self.counters[key] for key in names],
                    ],
                )
            )
        for projection in projections:
            writes.extend(projection.writes(changed))
        return writes

    async def landed(self, connection: Connection) -> bool:
        """Whether this batch's COMMIT took effect, after its connection was lost during it.

        Locking the same rows waits until the old backend has ended one way or the other; a plain
        read could still see the past, and a transaction id can be reused after a crash. A stream
        that this batch began has no row to lock before that end: to begin it again waits.

        Raises:
            IntegrityError: The journal holds another entry than ours at a place that only this
                batch could have filled while it had the lock.
        """
        expected = {e.account_id: e for e in self.entries}
        ids = sorted(expected)
        await connection.execute("BEGIN")
        await self._open(connection, clock.utc_now())
        await connection.fetch(_LOCK, ids)
        rows = await connection.fetch(
            "SELECT j.account_id, j.hash FROM journal j"
            " JOIN unnest($1::uuid[], $2::bigint[]) u (account_id, seq)"
            " USING (account_id, seq)",
            ids,
            [expected[account_id].seq for account_id in ids],
        )
        # Not in a `finally`: a fault or a cancellation goes out as it is, and the caller lets go
        # of the connection. A clean-up that failed here would swallow the cancellation.
        await connection.execute("ROLLBACK")
        found = {row["account_id"]: row["hash"] for row in rows}
        matches = [found.get(account_id) == expected[account_id].hash for account_id in ids]
        if any(matches) and not all(matches):
            raise IntegrityError("a batch is half there: the journal is damaged")
        return all(matches)


class CommandFailed(Exception):
    """A command's own code raised: a fault of the program, not of the batch."""

    def __init__(self, pending: Pending, error: Exception) -> None:
        super().__init__(repr(error))
        self.pending = pending
        self.error = error


_composed: dict[tuple[str, ...], str] = {}
_CERTIFIED: Final = 6


def compose(writes: Sequence[Write], certified: bool = False) -> tuple[str, list[Any]]:
    """Join bulk writes into one statement that ends by notifying the other processes.

    The statement takes one more parameter after the returned ones: the notification's payload.

    Args:
        certified: The statement takes the parameters of `certify` before that, and does nothing
            unless they are right. Without writes it notifies nobody and takes no payload.

    Example:
        >>> compose([Write("DELETE FROM t WHERE id = ANY({0})", [[1, 2]])])
        ("WITH w0 AS (DELETE FROM t WHERE id = ANY($1)) SELECT pg_notify('tbot', $2)", [[1, 2]])
        >>> compose([], certified=True)[0]
        'SELECT certify($1, $2, $3, $4, $5, $6)'
    """
    shape = (str(certified), *(write.sql for write in writes))
    parameters = [column for write in writes for column in write.columns]
    sql = _composed.get(shape)
    if sql is None:
        parts = []
        position = 0
        for index, write in enumerate(writes):
            names = [f"${position + offset + 1}" for offset in range(len(write.columns))]
            position += len(names)
            parts.append(f"w{index} AS ({write.sql.format(*names)})")
        calls = []
        if certified:
            # Before any of the writes: Postgres leaves those that nothing reads to the end.
            names = [f"${position + offset + 1}" for offset in range(_CERTIFIED)]
            position += _CERTIFIED
            calls.append(f"certify({', '.join(names)})")
        if parts or not certified:
            calls.append(f"pg_notify('{NOTIFY_CHANNEL}', ${position + 1})")
        sql = f"SELECT {', '.join(calls)}"
        if parts:
            sql = f"WITH {', '.join(parts)} {sql}"
        _composed[shape] = sql
    return sql, parameters
