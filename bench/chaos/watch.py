"""Subscribers of the accounts' private streams, across every fault and both API processes."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import websockets

from .clients import Pulse, Token

HASH_BYTES = 8
SUB = 1
"""The id of the one thing that is asked."""
TOKEN_OVER = (4001, 4003, 4103)


class Watcher:
    """Follows one account's stream and keeps what it was given.

    Attributes:
        first: The entry after which it began.
        hashes: The first bytes of each entry's hash, one after the other.
        faults: What a subscriber must never see: gaps, repetitions, a resumption refused.
    """

    def __init__(self, token: Token, urls: tuple[str, ...], account: str, pulse: Pulse) -> None:
        self._token = token
        self._urls = urls
        self._pulse = pulse
        self.account = account
        self.first = -1
        self.seq = 0
        self.hash = ""
        self.hashes = bytearray()
        self.faults: list[str] = []
        self.reconnects = 0

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            token = self._token.text
            try:
                await self._follow(random.choice(self._urls), token)
            except (OSError, websockets.WebSocketException, KeyError, ValueError) as error:
                if isinstance(error, websockets.ConnectionClosed) and (
                    error.rcvd is not None and error.rcvd.code in TOKEN_OVER
                ):
                    await self._token.renew(token)
            self.reconnects += 1
            await asyncio.sleep(random.uniform(0.05, 0.3))

    def _refused(self, error: dict[str, Any]) -> None:
        if not error.get("temporary"):
            self.faults.append(f"{self.account} was refused at {self.seq}: {error}")
        raise ConnectionError(str(error))

    async def _follow(self, url: str, token: str) -> None:
        address = url.replace("http", "ws") + "/v1/stream"
        async with websockets.connect(
            address,
            subprotocols=["tbot.v1.json"],  # type: ignore[list-item]
            open_timeout=5,
            close_timeout=1,
            ping_interval=5,
            ping_timeout=5,
        ) as socket:
            await socket.send(json.dumps({"op": "auth", "token": token}))
            channel: dict[str, Any] = {"channel": "account", "account_id": self.account}
            if self.first >= 0:
                channel["resume"] = {"seq": self.seq, "hash": self.hash}
            await socket.send(json.dumps({"op": "sub", "id": SUB, "channels": [channel]}))
            async for raw in socket:
                self._heard(json.loads(raw))

    def _heard(self, message: dict[str, Any]) -> None:
        """Take what was told.

        Raises:
            ConnectionError: The subscription was refused for now; another connection may get it.
        """
        operation = message.get("op")
        if operation == "error":
            # Other errors are a connection's last words: how it ends says what to do.
            if message.get("id") == SUB:
                self._refused(message)
        elif operation == "subbed" and "error" in message["subs"][0]:
            self._refused(message["subs"][0]["error"])
        elif operation == "subbed":
            if self.first >= 0 and not message["subs"][0].get("recovered"):
                self.faults.append(f"{self.account} could not resume at {self.seq}: {message}")
        elif operation == "snap":
            if self.first >= 0:
                self.faults.append(f"{self.account} was reset at {self.seq}")
            self.first = self.seq = message["seq"]
            self.hash = message.get("hash", "")
        elif operation == "delta":
            if message["seq"] != self.seq + 1:
                self.faults.append(f"{self.account}: {message['seq']} after {self.seq}")
            self.seq, self.hash = message["seq"], message["hash"]
            self.hashes += bytes.fromhex(self.hash)[:HASH_BYTES]
            entry = message["data"]
            if entry["kind"] == "order.filled":
                self._pulse.filled(entry["data"]["order"])
