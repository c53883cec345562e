"""Tables that are kept in step with the journal.

A `Projection` is one family of them; `Projections` are all of a program, and know which of them an
entry or a command concerns, so that the write path asks no others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import asyncpg
import msgspec

from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState, Command, States


class Write(msgspec.Struct):
    """One statement of a batch's bulk write.

    Attributes:
        sql: With `{0}`, `{1}` … where the columns' parameters go.
        columns: One list per parameter, all of one length; passed as arrays.
    """

    sql: str
    columns: Sequence[list[Any]] = ()


class Projection:
    """A family of tables; each has `apply` and `writes`, and the rest where it needs it.

    Attributes:
        entries: How the kinds of the entries begin that it applies; all do by default.
    """

    entries: ClassVar[str] = ""

    async def load(
        self, connection: asyncpg.Connection[Any], states: Sequence[AccountState]
    ) -> None:
        """Read the parts of accounts that are not in memory, after their streams were locked."""

    async def fetch(
        self, connection: asyncpg.Connection[Any], commands: Sequence[Command[Any]], states: States
    ) -> None:
        """Read what these commands name beyond the parts; called for every batch."""

    def concerns(self, command: Command[Any]) -> bool:
        """Whether commands of this one's class may name what `fetch` reads; asked once a class.

        If not, neither `reads` nor `recalls` is asked for any of them.
        """
        kind = type(self)
        return kind.reads is not Projection.reads or kind.recalls is not Projection.recalls

    def reads(self, command: Command[Any], states: States) -> bool:
        """Whether a decision on this command may need what `fetch` would read.

        Not so for keys whose repetition breaks a unique index: that is noticed in time.
        """
        return False

    def recalls(self, command: Command[Any]) -> bool:
        """Whether `fetch` might find that this command was carried out before.

        By a key of its own, that is, and although memory does not know it. Then a refusal that was
        decided without `fetch` says nothing: what is not written breaks no unique index.
        """
        return False

    def apply(self, state: AccountState, entry: Entry) -> None:
        """Carry out an entry's effects on the part; pure, and the only way a part changes."""
        raise NotImplementedError

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """Statements that bring the tables up to the parts; forgets what was changed."""
        raise NotImplementedError


type Apply = Callable[[AccountState, Entry], None]


class Projections:
    """A program's projections, in the order they apply."""

    __slots__ = ("_all", "_by_command", "_by_kind")

    def __init__(self, *projections: Projection) -> None:
        self._all = projections
        # Classes and kinds are those of the program: there are a few dozen.
        self._by_command: dict[type[Any], tuple[Projection, ...]] = {}
        self._by_kind: dict[str, tuple[Apply, ...]] = {}

    def __iter__(self) -> Iterator[Projection]:
        return iter(self._all)

    def apply(self, state: AccountState, entry: Entry) -> None:
        """Carry out an entry's effects on an account."""
        for apply in self.appliers(entry.kind):
            apply(state, entry)

    def appliers(self, kind: str) -> tuple[Apply, ...]:
        """What an entry of this kind is to be carried out by."""
        found = self._by_kind.get(kind)
        if found is None:
            found = tuple([p.apply for p in self._all if kind.startswith(p.entries)])
            self._by_kind[kind] = found
        return found

    def concerned(self, command: Command[Any]) -> tuple[Projection, ...]:
        """Those that may have something to read for commands of this one's class."""
        found = self._by_command.get(type(command))
        if found is None:
            found = tuple([p for p in self._all if p.concerns(command)])
            self._by_command[type(command)] = found
        return found
