"""What the fake database stores: versions of rows, transactions over them, and row locks.

Reads see what was committed when their *statement* began, and their own transaction's writes: READ
COMMITTED. Whoever waits for a lock and gets it sees the locked row as it is then, and everything
else as of the statement's beginning; that is the trap of locking and reading in one statement.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from tbot.db import migrate

from .loop import VirtualLoop

type Key = tuple[Any, ...]
type Row = tuple[Any, ...]
type Place = tuple[str, Key]


@dataclass(slots=True)
class Table:
    """A table's shape and every version of its rows: `(commit number, row or None)`.

    Attributes:
        uniques: Positions of the columns of each unique constraint; the primary key is the first.
        check: Raises what Postgres would for a row that breaks a constraint.
    """

    name: str
    columns: tuple[str, ...]
    uniques: list[tuple[int, ...]]
    check: Callable[[Row], None] | None = None
    rows: dict[Key, list[tuple[int, Row | None]]] = field(default_factory=dict)

    def key_of(self, row: Row) -> Key:
        return tuple([row[i] for i in self.uniques[0]])

    def at(self, key: Key, snapshot: int) -> Row | None:
        """The row as of a commit number."""
        for number, row in reversed(self.rows.get(key, ())):
            if number <= snapshot:
                return row
        return None

    def latest(self) -> Iterator[Row]:
        """Every row as committed now, in key order."""
        for key in sorted(self.rows):
            row = self.rows[key][-1][1]
            if row is not None:
                yield row

    def latest_dicts(self) -> list[dict[str, Any]]:
        return [dict(zip(self.columns, row, strict=True)) for row in self.latest()]


_TABLE = re.compile(r"CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)\n\)", re.DOTALL)
_INDEX = re.compile(r"CREATE UNIQUE INDEX \w+ ON (\w+) \(([\w, ]+)\)\s*;")
_ADDED = re.compile(r"ALTER TABLE (\w+)([^;]*ADD COLUMN[^;]*);")


@cache
def _shapes() -> dict[str, tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Columns and unique constraints of every table, read off the migrations."""
    found: dict[str, tuple[list[str], list[tuple[str, ...]]]] = {}
    folder = Path(migrate.__file__).parent / "migrations"
    for path in sorted(folder.glob("*.sql")):
        text = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
        for name, body in _TABLE.findall(text):
            columns: list[str] = []
            uniques: list[tuple[str, ...]] = []
            for line in body.split("\n"):
                word = re.match(r"\s*([a-z_]\w*)\s+\w", line)
                keyed = re.match(r"\s*(PRIMARY KEY|UNIQUE)\s*\(([\w, ]+)\)", line)
                if keyed:
                    place = 0 if keyed[1] == "PRIMARY KEY" else len(uniques)
                    uniques.insert(place, tuple(c.strip() for c in keyed[2].split(",")))
                elif word:
                    columns.append(word[1])
                    if "PRIMARY KEY" in line:
                        uniques.insert(0, (word[1],))
            found[name] = (columns, uniques)
        for name, more in _ADDED.findall(text):
            if name in found:
                found[name][0].extend(re.findall(r"ADD COLUMN (?:IF NOT EXISTS )?(\w+)", more))
        for name, listed in _INDEX.findall(text):
            if name in found:
                found[name][1].append(tuple(c.strip() for c in listed.split(",")))
    return {name: (tuple(columns), uniques) for name, (columns, uniques) in found.items()}


def new_table(name: str, columns: Sequence[str], key: Sequence[str]) -> Table:
    """A table that no migration knows."""
    return Table(name, tuple(columns), [tuple(columns.index(c) for c in key)])


def new_tables() -> dict[str, Table]:
    """Every migrated table that has a key, empty."""
    return {
        name: Table(name, columns, [tuple(columns.index(c) for c in unique) for unique in uniques])
        for name, (columns, uniques) in _shapes().items()
        if uniques and all(c in columns for unique in uniques for c in unique)
    }


class Holder(Protocol):
    """Who holds locks and waits for them: a backend."""

    name: str
    waits_for: tuple[Holder, ...]


class DeadlockDetected(Exception):
    """Waiting here would never end."""


@dataclass(slots=True)
class _Lock:
    exclusive: bool
    holders: list[Holder]
    waiters: list[asyncio.Future[None]] = field(default_factory=list)


