"""Attacks 22–26: other people's things, members one may not set, routes and pages one may not see."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
import structlog

from tbot.auth.scopes import Role

pytestmark = pytest.mark.asyncio(loop_scope="session")
ADMINISTRATORS = {"admin", "payments:approve", "switches:read", "switches:operate"}
ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99",
}
BODIES: dict[str, Any] = {
    "patch /v1/accounts/{account_id}": {"name": "mine"},
    "post /v1/transfers/{transfer_id}/post": {},
    "patch /v1/webhooks/{webhook_id}": {"enabled": False},
    "post /v1/webhooks/{webhook_id}/replay": {"from_sequence": 1},
    "put /v1/accounts/{account_id}/members/{user_id}": {"role": "viewer"},
}


def scopes_of(operation: dict[str, Any]) -> set[str]:
    """What a token needs for an operation, as the document says."""
    ways = operation.get("security", ())
    return {scope for way in ways for scopes in way.values() for scope in scopes}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def ann(world: Any) -> Any:
    return await world.person()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bob(world: Any) -> Any:
    return await world.person()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def theirs(world: Any, ann: Any) -> dict[str, str]:
    """One of everything that ann can have, by the name of its path parameter."""
    site, http = world.site, ann.http
    account = (await site.account(http))["id"]
    cash, other = (await site.cash(http, USDT="10"))["id"], (await site.cash(http))["id"]
    usdt = {"asset": "USDT", "amount": "1"}
    made = {
        "order_id": await http.post("/v1/orders", json={**ORDER, "account_id": account}),
        "transfer_id": await http.post(
            "/v1/transfers", json={"source_account_id": cash, "target_account_id": other, **usdt}
        ),
        "payment_id": await http.post("/v1/deposits", json={"account_id": cash, **usdt}),
        "webhook_id": await http.post(
            "/v1/webhooks", json={"account_id": cash, "url": "https://example.com/"}
        ),
        "key_id": await http.post("/v1/api-keys", json={"name": "k", "scopes": ["market:read"]}),
    }
    assert {answer.status_code for answer in made.values()} == {201}, made
    ids = {name: answer.json()["id"] for name, answer in made.items()}
    ids |= {"account_id": account, "cash_id": cash, "user_id": str(ann.id)}
    ids["session_id"] = str(ann.grant.session_id)
    return ids


async def test_a22_another_owners_id_on_every_verb(
    world: Any, ann: Any, bob: Any, theirs: dict[str, str], problem: Any
) -> None:
    document = (await bob.http.get("/openapi.json")).json()
    entries = "SELECT count(*) FROM journal WHERE account_id = ANY($1::uuid[])"
    accounts = [theirs["account_id"], theirs["cash_id"]]
    before = await world.site.pool.fetchval(entries, accounts)
    checked = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scopes = scopes_of(operation)
            if "{" not in path or not scopes or scopes & (ADMINISTRATORS | {"market:read"}):
                continue
            documents = []
            for ids in (theirs, dict.fromkeys(theirs, str(uuid4()))):
                address = path
                for name, value in ids.items():
                    address = address.replace("{" + name + "}", value)
                assert "{" not in address, f"say in this test what {path} names"
                body = BODIES.get(f"{method} {path}")
                answer = await bob.http.request(method, address, json=body)
                documents.append(problem(answer, 404, "not_found"))
                del documents[-1]["request_id"]
            assert documents[0] == documents[1], f"{method} {path} tells that it exists"
            checked += 1
    assert checked >= 25
    account_id = theirs["account_id"]
    for answer in (
        await bob.http.post("/v1/orders", json={**ORDER, "account_id": account_id}),
        await bob.http.get("/v1/orders", params={"account_id": account_id}),
        await bob.http.delete("/v1/orders", params={"account_id": account_id}),
        await bob.http.get("/v1/transfers", params={"account_id": account_id}),
        await bob.http.get("/v1/payments", params={"account_id": theirs["cash_id"]}),
    ):
        problem(answer, 404, "not_found")
    assert await world.site.pool.fetchval(entries, accounts) == before
    placed = (await ann.http.get(f"/v1/orders/{theirs['order_id']}")).json()
    assert placed["cancel_requested"] is False


async def test_a22_another_owners_id_on_every_channel(bob: Any, theirs: dict[str, str]) -> None:
    stream = await bob.stream()
    missing = str(uuid4())
    wishes = [{"channel": "account", "account_id": one} for one in (theirs["account_id"], missing)]
    refused = await stream.sub(*wishes)
    assert refused[0] == refused[1] and refused[0]["error"]["code"] == "not_found"
    answers = []
    for account_id, order_id in ((theirs["account_id"], theirs["order_id"]), (missing, missing)):
        for number, message in enumerate(
            (
                {"op": "place", "order": {**ORDER, "account_id": account_id}},
                {"op": "cancel", "order_id": order_id},
                {"op": "cancel_all", "account_id": account_id},
            )
        ):
            await stream.say(**message, id=number)
            answer = await stream.hear_answer(number)
            assert answer["op"] == "error" and answer["code"] == "not_found", answer
            answer["problem"].pop("request_id", None)
            answers.append(answer)
    assert answers[:3] == answers[3:]
    await stream.socket.close()
    said = []
    for account_id in (theirs["account_id"], missing):
        params = {"channels": f"account:{account_id}"}
        async with bob.http.stream("GET", "/v1/events", params=params) as events:
            assert events.status_code == 200
            async for line in events.aiter_lines():
                if line.startswith("data:") and '"subbed"' in line:
                    said.append(json.loads(line[5:])["subs"])
                    break
    assert said[0] == said[1] and said[0][0]["error"]["code"] == "not_found"


async def test_a23_members_that_are_not_the_callers_to_set(
    world: Any, ann: Any, theirs: dict[str, str], problem: Any
) -> None:
    root = await world.person(Role.ADMIN)
    order = {**ORDER, "account_id": theirs["account_id"]}
    payment = {"account_id": theirs["cash_id"], "asset": "USDT", "amount": "1"}
    for method, path, body, members in (
        ("POST", "/v1/accounts", {"name": "a"}, ("owner_id", "status", "balance", "id", "kind_of")),
        ("PATCH", f"/v1/accounts/{theirs['account_id']}", {"name": "a"}, ("owner_id", "balance")),
        ("POST", "/v1/orders", order, ("owner_id", "state", "status", "filled_quantity", "id")),
        ("POST", "/v1/deposits", payment, ("status", "state", "owner_id", "id")),
        ("POST", "/v1/api-keys", {"name": "x", "scopes": []}, ("user_id", "role", "owner_id")),
        ("POST", "/v1/token/step-up", {"code": "123456"}, ("method", "user_id")),
    ):
        for member in members:
            body = {**body, member: "admin"}
            document = problem(
                await ann.http.request(method, path, json=body), 422, "validation_failed"
            )
            pointers = {error["pointer"] for error in document["errors"]}
            assert f"/{member}" in pointers, (path, member)
            del body[member]
    new = {"username": "massive", "password": "correct horse battery", "role": "trader"}
    for member in ("id", "status", "scopes", "balance"):
        answer = await root.http.post("/v1/users", json={**new, member: "admin"})
        problem(answer, 422, "validation_failed")
    answer = await ann.http.patch(f"/v1/accounts/{theirs['account_id']}", json={"status": "frozen"})
    problem(answer, 403, "insufficient_scope")


async def test_a24_administrators_routes_and_method_override(
    world: Any, ann: Any, problem: Any
) -> None:
    document = (await ann.http.get("/openapi.json")).json()
    walked = 0
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            scopes = scopes_of(operation)
            if not scopes & ADMINISTRATORS:
                continue
            address = path.replace("{user_id}", str(ann.id))
            for name in ("key_id", "payment_id"):
                address = address.replace("{" + name + "}", str(uuid4()))
            answer = await ann.http.request(method, address)
            problem(answer, 403, "insufficient_scope")
            walked += 1
    assert walked >= 10
    for header in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        answer = await ann.http.post("/v1/me", headers={header: "GET"})
        problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, OPTIONS"
        accounts = await ann.http.get("/v1/accounts", headers={header: "DELETE"})
        assert accounts.status_code == 200
    problem(await ann.http.post("/v1/me?_method=GET"), 405, "method_not_allowed")
    asked = await ann.http.get("/v1/token", params={"scope": "admin"})
    problem(asked, 405, "method_not_allowed")
    tokens = (await world.log_in(ann.http, ann.name, scope="admin orders:read")).json()
    assert tokens["scope"] == "orders:read", "asking does not grant"


async def test_a25_forwarding_headers_of_strangers(world: Any, problem: Any) -> None:
    """No address but the connection's counts: in logs, in the journal, and against guessing."""
    person = await world.person()
    forged = {
        "X-Forwarded-For": "10.9.8.7",
        "X-Real-IP": "10.9.8.7",
        "Forwarded": "for=10.9.8.7;host=evil.example",
        "X-Client-IP": "10.9.8.7",
        "CF-Connecting-IP": "10.9.8.7",
    }
    with structlog.testing.capture_logs() as logs:
        answer = await person.http.get("/v1/me", headers=forged)
    (event,) = [log for log in logs if log["event"] == "http_request"]
    assert event["client"] == person.address
    assert "10.9.8.7" not in str(answer.headers) and "evil" not in str(answer.headers)
    await world.log_in(person.http, person.name)
    login = await person.http.post(
        "/v1/token", data={"username": person.name, "password": "x" * 16}, headers=forged
    )
    problem(login, 401, "invalid_credentials")
    events = (await person.http.get("/v1/me/security-events")).json()["items"]
    seen = {event["kind"]: event["by"].get("address") for event in events}
    assert seen["security.login_failed"] == seen["security.login"] == person.address
    # A new address with each guess changes nothing of how many there are.
    guesser = world.client()
    free = world.site.settings.auth.failures_free
    for number in range(free + 1):
        answer = await guesser.post(
            "/v1/token",
            data={"username": person.name, "password": "wrong"},
            headers={"X-Forwarded-For": f"10.9.8.{number}"},
        )
    problem(answer, 429, "too_many_attempts")


