"""Clients that write down what they ask for before they ask, and what they were told after.

Their log is fsynced line by line: whatever the server claims later is held against it. Each order
carries a `client_order_id`; an answer that is missing or unclear is asked for again under the same
id, sometimes much later, and sometimes an answered one is repeated too.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import websockets

SYMBOLS = ("BTC-USDT", "ETH-USDT", "SOL-USDT")
RETRY_FOR_S = 60.0


class Log:
    """An append-only list of facts on disk."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self.lines: list[dict[str, Any]] = []

    def write(self, kind: str, **fields: Any) -> None:
        """Append a line and fsync it."""
        line = {"t": kind, **fields}
        self.lines.append(line)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All lines of a kind."""
        return [line for line in self.lines if line["t"] == kind]


class Session:
    """HTTP with a token that is renewed when it is refused."""

    def __init__(self, url: str, credentials: dict[str, Any]) -> None:
        self._credentials = credentials
        self._token = ""
        self.http = httpx.AsyncClient(base_url=url, timeout=30)

    async def login(self) -> str:
        """A fresh access token; waits for the server to come back."""
        while True:
            try:
                answer = await self.http.post(
                    "/v1/token",
                    data={
                        "username": self._credentials["username"],
                        "password": self._credentials["password"],
                    },
                )
                if answer.status_code == 200:
                    self._token = answer.json()["access_token"]
                    return self._token
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request, with one renewal of the token if it is refused."""
        for _ in range(2):
            headers = {"Authorization": f"Bearer {self._token}", **more.pop("headers", {})}
            answer = await self.http.request(method, path, headers=headers, **more)
            if answer.status_code != 401:
                return answer
            await self.login()
        return answer


async def insist(send: Callable[[], Any]) -> httpx.Response | None:
    """Send until there is a clear answer; None when there was none in a minute."""
    until_s = time.monotonic() + RETRY_FOR_S
    while time.monotonic() < until_s:
        try:
            answer: httpx.Response = await send()
            if answer.status_code < 500:
                return answer
        except httpx.TransportError:
            pass
        await asyncio.sleep(random.uniform(0.05, 0.3))
    return None


