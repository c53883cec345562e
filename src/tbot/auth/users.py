"""Adding users, and changing what they are and their passwords."""

from __future__ import annotations

import re
from collections.abc import Collection
from hashlib import blake2b
from typing import Final, overload
from uuid import UUID

import structlog

from tbot.auth import events, factors, store
from tbot.auth.passwords import Passwords
from tbot.auth.scopes import Role
from tbot.auth.store import User
from tbot.core.errors import Conflict, InvalidUser, NotFound, UserExists
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.db.pool import transaction
from tbot.journal.commands import Actor, system
from tbot.journal.once import Kept, Once, beside, keep

_log = structlog.get_logger(__name__)

_TASK: Final = system("users")
USERNAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]{2,31}$"
_USERNAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{2,31}", re.ASCII)


def is_username(value: str) -> bool:
    """Whether a text can be a user's name: 3 to 32 of a–z, 0–9, dot, dash and underscore."""
    return _USERNAME.fullmatch(value) is not None


@overload
async def create_user(
    pool: store.Pool,
    passwords: Passwords,
    username: str,
    password: str,
    role: Role,
    once: None = None,
    actor: Actor = _TASK,
) -> User: ...


@overload
async def create_user(
    pool: store.Pool,
    passwords: Passwords,
    username: str,
    password: str,
    role: Role,
    once: Once | None,
    actor: Actor = _TASK,
) -> User | Refused | Kept: ...


async def create_user(
    pool: store.Pool,
    passwords: Passwords,
    username: str,
    password: str,
    role: Role,
    once: Once | None = None,
    actor: Actor = _TASK,
) -> User | Refused | Kept:
    """Add a user.

    Returns:
        With a key (`once`) that was used before: the kept answer, or a refusal of other content.

    Raises:
        InvalidUser: Name or password break a rule, which the message says.
        UserExists: The name is taken.
        Overloaded: Too many passwords are being hashed.
    """
    if not is_username(username):
        raise InvalidUser(
            "username",
            "a user name has 3 to 32 of a-z, 0-9, dot, dash and underscore, "
            "and begins with a letter or digit",
        )
    broken = passwords.broken_rule(username, password)
    if broken is not None:
        raise InvalidUser("password", broken)
    password_hash = await passwords.hash(password)
    async with transaction(pool) as connection:
        replay = None if once is None else await beside(connection, once)
        if replay is not None:
            return replay
        user = await store.insert_user(connection, new_id(), username, password_hash, role)
        if once is not None and user is not None:
            await keep(connection, once, user)
        if user is not None:
            named = {"username": username, "role": role.value}
            await events.record(connection, user.id, events.USER_CREATED, actor, **named)
    if user is None:
        raise UserExists(f"there is a user {username!r} already")
    _log.info("user_created", user_id=str(user.id), role=role.value)
    return user


async def admin_exists(pool: store.Pool) -> bool:
    """Whether somebody can administer already; if not, `create_first_admin` is to be called."""
    async with pool.acquire() as connection:
        return await store.admin_exists(connection)


async def create_first_admin(
    pool: store.Pool, passwords: Passwords, password: str, username: str = "admin"
) -> bool:
    """Add an administrator where there is none yet.

    Args:
        password: From `passwords.generated`. Store it where only its owner can read it *before*
            calling this: a crash in between then loses nothing but a file.

    Returns:
        False when there was an administrator already, or somebody else has the name.
    """
    if await admin_exists(pool):
        return False
    try:
        await create_user(pool, passwords, username, password, Role.ADMIN)
    except UserExists:
        return False
    return True


async def set_password(
    pool: store.Pool,
    passwords: Passwords,
    username: str,
    password: str,
    actor: Actor = _TASK,
) -> UUID:
    """Replace a password and end all sessions of its user.

    Other processes stop believing in those sessions within `session_cache_s`.

    Raises:
        NotFound: No such user.
        InvalidUser: The password breaks a rule.
        Overloaded: Too many passwords are being hashed.
    """
    broken = passwords.broken_rule(username, password)
    if broken is not None:
        raise InvalidUser("password", broken)
    password_hash = await passwords.hash(password)
    async with transaction(pool) as connection:
        user = await _named(connection, username)
        await store.set_password(connection, user.id, password_hash)
        await store.end_sessions_of(connection, user.id, "password_changed")
        await factors.drop_challenges(connection, user.id)
        await events.record(connection, user.id, events.PASSWORD_CHANGED, actor)
    _log.info("password_changed", user_id=str(user.id))
    return user.id


async def set_active(pool: store.Pool, username: str, active: bool, actor: Actor = _TASK) -> UUID:
    """Let a user in or keep them out; see `change_user`.

    Raises:
        NotFound: No such user.
        Conflict: They are the last administrator.
    """
    user = await user_named(pool, username)
    await change_user(pool, user.id, actor, active=active)
    return user.id


