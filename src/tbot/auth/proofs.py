"""Showing again who one is: second factors, and what needs a fresh proof.

A session remembers when its user last showed the password (a login does) and a second factor. What
moves money out or opens new doors asks for a recent proof: the second factor, once there is one,
and the password before. `step_up` gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from tbot.auth import api_keys, events, factors, session_store, store, throttle, tokens, totp
from tbot.auth.factors import Factor
from tbot.auth.flow import (
    begin_session,
    count_failure,
    factor_names,
    may_try_factor,
    note_failure,
    try_code,
)
from tbot.auth.principal import Grant, Peer, Principal
from tbot.auth.state import Auth, sessions_ended
from tbot.core.errors import (
    Conflict,
    InvalidCode,
    InvalidCredentials,
    InvalidToken,
    InvalidUser,
    KeyNotAllowed,
    StepUpRequired,
    TooManyAttempts,
)
from tbot.db.pool import transaction

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Enrolment:
    """A factor that waits for its first code."""

    secret: str
    uri: str


async def finish_login(auth: Auth, mfa_token: str, code: str, peer: Peer) -> Grant:
    """The second step of a login: of several who try with one token and code, one gets in.

    Raises:
        InvalidToken: The token is unknown, used or too old, or had too many wrong codes.
        InvalidCode: The code is not good; the token still is, a few times.
        TooManyAttempts: Too many wrong codes of this user.
    """
    token_hash = tokens.mfa_hash(mfa_token)
    over = InvalidToken("this login is over: begin again")
    if token_hash is None:
        raise over
    async with transaction(auth.pool) as connection:
        waiting = await factors.challenge_of(connection, token_hash)
        if waiting is None:
            raise over
        # The user's row first, as everywhere; then the factor's.
        if await session_store.password_hash(connection, waiting.user_id) is None:
            raise over
        used = await try_code(auth, connection, waiting.user_id, peer, code)
        if used is not None:
            if await factors.take_challenge(connection, token_hash) is None:
                raise over
            user = await store.user_by_id(connection, waiting.user_id)
            assert user is not None
            method = f"password+{used}"
            return await begin_session(auth, connection, user, waiting.scope, peer, method)
        await factors.fail_challenge(connection, token_hash)
    raise InvalidCode("the code is wrong, or was used before")


async def step_up(
    auth: Auth, principal: Principal, peer: Peer, password: str | None, code: str | None
) -> str:
    """Show the session's user again; `password` or `totp` says what was shown.

    Raises:
        KeyNotAllowed: It is an API key's call.
        StepUpRequired: What was shown is not what is needed.
        InvalidCredentials, InvalidCode: It is not good.
        TooManyAttempts: Too many failures lately.
    """
    no_keys(principal)
    settings = auth.settings
    async with auth.pool.acquire() as connection:
        enrolled = await factors.enrolled(connection, principal.user_id)
    if enrolled:
        if code is None:
            raise StepUpRequired("totp", settings.step_up_s)
        await _show_code(auth, principal, peer, code)
        return "totp"
    if password is None:
        raise StepUpRequired("password", settings.step_up_s)
    await _check_password(auth, principal, peer, password)
    async with transaction(auth.pool) as connection:
        await session_store.mark_password(connection, principal.session_id)
    return "password"


async def require_fresh(auth: Auth, principal: Principal, *, keys: bool = False) -> None:
    """Check that the session has shown lately what a sensitive call needs.

    Args:
        keys: Whether an API key, which can show nothing, may do this all the same.

    Raises:
        KeyNotAllowed, StepUpRequired, InvalidToken: See there.
    """
    if principal.key is not None and keys:
        return
    no_keys(principal)
    shown = await _proofs(auth, principal)
    if shown.enrolled and not shown.factor_fresh:
        raise StepUpRequired("totp", auth.settings.step_up_s)
    if not (shown.enrolled or shown.password_fresh):
        raise StepUpRequired("password", auth.settings.step_up_s)


def no_keys(principal: Principal) -> None:
    """Check that somebody logged in asks.

    Raises:
        KeyNotAllowed: It is an API key.
    """
    if principal.key is not None:
        raise KeyNotAllowed("an API key may not do this: log in")


async def _proofs(auth: Auth, principal: Principal) -> session_store.Proofs:
    async with auth.pool.acquire() as connection:
        shown = await session_store.proofs(
            connection, principal.session_id, principal.user_id, auth.settings.step_up_s
        )
    if shown is None:
        raise InvalidToken("the session is over")
    return shown


async def _show_code(auth: Auth, principal: Principal, peer: Peer, code: str) -> None:
    async with transaction(auth.pool) as connection:
        used = await try_code(auth, connection, principal.user_id, peer, code)
        if used is not None:
            await session_store.mark_factor(connection, principal.session_id)
            return
    raise InvalidCode("the code is wrong, or was used before")


async def _check_password(auth: Auth, principal: Principal, peer: Peer, password: str) -> str:
    """The stored hash that the password was found to match; whoever changes it compares again."""
    async with auth.pool.acquire() as connection:
        user = await store.user_by_id(connection, principal.user_id)
        found = await store.user_by_name(connection, user.username) if user is not None else None
        if found is None:
            raise InvalidToken("the session is over")
        named = throttle.names("password", found[0].username, peer.address)
        familiar = await session_store.familiar(connection, found[0].id, peer.address)
        wait_s = await throttle.wait_s(connection, auth.settings, named, familiar=familiar)
    if wait_s > 0:
        raise TooManyAttempts(wait_s)
    user, stored = found
    if not await auth.passwords.matches(stored, password):
        await note_failure(auth, named, user.id, peer)
        raise InvalidCredentials("the password is wrong")
    async with auth.pool.acquire() as connection:
        await throttle.succeeded(connection, named)
    return stored


# Passwords


async def change_password(
    auth: Auth,
    principal: Principal,
    peer: Peer,
    new: str,
    current: str | None,
    *,
    revoke_keys: bool = False,
) -> Grant:
    """Replace one's own password: every session ends, and a new one begins for who asks.

    Args:
        current: The password as it was; None for who has shown a second factor lately.
        revoke_keys: API keys go, too; else they stay good.

    Raises:
        InvalidUser: The new password breaks a rule.
        InvalidCredentials: `current` is wrong, or was changed by somebody else meanwhile.
        StepUpRequired, KeyNotAllowed, TooManyAttempts, Overloaded: See there.
    """
    no_keys(principal)
    expected = None
    if current is None:
        shown = await _proofs(auth, principal)
        if not shown.factor_fresh:
            method = "totp" if shown.enrolled else "password"
            raise StepUpRequired(method, auth.settings.step_up_s)
    else:
        expected = await _check_password(auth, principal, peer, current)
    async with auth.pool.acquire() as connection:
        user = await store.user_by_id(connection, principal.user_id)
    assert user is not None
    broken = auth.passwords.broken_rule(user.username, new)
    if broken is not None:
        raise InvalidUser("new_password", broken)
    hashed = await auth.passwords.hash(new)
    async with transaction(auth.pool) as connection:
        stored = await session_store.lock_user(connection, user.id)
        living = await store.session_lives(connection, principal.session_id, user.id)
        if stored is None or not living or (expected is not None and stored != expected):
            raise InvalidCredentials("the password was changed meanwhile, or the session ended")
        session = await store.lock_session(connection, principal.session_id)
        assert session is not None
        await store.set_password(connection, user.id, hashed)
        await store.end_sessions_of(connection, user.id, "password_changed")
        await factors.drop_challenges(connection, user.id)
        keys = await api_keys.revoke_all(connection, user.id) if revoke_keys else None
        actor = principal.actor(peer)
        await events.record(connection, user.id, events.PASSWORD_CHANGED, actor, keys_revoked=keys)
        grant = await begin_session(auth, connection, user, session.scope, peer, "password")
        await session_store.carry_factor(connection, session.id, grant.session_id)
    sessions_ended(auth, user.id)
    _log.info("password_changed", user_id=str(user.id))
    return grant


# Second factors


async def factor_of(auth: Auth, principal: Principal) -> Factor | None:
    """The asker's second factor, confirmed or not."""
    async with auth.pool.acquire() as connection:
        return await factors.find(connection, principal.user_id)


