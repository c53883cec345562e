"""The WebSocket API: sessions, signed requests, orders, private events."""

from __future__ import annotations

import json
import time
from decimal import Decimal
from typing import Any

D = Decimal


def limit_order(**changes: Any) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT",
        "side": "BUY",
        "type": "LIMIT",
        "timeInForce": "GTC",
        "quantity": "0.01",
        "price": "50000",
    } | changes


def stamped(**params: Any) -> dict[str, Any]:
    return {"timestamp": time.time_ns() // 1_000_000, **params}


async def test_signed_requests_work_without_logging_on(exchange: Any) -> None:
    async with exchange.client.socket() as ws:
        placed = await ws.call("order.place", **limit_order(newClientOrderId="ws-1"))
        assert placed["status"] == 200
        assert placed["result"]["status"] == "NEW"
        assert [e["rateLimitType"] for e in placed["rateLimits"]] == [
            "ORDERS", "ORDERS", "REQUEST_WEIGHT",
        ]  # fmt: skip
        query = {"symbol": "BTCUSDT", "origClientOrderId": "ws-1"}
        assert (await ws.call("order.status", **query))["result"]["status"] == "NEW"
        listed = (await ws.call("openOrders.status", symbol="BTCUSDT"))["result"]
        assert "ws-1" in {o["clientOrderId"] for o in listed}
        again = await ws.call("order.place", **limit_order(newClientOrderId="ws-1"))
        assert (again["status"], again["error"]["code"]) == (400, -2010)
        gone = await ws.call("order.cancel", **query)
        assert gone["result"]["origClientOrderId"] == "ws-1"
        assert (await ws.call("order.cancel", **query))["error"]["code"] == -2011
        missing = await ws.call("order.status", symbol="BTCUSDT", origClientOrderId="no")
        assert missing["error"] == {"code": -2013, "msg": "Order does not exist."}
        assert (await ws.call("account.status"))["result"]["accountType"] == "SPOT"
        assert (await ws.call("myTrades", symbol="BTCUSDT"))["status"] == 200
        assert (await ws.call("order.test", **limit_order()))["result"] == {}


async def test_a_logged_on_session_needs_no_signatures(exchange: Any) -> None:
    client = exchange.client
    async with client.socket() as ws:
        refused = await ws.call("userDataStream.subscribe", _signed=False)
        assert refused["error"]["code"] == -2015
        hmac_key = await ws.call("session.logon")
        assert hmac_key["error"]["code"] == -4056
        on = await ws.call("session.logon", _signed=False, **client.logon())
        assert on["result"]["apiKey"] == client.ed25519_key
        status = await ws.call("session.status", _signed=False)
        assert status["result"]["authorizedSince"] == on["result"]["authorizedSince"]
        placed = await ws.call("order.place", _signed=False, **stamped(**limit_order()))
        assert placed["status"] == 200
        stale = stamped(**limit_order())
        stale["timestamp"] -= 6000
        assert (await ws.call("order.place", _signed=False, **stale))["error"]["code"] == -1021
        bare = await ws.call("order.place", _signed=False, **limit_order())
        assert bare["error"]["code"] == -1102
        every = await ws.call("openOrders.cancelAll", _signed=False, **stamped(symbol="BTCUSDT"))
        assert every["status"] == 200
        off = await ws.call("session.logout", _signed=False)
        assert off["result"]["apiKey"] is None
        after = await ws.call("openOrders.status", _signed=False, **stamped())
        assert (after["status"], after["error"]["code"]) == (401, -2014)


async def test_ids_are_echoed_with_their_type(exchange: Any) -> None:
    async with exchange.client.socket() as ws:
        for number in (7, "7", "a-b", None):
            await ws.raw.send(json.dumps({"id": number, "method": "ping"}))
            answer = json.loads(await ws.raw.recv())
            assert (answer["id"], answer["result"]) == (number, {})
        for bad in ("{", "[]", '{"id":1}', '{"id":[],"method":"ping"}', '"x"'):
            await ws.raw.send(bad)
            assert json.loads(await ws.raw.recv())["error"]["code"] == -1135
        await ws.raw.send('{"id":1,"method":"no.such"}')
        assert json.loads(await ws.raw.recv())["error"]["code"] == -1020
        await ws.raw.send('{"id":1,"method":"time","params":{"returnRateLimits":false}}')
        assert "rateLimits" not in json.loads(await ws.raw.recv())


async def test_market_calls(exchange: Any) -> None:
    async with exchange.client.socket() as ws:
        for method, params in (
            ("time", {}),
            ("exchangeInfo", {"symbol": "BTCUSDT"}),
            ("depth", {"symbol": "BTCUSDT", "limit": 5}),
            ("trades.recent", {"symbol": "BTCUSDT"}),
            ("ticker.book", {"symbol": "BTCUSDT"}),
            ("ticker.price", {}),
            ("ticker.24hr", {"symbols": ["BTCUSDT", "ETHUSDT"]}),
            ("klines", {"symbol": "BTCUSDT", "interval": "1m"}),
            ("avgPrice", {"symbol": "BTCUSDT"}),
        ):
            answer = await ws.call(method, _signed=False, **params)
            assert answer["status"] == 200, answer


async def test_private_events_tell_every_step(exchange: Any) -> None:
    client = exchange.client
    async with client.socket() as ws:
        await ws.call("session.logon", _signed=False, **client.logon())
        subscribed = await ws.call("userDataStream.subscribe", _signed=False)
        assert subscribed["result"] == {"subscriptionId": 0}
        twice = await ws.call("userDataStream.subscribe", _signed=False)
        assert twice["error"]["code"] == -2035
        placed = await ws.call("order.place", **limit_order(newClientOrderId="ev-1"))
        first = await ws.event("executionReport")
        assert (first["x"], first["X"], first["c"], first["i"]) == (
            "NEW", "NEW", "ev-1", placed["result"]["orderId"],
        )  # fmt: skip
        position = await ws.event("outboundAccountPosition")
        assert position["B"][0]["a"] == "USDT" and D(position["B"][0]["l"]) >= D("500")
        await ws.call(
            "order.cancel", symbol="BTCUSDT", origClientOrderId="ev-1", newClientOrderId="kill"
        )
        gone = await ws.event("executionReport")
        assert (gone["x"], gone["X"], gone["c"], gone["C"]) == (
            "CANCELED", "CANCELED", "kill", "ev-1",
        )  # fmt: skip
        market = await ws.call(
            "order.place", symbol="BTCUSDT", side="SELL", type="MARKET", quantity="0.002"
        )
        assert (await ws.event("executionReport"))["x"] == "NEW"
        fills = []
        for fill in market["result"]["fills"]:
            event = await ws.event("executionReport")
            assert (event["x"], event["L"], event["l"], event["t"], event["n"], event["N"]) == (
                "TRADE", fill["price"], fill["qty"], fill["tradeId"], fill["commission"], "USDT",
            )  # fmt: skip
            fills.append(event)
        assert (fills[-1]["X"], fills[-1]["z"]) == ("FILLED", "0.00200000")
        client.deposit("DOGE", "12.5", id="ev-dep")
        funds = await ws.event("balanceUpdate")
        assert (funds["a"], funds["d"]) == ("DOGE", "12.50000000")
        await ws.call("userDataStream.unsubscribe", _signed=False, subscriptionId=0)
        await ws.event("eventStreamTerminated")


async def test_users_meet_and_both_hear_of_it(exchange: Any) -> None:
    client = exchange.client
    async with client.socket() as ws:
        await ws.call("userDataStream.subscribe.signature")
        book = client.get("/api/v3/ticker/bookTicker", symbol="BNBUSDT").json()
        price = str(D(book["bidPrice"]) + D("0.01"))
        maker = {"symbol": "BNBUSDT", "price": price, "quantity": "1"}
        client.deposit("BNB", "5", id="meet")
        first = await ws.call("order.place", **limit_order(**maker, newClientOrderId="m-1"))
        second = await ws.call(
            "order.place", **limit_order(**maker, side="SELL", newClientOrderId="m-2")
        )
        assert first["status"] == second["status"] == 200
        status = (await ws.call("order.status", symbol="BNBUSDT", origClientOrderId="m-1"))[
            "result"
        ]
        assert D(status["executedQty"]) > 0 or second["result"]["status"] == "FILLED"
        if status["status"] == "FILLED" and second["result"]["fills"]:
            trades = (await ws.call("myTrades", symbol="BNBUSDT"))["result"]
            shared = [t["id"] for t in trades if t["orderId"] == status["orderId"]]
            assert shared[0] in {t["tradeId"] for t in second["result"]["fills"]}


async def test_round_trips_are_counted_but_not_timed(exchange: Any) -> None:
    async with exchange.client.socket() as ws:
        ids = set()
        for number in range(200):
            answer = await ws.call(
                "order.place", **limit_order(timeInForce="IOC", newClientOrderId=f"n{number}")
            )
            assert answer["result"]["status"] == "EXPIRED"
            ids.add(answer["result"]["orderId"])
        assert len(ids) == 200
