"""The tables of 0002_auth.sql and 0011_identity.sql: functions that take a connection first.

Functions whose name begins with `lock` must run inside a transaction. Whether a session or a
refresh token is good is decided by the database's clock, which all processes share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

import asyncpg

from tbot.auth.scopes import Role
from tbot.core.ids import FIRST_ID

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]
type Pool = asyncpg.Pool[Any]

# To the bus of every process (see `tbot.db.notify`): that a session ended, and whose.
_NOTIFY_ENDED: Final = "SELECT pg_notify('tbot', 'sessions,sessions:' || $1::uuid)"
_KEYS_LOCK: Final = 0x7462_6F74_0002  # advisory lock of whoever makes a signing key or a secret
_ROLES_LOCK: Final = 0x7462_6F74_0005  # of whoever changes what a user is


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may log in. The password's hash stays in the table."""

    id: UUID
    username: str
    role: Role
    status: str
    created_at: datetime

    @staticmethod
    def from_row(row: asyncpg.Record) -> User:
        """A user from a row of `_USER` columns."""
        return User(
            id=row["id"],
            username=row["username"],
            role=Role(row["role"]),
            status=row["status"],
            created_at=row["created_at"],
        )


@dataclass(frozen=True, slots=True)
class Session:
    """A login and all that was refreshed from it, with what its user is now."""

    id: UUID
    user_id: UUID
    scope: str
    expires_at: datetime
    ended: bool
    role: Role


@dataclass(frozen=True, slots=True)
class KeyRow:
    """A signing key as stored."""

    seed: bytes
    signs_from: datetime
    signs_until: datetime
    retires_at: datetime


# Users

_USER: Final = "id, username, role, status, created_at"


async def insert_user(
    connection: Connection, user_id: UUID, username: str, password_hash: str, role: Role
) -> User | None:
    """Add an active user; None when the name is taken."""
    row = await connection.fetchrow(
        f"""
        INSERT INTO users
            (id, username, password_hash, role, status, created_at, password_changed_at)
        VALUES ($1, $2, $3, $4, 'active', now(), now())
        ON CONFLICT (username) DO NOTHING
        RETURNING {_USER}
        """,
        user_id,
        username,
        password_hash,
        role.value,
    )
    return User.from_row(row) if row is not None else None


async def user_by_id(connection: Connection, user_id: UUID) -> User | None:
    """The user of this id."""
    row = await connection.fetchrow(f"SELECT {_USER} FROM users WHERE id = $1", user_id)
    return User.from_row(row) if row is not None else None


async def user_by_name(connection: Connection, username: str) -> tuple[User, str] | None:
    """The user of this name, with the password's hash."""
    row = await connection.fetchrow(
        f"SELECT {_USER}, password_hash FROM users WHERE username = $1", username
    )
    return (User.from_row(row), row["password_hash"]) if row is not None else None


async def users_after(connection: Connection, after: UUID | None, limit: int) -> list[User]:
    """A page of users in the order of their ids, which is that of their creation."""
    rows = await connection.fetch(
        f"SELECT {_USER} FROM users WHERE id > $1 ORDER BY id LIMIT $2",
        after or FIRST_ID,
        limit,
    )
    return [User.from_row(row) for row in rows]


async def admin_exists(connection: Connection, besides: UUID | None = None) -> bool:
    """Whether there is an active administrator, or one besides this user."""
    found: bool = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM users WHERE role = 'admin' AND status = 'active'"
        " AND ($1::uuid IS NULL OR id <> $1))",
        besides,
    )
    return found


async def lock_roles(connection: Connection) -> None:
    """Wait until nobody else changes what users are, and keep others waiting until the end.

    So of two administrators who take each other's role away, one remains.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _ROLES_LOCK)


async def set_password(connection: Connection, user_id: UUID, password_hash: str) -> None:
    """Replace a user's password hash."""
    await connection.execute(
        "UPDATE users SET password_hash = $2, password_changed_at = now() WHERE id = $1",
        user_id,
        password_hash,
    )


