"""The SQL that the write path speaks, understood from its text.

Entry point: `plan`. It knows bulk `INSERT`/`UPDATE`/`DELETE` over `unnest`, `SELECT` by key with
simple joins and row locks, `WITH` of all these, and transaction control. Each text is read once. A
statement outside of that raises `UnknownStatement`, which names it: teach it here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from .expressions import (
    Expression,
    Rows,
    Running,
    Scope,
    Source,
    UnknownStatement,
    condition,
    expression,
    joined,
    match,
    names,
    scope_of,
    source_of,
    sources_of,
    split,
)
from .tables import Row, Table


class UniqueViolation(Exception):
    """A key is taken, as `constraint` says."""

    def __init__(self, message: str, constraint: str) -> None:
        super().__init__(message)
        self.constraint = constraint


class Plan(Protocol):
    """A statement that was understood."""

    async def run(self, running: Running) -> Rows: ...


@dataclass(frozen=True, slots=True)
class Control:
    """BEGIN, COMMIT or ROLLBACK: the backend's own business."""

    word: str

    async def run(self, running: Running) -> Rows:
        raise AssertionError("transaction control is the backend's")


_plans: dict[str, tuple[Plan, ...]] = {}


def plan(sql: str) -> tuple[Plan, ...]:
    """The statements of a text, in order."""
    plans = _plans.get(sql)
    if plans is None:
        plans = _plans[sql] = tuple(_statement(text) for text in split(_flat(sql), ";") if text)
    return plans


def _flat(sql: str) -> str:
    return " ".join(re.sub(r"--[^\n]*", "", sql).split()).strip()


def _statement(text: str) -> Plan:
    word = text.split(" ", 1)[0].upper()
    if word in ("BEGIN", "START"):
        return Control("BEGIN")
    if word in ("COMMIT", "END"):
        return Control("COMMIT")
    if word in ("ROLLBACK", "ABORT"):
        return Control("ROLLBACK")
    readers = {
        "WITH": _with,
        "SELECT": _selects,
        "INSERT": _insert,
        "UPDATE": _update,
        "DELETE": _delete,
    }
    if word not in readers:
        raise UnknownStatement(text)
    return readers[word](text)


# SELECT.

_SELECT = re.compile(
    r"SELECT (?P<items>.+?)(?: FROM (?P<source>.+?))?(?: WHERE (?P<where>.+?))?"
    r"(?: ORDER BY (?P<order>[\w., ]+?))?(?: LIMIT (?P<limit>\S+))?"
    r"(?: FOR (?P<lock>NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)(?: OF (?P<of>\w+))?)?"
)
_CALL = re.compile(r"(pg_\w+|certify|\w+_session)\((.*)\)(?: AS \w+)?")


