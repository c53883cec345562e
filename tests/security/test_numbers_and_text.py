"""Attacks 27–33: numbers that are none, that are too large, and text that deceives."""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="session")


class Desk:
    """Somebody with money, and a check that a refused request changes nothing."""

    def __init__(self, world: Any, person: Any, account: str, cash: str) -> None:
        self.world = world
        self.http = person.http
        self.account = account
        self.cash = cash

    def order(self, **changes: Any) -> dict[str, Any]:
        return {
            "account_id": self.account,
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "99.00",
            **changes,
        }

    async def entries(self) -> int:
        accounts = [self.account, self.cash]
        query = "SELECT count(*) FROM journal WHERE account_id = ANY($1::uuid[])"
        found: int = await self.world.site.pool.fetchval(query, accounts)
        return found

    async def send(self, text: str | bytes, path: str = "/v1/orders") -> Any:
        headers = {"Content-Type": "application/json"}
        return await self.http.post(path, content=text, headers=headers)


@pytest_asyncio.fixture(loop_scope="session")
async def desk(world: Any) -> Any:
    person = await world.person()
    account = (await world.site.account(person.http, USDT="1000"))["id"]
    cash = (await world.site.cash(person.http, USDT="100"))["id"]
    made = Desk(world, person, account, cash)
    before = await made.entries()
    yield made
    assert await made.entries() == before, "a refused request wrote to the journal"
    assert (await person.http.get("/v1/orders")).json()["items"] == []


async def refuse_amounts(desk: Desk, problem: Any, amounts: tuple[str, ...]) -> None:
    """As a quantity, a price, an amount of money and a limit: 422, and it says which member."""
    for text in amounts:
        for member in ("quantity", "limit_price"):
            answer = await desk.http.post("/v1/orders", json=desk.order(**{member: text}))
            document = problem(answer, 422, "validation_failed")
            assert [error["pointer"] for error in document["errors"]] == [f"/{member}"]
            assert len(answer.content) < 2000, "what was sent is not sent back"
        money = {"account_id": desk.cash, "asset": "USDT", "amount": text}
        problem(await desk.http.post("/v1/deposits", json=money), 422, "validation_failed")
        money["destination"] = "DE00"
        problem(await desk.http.post("/v1/withdrawals", json=money), 422, "validation_failed")


async def test_a27_negative_zero_and_minus_zero(desk: Desk, problem: Any) -> None:
    await refuse_amounts(desk, problem, ("-1", "-0.1", "0", "-0", "0.0", "-0.0", "+1", "--1"))
    transfer = {"source_account_id": desk.cash, "target_account_id": desk.account}
    for amount in ("-1", "0", "-0"):
        body = {**transfer, "asset": "USDT", "amount": amount}
        problem(await desk.http.post("/v1/transfers", json=body), 422, "validation_failed")


async def test_a28_nan_and_infinity(desk: Desk, problem: Any) -> None:
    await refuse_amounts(desk, problem, ("NaN", "sNaN", "nan", "Infinity", "-Infinity", "inf"))
    for bare in ("NaN", "Infinity", "-Infinity", "nan"):
        text = json.dumps(desk.order(quantity="Q")).replace('"Q"', bare)
        problem(await desk.send(text), 400, "malformed_json")


