"""REST over real sockets: shapes, signatures, refusals, limits."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

D = Decimal


def refusal(answer: httpx.Response) -> tuple[int, int]:
    assert set(answer.json()) == {"code", "msg"}, answer.text
    return answer.status_code, answer.json()["code"]


def order(client: Any, **changes: Any) -> httpx.Response:
    fields = {
        "symbol": "BTCUSDT",
        "side": "BUY",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "0.01",
        "price": "50000",
    } | changes
    return client.call("POST", "/api/v3/order", **{k: v for k, v in fields.items() if v})  # type: ignore[no-any-return]


def test_public_calls(exchange: Any) -> None:
    client = exchange.client
    assert client.get("/api/v3/ping").json() == {}
    assert abs(client.get("/api/v3/time").json()["serverTime"] - time.time() * 1000) < 5000
    info = client.get("/api/v3/exchangeInfo").json()
    assert {s["symbol"] for s in info["symbols"]} >= {"BTCUSDT", "ETHUSDT", "DOGEUSDT"}
    kinds = {f["filterType"] for f in info["symbols"][0]["filters"]}
    assert kinds >= {"PRICE_FILTER", "LOT_SIZE", "MARKET_LOT_SIZE", "NOTIONAL", "MAX_NUM_ORDERS"}
    one = client.get("/api/v3/exchangeInfo", symbol="ETHUSDT").json()
    assert [s["symbol"] for s in one["symbols"]] == ["ETHUSDT"]
    two = client.get("/api/v3/exchangeInfo", symbols='["BTCUSDT","ETHUSDT"]').json()
    assert len(two["symbols"]) == 2
    book = client.get("/api/v3/depth", symbol="BTCUSDT", limit=200).json()
    bids, asks = [D(p) for p, _ in book["bids"]], [D(p) for p, _ in book["asks"]]
    assert len(bids) == len(asks) == 200
    assert bids == sorted(bids, reverse=True) and asks == sorted(asks) and bids[0] < asks[0]
    assert len(client.get("/api/v3/ticker/bookTicker").json()) == len(info["symbols"])
    assert client.get("/api/v3/ticker/24hr", symbol="BTCUSDT").json()["symbol"] == "BTCUSDT"
    assert client.get("/api/v3/ticker/price", symbol="BTCUSDT").json()["price"]
    assert client.get("/api/v3/klines", symbol="BTCUSDT", interval="1m").status_code == 200
    assert refusal(client.get("/api/v3/depth", symbol="NOPE")) == (400, -1121)
    assert refusal(client.get("/api/v3/depth")) == (400, -1102)
    assert refusal(client.get("/api/v3/klines", symbol="BTCUSDT", interval="7m")) == (400, -1120)
    assert refusal(client.get("/api/v3/nothing")) == (404, -1020)
    assert client.get("/paper/v1/health").json() == {"status": "ok"}


def test_an_order_from_placement_to_cancel(exchange: Any) -> None:
    client = exchange.client
    placed = order(client, newClientOrderId="life-1").json()
    assert (placed["status"], placed["fills"], placed["orderListId"]) == ("NEW", [], -1)
    query = {"symbol": "BTCUSDT", "origClientOrderId": "life-1"}
    seen = client.call("GET", "/api/v3/order", **query).json()
    assert (seen["orderId"], seen["status"]) == (placed["orderId"], "NEW")
    assert seen["isWorking"] is True
    listed = client.call("GET", "/api/v3/openOrders", symbol="BTCUSDT").json()
    assert placed["orderId"] in {o["orderId"] for o in listed}
    assert refusal(order(client, newClientOrderId="life-1")) == (400, -2010)
    gone = client.call("DELETE", "/api/v3/order", _in_body=True, **query)
    body = gone.json()
    assert (body["status"], body["origClientOrderId"]) == ("CANCELED", "life-1")
    assert body["clientOrderId"] != "life-1"
    assert refusal(client.call("DELETE", "/api/v3/order", **query)) == (400, -2011)
    assert client.call("GET", "/api/v3/order", **query).json()["status"] == "CANCELED"
    missing = {"symbol": "BTCUSDT", "origClientOrderId": "never"}
    assert refusal(client.call("GET", "/api/v3/order", **missing)) == (400, -2013)
    every = client.call("GET", "/api/v3/allOrders", symbol="BTCUSDT").json()
    assert placed["orderId"] in {o["orderId"] for o in every}


def test_a_market_order_fills_and_settles(exchange: Any) -> None:
    client = exchange.client
    before = {
        b["asset"]: D(b["free"]) for b in client.call("GET", "/api/v3/account").json()["balances"]
    }
    filled = client.call(
        "POST", "/api/v3/order", _in_body=True,
        symbol="ETHUSDT", side="BUY", type="MARKET", quoteOrderQty="1000",
    ).json()  # fmt: skip
    assert filled["status"] == "FILLED"
    assert D("999") < D(filled["cummulativeQuoteQty"]) <= D("1000")
    quantity = sum(D(f["qty"]) for f in filled["fills"])
    fee = sum(D(f["commission"]) for f in filled["fills"])
    assert quantity == D(filled["executedQty"]) == D(filled["origQty"])
    assert {f["commissionAsset"] for f in filled["fills"]} == {"ETH"}
    after = {
        b["asset"]: D(b["free"]) for b in client.call("GET", "/api/v3/account").json()["balances"]
    }
    assert after["USDT"] == before["USDT"] - D(filled["cummulativeQuoteQty"])
    assert after["ETH"] == before.get("ETH", D(0)) + quantity - fee
    trades = client.call(
        "GET", "/api/v3/myTrades", symbol="ETHUSDT", orderId=filled["orderId"]
    ).json()
    assert [t["id"] for t in trades] == [f["tradeId"] for f in filled["fills"]]
    assert all(t["isBuyer"] and not t["isMaker"] for t in trades)


def test_own_trades_go_on_from_an_id_whatever_other_symbols_did(exchange: Any) -> None:
    """Trade ids are numbers of their symbol: another symbol's lower ones end nothing."""
    client = exchange.client
    ids: dict[str, list[int]] = {"BTCUSDT": [], "ETHUSDT": []}
    for symbol in ("BTCUSDT", "ETHUSDT", "BTCUSDT", "ETHUSDT"):
        filled = client.call(
            "POST", "/api/v3/order", _in_body=True,
            symbol=symbol, side="BUY", type="MARKET", quoteOrderQty="50",
        ).json()  # fmt: skip
        ids[symbol] += [fill["tradeId"] for fill in filled["fills"]]
    for symbol, expected in ids.items():
        trades = client.call("GET", "/api/v3/myTrades", symbol=symbol, fromId=expected[0]).json()
        assert [trade["id"] for trade in trades] == expected


