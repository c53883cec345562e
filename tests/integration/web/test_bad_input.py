"""Bad input: each gets a precise problem document, and nothing changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99.50",
}
NOBODY = "0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10"

# What is changed in a good order, the code of the problem, and the member it points at.
MEMBERS: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"symbol": "DOGE-USDT"}, 422, "instrument_unknown", None),
    ({"symbol": "btc-usdt"}, 422, "validation_failed", "/symbol"),
    ({"symbol": "BTC-USDT\n"}, 422, "validation_failed", "/symbol"),
    ({"symbol": "ВТС-USDT"}, 422, "validation_failed", "/symbol"),
    ({"symbol": "ＢＴＣ-USDT"}, 422, "validation_failed", "/symbol"),
    ({"symbol": "BTC-USDT' OR 1=1 --"}, 422, "validation_failed", "/symbol"),
    ({"symbol": "A" * 21 + "-USDT"}, 422, "validation_failed", "/symbol"),
    ({"symbol": None}, 422, "validation_failed", "/symbol"),
    ({"symbol": 7}, 422, "validation_failed", "/symbol"),
    ({"side": "hold"}, 422, "validation_failed", "/side"),
    ({"side": "BUY"}, 422, "validation_failed", "/side"),
    ({"type": "stop"}, 422, "validation_failed", "/type"),
    ({"limit_price": "99.505"}, 422, "price_off_tick", None),
    ({"limit_price": "0.001"}, 422, "price_off_tick", None),
    ({"limit_price": "200"}, 422, "price_outside_collar", None),
    ({"limit_price": "1000000.01"}, 422, "price_out_of_range", None),
    ({"quantity": "0.100001"}, 422, "quantity_off_step", None),
    ({"quantity": "9000.00001"}, 422, "quantity_out_of_range", None),
    ({"quantity": "0.00001"}, 422, "notional_out_of_range", None),
    ({"quantity": "8999"}, 422, "max_order_notional", None),
    ({"quantity": "11"}, 422, "insufficient_funds", None),
    ({"quantity": "0"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "-0"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "-1"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "+1"}, 422, "validation_failed", "/quantity"),
    ({"quantity": ".5"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1."}, 422, "validation_failed", "/quantity"),
    ({"quantity": "01"}, 422, "validation_failed", "/quantity"),
    ({"quantity": " 1"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1_000"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1,5"}, 422, "validation_failed", "/quantity"),
    ({"quantity": ""}, 422, "validation_failed", "/quantity"),
    ({"quantity": "NaN"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "sNaN"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "Infinity"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "-Infinity"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1E+999999"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1e3"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "9" * 5000}, 422, "validation_failed", "/quantity"),
    ({"quantity": "9" * 39}, 422, "validation_failed", "/quantity"),
    ({"quantity": "9" * 38}, 422, "validation_failed", "/quantity"),
    ({"quantity": "0." + "1" * 19}, 422, "validation_failed", "/quantity"),
    ({"quantity": "0." + "1" * 60}, 422, "validation_failed", "/quantity"),
    ({"quantity": "１"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "١"}, 422, "validation_failed", "/quantity"),
    ({"quantity": "1\x00"}, 422, "validation_failed", "/quantity"),
    ({"quantity": 0.1}, 422, "validation_failed", "/quantity"),
    ({"quantity": 1}, 422, "validation_failed", "/quantity"),
    ({"quantity": True}, 422, "validation_failed", "/quantity"),
    ({"quantity": ["1"]}, 422, "validation_failed", "/quantity"),
    ({"quantity": {"value": "1"}}, 422, "validation_failed", "/quantity"),
    ({"post_only": "true"}, 422, "validation_failed", "/post_only"),
    ({"post_only": 1}, 422, "validation_failed", "/post_only"),
    ({"time_in_force": "day"}, 422, "validation_failed", "/time_in_force"),
    ({"client_order_id": ""}, 422, "validation_failed", "/client_order_id"),
    ({"client_order_id": "a" * 37}, 422, "validation_failed", "/client_order_id"),
    ({"client_order_id": "a b"}, 422, "validation_failed", "/client_order_id"),
    ({"client_order_id": "a\x00"}, 422, "validation_failed", "/client_order_id"),
    ({"client_order_id": "a\u202e"}, 422, "validation_failed", "/client_order_id"),
    ({"client_order_id": 5}, 422, "validation_failed", "/client_order_id"),
    ({"account_id": NOBODY}, 404, "not_found", None),
    ({"account_id": "1"}, 422, "validation_failed", "/account_id"),
    ({"account_id": "{" + NOBODY + "}"}, 422, "validation_failed", "/account_id"),
    ({"account_id": NOBODY.upper()}, 422, "validation_failed", "/account_id"),
    ({"account_id": None}, 422, "validation_failed", "/account_id"),
    # Mass assignment.
    ({"owner_id": NOBODY}, 422, "validation_failed", "/owner_id"),
    ({"state": "filled"}, 422, "validation_failed", "/state"),
    ({"filled_quantity": "1"}, 422, "validation_failed", "/filled_quantity"),
    ({"a/b~c": 1}, 422, "validation_failed", "/a~1b~0c"),
]


@pytest.fixture
async def order_url(site: Any) -> Any:
    """Ann's client and account, and a check that nothing changed meanwhile."""
    async with site.client("ann") as client:
        account = await site.account(client, USDT="1000")
        before = await site.journal_size()
        yield client, account
        assert await site.journal_size() == before, "a refused request wrote to the journal"
        assert (await client.get("/v1/orders")).json()["items"] == []
        balances = (await client.get(f"/v1/accounts/{account['id']}/balances")).json()["balances"]
        assert balances == [{"asset": "USDT", "total": "1000", "available": "1000", "held": "0"}]


