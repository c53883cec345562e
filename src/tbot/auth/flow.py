"""Logging in, staying logged in, and knowing who is asking.

The functions below are the operations of an `Auth` (see `tbot.auth.state`); `tbot.auth.proofs` has
those around second factors and passwords.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from uuid import UUID

import structlog

from tbot.auth import api_keys, events, factors, session_store, store, throttle, tokens, totp
from tbot.auth.api_keys import KeyFacts
from tbot.auth.principal import NOWHERE, Grant, Peer, Principal
from tbot.auth.scopes import SCOPES_OF, Role, Scope, granted
from tbot.auth.state import Auth, opened, sessions_ended
from tbot.auth.users import is_username
from tbot.core.cache import READS
from tbot.core.errors import (
    InvalidCode,
    InvalidCredentials,
    InvalidToken,
    SecondFactorRequired,
    TooManyAttempts,
)
from tbot.core.ids import new_id
from tbot.db.pool import transaction

__all__ = ["NOWHERE", "Auth", "Grant", "Peer", "Principal", "authenticate", "login", "opened"]

_log = structlog.get_logger(__name__)

_TOUCHED_MAX: Final = 100_000
_REMEMBERED: Final = READS.labels("tokens", "hit")
_VERIFIED: Final = READS.labels("tokens", "asked")


async def login(
    auth: Auth,
    username: str,
    password: str,
    scope: str = "",
    peer: Peer = NOWHERE,
    code: str | None = None,
) -> Grant:
    """Begin a session for a user and password.

    An unknown user, a disabled one, a program's and a wrong password are the same to the caller,
    in words and in time: each costs one password hash, unless there were too many failures.

    Args:
        scope: What is asked for, separated by spaces; empty for all that the role allows.
        code: The second factor, by those who have one at hand.

    Raises:
        InvalidCredentials: Wrong user or password.
        InvalidCode: The password was right, the code is not.
        SecondFactorRequired: The password was right and the user has a second factor: go on with
            `tbot.auth.proofs.finish_login`.
        TooManyAttempts: Of this user from here, or from here; nothing was checked.
        Overloaded: Too many logins wait already.
    """
    user, stored, enrolled = await _who(auth, username, peer, code)
    named = throttle.names("password", username, peer.address)
    matched = await auth.passwords.matches(stored, password)
    allowed = user is not None and user.status == "active" and user.role is not Role.SERVICE
    if user is None or not allowed or not matched:
        _log.info("login_refused", user_id=str(user.id) if user is not None else None)
        await note_failure(auth, named, user.id if user is not None else None, peer)
        raise InvalidCredentials("user or password is wrong")
    method = "password"
    async with transaction(auth.pool) as connection:
        if await session_store.password_hash(connection, user.id) != stored:
            raise InvalidCredentials("user or password is wrong")
        if enrolled and code is None:
            waiting = tokens.new_mfa()
            token_hash = tokens.mfa_hash(waiting)
            assert token_hash is not None
            ttl_s = auth.settings.mfa_ttl_s
            await factors.insert_challenge(connection, token_hash, user.id, scope, ttl_s)
        else:
            used = None
            if enrolled and code is not None:
                used = await try_code(auth, connection, user.id, peer, code)
                method = f"password+{used}"
            if not enrolled or used is not None:
                await throttle.succeeded(connection, named)
                return await begin_session(auth, connection, user, scope, peer, method)
    if code is None:
        raise SecondFactorRequired(waiting, ttl_s)
    raise InvalidCode("the code is wrong, or was used before")


def factor_names(user_id: UUID, peer: Peer) -> throttle.Names:
    """What a user's wrong codes are counted under."""
    return throttle.names("factor", str(user_id), peer.address)


async def try_code(
    auth: Auth, connection: store.Connection, user_id: UUID, peer: Peer, code: str
) -> str | None:
    """Use up a code: `totp` or `recovery`; None for one that is not good, which is counted.

    To be called in a transaction that the caller commits in either case. Tries of one user come
    one after the other, so neither a code nor a count can be outrun.

    Raises:
        TooManyAttempts: There were too many wrong ones.
    """
    await factors.lock(connection, user_id)
    await may_try_factor(auth, connection, user_id, peer, code)
    used = await factors.use_code(connection, auth.sealing, user_id, code, auth.clock())
    named = factor_names(user_id, peer)
    if used is None:
        _log.info("second_factor_refused", user_id=str(user_id))
        kind = events.FACTOR_FAILED
        await count_failure(auth, connection, named, user_id, peer, kind)
        return None
    await throttle.succeeded(connection, named)
    if used == "recovery":
        factor = await factors.find(connection, user_id)
        left = 0 if factor is None else factor.recovery_codes_left
        actor = events.stranger(peer)
        await events.record(connection, user_id, events.RECOVERY_USED, actor, left=left)
    return used