@dataclass(slots=True)
class Select:
    """Rows of tables, perhaps locked."""

    items: list[tuple[str, Expression | None]]
    sources: list[Source]
    where: Expression | None
    order: tuple[str, ...]
    lock: str | None
    of: str | None
    fast: tuple[str, Expression] | None
    plain: bool

    async def run(self, running: Running) -> Rows:
        if self.fast is not None and self.sources[0].table not in running.named:
            scopes = self._by_key(running)
        else:
            scopes = joined(self.sources, running)
            if self.where is not None:
                scopes = [scope for scope in scopes if self.where(scope, running.args)]
        if self.order:
            scopes.sort(key=lambda scope: tuple(scope[name] for name in self.order))
        if self.lock is not None:
            scopes = await self._lock(running, scopes)
        if any(expression is None for _, expression in self.items):
            star = [name for source in self.sources for name in source.relation(running)[0]]
            rows = [tuple([scope[name] for name in star]) for scope in scopes]
            return Rows(star, rows, f"SELECT {len(rows)}")
        columns = [name for name, _ in self.items]
        values = [expression for _, expression in self.items if expression is not None]
        rows = [tuple([value(scope, running.args) for value in values]) for scope in scopes]
        return Rows(columns, rows, f"SELECT {len(rows)}")

    def _by_key(self, running: Running) -> list[Scope]:
        assert self.fast is not None
        column, many = self.fast
        source = self.sources[0]
        table = running.transaction.table(source.table)
        if table.uniques[0] == (table.columns.index(column),):
            keys = [(value,) for value in dict.fromkeys(many({}, running.args))]
            rows = [running.transaction.read(table, key) for key in keys]
        else:
            place, wanted = table.columns.index(column), set(many({}, running.args))
            rows = [row for row in running.transaction.scan(table) if row[place] in wanted]
        return [self._row(source.alias, table, row) for row in rows if row is not None]

    def _row(self, alias: str, table: Table, row: Row) -> Scope:
        if self.plain:
            return dict(zip(table.columns, row, strict=True))
        return scope_of(alias, table.columns, row)

    async def _lock(self, running: Running, scopes: list[Scope]) -> list[Scope]:
        """Lock row after row. A row that was waited for is read again; its companions are not."""
        source = next(s for s in self.sources if self.of in (None, s.alias))
        table = running.transaction.table(source.table)
        exclusive = self.lock in ("NO KEY UPDATE", "UPDATE")
        locked = []
        for scope in scopes:
            names = [table.columns[i] for i in table.uniques[0]]
            key = tuple([scope[n if self.plain else f"{source.alias}.{n}"] for n in names])
            row = await running.transaction.lock(table, key, exclusive=exclusive)
            if row is not None:
                locked.append({**scope, **self._row(source.alias, table, row)})
        return locked


@dataclass(frozen=True, slots=True)
class Union:
    """Rows of several queries."""

    parts: tuple[Plan, ...]

    async def run(self, running: Running) -> Rows:
        answers = [await part.run(running) for part in self.parts]
        rows = [row for answer in answers for row in answer.rows]
        return Rows(answers[0].columns, rows, f"SELECT {len(rows)}")


@dataclass(frozen=True, slots=True)
class Call:
    """A function of Postgres, or of the migrations."""

    name: str
    arguments: tuple[Expression, ...]

    async def run(self, running: Running) -> Rows:
        values = tuple(argument({}, running.args) for argument in self.arguments)
        answer: Any = None
        if self.name == "pg_try_advisory_lock":
            answer = running.session.try_advisory(values)
        elif self.name == "this_session":
            answer = running.session.name
        elif self.name == "end_session":
            answer = await running.session.end_other(*values)
        elif self.name == "certify":
            await _certify(running, *values)
        elif self.name != "pg_notify":
            raise UnknownStatement(self.name)
        return Rows([self.name], [(answer,)], "SELECT 1")


@dataclass(frozen=True, slots=True)
class Calls:
    """Functions, one after the other."""

    calls: tuple[Call, ...]

    async def run(self, running: Running) -> Rows:
        answers = [await call.run(running) for call in self.calls]
        return Rows(
            [name for answer in answers for name in answer.columns],
            [tuple(value for answer in answers for value in answer.rows[0])],
            "SELECT 1",
        )


class Refuted(Exception):
    """`certify` found something else than was assumed."""


async def _certify(
    running: Running,
    ids: Sequence[Any],
    seqs: Sequence[int],
    hashes: Sequence[bytes],
    *switches: Sequence[Any],
) -> None:
    """What the function of the migrations does."""
    transaction = running.transaction
    streams, halts = transaction.table("streams"), transaction.table("switches")
    rows = [await transaction.lock(streams, (one,), exclusive=True) for one in ids]
    places = streams.columns.index("seq"), streams.columns.index("hash")
    found = [None if row is None else tuple(row[place] for place in places) for row in rows]
    if found != list(zip(seqs, hashes, strict=True)):
        raise Refuted("a stream has moved on")
    columns = [halts.columns.index(name) for name in ("name", "halted", "reason")]
    keys = sorted(halts.key_of(row) for row in transaction.scan(halts))
    turned = [await transaction.lock(halts, key, exclusive=False) for key in keys]
    now = [tuple(row[place] for place in columns) for row in turned if row is not None]
    if now != list(zip(*switches, strict=True)):
        raise Refuted("a switch was turned")


