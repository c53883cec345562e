"""Every route against everybody: who may do what with an account, found by walking the application.

A route that is in none of the lists below fails the test: whoever adds one says here what it needs.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.routing import APIRoute

from tbot.auth.scopes import SCOPES_OF, Role, Scope
from tbot.ledger.members import Access
from tbot.web.routes import required_scopes

READ, TRADE, OWN = Access.READ, Access.TRADE, Access.OWN

NEEDS = {
    "POST /v1/orders": TRADE,
    "GET /v1/orders": READ,
    "DELETE /v1/orders": TRADE,
    "GET /v1/orders/{order_id}": READ,
    "DELETE /v1/orders/{order_id}": TRADE,
    "GET /v1/accounts/{account_id}": READ,
    "PATCH /v1/accounts/{account_id}": OWN,
    "GET /v1/accounts/{account_id}/balances": READ,
    "GET /v1/accounts/{account_id}/positions": READ,
    "GET /v1/accounts/{account_id}/equity": READ,
    "GET /v1/accounts/{account_id}/fills": READ,
    "GET /v1/accounts/{account_id}/journal": READ,
    "GET /v1/accounts/{account_id}/statement": READ,
    "GET /v1/accounts/{account_id}/members": READ,
    "PUT /v1/accounts/{account_id}/members/{user_id}": OWN,
    "DELETE /v1/accounts/{account_id}/members/{user_id}": OWN,
    "POST /v1/transfers": OWN,
    "POST /v1/transfers/linked": OWN,
    "POST /v1/transfers/bulk": OWN,
    "GET /v1/transfers": READ,
    "GET /v1/transfers/{transfer_id}": READ,
    "POST /v1/transfers/{transfer_id}/post": OWN,
    "POST /v1/transfers/{transfer_id}/void": OWN,
    "POST /v1/transfers/{transfer_id}/reverse": OWN,
    "POST /v1/deposits": OWN,
    "POST /v1/withdrawals": OWN,
    "GET /v1/payments": READ,
    "GET /v1/payments/{payment_id}": READ,
    "POST /v1/payments/{payment_id}/cancel": OWN,
}
"""What is about one account, and the access it needs."""
OPENERS = {"POST /v1/webhooks"}
"""Only for who opened the account, whatever members are."""
OWN_THINGS = {
    "GET /v1/webhooks/{webhook_id}",
    "PATCH /v1/webhooks/{webhook_id}",
    "DELETE /v1/webhooks/{webhook_id}",
    "POST /v1/webhooks/{webhook_id}/replay",
    "POST /v1/webhooks/{webhook_id}/rotate-secret",
    "GET /v1/webhooks/{webhook_id}/deliveries",
    "GET /v1/webhooks/{webhook_id}/dead-letters",
    "DELETE /v1/sessions/{session_id}",
    "GET /v1/api-keys/{key_id}",
    "DELETE /v1/api-keys/{key_id}",
}
"""What belongs to one user and is not shared."""
ONESELF = {
    "POST /v1/accounts", "GET /v1/accounts", "GET /v1/webhooks", "GET /v1/me",
    "POST /v1/token/step-up", "GET /v1/sessions", "DELETE /v1/sessions", "POST /v1/me/password",
    "GET /v1/me/security-events", "POST /v1/api-keys", "GET /v1/api-keys", "GET /v1/me/totp",
    "POST /v1/me/totp", "POST /v1/me/totp/confirm", "POST /v1/me/totp/recovery-codes",
    "DELETE /v1/me/totp", "POST /v1/stream/tickets",
}  # fmt: skip
"""What names nothing: it is about who asks."""
ADMINISTRATION = {
    "GET /v1/ledger/counters", "GET /v1/payments/approvals",
    "POST /v1/payments/{payment_id}/approve", "POST /v1/payments/{payment_id}/reject",
    "GET /v1/switches", "GET /v1/switches/{name}", "GET /v1/switches/{name}/turns",
    "POST /v1/switches/{name}/halt", "POST /v1/switches/{name}/resume",
    "POST /v1/users", "GET /v1/users", "GET /v1/users/{user_id}", "PATCH /v1/users/{user_id}",
    "GET /v1/users/{user_id}/security-events",
    "POST /v1/users/{user_id}/api-keys", "GET /v1/users/{user_id}/api-keys",
    "GET /v1/users/{user_id}/api-keys/{key_id}", "DELETE /v1/users/{user_id}/api-keys/{key_id}",
}  # fmt: skip
"""By administrators' scopes, whosever it is."""
ADMINISTRATORS = {
    Scope.ADMIN, Scope.PAYMENTS_APPROVE, Scope.SWITCHES_READ, Scope.SWITCHES_OPERATE
}  # fmt: skip
MARKET = "/v1/instruments"
ADMINS_TOO = {
    "PATCH /v1/accounts/{account_id}", "GET /v1/transfers/{transfer_id}",
    "POST /v1/transfers/{transfer_id}/post", "POST /v1/transfers/{transfer_id}/void",
    "POST /v1/transfers/{transfer_id}/reverse",
}  # fmt: skip
"""What administrators may do with anybody's."""
NO_KEYS = {
    "POST /v1/withdrawals", "PUT /v1/accounts/{account_id}/members/{user_id}",
    "DELETE /v1/accounts/{account_id}/members/{user_id}",
}  # fmt: skip
"""What takes a login, unless a setting says otherwise."""


