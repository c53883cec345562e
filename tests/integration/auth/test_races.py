"""Parallel refreshes, codes, keys and passwords, in several processes: one winner each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.auth import factors, flow, proofs, self_service, store, totp, users
from tbot.auth.flow import Auth, Grant, Peer, Principal
from tbot.auth.scopes import Role, Scope
from tbot.core.errors import (
    AuthError,
    Conflict,
    InvalidCode,
    InvalidCredentials,
    InvalidToken,
    SecondFactorRequired,
    TooManyAttempts,
)
from tbot.core.settings import AuthSettings
from tbot.db.pool import transaction

PASSWORD = "correct horse battery staple"
HOME = Peer("192.0.2.1")
PROCESSES = 3

rounds = pytest.mark.parametrize(
    "rounds", [50, pytest.param(1000, marks=pytest.mark.long)], ids=["ci", "nightly"]
)
type World = tuple[list[Auth], Callable[[], Principal]]


@pytest.fixture
async def auths(database_url: str) -> AsyncIterator[list[Auth]]:
    """What several processes have, each with a pool of its own, on one database with one user."""
    settings = AuthSettings(
        failures_free=10**6, failures_free_account=10**6, failures_free_address=10**6,
        keys_max=10**6,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(PROCESSES):
            pool = await stack.enter_async_context(
                asyncpg.create_pool(database_url, min_size=1, max_size=6)
            )
            made.append(await stack.enter_async_context(flow.opened(pool, settings)))
        await users.create_user(made[0].pool, made[0].passwords, "ann", PASSWORD, Role.TRADER)
        yield made


async def session(auth: Auth) -> tuple[Grant, Principal]:
    """A session of ann's without the price of a password hash."""
    async with transaction(auth.pool) as connection:
        found = await store.user_by_name(connection, "ann")
        assert found is not None
        grant = await flow.begin_session(auth, connection, found[0], "", HOME, "password")
    return grant, await flow.authenticate(auth, grant.access_token)


