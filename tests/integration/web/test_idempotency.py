"""`Idempotency-Key` over HTTP: one effect, one answer, however often it is sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from .conftest import NewSite, Site


def _order(account: dict[str, Any], **changes: Any) -> dict[str, Any]:
    order = {
        "account_id": account["id"],
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.1",
        "limit_price": "90",
    }
    return {**order, **changes}


async def test_a_repetition_gets_the_original_answer_byte_for_byte(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        headers = {"Idempotency-Key": '"one"'}
        first = await client.post("/v1/orders", json=_order(account), headers=headers)
        await site.report(first.json(), "filled", ("1", "90", "0.1"))
        second = await client.post("/v1/orders", json=_order(account), headers=headers)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first.headers["location"] == second.headers["location"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert await site.pool.fetchval("SELECT count(*) FROM orders") == 1


async def test_members_in_another_order_are_the_same_content(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        body = _order(account)
        headers = {"Idempotency-Key": "one"}
        first = await client.post("/v1/orders", json=body, headers=headers)
        turned = dict(reversed(body.items()))
        second = await client.post("/v1/orders", json=turned, headers=headers)
    assert first.json()["id"] == second.json()["id"]


async def test_other_content_under_a_key_is_refused_and_changes_nothing(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        headers = {"Idempotency-Key": "one"}
        await client.post("/v1/orders", json=_order(account), headers=headers)
        before = await site.journal_size()
        other = await client.post(
            "/v1/orders", json=_order(account, quantity="0.2"), headers=headers
        )
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
    assert await site.journal_size() == before


async def test_a_refusal_is_kept_until_its_key_is_forgotten(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="5")
        headers = {"Idempotency-Key": "one"}
        first = await client.post("/v1/orders", json=_order(account), headers=headers)
        second = await client.post("/v1/orders", json=_order(account), headers=headers)
        third = await client.post("/v1/orders", json=_order(account))
    assert (first.status_code, first.json()["code"]) == (422, "insufficient_funds")
    assert second.content == first.content
    assert second.headers["idempotent-replayed"] == "true"
    assert second.headers["content-type"] == "application/problem+json"
    assert third.json()["code"] == "insufficient_funds"
    assert third.json()["request_id"] != first.json()["request_id"]


async def test_a_refusal_of_the_moment_is_decided_anew(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        headers = {"Idempotency-Key": "one"}
        await site.pool.execute("INSERT INTO switches VALUES ('trading', true, 'test', now())")
        halted = await client.post("/v1/orders", json=_order(account), headers=headers)
        await site.pool.execute("UPDATE switches SET halted = false")
        again = await client.post("/v1/orders", json=_order(account), headers=headers)
    assert halted.json()["code"] == "venue_halted"
    assert again.status_code == 201


async def test_twins_sent_together_have_one_effect_and_one_answer(
    new_site: NewSite, site: Site
) -> None:
    other = await new_site()
    async with site.client("ann") as client, other.client("ann") as elsewhere:
        account = await site.account(client)
        headers = {"Idempotency-Key": "one"}
        answers = await asyncio.gather(
            *(
                sender.post("/v1/orders", json=_order(account), headers=headers)
                for sender in (client, elsewhere) * 10
            )
        )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert await site.pool.fetchval("SELECT count(*) FROM orders") == 1


async def test_a_key_is_its_callers_own(site: Site) -> None:
    headers = {"Idempotency-Key": "one"}
    ids = set()
    for name in ("ann", "bob"):
        async with site.client(name) as client:
            account = await site.account(client)
            answer = await client.post("/v1/orders", json=_order(account), headers=headers)
            ids.add(answer.json()["id"])
    assert len(ids) == 2


async def test_a_key_covers_cancellation_accounts_and_users(site: Site) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        order = (await client.post("/v1/orders", json=_order(account))).json()
        headers = {"Idempotency-Key": "one"}
        first = await client.delete(f"/v1/orders/{order['id']}", headers=headers)
        await site.report(order, "canceled")
        second = await client.delete(f"/v1/orders/{order['id']}", headers=headers)
        assert (first.status_code, second.content) == (202, first.content)
        plain = await client.delete(f"/v1/orders/{order['id']}")
        assert plain.status_code == 409
        body = {"name": "once", "starting_balance": {"USDT": "10"}}
        taken = await client.post("/v1/accounts", json=body, headers=headers)
        assert taken.json()["code"] == "idempotency_key_reused"
        headers = {"Idempotency-Key": "two"}
        opened = [await client.post("/v1/accounts", json=body, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in opened] == [201, 201]
        assert opened[0].content == opened[1].content
        other = await client.post("/v1/accounts", json={**body, "name": "x"}, headers=headers)
        assert other.json()["code"] == "idempotency_key_reused"
    async with site.client("root") as client:
        body = {"username": "carol", "password": "a long enough password", "role": "trader"}
        made = [await client.post("/v1/users", json=body, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in made] == [201, 201]
        assert made[0].content == made[1].content
        body["password"] = "another long password"
        other = await client.post("/v1/users", json=body, headers=headers)
        assert other.json()["code"] == "idempotency_key_reused"


@pytest.mark.parametrize("key", ["", '""', "two words", '"', "x" * 129, "schlüssel".encode()])
async def test_a_malformed_key_is_told(site: Site, key: str | bytes) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        before = await site.journal_size()
        answer = await client.post(
            "/v1/orders", json=_order(account), headers=[("Idempotency-Key", key)]
        )
    assert answer.status_code in (400, 422)
    assert answer.json()["code"] in ("malformed_header", "validation_failed")
    assert await site.journal_size() == before