def routes(site: Any) -> dict[str, APIRoute]:
    return {
        f"{method} {route.path}": route
        for route in site.app.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    }


class Things:
    """What ann has, and how to ask for it."""

    def __init__(self, ids: dict[str, str], cash: list[str]) -> None:
        self.ids = ids
        self.cash = cash

    def body(self, name: str) -> Any:
        usdt = {"asset": "USDT", "amount": "1"}
        transfer = {"source_account_id": self.cash[0], "target_account_id": self.cash[1], **usdt}
        money = {"account_id": self.cash[0], **usdt}
        order = {
            "account_id": self.ids["account_id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "99",
        }
        return {
            "POST /v1/orders": order,
            "PATCH /v1/accounts/{account_id}": {"name": "renamed"},
            "PUT /v1/accounts/{account_id}/members/{user_id}": {"role": "viewer"},
            "POST /v1/transfers": transfer,
            "POST /v1/transfers/linked": {"transfers": [transfer, transfer]},
            "POST /v1/transfers/bulk": {"transfers": [transfer]},
            "POST /v1/deposits": money,
            "POST /v1/withdrawals": {**money, "destination": "DE89"},
            "POST /v1/webhooks": {"account_id": self.cash[0], "url": "https://example.com/"},
            "PATCH /v1/webhooks/{webhook_id}": {"enabled": False},
            "POST /v1/webhooks/{webhook_id}/replay": {"from_sequence": 1},
            "POST /v1/webhooks/{webhook_id}/rotate-secret": {"overlap_s": 60},
        }.get(name)

    async def ask(self, client: httpx.AsyncClient, name: str, **ids: str) -> tuple[int, str]:
        """Status and code of the answer to a request for ann's things."""
        method, path = name.split(" ")
        for parameter, value in {**self.ids, **ids}.items():
            path = path.replace("{" + parameter + "}", value)
        listing = name in ("GET /v1/orders", "DELETE /v1/orders", "GET /v1/transfers")
        params = {"account_id": self.ids["account_id"]} if listing else {}
        if name == "GET /v1/payments":
            params = {"account_id": self.cash[0]}
        answer = await client.request(
            method, path, params=params, json=self.body(name), headers={"If-Match": "*"}
        )
        if name == "POST /v1/transfers/bulk" and answer.status_code == 200:
            (result,) = answer.json()["results"]
            return result["status"], result.get("problem", {}).get("code", "")
        is_problem = answer.status_code >= 400
        return answer.status_code, answer.json()["code"] if is_problem else ""


@pytest.fixture
async def things(site: Any) -> Things:
    """Two accounts of ann's, shared with vera (viewer), tom (trader) and olga (owner)."""
    people = {"vera": "viewer", "tom": "trader", "olga": "owner", "dan": None}
    for name in people:
        await site.user(name)
    await site.user("audrey", Role.AUDITOR)
    rows = await site.pool.fetch("SELECT username, id FROM users")
    users = {row["username"]: str(row["id"]) for row in rows}
    async with site.client("ann") as ann:
        account = (await site.account(ann))["id"]
        cash = [(await site.cash(ann, USDT="500"))["id"] for _ in range(2)]
        for shared in (account, *cash):
            for name, role in people.items():
                if role is not None:
                    path = f"/v1/accounts/{shared}/members/{users[name]}"
                    answer = await ann.put(path, json={"role": role})
                    assert answer.status_code == 201, answer.text
        made = Things({"account_id": account, "user_id": users["dan"]}, cash)

        async def one(name: str, **more: Any) -> str:
            method, path = name.split(" ")
            answer = await ann.request(method, path, json={**made.body(name), **more})
            assert answer.status_code == 201, answer.text
            return str(answer.json()["id"])

        made.ids["order_id"] = await one("POST /v1/orders")
        made.ids["transfer_id"] = await one("POST /v1/transfers")
        made.ids["payment_id"] = await one("POST /v1/deposits")
        made.ids["webhook_id"] = await one("POST /v1/webhooks")
        key = await ann.post("/v1/api-keys", json={"name": "k", "scopes": ["market:read"]})
        made.ids["key_id"] = key.json()["id"]
        made.ids["session_id"] = (await ann.get("/v1/sessions")).json()["items"][0]["id"]
    return made


@pytest.fixture
async def everybody(site: Any, things: Things) -> Any:
    """Clients by name; `key:ann` and `key:bob` have API keys of all scopes there are for them."""
    async with AsyncExitStack() as stack:
        clients = {}
        for name in ("ann", "bob", "vera", "tom", "olga", "root", "audrey"):
            clients[name] = await stack.enter_async_context(site.client(name))
        for name in ("ann", "bob"):
            scopes = [scope.value for scope in SCOPES_OF[Role.TRADER]]
            body = {"name": "all", "scopes": scopes}
            key = (await clients[name].post("/v1/api-keys", json=body)).json()["key"]
            client = await stack.enter_async_context(site.client())
            client.headers["X-API-Key"] = key
            clients[f"key:{name}"] = client
        clients["stranger"] = await stack.enter_async_context(site.client())
        yield clients


def test_every_route_says_here_what_it_needs(site: Any) -> None:
    lists = (set(NEEDS), OPENERS, OWN_THINGS, ONESELF, ADMINISTRATION)
    for name, route in routes(site).items():
        scopes = required_scopes(route)
        if scopes is None or route.path.startswith(MARKET):
            continue
        assert sum(name in one for one in lists) == 1, f"say in this test what {name} needs"
        if name in ADMINISTRATION:
            assert ADMINISTRATORS & set(scopes)
    known = set.union(*lists)
    assert known <= set(routes(site)), known - set(routes(site))


def expected(name: str, need: Access, scopes: tuple[str, ...]) -> dict[str, tuple[int, str] | None]:
    """What everybody is answered; None for whatever is not a refusal."""
    nothing = (404, "not_found")
    too_low = (403, "insufficient_access")
    auditor: tuple[int, str] | None = None if need is READ else (403, "insufficient_access")
    if not set(scopes) <= SCOPES_OF[Role.AUDITOR]:
        auditor = (403, "insufficient_scope")
    return {
        "stranger": (401, "unauthenticated"),
        "bob": nothing,
        "key:bob": nothing,
        "vera": None if need is READ else too_low,
        "tom": too_low if need is OWN else None,
        "olga": None,
        "root": None if name in ADMINS_TOO else nothing,
        "audrey": auditor,
        "key:ann": (403, "key_not_allowed") if name in NO_KEYS else None,
        "ann": None,
    }


async def test_who_may_do_what_with_an_account(
    site: Any, things: Things, everybody: dict[str, httpx.AsyncClient]
) -> None:
    cells, wrong = 0, []
    for name, need in NEEDS.items():
        scopes = required_scopes(routes(site)[name])
        assert scopes
        for who, wanted in expected(name, need, scopes).items():
            if name.startswith("DELETE") and "user_id" in name:
                # A member to be taken away, for each who may do it.
                path = f"/v1/accounts/{things.ids['account_id']}/members/{things.ids['user_id']}"
                await everybody["ann"].put(path, json={"role": "viewer"})
            status, code = await things.ask(everybody[who], name)
            refused = status in (401, 403, 404) or status >= 500
            fits = (status, code) == wanted if wanted is not None else not refused
            if not fits and not (wanted is None and code == "transfer_not_allowed"):
                wrong.append((name, who, status, code, wanted))
            cells += 1
    assert not wrong, "\n".join(map(str, wrong))
    assert cells == 10 * len(NEEDS)


async def test_things_of_one_user_are_nobody_elses(
    site: Any, things: Things, everybody: dict[str, httpx.AsyncClient]
) -> None:
    for name in sorted(OWN_THINGS):
        scopes = set(required_scopes(routes(site)[name]) or ())
        for who in ("stranger", "bob", "key:bob", "vera", "tom", "olga", "root", "audrey"):
            found = await things.ask(everybody[who], name)
            missing = {key: str(uuid4()) for key in things.ids}
            if who == "stranger":
                assert found == (401, "unauthenticated")
            elif who == "audrey" and not scopes <= SCOPES_OF[Role.AUDITOR]:
                assert found == (403, "insufficient_scope"), name
            elif (who == "key:bob" and name == "DELETE /v1/sessions/{session_id}") or (
                who == "key:bob" and name == "DELETE /v1/api-keys/{key_id}"
            ):
                assert found == (403, "key_not_allowed")
            else:
                assert found == (404, "not_found"), (name, who)
                assert found == await things.ask(everybody[who], name, **missing)
    for name in OPENERS:
        for who, wanted in (("bob", 404), ("vera", 403), ("olga", 403), ("root", 404)):
            assert (await things.ask(everybody[who], name))[0] == wanted


async def test_scopes_bind_keys_and_roles_alike(
    site: Any, things: Things, everybody: dict[str, httpx.AsyncClient]
) -> None:
    """Each route with a key that has every scope but its own, and with no token at all."""
    async with site.client() as client:
        keys: dict[str, str] = {}
        for name, route in routes(site).items():
            scopes = required_scopes(route)
            if not scopes:
                continue
            (scope,) = scopes
            if scope not in keys:
                rest = [one.value for one in SCOPES_OF[Role.TRADER] if one != scope]
                body = {"name": f"all but {scope.replace(':', ' ')}", "scopes": rest}
                made = await everybody["ann"].post("/v1/api-keys", json=body)
                assert made.status_code == 201, made.text
                keys[scope] = made.json()["key"]
            client.headers["X-API-Key"] = keys[scope]
            method, path = name.split(" ")
            for parameter, value in {
                **things.ids,
                "symbol": "BTC-USDT",
                "name": "trading",
            }.items():
                path = path.replace("{" + parameter + "}", value)
            answer = await client.request(method, path)
            assert answer.status_code == 403, (name, answer.text)
            assert answer.json()["code"] == "insufficient_scope"
            assert answer.json()["scope"] == scope
