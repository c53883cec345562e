"""What the server's own role may do to the past: add to it."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

APPEND_ONLY = ("journal", "fills", "marks", "switch_changes")
# Tables of which rows go for good in the course of things; all others only ever grow or change.
CLEANED = {
    "candle_gaps",
    "candles",
    "stream_tickets",
    "account_members",
    "login_failures",
    "mfa_challenges",
    "recovery_codes",
    "totp_factors",
    "idempotency_keys",
    "leases",
    "refresh_tokens",
    "sessions",
    "signing_keys",
    "webhook_attempts",
    "webhook_deliveries",
    "webhooks",
}


@pytest.mark.parametrize("table", APPEND_ONLY)
async def test_the_past_cannot_be_rewritten_by_the_server(pool: Any, table: str) -> None:
    column = await pool.fetchval(
        "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 2",
        table,
    )
    for statement in (
        f"UPDATE {table} SET {column} = {column}",
        f"DELETE FROM {table}",
        f"TRUNCATE {table}",
        f"TRUNCATE {table} CASCADE",
        f"ALTER TABLE {table} DISABLE TRIGGER USER",
        f"DROP TABLE {table}",
        f"MERGE INTO {table} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
        f"CREATE RULE r AS ON INSERT TO {table} DO INSTEAD NOTHING",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(statement)
    # Not even for a superuser's trick that any role could try.
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute("SET session_replication_role = replica")


@pytest.mark.parametrize("table", ["journal", "fills", "switch_changes"])
async def test_nor_by_the_owner_by_a_slip(owner_url: str, table: str) -> None:
    """Where the server's role owns the database, as one may have it, grants bind nobody."""
    owner = await asyncpg.connect(owner_url)
    try:
        column = await owner.fetchval(
            "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum = 2", table
        )
        for statement in (
            f"UPDATE {table} SET {column} = {column}",
            f"DELETE FROM {table}",
            f"TRUNCATE {table}",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="is append-only"):
                await owner.execute(statement)
    finally:
        await owner.close()


async def test_no_right_is_given_that_nobody_needs(owner_url: str) -> None:
    owner = await asyncpg.connect(owner_url)
    try:
        rows = await owner.fetch(
            "SELECT table_name, privilege_type FROM information_schema.role_table_grants"
            " WHERE grantee IN ('tbot_app', 'PUBLIC') AND table_schema = 'public'"
        )
    finally:
        await owner.close()
    rights: dict[str, set[str]] = {}
    for row in rows:
        rights.setdefault(row["table_name"], set()).add(row["privilege_type"])
    for table in APPEND_ONLY:
        assert rights[table] == {"SELECT", "INSERT"}, table
    for table, granted in rights.items():
        assert granted <= {"SELECT", "INSERT", "UPDATE", "DELETE"}, table
        assert "DELETE" not in granted or table in CLEANED, table
