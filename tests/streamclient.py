"""A raw client of the stream, in either protocol: what it says and hears are plain dictionaries."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect

PROTOCOLS = ("tbot.v1.json", "tbot.v1.msgpack")


class Client:
    """One connection."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.packed = socket.subprotocol == "tbot.v1.msgpack"

    async def say(self, **message: Any) -> None:
        await self.socket.send(
            msgspec.msgpack.encode(message) if self.packed else json.dumps(message)
        )

    async def hear(self) -> dict[str, Any]:
        raw = await asyncio.wait_for(self.socket.recv(), 10)
        assert isinstance(raw, bytes) == self.packed
        message: dict[str, Any] = (
            msgspec.msgpack.decode(raw) if isinstance(raw, bytes) else json.loads(raw)
        )
        return message

    async def hear_op(self, *ops: str) -> dict[str, Any]:
        """The next message of one of these kinds; others are skipped."""
        while True:
            message = await self.hear()
            if message["op"] in ops:
                return message

    async def hear_answer(self, id: int) -> dict[str, Any]:
        """The next message that answers this one; others are skipped."""
        while True:
            message = await self.hear()
            if message.get("id") == id:
                return message

    async def sub(self, *channels: dict[str, Any], id: int = 1) -> list[dict[str, Any]]:
        await self.say(op="sub", id=id, channels=list(channels))
        subs: list[dict[str, Any]] = (await self.hear_op("subbed"))["subs"]
        return subs

    async def closed(self) -> int | None:
        """Read to the end; the close code."""
        await asyncio.wait_for(self.socket.wait_closed(), 15)
        return self.socket.close_code


def dial(url: str, **options: Any) -> Any:
    """A WebSocket connection to a server's stream, before anything is said."""
    options.setdefault("subprotocols", ["tbot.v1.json"])
    options.setdefault("compression", None)
    options.setdefault("ping_interval", None)
    return connect(f"ws{url[4:]}/v1/stream", **options)
