"""Every route against everybody: found by walking the application, so a new route is covered too."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from fastapi.routing import APIRoute

from tbot.auth.scopes import Scope
from tbot.web.routes import required_scopes

PUBLIC = {
    ("POST", "/v1/token"),
    ("POST", "/v1/token/mfa"),
    ("POST", "/v1/token/refresh"),
    ("POST", "/v1/token/revoke"),
    ("POST", "/v1/callbacks/{provider}"),
    ("GET", "/v1/events"),  # by token or ticket: see test_events
    ("GET", "/.well-known/jwks.json"),
    ("GET", "/health/live"),
    ("GET", "/health/ready"),
    ("GET", "/metrics"),
    ("GET", "/docs"),
    ("GET", "/docs/start.js"),
    ("GET", "/docs/swagger-ui-bundle.js"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/docs/favicon-32x32.png"),
    ("GET", "/openapi.json"),
}
NO_SCOPE = {
    ("GET", "/v1/me"),
    ("POST", "/v1/stream/tickets"),
    ("POST", "/v1/token/step-up"),
}
SHARED = {"symbol"}
"""Path parameters that name what everybody may see."""
EVERYBODYS = {
    Scope.ADMIN,
    Scope.PAYMENTS_APPROVE,
    Scope.SWITCHES_READ,
    Scope.SWITCHES_OPERATE,
}
"""Scopes of administrators alone, for what is not theirs."""
ADMINISTERED = ("PATCH /v1/accounts/{account_id}", "GET /v1/transfers/", "POST /v1/transfers/")
"""Beginnings of what administrators may do with what is not theirs."""
BODIES: dict[tuple[str, str], Any] = {
    ("PATCH", "/v1/accounts/{account_id}"): {"name": "mine"},
    ("POST", "/v1/transfers/{transfer_id}/post"): {},
    ("PATCH", "/v1/webhooks/{webhook_id}"): {"enabled": False},
    ("POST", "/v1/webhooks/{webhook_id}/replay"): {"from_sequence": 1},
    ("POST", "/v1/webhooks/{webhook_id}/rotate-secret"): {},
    ("PUT", "/v1/accounts/{account_id}/members/{user_id}"): {"role": "viewer"},
}
"""Of routes that need a body to get as far as the ids in their paths."""


def routes(site: Any) -> list[tuple[str, APIRoute]]:
    return [
        (method, route)
        for route in site.app.routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]


def url(route: APIRoute, **values: Any) -> str:
    known = {"symbol": "BTC-USDT", **values}
    path = route.path_format
    for name in route.param_convertors:
        path = path.replace("{" + name + "}", str(known[name]))
    return path


def test_every_route_declares_what_it_needs(site: Any) -> None:
    for method, route in routes(site):
        scopes = required_scopes(route)
        if (method, route.path) in PUBLIC:
            assert scopes is None
        elif (method, route.path) in NO_SCOPE:
            assert scopes == ()
        else:
            assert scopes, f"{method} {route.path} declares no scope"
            assert set(scopes) <= set(Scope)


async def test_without_a_token_401_and_with_too_little_scope_403(site: Any, problem: Any) -> None:
    names = {name for _, route in routes(site) for name in route.param_convertors} - SHARED
    ids = {name: uuid4() for name in names}
    async with site.client() as stranger:
        for method, route in routes(site):
            scopes = required_scopes(route)
            if scopes is None:
                continue
            answer = await stranger.request(method, url(route, **ids))
            problem(answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"] == 'Bearer realm="tbot"'
            if not scopes:
                continue
            user = "root" if EVERYBODYS & set(scopes) else "ann"
            others = " ".join(scope for scope in Scope if scope not in scopes)
            async with site.client(user, others) as client:
                answer = await client.request(method, url(route, **ids))
                document = problem(answer, 403, "insufficient_scope")
                assert document["scope"] in scopes
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]


async def test_a_trader_cannot_get_the_admin_scope(site: Any, problem: Any) -> None:
    async with site.client("ann", "admin") as client:
        problem(await client.get("/v1/users"), 403, "insufficient_scope")


async def test_somebody_elses_things_are_404_on_every_route(site: Any, problem: Any) -> None:
    """Ids in the path, in the query and in the body; the answer is the one for a missing id."""
    async with site.client("ann") as ann, site.client("bob") as bob, site.client("root") as root:
        account = await site.account(ann)
        order = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "99",
        }
        placed = (await ann.post("/v1/orders", json=order)).json()
        cash, other_cash = await site.cash(ann, USDT="10"), await site.cash(ann)
        usdt = {"asset": "USDT", "amount": "1"}
        transfer = {"source_account_id": cash["id"], "target_account_id": other_cash["id"]}
        made = {
            "transfer_id": await ann.post("/v1/transfers", json=transfer | usdt),
            "payment_id": await ann.post("/v1/deposits", json={"account_id": cash["id"], **usdt}),
            "webhook_id": await ann.post(
                "/v1/webhooks", json={"account_id": cash["id"], "url": "https://example.com/"}
            ),
        }
        theirs = {name: answer.json()["id"] for name, answer in made.items()}
        theirs |= {"account_id": account["id"], "order_id": placed["id"]}
        key = await ann.post("/v1/api-keys", json={"name": "k", "scopes": ["market:read"]})
        theirs["key_id"] = key.json()["id"]
        theirs["session_id"] = (await ann.get("/v1/sessions")).json()["items"][0]["id"]
        theirs["user_id"] = (await ann.get("/v1/me")).json()["id"]
        missing = {name: uuid4() for name in theirs}
        entries = "SELECT count(*) FROM journal WHERE account_id = ANY($1::uuid[])"
        anns = [account["id"], cash["id"], other_cash["id"]]
        before = await site.pool.fetchval(entries, anns)
        checked = set()
        for method, route in routes(site):
            scopes = required_scopes(route)
            names = set(route.param_convertors) - SHARED
            if not names or not scopes or EVERYBODYS & set(scopes):
                continue
            assert names <= set(theirs), f"{route.path}: say in this test whose {names} are"
            administered = f"{method} {route.path}".startswith(ADMINISTERED)
            for other in (bob,) if administered else (bob, root):
                answers = [
                    await other.request(
                        method,
                        url(route, **ids),
                        json=BODIES.get((method, route.path)),
                        headers={"If-Match": "*"},
                    )
                    for ids in (theirs, missing)
                ]
                documents = [problem(answer, 404, "not_found") for answer in answers]
                for document in documents:
                    del document["request_id"]
                assert documents[0] == documents[1]
            if method == "GET":
                assert (await ann.get(url(route, **theirs))).status_code == 200
            checked.add((method, route.path))
        assert len(checked) >= 20
        for other in (bob, root):
            problem(await other.post("/v1/orders", json=order), 404, "not_found")
            query = {"account_id": account["id"]}
            problem(await other.get("/v1/orders", params=query), 404, "not_found")
            problem(await other.delete("/v1/orders", params=query), 404, "not_found")
            assert (await other.get("/v1/orders")).json()["items"] == []
            assert (await other.get("/v1/accounts")).json()["items"] == []
            own = await site.account(other)
            fills = f"/v1/accounts/{own['id']}/fills?order_id={placed['id']}"
            assert (await other.get(fills)).json()["items"] == []
        assert await site.pool.fetchval(entries, anns) == before
        assert (await ann.get(f"/v1/orders/{placed['id']}")).json()["cancel_requested"] is False


async def test_malformed_ids_name_nothing(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        for bad in ("1", "x", "..", "%00", "%2e%2e", "null", "A" * 36, "'", "{}"):
            for path in ("accounts", "orders"):
                problem(await client.get(f"/v1/{path}/{bad}"), 404, "not_found")


async def test_an_entity_tag_of_somebody_else_opens_nothing(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob:
        account = await site.account(ann)
        order = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "market",
            "quote_amount": "10",
        }
        placed = await ann.post("/v1/orders", json=order)
        for tag in (placed.headers["etag"], "*"):
            answer = await bob.get(placed.headers["location"], headers={"If-None-Match": tag})
            problem(answer, 404, "not_found")
