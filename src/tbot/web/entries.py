"""Reading the journal's table, for those who ask for a page of it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import asyncpg

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry as it is stored; `body` is the JSON that its hash covers."""

    seq: int
    hash: bytes
    body: bytes


async def entries_after(
    connection: Connection, account_id: UUID, after: int, limit: int
) -> tuple[list[StoredEntry], int]:
    """A page of an account's journal, oldest first, and the sequence of its newest entry.

    Args:
        after: Only entries with a higher sequence (>= 0).
        limit: At most this many (>= 1).
    """
    rows = await connection.fetch(
        "SELECT seq, hash, body FROM journal WHERE account_id = $1 AND seq > $2"
        " ORDER BY seq LIMIT $3",
        account_id,
        after,
        limit,
    )
    head = await connection.fetchval("SELECT seq FROM streams WHERE account_id = $1", account_id)
    return [StoredEntry(row["seq"], row["hash"], row["body"]) for row in rows], head or 0
