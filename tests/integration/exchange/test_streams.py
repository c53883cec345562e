"""Market streams: the three ways to subscribe, derived streams, slow and silent clients."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

D = Decimal


async def some(stream: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(await asyncio.wait_for(stream.recv(), 20)) for _ in range(count)]


async def test_three_ways_to_subscribe(exchange: Any) -> None:
    client = exchange.client
    async with client.streams("/ws/btcusdt@depth@100ms") as raw:
        (diff,) = await some(raw, 1)
        assert (diff["e"], diff["s"]) == ("depthUpdate", "BTCUSDT")
    async with client.streams("/stream?streams=btcusdt@depth@100ms/ethusdt@bookTicker") as both:
        frames = await some(both, 10)
        assert {frame["stream"] for frame in frames} <= {
            "btcusdt@depth@100ms", "ethusdt@bookTicker",
        }  # fmt: skip
    async with client.streams("/ws/0") as later:
        ask = {"method": "SUBSCRIBE", "params": ["btcusdt@depth@100ms"], "id": "x"}
        await later.send(json.dumps(ask))
        assert (await some(later, 1))[0] == {"result": None, "id": "x"}
        assert (await some(later, 1))[0]["e"] == "depthUpdate"
        await later.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": 2}))
        await later.send(json.dumps(ask | {"method": "UNSUBSCRIBE", "id": 3}))
        await later.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": 4}))
        answers = {}
        while 4 not in answers:
            (message,) = await some(later, 1)
            if "id" in message:
                answers[message["id"]] = message["result"]
        assert answers == {2: ["btcusdt@depth@100ms"], 3: None, 4: []}
        await later.send(json.dumps({"method": "SUBSCRIBE", "params": ["nonsense"], "id": 5}))
        assert (await some(later, 1))[0]["error"]["code"] == 2
        await later.send("{")
        assert (await some(later, 1))[0]["error"]["code"] == 3
    with pytest.raises(InvalidStatus):
        async with client.streams("/stream?streams=bad"):
            pass
    with pytest.raises(InvalidStatus):
        async with client.streams("/elsewhere"):
            pass


async def test_derived_streams(exchange: Any) -> None:
    names = [
        "btcusdt@depth", "btcusdt@depth5@100ms", "btcusdt@depth20", "btcusdt@aggTrade",
        "btcusdt@kline_1m", "btcusdt@ticker", "btcusdt@miniTicker",
    ]  # fmt: skip
    seen: dict[str, list[Any]] = {}
    async with exchange.client.streams("/stream?streams=" + "/".join(names)) as stream:
        while len(seen) < len(names) or len(seen["btcusdt@depth"]) < 3:
            (frame,) = await some(stream, 1)
            seen.setdefault(frame["stream"], []).append(frame["data"])
    slow = seen["btcusdt@depth"]
    assert all(b["U"] == a["u"] + 1 for a, b in pairwise(slow))
    assert len(seen["btcusdt@depth5@100ms"][0]["bids"]) == 5
    assert seen["btcusdt@aggTrade"][0]["e"] == "aggTrade"
    assert seen["btcusdt@kline_1m"][0]["k"]["i"] == "1m"
    assert seen["btcusdt@ticker"][0]["e"] == "24hrTicker"
    assert seen["btcusdt@miniTicker"][0]["e"] == "24hrMiniTicker"


async def test_users_orders_are_in_the_published_book(exchange: Any) -> None:
    client = exchange.client
    names = ("xrpusdt@depth@100ms", "xrpusdt@bookTicker", "xrpusdt@trade")
    async with client.streams("/stream?streams=" + "/".join(names)) as stream:
        first = client.get("/api/v3/depth", symbol="XRPUSDT", limit=5000).json()
        books = {"b": dict(first["bids"]), "a": dict(first["asks"])}
        last_id = first["lastUpdateId"]
        best = client.get("/api/v3/ticker/bookTicker", symbol="XRPUSDT").json()
        price = f"{D(best['bidPrice']) - D('0.0500'):.8f}"
        order = {
            "symbol": "XRPUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
            "quantity": "123.4", "price": price, "newClientOrderId": "pub",
        }  # fmt: skip
        client.call("POST", "/api/v3/order", **order)
        bought = client.call(
            "POST", "/api/v3/order", symbol="XRPUSDT", side="BUY", type="MARKET", quantity="50"
        ).json()
        client.call("DELETE", "/api/v3/order", symbol="XRPUSDT", origClientOrderId="pub")
        rested = printed = False
        while not (rested and printed and price not in books["b"]):
            (frame,) = await some(stream, 1)
            data = frame["data"]
            if data.get("e") == "trade":
                printed = printed or data["t"] == bought["fills"][0]["tradeId"]
            elif data.get("e") == "depthUpdate" and data["u"] > last_id:
                assert data["U"] <= last_id + 1
                last_id = data["u"]
                for key, levels in books.items():
                    for at, quantity in data[key]:
                        levels[at] = quantity
                        if not D(quantity):
                            del levels[at]
                rested = rested or books["b"].get(price) == "123.40000000"
                assert max(map(D, books["b"])) < min(map(D, books["a"]))
        again = client.get("/api/v3/depth", symbol="XRPUSDT", limit=5000).json()
        while last_id < again["lastUpdateId"]:
            (frame,) = await some(stream, 1)
            data = frame["data"]
            if data.get("e") == "depthUpdate" and data["u"] > last_id:
                last_id = data["u"]
                for key, levels in books.items():
                    for at, quantity in data[key]:
                        levels[at] = quantity
                        if not D(quantity):
                            del levels[at]
        assert books == {"b": dict(again["bids"]), "a": dict(again["asks"])}


async def test_a_client_that_does_not_read_is_dropped(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange(TBOT_EXCHANGE__CLIENT_BYTES_MAX="65536").start()
    port = int(exchange.client.url.rsplit(":", 1)[1])
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(
        b"GET /ws-api/v3 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    ask = b'{"id":1,"method":"depth","params":{"symbol":"BTCUSDT","limit":1000}}'
    async with asyncio.timeout(60):
        while "slow_client" not in exchange.log():
            # A masked text frame; the mask is zero, so the payload is itself.
            writer.write(b"\x81" + bytes([0x80 | len(ask)]) + bytes(4) + ask)
            await asyncio.sleep(0)
    writer.close()
    assert exchange.client.get("/paper/v1/health").status_code == 200


async def test_a_client_that_does_not_answer_pings_is_dropped(
    new_exchange: Callable[..., Any],
) -> None:
    exchange = new_exchange(
        TBOT_EXCHANGE__PING_INTERVAL_S="0.5", TBOT_EXCHANGE__PING_TIMEOUT_S="1"
    ).start()
    port = int(exchange.client.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /ws/0 HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    async with exchange.client.streams("/ws/0") as polite, asyncio.timeout(30):
        with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
            while True:
                await reader.readexactly(1)
        assert "no_pong" in exchange.log()
        pong = await polite.ping()
        await pong
    writer.close()


async def test_too_many_messages_end_a_stream_connection(exchange: Any) -> None:
    async with exchange.client.streams("/ws/0") as stream:
        with pytest.raises(ConnectionClosed):
            for number in range(1000):
                await stream.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
            while True:
                await asyncio.wait_for(stream.recv(), 20)
