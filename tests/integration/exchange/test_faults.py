"""The fault knobs do what they say, once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed


def arm(client: Any, kind: str, **options: Any) -> Any:
    answer = client.call("POST", "/paper/v1/faults", kind=kind, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def order(client_id: str) -> dict[str, Any]:
    return {
        "symbol": "BTCUSDT", "side": "BUY", "type": "LIMIT", "timeInForce": "GTC",
        "quantity": "0.01", "price": "50000", "newClientOrderId": client_id,
    }  # fmt: skip


def status(client: Any, client_id: str) -> Any:
    return client.call("GET", "/api/v3/order", symbol="BTCUSDT", origClientOrderId=client_id).json()


@pytest.mark.parametrize(("kind", "executed"), [("drop_before", False), ("drop_after", True)])
async def test_a_lost_connection(exchange: Any, kind: str, executed: bool) -> None:
    client = exchange.client
    arm(client, kind)
    async with client.socket() as ws:
        with pytest.raises(ConnectionClosed):
            await ws.call("order.place", **order(f"ws-{kind}"))
    assert (status(client, f"ws-{kind}").get("status") == "NEW") is executed
    arm(client, kind)
    with pytest.raises(httpx.HTTPError):
        client.call("POST", "/api/v3/order", **order(f"rest-{kind}"))
    assert (status(client, f"rest-{kind}").get("status") == "NEW") is executed
    assert client.call("POST", "/api/v3/order", **order(f"later-{kind}")).status_code == 200


@pytest.mark.parametrize(("kind", "executed"), [("timeout_before", False), ("timeout_after", True)])
async def test_an_answer_that_knows_nothing(exchange: Any, kind: str, executed: bool) -> None:
    client = exchange.client
    arm(client, kind, count=2)
    async with client.socket() as ws:
        answer = await ws.call("order.place", **order(f"ws-{kind}"))
        assert (answer["status"], answer["error"]["code"]) == (504, -1007)
    rest = client.call("POST", "/api/v3/order", **order(f"rest-{kind}"))
    assert (rest.status_code, rest.json()["code"]) == (504, -1007)
    for name in ("ws", "rest"):
        assert (status(client, f"{name}-{kind}").get("status") == "NEW") is executed


async def test_false_absence_and_throttling(exchange: Any) -> None:
    client = exchange.client
    client.call("POST", "/api/v3/order", **order("there"))
    arm(client, "not_found", count=2)
    assert [status(client, "there").get("code") for _ in range(3)] == [-2013, -2013, None]
    arm(client, "rate_limited")
    answer = client.call("POST", "/api/v3/order", **order("limited"))
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert status(client, "limited")["code"] == -2013


async def test_delays(exchange: Any) -> None:
    client = exchange.client
    arm(client, "delay_after", delay_ms=60_000)
    async with client.socket() as ws:
        waiting = asyncio.create_task(ws.call("order.place", **order("slow-answer")))
        async with client.socket() as other:
            while "error" in await other.call(
                "order.status", symbol="BTCUSDT", origClientOrderId="slow-answer"
            ):
                await asyncio.sleep(0.01)
        assert not waiting.done(), "executed, but not answered yet"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    arm(client, "delay_before", delay_ms=50)
    async with client.socket() as ws:
        assert (await ws.call("order.place", **order("slow-start")))["status"] == 200


async def test_a_dropped_user_stream(exchange: Any) -> None:
    client = exchange.client
    async with client.socket() as ws:
        await ws.call("userDataStream.subscribe.signature")
        assert client.call("POST", "/paper/v1/faults", kind="drop_user_streams").json() == {
            "dropped": 1
        }
        with pytest.raises(ConnectionClosed):
            await ws.event("executionReport")


async def test_knobs_are_listed_cleared_and_absent_without_the_setting(
    exchange: Any, new_exchange: Callable[..., Any]
) -> None:
    client = exchange.client
    assert arm(client, "delay_after", count=3, delay_ms=5) == [
        {"kind": "delay_after", "count": 3, "delay_ms": 5}
    ]
    assert client.call("DELETE", "/paper/v1/faults").json() == []
    assert client.call("POST", "/paper/v1/faults", kind="burn").status_code == 400
    assert client.get("/paper/v1/faults").status_code == 401
    plain = new_exchange().start().client
    assert plain.call("POST", "/paper/v1/faults", kind="drop_before").status_code == 404
