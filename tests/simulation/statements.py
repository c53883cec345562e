"""The SQL that the write path speaks, understood from its text.

Entry point: `plan`. It knows bulk `INSERT`/`UPDATE`/`DELETE` over `unnest`, `SELECT` by key with
simple joins and row locks, `WITH` of all these, and transaction control. Each text is read once. A
statement outside of that raises `UnknownStatement`, which names it: teach it here, or add a plan
for the whole text with `teach`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from .tables import Row, Table, Transaction

type Scope = dict[str, Any]
type Expression = Callable[[Scope, Sequence[Any]], Any]


class UnknownStatement(Exception):
    """The fake database was never taught this; `tests/simulation/statements.py` is the place."""


class UniqueViolation(Exception):
    """A key is taken."""


class Record:
    """A result row, as asyncpg's: by name, by position, or unpacked."""

    __slots__ = ("_index", "_values")

    def __init__(self, index: Mapping[str, int], values: Sequence[Any]) -> None:
        self._index = index
        self._values = values

    def __getitem__(self, key: Any) -> Any:
        return self._values[self._index[key] if isinstance(key, str) else key]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: str, default: Any = None) -> Any:
        return self._values[self._index[key]] if key in self._index else default

    def keys(self) -> list[str]:
        return list(self._index)

    def values(self) -> Sequence[Any]:
        return self._values

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self._values[place]) for name, place in self._index.items()]


@dataclass(slots=True)
class Rows:
    """What a statement answers."""

    columns: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    tag: str = ""

    def records(self) -> list[Record]:
        index = {name: place for place, name in enumerate(self.columns)}
        return [Record(index, row) for row in self.rows]


class Session(Protocol):
    """What functions need of the backend that runs them."""

    def try_advisory(self, key: tuple[int, ...]) -> bool:
        """Take a lock that lasts as long as the session, unless another session has it."""


@dataclass(slots=True)
class Running:
    """One statement under way."""

    session: Session
    transaction: Transaction
    args: Sequence[Any]
    named: dict[str, Rows] = field(default_factory=dict)


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
        plans = _plans[sql] = tuple(_statement(text) for text in _split(_flat(sql), ";") if text)
    return plans


def teach(sql: str, answer: Plan) -> None:
    """Answer this very text with a plan of one's own."""
    _plans[sql] = (answer,)


def _flat(sql: str) -> str:
    return " ".join(re.sub(r"--[^\n]*", "", sql).split()).strip()


def _split(text: str, separator: str) -> list[str]:
    """Parts between separators that are not within parentheses or quotes."""
    parts, depth, start, quoted, place = [], 0, 0, False, 0
    while place < len(text):
        letter = text[place]
        if letter == "'":
            quoted = not quoted
        elif not quoted and letter in "()[]":
            depth += 1 if letter in "([" else -1
        elif not quoted and not depth and text.startswith(separator, place):
            parts.append(text[start:place].strip())
            place += len(separator)
            start = place
            continue
        place += 1
    parts.append(text[start:].strip())
    return parts


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


