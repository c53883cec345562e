"""Statements, balances as of a moment, counter-accounts: what they say and that they agree."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pytest

from tbot.web.account_forms import Balances
from tbot.web.statements import CounterPage, Statement

NUMBERS = ("amount", "available_change", "held_change", "total", "available", "held")


@pytest.fixture
async def traded(site: Any) -> AsyncIterator[tuple[Any, str]]:
    """Ann's client and the address of an account with holds, fills, fees and a cancellation."""
    async with site.client("ann") as client:
        account = await site.account(client, USDT="1000", BTC="2")
        for price in ("98", "97", "96"):
            order = await place(client, account["id"], price)
            if price == "98":
                await site.report(order, "partially_filled", ("=t1", "98", "0.4"))
                await site.report(order, "filled", ("t2", "97.5", "0.6"))
            elif price == "97":
                await client.delete(f"/v1/orders/{order['id']}")
                await site.report(order, "canceled")
        yield client, f"/v1/accounts/{account['id']}"


async def place(client: Any, account_id: str, price: str, quantity: str = "1") -> dict[str, Any]:
    answer = await client.post(
        "/v1/orders",
        json={
            "account_id": account_id,
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": quantity,
            "limit_price": price,
        },
    )
    assert answer.status_code == 201, answer.text
    order: dict[str, Any] = answer.json()
    return order


