"""Rate limits over the whole edge: who is counted, what callers see, and what holds without Valkey."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest

from tbot.auth.scopes import Role
from tbot.core.errors import QuotaExceeded, Unavailable
from tbot.core.limit_settings import LimitSettings
from tbot.core.settings import Settings
from tbot.core.valkey import Valkey
from tbot.core.valkey_settings import ValkeySettings
from tbot.web.ratelimit import Kind, Limits
from tbot.web.shared_limits import SharedStore

PASSWORD = "correct horse battery staple"
ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99",
}


def left(answer: httpx.Response) -> dict[str, int]:
    """What `RateLimit` says is left, by policy."""
    found = re.findall(r'"(\w+)";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert ", ".join(f'"{p}";r={r};t={t}' for p, r, t in found) == answer.headers["ratelimit"]
    return {policy: int(remaining) for policy, remaining, _ in found}


def exceeded(answer: httpx.Response, *policies: str) -> None:
    """Check that an answer says which limits are used up, and when to come back."""
    assert answer.status_code == 429, answer.text
    document = answer.json()
    assert document["type"] == "https://iana.org/assignments/http-problem-types#quota-exceeded"
    assert document["code"] == "quota_exceeded"
    assert document["violated-policies"] == list(policies)
    assert answer.headers["cache-control"] == "no-store"
    wait = int(answer.headers["retry-after"])
    times = [int(t) for t in re.findall(r"t=(\d+)", answer.headers["ratelimit"])]
    assert wait >= max(times) >= 1
    assert set(left(answer)) == set(policies)
    assert all(f'"{policy}";q=' in answer.headers["ratelimit-policy"] for policy in policies)


@pytest.fixture
async def tight(new_site: Any) -> Any:
    """A site with small quotas that do not come back within a test."""
    site = await new_site(
        limits={
            "orders": "3/9000s",
            "cancels": "5/9000s",
            "strangers": "4/9000s",
            "logins": "2/9000s",
            "exports": "1/9000s",
            "reads": "1000/10s",
            "streams": "2/9000s",
            "key": "3/9000s",
        }
    )
    for name in ("ann", "bob"):
        await site.user(name, Role.TRADER)
    return site


async def test_lean_and_stock_routes_count_alike_and_say_so(tight: Any) -> None:
    async with tight.client("ann") as ann, tight.client("bob") as bob:
        account = await tight.account(ann, USDT="1000")
        order = {**ORDER, "account_id": account["id"]}
        first = await ann.post("/v1/orders", json=order)
        assert first.status_code == 201
        assert first.headers["ratelimit-policy"] == (
            '"address";q=20000;w=10, "user";q=20000;w=10, "orders";q=3;w=9000'
        )
        assert left(first)["orders"] == 2
        # With a query it is not served lean.
        second = await ann.post("/v1/orders?x=1", json=order)
        assert second.status_code == 201
        assert second.headers["ratelimit-policy"] == first.headers["ratelimit-policy"]
        assert left(second)["orders"] == 1
        # What is refused for another reason counts once, too.
        bad = await ann.post("/v1/orders", json={**order, "quantity": "x"})
        assert bad.status_code == 422
        assert left(bad)["orders"] == 0
        before = await tight.journal_size()
        exceeded(await ann.post("/v1/orders", json=order), "orders")
        exceeded(await ann.post("/v1/orders?x=1", json=order), "orders")
        assert await tight.journal_size() == before
        # Nothing was taken from the other limits, and others are not concerned.
        listed = await ann.get("/v1/orders")
        assert listed.status_code == 200
        assert (await bob.post("/v1/orders", json=order)).status_code == 404
        # Cancels count under nothing else.
        canceled = await ann.delete(f"/v1/orders/{first.json()['id']}")
        assert canceled.status_code == 202
        assert canceled.headers["ratelimit-policy"] == '"cancels";q=5;w=9000'
        assert left(canceled) == {"cancels": 4}


async def test_a_new_token_or_key_is_no_new_quota(tight: Any) -> None:
    """Attack 62: rotating tokens, the user is still limited."""
    async with tight.client("ann") as ann:
        account = await tight.account(ann, USDT="1000")
        proof = await ann.post("/v1/token/step-up", json={"password": PASSWORD})
        assert proof.status_code == 200
        keys = []
        for name in ("a", "b"):
            made = await ann.post(
                "/v1/api-keys", json={"name": name, "scopes": ["orders:read", "orders:write"]}
            )
            assert made.status_code == 201, made.text
            keys.append(made.json()["key"])
    order = {**ORDER, "account_id": account["id"]}
    tokens = [await tight.token("ann"), await tight.token("ann"), keys[0], keys[1]]
    statuses = []
    for token in tokens:
        async with tight.client() as client:
            client.headers["Authorization"] = f"Bearer {token}"
            answer = await client.post("/v1/orders", json=order)
            statuses.append(answer.status_code)
    assert [status == 429 for status in statuses] == [False, False, False, True]
    # One key has a quota of its own.
    async with tight.client() as client:
        client.headers["X-API-Key"] = keys[1]
        answers = [await client.get("/v1/orders") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        exceeded(answers[-1], "key")


async def test_strangers_count_by_address_and_not_against_users(tight: Any) -> None:
    async with tight.client() as stranger, tight.client("ann") as ann:
        bad = {"Authorization": "Bearer nonsense"}
        answers = [
            await stranger.get("/v1/me"),
            await stranger.get("/nope"),
            await stranger.get("/v1/me", headers=bad),
            await stranger.get("/.well-known/jwks.json"),
        ]
        assert [answer.status_code for answer in answers] == [401, 404, 401, 200]
        assert [left(answer)["strangers"] for answer in answers] == [3, 2, 1, 0]
        exceeded(await stranger.get("/v1/me", headers=bad), "strangers")
        exceeded(await stranger.get("/.well-known/jwks.json"), "strangers")
        assert (await stranger.get("/health/live")).status_code == 200
        assert (await ann.get("/v1/me")).status_code == 200


async def test_logins_exports_and_streams_have_quotas_of_their_own(tight: Any) -> None:
    hashes = tight.auth.passwords.hashes
    async with tight.client() as stranger:
        form = {"username": "ann", "password": "wrong"}
        answers = [await stranger.post("/v1/token", data=form) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [401, 401, 429]
        exceeded(answers[-1], "logins")
        assert tight.auth.passwords.hashes == hashes + 2
    async with tight.client("ann") as ann:
        csv = {"Accept": "text/csv"}
        assert (await ann.get("/v1/orders", headers=csv)).status_code == 200
        exceeded(await ann.get("/v1/orders", headers=csv), "exports")
        assert (await ann.get("/v1/orders")).status_code == 200
        answers = [await ann.post("/v1/stream/tickets", json={}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [201, 201, 429]
        exceeded(answers[-1], "streams")


async def test_an_address_that_used_up_everything_is_not_listened_to_but_may_cancel(
    new_site: Any,
) -> None:
    site = await new_site(limits={"address": "6/9000s"})
    await site.user("ann", Role.TRADER)
    async with site.client("ann") as ann:
        account = await site.account(ann, USDT="1000")
        placed = await ann.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
        for _ in range(4):
            assert (await ann.get("/v1/me")).status_code == 200
        exceeded(await ann.get("/v1/me"), "address")
        exceeded(await ann.get("/nope"), "address")
        exceeded(
            await ann.post("/v1/orders", json={**ORDER, "account_id": account["id"]}), "address"
        )
        assert (await ann.delete(f"/v1/orders/{placed.json()['id']}")).status_code == 202


async def test_off_is_off(new_site: Any) -> None:
    names = (
        "address",
        "strangers",
        "logins",
        "streams",
        "user",
        "key",
        "reads",
        "writes",
        "orders",
    )
    site = await new_site(limits=dict.fromkeys((*names, "cancels", "exports"), "off"))
    async with site.client() as stranger:
        answer = await stranger.get("/v1/me")
        assert answer.status_code == 401
        assert "ratelimit" not in answer.headers


async def test_a_forwarded_address_counts_only_from_a_trusted_proxy(new_site: Any) -> None:
    """Attack 25, in limits, in the journal, and for keys that are bound to addresses."""
    forged = {"X-Forwarded-For": "198.51.100.7", "X-Forwarded-Host": "evil.example"}
    for trusted, address in ([], "127.0.0.1"), (["127.0.0.0/8"], "198.51.100.7"):
        site = await new_site(http={"trusted_proxies": trusted}, limits={"strangers": "1/9000s"})
        name = "ann" if not trusted else "bob"
        await site.user(name, Role.TRADER)
        async with site.client(name) as client, site.client() as stranger:
            created = await client.post(
                "/v1/accounts",
                json={"name": "a", "starting_balance": {"USDT": "1"}},
                headers=forged,
            )
            entries = await client.get(f"/v1/accounts/{created.json()['id']}/journal")
            assert entries.json()["entries"][0]["entry"]["by"]["address"] == address
            assert "evil" not in str(created.headers)
            assert (await stranger.get("/nope", headers=forged)).status_code == 404
            exceeded(await stranger.get("/.well-known/jwks.json", headers=forged), "strangers")
            other = {"X-Forwarded-For": "198.51.100.8"}
            answer = await stranger.get("/.well-known/jwks.json", headers=other)
            assert answer.status_code == (200 if trusted else 429)


# Shared by processes


def limits_on(url: str, **changes: Any) -> tuple[Limits, Valkey]:
    valkey = Valkey(ValkeySettings(url=url, **changes))
    settings = LimitSettings(orders="10/9000s", logins="10/9000s", strangers="5/9000s")
    return Limits(settings, SharedStore(valkey, settings)), valkey


async def taken(limits: Limits, address: str, times: int, kind: Kind = Kind.LOGINS) -> list[bool]:
    refused = []

    async def one() -> bool:
        try:
            await limits.take(kind, address, None)
        except QuotaExceeded as error:
            refused.append((error.policies, error.retry_after_s > 100))
            return False
        return True

    found = list(await asyncio.gather(*(one() for _ in range(times))))
    policy = "logins" if kind is Kind.LOGINS else "strangers"
    assert all(each == ([policy], True) for each in refused)
    return found


async def test_processes_count_together_and_exactly(valkey: str) -> None:
    ours, theirs = (limits_on(valkey, timeout_s=5.0) for _ in range(2))
    try:
        found = await asyncio.gather(
            taken(ours[0], "192.0.2.1", 200), taken(theirs[0], "192.0.2.1", 200)
        )
        assert sum(found[0]) + sum(found[1]) == 10
        # All or nothing: what `logins` refused was not taken from `address`.
        _, (_, told) = await ours[0].take(Kind.OTHER, "192.0.2.1", None)
        assert int(re.findall(rb'"address";r=(\d+)', told)[0]) >= 20000 - 11
    finally:
        await ours[1].stop()
        await theirs[1].stop()


async def test_without_valkey_logins_fail_closed_and_the_rest_is_counted_here() -> None:
    """Attack 58."""
    limits, valkey = limits_on("redis://127.0.0.1:1/0", failures_max=2)
    try:
        for _ in range(3):
            with pytest.raises(Unavailable, match="logins"):
                await limits.take(Kind.LOGINS, "192.0.2.1", None)
        assert sum(await taken(limits, "192.0.2.2", 20, Kind.OTHER)) == 5
    finally:
        await valkey.stop()


async def test_over_http_without_valkey_there_is_no_500(new_site: Any, problem: Any) -> None:
    site = await new_site()
    settings = Settings()
    valkey = Valkey(ValkeySettings(url="redis://127.0.0.1:1/0"))
    await site.user("ann", Role.TRADER)
    site.app.state.limits._store = SharedStore(valkey, settings.limits)
    try:
        async with site.client("ann") as ann, site.client() as stranger:
            form = {"username": "ann", "password": PASSWORD}
            answer = await stranger.post("/v1/token", data=form)
            problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) >= 1
            assert (await ann.get("/v1/me")).headers["ratelimit"]
            account = await site.account(ann, USDT="1000")
            placed = await ann.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
            assert placed.status_code == 201
    finally:
        await valkey.stop()
