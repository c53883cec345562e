"""`tbot verify` finds what does not hold in any table, says so, and goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from tbot.boot import projections
from tbot.ledger.transfers import Transfer
from tbot.venues.base import VenueStatus
from tbot.verify import verify
from tbot.verify.tables import OWNERS


@pytest.fixture
async def owner(owner_url: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Somebody who owns the tables, with their guards taken off."""
    connection = await asyncpg.connect(owner_url)
    for table in ("journal", "fills"):
        await connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
    yield connection
    await connection.close()


@pytest.fixture
async def account(desk: Any) -> Any:
    """An account with a filled order, an open one and a transfer to another."""
    opened = await desk.open(USDT="100000")
    order = (await desk.place(opened, "1", "100", client_order_id="mine")).result.order
    await desk.report(order, VenueStatus.FILLED, ("1", "100", "1"))
    await desk.place(opened)
    moved = await desk.transfer(opened, await desk.open(), "50", "USDT")
    assert isinstance(moved, Transfer), moved
    await desk.verified()
    return opened


async def faults(desk: Any) -> list[str]:
    found: list[str] = (await verify(desk.dsn, projections())).faults
    return found


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM accounts WHERE id = $1", "it is in the journal but not in its table"),
        ("UPDATE accounts SET status = 'frozen' WHERE id = $1", "status: open replayed, frozen"),
        ("UPDATE accounts SET limits = '{}' WHERE id = $1", "its rows of accounts cannot be read"),
        ("DELETE FROM streams WHERE account_id = $1", "1 rows of accounts belong to no stream"),
        ("UPDATE streams SET at = at + interval '1 s' WHERE account_id = $1", "its head is of "),
        ("UPDATE streams SET hash = 'x' WHERE account_id = $1", "its head has another hash"),
        (
            "UPDATE journal SET kind = 'x' WHERE account_id = $1 AND seq = 2",
            "entry 2: its column kind says x, its body account.deposited",
        ),
        (
            "UPDATE journal SET at = at + interval '1 s' WHERE account_id = $1 AND seq = 3",
            "entry 3: its column at says",
        ),
        (
            "UPDATE journal SET command_id = account_id WHERE account_id = $1 AND seq = 1",
            "entry 1: its column command_id says",
        ),
        (
            "UPDATE transfers SET amount = 51, posted_amount = 51 WHERE source_id = $1",
            "amount: 50 replayed, 51 stored",
        ),
        ("DELETE FROM transfers WHERE source_id = $1", "it is in the journal but not in its"),
        ("UPDATE orders SET limit_price = 7 WHERE account_id = $1", "limit_price: 100 replayed"),
        ("UPDATE orders SET state = 'x' WHERE account_id = $1", "its rows of orders cannot be"),
        ("UPDATE orders SET client_key = id WHERE account_id = $1", "client key of order"),
        ("UPDATE fills SET fee = 0 WHERE account_id = $1", "fee: 0.001 replayed, 0 stored"),
        ("DELETE FROM fills WHERE account_id = $1", "/1: it is in the journal but not in its"),
        ("DELETE FROM positions WHERE account_id = $1", "position in BTC-USDT"),
        ("DELETE FROM balances WHERE account_id = $1", "balance of BTC"),
    ],
)
async def test_a_changed_table_is_found(
    desk: Any, account: Any, owner: Any, statement: str, words: str
) -> None:
    assert await owner.execute(statement, account) not in ("UPDATE 0", "DELETE 0")
    found = await faults(desk)
    assert any(words in fault for fault in found), found


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE marks SET balances = '{}'", "mark 256: ("),
        ("UPDATE marks SET at = at + interval '1 s'", "mark 256: ("),
        ("DELETE FROM marks", "mark 256: it is in the journal but not"),
    ],
)
async def test_a_changed_mark_is_found(desk: Any, owner: Any, statement: str, words: str) -> None:
    opened = await desk.open(USDT="100000")
    await asyncio.gather(*(desk.place(opened) for _ in range(260)))
    await desk.verified()
    assert await owner.execute(statement) not in ("UPDATE 0", "DELETE 0")
    assert any(words in fault for fault in await faults(desk))


async def test_a_payment_that_the_journal_does_not_know_is_found(
    desk: Any, account: Any, owner: Any
) -> None:
    await owner.execute(
        "INSERT INTO payments (id, account_id, kind, provider, asset, amount, fee, state, settled,"
        " held, metadata, created_at, updated_at, seq) VALUES ($1, $1, 'deposit', 'p', 'EUR', 5, 0,"
        " 'pending', 0, 0, '{}', now(), now(), 9)",
        account,
    )
    assert await faults(desk) == [
        f"account {account}, payment {account}: it is in its table but not in the journal"
    ]


async def test_one_broken_account_does_not_hide_another(desk: Any, owner: Any) -> None:
    broken, other, third = [await desk.open(USDT="1") for _ in range(3)]
    await owner.execute("UPDATE journal SET body = 'x' WHERE account_id = $1 AND seq = 2", broken)
    await owner.execute("DELETE FROM accounts WHERE id = $1", other)
    await owner.execute("UPDATE balances SET available = 5 WHERE account_id = $1", third)
    found = "\n".join(await faults(desk))
    for account, words in (
        (broken, "entry 2: the hash does not match"),
        (other, "it is in the journal but not in its table"),
        (third, "available: 1 replayed, 5 stored"),
    ):
        assert f"account {account}" in found
        assert words in found


async def test_what_a_forged_entry_says_does_not_stop_the_verification(
    desk: Any, owner: Any
) -> None:
    import hashlib

    account = await desk.open(USDT="1")
    body = await owner.fetchval(
        "SELECT body FROM journal WHERE account_id = $1 AND seq = 2", account
    )
    first = await owner.fetchval(
        "SELECT hash FROM journal WHERE account_id = $1 AND seq = 1", account
    )
    for old, new in (
        (b'"1"', b'"one"'),
        (b'"postings":[', b'"postings":[["available","USDT","x"],'),
    ):
        forged = body.replace(old, new)
        assert forged != body
        await owner.execute(
            "UPDATE journal SET body = $2, hash = $3 WHERE account_id = $1 AND seq = 2",
            account,
            forged,
            hashlib.sha256(first + forged).digest(),
        )
        found = await faults(desk)
        assert any(
            f"account {account}, entry 2 cannot be applied" in fault for fault in found
        ), found


async def test_every_table_of_accounts_is_looked_through(owner: Any) -> None:
    """A table that names accounts and is in nobody's list would be verified by nobody."""
    tables = {
        row["relname"]
        for row in await owner.fetch(
            "SELECT DISTINCT c.relname FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " WHERE c.relkind = 'r' AND a.attname IN ('account_id', 'source_id')"
            " AND c.relnamespace = 'public'::regnamespace"
        )
    }
    known_otherwise = {
        "streams",  # the list itself
        "idempotency_keys",  # answers that were given, kept for a time
        "webhooks",  # what somebody wants to be told of: no journal says it
    }
    assert tables - known_otherwise <= OWNERS.keys(), "see OWNERS in tbot.verify.tables"
