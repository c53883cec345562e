"""A deliberately nasty stream server for the SDK: tests say what it does, connection by connection."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

import httpx
from websockets.asyncio.server import ServerConnection

from tbot.client import TBotClient

BTC = "BTC-USDT"
AT = "2026-01-01T00:00:00.000000Z"
ACCOUNT = str(UUID(int=5))


class Peer:
    """The server's end of one connection, past the login."""

    def __init__(self, server: Nasty, socket: ServerConnection) -> None:
        self.server = server
        self.socket = socket
        self.wishes: list[dict[str, Any]] = []

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def hear(self, op: str) -> dict[str, Any]:
        while True:
            message: dict[str, Any] = json.loads(await self.socket.recv())
            if message["op"] == op:
                return message

    async def log_in(self, epoch: str = "e1") -> None:
        await self.say(op="hello", epoch=epoch, limits={})
        message = await self.hear("auth")
        self.server.tokens.append(message["token"])
        await self.say(op="authed", expires_at=AT)

    async def accept(self, number: int = 7, **answer: Any) -> dict[str, Any]:
        """Grant the next subscription; what was wished for."""
        message = await self.hear("sub")
        (wish,) = message["channels"]
        self.wishes.append(wish)
        await self.say(op="subbed", id=message["id"], subs=[{"ch": number, **answer}])
        return dict(wish)

    async def trade(self, seq: int, trade_id: int | None = None, ch: int = 7) -> None:
        await self.say(op="delta", ch=ch, seq=seq, prev=seq - 1, data=trade(trade_id or seq))

    async def close(self, code: int) -> None:
        await self.socket.close(code)


def trade(trade_id: int) -> dict[str, Any]:
    return {"trade_id": trade_id, "price": "1", "quantity": "1", "side": "buy", "at": AT}


def entry(seq: int) -> dict[str, Any]:
    body = {"seq": seq, "at": AT, "kind": "order.accepted", "data": {}, "postings": []}
    return {
        "op": "delta",
        "ch": 7,
        "seq": seq,
        "prev": seq - 1,
        "hash": f"{seq:016x}",
        "data": body,
    }


def snapshot(seq: int) -> dict[str, Any]:
    data = {"account_id": ACCOUNT, "balances": [], "positions": [], "orders": []}
    return {"op": "snap", "ch": 7, "seq": seq, "hash": f"{seq:016x}", "data": data}


type Act = Callable[[Peer], Awaitable[None]]


class Nasty:
    """Plays one act per connection; the last is played again and again."""

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.tokens: list[str] = []
        self.connections = 0
        self.times: list[float] = []
        self.url = ""
        self.logins = 0

    async def handle(self, socket: ServerConnection) -> None:
        self.times.append(time.monotonic())
        act = self.acts[min(self.connections, len(self.acts) - 1)]
        self.connections += 1
        await act(Peer(self, socket))

    def client(self, **credentials: Any) -> TBotClient:
        if credentials:
            return TBotClient(self.url, **credentials)

        def answer(request: httpx.Request) -> httpx.Response:
            self.logins += request.url.path != "/v1/token/revoke"
            pair = {"access_token": f"t{self.logins}", "expires_in": 900, "refresh_token": "r"}
            return httpx.Response(200, json=pair)

        http = httpx.AsyncClient(base_url=self.url, transport=httpx.MockTransport(answer))
        return TBotClient(self.url, username="ann", password="secret", http=http)


class Quick:
    """Delays that tests need not wait for, but can count."""

    waits = 0

    def __init__(self) -> None:
        self.attempts = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        self.attempts += 1
        Quick.waits += 1
        return 0.01

    def reset(self) -> None:
        self.attempts = 0


async def take[T](subscription: AsyncIterator[T], count: int) -> list[T]:
    async with asyncio.timeout(10):
        return [await anext(subscription) for _ in range(count)]


async def forever(peer: Peer) -> None:
    await peer.socket.wait_closed()
