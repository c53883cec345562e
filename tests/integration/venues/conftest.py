"""A nasty fake of Binance Spot: real sockets, and every way an exchange can leave one in doubt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tbot.core.clock import wall_ms
from tbot.core.settings import GatewaySettings
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import HmacSigner

SYMBOL = {
    "symbol": "BTCUSDT",
    "status": "TRADING",
    "baseAsset": "BTC",
    "quoteAsset": "USDT",
    "baseAssetPrecision": 8,
    "quoteAssetPrecision": 8,
    "orderTypes": ["LIMIT", "MARKET"],
    "isSpotTradingAllowed": True,
    "filters": [
        {
            "filterType": "PRICE_FILTER",
            "minPrice": "0.01",
            "maxPrice": "1000000.00",
            "tickSize": "0.01",
        },
        {"filterType": "LOT_SIZE", "minQty": "0.00001", "maxQty": "9000", "stepSize": "0.00001"},
        {"filterType": "NOTIONAL", "minNotional": "5", "maxNotional": "9000000"},
    ],
}


class NastyExchange:
    """Executes placements in its own books and then misbehaves as told.

    Attributes:
        mood: What the next placements meet: `fine`, `silent` (executed, no answer),
            `drop_before`, `drop_after` (execution), `timeout_executed`, `timeout_lost` (-1007),
            `truncated`, `duplicate`, `rate`, `slow_body` and so on.
        orders: client id → how often it was executed.
        requests: Every private request, in the order of arrival.
        skew_ms: Added to the clock it shows and judges by.
    """

    def __init__(self) -> None:
        self.mood = "fine"
        self.orders: dict[str, int] = {}
        self.requests: list[dict[str, Any]] = []
        self.skew_ms = 0
        self.rest: dict[str, tuple[int, str]] = {}
        self.sockets: set[ServerConnection] = set()
        self.market: set[ServerConnection] = set()
        self.subscriptions = 0
        self.paths: list[str] = []
        self._server: Server | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        port = next(iter(self._server.sockets)).getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def start(self, port: int = 0) -> None:
        self._server = await serve(
            self._socket, "127.0.0.1", port, process_request=self._http, compression=None
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def now_ms(self) -> int:
        return wall_ms() + self.skew_ms

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.headers.get("Upgrade"):
            return None
        self.paths.append(request.path)
        path = request.path.partition("?")[0]
        status, body = self.rest.get(path, (404, '{"code":-1100,"msg":"no such path"}'))
        if path not in self.rest:
            if path == "/api/v3/time":
                status, body = 200, json.dumps({"serverTime": self.now_ms()})
            elif path == "/api/v3/exchangeInfo":
                limits = [
                    {"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1}
                    | {"limit": 6000},
                    {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10}
                    | {"limit": 50},
                ]
                status, body = 200, json.dumps({"rateLimits": limits, "symbols": [SYMBOL]})
        headers = Headers({"Content-Type": "application/json", "Connection": "close"})
        headers["Content-Length"] = str(len(body.encode()))
        if status in (418, 429):
            headers["Retry-After"] = "30"
        return Response(status, "Whatever", headers, body.encode())

    async def _socket(self, socket: ServerConnection) -> None:
        assert socket.request is not None
        if socket.request.path.startswith("/stream"):
            self.market.add(socket)
            with suppress(ConnectionClosed):
                await socket.wait_closed()
            self.market.discard(socket)
            return
        self.sockets.add(socket)
        try:
            async for message in socket:
                await self._request(socket, json.loads(message))
        except ConnectionClosed:
            pass
        finally:
            self.sockets.discard(socket)

    async def _request(self, socket: ServerConnection, request: dict[str, Any]) -> None:
        self.requests.append(request)
        params = request["params"]
        if "timestamp" in params:
            age_ms = self.now_ms() - params["timestamp"]
            if age_ms > params["recvWindow"] or age_ms < -1000:
                await self.answer(socket, request, 400, error={"code": -1021, "msg": "Timestamp"})
                return
        method = request["method"]
        if method == "userDataStream.subscribe.signature":
            self.subscriptions += 1
            await self.answer(socket, request, 200, {"subscriptionId": 0})
        elif method == "order.place":
            await self._place(socket, request)
        elif method == "order.status":
            client_id = params["origClientOrderId"]
            if client_id in self.orders:
                await self.answer(socket, request, 200, self.order(client_id))
            else:
                error = {"code": -2013, "msg": "Order does not exist."}
                await self.answer(socket, request, 400, error=error)
        elif method == "order.cancel":
            error = {"code": -2011, "msg": "Unknown order sent."}
            await self.answer(socket, request, 400, error=error)

    def order(self, client_id: str) -> dict[str, Any]:
        return {
            "symbol": "BTCUSDT",
            "orderId": 1 + list(self.orders).index(client_id),
            "clientOrderId": client_id,
            "transactTime": self.now_ms(),
            "executedQty": "0.00000000",
            "cummulativeQuoteQty": "0.00000000",
            "status": "NEW",
            "fills": [],
        }

    async def _place(self, socket: ServerConnection, request: dict[str, Any]) -> None:
        client_id = request["params"]["newClientOrderId"]
        mood = self.mood
        if mood == "drop_before":
            socket.transport.abort()
            return
        if mood in ("timeout_lost", "rate", "orders", "html", "banned", "duplicate"):
            status, error = {
                "timeout_lost": (408, {"code": -1007, "msg": "Timeout waiting for response"}),
                "rate": (429, {"code": -1003, "msg": "Too many requests"}),
                "orders": (429, {"code": -1015, "msg": "Too many new orders"}),
                "banned": (418, {"code": -1003, "msg": "IP banned", "data": {}}),
                "duplicate": (400, {"code": -2010, "msg": "Duplicate order sent."}),
                "html": (503, {}),
            }[mood]
            if status in (418, 429):
                error = error | {"data": {"retryAfter": self.now_ms() + 30_000}}
            await self.answer(socket, request, status, error=error)
            return
        self.orders[client_id] = self.orders.get(client_id, 0) + 1
        if mood == "silent":
            return
        if mood == "drop_after":
            socket.transport.abort()
            return
        if mood == "timeout_executed":
            error = {"code": -1007, "msg": "Timeout waiting for response from backend server."}
            await self.answer(socket, request, 408, error=error)
            return
        if mood == "truncated":
            await socket.send(json.dumps({"id": request["id"], "status": 200})[:-7])
            return
        if mood == "unreadable":
            await self.answer(socket, request, 200, {"orderId": 1})
            return
        await self.answer(socket, request, 200, self.order(client_id))

    async def answer(
        self,
        socket: ServerConnection,
        request: dict[str, Any],
        status: int,
        result: Any = None,
        error: Any = None,
    ) -> None:
        body = {"id": request["id"], "status": status}
        body |= {"result": result} if error is None else {"error": error}
        await socket.send(json.dumps(body))

    async def event(self, event: dict[str, Any]) -> None:
        for socket in list(self.sockets):
            await socket.send(json.dumps({"subscriptionId": 0, "event": event}))

    async def frames(self, *frames: dict[str, Any] | str) -> None:
        for socket in list(self.market):
            for frame in frames:
                await socket.send(frame if isinstance(frame, str) else json.dumps(frame))


@pytest.fixture
async def nasty() -> AsyncIterator[NastyExchange]:
    exchange = NastyExchange()
    await exchange.start()
    yield exchange
    await exchange.stop()


@pytest.fixture
async def venue(nasty: NastyExchange) -> AsyncIterator[BinanceVenue]:
    settings = GatewaySettings(answer_timeout_s=10.5, receive_window_ms=3000)
    made = BinanceVenue("paper", Endpoints.at(nasty.url), HmacSigner("key", "secret"), settings)
    async with asyncio.timeout(10):
        await made.start()
    yield made
    await made.stop()