class Trader:
    """Places and cancels orders on one account until told to stop."""

    def __init__(self, number: int, session: Session, account: str, log: Log, seed: int) -> None:
        self._number = number
        self._session = session
        self._account = account
        self._log = log
        self._random = random.Random(f"{seed}:{number}")
        self._done: list[dict[str, Any]] = []
        self._live: list[str] = []

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`."""
        count = 0
        while not stop.is_set():
            count += 1
            choice = self._random.random()
            if self._live and choice < 0.25:
                await self._cancel(self._live.pop(self._random.randrange(len(self._live))))
            elif self._done and choice < 0.32:
                await self._repeat(self._random.choice(self._done))
            elif self._done and choice < 0.35:
                await self._mutate(self._random.choice(self._done))
            else:
                await self._place(f"w{self._number}-{count}")

    def _order(self, client_order_id: str) -> dict[str, Any]:
        symbol = self._random.choice(SYMBOLS)
        side = self._random.choice(("buy", "sell"))
        order: dict[str, Any] = {
            "account_id": self._account,
            "symbol": symbol,
            "side": side,
            "client_order_id": client_order_id,
        }
        if self._random.random() < 0.5:
            return order | {"type": "market", "quote_amount": str(self._random.randint(10, 40))}
        return order | {"type": "limit", "resting": True}

    async def _place(self, client_order_id: str) -> None:
        order = self._order(client_order_id)
        if order.pop("resting", False):
            priced = await self._priced(order)
            if priced is None:
                return
            order = priced
        self._log.write("ask", **order)
        answer = await insist(lambda: self._session.call("POST", "/v1/orders", json=order))
        self._answered(order, answer)

    def _answered(self, order: dict[str, Any], answer: httpx.Response | None) -> None:
        client_order_id = order["client_order_id"]
        if answer is None:
            self._log.write("unclear", client_order_id=client_order_id)
        elif answer.status_code in (200, 201):
            body = answer.json()
            self._log.write(
                "ack",
                client_order_id=client_order_id,
                id=body["id"],
                account=self._account,
                replayed=answer.status_code == 200,
            )
            self._done.append(order)
            if order["type"] == "limit":
                self._live.append(body["id"])
        else:
            self._log.write(
                "refusal", client_order_id=client_order_id, code=answer.json().get("code")
            )

    async def _priced(self, order: dict[str, Any]) -> dict[str, Any] | None:
        """A limit near the market: some rest, some fill."""
        try:
            answer = await self._session.call("GET", f"/v1/instruments/{order['symbol']}")
            rules = answer.json()
            ticker = (
                await self._session.call("GET", f"/v1/instruments/{order['symbol']}/ticker")
            ).json()
            middle = Decimal(ticker["bid"])
            tick, step = Decimal(rules["tick"]), Decimal(rules["step"])
        except (httpx.TransportError, KeyError, TypeError, ValueError, ArithmeticError):
            await asyncio.sleep(0.1)
            return None
        away = Decimal(self._random.randint(-5, 40)) / 10_000
        price = middle * (1 - away if order["side"] == "buy" else 1 + away)
        price = (price / tick).to_integral_value() * tick
        quantity = (Decimal(self._random.randint(15, 60)) / price / step).to_integral_value() * step
        return order | {"limit_price": f"{price:f}", "quantity": f"{quantity:f}"}

    async def _repeat(self, order: dict[str, Any]) -> None:
        answer = await insist(lambda: self._session.call("POST", "/v1/orders", json=order))
        if answer is not None and answer.status_code in (200, 201):
            self._log.write(
                "ack",
                client_order_id=order["client_order_id"],
                id=answer.json()["id"],
                account=self._account,
                replayed=answer.status_code == 200,
            )

    async def _mutate(self, order: dict[str, Any]) -> None:
        changed = order | {"side": "buy" if order["side"] == "sell" else "sell"}
        answer = await insist(lambda: self._session.call("POST", "/v1/orders", json=changed))
        if answer is not None:
            self._log.write(
                "mutated", client_order_id=order["client_order_id"], status=answer.status_code
            )

    async def _cancel(self, order_id: str) -> None:
        answer = await insist(lambda: self._session.call("DELETE", f"/v1/orders/{order_id}"))
        if answer is not None and answer.status_code in (200, 202):
            self._log.write("cancel_ack", id=order_id)


class Watcher:
    """Follows an account's private stream across every fault, and logs each entry it is given."""

    def __init__(self, session: Session, url: str, account: str, log: Log) -> None:
        self._session = session
        self._url = url.replace("http", "ws") + "/v1/stream"
        self._account = account
        self._log = log
        self.seq = 0
        self.hash = ""
        self.reconnects = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._follow()
            except (OSError, websockets.WebSocketException, TimeoutError, KeyError, ValueError):
                self.reconnects += 1
                await asyncio.sleep(random.uniform(0.05, 0.3))

    async def _follow(self) -> None:
        token = await self._session.login()
        async with websockets.connect(self._url, subprotocols=["tbot.v1.json"]) as socket:  # type: ignore[list-item]
            await socket.send(json.dumps({"op": "auth", "token": token}))
            channel: dict[str, Any] = {"channel": "account", "account_id": self._account}
            if self.seq:
                channel["resume"] = {"seq": self.seq, "hash": self.hash}
            await socket.send(json.dumps({"op": "sub", "id": 1, "channels": [channel]}))
            async for raw in socket:
                message = json.loads(raw)
                operation = message.get("op")
                if operation == "subbed":
                    self._log.write(
                        "subbed", account=self._account, at=self.seq, sub=message["subs"][0]
                    )
                elif operation == "snap":
                    self._log.write("snap", account=self._account, seq=message["seq"])
                    self.seq, self.hash = message["seq"], message.get("hash", "")
                elif operation == "delta":
                    self._log.write(
                        "entry",
                        account=self._account,
                        seq=message["seq"],
                        hash=message["hash"],
                        expected=self.seq + 1,
                    )
                    self.seq, self.hash = message["seq"], message["hash"]
