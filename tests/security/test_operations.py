"""Attacks 58–62: a lost cache, forged log lines, secrets in the wrong place, faults, and floods."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tbot.core.settings import Settings
from tbot.core.valkey import Valkey
from tbot.core.valkey_settings import ValkeySettings
from tbot.web.shared_limits import SharedStore

pytestmark = pytest.mark.asyncio(loop_scope="session")
ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99",
}
CANARIES = {
    "password": "canary password, not to be written",
    "jwt": "eyJhbGciOiJFZDI1NTE5In0.eyJzdWIiOiJjYW5hcnkifQ.Q2FuYXJ5U2lnbmF0dXJl",
    "api key": "tbk_CanaryCanaryCanaryCanaryCanaryCanaryCanary0",
    "refresh token": "tbr_CanaryCanaryCanaryCanaryCanaryCanaryCanary0",
}


async def test_a58_valkey_is_lost(
    world: Any, problem: Any, own_valkey: Any, eventually: Any
) -> None:
    """Requests go on, counted here; logins fail closed; nothing is a 500; and it heals."""
    server = await world.new_server()
    valkey = Valkey(ValkeySettings(url=own_valkey.url, open_s=0.05, timeout_s=2.0))
    server.site.app.state.limits._store = SharedStore(valkey, Settings().limits)
    person = await server.person()
    account = (await server.site.account(person.http, USDT="1000"))["id"]
    assert (await server.log_in(person.http, person.name)).status_code == 200
    own_valkey.kill()
    refused = await server.log_in(person.http, person.name)
    problem(refused, 503, "unavailable")
    assert int(refused.headers["retry-after"]) >= 1
    for _ in range(5):
        assert (await person.http.get("/v1/me")).status_code == 200
        placed = await person.http.post("/v1/orders", json={**ORDER, "account_id": account})
        assert placed.status_code == 201, placed.text
        assert placed.headers["ratelimit"], "counted, here"
        canceled = await person.http.delete(f"/v1/orders/{placed.json()['id']}")
        assert canceled.status_code == 202
    body = {"refresh_token": person.grant.refresh_token}
    assert (await person.http.post("/v1/token/refresh", json=body)).status_code == 200
    own_valkey.start()

    async def healed() -> bool:
        return bool((await server.log_in(person.http, person.name)).status_code == 200)

    await eventually(healed, interval_s=0.1)
    await valkey.stop()


async def test_a59_line_breaks_and_escapes_in_a_user_name(
    world: Any, problem: Any, log_lines: Callable[[], list[str]]
) -> None:
    forged = 'x\r\n{"event": "login", "user": "admin"}\n\x1b[31mred\x1b[0m\u2028\u202eevil\x00'
    client = world.client()
    problem(await world.log_in(client, forged), 401, "invalid_credentials")
    client.headers["User-Agent"] = "agent"
    await client.get("/nope", headers={"X-Request-Id": "a b", "User-Agent": "\x1b[31mred"})
    await client.get("/v1/%0d%0a%1b[31m")
    lines = log_lines()
    assert lines
    for line in lines:
        assert isinstance(json.loads(line), dict), "each line is one event"
        assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e]", line)
    logins = [line for line in lines if json.loads(line)["event"] == "login"]
    assert not logins, "what was sent is not an event of ours"


async def test_a60_canaries_are_in_no_log_error_or_metric(
    world: Any, log_lines: Callable[[], list[str]]
) -> None:
    """In each field of a login, in headers, addresses and bodies. All routes: test_canary.py."""
    client = world.client()
    told: list[Any] = []
    for secret in CANARIES.values():
        for field in ("username", "password", "otp", "scope", "client_secret", "grant_type"):
            form = {"username": "ann", "password": "x" * 20, field: secret}
            told.append(await client.post("/v1/token", data=form))
        for header in ("Authorization", "X-API-Key", "Cookie", "X-Request-Id", "User-Agent"):
            value = f"Bearer {secret}" if header == "Authorization" else secret
            told.append(await client.get("/v1/me", headers={header: value}))
        query = {"cursor": secret, secret: "1"}
        told += [
            await client.get(path, params=query)
            for path in (f"/v1/orders/{secret}", f"/{secret}", "/v1/orders")
        ]
        body = {"refresh_token": secret, "mfa_token": secret, "code": secret, secret: secret}
        told += [
            await client.post(path, json=body)
            for path in ("/v1/token/refresh", "/v1/token/revoke", "/v1/token/mfa", "/v1/accounts")
        ]
    metrics = (await client.get("/metrics")).text
    everything = "\n".join(
        [*log_lines(), metrics, *(f"{one.headers} {one.text}" for one in told if one.is_error)]
    )
    assert len(log_lines()) >= len(told)
    for name, secret in CANARIES.items():
        assert secret not in everything, name
        assert secret.replace(" ", "%20") not in everything, name
        assert secret.replace(" ", "+") not in everything, name


async def test_a61_a_forced_fault_is_a_plain_500(
    world: Any, problem: Any, monkeypatch: pytest.MonkeyPatch, log_lines: Callable[[], list[str]]
) -> None:
    person = await world.person()

    async def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(f"secret detail {CANARIES['jwt']}")

    routes = [one for one in world.site.app.routes if getattr(one, "path", "") == "/v1/me"]
    monkeypatch.setattr(routes[0].dependant, "call", fail)
    document = problem(await person.http.get("/v1/me"), 500, "internal_error")
    assert set(document) == {"type", "title", "status", "detail", "code", "request_id"}
    text = json.dumps(document)
    assert not re.search(r"secret|Traceback|RuntimeError|\.py|File ", text)
    (line,) = [line for line in log_lines() if json.loads(line)["event"] == "request_failed"]
    assert json.loads(line)["request_id"] == document["request_id"]
    assert CANARIES["jwt"] not in line


async def test_a62_a_quota_that_is_used_up(world: Any) -> None:
    """Whatever rotates: the token, the key, the address. Others are not concerned."""
    server = await world.new_server(
        limits={"orders": "3/9000s", "strangers": "3/9000s", "logins": "3/9000s"}
    )
    person, other = await server.person(), await server.person()
    account = (await server.site.account(person.http, USDT="1000"))["id"]
    order = {**ORDER, "account_id": account}

    def used_up(answer: Any, policy: str) -> None:
        assert answer.status_code == 429, answer.text
        document = answer.json()
        assert document["violated-policies"] == [policy]
        remaining = re.findall(r'"(\w+)";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
        assert (policy, "0") in [(name, left) for name, left, _ in remaining]
        wait_s = int(answer.headers["retry-after"])
        assert wait_s >= max(int(time_s) for _, _, time_s in remaining) >= 1

    for _ in range(3):
        assert (await person.http.post("/v1/orders", json=order)).status_code == 201
    used_up(await person.http.post("/v1/orders", json=order), "orders")
    grant = await server.session(person.name, "127.200.0.1")
    elsewhere = server.client(grant.access_token, "127.200.0.1")
    used_up(await elsewhere.post("/v1/orders", json=order), "orders")
    key = await person.http.post("/v1/api-keys", json={"name": "k", "scopes": ["orders:write"]})
    with_key = server.client(key.json()["key"])
    used_up(await with_key.post("/v1/orders", json=order), "orders")
    assert (await person.http.delete("/v1/orders", params={"account_id": account})).is_success
    theirs = (await server.site.account(other.http, USDT="1000"))["id"]
    placed = await other.http.post("/v1/orders", json={**ORDER, "account_id": theirs})
    assert placed.status_code == 201
    stranger = server.client()
    for number in range(3):
        token = f"eyJhbGciOiJFZDI1NTE5In0.e30.AAA{number}"
        headers = {"Authorization": f"Bearer {token}"}
        assert (await stranger.get("/v1/me", headers=headers)).status_code == 401
    used_up(await stranger.get("/v1/me", headers={"Authorization": "Bearer x"}), "strangers")


async def test_a21_logins_of_one_address_have_a_quota(world: Any) -> None:
    server = await world.new_server(limits={"logins": "3/9000s"})
    passwords = server.site.auth.passwords
    flood = server.client()
    before = passwords.hashes
    answers = [await server.log_in(flood, f"nobody-{n}", password="x") for n in range(6)]
    assert [answer.status_code for answer in answers] == [401] * 3 + [429] * 3
    assert passwords.hashes == before + 3
    assert int(answers[-1].headers["retry-after"]) >= 1


async def test_a25_a_trusted_proxy_is_believed_from_the_right(world: Any) -> None:
    """And who is behind it cannot put words into its mouth."""
    server = await world.new_server(http={"trusted_proxies": ["127.201.0.0/16"]})
    person = await server.person()
    proxy = server.client(person.token, "127.201.0.1")
    for sent, seen in (
        ("203.0.113.7", "203.0.113.7"),
        ("10.9.8.7, 203.0.113.7", "203.0.113.7"),
        ("203.0.113.7, 127.201.0.9", "203.0.113.7"),
        ("not an address", None),
    ):
        await proxy.post(
            "/v1/token",
            data={"username": person.name, "password": "wrong"},
            headers={"X-Forwarded-For": sent},
        )
        events = (await person.http.get("/v1/me/security-events")).json()["items"]
        if seen is not None:
            assert seen in {event["by"].get("address") for event in events}
    stranger = server.client(person.token)
    await stranger.post(
        "/v1/token",
        data={"username": person.name, "password": "wrong"},
        headers={"X-Forwarded-For": "198.51.100.99"},
    )
    addresses = await server.site.pool.fetch(
        "SELECT body FROM journal WHERE account_id = $1", person.id
    )
    text = str([bytes(row["body"]) for row in addresses])
    assert "198.51.100.99" not in text and "10.9.8.7" not in text
