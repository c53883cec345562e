"""Expressions, conditions and sources of rows of the SQL that the fake database understands.

Entry points: `expression`, `condition`, `sources_of`, `joined`; `split` for whoever takes SQL apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from .tables import Row, Transaction

type Scope = dict[str, Any]
type Expression = Callable[[Scope, Sequence[Any]], Any]


class UnknownStatement(Exception):
    """The fake database was never taught this; `tests/simulation/statements.py` is the place."""


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

    name: str

    async def end_other(self, name: str, patience_ms: int) -> bool:
        """End another session, with some patience; whether it is over."""

    def try_advisory(self, key: tuple[int, ...]) -> bool:
        """Take a lock that lasts as long as the session, unless another session has it."""


@dataclass(slots=True)
class Running:
    """One statement under way."""

    session: Session
    transaction: Transaction
    args: Sequence[Any]
    named: dict[str, Rows] = field(default_factory=dict)


def split(text: str, separator: str) -> list[str]:
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


def match(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise UnknownStatement(text)
    return found


# Expressions.

_CAST = re.compile(r"::(\w+)(\(\d+\))?(\[\])?$")


def expression(text: str) -> Expression:
    text = text.strip()
    cast = _CAST.search(text)
    if cast is not None:
        value = expression(text[: cast.start()])
        return _to_decimal(value) if cast[1] in ("numeric", "amount") else value
    sums = split(text, " + ")
    if len(sums) > 1:
        terms = [expression(term) for term in sums]
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


def _to_decimal(value: Expression) -> Expression:
    """Amounts may be sent as text."""

    def one(given: Any) -> Any:
        return Decimal(given) if isinstance(given, str) else given

    def converted(scope: Scope, args: Sequence[Any]) -> Any:
        given = value(scope, args)
        return [one(g) for g in given] if isinstance(given, list) else one(given)

    return converted


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


def condition(text: str) -> Expression:
    """A conjunction of simple comparisons."""
    tests = [_comparison(part) for part in split(text, " AND ")]
    if len(tests) == 1:
        return tests[0]
    return lambda scope, args: all(test(scope, args) for test in tests)


def _comparison(text: str) -> Expression:
    found = re.fullmatch(r"(\S+) = ANY ?\((.+)\)", text)
    if found:
        left, many = expression(found[1]), expression(found[2])
        return lambda scope, args: left(scope, args) in many(scope, args)
    found = re.fullmatch(r"(\S+) (NOT )?IN \((.+)\)", text)
    if found:
        left, wanted = expression(found[1]), not found[2]
        options = [expression(part) for part in split(found[3], ",")]
        return lambda scope, args: (
            (left(scope, args) in [option(scope, args) for option in options]) is wanted
        )
    found = re.fullmatch(r"(\S+) IS (NOT )?NULL", text)
    if found:
        left, wanted = expression(found[1]), not found[2]
        return lambda scope, args: (left(scope, args) is None) is wanted
    found = re.fullmatch(r"(\S+) (=|<>|<=|>=|<|>) (.+)", text)
    if found:
        left, compare, right = expression(found[1]), _COMPARE[found[2]], expression(found[3])
        return lambda scope, args: compare(left(scope, args), right(scope, args))
    raise UnknownStatement(f"condition {text!r}")


# Sources of rows.


@dataclass(slots=True)
class Source:
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


def names(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip().split(" ")[0] for part in (text or "").split(",") if part.strip())


def source_of(text: str) -> Source:
    found = _UNNEST.fullmatch(text)
    if found:
        parameters = tuple(expression(part) for part in split(found[1], ","))
        return Source(found[2] or "unnest", "", names(found[3]), parameters)
    found = match(_NAMED, text)
    return Source(found[2] or found[1], found[1])


def sources_of(text: str) -> list[Source]:
    first, *joined = re.split(r" JOIN ", text)
    sources = [source_of(part) for part in split(first, ",")]
    for part in joined:
        found = match(_JOIN, part)
        source = source_of(found[1])
        source.using = names(found[2])
        source.on = condition(found[3]) if found[3] else None
        sources.append(source)
    return sources


def scope_of(alias: str, columns: Sequence[str], row: Row) -> Scope:
    scope = dict(zip(columns, row, strict=True))
    scope.update({f"{alias}.{name}": value for name, value in zip(columns, row, strict=True)})
    return scope


def joined(sources: Sequence[Source], running: Running) -> list[Scope]:
    scopes: list[Scope] = [{}]
    for source in sources:
        columns, rows = source.relation(running)
        more = [scope_of(source.alias, columns, row) for row in rows]
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
