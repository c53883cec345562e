"""A key is its caller's alone: for one list, one source, and one account that is opened under it."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import RFC_4122, UUID

import httpx

from .test_transfers import available, body


async def test_a_bulk_requests_key_is_for_its_whole_list(
    site: Any, new_site: Any, problem: Any
) -> None:
    ann, more = await site.cash_of("ann", USDT="100"), await site.cash_of("ann", USDT="100")
    bob = await site.cash_of("bob")
    one, two, third = body(ann, bob, "1"), body(more, bob, "2"), body(ann, bob, "4")
    path, headers = "/v1/transfers/bulk", {"Idempotency-Key": "payroll"}
    other = await new_site()
    async with site.client("ann") as client, other.client("ann") as elsewhere:

        async def ask(*items: Any, via: Any = client, key: str = "payroll") -> httpx.Response:
            headers = {"Idempotency-Key": key}
            answer: httpx.Response = await via.post(
                path, json={"transfers": items}, headers=headers
            )
            return answer

        first = await ask(one, two)
        assert [r["status"] for r in first.json()["results"]] == [201, 201]
        size = await site.journal_size()
        edited = {**two, "amount": "2.01"}
        for items in ((two, one), (one,), (two,), (one, two, third), (one, edited)):
            problem(await ask(*items, via=elsewhere), 422, "idempotency_key_reused")
        single = await client.post("/v1/transfers", json=one, headers=headers)
        problem(single, 422, "idempotency_key_reused")
        again = await ask(one, two, via=elsewhere)
        assert all(r["replayed"] for r in again.json()["results"])
        assert await site.journal_size() == size
        # Both at once: one list is made, the other one not at all.
        lists = ([one, two, third], [third, two, one])
        for key in ("a", "b", "c"):
            size = await site.journal_size()
            answers = await asyncio.gather(
                *(
                    ask(*lists[n % 2], via=(client, elsewhere)[n // 2 % 2], key=key)
                    for n in range(8)
                )
            )
            assert sorted(a.status_code for a in answers) == [200] * 4 + [422] * 4
            made = [r for a in answers if a.is_success for r in a.json()["results"]]
            assert {r["status"] for r in made} == {201}
            assert sum("replayed" not in r for r in made) == 3
            assert await site.journal_size() == size + 6
        # A key that was used for a single transfer is not a list's.
        single = await client.post("/v1/transfers", json=one, headers={"Idempotency-Key": "x"})
        assert single.status_code == 201
        problem(await ask(one, key="x"), 422, "idempotency_key_reused")


async def test_one_key_for_two_sources_at_once_moves_one_amount(site: Any, new_site: Any) -> None:
    sources = [await site.cash_of("ann", USDT="100") for _ in range(4)]
    bob, other = await site.cash_of("bob"), await new_site()
    async with site.client("ann") as client, other.client("ann") as elsewhere:
        for number in range(5):
            headers = {"Idempotency-Key": f"same {number}".replace(" ", "-")}
            answers = await asyncio.gather(
                *(
                    via.post("/v1/transfers", json=body(source, bob, "1"), headers=headers)
                    for via in (client, elsewhere)
                    for source in sources
                )
            )
            assert sorted(a.status_code for a in answers) == [201, 201, *[422] * 6]
            assert len({a.content for a in answers if a.is_success}) == 1
    async with site.client("bob") as client:
        assert await available(client, bob) == {"USDT": ("5", "0")}


async def test_opening_under_a_key_that_was_forgotten_names_the_account(
    site: Any, problem: Any
) -> None:
    async with site.client("ann") as client:

        async def opened(name: str) -> httpx.Response:
            headers = {"Idempotency-Key": "old"}
            answer: httpx.Response = await client.post(
                "/v1/accounts", json={"name": name, "kind": "cash"}, headers=headers
            )
            return answer

        account_id = (await opened("a")).json()["id"]
        known = UUID(account_id)
        assert (known.version, known.variant) == (8, RFC_4122)
        await site.pool.execute("DELETE FROM idempotency_keys")
        for name in ("other", "a", "other"):  # none of them takes the key
            answer = await opened(name)
            problem(answer, 409, "account_exists")
            assert answer.json()["facts"] == {"account_id": account_id}
