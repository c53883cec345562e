"""Changes under conditions, forms of answers and what is refused before it begins, end to end."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import msgspec
import pytest
from fastapi.routing import APIRoute
from pydantic import BaseModel

from tbot.web.representation import SECRET
from tbot.web.routes import StrictRoute, offers

MERGE = {"Content-Type": "application/merge-patch+json"}
ORDER = {"symbol": "BTC-USDT", "side": "buy", "type": "limit", "quantity": "0.1"}
ORDER |= {"limit_price": "99"}


async def test_attack_46_changes_are_for_a_version(site: Any, problem: Any) -> None:
    async with site.client("ann") as client, site.client("bob") as bob:
        created = await site.account(client, USDT="1000")
        url = f"/v1/accounts/{created['id']}"
        problem(await client.patch(url, json={"name": "x"}), 428, "precondition_required")
        problem(await bob.patch(url, json={"name": "x"}), 404, "not_found")
        read = await client.get(url)
        tag = read.headers["etag"]
        for stale in ('"0.1"', f"W/{tag}", '""'):
            answer = await client.patch(url, headers={"If-Match": stale}, json={"name": "x"})
            problem(answer, 412, "precondition_failed")
        bad = await client.patch(url, headers={"If-Match": "x"}, json={"name": "x"})
        problem(bad, 400, "malformed_header")
        # Orders come and go: the account is another to look at, but the same to change.
        order = await client.post("/v1/orders", json={**ORDER, "account_id": created["id"]})
        assert order.status_code == 201
        assert (await client.get(url, headers={"If-None-Match": tag})).status_code == 200
        both = [
            client.patch(
                url,
                headers={"If-Match": tag, "Idempotency-Key": f"k{n}", **MERGE},
                content=msgspec.json.encode({"name": f"name {n}"}),
            )
            for n in range(4)
        ]
        answers = await asyncio.gather(*both)
        assert sorted(answer.status_code for answer in answers) == [200, 412, 412, 412]
        (won,) = [answer for answer in answers if answer.status_code == 200]
        now = await client.get(url)
        assert (now.json(), now.headers["etag"]) == (won.json(), won.headers["etag"])
        number = answers.index(won)
        again = await client.patch(
            url,
            headers={"If-Match": tag, "Idempotency-Key": f"k{number}"},
            json={"name": f"name {number}"},
        )
        assert (again.status_code, again.content) == (200, won.content)
        assert again.headers["etag"] == won.headers["etag"]
        packed = await client.get(url, headers={"Accept": "application/msgpack"})
        assert packed.headers["etag"].endswith('+msgpack"')
        name = {"name": "by the packed form's tag"}
        minimal = {"If-Match": packed.headers["etag"], "Prefer": "return=minimal"}
        changed = await client.patch(url, headers=minimal, json=name)
        assert (changed.status_code, changed.content) == (204, b"")
        assert (await client.get(url)).json()["name"] == name["name"]


async def test_webhooks_change_under_a_version_too(site: Any, problem: Any) -> None:
    account = await site.cash_of("ann")
    async with site.client("ann") as client:
        new = {"account_id": account, "url": "https://example.com/"}
        created = await client.post("/v1/webhooks", json=new)
        url, tag = created.headers["location"], created.headers["etag"]
        assert (await client.get(url)).headers["etag"] == tag
        problem(await client.patch(url, json={"enabled": False}), 428, "precondition_required")
        both = [
            client.patch(url, headers={"If-Match": tag}, json={"kinds": [kind]})
            for kind in ("order.*", "payment.*")
        ]
        statuses = [answer.status_code for answer in await asyncio.gather(*both)]
        assert sorted(statuses) == [200, 412]


async def test_users_change_under_a_version_too(site: Any, problem: Any) -> None:
    async with site.client("root") as root:
        new = {"username": "carl", "password": "correct horse battery staple", "role": "trader"}
        created = await root.post("/v1/users", json=new)
        url, tag = created.headers["location"], created.headers["etag"]
        assert (await root.get(url)).headers["etag"] == tag
        listed = (await root.get("/v1/users")).json()["items"]
        for user in listed:
            same = (await root.get(f"/v1/users/{user['id']}")).headers["etag"] == tag
            assert same is (user["username"] == "carl"), "a tag is of one user"
        problem(await root.patch(url, json={"role": "viewer"}), 428, "precondition_required")
        for stale in ('"0.1"', f"W/{tag}", '""'):
            answer = await root.patch(url, headers={"If-Match": stale}, json={"role": "viewer"})
            problem(answer, 412, "precondition_failed")
        # Each of two administrators means to change what both have seen: one has to look again.
        async with site.client("root") as other:
            changes = [
                one.patch(
                    url,
                    headers={"If-Match": tag, "Idempotency-Key": f"k{number}"},
                    json={"role": role},
                )
                for number, (one, role) in enumerate(((root, "viewer"), (other, "auditor")))
            ]
            answers = await asyncio.gather(*changes)
        assert sorted(answer.status_code for answer in answers) == [200, 412]
        (won,) = [answer for answer in answers if answer.status_code == 200]
        now = await root.get(url)
        assert (now.json(), now.headers["etag"]) == (won.json(), won.headers["etag"])
        events = (await root.get(f"{url}/security-events")).json()["items"]
        assert [event["kind"] for event in events].count("security.user_changed") == 1
        # Under its key each gets its own answer again, although what it named is gone.
        for number, (role, first) in enumerate(zip(("viewer", "auditor"), answers, strict=True)):
            again = await root.patch(
                url,
                headers={"If-Match": tag, "Idempotency-Key": f"k{number}"},
                json={"role": role},
            )
            assert (again.status_code, again.content) == (first.status_code, first.content)
            assert again.headers["idempotent-replayed"] == "true"


async def test_attack_44_tags_are_of_one_user(site: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob:
        for path in ("/v1/accounts", "/v1/orders", "/v1/me"):
            tag = (await ann.get(path)).headers["etag"]
            assert (await ann.get(path, headers={"If-None-Match": tag})).status_code == 304
            assert (await bob.get(path, headers={"If-None-Match": tag})).status_code == 200


async def test_what_is_served_lean_takes_every_form(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        account = (await site.account(client, USDT="1000"))["id"]
        body = {**ORDER, "account_id": account}

        async def place(**headers: str) -> httpx.Response:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.post("/v1/orders", json=body, headers=named)

        size = await site.journal_size()
        problem(await place(Accept="text/html"), 406, "not_acceptable")
        assert await site.journal_size() == size, "nothing was done"
        packed = await place(Accept="application/vnd.msgpack")
        assert packed.headers["content-type"] == "application/vnd.msgpack"
        order = msgspec.msgpack.decode(packed.content)
        found = await client.get(f"/v1/orders/{order['id']}")
        assert found.json() == order
        minimal = await place(Prefer="return=minimal, wait=0")
        assert (minimal.status_code, minimal.content) == (204, b"")
        assert minimal.headers["preference-applied"] == "return=minimal, wait=0"
        assert (await client.get(minimal.headers["location"])).status_code == 200
        traced = await place(traceparent=f"00-{'ab' * 16}-{'cd' * 8}-01")
        assert traced.headers["x-request-id"].startswith("ab" * 16)
        entries = (await client.get(f"/v1/accounts/{account}/journal")).json()["entries"]
        assert entries[-1]["entry"]["by"]["request"] == traced.headers["x-request-id"]
        gzip = await place(Accept_Encoding="gzip, identity;q=0")
        assert gzip.headers["content-encoding"] == "gzip"
        assert gzip.json()["symbol"] == "BTC-USDT"


async def test_what_a_request_has_to_have(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        account = (await site.account(client))["id"]
        url, condition = f"/v1/accounts/{account}", {"If-Match": "*"}
        text = {**condition, "Content-Type": "text/plain"}
        refused = await client.patch(url, headers=text, content=b"{}")
        problem(refused, 415, "unsupported_media_type")
        assert "application/merge-patch+json" in refused.headers["accept-patch"]
        merge = await client.post("/v1/accounts", headers=MERGE, content=b"{}")
        problem(merge, 415, "unsupported_media_type")
        assert merge.headers["accept"] == "application/json"
        bomb = {**condition, "Content-Type": "application/json", "Content-Encoding": "gzip"}
        refused = await client.patch(url, headers=bomb, content=b"\x1f\x8b")
        problem(refused, 415, "unsupported_media_type")
        assert refused.headers["accept-encoding"] == "identity"
        options = await client.options(url)
        assert options.headers["allow"] == "GET, HEAD, OPTIONS, PATCH"
        for accept in ("text/html", "application/json;q=0"):
            answer = await client.get(url, headers={"Accept": accept})
            problem(answer, 406, "not_acceptable")
        csv = await client.get(f"{url}/journal", headers={"Accept": "text/csv, */*;q=0.1"})
        assert csv.headers["content-type"].startswith("text/csv")
        head = await client.head(f"{url}/journal", headers={"Accept": "text/csv"})
        assert (head.status_code, head.content) == (200, b"")


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n"])
async def test_there_is_one_host(site: Any, serve: Any, hosts: bytes) -> None:
    address = httpx.URL(await serve(site))
    for line in (b"GET /health/live", b"POST /v1/orders"):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(line + b" HTTP/1.1\r\n" + hosts + b"Content-Length: 0\r\n\r\n")
        async with asyncio.timeout(30):
            told = await reader.read()  # to the end: it is closed
        writer.close()
        assert told.startswith(b"HTTP/1.1 400 ")


_SHOWN = re.compile(r"(^|_)(token|secret|key|ticket|codes|uri|password)$")


def test_what_shows_a_secret_is_marked(site: Any) -> None:
    """A member that is called like a secret is one, in answers to what makes something."""
    for route in site.app.routes:
        if not isinstance(route, APIRoute) or (route.methods or set()) & {"GET", "DELETE"}:
            continue
        model = route.response_model
        if isinstance(model, type) and issubclass(model, BaseModel):
            shows = any(_SHOWN.search(name) for name in model.model_fields)
            marked = SECRET in (route.openapi_extra or {})
            assert marked or not shows, route.path


def test_every_form_and_tag_is_in_the_document(site: Any) -> None:
    paths = site.app.openapi()["paths"]
    for route in site.app.routes:
        if not isinstance(route, StrictRoute) or not route.include_in_schema:
            continue
        (method,) = sorted(route.methods or ())
        operation = paths[route.path_format][method.lower()]
        good = [a for s, a in operation["responses"].items() if s.startswith("2")]
        told = {media for answer in good for media in answer.get("content", ())}
        known = {form for form in offers(route) if form.count("/") and "x-msgpack" not in form}
        assert known - {"application/vnd.msgpack"} == told, route.path
        assert ("406" in operation["responses"]) is bool(known), route.path
        if method == "GET" and "application/json" in told:
            assert "ETag" in operation["responses"]["200"]["headers"]
            assert "304" in operation["responses"]
        if method == "PATCH":
            media = set(operation["requestBody"]["content"])
            assert media == {"application/json", "application/merge-patch+json"}
        if any(one["name"] == "If-Match" for one in operation.get("parameters", ())):
            assert {"412", "428"} <= set(operation["responses"])
