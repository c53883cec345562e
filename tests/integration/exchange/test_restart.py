"""Restarts: an acknowledged command survives `kill -9`, exactly once, in the same session."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from websockets.exceptions import ConnectionClosed

D = Decimal


def order(number: int) -> dict[str, Any]:
    return {
        "symbol": ("BTCUSDT", "ETHUSDT")[number % 2],
        "side": ("BUY", "SELL")[number // 2 % 2],
        "type": "MARKET",
        "quantity": "0.01",
        "newClientOrderId": f"k-{number}",
    }


def resting(number: int) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": "0.001", "price": str(40_000 + number), "newClientOrderId": f"r-{number}",
    }  # fmt: skip


async def flow(client: Any, acknowledged: dict[str, Any], worker: int) -> None:
    """Place orders and remember every answer until the exchange dies."""
    try:
        async with client.socket() as ws:
            number = worker
            while True:
                made = order(number) if number % 3 else resting(number)
                answer = await ws.call("order.place", **made)
                if answer["status"] == 200:
                    acknowledged[made["newClientOrderId"]] = answer["result"]
                number += 4
    except (ConnectionClosed, OSError):
        return


async def test_every_acknowledged_order_survives_kill_9(
    new_exchange: Callable[..., Any],
) -> None:
    exchange = new_exchange().start()
    exchange.client.deposit("USDT", "10000000")
    exchange.client.deposit("BTC", "1000")
    exchange.client.deposit("ETH", "1000")
    session = exchange.client.get("/paper/v1/session").json()["sessionId"]
    acknowledged: dict[str, Any] = {}
    base = 0
    for _ in range(3):
        wanted = len(acknowledged) + 150
        workers = [
            asyncio.create_task(flow(exchange.client, acknowledged, base + k)) for k in range(4)
        ]
        while len(acknowledged) < wanted:
            await asyncio.sleep(0.01)
        exchange.kill()
        await asyncio.gather(*workers)
        base += 100_000
        exchange.start()
        assert exchange.client.get("/paper/v1/session").json()["sessionId"] == session
    client = exchange.client
    kept: dict[str, Any] = {}
    for symbol in ("BTCUSDT", "ETHUSDT"):
        listed = client.call("GET", "/api/v3/allOrders", symbol=symbol, limit=1000, orderId=0)
        for found in listed.json():
            assert found["clientOrderId"] not in kept, "no order twice"
            kept[found["clientOrderId"]] = found
    for client_id, answer in acknowledged.items():
        assert kept[client_id]["orderId"] == answer["orderId"]
        if answer["status"] == "FILLED":
            assert kept[client_id]["cummulativeQuoteQty"] == answer["cummulativeQuoteQty"]
    trades = [
        trade
        for symbol in ("BTCUSDT", "ETHUSDT")
        for trade in client.call(
            "GET", "/api/v3/myTrades", symbol=symbol, limit=1000, fromId=0
        ).json()
    ]
    assert len({(trade["symbol"], trade["id"]) for trade in trades}) == len(trades)
    check_balances(client, kept, trades)


def check_balances(client: Any, kept: dict[str, Any], trades: list[Any]) -> None:
    """Balances are the deposits and every trade, nothing else."""
    expected = {"USDT": D(10_000_000), "BTC": D(1000), "ETH": D(1000)}
    for trade in trades:
        sign = 1 if trade["isBuyer"] else -1
        expected[trade["symbol"].removesuffix("USDT")] += sign * D(trade["qty"])
        expected["USDT"] -= sign * D(trade["quoteQty"])
        expected[trade["commissionAsset"]] -= D(trade["commission"])
    account = client.call("GET", "/api/v3/account").json()
    total = {b["asset"]: D(b["free"]) + D(b["locked"]) for b in account["balances"]}
    assert total == expected
    locked = {b["asset"]: D(b["locked"]) for b in account["balances"]}
    still_open = [o for o in kept.values() if o["status"] in ("NEW", "PARTIALLY_FILLED")]
    assert locked["USDT"] == sum(
        D(o["price"]) * (D(o["origQty"]) - D(o["executedQty"])) for o in still_open
    )


async def test_a_torn_record_is_cut_and_said(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange().start()
    exchange.client.deposit("USDT", "100")
    exchange.kill()
    newest = max(exchange.data_dir.glob("log-*.jsonl"))
    with newest.open("ab") as file:
        file.write(b'0badc0de {"number":99,"at_ms":1,"eff')
    exchange.start()
    assert "torn_record_cut" in exchange.log()
    account = exchange.client.call("GET", "/api/v3/account").json()
    assert account["balances"] == [
        {"asset": "USDT", "free": "100.00000000", "locked": "0.00000000"}
    ]


async def test_restored_orders_are_in_the_published_book_and_still_trade(
    new_exchange: Callable[..., Any],
) -> None:
    exchange = new_exchange().start()
    exchange.client.deposit("USDT", "100000")
    book = exchange.client.get("/api/v3/ticker/bookTicker", symbol="BTCUSDT").json()
    price = str(int(D(book["bidPrice"])) - 600)
    placed = {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": "0.02", "price": price, "newClientOrderId": "stays",
    }  # fmt: skip
    assert exchange.client.call("POST", "/api/v3/order", **placed).status_code == 200
    exchange.kill()
    exchange.start()
    levels = exchange.client.get("/api/v3/depth", symbol="BTCUSDT", limit=5000).json()["bids"]
    assert D(dict(levels)[f"{D(price):.8f}"]) >= D("0.02")
    assert exchange.client.call("POST", "/api/v3/order", **placed).json()["code"] == -2010
    again = exchange.client.call(
        "DELETE", "/api/v3/order", symbol="BTCUSDT", origClientOrderId="stays"
    )
    assert again.json()["status"] == "CANCELED"


async def test_compaction_at_start_keeps_state_and_session(
    new_exchange: Callable[..., Any],
) -> None:
    exchange = new_exchange(TBOT_EXCHANGE__LOG_BYTES_MAX="65536").start()
    exchange.client.deposit("USDT", "1000000")
    async with exchange.client.socket() as ws:
        for number in range(120):
            await ws.call("order.place", **resting(number))
    before = exchange.client.call("GET", "/api/v3/account").json()["balances"]
    session = exchange.client.get("/paper/v1/session").json()["sessionId"]
    assert exchange.stop() == 0
    exchange.start()
    assert list(exchange.data_dir.glob("state-*.json"))
    assert exchange.client.call("GET", "/api/v3/account").json()["balances"] == before
    assert exchange.client.get("/paper/v1/session").json()["sessionId"] == session
    assert len(exchange.client.call("GET", "/api/v3/openOrders").json()) == 120


async def test_compaction_while_running_loses_nothing(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange(
        TBOT_EXCHANGE__LOG_BYTES_MAX="65536", TBOT_EXCHANGE__MARK_INTERVAL_S="0.1"
    ).start()
    exchange.client.deposit("USDT", "1000000")
    placed = 0
    async with exchange.client.socket() as ws, asyncio.timeout(60):
        while exchange.log().count("log_compacted") < 2:
            answer = await ws.call("order.place", **resting(placed))
            assert answer["status"] == 200
            placed += 1
    before = exchange.client.call("GET", "/api/v3/account").json()["balances"]
    exchange.kill()
    assert list(exchange.data_dir.glob("state-*.json"))
    exchange.start()
    assert exchange.client.call("GET", "/api/v3/account").json()["balances"] == before
    assert len(exchange.client.call("GET", "/api/v3/openOrders").json()) == placed


async def test_a_removed_directory_is_another_session(new_exchange: Callable[..., Any]) -> None:
    exchange = new_exchange().start()
    session = exchange.client.get("/paper/v1/session").json()["sessionId"]
    key = exchange.client.key
    exchange.stop()
    for path in exchange.data_dir.glob("log-*"):
        path.unlink()
    exchange.start()
    answer = exchange.client.get("/paper/v1/session").json()["sessionId"]
    assert answer != session
    assert exchange.client.key == key, "keys stay while exchange.json stays"
    exchange.stop()
    shutil.rmtree(exchange.data_dir)
    exchange.start()
    assert exchange.client.key != key