def test_cancel_all_and_test_orders(exchange: Any) -> None:
    client = exchange.client
    assert client.call(
        "POST", "/api/v3/order/test", symbol="SOLUSDT", side="BUY", type="LIMIT",
        timeInForce="GTC", quantity="1", price="100",
    ).json() == {}  # fmt: skip
    for price in ("100", "101"):
        order(client, symbol="SOLUSDT", quantity="1", price=price)
    gone = client.call("DELETE", "/api/v3/openOrders", symbol="SOLUSDT").json()
    assert [o["status"] for o in gone] == ["CANCELED", "CANCELED"]
    assert refusal(client.call("DELETE", "/api/v3/openOrders", symbol="SOLUSDT")) == (400, -2011)


def test_who_may_call_and_when(exchange: Any) -> None:
    client = exchange.client
    http = httpx.Client(base_url=client.url, trust_env=False)
    now = time.time_ns() // 1_000_000
    query = f"timestamp={now}"
    good = f"{query}&signature={client.sign(query)}"
    key = {"X-MBX-APIKEY": client.key}
    path = "/api/v3/account"
    assert refusal(http.get(f"{path}?{good}")) == (401, -2014)
    assert refusal(http.get(f"{path}?{good}", headers={"X-MBX-APIKEY": "x"})) == (401, -2015)
    assert refusal(http.get(f"{path}?{query}", headers=key)) == (400, -1102)
    assert refusal(http.get(path, headers=key)) == (400, -1102)
    assert refusal(
        http.get(f"{path}?{good[:-1]}0{'1' if good[-1] == '0' else ''}", headers=key)
    ) == (400, -1022)
    assert (
        http.get(f"{path}?{query}&signature={client.sign(query).upper()}", headers=key).status_code
        == 200
    )
    assert refusal(client.call("GET", path, timestamp=now - 6000)) == (400, -1021)
    assert refusal(client.call("GET", path, timestamp=now + 3000)) == (400, -1021)
    assert client.call("GET", path, timestamp=now - 6000, recvWindow=30000).status_code == 200
    http.close()