class Locks:
    """Row locks, and keys that a transaction is about to add.

    Attributes:
        waited: Places where somebody had to wait, with the waiter's and the holder's names.
        deadlocks: Cycles that were found.
    """

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        self._loop = loop
        self._rng = rng
        self._held: dict[Place, _Lock] = {}
        self.waited: list[tuple[Place, str, str]] = []
        self.deadlocks = 0

    @property
    def held(self) -> list[tuple[Place, list[str]]]:
        return [(place, [h.name for h in lock.holders]) for place, lock in self._held.items()]

    async def take(self, who: Holder, place: Place, *, exclusive: bool = True) -> bool:
        """Hold a place until `release`; whether that took waiting."""
        waited = False
        while True:
            lock = self._held.get(place)
            if lock is None:
                self._held[place] = _Lock(exclusive, [who])
                return waited
            others = tuple(h for h in lock.holders if h is not who)
            if not others or not (exclusive or lock.exclusive):
                lock.exclusive = lock.exclusive or exclusive
                if who not in lock.holders:
                    lock.holders.append(who)
                return waited
            await self._wait(who, place, lock, others)
            waited = True

    async def passed(self, who: Holder, place: Place) -> None:
        """Wait until nobody else holds a place, without taking it."""
        while True:
            lock = self._held.get(place)
            others = () if lock is None else tuple(h for h in lock.holders if h is not who)
            if lock is None or not others:
                return
            await self._wait(who, place, lock, others)

    async def _wait(
        self, who: Holder, place: Place, lock: _Lock, others: tuple[Holder, ...]
    ) -> None:
        self.waited.append((place, who.name, others[0].name))
        who.waits_for = others
        try:
            if _reaches(others, who):
                self.deadlocks += 1
                raise DeadlockDetected
            future = self._loop.create_future()
            lock.waiters.append(future)
            await future
        finally:
            who.waits_for = ()

    def release(self, who: Holder, places: Sequence[Place]) -> None:
        """Let go; whoever waited looks again, in any order."""
        for place in places:
            lock = self._held.get(place)
            if lock is None or who not in lock.holders:
                continue
            lock.holders.remove(who)
            if not lock.holders:
                del self._held[place]
            waiters, lock.waiters = lock.waiters, []
            if len(waiters) > 1:
                self._rng.shuffle(waiters)
            for future in waiters:
                if not future.done():
                    future.set_result(None)


def _reaches(start: Sequence[Holder], target: Holder) -> bool:
    seen: list[Holder] = []
    todo = list(start)
    while todo:
        one = todo.pop()
        if one is target:
            return True
        if one not in seen:
            seen.append(one)
            todo.extend(one.waits_for)
    return False


class Transaction:
    """One transaction: its writes, its locks, and what its current statement may see."""

    __slots__ = ("_locks", "_places", "_tables", "_who", "snapshot", "writes")

    def __init__(self, who: Holder, tables: dict[str, Table], locks: Locks) -> None:
        self._who = who
        self._tables = tables
        self._locks = locks
        self._places: list[Place] = []
        self.writes: dict[Place, Row | None] = {}
        self.snapshot = 0

    def table(self, name: str) -> Table:
        return self._tables[name]

    def read(self, table: Table, key: Key) -> Row | None:
        """A row as this statement sees it."""
        place = (table.name, key)
        if place in self.writes:
            return self.writes[place]
        return table.at(key, self.snapshot)

    def scan(self, table: Table) -> list[Row]:
        """Every row that this statement sees."""
        keys = list(table.rows)
        keys += [k for name, k in self.writes if name == table.name and k not in table.rows]
        return [row for key in keys if (row := self.read(table, key)) is not None]

    async def lock(self, table: Table, key: Key, *, exclusive: bool = True) -> Row | None:
        """Lock a row; it as it is by then, whatever the statement's snapshot says."""
        place = (table.name, key)
        await self._locks.take(self._who, place, exclusive=exclusive)
        if place not in self._places:
            self._places.append(place)
        return self.newest(table, key)

    def newest(self, table: Table, key: Key) -> Row | None:
        place = (table.name, key)
        if place in self.writes:
            return self.writes[place]
        versions = table.rows.get(key)
        return versions[-1][1] if versions else None

    async def settled(self, table: Table, key: Key) -> Row | None:
        """The row once nobody else is about to add or change it; not locked."""
        await self._locks.passed(self._who, (table.name, key))
        return self.newest(table, key)

    def clashes(self, table: Table, row: Row) -> bool:
        """Whether a row like it in a unique column other than the key is there."""
        for unique in table.uniques[1:]:
            mine = [row[i] for i in unique]
            if None in mine:
                continue
            for key in [*table.rows, *(k for name, k in self.writes if name == table.name)]:
                other = self.newest(table, key)
                if other is not None and [other[i] for i in unique] == mine:
                    return True
        return False

    def write(self, table: Table, key: Key, row: Row | None) -> None:
        """Set a row that is locked."""
        if row is not None and table.check is not None:
            table.check(row)
        self.writes[(table.name, key)] = row

    def apply(self, number: int) -> None:
        """Make the writes visible to statements that begin after now, and let go of the locks."""
        for (name, key), row in self.writes.items():
            self._tables[name].rows.setdefault(key, []).append((number, row))
        self.end()

    def end(self) -> None:
        """Let go of the locks."""
        places, self._places = self._places, []
        self.writes = {}
        self._locks.release(self._who, places)
