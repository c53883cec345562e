"""Batches that are decided ahead of their locks.

While one batch is being written the next is decided, commands as they come, a few in a row, from
the states in memory. So the processor has work while the disk writes, and a batch costs one round
trip instead of five: a single statement locks the streams, compares their heads and the switches
with what was assumed (`certify`, in the migrations), writes everything, and commits.

Nothing here is trusted that the database does not confirm:

1. A stream that somebody else has written to, or a switch that was turned, fails the statement.
2. Keys that were used before, of clients or of idempotency, break their unique indexes: likewise.
   A refusal that writes no key breaks nothing, though it may be the answer to a repetition of what
   was accepted long ago: whoever comes with a key is refused the careful way, which looks.
3. What fails is as if it had never been. Its commands are run again the careful way
   (`tbot.journal.batch`), and so are those that were decided on top of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from tbot.core import clock
from tbot.journal.batch import Batch, CommandFailed, StateCache, compose
from tbot.journal.commands import Accepted, AccountState, Context, Switch
from tbot.journal.once import Kept
from tbot.journal.projections import Projections
from tbot.journal.queue import Pending

_DONE: Final = frozenset({Accepted, Kept})


@dataclass(slots=True)
class AheadBatch(Batch):
    """Commands that are decided before their streams are locked.

    Attributes:
        switches: By name, in the database's order, as they are assumed to be.
        heads: By account, the sequence and hash that its stream is assumed to have.
        prepared: Its statement and parameters, once they are made: then nothing more joins.
    """

    switches: dict[str, Switch] = field(default_factory=dict)
    heads: dict[UUID, tuple[int, bytes]] = field(default_factory=dict)
    context: Context | None = None
    prepared: tuple[str, list[Any]] | None = None

    def join(self, pending: Pending, projections: Projections, cache: StateCache) -> bool:
        """Decide one more command, if everything that it needs is in memory.

        Returns:
            False for a command that has to be run the careful way; nothing was changed.

        Raises:
            CommandFailed: Its own code failed; states may be half applied, so this batch has to be
                given up.
        """
        command = pending.command
        if command.opens:
            return False
        newly: list[AccountState] = []
        for account_id in command.accounts:
            if account_id not in self.states:
                state = cache.last(account_id)
                if state is None:
                    return self._leave(newly)
                self.states[account_id] = state
                newly.append(state)
        if self.context is None:
            self.context = Context(now=clock.utc_now(), switches=self.switches)
        kept = self.answers.count
        heads = [(state.account_id, (state.seq, state.hash)) for state in newly]
        try:
            for projection in projections.concerned(command):
                if projection.reads(command, self.states):
                    return self._leave(newly)
            self._decide_one(pending, self.context, projections)
            if self._doubtful(pending, kept, projections):
                self.outcomes.pop()
                self.answers.cut(kept)
                return self._leave(newly)
        except Exception as error:
            raise CommandFailed(pending, error) from error
        self.pendings.append(pending)
        self.heads.update(heads)
        return True

    def _leave(self, newly: Sequence[AccountState]) -> bool:
        """Not to be decided here: nothing is assumed of its accounts for its sake."""
        for state in newly:
            del self.states[state.account_id]
        return False

    def _doubtful(self, pending: Pending, kept: int, projections: Projections) -> bool:
        """Whether it was refused, and only a look can tell that it was not carried out before.

        Args:
            kept: How many answers were to be written before it was decided.
        """
        if type(self.outcomes[-1][1]) in _DONE:
            return False
        if pending.once is not None and self.answers.count == kept:
            return True
        command = pending.command
        return any(one.recalls(command) for one in projections.concerned(command))

    def statement(self, projections: Projections, lane: int) -> tuple[str, list[Any]]:
        """What confirms all that was assumed and writes everything, and commits by itself.

        Made once, as soon as nothing more joins, and before anything else is decided on these
        states.

        Returns:
            SQL and parameters. When the database refuses them, nothing was written.
        """
        if self.prepared is None:
            self.prepared = self._statement(projections, lane)
        return self.prepared

    def _statement(self, projections: Projections, lane: int) -> tuple[str, list[Any]]:
        ids = sorted(self.heads)
        switches = self.switches.values()
        sql, parameters = compose(self.writes(projections, lane), certified=True)
        parameters += [
            ids,
            [self.heads[account_id][0] for account_id in ids],
            [self.heads[account_id][1] for account_id in ids],
            list(self.switches),
            [switch.halted for switch in switches],
            [switch.reason for switch in switches],
        ]
        if self.writing:
            parameters.append(self.topics())
        return sql, parameters
