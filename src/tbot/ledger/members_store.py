"""The table of account members: its projection, and who may do what by it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg

from tbot.core import clock
from tbot.core.ids import FIRST_ID
from tbot.journal.commands import AccountState
from tbot.journal.projections import Projection, Write
from tbot.ledger import members
from tbot.ledger.members import Access, MemberRole, Members

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

_WRITE: Final = """INSERT INTO account_members (account_id, user_id, role, since)
SELECT * FROM unnest({0}::uuid[], {1}::uuid[], {2}::text[], {3}::timestamptz[])
ON CONFLICT (account_id, user_id) DO UPDATE SET role = excluded.role, since = excluded.since"""
_REMOVE: Final = """DELETE FROM account_members m
USING unnest({0}::uuid[], {1}::uuid[]) AS u (account_id, user_id)
WHERE m.account_id = u.account_id AND m.user_id = u.user_id"""


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody's role on an account."""

    user_id: UUID
    role: MemberRole
    since: datetime


class MembersProjection(Projection):
    """Keeps `account_members` in step with the journal."""

    entries = "account."

    apply = staticmethod(members.apply)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        """Changed members."""
        kept: list[tuple[Any, ...]] = []
        gone: list[tuple[Any, ...]] = []
        for state in states:
            part = state.parts.get(Members)
            if part is None or not part.changed:
                continue
            for user_id, now in part.changed.items():
                if now is None:
                    gone.append((state.account_id, user_id))
                else:
                    kept.append((state.account_id, user_id, now[0], clock.unstamp(now[1])))
            part.changed.clear()
        writes = []
        if kept:
            writes.append(Write(_WRITE, [list(c) for c in zip(*kept, strict=True)]))
        if gone:
            writes.append(Write(_REMOVE, [list(c) for c in zip(*gone, strict=True)]))
        return writes


async def list_members(connection: Connection, account_id: UUID) -> list[Member]:
    """An account's members in the order of their ids, without its owner."""
    rows = await connection.fetch(
        "SELECT user_id, role, since FROM account_members WHERE account_id = $1 ORDER BY user_id",
        account_id,
    )
    return [Member(row["user_id"], MemberRole(row["role"]), row["since"]) for row in rows]


async def member_access(connection: Connection, account_id: UUID, user_id: UUID) -> Access | None:
    """What somebody who is not its owner may do with an account."""
    role = await connection.fetchval(
        "SELECT role FROM account_members WHERE account_id = $1 AND user_id = $2",
        account_id,
        user_id,
    )
    return None if role is None else MemberRole(role).access


async def shared_with(
    connection: Connection, user_id: UUID, after: UUID | None, limit: int
) -> list[UUID]:
    """A page of accounts of others that somebody is a member of, in the order of their ids."""
    rows = await connection.fetch(
        "SELECT account_id FROM account_members WHERE user_id = $1 AND account_id > $2"
        " ORDER BY account_id LIMIT $3",
        user_id,
        after or FIRST_ID,
        limit,
    )
    return [row["account_id"] for row in rows]


async def still_members(
    connection: Connection, pairs: Sequence[tuple[UUID, UUID]]
) -> set[tuple[UUID, UUID]]:
    """Those of the pairs (account, user) in which the user owns the account or is a member."""
    rows = await connection.fetch(
        """
        SELECT u.account_id, u.user_id
        FROM unnest($1::uuid[], $2::uuid[]) AS u (account_id, user_id)
        WHERE EXISTS (SELECT FROM accounts a WHERE a.id = u.account_id AND a.owner_id = u.user_id)
           OR EXISTS (SELECT FROM account_members m
                      WHERE m.account_id = u.account_id AND m.user_id = u.user_id)
        """,
        [account_id for account_id, _ in pairs],
        [user_id for _, user_id in pairs],
    )
    return {(row["account_id"], row["user_id"]) for row in rows}


async def differences(
    connection: asyncpg.Connection[Any], state: AccountState
) -> AsyncIterator[tuple[UUID, Any, Any]]:
    """Per member: what a replay gives, and what the table has; for `tbot verify`."""
    changed = state.part(Members).changed
    expected = {user_id: now for user_id, now in changed.items() if now is not None}
    for member in await list_members(connection, state.account_id):
        stored = member.role.value, clock.stamp(member.since)
        yield member.user_id, expected.pop(member.user_id, None), stored
    for user_id, replayed in expected.items():
        yield user_id, replayed, None
