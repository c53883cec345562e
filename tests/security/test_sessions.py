"""Attacks 14–21: stolen and replayed tokens, guessed passwords and codes, floods of logins."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from authenticator import Phone, unuse
from tbot.core.settings import AuthSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")
PASSWORD = "correct horse battery staple"
NEW = "another long password"


async def refresh(client: httpx.AsyncClient, token: str) -> httpx.Response:
    return await client.post("/v1/token/refresh", json={"refresh_token": token})


async def kinds(client: httpx.AsyncClient) -> list[str]:
    items = (await client.get("/v1/me/security-events", params={"limit": 100})).json()["items"]
    return [item["kind"] for item in items]


async def enrol(world: Any, person: Any) -> Phone:
    """Give somebody a second factor, none of whose codes was used."""
    begun = await person.http.post("/v1/me/totp")
    assert begun.status_code in (200, 201), begun.text
    phone = Phone(begun.json()["secret"])
    answer = await person.http.post("/v1/me/totp/confirm", json={"code": phone.code()})
    assert answer.status_code == 200, answer.text
    await unuse(world.site.pool)
    return phone


async def test_a14_a_reused_refresh_token_ends_its_family(world: Any, problem: Any) -> None:
    person = await world.person()
    first = person.grant.refresh_token
    second = (await refresh(person.http, first)).json()
    problem(await refresh(person.http, first), 401, "invalid_token")
    problem(await refresh(person.http, second["refresh_token"]), 401, "invalid_token")
    for token in (person.token, second["access_token"]):
        answer = await person.http.get("/v1/me", headers={"Authorization": f"Bearer {token}"})
        problem(answer, 401, "invalid_token")
    again = (await world.log_in(person.http, person.name)).json()
    person.http.headers["Authorization"] = f"Bearer {again['access_token']}"
    assert "security.refresh_reused" in await kinds(person.http)


async def test_a15_parallel_refreshes_have_one_winner(world: Any) -> None:
    person = await world.person()
    clients = [world.client(address=person.address) for _ in range(5)]
    for _ in range(10):
        token = (await world.session(person.name, person.address)).refresh_token
        answers = await asyncio.gather(*(refresh(client, token) for client in clients))
        assert sorted(answer.status_code for answer in answers) == [200, 401, 401, 401, 401]
    # The grace in which a loser does no harm is documented: only what overlaps.
    assert AuthSettings().refresh_grace_s == 0


async def test_a16_refreshing_never_moves_the_absolute_end(world: Any, problem: Any) -> None:
    person = await world.person()
    end = "SELECT expires_at FROM sessions WHERE id = $1"
    session_id = person.grant.session_id
    before = await world.site.pool.fetchval(end, session_id)
    token = person.grant.refresh_token
    for _ in range(3):
        answer = await refresh(person.http, token)
        assert answer.status_code == 200
        token = answer.json()["refresh_token"]
    assert await world.site.pool.fetchval(end, session_id) == before
    await world.site.pool.execute(
        "UPDATE sessions SET expires_at = now() - interval '1 s' WHERE id = $1", session_id
    )
    problem(await refresh(person.http, token), 401, "invalid_token")


async def test_a17_logout_and_a_new_password_end_tokens_and_streams(
    world: Any, problem: Any
) -> None:
    for how in ("logout", "everywhere", "password"):
        person = await world.person()
        stream = await person.stream()
        assert (await person.http.get("/v1/me")).status_code == 200
        if how == "logout":
            body = {"refresh_token": person.grant.refresh_token}
            answer = await person.http.post("/v1/token/revoke", json=body)
        elif how == "everywhere":
            answer = await person.http.delete("/v1/sessions")
        else:
            body = {"current_password": PASSWORD, "new_password": NEW}
            answer = await person.http.post("/v1/me/password", json=body)
        assert answer.status_code in (200, 204), answer.text
        problem(await person.http.get("/v1/me"), 401, "invalid_token")
        problem(await refresh(person.http, person.grant.refresh_token), 401, "invalid_token")
        assert await stream.closed() == 4003, how


async def test_a18_codes_are_good_once_and_not_to_be_guessed(world: Any, problem: Any) -> None:
    person = await world.person()
    phone = await enrol(world, person)
    code = phone.code()

    async def second_step(client: httpx.AsyncClient, code: str) -> httpx.Response:
        waiting = problem(await world.log_in(client, person.name), 401, "mfa_required")
        body = {"mfa_token": waiting["mfa_token"], "code": code}
        return await client.post("/v1/token/mfa", json=body)

    assert (await second_step(person.http, code)).status_code == 200
    problem(await second_step(person.http, code), 401, "invalid_code")
    proof = await person.http.post("/v1/token/step-up", json={"code": code})
    problem(proof, 401, "invalid_code")

    thief = world.client()
    *wrong, last = phone.wrong(7)
    statuses = [(await second_step(thief, one)).status_code for one in wrong]
    assert statuses == [401] * AuthSettings().failures_free + [429]
    waiting = problem(await world.log_in(thief, person.name), 401, "mfa_required")
    body = {"mfa_token": waiting["mfa_token"], "code": last}
    blocked = await thief.post("/v1/token/mfa", json=body)
    problem(blocked, 429, "too_many_attempts")
    assert int(blocked.headers["retry-after"]) >= 1


async def test_a19_known_and_unknown_users_cost_the_same(world: Any, problem: Any) -> None:
    """Time as a count: exactly one password hash, whoever asks and however wrong."""
    person = await world.person()
    passwords = world.site.auth.passwords
    documents = []
    for name, password in (
        (person.name, "wrong"),
        ("nobody-of-this-name", "wrong"),
        ("Not A Name!", "wrong"),
        ("' OR 1=1 --", "wrong"),
        (person.name, "x" * 4000),
    ):
        before = passwords.hashes
        answer = await world.log_in(world.client(), name, password=password)
        document = problem(answer, 401, "invalid_credentials")
        assert passwords.hashes == before + 1, name
        del document["request_id"]
        documents.append((document, sorted(answer.headers)))
    assert all(one == documents[0] for one in documents)
    before = passwords.hashes
    assert (await world.log_in(world.client(), person.name)).status_code == 200
    assert passwords.hashes == before + 1, "and whoever is right costs no other"


async def test_a20_a_victim_of_guessing_still_gets_in(strict: Any, problem: Any) -> None:
    person = await strict.person()
    for _ in range(strict.site.settings.auth.failures_free_account):
        # One guess from each of many addresses.
        answer = await strict.log_in(strict.client(), person.name, password="wrong")
        problem(answer, 401, "invalid_credentials")
    problem(await strict.log_in(strict.client(), person.name), 429, "too_many_attempts")
    # The documented ways in: an address with a session of theirs, and what is open already.
    assert (await strict.log_in(person.http, person.name)).status_code == 200
    assert (await person.http.get("/v1/me")).status_code == 200
    assert (await refresh(person.http, person.grant.refresh_token)).status_code == 200


async def test_a21_floods_of_logins_are_bounded(strict: Any, problem: Any) -> None:
    """No more hashes wait than there are places; longer passwords are not hashed at all."""
    await strict.new_user("flooded")
    passwords = strict.site.auth.passwords
    before = passwords.hashes
    clients = [strict.client() for _ in range(12)]
    answers = await asyncio.gather(
        *(strict.log_in(client, "flooded", password="wrong") for client in clients)
    )
    turned_away = [answer for answer in answers if answer.status_code in (429, 503)]
    hashed = passwords.hashes - before
    assert len(answers) - len(turned_away) == hashed and turned_away
    for answer in turned_away:
        assert int(answer.headers["retry-after"]) >= 1
    assert passwords._waiting == 0

    before = passwords.hashes
    person = strict.client()
    problem(await strict.log_in(person, "flooded", password="x" * 5000), 422, "validation_failed")
    problem(await strict.log_in(person, "flooded", password="x" * 1_000_000), 413, "body_too_large")
    assert passwords.hashes == before
    bystander = await strict.person()
    assert (await strict.log_in(bystander.http, bystander.name)).status_code == 200


async def test_a21_the_hash_queue_is_bounded_by_default(world: Any) -> None:
    settings = AuthSettings()
    assert settings.hash_workers * 19_456 <= 64 * 1024, "KiB of memory that hashing may take"
    assert settings.hash_queue_max <= 64