def test_bad_orders_are_refused_in_the_venues_words(exchange: Any) -> None:
    client = exchange.client
    cases: list[tuple[dict[str, str | None], int]] = [
        ({"symbol": "NOPE"}, -1121),
        ({"side": "HOLD"}, -1117),
        ({"type": "STOP_LOSS"}, -1116),
        ({"timeInForce": "GTX"}, -1115),
        ({"timeInForce": None}, -1102),
        ({"price": None}, -1102),
        ({"quantity": None}, -1102),
        ({"quantity": "abc"}, -1100),
        ({"quantity": "-1"}, -1100),
        ({"quantity": "NaN"}, -1100),
        ({"quantity": "1e3"}, -1100),
        ({"quantity": "0.000000001"}, -1111),
        ({"price": "50000.001"}, -1013),
        ({"price": "10000000"}, -1013),
        ({"price": "1000"}, -1013),
        ({"quantity": "0.00001"}, -1013),
        ({"quantity": "5000"}, -1013),
        ({"quantity": "100"}, -2010),
        ({"newClientOrderId": "a b"}, -1100),
        ({"newClientOrderId": "x" * 37}, -1100),
        ({"quoteOrderQty": "5"}, -1106),
        ({"type": "MARKET", "timeInForce": None}, -1106),
    ]
    for changes, code in cases:
        assert refusal(order(client, **changes)) == (400, code), changes


def test_counters_are_told_and_enforced(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange(TBOT_EXCHANGE__WEIGHT_1M_MAX="100", TBOT_EXCHANGE__ORDERS_10S_MAX="3")
    client = exchange.start().client
    client.deposit("USDT", "100000")
    placed = order(client)
    assert placed.headers["x-mbx-order-count-10s"] == "1"
    codes = [order(client).status_code for _ in range(6)]
    assert 429 in codes, codes
    while True:
        answer = client.get("/api/v3/exchangeInfo")
        if answer.status_code != 200:
            break
        assert int(answer.headers["x-mbx-used-weight-1m"]) <= 120
    assert refusal(answer) == (429, -1003)
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_deposits_count_once(exchange: Any) -> None:
    client = exchange.client

    def deposit(**changes: str) -> httpx.Response:
        fields = {"id": "once", "asset": "XRP", "amount": "5"} | changes
        return client.call("POST", "/paper/v1/deposits", **fields)  # type: ignore[no-any-return]

    assert deposit().json() == {
        "id": "once", "asset": "XRP", "amount": "5.00000000", "free": "5.00000000",
        "locked": "0.00000000", "replayed": False,
    }  # fmt: skip
    again = deposit().json()
    assert (again["free"], again["replayed"]) == ("5.00000000", True)
    assert refusal(deposit(amount="6")) == (400, -1130)
    assert refusal(deposit(id="two", amount="0")) == (400, -1130)
    assert refusal(deposit(id="two", amount="-1")) == (400, -1100)


def test_http_on_the_edge(exchange: Any) -> None:
    base = exchange.client.url
    with httpx.Client(base_url=base, trust_env=False) as http:
        for _ in range(3):
            assert http.get("/api/v3/ping").status_code == 200
        assert http.get("/api/v3/ping", headers={"Connection": "close"}).status_code == 200
        assert http.put("/api/v3/order").status_code == 405
    try:
        answer = httpx.post(f"{base}/api/v3/order", content=b"x" * 100_000, trust_env=False)
    except httpx.HTTPError:
        return
    assert answer.status_code >= 400


def test_starting_badly_says_what_to_do(new_exchange: Callable[..., Any], tmp_path: Path) -> None:
    exchange = new_exchange().start()
    port = exchange.client.url.rsplit(":", 1)[1]

    def start(*options: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tbot.exchange", *options],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr.splitlines()[-1]

    code, line = start("--data-dir", str(tmp_path / "else"), "--port", port)
    assert code == 2 and f"cannot listen on 127.0.0.1:{port}" in line
    code, line = start("--data-dir", str(exchange.data_dir), "--port", "0")
    assert code == 2 and "another paper exchange uses" in line
    code, line = start("--data-dir", str(tmp_path / "e2"), "--replay", str(tmp_path / "no.gz"))
    assert code == 2 and "does not exist" in line


def test_files_are_private_and_the_parent_takes_it_along(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange().start()
    for path in exchange.data_dir.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    kept = json.loads((exchange.data_dir / "exchange.json").read_bytes())
    assert kept["session_id"] == exchange.client.get("/paper/v1/session").json()["sessionId"]
    process = exchange.process
    process.stdin.close()
    assert process.wait(10) == 0
