"""Our messages have the fields, with the JSON types, of independently collected Binance vectors."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

# Fields of the vectors that belong to features we do not have, or that newer documents dropped.
ABSENT = {
    "exchangeInfo": {"permissions", "allowAmend", "sors"},
    "event executionReport": set(),
    "order.status": {
        "trailingDelta", "trailingTime", "strategyId", "strategyType", "preventedMatchId",
        "preventedQuantity",
    },
    "order.cancel": {
        "trailingDelta", "trailingTime", "strategyId", "strategyType", "preventedMatchId",
        "preventedQuantity", "icebergQty", "stopPrice", "time", "updateTime", "isWorking",
        "workingTime",
    },
    "order.test": {"standardCommissionForOrder", "taxCommissionForOrder", "discount"},
    "stream trade": {"b", "a"},  # the real venue dropped order ids from this stream
}  # fmt: skip


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> dict[str, Any]:
    """The answer or event of each vector, by its source name."""
    path = shared_dir / "exchange-fixtures" / "jkorf" / "binance.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"no vectors: {path} is not there")
    found: dict[str, Any] = {}
    with gzip.open(path, "rt") as file:
        for text in file:
            vector = json.loads(text)
            name = vector["source"].removesuffix(".txt")
            if "/Spot/" not in name:
                continue
            if vector["kind"] == "rest":
                found[name] = vector["response"]
            elif vector["kind"] == "ws" and vector["frames"]:
                found[name] = vector["frames"][-1].get("json")
    return found


def kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", list: "list", dict: "object", type(None): "null"}[type(value)]


def compare(ours: Any, theirs: Any, label: str, path: str = "") -> list[str]:
    """What the vector has and we lack, or have with another type."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        problems = []
        for name, value in theirs.items():
            if name in ABSENT.get(label, ()):
                continue
            if name not in ours:
                problems.append(f"{label}: {path}{name} is missing")
            else:
                problems += compare(ours[name], value, label, f"{path}{name}.")
        return problems
    if isinstance(theirs, list) and isinstance(ours, list):
        if not theirs or not ours:
            return []
        if isinstance(theirs[0], list):  # rows by position
            return [
                f"{label}: {path}[{at}]"
                for at, (mine, other) in enumerate(zip(ours[0], theirs[0], strict=False))
                if kind(mine) != kind(other)
            ]
        return compare(ours[0], theirs[0], label, path)
    if "null" in (kind(ours), kind(theirs)) or kind(ours) == kind(theirs):
        return []
    return [f"{label}: {path} is a {kind(ours)}, not a {kind(theirs)}"]


async def test_rest_answers(exchange: Any, vectors: dict[str, Any]) -> None:
    client = exchange.client
    one = {"symbol": "BTCUSDT"}
    resting = {
        **one, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01",
        "price": "50000",
    }  # fmt: skip
    taking = {**one, "side": "SELL", "type": "MARKET", "quantity": "0.01"}
    await traded(client)

    def signed(method: str, path: str, **params: Any) -> Any:
        return client.call(method, path, **params).json()

    ours = {
        "Trading/PlaceOrder": signed("POST", "/api/v3/order", **taking),
        "Trading/GetOpenOrders": [signed("POST", "/api/v3/order", **resting, newClientOrderId="s")]
        and signed("GET", "/api/v3/openOrders"),
        "Trading/GetOrder": signed("GET", "/api/v3/order", **one, origClientOrderId="s"),
        "Trading/GetOrders": signed("GET", "/api/v3/allOrders", **one),
        "Trading/CancelOrder": signed("DELETE", "/api/v3/order", **one, origClientOrderId="s"),
        "Trading/CancelAllOrders": [signed("POST", "/api/v3/order", **resting)]
        and signed("DELETE", "/api/v3/openOrders", **one),
        "Trading/GetUserTrades": signed("GET", "/api/v3/myTrades", **one),
        "Account/GetAccountInfo": signed("GET", "/api/v3/account"),
        "Account/GetCommissionRates": signed("GET", "/api/v3/account/commission", **one),
        "Account/GetOrderRateLimitStatus": signed("GET", "/api/v3/rateLimit/order"),
        "ExchangeData/GetExchangeInfo": client.get("/api/v3/exchangeInfo").json(),
        "ExchangeData/GetBookPrice": client.get("/api/v3/ticker/bookTicker", **one).json(),
        "ExchangeData/GetPrice": client.get("/api/v3/ticker/price", **one).json(),
        "ExchangeData/GetTicker": client.get("/api/v3/ticker/24hr", **one).json(),
        "ExchangeData/GetRecentTrades": client.get("/api/v3/trades", **one).json(),
        "ExchangeData/GetTradeHistory": client.get("/api/v3/historicalTrades", **one).json(),
        "ExchangeData/GetAggregatedTradeHistory": client.get("/api/v3/aggTrades", **one).json(),
        "ExchangeData/GetKlines": client.get("/api/v3/klines", **one, interval="1m").json(),
        "ExchangeData/GetAvgPrice": client.get("/api/v3/avgPrice", **one).json(),
        "ExchangeData/GetServerTime": client.get("/api/v3/time").json(),
    }
    problems = []
    for name, answer in ours.items():
        vector = vectors.get(f"Endpoints/Spot/{name}")
        if vector is not None:
            problems += compare(answer, vector, name)
    assert not problems