def _selects(text: str) -> Plan:
    parts = split(text, " UNION ALL ")
    if len(parts) > 1:
        return Union(tuple(_selects(part) for part in parts))
    found = match(_SELECT, text)
    calls = [_CALL.fullmatch(item) for item in split(found["items"], ",")]
    if all(calls) and not found["source"]:
        made = tuple(
            Call(call[1], tuple(expression(part) for part in split(call[2], ",") if part))
            for call in calls
            if call is not None
        )
        return made[0] if len(made) == 1 else Calls(made)
    items: list[tuple[str, Expression | None]] = []
    for item in split(found["items"], ","):
        if item == "*":
            items.append(("*", None))
            continue
        value, _, name = item.partition(" AS ")
        items.append((name or value.rpartition(".")[2], expression(value)))
    sources = sources_of(found["source"]) if found["source"] else []
    where = found["where"]
    fast = None
    if where and len(sources) == 1 and sources[0].table:
        single = re.fullmatch(r"(?:\w+\.)?(\w+) = ANY ?\((\$\d+)(?:::\w+\[\])?\)", where)
        fast = (single[1], expression(single[2])) if single else None
    return Select(
        items,
        sources,
        condition(where) if where else None,
        names(found["order"]),
        found["lock"],
        found["of"],
        fast,
        plain=len(sources) == 1 and "." not in text,
    )


# Writes.

_INSERT = re.compile(
    r"INSERT INTO (?P<table>\w+)(?: AS (?P<alias>\w+))?(?: ?\((?P<columns>[^()]*)\))?"
    r" (?P<query>SELECT .+?)"
    r"(?: ON CONFLICT(?: ?\((?P<target>[^()]*)\))? DO"
    r" (?:(?P<nothing>NOTHING)|UPDATE SET (?P<sets>.+)))?"
)
_UPDATE = re.compile(
    r"UPDATE (?P<table>\w+)(?: (?:AS )?(?P<alias>(?!SET\b)\w+))? SET (?P<sets>.+?)"
    r"(?: FROM (?P<source>.+?))?(?: WHERE (?P<where>.+))?"
)
_DELETE = re.compile(
    r"DELETE FROM (?P<table>\w+)(?: (?P<alias>(?!WHERE\b)\w+))? WHERE (?P<where>.+)"
)


def _sets(text: str) -> list[tuple[str, Expression]]:
    pairs = [part.partition("=") for part in split(text, ",")]
    return [(name.strip(), expression(value)) for name, _, value in pairs]


def _changed(table: Table, row: Row, sets: Sequence[tuple[str, Any]]) -> Row:
    values = list(row)
    for name, value in sets:
        values[table.columns.index(name)] = value
    return tuple(values)


@dataclass(slots=True)
class Insert:
    """A bulk insert, with what it does about keys that are taken."""

    table: str
    alias: str
    columns: tuple[str, ...]
    query: Plan
    on_conflict: str
    sets: list[tuple[str, Expression]]

    async def run(self, running: Running) -> Rows:
        transaction = running.transaction
        table = transaction.table(self.table)
        columns = self.columns or table.columns
        places = [table.columns.index(name) for name in columns]
        count = 0
        for given in (await self.query.run(running)).rows:
            values: list[Any] = [None] * len(table.columns)
            for place, value in zip(places, given, strict=False):
                values[place] = value
            row = tuple(values)
            count += await self._add(running, table, row)
        return Rows((), [], f"INSERT 0 {count}")

    async def _add(self, running: Running, table: Table, row: Row) -> int:
        transaction = running.transaction
        key = table.key_of(row)
        if table.check is not None:
            table.check(row)  # what is proposed is checked, even where it only changes a row
        if self.on_conflict == "NOTHING" and await transaction.settled(table, key) is not None:
            return 0
        there = await transaction.lock(table, key)
        if there is None:
            if transaction.clashes(table, row):
                raise UniqueViolation(f"{table.name}{key}", f"{table.name}_key")
            transaction.write(table, key, row)
            return 1
        if self.on_conflict == "NOTHING":
            return 0
        if self.on_conflict != "UPDATE":
            raise UniqueViolation(f"{table.name}{key}", f"{table.name}_pkey")
        scope = scope_of(self.alias, table.columns, there)
        scope.update(scope_of("excluded", table.columns, row))
        scope.update(zip(table.columns, there, strict=True))
        sets = [(name, value(scope, running.args)) for name, value in self.sets]
        transaction.write(table, key, _changed(table, there, sets))
        return 1


