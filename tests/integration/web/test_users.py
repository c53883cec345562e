"""An administrator changes what users are: at once, for everything they have open, and told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tbot.auth import flow, users
from tbot.auth.scopes import Role
from tbot.client import Refused, TBotClient

PASSWORD = "correct horse battery staple"


async def ids(client: Any) -> dict[str, str]:
    return {u["username"]: u["id"] for u in (await client.get("/v1/users")).json()["items"]}


async def change(
    client: httpx.AsyncClient, path: str, body: Any, headers: dict[str, str] | None = None
) -> httpx.Response:
    """Change a user, whatever they are now."""
    return await client.patch(path, json=body, headers={"If-Match": "*", **(headers or {})})


async def test_who_is_kept_out_is_out_at_once_and_may_come_back(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client("ann") as ann:
        assert (await ann.get("/v1/me")).status_code == 200
        path = f"/v1/users/{(await ids(root))['ann']}"
        key = (
            await ann.post("/v1/api-keys", json={"name": "k", "scopes": ["account:read"]})
        ).json()
        by_key = {"X-API-Key": key["key"]}
        async with site.client() as program:
            assert (await program.get("/v1/me", headers=by_key)).status_code == 200
            answer = await change(root, path, {"status": "disabled"})
            assert answer.status_code == 200 and answer.json()["status"] == "disabled"
            problem(await ann.get("/v1/me"), 401, "invalid_token")
            problem(await program.get("/v1/me", headers=by_key), 401, "invalid_token")
            form = {"username": "ann", "password": PASSWORD}
            problem(await program.post("/v1/token", data=form), 401, "invalid_credentials")
            assert (await change(root, path, {"status": "active"})).json()["status"] == "active"
            assert (await program.post("/v1/token", data=form)).status_code == 200
            assert (await program.get("/v1/me", headers=by_key)).status_code == 200
            problem(
                await ann.get("/v1/me"), 401, "invalid_token"
            )  # a session that is over stays so


async def test_a_lower_role_takes_effect_in_tokens_and_keys(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client("ann") as ann, site.client() as program:
        path = f"/v1/users/{(await ids(root))['ann']}"
        scopes = ["account:read", "account:write"]
        key = (await ann.post("/v1/api-keys", json={"name": "k", "scopes": scopes})).json()["key"]
        program.headers["X-API-Key"] = key
        body = {"name": "a", "kind": "cash"}
        assert (await program.post("/v1/accounts", json=body)).status_code == 201
        answer = await change(root, path, {"role": "viewer"})
        assert answer.json() == {**answer.json(), "role": "viewer", "status": "active"}
        problem(await ann.get("/v1/me"), 401, "invalid_token")
        problem(await program.post("/v1/accounts", json=body), 403, "insufficient_scope")
        assert (await program.get("/v1/accounts")).status_code == 200
        events = (await root.get(f"{path}/security-events")).json()["items"]
        assert events[0]["kind"] == "security.user_changed"
        assert events[0]["data"] == {"role": "viewer", "role_before": "trader"}
        assert events[0]["by"]["user"] == (await ids(root))["root"]
        assert events[-1]["kind"] == "security.user_created"
        again = await change(root, path, {"role": "viewer"})
        assert again.status_code == 200
        after = (await root.get(f"{path}/security-events")).json()["items"]
        assert after == events, "what changes nothing is no event"


async def test_live_streams_end_with_what_their_user_was(site: Any, serve: Any) -> None:
    """Both of a login and of an API key, which itself stays good."""
    url = await serve(site)
    async with site.client("root") as root, site.client("ann") as ann:
        path = f"/v1/users/{(await ids(root))['ann']}"
        scopes = ["account:read", "orders:write"]
        made = await ann.post("/v1/api-keys", json={"name": "k", "scopes": scopes})
        tokens = (made.json()["key"], await site.token("ann"))
        sockets = []
        for token in tokens:
            socket = await connect(url.replace("http", "ws") + "/v1/stream")
            await socket.send(json.dumps({"op": "auth", "token": token}))
            assert json.loads(await socket.recv())["op"] == "hello"
            assert json.loads(await socket.recv())["op"] == "authed"
            sockets.append(socket)
        assert (await change(root, path, {"role": "viewer"})).status_code == 200
        for socket in sockets:
            with pytest.raises(ConnectionClosed) as closed:
                async with asyncio.timeout(30):
                    while True:
                        await socket.recv()
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 4003


async def test_the_last_administrator_stays_one(site: Any, problem: Any) -> None:
    await site.user("eve", Role.ADMIN)
    async with site.client("root") as root, site.client("eve") as eve:
        known = await ids(root)
        paths = {name: f"/v1/users/{known[name]}" for name in ("root", "eve")}
        # Both take the other's role away at once: one of them remains.
        answers = await asyncio.gather(
            change(root, paths["eve"], {"role": "trader"}),
            change(eve, paths["root"], {"status": "disabled"}),
        )
        assert sorted(answer.status_code for answer in answers) in ([200, 401], [200, 409])
        remaining = await site.pool.fetchval(
            "SELECT username FROM users WHERE role = 'admin' AND status = 'active'"
        )
        async with site.client(remaining) as last:
            for body in ({"role": "viewer"}, {"status": "disabled"}):
                problem(await change(last, paths[remaining], body), 409, "last_administrator")
            assert (await last.get("/v1/users")).status_code == 200
            # With somebody else in place one may go.
            answer = await change(last, f"/v1/users/{known['bob']}", {"role": "admin"})
            assert answer.status_code == 200
            assert (await change(last, paths[remaining], {"role": "viewer"})).status_code == 200
            problem(await last.get("/v1/users"), 401, "invalid_token")


async def test_what_is_no_change_of_a_user_is_refused(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client("ann") as ann:
        path = f"/v1/users/{(await ids(root))['bob']}"
        for body in (
            {"role": None}, {"status": None}, {"role": "god"}, {"status": "gone"}, [],
            {"username": "bobby"}, {"password": PASSWORD}, {"role": ["admin"]},
        ):  # fmt: skip
            problem(await change(root, path, body), 422, "validation_failed")
        problem(await change(ann, path, {"role": "admin"}), 403, "insufficient_scope")
        nobody = "/v1/users/01a20316-bed6-7000-b7fb-29faca9c9d9c"
        problem(await change(root, nobody, {"role": "viewer"}), 404, "not_found")
        problem(await root.get(f"{nobody}/security-events"), 404, "not_found")
        assert (await change(root, path, {})).json()["role"] == "trader"
        header = {"Idempotency-Key": "k1"}
        first = await change(root, path, {"role": "viewer"}, header)
        await change(root, path, {"role": "trader"})
        again = await change(root, path, {"role": "viewer"}, header)
        assert again.json() == first.json() and "idempotent-replayed" in again.headers
        assert (await root.get(path)).json()["role"] == "trader"
        await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
        problem(await change(root, path, {"role": "viewer"}), 403, "step_up_required")


async def test_no_key_changes_users_and_the_sdk_does(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client() as program:
        bob = (await ids(root))["bob"]
        made = await root.post("/v1/api-keys", json={"name": "k", "scopes": ["admin"]})
        program.headers["X-API-Key"] = made.json()["key"]
        answer = await change(program, f"/v1/users/{bob}", {"role": "admin"})
        problem(answer, 403, "key_not_allowed")
    http = httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://test")
    async with TBotClient("http://test", http=http, username="root", password=PASSWORD) as client:
        seen = await client.user(bob)
        assert (seen.username, seen.role, seen.status) == ("bob", "trader", "active")
        changed = await client.change_user(bob, role="auditor", if_match=seen.etag)
        assert changed.role == "auditor" and changed.etag == (await client.user(bob)).etag
        with pytest.raises(Refused) as refused:
            await client.change_user(bob, role="admin", if_match=seen.etag)
        assert refused.value.code == "precondition_failed"
        assert (await client.change_user(bob, status="disabled")).status == "disabled"


async def test_a_waiting_login_is_over_too(site: Any) -> None:
    async with site.pool.acquire() as connection:
        ann = (await users.user_named(site.pool, "ann")).id
        await connection.execute(
            "INSERT INTO mfa_challenges (hash, user_id, scope, expires_at, failures)"
            " VALUES (sha256('x'), $1, '', now() + interval '1 hour', 0)",
            ann,
        )
    await users.set_role(site.pool, "ann", Role.VIEWER)
    assert await site.pool.fetchval("SELECT count(*) FROM mfa_challenges") == 0
    grant = await flow.login(site.auth, "ann", PASSWORD)
    assert "orders:write" not in grant.scopes