async def traded(client: Any) -> None:
    """Wait until there was a public trade."""
    async with asyncio.timeout(30):
        while not client.get("/api/v3/trades", symbol="BTCUSDT").json():
            await asyncio.sleep(0.05)


async def test_socket_answers(exchange: Any, vectors: dict[str, Any]) -> None:
    one = {"symbol": "BTCUSDT"}
    resting = {
        **one, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC", "quantity": "0.01",
        "price": "50000", "newClientOrderId": "w",
    }  # fmt: skip
    calls = {
        "Trading/PlaceOrder": ("order.place", resting),
        "Trading/PlaceTestOrder": ("order.test", resting | {"newClientOrderId": "t"}),
        "Trading/GetOrder": ("order.status", {**one, "origClientOrderId": "w"}),
        "Trading/GetOpenOrders": ("openOrders.status", {}),
        "Trading/CancelOrder": ("order.cancel", {**one, "origClientOrderId": "w"}),
        "Trading/GetUserTrades": ("myTrades", one),
        "Account/GetAccountInfo": ("account.status", {}),
        "Account/GetOrderRateLimits": ("account.rateLimits.orders", {}),
        "ExchangeData/GetExchangeInfo": ("exchangeInfo", {}),
        "ExchangeData/GetOrderBook": ("depth", one),
        "ExchangeData/GetBookTickers": ("ticker.book", {}),
        "ExchangeData/GetRecentTrades": ("trades.recent", one),
        "ExchangeData/GetKlines": ("klines", {**one, "interval": "1m"}),
        "ExchangeData/GetCurrentAvgPrice": ("avgPrice", one),
    }
    problems = []
    async with exchange.client.socket() as ws:
        for name, (method, params) in calls.items():
            answer = await ws.call(method, **params)
            vector = vectors.get(f"Socket/Spot/{name}")
            assert answer["status"] == 200, answer
            if vector is not None:
                problems += compare(answer["result"], vector["result"], method)
                problems += compare(answer["rateLimits"], vector["rateLimits"], method)
    assert not problems


async def test_stream_and_private_messages(exchange: Any, vectors: dict[str, Any]) -> None:
    client = exchange.client
    streams = {
        "AggregatedTrades": "aggTrade", "BookTicker": "bookTicker", "Klines": "kline_1m",
        "MiniTicker": "miniTicker", "PartialBook": "depth5@100ms", "Ticker": "ticker",
        "Trades": "trade",
    }  # fmt: skip
    problems: list[str] = []
    names = {f"btcusdt@{stream}": name for name, stream in streams.items()}
    async with client.streams("/stream?streams=" + "/".join(names)) as raw, asyncio.timeout(60):
        while names:
            frame = json.loads(await raw.recv())
            name = names.pop(frame["stream"], None)
            vector = vectors.get(f"Subscriptions/Spot/ExchangeData/{name}")
            if vector is not None:
                label = f"stream {frame['stream'].split('@')[1]}"
                problems += compare(frame["data"], vector["data"], label)
    async with client.socket() as ws:
        await ws.call("userDataStream.subscribe.signature")
        await ws.call("order.place", symbol="BTCUSDT", side="SELL", type="MARKET", quantity="0.01")
        client.deposit("ADA", "1", id="shape")
        for kind_, name in (
            ("executionReport", "Order"),
            ("outboundAccountPosition", "AccountPosition"),
            ("balanceUpdate", "Balance"),
        ):
            vector = vectors[f"Subscriptions/Spot/Account/{name}"]["event"]
            problems += compare(await ws.event(kind_), vector, f"event {kind_}")
    assert not problems


def test_the_comparison_itself_finds_differences() -> None:
    assert compare({"a": 1}, {"a": "1", "b": 2}, "x") == [
        "x: a. is a number, not a string",
        "x: b is missing",
    ]
    assert compare([[1, "2"]], [["1", "2"]], "x") == ["x: [0]"]
    assert compare({"n": None}, {"n": "BNB"}, "x") == []
