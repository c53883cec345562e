"""No hot query reads a whole table: EXPLAIN of every statement that the program sends.

The program is put through its paces on a real database while every statement is recorded. Then
each is planned as on tables of a million rows, both for the parameters that were sent and for any
parameters (the plan that a prepared statement soon gets). Every function that sends SQL has to be
among those recorded, so a new one without a case here fails.
"""

from __future__ import annotations

import ast
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest

from tbot.auth import flow as auth_flow
from tbot.auth import store as auth_store
from tbot.auth import users
from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.core.settings import StreamSettings
from tbot.gateway import gateway
from tbot.journal import once
from tbot.journal.batch import Batch, Committed
from tbot.journal.commands import SYSTEM
from tbot.journal.cursors import Journal, Place
from tbot.ledger import marks, payments_store
from tbot.ledger import store as ledger_store
from tbot.ledger import transfers_flow, transfers_store, webhooks
from tbot.ledger.assets import save_assets
from tbot.ledger.importing import check_file, import_file
from tbot.ledger.payments_flow import apply_report
from tbot.ledger.provider import Order, Report, Said
from tbot.ledger.transfers import NewTransfer
from tbot.orders import store as orders_store
from tbot.web import stream_account

from .conftest import METHODS, SOURCES, Query, Recorder

ROWS = 1_000_000
SORTED_MAX = 1000
"""Rows that a list may sort to take its page from them."""

SMALL = {
    "assets": "a row an asset",
    "counters": "a row a counter-account, asset and lane",
    "imports": "a row an imported file",
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
    "gateway/switches.py": "by hand; a row a switch",
    "ledger/duty.py": "advisory locks",
    "ledger/importing.py:_alone": "advisory locks",
    "up.py": "asks whether the server is there",
    "verify/": "reads everything by design",
}
"""Where statements are sent that need not be quick, and why."""