async def may_try_factor(
    auth: Auth, connection: store.Connection, user_id: UUID, peer: Peer, code: str
) -> None:
    """Check that there were not too many wrong codes.

    Recovery codes cannot be guessed, so they are the way in from a new address while somebody
    else's guesses block it.

    Raises:
        TooManyAttempts: They have to wait.
    """
    trusted = totp.recovery_hash(user_id, code) is not None or await session_store.familiar(
        connection, user_id, peer.address
    )
    named = factor_names(user_id, peer)
    wait_s = await throttle.wait_s(connection, auth.settings, named, familiar=trusted)
    if wait_s > 0:
        raise TooManyAttempts(wait_s)


async def _who(
    auth: Auth, username: str, peer: Peer, code: str | None
) -> tuple[store.User | None, str | None, bool]:
    """Who wants to log in, the password's hash, and whether there is a second factor.

    Raises:
        TooManyAttempts: They have to wait.
    """
    found, familiar, enrolled = None, False, False
    named = throttle.names("password", username, peer.address)
    async with auth.pool.acquire() as connection:
        if is_username(username):
            found = await store.user_by_name(connection, username)
        if found is not None:
            familiar = await session_store.familiar(connection, found[0].id, peer.address)
            enrolled = await factors.enrolled(connection, found[0].id)
        # Who shows a second factor along with the password cannot be guessing passwords alone.
        trusted = familiar or (enrolled and code is not None)
        wait_s = await throttle.wait_s(connection, auth.settings, named, familiar=trusted)
    if wait_s > 0:
        raise TooManyAttempts(wait_s)
    user, stored = found if found is not None else (None, None)
    return user, stored, enrolled


async def note_failure(auth: Auth, named: throttle.Names, user_id: UUID | None, peer: Peer) -> None:
    """Count a wrong password."""
    async with transaction(auth.pool) as connection:
        await count_failure(auth, connection, named, user_id, peer, events.LOGIN_FAILED)


async def count_failure(
    auth: Auth,
    connection: store.Connection,
    named: throttle.Names,
    user_id: UUID | None,
    peer: Peer,
    kind: str,
) -> None:
    """Count a failure, and tell its user of the first few and then ever fewer."""
    failures = await throttle.failed(connection, auth.settings, named)
    if user_id is not None and events.telling(failures):
        actor = events.stranger(peer)
        agent = peer.user_agent
        await events.record(connection, user_id, kind, actor, failures=failures, user_agent=agent)


async def begin_session(
    auth: Auth,
    connection: store.Connection,
    user: store.User,
    scope: str,
    peer: Peer,
    method: str,
    kind: str = events.LOGIN,
) -> Grant:
    """Begin a session within a transaction that the caller commits.

    Args:
        method: What was shown: `password`, `password+totp` or `password+recovery`.
    """
    scopes = granted(user.role, scope)
    session_id, refresh_token = new_id(), tokens.new_refresh()
    token_hash = tokens.refresh_hash(refresh_token)
    assert token_hash is not None
    expires_at = await store.insert_session(
        connection,
        session_id,
        user.id,
        scope,
        auth.settings.refresh_ttl_s,
        peer.address,
        peer.user_agent,
        factor=method != "password",
    )
    await store.insert_refresh_token(connection, token_hash, session_id)
    actor = events.user(user.id, session_id, peer)
    await events.record(connection, user.id, kind, actor, method=method, user_agent=peer.user_agent)
    _log.info("login", user_id=str(user.id), session_id=str(session_id), method=method)
    return _grant(auth, user.id, session_id, scopes, refresh_token, expires_at.timestamp())


async def refresh(auth: Auth, refresh_token: str, peer: Peer = NOWHERE) -> Grant:
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
    async with transaction(auth.pool) as connection:
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
            actor = events.stranger(peer)
            told = str(session.id)
            await events.record(
                connection, session.user_id, events.REFRESH_REUSED, actor, session=told
            )
        else:
            await store.use_refresh_token(connection, old_hash)
            await store.insert_refresh_token(connection, new_hash, session.id)
            await session_store.moved(connection, session.id, peer.address)
    if used:
        sessions_ended(auth, session.user_id)
        _log.warning(
            "refresh_reused", user_id=str(session.user_id), session_id=str(session.id), ended=reused
        )
        raise InvalidToken("the refresh token was used before: its session is over")
    scopes = granted(session.role, session.scope)
    return _grant(
        auth, session.user_id, session.id, scopes, replacement, session.expires_at.timestamp()
    )