async def begin_enrolment(auth: Auth, principal: Principal) -> Enrolment:
    """A new secret, to be confirmed by its first code; an unconfirmed one before it is void.

    Raises:
        Conflict: There is a second factor.
        StepUpRequired, KeyNotAllowed: See `require_fresh`.
    """
    await require_fresh(auth, principal)
    secret = totp.new_secret()
    async with transaction(auth.pool) as connection:
        user = await store.user_by_id(connection, principal.user_id)
        if user is None or not await factors.begin(
            connection, user.id, auth.sealing.seal(user.id, secret)
        ):
            raise Conflict("factor_exists", "there is a second factor already: remove it first")
    uri = totp.otpauth_uri(secret, auth.settings.totp_issuer, user.username)
    return Enrolment(totp.secret_text(secret), uri)


async def confirm_enrolment(auth: Auth, principal: Principal, peer: Peer, code: str) -> list[str]:
    """Confirm the factor by its first code; the recovery codes, which are never shown again.

    From now on logins need it. The session at hand counts as having shown it.

    Raises:
        InvalidCode: The code is not the secret's.
        Conflict: No factor waits for its first code.
        StepUpRequired, KeyNotAllowed, TooManyAttempts: See there.
    """
    await require_fresh(auth, principal)
    user_id = principal.user_id
    async with transaction(auth.pool) as connection:
        await factors.lock(connection, user_id)
        await may_try_factor(auth, connection, user_id, peer, code)
        confirmed = await factors.confirm(connection, auth.sealing, user_id, code, auth.clock())
        if confirmed is None:
            raise Conflict("factor_not_begun", "no second factor waits to be confirmed")
        if confirmed:
            codes = await factors.replace_recovery_codes(connection, user_id)
            await session_store.mark_factor(connection, principal.session_id)
            # Logins that wait passed a password, and no factor was asked of them.
            await factors.drop_challenges(connection, user_id)
            actor = principal.actor(peer)
            await events.record(connection, user_id, events.FACTOR_ADDED, actor, factor="totp")
            return codes
        named, kind = factor_names(user_id, peer), events.FACTOR_FAILED
        await count_failure(auth, connection, named, user_id, peer, kind)
    raise InvalidCode("the code is wrong")


async def new_recovery_codes(auth: Auth, principal: Principal, peer: Peer) -> list[str]:
    """New recovery codes in place of the old ones.

    Raises:
        Conflict: There is no second factor.
        StepUpRequired, KeyNotAllowed: See `require_fresh`.
    """
    await require_fresh(auth, principal)
    user_id = principal.user_id
    async with transaction(auth.pool) as connection:
        if not await factors.enrolled(connection, user_id):
            raise Conflict("factor_not_begun", "there is no second factor")
        codes = await factors.replace_recovery_codes(connection, user_id)
        await events.record(connection, user_id, events.RECOVERY_MADE, principal.actor(peer))
    return codes


async def remove_factor(auth: Auth, principal: Principal, peer: Peer) -> None:
    """Remove the second factor; for who has shown it lately. Nothing happens without one.

    Raises:
        StepUpRequired, KeyNotAllowed: See `require_fresh`.
    """
    await require_fresh(auth, principal)
    user_id = principal.user_id
    async with transaction(auth.pool) as connection:
        if await factors.remove(connection, user_id):
            actor = principal.actor(peer)
            await events.record(connection, user_id, events.FACTOR_REMOVED, actor, factor="totp")
