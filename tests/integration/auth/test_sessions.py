"""Sessions and keys on real Postgres, with several processes on one database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from tbot.auth import flow, store, users
from tbot.auth.flow import Auth
from tbot.auth.scopes import Role
from tbot.cli import identity
from tbot.core.bus import Bus
from tbot.core.errors import InvalidCredentials, InvalidToken, UserExists
from tbot.core.settings import AuthSettings
from tbot.db.notify import NotifyBridge
from tbot.db.pool import connect_listener, transaction

PASSWORD = "correct horse battery staple"
ROUNDS = 1000 if os.environ.get("TBOT_NIGHTLY") else 25

type NewAuth = Callable[..., Any]


class Clock:
    """Wall time that a test moves."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        import time

        return time.time() + self.ahead_s


@pytest.fixture
async def new_auth(database_url: str) -> AsyncIterator[NewAuth]:
    """Makes what one process has for authentication, with a pool of its own."""
    async with AsyncExitStack() as stack:

        async def make(
            bus: Bus | None = None, clock: Callable[[], float] | None = None, **settings: Any
        ) -> Auth:
            pool = await stack.enter_async_context(
                asyncpg.create_pool(database_url, min_size=1, max_size=8)
            )
            more = {} if clock is None else {"clock": clock}
            return await stack.enter_async_context(
                flow.opened(pool, AuthSettings(**settings), bus, **more)
            )

        yield make


@pytest.fixture
async def auth(new_auth: NewAuth) -> Auth:
    made: Auth = await new_auth()
    await users.create_user(made.pool, made.passwords, "ann", PASSWORD, Role.TRADER)
    return made


async def lives(auth: Auth, token: str) -> bool:
    try:
        await flow.authenticate(auth, token)
    except InvalidToken:
        return False
    return True


async def test_processes_share_one_key_however_they_start(new_auth: NewAuth) -> None:
    auths = await asyncio.gather(*(new_auth() for _ in range(6)))
    kids = {tuple(sorted(auth.keys.ring._keys)) for auth in auths}
    assert len(kids) == 1
    assert len(auths[0].keys.ring) == 1
    assert len({auth.keys.cursor_secret for auth in auths}) == 1


async def test_attack_15_of_parallel_refreshes_exactly_one_wins(
    auth: Auth, new_auth: NewAuth
) -> None:
    other = await new_auth()
    for _ in range(ROUNDS):
        grant = await flow.login(auth, "ann", PASSWORD)
        outcomes = await asyncio.gather(
            *(flow.refresh(one, grant.refresh_token) for one in (auth, other) * 3),
            return_exceptions=True,
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, flow.Grant)]
        lost = [outcome for outcome in outcomes if not isinstance(outcome, flow.Grant)]
        assert len(won) == 1
        assert all(isinstance(error, InvalidToken) for error in lost)


async def test_refreshes_that_overlap_do_no_harm_and_later_ones_end_the_session(
    auth: Auth,
) -> None:
    grant = await flow.login(auth, "ann", PASSWORD)
    # The loser's transaction begins before the winner's ends: made certain by holding the lock.
    async with auth.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await store.lock_session(connection, grant.session_id)
        racing = [asyncio.create_task(flow.refresh(auth, grant.refresh_token)) for _ in range(2)]
        while await connection.fetchval(
            "SELECT count(*) < 2 FROM pg_locks WHERE NOT granted AND locktype IN ('transactionid', 'tuple')"
        ):
            assert not any(task.done() for task in racing)
        await transaction.rollback()
    outcomes = await asyncio.gather(*racing, return_exceptions=True)
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, flow.Grant)]
    assert await lives(auth, won.access_token)
    with pytest.raises(InvalidToken):
        await flow.refresh(auth, grant.refresh_token)
    assert not await lives(auth, won.access_token)
    with pytest.raises(InvalidToken):
        await flow.refresh(auth, won.refresh_token)


async def test_the_grace_period_is_what_the_setting_says(new_auth: NewAuth) -> None:
    auth = await new_auth(refresh_grace_s=60)
    await users.create_user(auth.pool, auth.passwords, "ann", PASSWORD, Role.TRADER)
    grant = await flow.login(auth, "ann", PASSWORD)
    won = await flow.refresh(auth, grant.refresh_token)
    with pytest.raises(InvalidToken, match="at the same time"):
        await flow.refresh(auth, grant.refresh_token)
    assert await lives(auth, won.access_token)


