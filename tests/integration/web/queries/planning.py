"""Plans statements as among a million rows, and tells which plans read too much."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from .conftest import Query

ROWS = 1_000_000
SORTED_MAX = 1000
"""Rows that a list may sort to take its page from them."""

SMALL = {
    "assets": "a row an asset",
    "candle_gaps": "what the venue is still to be asked for, a few rows a market and interval",
    "counters": "a row a counter-account, asset and lane",
    "instruments": "a row an instrument",
    "leases": "a row a venue account",
    "schema_migration": "a row a migration",
    "shared_secrets": "a handful",
    "signing_keys": "a handful: retired ones are deleted",
    "switch_changes": "a row a turn of a switch, by hand",
    "switches": "a row a switch",
    "venue_sessions": "a row a venue",
    "webhooks": "as many as `webhooks.subscriptions_max`",
}
"""Tables that do not grow with use, and why."""

_TELL = """SELECT pg_restore_relation_stats(
    'schemaname', 'public', 'relname', $1::text,
    'relpages', greatest(1, pg_relation_size($1::regclass) / 8192)::int, 'reltuples', $2::real)"""
_TELL_COLUMN = """SELECT pg_restore_attribute_stats(
    'schemaname', 'public', 'relname', $1::text, 'attname', $2::text, 'inherited', false,
    'null_frac', 0::real, 'avg_width', 16, 'n_distinct', 20::real)"""


async def big_tables(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind = 'r' ORDER BY relname"
    )
    names = [row["relname"] for row in rows]
    assert set(SMALL) <= set(names), "a small table is gone"
    return [name for name in names if name not in SMALL]


async def tell_statistics(url: str) -> list[str]:
    """Make the planner believe that every big table has a million rows.

    It goes by the rows per page that it was told, and by the pages that are there: hence a table
    has to have a page. Its indexes stay as small as they are, which favours no plan that reads a
    whole table. The accounts are few and busy: to sort all that one did would be no better.

    Returns:
        The tables that have none.
    """
    empty = []
    owner = await asyncpg.connect(url)
    try:
        for table in await big_tables(owner):
            if not await owner.fetchval(f"SELECT count(*) FROM {table}"):
                empty.append(table)
            await owner.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            await owner.fetchval(_TELL, table, ROWS)
            for column in await owner.fetch(
                "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0"
                " AND atttypid = 'uuid'::regtype AND attname LIKE '%\\_id'",
                table,
            ):
                await owner.fetchval(_TELL_COLUMN, table, column["attname"])
    finally:
        await owner.close()
    return empty


class Walk:
    """Goes through a plan and notes where it reads more than it should.

    Args:
        big: The big tables.
        partial: Indexes over part of a table, such as open orders: small, however big the table.
    """

    def __init__(self, big: set[str], partial: set[str]) -> None:
        self.big = big
        self.partial = partial
        self.found: list[str] = []

    def go(self, plan: dict[str, Any], limited: bool = False, sorts: bool = False) -> None:
        """Look at a node and those below.

        Args:
            limited: A limit above stops it, once enough has come through.
            sorts: A sort between that limit and here needs everything first.
        """
        kind, table = plan["Node Type"], plan.get("Relation Name", "")
        if kind == "Limit":
            limited, sorts = True, False
        elif kind in ("Sort", "Incremental Sort", "Aggregate", "HashAggregate"):
            sorts = limited
        if kind == "Seq Scan" and table in self.big:
            self.found.append(f"sequential scan of {table}")
        if "Index Name" in plan:
            self._index(plan, kind, limited, sorts)
        for child in plan.get("Plans", ()):
            self.go(child, limited, sorts)

    def _index(self, plan: dict[str, Any], kind: str, limited: bool, sorts: bool) -> None:
        name = plan["Index Name"]
        if name in self.partial or plan.get("Relation Name", name).startswith(tuple(SMALL)):
            return
        if "Index Cond" not in plan:
            # The first page of a list is the index from its beginning; a filter would skip on.
            if not limited or sorts or "Filter" in plan:
                self.found.append(f"{kind.lower()} through all of {name}")
        elif limited and sorts and plan["Plan Rows"] > SORTED_MAX:
            self.found.append(f"sorts everything it finds in {name} before it takes a page")


async def plans(connection: Any, query: Query) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Its plan for the parameters that were sent, and its plan for any."""
    text = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {query.sql}", *query.args)
    yield "custom", json.loads(text)[0]["Plan"]
    await connection.execute(f"PREPARE one AS {query.sql}")
    try:
        nulls = ", ".join(["NULL"] * len(query.args))
        text = await connection.fetchval(
            f"EXPLAIN (FORMAT JSON) EXECUTE one{f'({nulls})' if nulls else ''}"
        )
    finally:
        await connection.execute("DEALLOCATE one")
    yield "generic", json.loads(text)[0]["Plan"]