async def paged(client: Any, url: str, limit: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The first page of a statement, and the items of all pages."""
    items: list[dict[str, Any]] = []
    answer = await client.get(f"{url}{'&' if '?' in url else '?'}limit={limit}")
    first = answer.json()
    while True:
        assert answer.status_code == 200, answer.text
        Statement.model_validate(answer.json())
        assert len(answer.json()["items"]) <= limit
        assert [answer.json()[end] for end in ("opening", "closing")] == [
            first[end] for end in ("opening", "closing")
        ]
        items += answer.json()["items"]
        if answer.json()["next"] is None:
            return first, items
        answer = await client.get(answer.links["next"]["url"])


def adds_up(opening: list[Any], items: list[dict[str, Any]], closing: list[Any]) -> None:
    """opening + movements = closing, and each movement's balance is the one before plus it."""
    pairs = (("total", "amount"), ("available", "available_change"), ("held", "held_change"))
    running = {one["asset"]: {n: Decimal(one[n]) for n, _ in pairs} for one in opening}
    for item in items:
        balance = running[item["asset"]]
        for name, change in pairs:
            balance[name] += Decimal(item[change])
            assert balance[name] == Decimal(item[name]), item
    assert running == {one["asset"]: {n: Decimal(one[n]) for n, _ in pairs} for one in closing}


async def test_opening_and_movements_are_closing_however_it_is_paged(traded: Any) -> None:
    client, url = traded
    whole, items = await paged(client, f"{url}/statement", 100)
    adds_up(whole["opening"]["balances"], items, whole["closing"]["balances"])
    assert whole["opening"]["sequence"] == 0
    nothing = {"total": "0", "available": "0", "held": "0"}
    assert whole["opening"]["balances"] == [
        {"asset": one["asset"], **nothing} for one in whole["closing"]["balances"]
    ]
    assert (await client.get(f"{url}/balances")).json()["balances"] == whole["closing"]["balances"]
    kinds = [item["kind"] for item in items]
    assert kinds[:3] == ["account.deposited", "account.deposited", "order.accepted"]
    assert kinds.count("order.filled") == 4, "a fill moves both assets"
    filled = [item for item in items if item["kind"] == "order.filled"]
    assert {item["counterpart"] for item in filled} == {"venue:paper"}
    assert {item["reference_kind"] for item in filled} == {"order"}
    assert len({item["reference"] for item in filled}) == 1
    held = [item for item in items if item["kind"] == "order.accepted"]
    assert {(item["amount"], item["counterpart"]) for item in held} == {("0", None)}
    for limit in (1, 2, 3, 5):
        _, again = await paged(client, f"{url}/statement", limit)
        assert again == items


async def test_filters(traded: Any) -> None:
    client, url = traded
    _, items = await paged(client, f"{url}/statement", 100)
    bitcoin, found = await paged(client, f"{url}/statement?asset=BTC", 2)
    assert found == [item for item in items if item["asset"] == "BTC"]
    assert [one["asset"] for one in bitcoin["closing"]["balances"]] == ["BTC"]
    adds_up(bitcoin["opening"]["balances"], found, bitcoin["closing"]["balances"])
    _, booked = await paged(client, f"{url}/statement?holds=false", 1)
    assert booked == [item for item in items if item["amount"] != "0"]
    nothing, none = await paged(client, f"{url}/statement?asset=ETH", 1)
    assert none == [] and nothing["closing"]["balances"][0]["total"] == "0"


async def test_statements_that_adjoin_leave_nothing_out_and_count_nothing_twice(
    traded: Any,
) -> None:
    client, url = traded
    _, items = await paged(client, f"{url}/statement", 100)
    for cut in {item["at"] for item in items}:
        before, earlier = await paged(client, f"{url}/statement?to={cut}", 3)
        after, later = await paged(client, f"{url}/statement?from={cut}", 3)
        assert earlier + later == items
        assert all(item["at"] < cut for item in earlier)
        assert before["closing"]["sequence"] == after["opening"]["sequence"]
        # What comes later opens with zero; before, it was not there at all.
        known = {one["asset"]: one for one in before["closing"]["balances"]}
        for one in after["opening"]["balances"]:
            if one["asset"] in known:
                assert one == known.pop(one["asset"])
            else:
                assert one["total"] == one["available"] == one["held"] == "0"
        assert not known
        adds_up(after["opening"]["balances"], later, after["closing"]["balances"])


async def test_what_happens_later_does_not_move_into_a_statement_once_begun(traded: Any) -> None:
    client, url = traded
    first = await client.get(f"{url}/statement?limit=3")
    await place(client, url.rpartition("/")[2], "95")
    items = first.json()["items"]
    page = first
    while page.json()["next"] is not None:
        page = await client.get(page.links["next"]["url"])
        items += page.json()["items"]
        assert page.json()["to"] == first.json()["to"]
    adds_up(first.json()["opening"]["balances"], items, first.json()["closing"]["balances"])


async def test_ndjson_and_csv_say_what_the_pages_say(traded: Any) -> None:
    client, url = traded
    whole, items = await paged(client, f"{url}/statement", 100)
    span = f"{url}/statement?to={whole['to']}"
    answer = await client.get(span, headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson; charset=utf-8"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    types = ["opening"] * 2 + ["movement"] * len(items) + ["closing"] * 2
    assert [line.pop("type") for line in lines] == types
    assert lines[2:-2] == items
    for line, balance in zip(lines[:2], whole["opening"]["balances"], strict=True):
        assert line == {**balance, "sequence": 0, "at": None}
    for line, balance in zip(lines[-2:], whole["closing"]["balances"], strict=True):
        assert line == {**balance, "sequence": whole["closing"]["sequence"], "at": whole["to"]}
    answer = await client.get(span, headers={"Accept": "text/csv"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    account_id = url.rpartition("/")[2]
    assert answer.headers["content-disposition"] == (
        f'attachment; filename="statement-{account_id}.csv"'
    )
    assert "Accept" in answer.headers["vary"].split(", ")
    assert answer.headers["cache-control"] == "no-store"
    assert all(line.endswith("\r\n") for line in answer.text.splitlines(keepends=True))
    rows = list(csv.DictReader(io.StringIO(answer.text, newline="")))
    assert [row["type"] for row in rows] == types
    for row, item in zip(rows[2:], items, strict=False):
        row.pop("type")
        assert row == {name: "" if value is None else str(value) for name, value in item.items()}


async def test_balances_as_of_any_moment(traded: Any) -> None:
    client, url = traded
    _, items = await paged(client, f"{url}/statement", 100)
    for at in {item["at"] for item in items}:
        # A zone other than UTC is the same instant.
        for text in (at, at.replace("Z", "+00:00")):
            answer = await client.get(f"{url}/balances?at={quote(text)}")
            Balances.model_validate(answer.json())
            last = {item["asset"]: item["total"] for item in items if item["at"] <= at}
            assert {o["asset"]: o["total"] for o in answer.json()["balances"]} == last
    early = (await client.get(f"{url}/balances?at=2001-01-01T00:00:00Z")).json()
    assert (early["sequence"], early["balances"]) == (0, [])


@pytest.mark.parametrize(
    "moment",
    [
        "yesterday", "2026-11-22", "2026-11-22T05:14:43", "1700000000", "2026-02-30T00:00:00Z",
        "2026-11-22T05:14:43.1234567Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00",
        "9998-01-01T00:00:00Z", "2026-11-22T05:14:43Z' OR 1=1 --", "２026-11-22T05:14:43Z",
    ],
)  # fmt: skip
async def test_moments_that_are_none(site: Any, problem: Any, moment: str) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        url = f"/v1/accounts/{account['id']}"
        answer = await client.get(f"{url}/balances", params={"at": moment})
        document = problem(answer, 422, "validation_failed")
        assert document["errors"][0]["parameter"] == "at"
        if not moment.startswith("9998"):
            answer = await client.get(f"{url}/statement", params={"from": moment})
            problem(answer, 422, "validation_failed")


async def test_what_a_statement_refuses(traded: Any, site: Any, problem: Any) -> None:
    client, url = traded
    span = f"{url}/statement?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z"
    assert problem(await client.get(span), 422, "validation_failed")["errors"] == [
        {"parameter": "to", "detail": "lies before `from`"}
    ]
    for accept in ("application/json", "text/csv"):
        answer = await client.get(f"{url}/statement?asset=NOPE", headers={"Accept": accept})
        problem(answer, 422, "asset_unknown")
    cursor = (await client.get(f"{url}/statement?limit=1")).json()["next"]
    for query in (
        f"cursor={cursor}&asset=BTC",
        f"cursor={cursor}&holds=false",
        "cursor=" + "A" * 40,
    ):
        problem(await client.get(f"{url}/statement?{query}"), 400, "invalid_cursor")
    for path in ("statement", "fills", "journal"):
        for accept in ("text/html", "application/xml, image/*", "text/csv;q=0, application/pdf"):
            answer = await client.get(f"{url}/{path}", headers={"Accept": accept})
            assert "text/csv" in problem(answer, 406, "not_acceptable")["detail"]
        answer = await client.get(f"{url}/{path}?limit=3", headers={"Accept": "text/csv"})
        problem(answer, 422, "validation_failed")
    async with site.client("bob") as bob:
        for path in ("statement", "fills", "journal", "balances?at=2026-01-01T00:00:00Z"):
            answer = await bob.get(f"{url}/{path}", headers={"Accept": "text/csv, */*;q=0.1"})
            problem(answer, 404, "not_found")
    async with site.client("ann", "orders:read") as narrow:
        problem(await narrow.get(f"{url}/statement"), 403, "insufficient_scope")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("text/*", "text/csv"),
        ("text/csv;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.1, text/csv;q=0.2", "text/csv"),
        ("application/json;q=0, */*", "application/x-ndjson"),
        ("text/html, text/csv;q=0.001", "text/csv"),
    ],
)
async def test_which_format_is_liked_best(site: Any, accept: str, chosen: str) -> None:
    async with site.client("ann") as client:
        account = await site.account(client)
        for path in ("statement", "fills", "journal"):
            answer = await client.get(
                f"/v1/accounts/{account['id']}/{path}", headers={"Accept": accept}
            )
            assert answer.status_code == 200, answer.text
            assert answer.headers["content-type"].partition(";")[0] == chosen
            assert "Accept" in answer.headers["vary"].split(", ")


async def test_fills_and_journal_as_files(traded: Any) -> None:
    client, url = traded
    for path, member in (("fills", "items"), ("journal", "entries")):
        listed = (await client.get(f"{url}/{path}")).json()[member]
        assert listed
        lines = await client.get(f"{url}/{path}", headers={"Accept": "application/x-ndjson"})
        assert [json.loads(line) for line in lines.text.splitlines()] == listed
        table = await client.get(f"{url}/{path}", headers={"Accept": "text/csv"})
        rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
        assert len(rows) == len(listed)
        if path == "fills":
            # A venue's word that a spreadsheet would run is defused, an amount is left alone.
            assert {row["trade_id"] for row in rows} == {"'=t1", "t2"}
            assert rows[0]["price"] == listed[0]["price"]
            assert rows[0]["maker"] == "false"
        else:
            assert [json.loads(row["data"]) for row in rows] == [e["entry"]["data"] for e in listed]
            assert [row["hash"] for row in rows] == [e["hash"] for e in listed]
    lines = await client.get(f"{url}/journal?after=3", headers={"Accept": "application/x-ndjson"})
    assert json.loads(lines.text.splitlines()[0])["seq"] == 4


async def test_counter_accounts_are_for_administrators(
    traded: Any, site: Any, problem: Any
) -> None:
    client, url = traded
    problem(await client.get("/v1/ledger/counters"), 403, "insufficient_scope")
    balances = (await client.get(f"{url}/balances")).json()["balances"]
    async with site.client("root") as root:
        page = (await root.get("/v1/ledger/counters")).json()
        CounterPage.model_validate(page)
        assert [(c["name"], c["asset"]) for c in page["items"]] == [
            ("venue:paper", "BTC"),
            ("venue:paper", "USDT"),
        ]
        for counter, balance in zip(page["items"], balances, strict=True):
            assert Decimal(counter["amount"]) + Decimal(balance["total"]) == 0
        first = await root.get("/v1/ledger/counters?limit=1")
        second = await root.get(first.links["next"]["url"])
        assert first.json()["items"] + second.json()["items"] == page["items"]
        assert second.json()["next"] is None