async def set_standing(connection: Connection, user_id: UUID, role: Role, status: str) -> User:
    """Give a user a role, and make them `active` or `disabled`."""
    row = await connection.fetchrow(
        f"UPDATE users SET role = $2, status = $3 WHERE id = $1 RETURNING {_USER}",
        user_id,
        role.value,
        status,
    )
    assert row is not None  # users are never deleted
    return User.from_row(row)


# Sessions and refresh tokens


async def insert_session(
    connection: Connection,
    session_id: UUID,
    user_id: UUID,
    scope: str,
    ttl_s: int,
    address: str | None = None,
    user_agent: str | None = None,
    *,
    factor: bool = False,
) -> datetime:
    """Begin a session; answers when it ends for good.

    Args:
        factor: Whether it was begun with a second factor, too.
    """
    expires_at: datetime = await connection.fetchval(
        """
        INSERT INTO sessions (id, user_id, scope, created_at, expires_at, last_used_at,
                              address, user_agent, password_at, factor_at)
        VALUES ($1, $2, $3, now(), now() + $4::interval, now(), $5, $6, now(),
                CASE WHEN $7 THEN now() END)
        RETURNING expires_at
        """,
        session_id,
        user_id,
        scope,
        timedelta(seconds=ttl_s),
        address,
        user_agent,
        factor,
    )
    return expires_at


async def insert_refresh_token(connection: Connection, token_hash: bytes, session_id: UUID) -> None:
    """Store a new refresh token of a session."""
    await connection.execute(
        "INSERT INTO refresh_tokens (hash, session_id, issued_at) VALUES ($1, $2, now())",
        token_hash,
        session_id,
    )


async def session_of_refresh_token(connection: Connection, token_hash: bytes) -> UUID | None:
    """The session of a refresh token, used or not. It never changes, so no lock is needed."""
    found: UUID | None = await connection.fetchval(
        "SELECT session_id FROM refresh_tokens WHERE hash = $1", token_hash
    )
    return found


async def lock_session(connection: Connection, session_id: UUID) -> Session | None:
    """Lock a session until the transaction ends, then read it.

    Two statements on purpose: one that locks and joins would read the joined rows as they were
    before it waited.
    """
    found = await connection.fetchval(
        "SELECT id FROM sessions WHERE id = $1 FOR UPDATE", session_id
    )
    if found is None:
        return None
    row = await connection.fetchrow(
        """
        SELECT s.id, s.user_id, s.scope, s.expires_at, u.role,
               s.ended_at IS NOT NULL OR s.expires_at <= clock_timestamp()
                   OR u.status <> 'active' AS ended
        FROM sessions s JOIN users u ON u.id = s.user_id
        WHERE s.id = $1
        """,
        session_id,
    )
    assert row is not None  # the row is locked
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        scope=row["scope"],
        expires_at=row["expires_at"],
        ended=row["ended"],
        role=Role(row["role"]),
    )


async def lock_refresh_use(
    connection: Connection, token_hash: bytes, grace_s: int
) -> tuple[bool, bool]:
    """Whether a refresh token is used already, and if so whether by a refresh that overlapped.

    To be called after `lock_session`. `now()` is when this transaction began: a token that was
    used after that (or at most `grace_s` before) was used by somebody who raced us.
    """
    row = await connection.fetchrow(
        "SELECT used_at IS NOT NULL AS used,"
        " coalesce(used_at > now() - $2::interval, false) AS raced"
        " FROM refresh_tokens WHERE hash = $1",
        token_hash,
        timedelta(seconds=grace_s),
    )
    assert row is not None  # tokens go only with their session, and that is locked
    return row["used"], row["raced"]


async def use_refresh_token(connection: Connection, token_hash: bytes) -> None:
    """Mark a refresh token as used, as of this moment rather than of the transaction's start."""
    await connection.execute(
        "UPDATE refresh_tokens SET used_at = clock_timestamp() WHERE hash = $1", token_hash
    )


async def notify_ended(connection: Connection, user_id: UUID) -> None:
    """Tell all processes, at COMMIT, to believe in no session or key of this user any more."""
    await connection.execute(_NOTIFY_ENDED, user_id)