async def test_members_of_an_order(order_url: Any, problem: Any) -> None:
    client, account = order_url
    for change, status, code, pointer in MEMBERS:
        body = {**ORDER, "account_id": account["id"], **change}
        answer = await client.post("/v1/orders", json=body)
        document = problem(answer, status, code)
        if pointer is not None:
            assert [error["pointer"] for error in document["errors"]] == [pointer], change
        assert len(document["detail"]) < 300


async def test_amounts_are_strings_and_it_says_so(order_url: Any, problem: Any) -> None:
    client, account = order_url
    body = {**ORDER, "account_id": account["id"], "quantity": 0.1}
    document = problem(await client.post("/v1/orders", json=body), 422, "validation_failed")
    assert "strings" in document["errors"][0]["detail"]


async def test_every_broken_member_is_listed(order_url: Any, problem: Any) -> None:
    client, account = order_url
    body = {"account_id": account["id"], "symbol": "x", "side": "buy", "extra": 1}
    document = problem(await client.post("/v1/orders", json=body), 422, "validation_failed")
    assert {error["pointer"] for error in document["errors"]} == {"/symbol", "/type", "/extra"}
    many = {f"x{i}": 1 for i in range(3000)}
    document = problem(await client.post("/v1/orders", json=many), 422, "validation_failed")
    assert len(document["errors"]) == 50


BODIES = {
    "cut short": b'{"symbol": "BTC-USDT"',
    "empty": b"",
    "not json": b"symbol=BTC-USDT",
    "single quotes": b"{'symbol': 'BTC-USDT'}",
    "bare NaN": b'{"quantity": NaN}',
    "bare Infinity": b'{"quantity": Infinity}',
    "member twice": b'{"quantity": "1", "quantity": "2"}',
    "deep": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "deep array": b"[" * 60_000,
    "not UTF-8": b'{"symbol": "\xff\xfe"}',
    "byte order mark": b'\xef\xbb\xbf{"symbol": "BTC-USDT"}',
    "endless integer": b'{"quantity": ' + b"9" * 10_000 + b"}",
    "raw control character": b'{"symbol": "BTC\x00USDT"}',
}


async def test_bodies_that_are_not_json(order_url: Any, problem: Any) -> None:
    client, _ = order_url
    headers = {"Content-Type": "application/json"}
    for name, body in BODIES.items():
        answer = await client.post("/v1/orders", content=body, headers=headers)
        if not body:
            problem(answer, 422, "validation_failed")
        else:
            assert problem(answer, 400, "malformed_json")["detail"], name


@pytest.mark.parametrize("body", [b"[]", b"null", b"1", b'"x"', b"1E+999999", b'"\\ud800"', b"{}"])
async def test_json_that_is_no_order(order_url: Any, problem: Any, body: bytes) -> None:
    client, _ = order_url
    answer = await client.post(
        "/v1/orders", content=body, headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, "validation_failed")


