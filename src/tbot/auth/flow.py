"""Logging in, staying logged in, and knowing who is asking.

`Auth` holds what a process needs for that; the functions below are its operations. Start it with
`opened`, which owns its background task.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import structlog

from tbot.auth import store, tokens
from tbot.auth.keys import Keys
from tbot.auth.passwords import Passwords
from tbot.auth.scopes import Scope, granted
from tbot.auth.sessions import TOPIC, Sessions
from tbot.auth.tokens import AccessClaims
from tbot.auth.users import is_username
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.errors import InsufficientScope, InvalidCredentials, InvalidToken, TBotError
from tbot.core.ids import new_id
from tbot.core.settings import AuthSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS

_log = structlog.get_logger(__name__)

_SESSIONS_KEPT_S = 86_400


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks, as a checked access token says it.

    Attributes:
        expires_at_s: When the token ends, in seconds since the epoch.
    """

    user_id: UUID
    session_id: UUID
    scopes: frozenset[Scope]
    expires_at_s: int

    def require(self, *scopes: str) -> None:
        """Check that the token covers these scopes.

        Raises:
            InsufficientScope: It lacks one.
        """
        for scope in scopes:
            if scope not in self.scopes:
                raise InsufficientScope(scope)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a login or a refresh gives."""

    access_token: str = field(repr=False)
    expires_in_s: int
    refresh_token: str = field(repr=False)
    scopes: frozenset[Scope]
    user_id: UUID
    session_id: UUID


@dataclass(slots=True)
class Auth:
    """The state of authentication in one process.

    Attributes:
        clock: Wall time in seconds since the epoch; tests replace it.
        verified: Tokens whose signature and claims were found good, by the whole token: each use
            still checks expiry, key and session. Bounded; the oldest goes first.
    """

    pool: store.Pool
    settings: AuthSettings
    passwords: Passwords
    keys: Keys
    sessions: Sessions
    bus: Bus
    clock: Callable[[], float] = time.time
    verified: OrderedDict[str, AccessClaims] = field(default_factory=OrderedDict)


@asynccontextmanager
async def opened(
    pool: store.Pool,
    settings: AuthSettings,
    bus: Bus | None = None,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Auth]:
    """Authentication that is ready: keys are read (or made), and kept up to date until the end.

    Args:
        pool: To a migrated database.
        bus: Tells of sessions that ended in other processes.
    """
    tasks = Tasks("auth")
    passwords = Passwords(settings)
    keys = Keys(pool, settings, clock)
    sessions = Sessions(pool, settings.session_cache_s, settings.sessions_cached_max, tasks)
    auth = Auth(pool, settings, passwords, keys, sessions, bus or Bus(), clock)
    try:
        await keys.load()
        tasks.start(_keep(auth), name="keep")
        tasks.start(_forget_when_woken(auth), name="forget")
        yield auth
    finally:
        await tasks.stop()
        passwords.close()


async def _keep(auth: Auth) -> None:
    """Follow key rotation and sweep old sessions, for ever."""
    while True:
        await asyncio.sleep(auth.settings.keys_reload_s)
        try:
            await auth.keys.load()
            async with store.transaction(auth.pool) as connection:
                await store.sweep_sessions(connection, _SESSIONS_KEPT_S)
        except (*DATABASE_FAULTS, TBotError) as error:
            # The keys at hand go on serving; the next round tries again.
            _log.warning("auth_upkeep_failed", error=repr(error))


async def _forget_when_woken(auth: Auth) -> None:
    with auth.bus.listening(TOPIC) as event:
        while True:
            if await wait_for_wake(event, timeout_s=60.0):
                auth.sessions.forget()


async def login(auth: Auth, username: str, password: str, scope: str = "") -> Grant:
    """Begin a session for a user and password.

    An unknown user, a disabled one and a wrong password are the same to the caller, in words and
    in time: each costs one password hash.

    Args:
        scope: What is asked for, separated by spaces; empty for all that the role allows.

    Raises:
        InvalidCredentials: Wrong user or password.
        Overloaded: Too many logins wait already.
    """
    found = None
    if is_username(username):
        async with auth.pool.acquire() as connection:
            found = await store.user_by_name(connection, username)
    user, stored = found if found is not None else (None, None)
    matched = await auth.passwords.matches(stored, password)
    if user is None or not matched or user.status != "active":
        _log.info("login_refused", user_id=str(user.id) if user is not None else None)
        raise InvalidCredentials("user or password is wrong")
    scopes = granted(user.role, scope)
    session_id, refresh_token = new_id(), tokens.new_refresh()
    token_hash = tokens.refresh_hash(refresh_token)
    assert token_hash is not None
    async with store.transaction(auth.pool) as connection:
        expires_at = await store.insert_session(
            connection, session_id, user.id, scope, auth.settings.refresh_ttl_s
        )
        await store.insert_refresh_token(connection, token_hash, session_id)
    _log.info("login", user_id=str(user.id), session_id=str(session_id))
    return _grant(auth, user.id, session_id, scopes, refresh_token, expires_at.timestamp())


async def refresh(auth: Auth, refresh_token: str) -> Grant:
    """Exchange a refresh token for a new pair of tokens; each is good for exactly one exchange.

    Of refreshes that overlap exactly one wins, and the others are refused without harm. A use
    after that means that two parties hold the token: the whole session ends. Rotation never moves
    the session's absolute end. Role and status are read afresh.

    Raises:
        InvalidToken: Unknown, used, or of a session that is over; the caller has to log in again.
    """
    old_hash = tokens.refresh_hash(refresh_token)
    if old_hash is None:
        raise InvalidToken("not a refresh token")
    replacement = tokens.new_refresh()
    new_hash = tokens.refresh_hash(replacement)
    assert new_hash is not None
    reused = False
    async with store.transaction(auth.pool) as connection:
        session_id = await store.session_of_refresh_token(connection, old_hash)
        session = (
            await store.lock_session(connection, session_id) if session_id is not None else None
        )
        if session is None or session.ended:
            raise InvalidToken("the refresh token is unknown or its session is over")
        used, raced = await store.lock_refresh_use(
            connection, old_hash, auth.settings.refresh_grace_s
        )
        if used and raced:
            raise InvalidToken("the refresh token was used by another refresh at the same time")
        if used:
            reused = await store.end_session(connection, session.id, "refresh_reused")
        else:
            await store.use_refresh_token(connection, old_hash)
            await store.insert_refresh_token(connection, new_hash, session.id)
    if used:
        _ended(auth)
        _log.warning(
            "refresh_reused", user_id=str(session.user_id), session_id=str(session.id), ended=reused
        )
        raise InvalidToken("the refresh token was used before: its session is over")
    scopes = granted(session.role, session.scope)
    return _grant(
        auth, session.user_id, session.id, scopes, replacement, session.expires_at.timestamp()
    )


async def revoke(auth: Auth, refresh_token: str) -> None:
    """Log out: end the session of a refresh token, used or not. Unknown tokens change nothing."""
    token_hash = tokens.refresh_hash(refresh_token)
    if token_hash is None:
        return
    async with store.transaction(auth.pool) as connection:
        session_id = await store.session_of_refresh_token(connection, token_hash)
        ended = session_id is not None and await store.end_session(connection, session_id, "logout")
    if ended:
        _ended(auth)
        _log.info("logout", session_id=str(session_id))


async def authenticate(auth: Auth, token: str) -> Principal:
    """Who holds this access token. Costs no signature check and no query for a token seen lately.

    Raises:
        InvalidToken: It is malformed, expired, not ours, or its session is over.
    """
    now_s = auth.clock()
    claims = auth.verified.get(token)
    if claims is None:
        kid = tokens.key_id(token)
        if not await auth.keys.knows(kid):
            raise InvalidToken("signed with an unknown or retired key")
        claims = tokens.verify_access(
            auth.keys.ring,
            token,
            issuer=auth.settings.issuer,
            audience=auth.settings.audience,
            now_s=now_s,
        )
        auth.verified[token] = claims
        while len(auth.verified) > auth.settings.tokens_cached_max:
            auth.verified.popitem(last=False)
    if now_s >= claims.expires_at_s:
        auth.verified.pop(token, None)
        raise InvalidToken("the token has expired")
    if auth.keys.ring.verifying(claims.kid, now_s) is None:
        auth.verified.pop(token, None)
        raise InvalidToken("signed with an unknown or retired key")
    if not await auth.sessions.lives(claims.session_id, claims.user_id):
        auth.verified.pop(token, None)
        raise InvalidToken("the session is over")
    return Principal(claims.user_id, claims.session_id, claims.scopes, claims.expires_at_s)


async def living(auth: Auth, session_ids: Sequence[UUID]) -> set[UUID]:
    """Those of the sessions that live, in one query: for connections that outlive a check.

    To be asked every few seconds, for at most some hundreds at once.
    """
    async with auth.pool.acquire() as connection:
        return await store.living_sessions(connection, session_ids)


def _grant(
    auth: Auth,
    user_id: UUID,
    session_id: UUID,
    scopes: frozenset[Scope],
    refresh_token: str,
    session_expires_at_s: float,
) -> Grant:
    now_s = auth.clock()
    # An access token does not outlive its session.
    ttl_s = min(auth.settings.access_ttl_s, int(session_expires_at_s - now_s))
    if ttl_s < 1:
        raise InvalidToken("the session is over")
    access_token = tokens.sign_access(
        auth.keys.ring,
        user_id=user_id,
        session_id=session_id,
        scopes=scopes,
        issuer=auth.settings.issuer,
        audience=auth.settings.audience,
        now_s=now_s,
        ttl_s=ttl_s,
    )
    return Grant(access_token, ttl_s, refresh_token, scopes, user_id, session_id)


def _ended(auth: Auth) -> None:
    """Forget which sessions live, here and (through the bus) in other processes."""
    auth.sessions.forget()
    auth.bus.wake([TOPIC])