async def test_attack_16_rotation_never_extends_the_absolute_end(
    auth: Auth, new_auth: NewAuth
) -> None:
    grant = await flow.login(auth, "ann", PASSWORD)

    async def end() -> Any:
        return await auth.pool.fetchval(
            "SELECT expires_at FROM sessions WHERE id = $1", grant.session_id
        )

    before = await end()
    again = await flow.refresh(auth, grant.refresh_token)
    assert await end() == before
    await auth.pool.execute(
        "UPDATE sessions SET expires_at = now() + interval '30 seconds' WHERE id = $1",
        grant.session_id,
    )
    last = await flow.refresh(auth, again.refresh_token)
    assert last.expires_in_s <= 30, "an access token does not outlive its session"
    await auth.pool.execute(
        "UPDATE sessions SET expires_at = now() WHERE id = $1", grant.session_id
    )
    with pytest.raises(InvalidToken):
        await flow.refresh(auth, last.refresh_token)


async def test_the_end_of_a_session_reaches_other_processes(
    auth: Auth, new_auth: NewAuth, database_url: str, eventually: Any
) -> None:
    bus = Bus()
    bridge = NotifyBridge(lambda: connect_listener(database_url), bus)
    other = await new_auth(bus, session_cache_s=60)
    await bridge.start()
    try:
        listening = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%' AND datname = current_database()"
        await eventually(lambda: auth.pool.fetchval(listening))
        grant = await flow.login(auth, "ann", PASSWORD)
        assert await lives(other, grant.access_token)
        await flow.revoke(auth, grant.refresh_token)
        assert not await lives(auth, grant.access_token), "at once where it ended"

        async def dead() -> bool:
            return not await lives(other, grant.access_token)

        await eventually(dead)
    finally:
        await bridge.stop()


async def test_without_a_notification_the_bound_is_the_cache_time(
    auth: Auth, new_auth: NewAuth, eventually: Any
) -> None:
    other = await new_auth(session_cache_s=0.2)
    grant = await flow.login(auth, "ann", PASSWORD)
    assert await lives(other, grant.access_token)
    await flow.revoke(auth, grant.refresh_token)

    async def dead() -> bool:
        return not await lives(other, grant.access_token)

    await eventually(dead, timeout_s=5)


