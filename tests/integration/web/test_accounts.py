"""Accounts: opened, listed, valued, and their journal."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from tbot.core.errors import VenueDown
from tbot.web.account_forms import AccountOut, AccountPage, Balances, EquityOut, Positions
from tbot.web.history import FillPage, JournalPage


async def test_open_and_read(site: Any) -> None:
    async with site.client("ann") as client:
        answer = await client.post(
            "/v1/accounts",
            json={
                "name": "Zoë’s <b>account</b>",
                "venue": "paper",
                "starting_balance": [
                    {"asset": "USDT", "amount": "10000.50"},
                    {"asset": "BTC", "amount": "0.5"},
                ],
                "limits": {"max_open_orders": 3, "allowed_instruments": ["BTC-USDT"]},
            },
        )
        assert answer.status_code == 201, answer.text
        account = answer.json()
        AccountOut.model_validate(account)
        assert account["name"] == "Zoë’s <b>account</b>"
        assert account["limits"] == {
            "max_order_notional": "100000",
            "max_open_orders": 3,
            "price_collar": "0.05",
            "allowed_instruments": ["BTC-USDT"],
            "overdraft": {},
        }
        assert account["kind"] == "trading"
        assert account["sequence"] == 3
        assert (await client.get(answer.headers["location"])).json() == account
        balances = (await client.get(answer.headers["location"] + "/balances")).json()
        Balances.model_validate(balances)
        assert [(b["asset"], b["total"]) for b in balances["balances"]] == [
            ("BTC", "0.5"),
            ("USDT", "10000.5"),
        ]
        assert len(site.venue.deposits) == 2


async def test_pages_of_accounts(site: Any) -> None:
    async with site.client("ann") as client, site.client("bob") as bob:
        ids = [(await site.account(client))["id"] for _ in range(3)]
        await site.account(bob)
        first = await client.get("/v1/accounts?limit=2")
        AccountPage.model_validate(first.json())
        second = await client.get(first.links["next"]["url"])
        assert [a["id"] for a in first.json()["items"] + second.json()["items"]] == ids
        assert second.json()["next"] is None


async def test_accounts_go_by_age_and_not_by_ids_that_follow_from_keys(site: Any) -> None:
    async with site.client("ann") as client:
        ids = []
        for number in range(6):
            body: dict[str, Any] = {"name": "main", "starting_balance": []}
            if number % 2:
                body = {"kind": "cash", "name": "till"}
            key = {"Idempotency-Key": f'"key-{number}"'}
            answer = await client.post("/v1/accounts", json=body, headers=key)
            assert answer.status_code == 201, answer.text
            ids.append(answer.json()["id"])
        assert ids != sorted(ids), "keys that show something"

        async def listed(query: str) -> list[str]:
            found, answer = [], await client.get(f"/v1/accounts?limit=2&{query}")
            while True:
                assert answer.status_code == 200, answer.text
                found += [account["id"] for account in answer.json()["items"]]
                if answer.json()["next"] is None:
                    return found
                answer = await client.get(answer.links["next"]["url"])

        assert await listed("") == ids
        assert await listed("kind=trading") == ids[::2]
        assert await listed("kind=cash&status=open") == ids[1::2]
        assert await listed("status=closed") == []
        both = await client.get("/v1/accounts?shared=true&kind=cash")
        assert (both.status_code, both.json()["code"]) == (422, "validation_failed")


async def test_positions_and_equity_after_a_fill(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="1000")
        url = f"/v1/accounts/{account['id']}"
        order = await client.post(
            "/v1/orders",
            json={
                "account_id": account["id"],
                "symbol": "BTC-USDT",
                "side": "buy",
                "type": "limit",
                "quantity": "1",
                "limit_price": "98",
            },
        )
        await site.report(order.json(), "filled", ("t1", "98", "1"))
        positions = (await client.get(f"{url}/positions")).json()
        Positions.model_validate(positions)
        (position,) = positions["positions"]
        assert position["quantity"] == "0.999"
        assert position["cost"] == "98"
        assert position["market_price"] == "99.5"
        assert position["unrealized_pnl"] == "1.4005"
        equity = (await client.get(f"{url}/equity?quote=USDT")).json()
        EquityOut.model_validate(equity)
        assert equity["equity"] == "1001.4005"
        assert equity["complete"] is True
        in_bitcoin = (await client.get(f"{url}/equity?quote=BTC")).json()
        assert in_bitcoin["complete"] is False, "a profit in USDT is not one in BTC"
        fills = (await client.get(f"{url}/fills")).json()
        FillPage.model_validate(fills)
        assert fills["items"][0]["fee"] == "0.001"


async def test_the_journal_can_be_checked_by_whoever_reads_it(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="1000", BTC="1")
        url = f"/v1/accounts/{account['id']}/journal"
        page = (await client.get(url)).json()
        JournalPage.model_validate(page)
        assert [entry["seq"] for entry in page["entries"]] == [1, 2, 3]
        assert page["head"] == 3
        first = page["entries"][0]["entry"]
        assert first["kind"] == "account.opened"
        assert first["by"]["kind"] == "user"
        assert first["by"]["request"]
        # The exact bytes travel, so the chain can be recomputed from the answer.
        raw = (await client.get(url)).text
        bodies = raw.split('"entry":')[1:]
        decoder = json.JSONDecoder()
        cut = [body[: decoder.raw_decode(body)[1]] for body in bodies]
        for previous, entry, body in zip(
            page["entries"], page["entries"][1:], cut[1:], strict=False
        ):
            digest = hashlib.sha256(bytes.fromhex(previous["hash"]) + body.encode()).hexdigest()
            assert digest == entry["hash"]
        rest = (await client.get(f"{url}?after=2&limit=1")).json()
        assert [entry["seq"] for entry in rest["entries"]] == [3]
        assert (await client.get(f"{url}?after=99")).json() == {"entries": [], "head": 3}


async def test_a_venue_that_is_away_opens_nothing(site: Any, problem: Any) -> None:
    site.venue.broken = VenueDown("gone")
    async with site.client("ann") as client:
        answer = await client.post(
            "/v1/accounts", json={"name": "x", "starting_balance": {"USDT": "1"}}
        )
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/v1/accounts")).json() == {"items": [], "next": None}


async def test_a_cash_account_has_no_venue(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        answer = await client.post("/v1/accounts", json={"kind": "cash", "name": "pay"})
        assert answer.status_code == 201, answer.text
        account = answer.json()
        AccountOut.model_validate(account)
        assert (account["kind"], account["venue"], account["sequence"]) == ("cash", None, 1)
        url = answer.headers["location"]
        assert (await client.get(f"{url}/equity")).json()["equity"] == "0"
        assert (await client.get(f"{url}/positions")).json()["positions"] == []
        order = {"account_id": account["id"], "symbol": "BTC-USDT", "side": "buy"}
        order |= {"type": "limit", "quantity": "1", "limit_price": "98"}
        problem(await client.post("/v1/orders", json=order), 422, "account_kind")
    assert site.venue.deposits == {}


async def test_a_cash_account_takes_neither_venue_nor_starting_balance(
    site: Any, problem: Any
) -> None:
    cash = {"kind": "cash", "name": "pay"}
    async with site.client("ann") as client:
        for member, value in (("venue", "paper"), ("starting_balance", {"USDT": "1"})):
            answer = await client.post("/v1/accounts", json=cash | {member: value})
            document = problem(answer, 422, "validation_failed")
            assert document["errors"][0]["pointer"] == f"/{member}"


async def test_only_an_administrator_gives_an_overdraft_and_only_to_cash_accounts(
    site: Any, problem: Any
) -> None:
    cash = {"kind": "cash", "name": "pay", "limits": {"overdraft": {"USDT": "50.0"}}}
    async with site.client("ann") as client, site.client("root") as root:
        problem(await client.post("/v1/accounts", json=cash), 403, "insufficient_scope")
        opened = await root.post("/v1/accounts", json=cash)
        assert opened.json()["limits"]["overdraft"] == {"USDT": "50"}
        trading = cash | {"kind": "trading"}
        problem(await root.post("/v1/accounts", json=trading), 422, "overdraft_not_allowed")


async def test_a_list_over_more_accounts_than_it_goes_through_is_no_part_of_it(
    new_site: Any, problem: Any
) -> None:
    site = await new_site(http={"accounts_listed_max": 1})
    await site.user("ann")
    async with site.client("ann") as client:
        first = await site.account(client)
        for path in ("/v1/orders", "/v1/transfers", "/v1/payments"):
            assert (await client.get(path)).status_code == 200
        await site.account(client)
        for path in ("/v1/orders", "/v1/transfers", "/v1/payments"):
            told = problem(await client.get(path), 422, "validation_failed")
            assert told["errors"][0]["parameter"] == "account_id"
            one = await client.get(path, params={"account_id": first["id"]})
            assert one.status_code == 200
