"""What a user sees and does of their sessions, and when they last proved who they are.

Functions take a connection first and commit nothing; see `tbot.auth.store` for the rest of the
table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from tbot.auth.store import Connection, notify_ended

_COLUMNS: Final = (
    "id, scope, created_at, last_used_at, expires_at, address, user_agent,"
    " factor_at IS NOT NULL AS factor"
)


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A living session, as its user sees it.

    Attributes:
        address: From where it was begun, or refreshed last.
        factor: Whether a second factor was ever shown in it.
    """

    id: UUID
    scope: str
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    address: str | None
    user_agent: str | None
    factor: bool


@dataclass(frozen=True, slots=True)
class Proofs:
    """What a session has shown, and when.

    Attributes:
        enrolled: Its user has a confirmed second factor.
        password_fresh, factor_fresh: Shown within the time asked for.
    """

    enrolled: bool
    password_fresh: bool
    factor_fresh: bool


async def familiar(connection: Connection, user_id: UUID, address: str | None) -> bool:
    """Whether the user has logged in from this address before, as far as sessions are kept."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM sessions WHERE user_id = $1 AND address = $2)",
        user_id,
        address,
    )
    return found


async def password_hash(connection: Connection, user_id: UUID) -> str | None:
    """An active user's password hash, which stays what it is until the transaction ends.

    So a login that checked a password begins no session after that password was changed.
    """
    found: str | None = await connection.fetchval(
        "SELECT password_hash FROM users WHERE id = $1 AND status = 'active' FOR SHARE", user_id
    )
    return found


async def lock_user(connection: Connection, user_id: UUID) -> str | None:
    """Lock an active user, for changing the password, or counting keys; the password's hash."""
    found: str | None = await connection.fetchval(
        "SELECT password_hash FROM users WHERE id = $1 AND status = 'active' FOR NO KEY UPDATE",
        user_id,
    )
    return found


async def listed(
    connection: Connection, user_id: UUID, before: UUID | None, limit: int
) -> list[SessionRow]:
    """A page of a user's living sessions, newest first."""
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM sessions WHERE user_id = $1 AND ended_at IS NULL"
        " AND expires_at > now() AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        user_id,
        before,
        limit,
    )
    return [SessionRow(**row) for row in rows]


async def end_own(connection: Connection, user_id: UUID, session_id: UUID, reason: str) -> bool:
    """End one living session of a user; False when there is none."""
    answer = await connection.execute(
        "UPDATE sessions SET ended_at = now(), end_reason = $3"
        " WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > now()",
        session_id,
        user_id,
        reason,
    )
    await notify_ended(connection, user_id)
    return answer == "UPDATE 1"


async def end_others(connection: Connection, user_id: UUID, kept: UUID, reason: str) -> int:
    """End every session of a user but one; how many lived."""
    answer = await connection.execute(
        "UPDATE sessions SET ended_at = now(), end_reason = $3"
        " WHERE user_id = $1 AND id <> $2 AND ended_at IS NULL",
        user_id,
        kept,
        reason,
    )
    await notify_ended(connection, user_id)
    return int(answer.rpartition(" ")[2])


async def moved(connection: Connection, session_id: UUID, address: str | None) -> None:
    """A session was refreshed, from this address."""
    await connection.execute(
        "UPDATE sessions SET last_used_at = now(), address = coalesce($2, address) WHERE id = $1",
        session_id,
        address,
    )


async def touch(connection: Connection, used: Mapping[UUID, float]) -> None:
    """Write down when (seconds since the epoch) sessions were last used."""
    ids = sorted(used)
    await connection.execute(
        "UPDATE sessions s SET last_used_at = to_timestamp(u.at)"
        " FROM unnest($1::uuid[], $2::float8[]) AS u (id, at)"
        " WHERE s.id = u.id AND s.last_used_at < to_timestamp(u.at)",
        ids,
        [used[session_id] for session_id in ids],
    )


# Proofs


async def proofs(
    connection: Connection, session_id: UUID, user_id: UUID, age_s_max: int
) -> Proofs | None:
    """What a living session has shown within the last `age_s_max`; None when it is over."""
    row = await connection.fetchrow(
        """
        SELECT coalesce(password_at > now() - $3::interval, false) AS password_fresh,
               coalesce(factor_at > now() - $3::interval, false) AS factor_fresh,
               EXISTS (SELECT FROM totp_factors f
                       WHERE f.user_id = $2 AND f.confirmed_at IS NOT NULL) AS enrolled
        FROM sessions WHERE id = $1 AND user_id = $2 AND ended_at IS NULL AND expires_at > now()
        """,
        session_id,
        user_id,
        timedelta(seconds=age_s_max),
    )
    return None if row is None else Proofs(**row)


async def mark_password(connection: Connection, session_id: UUID) -> None:
    """The session's user has just shown the password."""
    await connection.execute("UPDATE sessions SET password_at = now() WHERE id = $1", session_id)


async def mark_factor(connection: Connection, session_id: UUID) -> None:
    """The session's user has just shown a second factor."""
    await connection.execute("UPDATE sessions SET factor_at = now() WHERE id = $1", session_id)


async def carry_factor(connection: Connection, old_id: UUID, new_id: UUID) -> None:
    """A session that replaces another keeps what was shown of a second factor."""
    await connection.execute(
        "UPDATE sessions SET factor_at = (SELECT factor_at FROM sessions WHERE id = $1)"
        " WHERE id = $2",
        old_id,
        new_id,
    )