@dataclass(slots=True)
class Update:
    """Changed or (without `sets`) deleted rows."""

    table: str
    alias: str
    sources: list[Source]
    where: Expression | None
    sets: list[tuple[str, Expression]] | None

    async def run(self, running: Running) -> Rows:
        transaction = running.transaction
        table = transaction.table(self.table)
        others = joined(self.sources, running)
        count = 0
        for row in sorted(transaction.scan(table)):
            mine = scope_of(self.alias, table.columns, row)
            other = next((o for o in others if self._fits({**o, **mine}, running)), None)
            if other is None:
                continue
            key = table.key_of(row)
            newest = await transaction.lock(table, key)
            if newest is None:
                continue
            mine = scope_of(self.alias, table.columns, newest)
            if not self._fits({**other, **mine}, running):
                continue
            count += 1
            if self.sets is None:
                transaction.write(table, key, None)
            else:
                sets = [(n, value({**other, **mine}, running.args)) for n, value in self.sets]
                transaction.write(table, key, _changed(table, newest, sets))
        return Rows((), [], f"{'DELETE' if self.sets is None else 'UPDATE'} {count}")

    def _fits(self, scope: Scope, running: Running) -> bool:
        return self.where is None or bool(self.where(scope, running.args))


def _insert(text: str) -> Plan:
    found = match(_INSERT, text)
    kind = "NOTHING" if found["nothing"] else "UPDATE" if found["sets"] else ""
    sets = _sets(found["sets"]) if found["sets"] else []
    alias = found["alias"] or found["table"]
    query = found["query"]
    unnest = re.fullmatch(r"SELECT \* FROM (unnest\(.+)", query)
    source = _Unnested(source_of(unnest[1])) if unnest else _selects(query)
    return Insert(found["table"], alias, names(found["columns"]), source, kind, sets)


@dataclass(frozen=True, slots=True)
class _Unnested:
    source: Source

    async def run(self, running: Running) -> Rows:
        columns, rows = self.source.relation(running)
        return Rows(columns, rows)


def _update(text: str) -> Plan:
    found = match(_UPDATE, text)
    sources = sources_of(found["source"]) if found["source"] else []
    where = condition(found["where"]) if found["where"] else None
    alias = found["alias"] or found["table"]
    return Update(found["table"], alias, sources, where, _sets(found["sets"]))


def _delete(text: str) -> Plan:
    found = match(_DELETE, text)
    alias = found["alias"] or found["table"]
    return Update(found["table"], alias, [], condition(found["where"]), None)


@dataclass(frozen=True, slots=True)
class With:
    """Named statements and the query over them; all of them see one snapshot."""

    parts: tuple[tuple[str, Plan], ...]
    tail: Plan

    async def run(self, running: Running) -> Rows:
        if isinstance(self.tail, Call | Calls):  # Postgres leaves writes that nothing reads to last
            answer = await self.tail.run(running)
        for name, part in self.parts:
            running.named[name] = await part.run(running)
        return answer if isinstance(self.tail, Call | Calls) else await self.tail.run(running)


def _with(text: str) -> Plan:
    rest = text[len("WITH ") :]
    parts = []
    while True:
        found = re.match(r"(\w+) AS (?:(?:NOT )?MATERIALIZED )?\(", rest)
        if found is None:
            raise UnknownStatement(text)
        body = split(rest[found.end() - 1 :], " ")[0].rstrip(",")
        parts.append((found[1], _statement(body[1:-1].strip())))
        rest = rest[found.end() - 1 + len(body) :].lstrip()
        if not rest.startswith(","):
            break
        rest = rest[1:].lstrip()
    return With(tuple(parts), _statement(rest))
