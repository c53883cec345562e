"""API keys over HTTP: REST, the lean routes, and what a key may not do."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tbot.auth import api_keys, flow
from tbot.auth.scopes import Role
from tbot.auth.state import touch

READING = ["account:read", "orders:read", "market:read"]


async def make(client: Any, name: str = "bot", **body: Any) -> dict[str, Any]:
    answer = await client.post("/v1/api-keys", json={"name": name, "scopes": READING, **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/v1/api-keys/{made['id']}"
    return made


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def test_a_key_is_shown_once_and_opens_what_its_scopes_say(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        account = await site.account(ann)
        made = await make(ann)
        key = made["key"]
        assert key.startswith("tbk_") and made["hint"] == key[:8]
        listed = await ann.get("/v1/api-keys")
        assert [item["name"] for item in listed.json()["items"]] == ["bot"]
        assert key not in listed.text
        assert key not in (await ann.get(f"/v1/api-keys/{made['id']}")).text
        for table in ("api_keys", "journal", "idempotency_keys"):
            assert key not in str(await site.pool.fetch(f"SELECT * FROM {table}"))
        path = f"/v1/accounts/{account['id']}"
        for headers in (bearer(key), {"X-API-Key": key}):
            assert (await client.get(path, headers=headers)).status_code == 200
            answer = await client.post(
                "/v1/accounts", json={"name": "x", "starting_balance": {}}, headers=headers
            )
            document = problem(answer, 403, "insufficient_scope")
            assert document["scope"] == "account:write"
        async with site.client("bob") as bob:
            theirs = await site.account(bob)
        other = await client.get(f"/v1/accounts/{theirs['id']}", headers=bearer(key))
        problem(other, 404, "not_found")


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer tbk_" + "A" * 43},
        {"Authorization": "Bearer tbk_x"},
        {"X-API-Key": "tbk_" + "A" * 43},
        {"X-API-Key": "x"},
        {"X-API-Key": ""},
    ],
)
async def test_made_up_keys(site: Any, problem: Any, headers: dict[str, str]) -> None:
    async with site.client() as client:
        problem(await client.get("/v1/me", headers=headers), 401, "invalid_token")


async def test_two_tokens_are_one_too_many_and_an_access_token_is_no_key(
    site: Any, problem: Any
) -> None:
    async with site.client("ann") as ann, site.client() as client:
        key = (await make(ann))["key"]
        problem(await ann.get("/v1/me", headers={"X-API-Key": key}), 401, "invalid_token")
        token = await site.token("ann")
        answer = await client.get("/v1/me", headers={"X-API-Key": token})
        problem(answer, 401, "invalid_token")


async def test_lean_routes_take_keys_in_both_headers(site: Any, serve: Any, problem: Any) -> None:
    async with site.client("ann") as ann:
        account = await site.account(ann)
        made = await make(ann, scopes=["orders:write"])
    order = {
        "account_id": account["id"],
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.1",
        "limit_price": "99",
    }
    async with httpx.AsyncClient(base_url=await serve(site)) as client:
        for headers in (bearer(made["key"]), {"X-API-Key": made["key"]}):
            answer = await client.post("/v1/orders", json=order, headers=headers)
            assert answer.status_code == 201, answer.text
        by = await site.pool.fetchval(
            "SELECT convert_from(body, 'UTF8')::jsonb -> 'by' ->> 'name' FROM journal"
            " WHERE kind = 'order.accepted' LIMIT 1"
        )
        assert by == "bot", "the journal names the key"
        for headers in ({"X-API-Key": "tbk_" + "A" * 43}, {"X-API-Key": "x y"}, {}):
            answer = await client.post("/v1/orders", json=order, headers=headers)
            assert answer.status_code == 401


async def test_a_key_is_bound_to_addresses_and_tells_of_new_ones(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        here = await make(ann, "here", addresses=["127.0.0.0/8", "::1"])
        away = await make(ann, "away", addresses=["192.0.2.0/24"])
        assert (await client.get("/v1/me", headers=bearer(here["key"]))).status_code == 200
        for _ in range(3):
            answer = await client.get("/v1/me", headers=bearer(away["key"]))
            problem(answer, 401, "invalid_token")
        items = (await ann.get("/v1/me/security-events")).json()["items"]
        told = [(item["kind"], item["data"].get("key")) for item in items]
        assert told.count(("security.key_new_address", "here")) == 1
        assert told.count(("security.key_refused", "away")) == 1
        for bad in ("192.0.2.1/24", "nonsense", "1.2.3.4/40", ""):
            body = {"name": "bad", "scopes": READING, "addresses": [bad]}
            answer = await ann.post("/v1/api-keys", json=body)
            problem(answer, 422, "validation_failed")


async def test_keys_end(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob, site.client() as client:
        made = await make(ann)
        headers = bearer(made["key"])
        assert (await client.get("/v1/me", headers=headers)).status_code == 200
        path = f"/v1/api-keys/{made['id']}"
        for method in ("GET", "DELETE"):
            problem(await bob.request(method, path), 404, "not_found")
        assert (await ann.delete(path)).status_code == 204
        problem(await client.get("/v1/me", headers=headers), 401, "invalid_token")
        problem(await ann.delete(path), 404, "not_found")
        short = await make(ann, "short", expires_in_s=100)
        assert (await client.get("/v1/me", headers=bearer(short["key"]))).status_code == 200
        await site.pool.execute("UPDATE api_keys SET expires_at = now()")
        site.auth.api_keys.forget()
        problem(await client.get("/v1/me", headers=bearer(short["key"])), 401, "invalid_token")
        answer = await ann.post(
            "/v1/api-keys",
            json={"name": "long", "scopes": READING, "expires_in_s": 10**9},
        )
        problem(answer, 422, "validation_failed")


async def test_a_new_password_can_take_the_keys_along(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        headers = bearer((await make(ann))["key"])
        body = {
            "current_password": "correct horse battery staple",
            "new_password": "another long password",
            "revoke_keys": True,
        }
        assert (await client.get("/v1/me", headers=headers)).status_code == 200
        assert (await ann.post("/v1/me/password", json=body)).status_code == 200
        problem(await client.get("/v1/me", headers=headers), 401, "invalid_token")


async def test_what_no_key_may_do(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client() as client:
        scopes = ["security:read", "security:write", "payments:write", "account:write"]
        cash = await site.cash(ann, USDT="100")
        headers = bearer((await make(ann, scopes=scopes))["key"])
        withdrawal = {
            "account_id": cash["id"],
            "asset": "USDT",
            "amount": "1",
            "destination": "DE89",
        }
        for method, path, body in (
            ("POST", "/v1/api-keys", {"name": "more", "scopes": ["security:read"]}),
            ("POST", "/v1/withdrawals", withdrawal),
            ("POST", "/v1/me/totp", None),
            ("POST", "/v1/me/password", {"new_password": "another long password"}),
            ("POST", "/v1/token/step-up", {"password": "correct horse battery staple"}),
            ("DELETE", "/v1/sessions", None),
        ):
            answer = await client.request(method, path, json=body, headers=headers)
            problem(answer, 403, "key_not_allowed")


async def test_settings_let_keys_withdraw(new_site: Any) -> None:
    site = await new_site(auth={"keys_withdraw": True})
    await site.user("ann")
    async with site.client("ann") as ann, site.client() as client:
        cash = await site.cash(ann, USDT="100")
        made = await make(ann, scopes=["payments:write"])
        answer = await client.post(
            "/v1/withdrawals",
            json={"account_id": cash["id"], "asset": "USDT", "amount": "1", "destination": "DE89"},
            headers=bearer(made["key"]),
        )
        assert answer.status_code == 201, answer.text


async def test_scopes_are_at_most_the_askers(site: Any, problem: Any) -> None:
    async with site.client("ann", "security:write market:read") as ann:
        answer = await ann.post("/v1/api-keys", json={"name": "k", "scopes": ["orders:write"]})
        problem(answer, 403, "insufficient_scope")
    async with site.client("ann") as ann:
        for scopes in (["admin"], []):
            answer = await ann.post("/v1/api-keys", json={"name": "k", "scopes": scopes})
            assert answer.status_code in (403, 422)


async def test_programs_get_their_keys_from_administrators(site: Any, problem: Any) -> None:
    await site.user("robot", Role.SERVICE)
    async with site.client("root") as root, site.client() as client:
        users = {u["username"]: u["id"] for u in (await root.get("/v1/users")).json()["items"]}
        body = {"name": "k", "scopes": ["orders:write"]}
        made = await root.post(f"/v1/users/{users['robot']}/api-keys", json=body)
        assert made.status_code == 201, made.text
        key = made.json()["key"]
        assert (await client.get("/v1/me", headers=bearer(key))).json()["username"] == "robot"
        assert (await root.get(made.headers["location"])).json()["id"] == made.json()["id"]
        refused = await root.post(f"/v1/users/{users['ann']}/api-keys", json=body)
        problem(refused, 404, "not_found")
        assert (await root.delete(made.headers["location"])).status_code == 204
        problem(await client.get("/v1/me", headers=bearer(key)), 401, "invalid_token")


async def test_as_many_keys_as_there_may_be_and_one_of_a_name(new_site: Any, problem: Any) -> None:
    site = await new_site(auth={"keys_max": 3})
    await site.user("ann")
    async with site.client("ann") as ann:
        body = {"name": "same", "scopes": READING}
        same = await asyncio.gather(*(ann.post("/v1/api-keys", json=body) for _ in range(4)))
        assert sorted(answer.status_code for answer in same) == [201, 409, 409, 409]
        others = await asyncio.gather(
            *(ann.post("/v1/api-keys", json={**body, "name": f"k{n}"}) for n in range(5))
        )
        assert sorted(answer.status_code for answer in others) == [201, 201, 409, 409, 409]
        assert {a.json()["code"] for a in others if a.status_code == 409} == {"keys_max"}


async def test_a_busy_key_costs_one_query_in_its_cache_time(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = api_keys.find

    async def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return await original(*arguments)

    async with site.client("ann") as ann:
        key = (await make(ann))["key"]
    monkeypatch.setattr(api_keys, "find", counted)
    await asyncio.gather(*(flow.authenticate(site.auth, key) for _ in range(100)))
    await asyncio.gather(*(flow.authenticate(site.auth, key) for _ in range(100)))
    assert len(asked) == 1
    await touch(site.auth)
    async with site.client("ann") as ann:
        (item,) = (await ann.get("/v1/api-keys")).json()["items"]
        assert item["last_used_at"] is not None
