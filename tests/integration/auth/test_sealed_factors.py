"""A key for second factors comes, changes and goes; whoever has one logs in with it throughout."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from pydantic import SecretStr

from tbot.auth import flow, proofs, totp, users
from tbot.auth.flow import Auth, Peer
from tbot.auth.scopes import Role
from tbot.core.errors import ConfigurationError, IntegrityError
from tbot.core.settings import AuthSettings

PASSWORD = "correct horse battery staple"
HOME = Peer("192.0.2.1", None)
ONE = SecretStr("the first key: 32 characters long")
TWO = SecretStr("the second key, 32 or more of them")


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Any]:
    async with asyncpg.create_pool(database_url, min_size=1, max_size=4) as made:
        yield made


async def enrol(auth: Auth, name: str) -> bytes:
    """Somebody with a second factor; its secret."""
    await users.create_user(auth.pool, auth.passwords, name, PASSWORD, Role.TRADER)
    grant = await flow.login(auth, name, PASSWORD)
    principal = await flow.authenticate(auth, grant.access_token)
    begun = await proofs.begin_enrolment(auth, principal)
    secret = base64.b32decode(begun.secret)
    code = totp.code_at(secret, int(time.time()) // 30)
    await proofs.confirm_enrolment(auth, principal, HOME, code)
    return secret


async def show(auth: Auth, name: str, secret: bytes) -> None:
    """Log in with a password and a code."""
    await auth.pool.execute("UPDATE totp_factors SET last_step = 0")
    code = totp.code_at(secret, int(time.time()) // 30)
    assert (await flow.login(auth, name, PASSWORD, code=code)).access_token


async def stored(pool: Any) -> list[tuple[bytes, bytes | None]]:
    rows = await pool.fetch("SELECT secret, sealed_by FROM totp_factors ORDER BY user_id")
    return [(row["secret"], row["sealed_by"]) for row in rows]


async def test_a_key_comes_changes_and_goes(pool: Any) -> None:
    async with flow.opened(pool, AuthSettings()) as auth:
        ann = await enrol(auth, "ann")
        assert await stored(pool) == [(ann, None)]
    async with flow.opened(pool, AuthSettings(factor_key=ONE)) as auth:
        ((first, by_one),) = await stored(pool)
        assert by_one is not None and ann not in first, "what was there is sealed at the start"
        await show(auth, "ann", ann)
        bob = await enrol(auth, "bob")
        _, (second, by) = await stored(pool)
        assert by == by_one and bob not in second, "and what comes, at once"
        await show(auth, "bob", bob)
    before = await stored(pool)
    async with flow.opened(pool, AuthSettings(factor_key=ONE)) as auth:
        assert await stored(pool) == before, "nothing to do"
    for settings in (AuthSettings(), AuthSettings(factor_key=TWO)):
        with pytest.raises(ConfigurationError, match="TBOT_AUTH__FACTOR_KEY"):
            async with flow.opened(pool, settings):
                pass
        assert await stored(pool) == before
    async with flow.opened(pool, AuthSettings(factor_key=TWO, factor_key_before=ONE)) as auth:
        assert {by for _, by in await stored(pool)}.isdisjoint({by_one, None})
        await show(auth, "ann", ann)
        await show(auth, "bob", bob)
    async with flow.opened(pool, AuthSettings(factor_key=TWO)) as auth:
        await show(auth, "bob", bob)
    async with flow.opened(pool, AuthSettings(factor_key_before=TWO)) as auth:
        assert await stored(pool) == [(ann, None), (bob, None)]
        await show(auth, "ann", ann)


async def test_no_process_is_left_out_while_a_key_is_changed(pool: Any) -> None:
    """The new one is known to all before any of them seals with it."""
    knows = AuthSettings(factor_key=ONE, factor_key_before=TWO)
    changed = AuthSettings(factor_key=TWO, factor_key_before=ONE)
    async with flow.opened(pool, knows) as old:
        ann = await enrol(old, "ann")
        async with flow.opened(pool, changed) as new:
            await show(old, "ann", ann)
            await show(new, "ann", ann)
            bob = await enrol(old, "bob")  # sealed by the one that goes
            await show(new, "bob", bob)
    async with flow.opened(pool, changed) as new:
        await show(new, "bob", bob)
    async with flow.opened(pool, AuthSettings(factor_key=TWO)) as new:
        await show(new, "bob", bob)


async def test_a_secret_put_in_anothers_place_opens_nothing(pool: Any) -> None:
    async with flow.opened(pool, AuthSettings(factor_key=ONE)) as auth:
        ann = await enrol(auth, "ann")
        await enrol(auth, "bob")
        await pool.execute(
            "UPDATE totp_factors SET secret = (SELECT f.secret FROM totp_factors f"
            " JOIN users u ON u.id = f.user_id WHERE u.username = 'ann')"
        )
        await show(auth, "ann", ann)
        with pytest.raises(IntegrityError):
            await show(auth, "bob", ann)
