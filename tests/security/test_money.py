"""Attacks 53–57: one effect for one key, no more than there is, one end of each order, one past."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import asyncpg
import pytest

from tbot.boot import projections
from tbot.orders import store
from tbot.verify import verify

pytestmark = pytest.mark.asyncio(loop_scope="session")


def order(account_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.1",
        "limit_price": "99",
        **changes,
    }


async def orders_of(person: Any, account_id: str) -> list[dict[str, Any]]:
    params = {"account_id": account_id, "limit": 100}
    items: list[dict[str, Any]] = (await person.http.get("/v1/orders", params=params)).json()[
        "items"
    ]
    return items


async def test_a53_one_key_of_two_users(world: Any) -> None:
    ids = []
    for _ in range(2):
        person = await world.person()
        account = (await world.site.account(person.http, USDT="1000"))["id"]
        body = order(account, client_order_id="the-same")
        for path, sent in (("/v1/orders", body), ("/v1/accounts", {"name": "same"})):
            headers = {"Idempotency-Key": f'"the same for {path}"'}
            answer = await person.http.post(path, json=sent, headers=headers)
            assert answer.status_code == 201, answer.text
            assert "idempotent-replayed" not in answer.headers
            ids.append(answer.json()["id"])
    assert len(set(ids)) == 4


async def test_a54_a_key_again_changed_at_once_and_after_a_crash(
    world: Any, strict: Any, problem: Any
) -> None:
    person = await world.person()
    account = (await world.site.account(person.http, USDT="1000"))["id"]
    elsewhere = strict.client(person.token)

    async def place(client: Any, key: str, **changes: Any) -> Any:
        body = {**order(account), **changes}
        return await client.post("/v1/orders", json=body, headers={"Idempotency-Key": key})

    first = await place(person.http, '"changed"')
    problem(await place(elsewhere, '"changed"', quantity="0.2"), 422, "idempotency_key_reused")
    second = (await world.site.account(person.http, USDT="1000"))["id"]
    elsewhere_too = await place(elsewhere, '"changed"', account_id=second)
    problem(elsewhere_too, 422, "idempotency_key_reused")
    assert await orders_of(person, second) == []
    assert (await place(elsewhere, '"changed"')).content == first.content

    # At once, in two processes: documented to wait for the one answer, instead of a 409.
    answers = await asyncio.gather(
        *(place(client, '"at once"') for client in (person.http, elsewhere) * 5)
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    replayed = [answer.headers.get("idempotent-replayed") for answer in answers]
    assert sorted(str(one) for one in replayed) == ["None"] + ["true"] * 9

    # The connection breaks at any moment; the repetition goes to another process.
    target = urlsplit(world.url)
    for number in range(8):
        body = json.dumps(order(account)).encode()
        request = (
            b"POST /v1/orders HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + person.token.encode() + b"\r\nIdempotency-Key: crash-"
            + str(number).encode() + b"\r\nContent-Length: " + str(len(body)).encode()
            + b"\r\n\r\n" + body
        )  # fmt: skip
        _, writer = await asyncio.open_connection(target.hostname, target.port)
        writer.write(request)
        for _ in range(number):
            await asyncio.sleep(0)
        writer.transport.abort()
        assert (await place(elsewhere, f"crash-{number}")).status_code == 201
    assert len(await orders_of(person, account)) == 1 + 1 + 8


async def test_a55_fifty_orders_against_funds_for_one(world: Any, strict: Any) -> None:
    person = await world.person()
    account = (await world.site.account(person.http, USDT="10"))["id"]
    clients = [server.client(person.token) for server in (world, strict) for _ in range(5)]
    answers = await asyncio.gather(
        *(clients[n % 10].post("/v1/orders", json=order(account)) for n in range(50))
    )
    codes = [answer.json().get("code") for answer in answers]
    assert sorted(str(code) for code in codes) == ["None"] + ["insufficient_funds"] * 49
    assert len(await orders_of(person, account)) == 1
    balances = (await person.http.get(f"/v1/accounts/{account}/balances")).json()["balances"]
    assert balances == [{"asset": "USDT", "total": "10", "available": "0.1", "held": "9.9"}]
    cash, other = [
        (await world.site.cash(person.http, **funds))["id"] for funds in ({"USDT": "5"}, {})
    ]
    body = {"source_account_id": cash, "target_account_id": other, "asset": "USDT", "amount": "5"}
    answers = await asyncio.gather(
        *(clients[n % 10].post("/v1/transfers", json=body) for n in range(50))
    )
    assert [answer.status_code for answer in answers].count(201) == 1
    verdict = await verify(world.database_url, projections())
    assert verdict.sound, verdict.faults
    sums = await world.site.pool.fetch(
        "SELECT asset, sum(amount) AS total FROM (SELECT asset, available + held AS amount"
        " FROM balances UNION ALL SELECT asset, amount FROM counters) AS everything GROUP BY asset"
    )
    assert sums and all(row["total"] == 0 for row in sums)


async def test_a56_a_cancel_races_a_fill(world: Any) -> None:
    person = await world.person()
    account = (await world.site.account(person.http, USDT="1000"))["id"]
    for number in range(10):
        placed = (await person.http.post("/v1/orders", json=order(account))).json()
        await world.site.report(placed, "new")
        fill = (f"t{number}", "99", "0.1")
        both = [
            person.http.delete(f"/v1/orders/{placed['id']}"),
            world.site.report(placed, "filled", fill),
        ]
        if number % 2:
            both.reverse()
        answers = await asyncio.gather(*both)
        (answer,) = [one for one in answers if one is not None]
        assert answer.status_code in (200, 202, 409, 422), answer.text
        # The venue canceled nothing: it says so late, and repeats what it said.
        async with world.site.pool.acquire() as connection:
            now = await store.get_order(connection, UUID(placed["id"]))
        await world.site.report(now, "canceled")
        final = (await person.http.get(f"/v1/orders/{placed['id']}")).json()
        assert (final["state"], final["filled_quantity"]) == ("filled", "0.1")
    balances = (await person.http.get(f"/v1/accounts/{account}/balances")).json()["balances"]
    held = {one["asset"]: one["held"] for one in balances}
    assert set(held.values()) == {"0"}
    verdict = await verify(world.database_url, projections())
    assert verdict.sound, verdict.faults


async def test_a57_the_past_is_not_the_servers_to_change(world: Any) -> None:
    """With the very connections that the running server uses."""
    for statement in (
        "UPDATE journal SET body = body",
        "DELETE FROM journal",
        "TRUNCATE journal",
        "DROP TABLE journal",
        "ALTER TABLE journal DISABLE TRIGGER USER",
        "UPDATE fills SET price = price",
        "DELETE FROM fills",
        "SET session_replication_role = replica",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await world.site.pool.execute(statement)
