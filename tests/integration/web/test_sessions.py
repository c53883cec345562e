"""One's own sessions, password and security events, over HTTP."""

from __future__ import annotations

from typing import Any

from tbot.auth import flow
from tbot.auth.scopes import Role
from tbot.auth.state import touch
from tbot.boot import projections
from tbot.db.pool import transaction
from tbot.verify import verify

PASSWORD = "correct horse battery staple"
NEW = "another long password"


async def log_in(client: Any, **changes: str) -> Any:
    return await client.post("/v1/token", data={"username": "ann", "password": PASSWORD, **changes})


def bearer(tokens: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {tokens['access_token']}"}


async def kinds(client: Any, headers: dict[str, str] | None = None) -> list[str]:
    items = (await client.get("/v1/me/security-events", headers=headers)).json()["items"]
    return [item["kind"] for item in items]


async def test_sessions_are_listed_and_one_is_ended(site: Any, problem: Any) -> None:
    async with site.client() as client:
        one = (await client.post(
            "/v1/token",
            data={"username": "ann", "password": PASSWORD},
            headers={"User-Agent": "phone/1"},
        )).json()  # fmt: skip
        two = (await log_in(client)).json()
        listed = (await client.get("/v1/sessions", headers=bearer(two))).json()["items"]
        assert [item["current"] for item in listed] == [True, False]
        assert listed[1]["user_agent"] == "phone/1"
        assert listed[1]["address"] == "127.0.0.1"
        assert listed[1]["created_at"] <= listed[1]["last_used_at"] < listed[1]["expires_at"]
        phone = f"/v1/sessions/{listed[1]['id']}"
        async with site.client("bob") as bob:
            problem(await bob.delete(phone), 404, "not_found")
        assert (await client.get("/v1/me", headers=bearer(one))).status_code == 200
        assert (await client.delete(phone, headers=bearer(two))).status_code == 204
        problem(await client.get("/v1/me", headers=bearer(one)), 401, "invalid_token")
        problem(await client.delete(phone, headers=bearer(two)), 404, "not_found")
        refused = await client.post(
            "/v1/token/refresh", json={"refresh_token": one["refresh_token"]}
        )
        problem(refused, 401, "invalid_token")
        assert (await client.get("/v1/me", headers=bearer(two))).status_code == 200


async def test_last_use_is_written_down(site: Any) -> None:
    async with site.client("ann") as ann:
        before = (await ann.get("/v1/sessions")).json()["items"][0]["last_used_at"]
        await touch(site.auth)
        after = (await ann.get("/v1/sessions")).json()["items"][0]["last_used_at"]
        assert after > before


async def test_logging_out_everywhere(site: Any, problem: Any) -> None:
    async with site.client() as client:
        grants = [(await log_in(client)).json() for _ in range(3)]
        answer = await client.delete(
            "/v1/sessions", params={"keep_current": "true"}, headers=bearer(grants[0])
        )
        assert answer.status_code == 204
        assert (await client.get("/v1/me", headers=bearer(grants[0]))).status_code == 200
        for grant in grants[1:]:
            problem(await client.get("/v1/me", headers=bearer(grant)), 401, "invalid_token")
        assert (await client.delete("/v1/sessions", headers=bearer(grants[0]))).status_code == 204
        problem(await client.get("/v1/me", headers=bearer(grants[0])), 401, "invalid_token")


async def test_attack_17_a_new_password_ends_every_session_and_begins_one(
    site: Any, problem: Any
) -> None:
    async with site.client() as client:
        old, other = [(await log_in(client)).json() for _ in range(2)]

        async def change(**body: Any) -> Any:
            return await client.post("/v1/me/password", json=body, headers=bearer(old))

        problem(
            await change(current_password="wrong", new_password=NEW), 401, "invalid_credentials"
        )
        problem(await change(new_password=NEW), 403, "step_up_required")
        broken = problem(
            await change(current_password=PASSWORD, new_password="short"), 422, "validation_failed"
        )
        assert broken["errors"][0]["pointer"] == "/new_password"
        answer = await change(current_password=PASSWORD, new_password=NEW)
        assert answer.status_code == 200
        fresh = answer.json()
        for tokens in (old, other):
            problem(await client.get("/v1/me", headers=bearer(tokens)), 401, "invalid_token")
            again = await client.post(
                "/v1/token/refresh", json={"refresh_token": tokens["refresh_token"]}
            )
            problem(again, 401, "invalid_token")
        assert (await client.get("/v1/me", headers=bearer(fresh))).status_code == 200
        problem(await log_in(client), 401, "invalid_credentials")
        assert (await log_in(client, password=NEW)).status_code == 200
        told = await kinds(client, bearer(fresh))
        assert "security.password_changed" in told
        assert PASSWORD not in str(told) and NEW not in str(told)


async def test_security_events_are_a_chain_of_their_own(site: Any, problem: Any) -> None:
    async with site.client() as client:
        for _ in range(3):
            problem(await log_in(client, password="wrong"), 401, "invalid_credentials")
        first = (await log_in(client)).json()
        for _ in range(2):
            used = {"refresh_token": first["refresh_token"]}
            await client.post("/v1/token/refresh", json=used)
        tokens = (await log_in(client)).json()
        page = await client.get(
            "/v1/me/security-events", params={"limit": 2}, headers=bearer(tokens)
        )
        items = page.json()["items"]
        rest = await client.get(
            "/v1/me/security-events",
            params={"cursor": page.json()["next"]},
            headers=bearer(tokens),
        )
        items += rest.json()["items"]
        assert [item["sequence"] for item in items] == list(range(len(items), 0, -1))
        assert [item["kind"].removeprefix("security.") for item in items] == [
            "login",
            "refresh_reused",
            "login",
            "login_failed",
            "login_failed",
            "user_created",
        ], "of three failures the third is not worth an entry"
        assert items[-3]["data"]["failures"] == 2
        assert items[-2]["by"]["kind"] == "stranger"
        assert items[0]["by"]["address"] == "127.0.0.1"
        async with site.client("bob") as bob:
            user_id = items[0]["by"]["user"]
            problem(await bob.get(f"/v1/accounts/{user_id}/journal"), 404, "not_found")
            assert await kinds(bob) == ["security.login", "security.user_created"]
    verdict = await verify(_dsn(site), projections())
    assert verdict.sound, verdict.faults


def _dsn(site: Any) -> str:
    dsn: str = site.pool._connect_args[0]
    return dsn


async def test_many_events_still_verify(site: Any) -> None:
    """A stream of more than 256 entries, where accounts get their marks."""
    async with site.client("ann") as ann:
        user_id = (await ann.get("/v1/me")).json()["id"]
    from uuid import UUID

    from tbot.auth import events
    from tbot.journal.commands import SYSTEM

    for _ in range(260):
        async with transaction(site.pool) as connection:
            await events.record(connection, UUID(user_id), events.LOGIN, SYSTEM)
    verdict = await verify(_dsn(site), projections())
    assert verdict.sound, verdict.faults


async def test_attack_20_guessing_does_not_lock_the_victim_out(site: Any, problem: Any) -> None:
    from tbot.auth.flow import Peer
    from tbot.core.errors import InvalidCredentials, TooManyAttempts

    home = Peer("192.0.2.1")
    await flow.login(site.auth, "ann", PASSWORD, peer=home)
    outcomes = []
    for number in range(25):
        attacker = Peer(f"198.51.100.{number}")
        try:
            await flow.login(site.auth, "ann", f"guess {number}", peer=attacker)
        except (InvalidCredentials, TooManyAttempts) as error:
            outcomes.append(type(error))
    assert outcomes[:20] == [InvalidCredentials] * 20
    assert outcomes[-1] is TooManyAttempts, "addresses that rotate are counted per account"
    before = site.auth.passwords.hashes
    async with site.client() as client:
        refused = problem(await log_in(client), 429, "too_many_attempts")
        assert "password" not in refused["detail"]
    assert site.auth.passwords.hashes == before, "nothing is checked while one has to wait"
    assert await flow.login(site.auth, "ann", PASSWORD, peer=home), "from a known address"
    assert await flow.login(site.auth, "bob", PASSWORD, peer=home), "others are not touched"


async def test_one_address_waits_longer_and_longer_and_is_told_how_long(
    new_site: Any, problem: Any
) -> None:
    site = await new_site(auth={"failures_free": 2, "failures_wait_s": 30})
    await site.user("ann")
    async with site.client() as client:
        for _ in range(2):
            problem(await log_in(client, password="wrong"), 401, "invalid_credentials")
        answer = await log_in(client)
        problem(answer, 429, "too_many_attempts")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        await site.pool.execute("UPDATE login_failures SET at = at - interval '31 seconds'")
        problem(await log_in(client, password="wrong"), 401, "invalid_credentials")
        answer = await log_in(client)
        assert 31 <= int(answer.headers["retry-after"]) <= 60
        await site.pool.execute("UPDATE login_failures SET at = at - interval '61 seconds'")
        assert (await log_in(client)).status_code == 200, "and it ends by itself"
        unknown = await log_in(client, username="nobody")
        problem(unknown, 401, "invalid_credentials")


async def test_an_unknown_user_waits_as_a_known_one_does(new_site: Any, problem: Any) -> None:
    site = await new_site(auth={"failures_free": 2})
    await site.user("ann")
    async with site.client() as client:
        for name in ("ann", "nobody"):
            statuses = [
                (await log_in(client, username=name, password="wrong")).status_code
                for _ in range(3)
            ]
            assert statuses == [401, 401, 429]


async def test_a_browser_gets_its_refresh_token_in_a_cookie_only(site: Any, problem: Any) -> None:
    form = {"username": "ann", "password": PASSWORD, "mode": "browser"}
    ours = {"Origin": "http://test", "Sec-Fetch-Site": "same-origin"}
    async with site.client() as client:
        problem(await client.post("/v1/token", data=form), 403, "cross_site")
        answer = await client.post("/v1/token", data=form, headers=ours)
        assert "refresh_token" not in answer.json()
        cookie = answer.headers["set-cookie"]
        name, _, rest = cookie.partition("=")
        value = rest.split(";")[0]
        assert name == "__Host-tbot_refresh"
        assert value.startswith("tbr_")
        for attribute in ("HttpOnly", "Secure", "Path=/", "SameSite=strict", "Max-Age="):
            assert attribute in cookie
        assert "Domain" not in cookie

        async def refresh(value: str, **headers: str) -> Any:
            sent = {"Cookie": f"{name}={value}", **headers}
            return await client.post("/v1/token/refresh", headers=sent)

        for headers in (
            {},
            {"Origin": "null"},
            {"Origin": "https://evil.example"},
            {"Origin": "http://test.evil.example"},
            {"Origin": "http://test", "Sec-Fetch-Site": "cross-site"},
            {"Origin": "http://test", "Sec-Fetch-Site": "none"},
        ):
            problem(await refresh(value, **headers), 403, "cross_site")
        again = await refresh(value, **ours)
        assert again.status_code == 200
        rotated = again.headers["set-cookie"].split("=", 1)[1].split(";")[0]
        assert rotated != value
        me = await client.get("/v1/me", headers={"Cookie": f"{name}={rotated}", **ours})
        problem(me, 401, "unauthenticated")
        out = await client.post("/v1/token/revoke", headers={"Cookie": f"{name}={rotated}", **ours})
        assert out.status_code == 200
        assert "Max-Age=0" in out.headers["set-cookie"]
        problem(await client.get("/v1/me", headers=bearer(again.json())), 401, "invalid_token")


async def test_the_public_keys_verify_our_tokens(site: Any) -> None:
    from joserfc import jwt
    from joserfc.jwk import KeySet

    async with site.client() as client:
        answer = await client.get("/.well-known/jwks.json")
        assert answer.headers["cache-control"] == "public, max-age=300"
        assert "d" not in answer.json()["keys"][0]
        token = await site.token("ann")
        decoded = jwt.decode(token, KeySet.import_key_set(answer.json()), algorithms=["Ed25519"])
        assert decoded.claims["iss"] == "tbot"


async def test_roles_get_their_scopes_and_programs_cannot_log_in(site: Any, problem: Any) -> None:
    for role in (Role.VIEWER, Role.AUDITOR, Role.SERVICE):
        await site.user(role.value, role)
    async with site.client("viewer") as viewer:
        scope = (await viewer.get("/v1/me")).json()["scope"].split()
        assert "orders:write" not in scope and "orders:read" in scope
        problem(await viewer.post("/v1/orders", json={}), 403, "insufficient_scope")
    async with site.client() as client:
        problem(await log_in(client, username="service"), 401, "invalid_credentials")