def _match(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise UnknownStatement(text)
    return found


# Expressions.

_CAST = re.compile(r"::\w+(\(\d+\))?(\[\])?$")


def _expression(text: str) -> Expression:
    text = _CAST.sub("", text.strip())
    sums = _split(text, " + ")
    if len(sums) > 1:
        terms = [_expression(term) for term in sums]
        return lambda scope, args: _total([term(scope, args) for term in terms])
    if re.fullmatch(r"\$\d+", text):
        place = int(text[1:]) - 1
        return lambda scope, args: args[place]
    if text.upper() == "NULL":
        return lambda scope, args: None
    if re.fullmatch(r"-?\d+", text):
        number = int(text)
        return lambda scope, args: number
    if re.fullmatch(r"'[^']*'", text):
        quoted = text[1:-1]
        return lambda scope, args: quoted
    if text in ("true", "false"):
        truth = text == "true"
        return lambda scope, args: truth
    if re.fullmatch(r"\w+(\.\w+)?", text):
        return lambda scope, args: scope[text]
    raise UnknownStatement(f"expression {text!r}")


def _total(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def _condition(text: str) -> Expression:
    """A conjunction of simple comparisons."""
    tests = [_comparison(part) for part in _split(text, " AND ")]
    if len(tests) == 1:
        return tests[0]
    return lambda scope, args: all(test(scope, args) for test in tests)


def _comparison(text: str) -> Expression:
    found = re.fullmatch(r"(\S+) = ANY ?\((.+)\)", text)
    if found:
        left, many = _expression(found[1]), _expression(found[2])
        return lambda scope, args: left(scope, args) in many(scope, args)
    found = re.fullmatch(r"(\S+) (NOT )?IN \((.+)\)", text)
    if found:
        left, wanted = _expression(found[1]), not found[2]
        options = [_expression(part) for part in _split(found[3], ",")]
        return lambda scope, args: (
            (left(scope, args) in [option(scope, args) for option in options]) is wanted
        )
    found = re.fullmatch(r"(\S+) IS (NOT )?NULL", text)
    if found:
        left, wanted = _expression(found[1]), not found[2]
        return lambda scope, args: (left(scope, args) is None) is wanted
    found = re.fullmatch(r"(\S+) (=|<>|<=|>=|<|>) (.+)", text)
    if found:
        left, compare, right = _expression(found[1]), _COMPARE[found[2]], _expression(found[3])
        return lambda scope, args: compare(left(scope, args), right(scope, args))
    raise UnknownStatement(f"condition {text!r}")


# Sources of rows.


@dataclass(slots=True)
class _Source:
    """A table, a named part of a WITH, or an unnest of parameters; with how it is joined."""

    alias: str
    table: str = ""
    columns: tuple[str, ...] = ()
    parameters: tuple[Expression, ...] = ()
    using: tuple[str, ...] = ()
    on: Expression | None = None

    def relation(self, running: Running) -> tuple[Sequence[str], list[Row]]:
        if self.parameters:
            lists = [parameter({}, running.args) for parameter in self.parameters]
            rows = list(zip(*lists, strict=True))
            return self.columns or [self.alias] * len(lists), rows
        if self.table in running.named:
            named = running.named[self.table]
            return named.columns, named.rows
        table = running.transaction.table(self.table)
        return table.columns, running.transaction.scan(table)


_UNNEST = re.compile(r"unnest\(((?:[^()]|\([^()]*\))*)\)(?: (?:AS )?(\w+)(?: ?\(([^()]*)\))?)?")
_NAMED = re.compile(r"(\w+)(?: (?:AS )?(\w+))?")
_JOIN = re.compile(r"(.+?)(?: USING \(([^()]*)\)| ON (.+))")


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip().split(" ")[0] for part in (text or "").split(",") if part.strip())


def _source(text: str) -> _Source:
    found = _UNNEST.fullmatch(text)
    if found:
        parameters = tuple(_expression(part) for part in _split(found[1], ","))
        return _Source(found[2] or "unnest", "", _names(found[3]), parameters)
    found = _match(_NAMED, text)
    return _Source(found[2] or found[1], found[1])


def _sources(text: str) -> list[_Source]:
    first, *joined = re.split(r" JOIN ", text)
    sources = [_source(part) for part in _split(first, ",")]
    for part in joined:
        found = _match(_JOIN, part)
        source = _source(found[1])
        source.using = _names(found[2])
        source.on = _condition(found[3]) if found[3] else None
        sources.append(source)
    return sources


def _scope(alias: str, columns: Sequence[str], row: Row) -> Scope:
    scope = dict(zip(columns, row, strict=True))
    scope.update({f"{alias}.{name}": value for name, value in zip(columns, row, strict=True)})
    return scope


def _joined(sources: Sequence[_Source], running: Running) -> list[Scope]:
    scopes: list[Scope] = [{}]
    for source in sources:
        columns, rows = source.relation(running)
        more = [_scope(source.alias, columns, row) for row in rows]
        if len(sources) == 1:
            return more
        scopes = [
            {**scope, **other}
            for scope in scopes
            for other in more
            if all(scope[name] == other[name] for name in source.using)
            and (source.on is None or source.on({**scope, **other}, running.args))
        ]
    return scopes


# SELECT.

_SELECT = re.compile(
    r"SELECT (?P<items>.+?)(?: FROM (?P<source>.+?))?(?: WHERE (?P<where>.+?))?"
    r"(?: ORDER BY (?P<order>[\w., ]+?))?(?: LIMIT (?P<limit>\S+))?"
    r"(?: FOR (?P<lock>NO KEY UPDATE|UPDATE|KEY SHARE|SHARE)(?: OF (?P<of>\w+))?)?"
)
_CALL = re.compile(r"(pg_\w+)\((.*)\)(?: AS \w+)?")


@dataclass(slots=True)
class Select:
    """Rows of tables, perhaps locked."""

    items: list[tuple[str, Expression | None]]
    sources: list[_Source]
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
            scopes = _joined(self.sources, running)
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
        return _scope(alias, table.columns, row)

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
    """A function of Postgres."""

    name: str
    arguments: tuple[Expression, ...]

    async def run(self, running: Running) -> Rows:
        values = tuple(argument({}, running.args) for argument in self.arguments)
        answer: Any = None
        if self.name == "pg_try_advisory_lock":
            answer = running.session.try_advisory(values)
        elif self.name != "pg_notify":
            raise UnknownStatement(self.name)
        return Rows([self.name], [(answer,)], "SELECT 1")


def _selects(text: str) -> Plan:
    parts = _split(text, " UNION ALL ")
    if len(parts) > 1:
        return Union(tuple(_selects(part) for part in parts))
    found = _match(_SELECT, text)
    call = _CALL.fullmatch(found["items"])
    if call and not found["source"]:
        return Call(call[1], tuple(_expression(part) for part in _split(call[2], ",") if part))
    items: list[tuple[str, Expression | None]] = []
    for item in _split(found["items"], ","):
        if item == "*":
            items.append(("*", None))
            continue
        value, _, name = item.partition(" AS ")
        items.append((name or value.rpartition(".")[2], _expression(value)))
    sources = _sources(found["source"]) if found["source"] else []
    where = found["where"]
    fast = None
    if where and len(sources) == 1 and sources[0].table:
        single = re.fullmatch(r"(?:\w+\.)?(\w+) = ANY ?\((\$\d+)(?:::\w+\[\])?\)", where)
        fast = (single[1], _expression(single[2])) if single else None
    return Select(
        items,
        sources,
        _condition(where) if where else None,
        _names(found["order"]),
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
_DELETE = re.compile(r"DELETE FROM (?P<table>\w+)(?: (?P<alias>(?!WHERE\b)\w+))? WHERE (?P<where>.+)")


def _sets(text: str) -> list[tuple[str, Expression]]:
    pairs = [part.partition("=") for part in _split(text, ",")]
    return [(name.strip(), _expression(value)) for name, _, value in pairs]


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
        if self.on_conflict == "NOTHING" and await transaction.settled(table, key) is not None:
            return 0
        there = await transaction.lock(table, key)
        if there is None:
            if transaction.clashes(table, row):
                raise UniqueViolation(f"{table.name}{key}")
            transaction.write(table, key, row)
            return 1
        if self.on_conflict == "NOTHING":
            return 0
        if self.on_conflict != "UPDATE":
            raise UniqueViolation(f"{table.name}{key}")
        scope = _scope(self.alias, table.columns, there)
        scope.update(_scope("excluded", table.columns, row))
        scope.update(zip(table.columns, there, strict=True))
        sets = [(name, value(scope, running.args)) for name, value in self.sets]
        transaction.write(table, key, _changed(table, there, sets))
        return 1


@dataclass(slots=True)
class Update:
    """Changed or (without `sets`) deleted rows."""

    table: str
    alias: str
    sources: list[_Source]
    where: Expression | None
    sets: list[tuple[str, Expression]] | None

    async def run(self, running: Running) -> Rows:
        transaction = running.transaction
        table = transaction.table(self.table)
        others = _joined(self.sources, running)
        count = 0
        for row in sorted(transaction.scan(table)):
            mine = _scope(self.alias, table.columns, row)
            other = next((o for o in others if self._fits({**o, **mine}, running)), None)
            if other is None:
                continue
            key = table.key_of(row)
            newest = await transaction.lock(table, key)
            if newest is None:
                continue
            mine = _scope(self.alias, table.columns, newest)
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
    found = _match(_INSERT, text)
    kind = "NOTHING" if found["nothing"] else "UPDATE" if found["sets"] else ""
    sets = _sets(found["sets"]) if found["sets"] else []
    alias = found["alias"] or found["table"]
    query = found["query"]
    unnest = re.fullmatch(r"SELECT \* FROM (unnest\(.+)", query)
    source = _Unnested(_source(unnest[1])) if unnest else _selects(query)
    return Insert(found["table"], alias, _names(found["columns"]), source, kind, sets)


@dataclass(frozen=True, slots=True)
class _Unnested:
    source: _Source

    async def run(self, running: Running) -> Rows:
        columns, rows = self.source.relation(running)
        return Rows(columns, rows)


def _update(text: str) -> Plan:
    found = _match(_UPDATE, text)
    sources = _sources(found["source"]) if found["source"] else []
    where = _condition(found["where"]) if found["where"] else None
    alias = found["alias"] or found["table"]
    return Update(found["table"], alias, sources, where, _sets(found["sets"]))


def _delete(text: str) -> Plan:
    found = _match(_DELETE, text)
    alias = found["alias"] or found["table"]
    return Update(found["table"], alias, [], _condition(found["where"]), None)


@dataclass(frozen=True, slots=True)
class With:
    """Named statements and the query over them; all of them see one snapshot."""

    parts: tuple[tuple[str, Plan], ...]
    tail: Plan

    async def run(self, running: Running) -> Rows:
        for name, part in self.parts:
            running.named[name] = await part.run(running)
        return await self.tail.run(running)


def _with(text: str) -> Plan:
    rest = text[len("WITH ") :]
    parts = []
    while True:
        found = re.match(r"(\w+) AS (?:(?:NOT )?MATERIALIZED )?\(", rest)
        if found is None:
            raise UnknownStatement(text)
        body = _split(rest[found.end() - 1 :], " ")[0].rstrip(",")
        parts.append((found[1], _statement(body[1:-1].strip())))
        rest = rest[found.end() - 1 + len(body) :].lstrip()
        if not rest.startswith(","):
            break
        rest = rest[1:].lstrip()
    return With(tuple(parts), _statement(rest))