async def test_a29_exponents_thousands_of_digits_and_excess_scale(
    desk: Desk, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await refuse_amounts(
        desk, problem,
        ("1E+999999", "1e3", "1E-999999", "9" * 5000, "0." + "1" * 5000, "9" * 39, "0x10", "1_000"),
    )  # fmt: skip
    for text, code in (("0.100001", "quantity_off_step"), ("0.123456789", "quantity_off_step")):
        answer = await desk.http.post("/v1/orders", json=desk.order(quantity=text))
        problem(answer, 422, code)
    answer = await desk.http.post("/v1/orders", json=desk.order(limit_price="99.505"))
    problem(answer, 422, "price_off_tick")
    money = {"account_id": desk.cash, "asset": "USDT", "amount": "0.123456789"}
    problem(await desk.http.post("/v1/deposits", json=money), 422, "amount_too_precise")
    # As bare numbers: never parsed into a float that is a little off, and no huge integer is made.
    for bare in ("0.1", "1", "1E+999999", "1e400"):
        text = json.dumps(desk.order(quantity="Q")).replace('"Q"', bare)
        assert (await desk.send(text)).status_code in (400, 422)
    text = json.dumps(desk.order(quantity="Q")).replace('"Q"', "9" * 100_000)
    problem(await desk.send(text), 400, "malformed_json")
    # The length is looked at before the digits are.
    from tbot.core import money as core_money
    from tbot.web import fields

    parsed: list[str] = []
    real = vars(core_money)["Decimal"]

    class Counting(real):  # type: ignore[misc, valid-type]
        def __new__(cls, value: Any = "0", *more: Any) -> Any:
            parsed.append(str(value)[:20])
            return real(value, *more)

    for where in (core_money, fields):
        monkeypatch.setattr(where, "Decimal", Counting)
    answer = await desk.http.post("/v1/orders", json=desk.order(quantity="9" * 5000))
    problem(answer, 422, "validation_failed")
    await desk.http.post("/v1/orders", json=desk.order(quantity="0.12345", side="none"))
    assert "0.12345" in parsed, "this is where texts become numbers"
    assert not any(text.startswith("9999999999") for text in parsed)


async def test_a30_products_that_overflow(desk: Desk, problem: Any) -> None:
    for quantity, price in (
        ("999999999999999999", "999999999999999999"),
        ("999999999999999999.123456789012345678", "999999999999999999.123456789012345678"),
        ("9" * 38, "9" * 38),
        ("8999", "999999.99"),
        ("0.000000000000000001", "0.000000000000000001"),
    ):
        body = desk.order(quantity=quantity, limit_price=price)
        answer = await desk.http.post("/v1/orders", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    market = desk.order(type="market", quantity=None, limit_price=None)
    market = {name: value for name, value in market.items() if value is not None}
    answer = await desk.http.post("/v1/orders", json={**market, "quote_amount": "9" * 18})
    assert answer.status_code == 422, answer.text
    money = {"account_id": desk.cash, "asset": "USDT", "amount": "9" * 38}
    assert (await desk.http.post("/v1/deposits", json=money)).status_code == 422


async def test_a31_text_that_deceives(desk: Desk, problem: Any) -> None:
    symbols = (
        "BTC-USDT\x00", "BTC\x00-USDT", "ＢＴＣ-USDT", "ВТС-USDT", "BTC\u200b-USDT", "BTC-USDT\n",
        "\u202eTDSU-CTB", "btc-usdt", "BTC‐USDT",
    )  # fmt: skip
    for symbol in symbols:
        answer = await desk.http.post("/v1/orders", json=desk.order(symbol=symbol))
        problem(answer, 422, "validation_failed")
    await refuse_amounts(desk, problem, ("１", "١", "1\x00", "1\u200b", "²", "1٫5"))
    for text in (
        "a\x00b",
        "a\r\nb",
        "a\u202eb",
        "a\u2066b",
        "a\u200bb",
        " a",
        "a\x1b[31mb",
        "\ufeffa",
    ):
        answer = await desk.http.post("/v1/accounts", json={"name": text})
        problem(answer, 422, "validation_failed")
        answer = await desk.http.post("/v1/orders", json=desk.order(client_order_id=text))
        problem(answer, 422, "validation_failed")
    for raw in ('{"name": "a\\ud800"}', '{"name": "\\udfff\\ud800"}', '{"\\ud800": 1}'):
        problem(await desk.send(raw, "/v1/accounts"), 422, "validation_failed")
    problem(await desk.send(b'{"name": "\xff"}', "/v1/accounts"), 400, "malformed_json")
    # Two ways to compose é are one name, as it is shown.
    answer = await desk.http.post("/v1/accounts", json={"name": "cafe\u0301"})
    assert answer.json()["name"] == "caf\u00e9"


async def test_a32_sql_where_text_is_expected(desk: Desk, problem: Any) -> None:
    injections = (
        "' OR '1'='1", "1; DROP TABLE orders; --", "x' UNION SELECT password_hash FROM users --",
        "created_at DESC; SELECT pg_sleep(10)", "\\'; --", "$1", "%27%20OR%201=1",
    )  # fmt: skip
    for text in injections:
        for params in (
            {"state": text}, {"symbol": text}, {"side": text}, {"open": text}, {"limit": text},
            {"account_id": text}, {"cursor": text.ljust(30)}, {"since": text}, {"sort": text},
        ):  # fmt: skip
            answer = await desk.http.get("/v1/orders", params=params)
            unknown = set(params) & {"sort", "since"}
            assert answer.status_code in ((200, 400, 422) if unknown else (400, 422)), params
            if answer.status_code == 200:
                assert answer.json()["items"] == [], "ignored, as whatever is not documented"
        answer = await desk.http.post("/v1/orders", json=desk.order(symbol=text))
        problem(answer, 422, "validation_failed")
        answer = await desk.http.get(f"/v1/orders/{text.replace('/', '')}")
        problem(answer, 404, "not_found")
    login = {"username": "' OR 1=1 --", "password": "' OR 1=1 --"}
    problem(await desk.world.client().post("/v1/token", data=login), 401, "invalid_credentials")
    assert await desk.world.site.pool.fetchval("SELECT count(*) FROM orders") is not None


async def test_a33_markup_is_inert(desk: Desk) -> None:
    name = "<script>alert(1)</script>"
    made = await desk.http.post("/v1/accounts", json={"name": name})
    assert made.status_code == 201
    for answer in (
        made,
        await desk.http.get(f"/v1/accounts/{made.json()['id']}"),
        await desk.http.get("/v1/<script>alert(1)</script>"),
        await desk.http.get("/v1/orders", params={"symbol": name}),
    ):
        assert answer.headers["content-type"] in ("application/json", "application/problem+json")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert made.json()["name"] == name, "kept as it is: text, which is escaped where it is shown"
    docs = await desk.http.get("/docs")
    policy = docs.headers["content-security-policy"]
    assert "script-src 'self'" in policy and "unsafe-inline" not in policy.split("style-src")[0]