async def revoke(auth: Auth, refresh_token: str, peer: Peer = NOWHERE) -> None:
    """Log out: end the session of a refresh token, used or not. Unknown tokens change nothing."""
    token_hash = tokens.refresh_hash(refresh_token)
    if token_hash is None:
        return
    async with transaction(auth.pool) as connection:
        session_id = await store.session_of_refresh_token(connection, token_hash)
        session = (
            await store.lock_session(connection, session_id) if session_id is not None else None
        )
        ended = session is not None and await store.end_session(connection, session.id, "logout")
        if session is not None and ended:
            actor = events.user(session.user_id, session.id, peer)
            await events.record(connection, session.user_id, events.LOGOUT, actor)
    if session is not None and ended:
        sessions_ended(auth, session.user_id)
        _log.info("logout", session_id=str(session_id))


async def authenticate(auth: Auth, token: str, address: str | None = None) -> Principal:
    """Who holds this access token or API key.

    Costs no signature check and no query for one seen lately.

    Args:
        address: Where it comes from; some API keys are good from some addresses only.

    Raises:
        InvalidToken: It is malformed, expired, not ours, revoked, or its session is over.
    """
    now_s = auth.clock()
    if api_keys.is_key(token):
        return await _authenticate_key(auth, token, address, now_s)
    known = auth.verified.get(token)
    if known is None:
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
        _VERIFIED.inc()
        principal = Principal(claims.user_id, claims.session_id, claims.scopes, claims.expires_at_s)
        auth.verified[token] = claims, principal
        while len(auth.verified) > auth.settings.tokens_cached_max:
            auth.verified.popitem(last=False)
    else:
        claims, principal = known
        _REMEMBERED.inc()
    if now_s >= claims.expires_at_s:
        auth.verified.pop(token, None)
        raise InvalidToken("the token has expired")
    if auth.keys.ring.verifying(claims.kid, now_s) is None:
        auth.verified.pop(token, None)
        raise InvalidToken("signed with an unknown or retired key")
    if not await auth.sessions.lives(claims.session_id, claims.user_id):
        auth.verified.pop(token, None)
        raise InvalidToken("the session is over")
    _touch(auth, claims.session_id, now_s)
    return principal


def recognised(auth: Auth, token: str) -> Principal | None:
    """Who holds this access token, by the same checks, if all it takes is in memory.

    Returns:
        None: ask `authenticate`, which also says what is wrong with it.
    """
    known = auth.verified.get(token)
    if known is None:
        return None
    claims, principal = known
    now_s = auth.clock()
    if (
        now_s >= claims.expires_at_s
        or auth.keys.ring.verifying(claims.kid, now_s) is None
        or not auth.sessions.known_to_live(claims.session_id, claims.user_id)
    ):
        return None
    _REMEMBERED.inc()
    _touch(auth, claims.session_id, now_s)
    return principal


def _touch(auth: Auth, session_id: UUID, now_s: float) -> None:
    if session_id in auth.used or len(auth.used) < _TOUCHED_MAX:
        auth.used[session_id] = now_s


async def _authenticate_key(auth: Auth, key: str, address: str | None, now_s: float) -> Principal:
    facts = await auth.api_keys.find(key)
    if facts is None or now_s >= facts.expires_at_s:
        raise InvalidToken("the API key is unknown, expired, revoked, or not good from here")
    allowed = facts.allows(address)
    if (address or "-", allowed) not in facts.seen and len(facts.seen) < 2 * api_keys.SEEN_MAX:
        await _new_address(auth, facts, address, allowed)
    if not allowed:
        raise InvalidToken("the API key is unknown, expired, revoked, or not good from here")
    auth.api_keys.note(facts, now_s, address)
    return Principal(facts.user_id, facts.id, facts.scopes, facts.expires_at_s, facts.name)


async def _new_address(auth: Auth, facts: KeyFacts, address: str | None, allowed: bool) -> None:
    """Tell the owner of a key that it was used from an address for the first time."""
    where = address or "-"
    async with transaction(auth.pool) as connection:
        if await api_keys.note_address(connection, facts.id, where, allowed):
            kind = events.KEY_NEW_ADDRESS if allowed else events.KEY_REFUSED
            actor = events.stranger(Peer(address))
            key_id = str(facts.id)
            await events.record(
                connection, facts.user_id, kind, actor, key=facts.name, key_id=key_id
            )
    facts.seen.add((where, allowed))


async def living(auth: Auth, session_ids: Sequence[UUID]) -> dict[UUID, frozenset[Scope]]:
    """Those of the sessions and keys that live, and what their users may do at most; one query.

    For connections that outlive their first check; to be asked every few seconds, for at most some
    hundreds at once.
    """
    async with auth.pool.acquire() as connection:
        found = await store.living_sessions(connection, session_ids)
    return {session_id: SCOPES_OF[role] for session_id, role in found.items()}


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
    left_s = int(session_expires_at_s - now_s)
    return Grant(access_token, ttl_s, refresh_token, scopes, user_id, session_id, left_s)