async def faults(connection: Any, queries: list[Query]) -> list[str]:
    big = set(await big_tables(connection))
    partial = {
        row["name"]
        for row in await connection.fetch(
            "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE indpred IS NOT NULL"
        )
    }
    found = []
    for query in queries:
        async for kind, plan in plans(connection, query):
            walk = Walk(big, partial)
            walk.go(plan)
            found += [
                f"{query.function} ({kind}): {what}\n    {' '.join(query.sql.split())}"
                for what in walk.found
            ]
    return found


_COLUMNS = """
SELECT a.attname AS name, t.typname AS type,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisunique
               AND a.attnum = ANY(i.indkey)) AS is_key,
       EXISTS (SELECT FROM pg_index i JOIN pg_attribute b ON b.attrelid = i.indrelid
               AND b.attnum = ANY(i.indkey) AND b.atttypid = 'int8'::regtype
               WHERE i.indrelid = a.attrelid AND i.indisunique
               AND a.attnum = ANY(i.indkey)) AS is_numbered
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
ORDER BY a.attnum"""
_SPECIAL = """
SELECT pg_get_expr(indpred, indrelid) FROM pg_index
WHERE indrelid = $1::regclass AND indpred IS NOT NULL AND NOT indisunique"""

_PLAIN_INDEXES = """
SELECT indexrelid::regclass::text AS name, pg_get_indexdef(indexrelid) AS sql
FROM pg_index WHERE indrelid = $1::regclass AND NOT indisunique"""


def _varied(column: asyncpg.Record) -> str:
    """The SQL for a copy's column: other keys, other owners, other times, the rest as it is."""
    name, kind = column["name"], column["type"]
    unique = column["is_key"]
    if kind == "uuid" and unique and not column["is_numbered"]:
        return f"CASE WHEN {name} IS NULL THEN NULL ELSE gen_random_uuid() END"
    if kind == "uuid" and name.endswith("_id"):
        return f"CASE WHEN {name} IS NULL THEN NULL ELSE md5({name}::text || n % 2000)::uuid END"
    if kind == "int8" and unique:
        return f"{name} + n * 256000"
    if kind == "text" and unique and not column["is_numbered"]:
        return f"{name} || n"
    if kind == "bytea" and unique:
        return f"substr(sha256({name} || int8send(n)), 1, length({name}))"
    return f"{name} - n % 100000 * interval '1 second'" if kind == "timestamptz" else name


async def fill_tables(url: str) -> list[str]:
    """Give every big table a million rows, copies of those that are there, and real statistics.

    What a partial index is for (open orders, payments that are due) stays rare.
    """
    empty = []
    owner = await asyncpg.connect(url)
    try:
        await owner.execute(
            "SET session_replication_role = replica"
        )  # no foreign keys, no triggers
        for table in await big_tables(owner):
            columns = await owner.fetch(_COLUMNS, table)
            special = [row[0] for row in await owner.fetch(_SPECIAL, table)]
            ordinary = " AND ".join(f"({one}) IS NOT TRUE" for one in special) or "true"
            count = await owner.fetchval(f"SELECT count(*) FROM {table} WHERE {ordinary}")
            if not count:
                empty.append(table)
                continue
            plain = await owner.fetch(_PLAIN_INDEXES, table)
            for index in plain:  # made in one go afterwards: much quicker
                await owner.execute(f"DROP INDEX {index['name']}")
            await owner.execute(
                f"INSERT INTO {table} ({', '.join(column['name'] for column in columns)})"
                f" SELECT {', '.join(map(_varied, columns))}"
                f" FROM {table}, generate_series(1, {ROWS // count + 1}::bigint) AS n"
                f" WHERE {ordinary}"
            )
            for index in plain:
                await owner.execute(index["sql"])
        await owner.execute("VACUUM ANALYZE")
    finally:
        await owner.close()
    return empty