async def set_role(pool: store.Pool, username: str, role: Role, actor: Actor = _TASK) -> UUID:
    """Give a user another role; see `change_user`.

    Raises:
        NotFound: No such user.
        Conflict: They are the last administrator.
    """
    user = await user_named(pool, username)
    await change_user(pool, user.id, actor, role=role)
    return user.id


@overload
async def change_user(
    pool: store.Pool,
    user_id: UUID,
    actor: Actor,
    role: Role | None = None,
    active: bool | None = None,
    once: None = None,
) -> User: ...


@overload
async def change_user(
    pool: store.Pool,
    user_id: UUID,
    actor: Actor,
    role: Role | None,
    active: bool | None,
    once: Once | None,
    versions: Collection[str] | None = None,
) -> User | Refused | Kept: ...


async def change_user(
    pool: store.Pool,
    user_id: UUID,
    actor: Actor,
    role: Role | None = None,
    active: bool | None = None,
    once: Once | None = None,
    versions: Collection[str] | None = None,
) -> User | Refused | Kept:
    """Give a user another role, let them in, or keep them out; None leaves one as it is.

    Whoever is kept out, or is something else now, is logged out everywhere, because tokens say what
    the old role allowed. API keys stay: they rest while their user is kept out, and allow no more
    than the role does. Other processes follow within `session_cache_s`.

    Args:
        versions: Those that the change is for, as `version_of` has them; None for any.

    Returns:
        With a key (`once`) that was used before: the kept answer, or a refusal of other content.
        A refusal, too, where the user is of another version by now.

    Raises:
        NotFound: No such user.
        Conflict: They are the last administrator, and would not be one any more.
    """
    async with transaction(pool) as connection:
        replay = None if once is None else await beside(connection, once)
        if replay is not None:
            return replay
        await store.lock_roles(connection)
        user = await store.user_by_id(connection, user_id)
        if user is None:
            raise NotFound("no such user")
        outcome: User | Refused = user
        wanted = role or user.role
        status = user.status if active is None else "active" if active else "disabled"
        if versions is not None and version_of(user) not in versions:
            outcome = Refused(Reason.PRECONDITION_FAILED)
        elif (wanted, status) != (user.role, user.status):
            outcome = await _change(connection, user, wanted, status, actor)
        if once is not None:
            await keep(connection, once, outcome)
    return outcome


def version_of(user: User) -> str:
    """A name for what can be changed of a user: equal as long as that is equal."""
    standing = f"{user.id}:{user.role.value}:{user.status}"
    return blake2b(standing.encode("ascii"), digest_size=8).hexdigest()


async def _change(
    connection: store.Connection, user: User, role: Role, status: str, actor: Actor
) -> User:
    administers = user.role is Role.ADMIN and user.status == "active"
    if (
        administers
        and (role is not Role.ADMIN or status != "active")
        and not await store.admin_exists(connection, besides=user.id)
    ):
        raise Conflict("last_administrator", "nobody else could administer: make another first")
    changed = await store.set_standing(connection, user.id, role, status)
    if status != "active" or role is not user.role:
        reason = "disabled" if status != "active" else "role_changed"
        await store.end_sessions_of(connection, user.id, reason)
        await factors.drop_challenges(connection, user.id)
    await store.notify_ended(connection, user.id)
    await events.record(
        connection,
        user.id,
        events.USER_CHANGED,
        actor,
        role=role.value if role is not user.role else None,
        role_before=user.role.value if role is not user.role else None,
        status=status if status != user.status else None,
    )
    _log.info("user_changed", user_id=str(user.id), role=role.value, status=status)
    return changed


async def reset_factor(pool: store.Pool, username: str, actor: Actor = _TASK) -> bool:
    """Take the second factor of somebody who lost it away; False when there was none.

    Their sessions end: from now on the password alone opens one.

    Raises:
        NotFound: No such user.
    """
    async with transaction(pool) as connection:
        user = await _named(connection, username)
        removed = await factors.remove(connection, user.id)
        await factors.drop_challenges(connection, user.id)
        await store.end_sessions_of(connection, user.id, "factor_removed")
        if removed:
            await events.record(connection, user.id, events.FACTOR_REMOVED, actor, factor="totp")
    return removed


async def log_out(pool: store.Pool, username: str, actor: Actor = _TASK) -> int:
    """End every session of a user; how many there were.

    Raises:
        NotFound: No such user.
    """
    async with transaction(pool) as connection:
        user = await _named(connection, username)
        ended = await store.end_sessions_of(connection, user.id, "logged_out_by_operator")
        await events.record(connection, user.id, events.SESSIONS_ENDED, actor, sessions=ended)
    return ended


async def user_named(pool: store.Pool, username: str) -> User:
    """The user of this name.

    Raises:
        NotFound: No such user.
    """
    async with pool.acquire() as connection:
        return await _named(connection, username)


async def _named(connection: store.Connection, username: str) -> User:
    found = await store.user_by_name(connection, username) if is_username(username) else None
    if found is None:
        raise NotFound(f"there is no user {username!r}")
    return found[0]