async def test_a26_cursors(
    world: Any, ann: Any, bob: Any, theirs: dict[str, str], problem: Any
) -> None:
    for number in range(2):
        await ann.http.post("/v1/accounts", json={"name": f"more {number}"})
        await bob.http.post("/v1/accounts", json={"name": f"more {number}"})
    page = (await ann.http.get("/v1/accounts", params={"limit": 1})).json()
    cursor = page["next"]
    assert (await ann.http.get("/v1/accounts", params={"cursor": cursor})).status_code == 200
    flipped = ("A" if cursor[0] != "A" else "B") + cursor[1:]
    longer = cursor + "AAAA"
    for bad in (
        flipped, cursor[:-2], longer, "A" * 40, "' OR 1=1 --" + "A" * 30, "../" * 10, "%00" * 10,
        json.dumps({"id": theirs["account_id"]}),
    ):  # fmt: skip
        answer = await ann.http.get("/v1/accounts", params={"cursor": bad})
        problem(answer, 400, "invalid_cursor")
    # A good one, of somebody else's list, of another list, and of other filters.
    problem(await bob.http.get("/v1/accounts", params={"cursor": cursor}), 400, "invalid_cursor")
    problem(await ann.http.get("/v1/orders", params={"cursor": cursor}), 400, "invalid_cursor")
    filtered = {"cursor": cursor, "shared": "true"}
    problem(await ann.http.get("/v1/accounts", params=filtered), 400, "invalid_cursor")
