"""No hot query reads a whole table: EXPLAIN of every statement that the program sends.

The program is put through its paces on a real database while every statement is recorded. Then
each is planned as on tables of a million rows, both for the parameters that were sent and for any
parameters (the plan that a prepared statement soon gets). Every function that sends SQL has to be
among those recorded, so a new one without a case here fails.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from .conftest import METHODS, SOURCES, Query, Recorder
from .planning import faults, fill_tables, tell_statistics
from .playing import play

NOT_HOT = {
    "audit/": "reads a whole journal by design, in pages",
    "backup.py": "reads everything by design",
    "boot.py": "asks no table",
    "cli/": "typed by hand",
    "db/": "roles, catalogs and migrations",
    "doctor.py": "typed by hand",
    "gateway/lease.py": "one row a venue account",
    "gateway/resume.py": "by hand, after a venue has lost its memory",
    "gateway/session.py": "one row a venue",
    "ledger/duty.py": "advisory locks",
    "ledger/importing.py:_alone": "advisory locks",
    "up.py": "asks whether the server is there",
    "verify/": "reads everything by design",
}
"""Where statements are sent that need not be quick, and why."""

WHOLE = {
    "journal/committer.py:Committer._rollback": "asks no table",
    "auth/factors.py:seal_all": "once at the start; the enrolled, as long as they are to be sealed",
    "auth/store.py:admin_exists": "once at the start; stops at the first administrator",
    "auth/store.py:retire_signing_keys": "a restored backup's keys, typed by hand",
    "ledger/store.py:counter_balance": "a counter-account's lanes; for tests and tools",
    "ledger/store.py:sums_by_asset": "for `tbot verify`: everything by design",
}
"""Functions whose statements need no case, and why."""


def senders() -> dict[str, int]:
    """Every function of the program that sends SQL, with its line."""
    found: dict[str, int] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        module = str(path.relative_to(SOURCES))
        for name, line in _senders_in(ast.parse(path.read_text()), ""):
            found[f"{module}:{name}"] = line
    return found


def _senders_in(node: ast.AST, scope: str) -> Iterator[tuple[str, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _senders_in(child, f"{scope}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            name = scope + child.name
            if any(map(_sends, _own_nodes(child))):
                yield name, child.lineno
            yield from _senders_in(child, f"{name}.<locals>.")
        else:
            yield from _senders_in(child, scope)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, without the functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child
            yield from _own_nodes(child)


def _sends(node: ast.AST) -> bool:
    """Whether it is a call such as `connection.fetch(sql, …)`; a projection's `fetch` takes one."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return False
    if node.func.attr not in METHODS or not node.args:
        return False
    first = node.args[0]
    return not (isinstance(first, ast.Name) and first.id == "connection")


@pytest.fixture
async def played(recorder: Recorder, site: Any, new_site: Any) -> Recorder:
    """What was sent while the program was put through its paces."""
    await play(site, new_site)
    return recorder


def unplayed(recorder: Recorder) -> list[str]:
    """Functions that send SQL in earnest and were not made to."""
    known = senders()
    assert "orders/store.py:list_orders" in known and len(known) > 60
    assert set(WHOLE) <= set(known), "a function is excused and is not there"
    wanted = {name for name in known if not name.startswith(tuple(NOT_HOT)) and name not in WHOLE}
    return sorted(wanted - {query.function for query in recorder.queries})


def hot(recorder: Recorder) -> list[Query]:
    """What was recorded and has to be quick, each statement once."""
    excused = (*NOT_HOT, *WHOLE)
    chosen = {q.sql: q for q in recorder.asking if not q.function.startswith(excused)}
    assert len(chosen) > 60
    return list(chosen.values())


PLANTED = [
    (Query("SELECT * FROM orders WHERE symbol = $1", ("BTC-USDT",), "x"), "sequential scan"),
    (
        Query("SELECT * FROM orders WHERE symbol = $1 ORDER BY id LIMIT $2", ("X", 9), "x"),
        "through all of orders_pkey",
    ),
    (
        Query(
            "SELECT * FROM fills WHERE account_id = ANY($1::uuid[]) ORDER BY seq DESC LIMIT $2",
            ([UUID(int=1), UUID(int=2)], 9),
            "x",
        ),
        "sorts everything it finds in fills_account",
    ),
]
"""Statements that must be told."""


async def check(recorder: Recorder, pool: asyncpg.Pool[Any]) -> list[str]:
    async with pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        return await faults(connection, hot(recorder))


async def test_no_hot_query_reads_a_whole_table(
    played: Recorder, owner_url: str, pool: asyncpg.Pool[Any]
) -> None:
    missing = unplayed(played)
    assert not missing, f"no case in `playing` makes these send their SQL: {missing}"
    empty = await tell_statistics(owner_url)
    found = await check(played, pool)
    assert not found, "\n".join(found)
    assert not empty, f"nothing in `playing` fills these, so they were not looked at: {empty}"
    async with pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        for query, fault in PLANTED:
            seen = await faults(connection, [query])
            assert seen and all(fault in one for one in seen), (query.sql, seen)


@pytest.mark.long
async def test_nor_does_it_among_a_million_rows(
    played: Recorder, postgres: Any, database: str, pool: asyncpg.Pool[Any]
) -> None:
    assert not await fill_tables(postgres.url(database, "superuser"))
    found = await check(played, pool)
    assert not found, "\n".join(found)
