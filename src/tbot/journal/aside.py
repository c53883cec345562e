"""Entries that are written in a transaction of somebody else's, without the committer.

For streams that no command decides on: a user's security events, which have to be as durable as
the change that they tell of, no more and no less. The stream's row is locked as the committer
locks it, so both may write to one stream: the committer finds another head than it remembers, and
reads anew.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import asyncpg

from tbot.core import clock
from tbot.core.ids import new_id
from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.journal.commands import Actor

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]


async def append(
    connection: Connection, stream_id: UUID, kind: str, actor: Actor, data: dict[str, Any]
) -> int:
    """Add an entry that moves no money to a stream, which begins if it has not.

    To be called inside a transaction, as its last lock: the stream stays locked until its end.

    Args:
        stream_id: Never an account's: nothing here keeps its tables in step.
        data: JSON types.

    Returns:
        The entry's sequence.
    """
    now = clock.utc_now()
    await connection.execute(
        "INSERT INTO streams (account_id, seq, hash, at) VALUES ($1, 0, $2, $3)"
        " ON CONFLICT DO NOTHING",
        stream_id,
        chain.genesis(stream_id),
        now,
    )
    head = await connection.fetchrow(
        "SELECT seq, hash, at FROM streams WHERE account_id = $1 FOR NO KEY UPDATE", stream_id
    )
    assert head is not None  # it was there, or we made it
    at = max(clock.utc_now(), head["at"])
    command_id = new_id()
    entry = Entry(
        v=1,
        account=str(stream_id),
        seq=head["seq"] + 1,
        at=clock.stamp(at),
        kind=kind,
        command=str(command_id),
        by=actor.to_json(),
        postings=[],
        data=data,
    )
    body, digest = chain.seal(head["hash"], entry)
    await connection.execute(
        "WITH j AS (INSERT INTO journal (account_id, seq, command_id, kind, at, body, hash)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7))"
        " UPDATE streams SET seq = $2, hash = $7, at = $5 WHERE account_id = $1",
        stream_id,
        entry.seq,
        command_id,
        kind,
        at,
        body,
        digest,
    )
    return entry.seq