async def enrol(auth: Auth, principal: Principal) -> bytes:
    secret = totp.new_secret()
    async with transaction(auth.pool) as connection:
        sealed = auth.sealing.seal(principal.user_id, secret)
        assert await factors.begin(connection, principal.user_id, sealed)
        code = totp.code_at(secret, int(time.time()) // 30)
        assert await factors.confirm(connection, auth.sealing, principal.user_id, code, time.time())
    return secret


async def forget_steps(auth: Auth) -> None:
    await auth.pool.execute("UPDATE totp_factors SET last_step = 0")


def split(outcomes: list[Any], won: type) -> tuple[list[Any], list[Any]]:
    return (
        [one for one in outcomes if isinstance(one, won)],
        [one for one in outcomes if not isinstance(one, won)],
    )


@rounds
async def test_attack_15_parallel_refreshes(auths: list[Auth], rounds: int) -> None:
    grant, _ = await session(auths[0])
    for number in range(rounds):
        outcomes = await asyncio.gather(
            *(flow.refresh(auth, grant.refresh_token) for auth in auths * 2),
            return_exceptions=True,
        )
        won, lost = split(outcomes, Grant)
        assert len(won) == 1, (number, outcomes)
        assert all(isinstance(error, InvalidToken) for error in lost)
        # A loser that began after the winner had ended is a second use, and ends the session.
        alive = await auths[0].pool.fetchval(
            "SELECT ended_at IS NULL FROM sessions WHERE id = $1", grant.session_id
        )
        grant = won[0] if alive else (await session(auths[0]))[0]


@rounds
async def test_attack_18_parallel_codes(auths: list[Auth], rounds: int) -> None:
    _, principal = await session(auths[0])
    secret = await enrol(auths[0], principal)
    for number in range(rounds):
        await forget_steps(auths[0])
        code = totp.code_at(secret, int(time.time()) // 30)
        outcomes = await asyncio.gather(
            *(proofs.step_up(auth, principal, HOME, None, code) for auth in auths * 2),
            return_exceptions=True,
        )
        won, lost = split(outcomes, str)
        assert won == ["totp"], (number, outcomes)
        assert all(isinstance(error, InvalidCode) for error in lost)


@rounds
async def test_parallel_second_steps_of_one_login(auths: list[Auth], rounds: int) -> None:
    """The same code, and different codes: one waiting login becomes one session."""
    from tbot.auth import tokens

    _, principal = await session(auths[0])
    secret = await enrol(auths[0], principal)
    for number in range(rounds):
        await forget_steps(auths[0])
        token = tokens.new_mfa()
        digest = tokens.mfa_hash(token)
        assert digest is not None
        async with transaction(auths[0].pool) as connection:
            await factors.insert_challenge(connection, digest, principal.user_id, "", 60)
            spare = await factors.replace_recovery_codes(connection, principal.user_id)
        step = int(time.time()) // 30
        codes = [totp.code_at(secret, step), totp.code_at(secret, step), spare[0]] * 2
        outcomes = await asyncio.gather(
            *(
                proofs.finish_login(auth, token, code, HOME)
                for auth, code in zip(auths * 2, codes, strict=True)
            ),
            return_exceptions=True,
        )
        won, lost = split(outcomes, Grant)
        assert len(won) == 1, (number, outcomes)
        assert all(isinstance(error, InvalidCode | InvalidToken) for error in lost)


@rounds
async def test_parallel_recovery_codes(auths: list[Auth], rounds: int) -> None:
    _, principal = await session(auths[0])
    await enrol(auths[0], principal)
    codes: list[str] = []
    for number in range(rounds):
        if not codes:
            async with transaction(auths[0].pool) as connection:
                codes = await factors.replace_recovery_codes(connection, principal.user_id)
        code = codes.pop()
        outcomes = await asyncio.gather(
            *(proofs.step_up(auth, principal, HOME, None, code) for auth in auths * 2),
            return_exceptions=True,
        )
        assert len(split(outcomes, str)[0]) == 1, (number, outcomes)


@rounds
async def test_parallel_first_uses_of_a_key_from_a_new_address(
    auths: list[Auth], rounds: int
) -> None:
    """All of them are let in; one of them is the one that is told of."""
    _, principal = await session(auths[0])
    for number in range(rounds):
        name = f"key {number}"
        made, key = await self_service.create_key(
            auths[0], principal, HOME, name, frozenset({Scope.MARKET_READ}), (), 3600
        )
        uses = (flow.authenticate(auth, key, "198.51.100.7") for auth in auths * 2)
        assert {one.session_id for one in await asyncio.gather(*uses)} == {made.id}
        told = await auths[0].pool.fetchval(
            "SELECT count(*) FROM journal WHERE kind = 'security.key_new_address'"
            " AND convert_from(body, 'UTF8')::jsonb -> 'data' ->> 'key_id' = $1",
            str(made.id),
        )
        assert told == 1


@rounds
async def test_parallel_keys_of_one_name(auths: list[Auth], rounds: int) -> None:
    _, principal = await session(auths[0])
    for number in range(rounds):
        outcomes = await asyncio.gather(
            *(
                self_service.create_key(
                    auth,
                    principal,
                    HOME,
                    f"key {number}",
                    frozenset({Scope.MARKET_READ}),
                    (),
                    3600,
                )
                for auth in auths * 2
            ),
            return_exceptions=True,
        )
        won, lost = split(outcomes, tuple)
        assert len(won) == 1
        assert all(isinstance(error, Conflict) for error in lost)


async def test_a_revoked_key_is_dead_everywhere_within_the_cache_time(
    database_url: str, auths: list[Auth], eventually: Any
) -> None:
    pool = auths[0].pool
    settings = AuthSettings(session_cache_s=0.2)
    async with flow.opened(pool, settings) as other:
        _, principal = await session(auths[0])
        made, key = await self_service.create_key(
            auths[0], principal, HOME, "k", frozenset({Scope.MARKET_READ}), (), 3600
        )
        await flow.authenticate(other, key)
        await self_service.revoke_key(auths[0], principal, HOME, made.id)
        with pytest.raises(InvalidToken):
            await flow.authenticate(auths[0], key)

        async def dead() -> bool:
            try:
                await flow.authenticate(other, key)
            except InvalidToken:
                return True
            return False

        await eventually(dead, timeout_s=5)


async def test_parallel_password_changes_have_one_winner(auths: list[Auth]) -> None:
    password = PASSWORD
    for number in range(3):
        sessions = [await session(auth) for auth in auths]
        outcomes = await asyncio.gather(
            *(
                proofs.change_password(
                    auth, principal, HOME, f"password number {number} {n}", password
                )
                for n, (auth, (_, principal)) in enumerate(zip(auths, sessions, strict=True))
            ),
            return_exceptions=True,
        )
        won, lost = split(outcomes, Grant)
        assert len(won) == 1, outcomes
        assert all(isinstance(error, AuthError) for error in lost)
        password = f"password number {number} {outcomes.index(won[0])}"
        assert await flow.login(auths[0], "ann", password, peer=HOME)
        living = await auths[0].pool.fetchval(
            "SELECT count(*) FROM sessions WHERE ended_at IS NULL"
        )
        assert living == 2, "the winner's and the login since"


async def test_a_login_that_checked_the_old_password_begins_nothing(
    auths: list[Auth], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password is changed between the check and the session."""
    one, other = auths[0], auths[1]
    original = one.passwords.matches

    async def slow(stored: str | None, password: str) -> bool:
        answer = await original(stored, password)
        await users.set_password(other.pool, other.passwords, "ann", "another long password")
        return answer

    monkeypatch.setattr(one.passwords, "matches", slow)
    with pytest.raises(InvalidCredentials):
        await flow.login(one, "ann", PASSWORD, peer=HOME)
    assert await one.pool.fetchval("SELECT count(*) FROM sessions WHERE ended_at IS NULL") == 0


async def test_codes_that_are_guessed_in_parallel_are_counted_exactly(
    auths: list[Auth], database_url: str
) -> None:
    _, principal = await session(auths[0])
    secret = await enrol(auths[0], principal)
    good = {totp.code_at(secret, int(time.time()) // 30 + n) for n in range(-2, 3)}
    guesses = [code for code in (f"{n:06}" for n in range(60)) if code not in good][:40]
    async with flow.opened(auths[0].pool, AuthSettings(failures_wait_s=60.0)) as strict:
        outcomes = await asyncio.gather(
            *(proofs.step_up(strict, principal, HOME, None, code) for code in guesses),
            return_exceptions=True,
        )
    kinds = [type(outcome) for outcome in outcomes]
    assert kinds.count(InvalidCode) == 5
    assert kinds.count(TooManyAttempts) == 35


async def test_codes_guessed_from_everywhere_leave_the_victim_two_ways_in(
    auths: list[Auth],
) -> None:
    _, principal = await session(auths[0])
    secret = await enrol(auths[0], principal)
    async with transaction(auths[0].pool) as connection:
        spare = await factors.replace_recovery_codes(connection, principal.user_id)
    async with flow.opened(auths[0].pool, AuthSettings(failures_wait_s=60.0)) as strict:

        async def log_in(code: str, address: str) -> Any:
            try:
                return await flow.login(strict, "ann", PASSWORD, peer=Peer(address), code=code)
            except AuthError as error:
                return type(error)
            except TooManyAttempts:
                return TooManyAttempts

        tried = [await log_in("000000", f"198.51.100.{n}") for n in range(22)]
        assert tried[:20] == [InvalidCode] * 20
        assert tried[20:] == [TooManyAttempts] * 2
        await forget_steps(strict)
        step = int(time.time()) // 30
        away = await log_in(totp.code_at(secret, step), "203.0.113.5")
        assert away is TooManyAttempts, "from a new address even the right one has to wait"
        assert isinstance(await log_in(spare[0], "203.0.113.5"), Grant)
        assert isinstance(await log_in(totp.code_at(secret, step), "192.0.2.1"), Grant)
        with pytest.raises(SecondFactorRequired):
            await flow.login(strict, "ann", PASSWORD, peer=Peer("203.0.113.5"))


async def test_what_is_not_needed_any_more_is_swept(auths: list[Auth]) -> None:
    from tbot.auth import throttle

    auth = auths[0]
    named = throttle.names("password", "nobody", "192.0.2.9")
    async with transaction(auth.pool) as connection:
        for _ in range(3):
            await throttle.failed(connection, auth.settings, named)
        assert await connection.fetchval("SELECT count(*) FROM login_failures") == 3
        await connection.execute("UPDATE login_failures SET at = at - interval '1 day'")
        assert await throttle.failed(connection, auth.settings, named) == 1, "counted anew"
        await connection.execute("UPDATE login_failures SET at = at - interval '1 day'")
        assert await throttle.sweep(connection, auth.settings) == 3
        user_id: UUID = await connection.fetchval("SELECT id FROM users")
        await factors.insert_challenge(connection, b"x" * 32, user_id, "", 60)
        await connection.execute("UPDATE mfa_challenges SET expires_at = now() - interval '1 s'")
        await factors.sweep_challenges(connection)
        assert await connection.fetchval("SELECT count(*) FROM mfa_challenges") == 0