async def end_session(connection: Connection, session_id: UUID, reason: str) -> bool:
    """End a session; False when it had ended before."""
    user_id: UUID | None = await connection.fetchval(
        "UPDATE sessions SET ended_at = now(), end_reason = $2"
        " WHERE id = $1 AND ended_at IS NULL RETURNING user_id",
        session_id,
        reason,
    )
    if user_id is not None:
        await notify_ended(connection, user_id)
    return user_id is not None


async def end_sessions_of(connection: Connection, user_id: UUID, reason: str) -> int:
    """End every session of a user; answers how many lived."""
    rows = await connection.fetch(
        "UPDATE sessions SET ended_at = now(), end_reason = $2"
        " WHERE user_id = $1 AND ended_at IS NULL RETURNING id",
        user_id,
        reason,
    )
    await notify_ended(connection, user_id)
    return len(rows)


async def session_lives(connection: Connection, session_id: UUID, user_id: UUID) -> bool:
    """Whether access tokens of this session are good."""
    lives: bool | None = await connection.fetchval(
        """
        SELECT s.ended_at IS NULL AND s.expires_at > now() AND u.status = 'active'
        FROM sessions s JOIN users u ON u.id = s.user_id
        WHERE s.id = $1 AND s.user_id = $2
        """,
        session_id,
        user_id,
    )
    return bool(lives)


async def living_sessions(connection: Connection, session_ids: Sequence[UUID]) -> dict[UUID, Role]:
    """Those of the sessions and API keys that are still good, with what their users are."""
    rows = await connection.fetch(
        """
        SELECT s.id, u.role FROM sessions s JOIN users u ON u.id = s.user_id
        WHERE s.id = ANY($1::uuid[])
          AND s.ended_at IS NULL AND s.expires_at > now() AND u.status = 'active'
        UNION ALL
        SELECT k.id, u.role FROM api_keys k JOIN users u ON u.id = k.user_id
        WHERE k.id = ANY($1::uuid[])
          AND k.revoked_at IS NULL AND k.expires_at > now() AND u.status = 'active'
        """,
        session_ids,
    )
    return {row["id"]: Role(row["role"]) for row in rows}


async def sweep_sessions(connection: Connection, kept_s: int, limit: int = 1000) -> int:
    """Delete sessions that expired more than `kept_s` ago, with their tokens, a few at a time."""
    answer = await connection.execute(
        """
        DELETE FROM sessions WHERE id = ANY(ARRAY(
            SELECT id FROM sessions WHERE expires_at < now() - $1::interval
            ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED
        ))
        """,
        timedelta(seconds=kept_s),
        limit,
    )
    return int(answer.rpartition(" ")[2])


# Keys


async def lock_keys(connection: Connection) -> None:
    """Wait until no other process makes keys, and keep others waiting until the end."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _KEYS_LOCK)


async def signing_keys(connection: Connection) -> Sequence[KeyRow]:
    """Every key that still verifies."""
    rows = await connection.fetch(
        "SELECT seed, signs_from, signs_until, retires_at FROM signing_keys"
        " WHERE retires_at > now()"
    )
    return [KeyRow(**row) for row in rows]


async def insert_signing_key(connection: Connection, kid: str, key: KeyRow) -> None:
    """Store a new key."""
    await connection.execute(
        "INSERT INTO signing_keys (kid, seed, signs_from, signs_until, retires_at)"
        " VALUES ($1, $2, $3, $4, $5)",
        kid,
        key.seed,
        key.signs_from,
        key.signs_until,
        key.retires_at,
    )


async def retire_signing_keys(connection: Connection) -> None:
    """Retire every key at once: all access tokens signed so far are void."""
    await connection.execute("DELETE FROM signing_keys")


async def delete_retired_keys(connection: Connection) -> None:
    """Forget keys that verify nothing any more."""
    await connection.execute("DELETE FROM signing_keys WHERE retires_at < now() - interval '1 day'")


async def shared_secret(connection: Connection, name: str, candidate: bytes) -> bytes:
    """The secret of this name; `candidate` becomes it when there is none."""
    await connection.execute(
        "INSERT INTO shared_secrets (name, secret) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        name,
        candidate,
    )
    secret: bytes = await connection.fetchval(
        "SELECT secret FROM shared_secrets WHERE name = $1", name
    )
    return secret
