"""Orders over HTTP: placed once, listed, canceled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tbot.web.orders import OrderOut, OrderPage

ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99.50",
}


async def test_a_limit_order_from_placing_to_filled(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="1000")
        answer = await client.post(
            "/v1/orders", json={**ORDER, "account_id": account["id"], "client_order_id": "a.1"}
        )
        assert answer.status_code == 201, answer.text
        order = answer.json()
        OrderOut.model_validate(order)
        assert answer.headers["location"] == f"/v1/orders/{order['id']}"
        assert order["state"] == "pending_new"
        assert order["limit_price"] == "99.5"
        assert order["held"] == {"asset": "USDT", "amount": "9.95"}
        balances = (await client.get(f"/v1/accounts/{account['id']}/balances")).json()
        assert balances["balances"] == [
            {"asset": "USDT", "total": "1000", "available": "990.05", "held": "9.95"}
        ]
        await site.report(order, "filled", ("t1", "99.5", "0.04"), ("t2", "99.4", "0.06"))
        order = (await client.get(answer.headers["location"])).json()
        OrderOut.model_validate(order)
        assert order["state"] == "filled"
        assert order["filled_quantity"] == "0.1"
        assert order["average_price"] == "99.44"
        assert order["fees"] == [{"asset": "BTC", "amount": "0.0001"}]
        assert order["held"] is None
        fills = (await client.get(f"/v1/accounts/{account['id']}/fills")).json()["items"]
        assert [(fill["trade_id"], fill["quantity"]) for fill in fills] == [
            ("t2", "0.06"),
            ("t1", "0.04"),
        ]


async def test_a_repeated_client_order_id_gets_the_order_as_it_is_now(
    site: Any, problem: Any
) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        wanted = {**ORDER, "account_id": account["id"], "client_order_id": "same"}
        first = await client.post("/v1/orders", json=wanted)
        await site.report(first.json(), "new")
        again = await client.post("/v1/orders", json=wanted)
        assert again.status_code == 200
        assert again.headers["idempotent-replayed"] == "true"
        assert again.json()["id"] == first.json()["id"]
        assert again.json()["state"] == "new"
        other = await client.post("/v1/orders", json={**wanted, "quantity": "0.2"})
        document = problem(other, 422, "client_order_id_reused")
        assert document["facts"]["order_id"] == first.json()["id"]
        orders = (await client.get("/v1/orders")).json()["items"]
        assert len(orders) == 1


async def test_twenty_concurrent_orders_against_funds_for_one(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="10")
        answers = await asyncio.gather(
            *(
                client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
                for _ in range(20)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [422] * 19
        assert {answer.json().get("code") for answer in answers} == {None, "insufficient_funds"}
        balances = (await client.get(f"/v1/accounts/{account['id']}/balances")).json()
        assert balances["balances"][0]["total"] == "10"


async def test_twenty_concurrent_orders_at_two_processes_against_funds_for_one(
    site: Any, new_site: Any
) -> None:
    other = await new_site()
    async with site.client("ann") as client, other.client("ann") as elsewhere:
        account = await site.account(client, USDT="10")
        body = {**ORDER, "account_id": account["id"]}
        answers = await asyncio.gather(
            *(one.post("/v1/orders", json=body) for one in (client, elsewhere) * 10)
        )
        assert sorted(answer.status_code for answer in answers) == [201] + [422] * 19
        orders = (await elsewhere.get("/v1/orders")).json()["items"]
        assert len(orders) == 1


async def test_prefer_wait_answers_when_the_venue_has_spoken(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        market = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "market",
            "quote_amount": "50",
            "client_order_id": "m1",
        }
        waiting = asyncio.create_task(
            client.post("/v1/orders", json=market, headers={"Prefer": "wait=10"})
        )
        while not (listed := (await client.get("/v1/orders?open=true")).json()["items"]):
            assert not waiting.done(), waiting.result().text
        assert not waiting.done()
        await site.report(listed[0], "filled", ("t1", "100", "0.5"))
        answer = await waiting
        assert answer.status_code == 201
        assert answer.headers["preference-applied"] == "wait=10"
        assert answer.json()["state"] == "filled"


async def test_prefer_wait_gives_up_in_time(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        answer = await client.post(
            "/v1/orders", json={**ORDER, "account_id": account["id"]}, headers={"Prefer": "wait=0"}
        )
        assert answer.status_code == 201
        assert answer.json()["state"] == "pending_new"


async def test_cancel_is_a_request_until_the_venue_confirms(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        placed = (
            await client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
        ).json()
        url = f"/v1/orders/{placed['id']}"
        await site.report(placed, "new")
        answer = await client.delete(url)
        assert answer.status_code == 202
        assert answer.json()["cancel_requested"] is True
        assert answer.json()["state"] == "pending_cancel"
        assert (await client.delete(url)).status_code == 202
        await site.report(placed, "canceled")
        problem(await client.delete(url), 409, "order_closed")


async def test_cancel_with_wait_answers_the_ended_order(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        placed = (
            await client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
        ).json()
        await site.report(placed, "new")
        url = f"/v1/orders/{placed['id']}"
        waiting = asyncio.create_task(client.delete(url, headers={"Prefer": "wait=10"}))
        while (await client.get(url)).json()["state"] != "pending_cancel":
            assert not waiting.done(), waiting.result().text
        await site.report(placed, "canceled")
        answer = await waiting
        assert answer.status_code == 200
        assert answer.json()["state"] == "canceled"


async def test_cancel_all_of_an_account_or_instrument(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        ids = [
            (await client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})).json()[
                "id"
            ]
            for _ in range(3)
        ]
        query = {"account_id": account["id"]}
        other = await client.delete("/v1/orders", params={**query, "symbol": "ETH-USDT"})
        assert other.status_code == 202
        assert other.json() == {"requested": 0, "orders": []}
        answer = await client.delete("/v1/orders", params=query)
        assert answer.status_code == 202
        assert answer.json()["requested"] == 3
        assert sorted(answer.json()["orders"]) == sorted(ids)


async def test_lists_are_paged_newest_first_and_filtered(site: Any, problem: Any) -> None:
    async with site.client("ann") as client, site.client("bob") as bob:
        account = await site.account(client)
        ids = [
            (await client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})).json()[
                "id"
            ]
            for _ in range(5)
        ]
        await site.report({"id": ids[0]}, "canceled")
        seen: list[str] = []
        url: str | None = "/v1/orders?limit=2"
        while url is not None:
            answer = await client.get(url)
            OrderPage.model_validate(answer.json())
            seen += [order["id"] for order in answer.json()["items"]]
            link = answer.links.get("next")
            url = link["url"] if link else None
            assert (answer.json()["next"] is None) == (url is None)
        assert seen == ids[::-1]
        canceled = await client.get("/v1/orders?state=canceled")
        assert [order["id"] for order in canceled.json()["items"]] == [ids[0]]
        still_open = await client.get("/v1/orders", params={"open": "true", "side": "buy"})
        assert len(still_open.json()["items"]) == 4
        first = (await client.get("/v1/orders?limit=2")).json()["next"]
        # A cursor is bound to its list, its filters and its reader, and cannot be forged.
        for asker, query in (
            (client, {"cursor": first, "side": "buy"}),
            (bob, {"cursor": first}),
            (client, {"cursor": first[:-2] + ("AA" if first[-2:] != "AA" else "BB")}),
            (client, {"cursor": "'; DROP TABLE orders; --"}),
            (client, {"cursor": "é"}),
        ):
            problem(await asker.get("/v1/orders", params=query), 400, "invalid_cursor")
        problem(
            await client.get(f"/v1/accounts/{account['id']}/fills", params={"cursor": first}),
            400,
            "invalid_cursor",
        )


async def test_an_order_has_an_entity_tag(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        placed = await client.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
        url, tag = placed.headers["location"], placed.headers["etag"]
        same = await client.get(url, headers={"If-None-Match": f'W/"x", {tag}'})
        assert same.status_code == 304
        assert same.headers["etag"] == tag
        assert same.content == b""
        await site.report(placed.json(), "new")
        changed = await client.get(url, headers={"If-None-Match": tag})
        assert changed.status_code == 200
        assert changed.headers["etag"] != tag


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"type": "market"}, "/limit_price"),
        ({"type": "market", "limit_price": None}, None),
        ({"type": "market", "limit_price": None, "quote_amount": "5"}, "/quantity"),
        ({"type": "market", "limit_price": None, "post_only": True}, "/post_only"),
        ({"type": "market", "limit_price": None, "time_in_force": "ioc"}, "/time_in_force"),
        ({"limit_price": None}, "/limit_price"),
        ({"quantity": None}, "/quantity"),
        ({"quote_amount": "5"}, "/quote_amount"),
        ({"post_only": True, "time_in_force": "fok"}, "/time_in_force"),
    ],
)
async def test_members_that_do_not_fit_together(
    site: Any, problem: Any, change: dict[str, Any], pointer: str | None
) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        answer = await client.post(
            "/v1/orders", json={**ORDER, "account_id": account["id"], **change}
        )
        if pointer is None:
            assert answer.status_code == 201
        else:
            document = problem(answer, 422, "validation_failed")
            assert document["errors"][0]["pointer"] == pointer