WHOLE = {
    "journal/committer.py:Committer._rollback": "asks no table",
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


async def trade(site: Any, client: Any) -> dict[str, Any]:
    """Everything that HTTP can do to a trading account."""
    account = await site.account(client, USDT="100000", BTC="10")
    url = f"/v1/accounts/{account['id']}"
    orders = []
    for number in range(4):
        answer = await client.post(
            "/v1/orders",
            json={
                "account_id": account["id"],
                "symbol": "BTC-USDT",
                "side": "buy",
                "type": "limit",
                "quantity": "0.1",
                "limit_price": "98",
                "client_order_id": f"mine-{number}",
            },
            headers={"Idempotency-Key": f'"{new_id()}"'},
        )
        assert answer.status_code == 201, answer.text
        orders.append(answer.json())
    await site.report(orders[0], "filled", ("t1", "98", "0.1"))
    # A final order named again: read back from its table with its trades.
    await site.report(orders[0], "filled", ("t1", "98", "0.1"))
    await client.delete(f"/v1/orders/{orders[1]['id']}")
    await client.delete("/v1/orders", params={"account_id": account["id"]})
    for path in (
        "/v1/orders", f"/v1/orders/{orders[0]['id']}",
        f"/v1/orders?account_id={account['id']}&symbol=BTC-USDT&side=buy&limit=1",
        "/v1/orders?open=true&limit=1", "/v1/orders?state=filled", "/v1/accounts?limit=1",
        url, f"{url}/balances", f"{url}/balances?at={account['created_at']}", f"{url}/positions",
        f"{url}/equity", f"{url}/fills", f"{url}/fills?symbol=BTC-USDT", f"{url}/journal",
        f"{url}/statement", f"{url}/statement?from={account['created_at']}&asset=BTC&limit=1",
    ):  # fmt: skip
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        while "next" in answer.links:
            answer = await client.get(answer.links["next"]["url"])
            assert answer.status_code == 200, answer.text
    for path in ("statement", "fills", "journal"):
        answer = await client.get(f"{url}/{path}", headers={"Accept": "text/csv"})
        assert answer.status_code == 200
    return account


async def move_cash(site: Any, client: Any) -> None:
    """Everything that can happen to cash: payments and transfers, named again when they are final."""
    opened = [
        await client.post("/v1/accounts", json={"name": name, "kind": "cash"})
        for name in ("one", "two")
    ]
    one, two = (UUID(answer.json()["id"]) for answer in opened)
    body = {"account_id": str(one), "asset": "USDT", "amount": "1000"}
    deposit = (await client.post("/v1/deposits", json=body)).json()
    for reference in ("its", "another"):
        report = Report(UUID(deposit["id"]), Said.SUCCEEDED, "USDT", Decimal(1000), reference)
        await apply_report(site.payments, report)
    for path in (
        f"/v1/payments/{deposit['id']}", "/v1/payments?kind=deposit&state=succeeded",
        f"/v1/payments?account_id={one}&limit=1", f"/v1/accounts/{one}/statement",
    ):  # fmt: skip
        assert (await client.get(path)).status_code == 200
    body = {"account_id": str(one), "asset": "USDT", "amount": "5", "destination": "there"}
    assert (await client.post("/v1/withdrawals", json=body)).status_code == 201
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write(f"source_account_id,target_account_id,asset,amount\n{one},{two},USDT,1\n")
        file.flush()
        checked = await check_file(site.pool, Path(file.name))
        await import_file(site.pool, site.committer, SYSTEM, Path(file.name), checked)
    desk = site.orders.accounts
    for pending in (False, True, True):
        new = NewTransfer(
            id=new_id(),
            source_id=one,
            target_id=two,
            asset="USDT",
            amount=Decimal(5),
            pending=pending,
            expires_in_s=0.000001,
        )
        assert not isinstance(await transfers_flow.create(desk, SYSTEM, new), Refused)
    small = [
        NewTransfer(id=new_id(), source_id=one, target_id=two, asset="USDT", amount=Decimal(1))
        for _ in range(marks.EVERY)  # so that a mark is written
    ]
    await asyncio.gather(*(transfers_flow.create(desk, SYSTEM, new) for new in small))
    async with site.pool.acquire() as connection:
        *_, first = await transfers_store.list_transfers(connection, [one, two])
        await transfers_store.get_transfer(connection, first.id)
        await transfers_store.list_sent(connection, one)
    assert not isinstance(await transfers_flow.reverse(desk, SYSTEM, first.id), Refused)
    await transfers_flow.Expiry(site.pool, site.committer, site.settings.ledger).sweep()


async def ask_webhooks(site: Any, account_id: UUID) -> None:
    """What subscriptions and their deliveries ask; the deliveries stay, and one subscription."""
    now = clock.utc_now()
    async with site.pool.acquire() as connection:
        owner = await connection.fetchval("SELECT owner_id FROM accounts WHERE id = $1", account_id)
        seq, digest = await webhooks.head(connection, account_id)
        hooks = []
        for _ in range(2):
            new = webhooks.Webhook(
                new_id(), owner, account_id, "https://example.com/", (), bytes(24), True, None,
                0, digest, 0, 1, now, now,
            )  # fmt: skip
            made = await webhooks.create(connection, new, site.settings.webhooks)
            assert isinstance(made, webhooks.Webhook)
            hooks.append(await webhooks.change(connection, made, enabled=True))
        hook = await webhooks.get(connection, hooks[0].id, owner)
        assert await webhooks.place(connection, account_id, seq) == digest
        await webhooks.list_of(connection, owner, None, 10)
        await webhooks.list_enabled(connection, 10)
        for number, state in ((1, "retrying"), (2, "dead"), (3, "delivered")):
            what = webhooks.Delivery(hook.id, number, "order.filled", state, 1, 500, "no", now, now)
            if state == "retrying":
                await webhooks.postpone(connection, what)
                assert await webhooks.retrying(connection, hook.id, number)
            else:
                await webhooks.settle(connection, hook, what, digest, 1)
        assert await webhooks.advance(connection, hook, seq, digest)
        for dead in (False, True):
            assert await webhooks.list_deliveries(connection, hook.id, dead=dead)
        hook = await webhooks.replay(connection, hook, 0, digest)
        await webhooks.disable(connection, hook, "dead letters")
        await webhooks.delete(connection, hooks[1])


async def play_the_bank(site: Any) -> None:
    """What the simulated provider asks its books, when its callbacks are taken and when not."""
    order = Order(new_id(), "USDT", Decimal(1), "there")
    await site.provider.submit(order)
    assert await site.provider.look_up(order.payment_id)
    for status in (500, 204):
        await site.pool.execute("UPDATE simulated_payments SET due_at = now()")
        deaf = httpx.MockTransport(lambda _, status=status: httpx.Response(status))  # type: ignore[misc]
        async with httpx.AsyncClient(transport=deaf, base_url="http://test") as client:
            assert await site.provider._settle(client) == 0
    assert await site.provider._settle(client) > 0


async def play(site: Any, new_site: Any) -> dict[str, Any]:
    """Everything that is asked of the database while T-Bot runs; what else is asked directly."""
    async with site.client("ann") as client, site.client("root") as root:
        account = await trade(site, client)
        await move_cash(site, client)
        await play_the_bank(site)
        await root.get("/v1/users?limit=1")
        await root.get("/v1/ledger/counters")
        await root.get(f"/v1/users/{account['id']}")
        await root.post(
            "/v1/users",
            json={"username": "carl", "password": "correct horse battery staple", "role": "trader"},
            headers={"Idempotency-Key": '"a-new-user"'},
        )
    account_id = UUID(account["id"])
    grant = await auth_flow.login(site.auth, "bob", "correct horse battery staple")
    grant = await auth_flow.refresh(site.auth, grant.refresh_token)
    await auth_flow.revoke(site.auth, grant.refresh_token)
    await users.set_password(site.pool, site.auth.passwords, "bob", "another battery staple")
    await users.set_active(site.pool, "bob", False)
    async with site.pool.acquire() as connection:
        await ask_stores(connection, account_id)
    await save_assets(site.pool, {"USDT": 8})
    await ask_after_a_lost_commit(site)
    await look_for_unsettled(site)
    await ask_webhooks(site, account_id)
    await ask_streams(site, account_id)
    # Another process knows nothing yet: its committer loads what this one has in memory.
    other = await new_site()
    async with other.client("ann") as client:
        assert (await client.get(f"/v1/accounts/{account_id}")).status_code == 200
        answer = await client.post(
            "/v1/orders",
            json={
                "account_id": str(account_id), "symbol": "BTC-USDT", "side": "sell",
                "type": "limit", "quantity": "0.1", "limit_price": "101",
                "client_order_id": "mine-0",
            },
        )  # fmt: skip
        assert answer.status_code == 422, "the id names another order"
    return account


async def ask_stores(connection: Any, account_id: UUID) -> None:
    """What no request asks: the gateway's, the sweepers' and the dispatchers' questions."""
    now = clock.utc_now()
    await orders_store.list_venue_open(connection, "paper")
    await orders_store.find_external(connection, account_id)
    await orders_store.load_instruments(connection, "paper")
    await ledger_store.list_accounts(connection, None, None, 10)
    await ledger_store.list_accounts(connection, None, account_id, 10)
    await marks.balances_after(connection, account_id, 3)
    await auth_store.sweep_sessions(connection, 60)
    await auth_store.living_sessions(connection, [account_id])
    await auth_store.delete_retired_keys(connection)
    await once.clean(connection, now - timedelta(days=3), 100)
    await transfers_store.list_overdue(connection, now, 100)
    await payments_store.list_approvals(connection)
    await payments_store.list_due(connection, [], 100)
    await payments_store.list_silent(connection, now, [], 100)
    await payments_store.list_expired(connection, now, 100)


async def ask_after_a_lost_commit(site: Any) -> None:
    """What a committer asks that does not know whether its COMMIT landed."""
    durable: list[Committed] = []
    site.committer.listen(durable.extend)
    async with site.client("ann") as client:
        await site.account(client)
    batch = Batch([])
    batch.entries += durable[-1:]
    async with site.pool.acquire() as connection:
        assert await batch.landed(connection)


async def look_for_unsettled(site: Any) -> None:
    """What a gateway asks when it is told of orders."""
    parts = SimpleNamespace(pool=site.pool, venue=SimpleNamespace(name="paper"))
    taken: list[Any] = []
    epoch = SimpleNamespace(_parts=parts, orders={}, _take=lambda order, mine: taken.append(order))
    await gateway._Epoch._look(epoch)  # type: ignore[arg-type]
    assert taken


async def ask_streams(site: Any, account_id: UUID) -> None:
    """What private streams ask."""
    owner = await site.pool.fetchval("SELECT owner_id FROM accounts WHERE id = $1", account_id)
    assert await stream_account.owns(site.pool, owner, account_id)
    place, _ = await stream_account.read_snapshot(site.pool, account_id)
    journal = Journal(site.pool, Bus(), StreamSettings())
    assert await journal.find(account_id, place.seq, place.prefix)
    cursor = journal.open(account_id, Place(0, b""))
    try:
        await journal.page(account_id, cursor.place)
        await journal.head(account_id)
        await journal.sweep()
    finally:
        cursor.close()
        await journal.stop()


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


# Plans

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


def hot(recorder: Recorder) -> list[Query]:
    """What was recorded and has to be quick, each statement once."""
    excused = (*NOT_HOT, *WHOLE)
    chosen = {q.sql: q for q in recorder.asking if not q.function.startswith(excused)}
    assert len(chosen) > 60
    return list(chosen.values())


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
        return f"sha256({name} || int8send(n))"
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
            await owner.execute(
                f"INSERT INTO {table} ({', '.join(column['name'] for column in columns)})"
                f" SELECT {', '.join(map(_varied, columns))}"
                f" FROM {table}, generate_series(1, {ROWS // count + 1}::bigint) AS n"
                f" WHERE {ordinary}"
            )
        await owner.execute("VACUUM ANALYZE")
    finally:
        await owner.close()
    return empty


async def check(recorder: Recorder, pool: asyncpg.Pool[Any]) -> list[str]:
    async with pool.acquire() as connection:
        await connection.execute("SET plan_cache_mode = force_generic_plan")
        return await faults(connection, hot(recorder))


async def test_no_hot_query_reads_a_whole_table(
    played: Recorder, owner_url: str, pool: asyncpg.Pool[Any]
) -> None:
    missing = unplayed(played)
    assert not missing, f"no case in this file makes these send their SQL: {missing}"
    empty = await tell_statistics(owner_url)
    found = await check(played, pool)
    assert not found, "\n".join(found)
    assert not empty, f"nothing in this file fills these, so they were not looked at: {empty}"


@pytest.mark.long
async def test_nor_does_it_among_a_million_rows(
    played: Recorder, postgres: Any, database: str, pool: asyncpg.Pool[Any]
) -> None:
    assert not await fill_tables(postgres.url(database, "superuser"))
    found = await check(played, pool)
    assert not found, "\n".join(found)
