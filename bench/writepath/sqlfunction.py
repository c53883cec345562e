"""The baseline of transfers: a double-entry ledger in plain PL/pgSQL, one function call each.

Written as one would who knows Postgres: rows locked in one statement and in order, balances on the
accounts' rows, an entry for each side with the balance after it, a transfer that names both, checks
that keep money from going below zero, no trigger, no foreign key that is not needed. A call is a
transaction, as durable as ours.
"""

from __future__ import annotations

import asyncio
import random
import time
from uuid import UUID, uuid4

import asyncpg

CONNECTIONS = 20

SCHEMA = """
CREATE SCHEMA plain;
CREATE TABLE plain.accounts (
    id      uuid PRIMARY KEY,
    asset   text NOT NULL,
    balance numeric NOT NULL CHECK (balance >= 0 AND balance <> 'NaN'),
    version bigint NOT NULL
) WITH (fillfactor = 50);
CREATE TABLE plain.transfers (
    id        uuid PRIMARY KEY,
    source_id uuid NOT NULL,
    target_id uuid NOT NULL,
    asset     text NOT NULL,
    amount    numeric NOT NULL CHECK (amount > 0 AND amount <> 'NaN'),
    at        timestamptz NOT NULL
);
CREATE INDEX ON plain.transfers (source_id, id);
CREATE INDEX ON plain.transfers (target_id, id);
CREATE TABLE plain.entries (
    account_id  uuid NOT NULL,
    version     bigint NOT NULL,
    transfer_id uuid NOT NULL,
    amount      numeric NOT NULL,
    balance     numeric NOT NULL,
    at          timestamptz NOT NULL,
    PRIMARY KEY (account_id, version)
);

CREATE FUNCTION plain.transfer(source uuid, target uuid, what text, how_much numeric) RETURNS uuid
LANGUAGE plpgsql AS $$
DECLARE
    made   uuid := uuidv7();
    moment timestamptz := clock_timestamp();
    paying plain.accounts;
    getting plain.accounts;
BEGIN
    IF source = target OR how_much <= 0 THEN
        RAISE EXCEPTION 'bad transfer';
    END IF;
    PERFORM FROM plain.accounts WHERE id IN (source, target) ORDER BY id FOR NO KEY UPDATE;
    UPDATE plain.accounts SET balance = balance - how_much, version = version + 1
    WHERE id = source AND asset = what RETURNING * INTO paying;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such account';
    END IF;
    UPDATE plain.accounts SET balance = balance + how_much, version = version + 1
    WHERE id = target AND asset = what RETURNING * INTO getting;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no such account';
    END IF;
    INSERT INTO plain.transfers VALUES (made, source, target, what, how_much, moment);
    INSERT INTO plain.entries VALUES
        (source, paying.version, made, -how_much, paying.balance, moment),
        (target, getting.version, made, how_much, getting.balance, moment);
    RETURN made;
END
$$;
GRANT USAGE ON SCHEMA plain TO tbot_app;
GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA plain TO tbot_app;
"""


async def prepare(owner_dsn: str, accounts: int) -> list[UUID]:
    """Make the tables and accounts with much on them."""
    ids = [uuid4() for _ in range(accounts)]
    connection = await asyncpg.connect(owner_dsn)
    try:
        await connection.execute(SCHEMA)
        await connection.executemany(
            "INSERT INTO plain.accounts VALUES ($1, 'USD', 1000000000000, 0)", [(i,) for i in ids]
        )
        await connection.execute("ANALYZE plain.accounts")
    finally:
        await connection.close()
    return ids


async def run(dsn: str, accounts: list[UUID], seconds: float, warm_s: float) -> float:
    """Transfers a second, each a call, on `CONNECTIONS` connections."""
    connections = [await asyncpg.connect(dsn) for _ in range(CONNECTIONS)]
    rng = random.Random(1)
    done = 0

    async def caller(connection: asyncpg.Connection[asyncpg.Record], until_s: float) -> int:
        count = 0
        call = await connection.prepare("SELECT plain.transfer($1, $2, 'USD', 1.25)")
        while time.perf_counter() < until_s:
            source, target = rng.sample(accounts, 2)
            await call.fetchval(source, target)
            count += 1
        return count

    try:
        for stretch_s in (warm_s, seconds):
            begun_s = time.perf_counter()
            counts = await asyncio.gather(*(caller(c, begun_s + stretch_s) for c in connections))
            done = sum(counts) / (time.perf_counter() - begun_s)
    finally:
        for connection in connections:
            await connection.close()
    return done