async def test_lone_surrogates_anywhere(order_url: Any, problem: Any) -> None:
    client, _account = order_url
    for text in ('{"\\ud800": 1}', '{"client_order_id": "\\udfff"}', '{"symbol": "\\ud83d"}'):
        answer = await client.post(
            "/v1/orders", content=text, headers={"Content-Type": "application/json"}
        )
        problem(answer, 422, "validation_failed")
    answer = await client.post(
        "/v1/accounts", content='{"name": "a\\ud800"}', headers={"Content-Type": "application/json"}
    )
    problem(answer, 422, "validation_failed")


async def test_media_types(order_url: Any, problem: Any) -> None:
    client, account = order_url
    body = json.dumps({**ORDER, "account_id": account["id"]})
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ):
        answer = await client.post("/v1/orders", content=body, headers=headers)
        problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=1001", "limit"),
        ("limit=1e3", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("limit=x", "limit"),
        ("state=done", "state"),
        ("side=hold", "side"),
        ("open=maybe", "open"),
        ("symbol=btc", "symbol"),
        ("symbol=BTC-USDT%00", "symbol"),
        ("account_id=1", "account_id"),
        ("cursor=" + "a" * 600, "cursor"),
    ],
)
async def test_queries(order_url: Any, problem: Any, query: str, parameter: str) -> None:
    client, _ = order_url
    document = problem(await client.get(f"/v1/orders?{query}"), 422, "validation_failed")
    assert [error["parameter"] for error in document["errors"]] == [parameter]


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"name": ""}, "validation_failed", "/name"),
        ({"name": "x" * 65}, "validation_failed", "/name"),
        ({"name": "a\x00b"}, "validation_failed", "/name"),
        ({"name": "a\r\nb"}, "validation_failed", "/name"),
        ({"name": "a\u202eb"}, "validation_failed", "/name"),
        ({"name": "a\u200bb"}, "validation_failed", "/name"),
        ({"name": " a"}, "validation_failed", "/name"),
        ({"name": "a", "venue": "Paper"}, "validation_failed", "/venue"),
        ({"name": "a", "venue": "nowhere"}, "venue_unknown", None),
        ({"name": "a", "owner_id": NOBODY}, "validation_failed", "/owner_id"),
        ({"name": "a", "status": "open"}, "validation_failed", "/status"),
        ({"name": "a", "balance": "1"}, "validation_failed", "/balance"),
        (
            {"name": "a", "starting_balance": {"USDT": "-1"}},
            "validation_failed",
            "/starting_balance/USDT",
        ),
        (
            {"name": "a", "starting_balance": {"USDT": 1}},
            "validation_failed",
            "/starting_balance/USDT",
        ),
        (
            {"name": "a", "starting_balance": {"USDT": "9" * 20}},
            "validation_failed",
            "/starting_balance/USDT",
        ),
        ({"name": "a", "starting_balance": {"NOPE": "1"}}, "asset_unknown", None),
        ({"name": "a", "starting_balance": {"USDT": "0.123456789"}}, "amount_too_precise", None),
        ({"name": "a", "starting_balance": "all"}, "validation_failed", "/starting_balance"),
        (
            {"name": "a", "starting_balance": [{"asset": "USDT", "amount": "0"}]},
            "validation_failed",
            "/starting_balance/0/amount",
        ),
        (
            {"name": "a", "starting_balance": [{"asset": "USDT", "amount": "1"}] * 2},
            "validation_failed",
            "/starting_balance/1/asset",
        ),
        (
            {"name": "a", "starting_balance": {f"A{i}": "1" for i in range(51)}},
            "validation_failed",
            "/starting_balance",
        ),
        (
            {"name": "a", "limits": {"price_collar": "1.5"}},
            "validation_failed",
            "/limits/price_collar",
        ),
        (
            {"name": "a", "limits": {"max_open_orders": -1}},
            "validation_failed",
            "/limits/max_open_orders",
        ),
        (
            {"name": "a", "limits": {"max_open_orders": "1"}},
            "validation_failed",
            "/limits/max_open_orders",
        ),
        ({"name": "a", "limits": {"x": 1}}, "validation_failed", "/limits/x"),
        (
            {"name": "a", "limits": {"allowed_instruments": ["btc"]}},
            "validation_failed",
            "/limits/allowed_instruments/0",
        ),
    ],
)
async def test_accounts(
    site: Any, problem: Any, body: dict[str, Any], code: str, pointer: str | None
) -> None:
    async with site.client("ann") as client:
        document = problem(await client.post("/v1/accounts", json=body), 422, code)
        if pointer is not None:
            assert [error["pointer"] for error in document["errors"]] == [pointer]
        assert await site.journal_size() == 0
        assert site.venue.deposits == {}
