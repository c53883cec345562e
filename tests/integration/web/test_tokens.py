"""Logging in and staying logged in, over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tbot.auth import flow, users

PASSWORD = "correct horse battery staple"


async def log_in(client: Any, **changes: str) -> Any:
    return await client.post("/v1/token", data={"username": "ann", "password": PASSWORD, **changes})


async def me(client: Any, token: str) -> Any:
    return await client.get("/v1/me", headers={"Authorization": f"Bearer {token}"})


async def test_log_in_and_ask_who_i_am(site: Any) -> None:
    async with site.client() as client:
        answer = await log_in(client, grant_type="password", scope="")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        tokens = answer.json()
        assert tokens["token_type"] == "bearer"
        assert tokens["expires_in"] == 900
        assert tokens["refresh_token"].startswith("tbr_")
        assert "admin" not in tokens["scope"].split()
        who = (await me(client, tokens["access_token"])).json()
        assert (who["username"], who["role"], who["scope"]) == ("ann", "trader", tokens["scope"])
        assert "password" not in str(who)


async def test_scopes_can_be_narrowed(site: Any) -> None:
    async with site.client() as client:
        tokens = (await log_in(client, scope="orders:read admin nonsense")).json()
        assert tokens["scope"] == "orders:read"
        again = await client.post(
            "/v1/token/refresh", json={"refresh_token": tokens["refresh_token"]}
        )
        assert again.json()["scope"] == "orders:read", "a refresh never widens"


@pytest.mark.parametrize(
    "changes",
    [
        {"password": "wrong"},
        {"username": "nobody"},
        {"username": "ANN"},
        {"username": "ann\x00"},
        {"username": "' OR 1=1 --"},
        {"password": "x" * 4000},
        {"password": PASSWORD + " "},
    ],
)
async def test_attack_19_wrong_user_and_wrong_password_look_the_same(
    site: Any, problem: Any, changes: dict[str, str]
) -> None:
    async with site.client() as client:
        before = site.auth.passwords.hashes
        document = problem(await log_in(client, **changes), 401, "invalid_credentials")
        assert document["detail"] == "user or password is wrong"
        assert site.auth.passwords.hashes == before + 1


@pytest.mark.parametrize(
    ("form", "status"),
    [
        ({"username": "ann"}, 422),
        ({"password": "x"}, 422),
        ({"username": "ann", "password": "x" * 5000}, 422),
        ({"username": "a" * 300, "password": "x"}, 422),
        ({"username": "ann", "password": "x", "grant_type": "client_credentials"}, 422),
        ({"username": "ann", "password": "x" * 300_000}, 413),
    ],
)
async def test_malformed_logins_are_not_hashed(
    site: Any, problem: Any, form: dict[str, str], status: int
) -> None:
    async with site.client() as client:
        before = site.auth.passwords.hashes
        code = "body_too_large" if status == 413 else "validation_failed"
        problem(await client.post("/v1/token", data=form), status, code)
        assert site.auth.passwords.hashes == before


async def test_a_login_takes_a_form_only(site: Any, problem: Any) -> None:
    async with site.client() as client:
        body = {"username": "ann", "password": PASSWORD}
        problem(await client.post("/v1/token", json=body), 415, "unsupported_media_type")
        files = {name: (None, value) for name, value in body.items()}
        problem(await client.post("/v1/token", files=files), 415, "unsupported_media_type")


async def test_attack_14_a_used_refresh_token_ends_the_session(site: Any, problem: Any) -> None:
    async with site.client() as client:
        first = (await log_in(client)).json()
        second = await client.post(
            "/v1/token/refresh", json={"refresh_token": first["refresh_token"]}
        )
        assert second.status_code == 200
        assert (await me(client, second.json()["access_token"])).status_code == 200
        for token in (first["refresh_token"], second.json()["refresh_token"]):
            answer = await client.post("/v1/token/refresh", json={"refresh_token": token})
            problem(answer, 401, "invalid_token")
        for tokens in (first, second.json()):
            problem(await me(client, tokens["access_token"]), 401, "invalid_token")


async def test_attack_17_logging_out_ends_access_tokens(site: Any, problem: Any) -> None:
    async with site.client() as client:
        tokens = (await log_in(client)).json()
        other = (await log_in(client)).json()
        for _ in range(2):
            answer = await client.post(
                "/v1/token/revoke", json={"refresh_token": tokens["refresh_token"]}
            )
            assert answer.status_code == 200
        problem(await me(client, tokens["access_token"]), 401, "invalid_token")
        assert (await me(client, other["access_token"])).status_code == 200
        for unknown in ("tbr_" + "A" * 43, "nonsense"):
            answer = await client.post("/v1/token/revoke", json={"refresh_token": unknown})
            assert answer.status_code == 200


async def test_attack_8_tokens_of_the_other_kind(site: Any, problem: Any) -> None:
    async with site.client() as client:
        tokens = (await log_in(client)).json()
        problem(await me(client, tokens["refresh_token"]), 401, "invalid_token")
        answer = await client.post(
            "/v1/token/refresh", json={"refresh_token": tokens["access_token"][:256]}
        )
        problem(answer, 401, "invalid_token")


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "invalid_token"),
        ("Bearer", "invalid_token"),
        ("Bearer ", "invalid_token"),
        ("Basic YW5uOmFubg==", "invalid_token"),
        ("Bearer x", "invalid_token"),
        ("Bearer a.b.c", "invalid_token"),
        ("Bearer " + "a" * 5000, "invalid_token"),
    ],
)
async def test_authorization_headers(site: Any, problem: Any, header: str, code: str) -> None:
    async with site.client() as client:
        answer = await client.get("/v1/me", headers={"Authorization": header})
        problem(answer, 401, code)
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]


async def test_two_authorization_headers_and_other_places_do_not_count(
    site: Any, problem: Any
) -> None:
    async with site.client() as client:
        token = (await log_in(client)).json()["access_token"]
        twice = [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")]
        problem(await client.get("/v1/me", headers=twice), 401, "invalid_token")
        problem(await client.get("/v1/me", params={"access_token": token}), 401, "unauthenticated")
        cookies = {"Cookie": f"access_token={token}"}
        problem(await client.get("/v1/me", headers=cookies), 401, "unauthenticated")


async def test_administrators_add_users(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client() as client:
        body = {"username": "carol", "password": "a long enough password", "role": "trader"}
        answer = await root.post("/v1/users", json=body)
        assert answer.status_code == 201
        assert (await root.get(answer.headers["location"])).json() == answer.json()
        assert "password" not in answer.text
        problem(await root.post("/v1/users", json=body), 409, "user_exists")
        listed = [user["username"] for user in (await root.get("/v1/users")).json()["items"]]
        assert listed == ["ann", "bob", "root", "carol"]
        logged_in = await log_in(client, username="carol", password="a long enough password")
        assert logged_in.status_code == 200
        for change, pointer in (
            ({"password": "short"}, "/password"),
            ({"password": "dave has a long one"}, "/password"),
            ({"username": "Carol"}, "/username"),
            ({"username": "a"}, "/username"),
            ({"username": "a\r\nb c"}, "/username"),
            ({"role": "owner"}, "/role"),
            ({"id": "x"}, "/id"),
            ({"status": "active"}, "/status"),
        ):
            answer = await root.post("/v1/users", json={**body, "username": "dave", **change})
            document = problem(answer, 422, "validation_failed")
            assert [error["pointer"] for error in document["errors"]] == [pointer]
            assert body["password"] not in answer.text


async def test_a_login_flood_is_turned_away_and_the_rest_goes_on(new_site: Any) -> None:
    site = await new_site(
        auth={
            "hash_workers": 1,
            "hash_queue_max": 2,
            "failures_free": 99,
            "failures_free_address": 99,
        }
    )
    async with site.client() as client:
        answers = await asyncio.gather(*(log_in(client) for _ in range(20)))
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) == {401, 503}
        assert statuses.count(401) >= 3
        refused = next(answer for answer in answers if answer.status_code == 503)
        assert refused.json()["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) >= 1


async def test_a_changed_password_ends_every_session(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        assert (await client.get("/v1/me")).status_code == 200
        await users.set_password(site.pool, site.auth.passwords, "ann", "another long password")
        site.auth.sessions.forget()  # as the notification does in a running server
        problem(await client.get("/v1/me"), 401, "invalid_token")
        assert (await log_in(client, password="another long password")).status_code == 200
        grant = await flow.login(site.auth, "ann", "another long password")
        await users.set_active(site.pool, "ann", active=False)
        site.auth.sessions.forget()
        problem(await me(client, grant.access_token), 401, "invalid_token")
        problem(await log_in(client, password="another long password"), 401, "invalid_credentials")