async def test_a_busy_session_costs_one_query_in_its_cache_time(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = store.session_lives

    async def counted(*arguments: Any) -> bool:
        asked.append(arguments)
        return await original(*arguments)

    monkeypatch.setattr(store, "session_lives", counted)
    grant = await flow.login(auth, "ann", PASSWORD)
    await asyncio.gather(*(flow.authenticate(auth, grant.access_token) for _ in range(200)))
    await asyncio.gather(*(flow.authenticate(auth, grant.access_token) for _ in range(200)))
    assert len(asked) == 1


async def test_an_answer_that_was_overtaken_is_not_remembered(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The query has read the living session; it ends before the answer is stored."""
    original = store.session_lives

    async def slow(connection: Any, *ids: Any) -> bool:
        answer = await original(connection, *ids)
        await flow.revoke(auth, grant.refresh_token)
        return answer

    grant = await flow.login(auth, "ann", PASSWORD)
    monkeypatch.setattr(store, "session_lives", slow)
    await flow.authenticate(auth, grant.access_token)
    monkeypatch.setattr(store, "session_lives", original)
    assert not await lives(auth, grant.access_token)


async def test_keys_rotate_before_they_end_and_old_tokens_stay_good(new_auth: NewAuth) -> None:
    clock = Clock()
    auth = await new_auth(clock=clock, signing_key_ttl_s=3600)
    await users.create_user(auth.pool, auth.passwords, "ann", PASSWORD, Role.TRADER)
    old = await flow.login(auth, "ann", PASSWORD)
    clock.ahead_s = 3600 * 0.8
    await auth.keys.load()
    assert len(auth.keys.ring) == 2, "the next key is there long before it signs"
    assert auth.keys.ring.signing(clock()).kid in old_kid(old.access_token)
    clock.ahead_s = 3590
    new = await flow.login(auth, "ann", PASSWORD)
    assert old_kid(new.access_token) != old_kid(old.access_token)
    clock.ahead_s = 0
    assert await lives(auth, old.access_token)
    other = await new_auth()
    assert await lives(other, old.access_token)


def old_kid(token: str) -> str:
    import base64
    import json

    kid: str = json.loads(base64.urlsafe_b64decode(token.split(".", maxsplit=1)[0] + "=="))["kid"]
    return kid


async def test_attack_12_retired_keys_void_every_token(auth: Auth, new_auth: NewAuth) -> None:
    other = await new_auth()
    grant = await flow.login(auth, "ann", PASSWORD)
    assert await lives(other, grant.access_token)
    await auth.keys.retire_all()
    assert not await lives(auth, grant.access_token)
    await other.keys.load()
    assert not await lives(other, grant.access_token)
    again = await flow.refresh(auth, grant.refresh_token)
    assert await lives(auth, again.access_token)
    assert await lives(other, again.access_token)


async def test_an_operator_retires_the_keys_at_the_command_line(
    auth: Auth, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant = await flow.login(auth, "ann", PASSWORD)
    monkeypatch.setenv("TBOT_DATABASE__URL", database_url)
    done = await asyncio.to_thread(CliRunner().invoke, identity.users, ["retire-keys"])
    assert done.exit_code == 0, done.output
    await auth.keys.load()
    assert not await lives(auth, grant.access_token)
    assert await lives(auth, (await flow.refresh(auth, grant.refresh_token)).access_token)


async def test_a_key_made_elsewhere_is_learned_when_it_is_first_seen(
    auth: Auth, new_auth: NewAuth, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await new_auth()
    await auth.keys.retire_all()
    grant = await flow.login(auth, "ann", PASSWORD)
    monkeypatch.setattr(other.keys, "_reloaded_s", float("-inf"))
    assert await lives(other, grant.access_token)


async def test_made_up_key_ids_do_not_become_queries(
    auth: Auth, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    original = auth.keys.load

    async def counted() -> None:
        loads.append(1)
        await original()

    monkeypatch.setattr(auth.keys, "load", counted)
    grant = await flow.login(auth, "ann", PASSWORD)
    _, payload, signature = grant.access_token.split(".")
    import base64
    import json

    for number in range(200):
        header = {"alg": "Ed25519", "typ": "at+jwt", "kid": f"made-up-{number}"}
        encoded = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
        assert not await lives(auth, f"{encoded}.{payload}.{signature}")
    assert len(loads) <= 2


async def test_memory_is_bounded(new_auth: NewAuth) -> None:
    auth = await new_auth(tokens_cached_max=3, sessions_cached_max=2)
    await users.create_user(auth.pool, auth.passwords, "ann", PASSWORD, Role.TRADER)
    for _ in range(6):
        grant = await flow.login(auth, "ann", PASSWORD)
        await flow.authenticate(auth, grant.access_token)
    assert len(auth.verified) == 3
    assert len(auth.sessions.cache) == 2


async def test_nothing_that_opens_a_door_is_stored(auth: Auth) -> None:
    grant = await flow.login(auth, "ann", PASSWORD)
    for table in ("users", "sessions", "refresh_tokens"):
        stored = str(await auth.pool.fetch(f"SELECT * FROM {table}"))
        assert PASSWORD not in stored
        assert grant.refresh_token not in stored
        assert grant.access_token not in stored


async def test_expired_sessions_are_swept_with_their_tokens(auth: Auth) -> None:
    old, kept = [await flow.login(auth, "ann", PASSWORD) for _ in range(2)]
    await auth.pool.execute(
        "UPDATE sessions SET expires_at = now() - interval '2 days' WHERE id = $1", old.session_id
    )
    async with transaction(auth.pool) as connection:
        assert await store.sweep_sessions(connection, kept_s=86_400) == 1
    rest = await auth.pool.fetch("SELECT session_id FROM refresh_tokens")
    assert [row["session_id"] for row in rest] == [kept.session_id]


async def test_one_of_two_that_take_a_name_gets_it(auth: Auth) -> None:
    outcomes = await asyncio.gather(
        *(
            users.create_user(auth.pool, auth.passwords, "carol", f"{PASSWORD} {i}", Role.TRADER)
            for i in range(4)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, UserExists) for outcome in outcomes) == 3


async def test_the_first_administrator_is_made_once(auth: Auth) -> None:
    assert not await users.admin_exists(auth.pool)
    assert await users.create_first_admin(auth.pool, auth.passwords, "the generated password")
    assert not await users.create_first_admin(auth.pool, auth.passwords, "another password here")
    await flow.login(auth, "admin", "the generated password")
    with pytest.raises(InvalidCredentials):
        await flow.login(auth, "admin", "another password here")


async def test_a_transaction_that_fails_leaves_nothing(auth: Auth) -> None:
    with pytest.raises(ZeroDivisionError):
        async with transaction(auth.pool) as connection:
            await connection.execute("DELETE FROM refresh_tokens")
            await connection.execute("DELETE FROM sessions")
            raise ZeroDivisionError
    assert auth.pool.get_idle_size() == auth.pool.get_size()
