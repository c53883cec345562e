"""Clients of private streams who come back: they lose the connection, and resume where they were.

Each does what the SDK does: full jitter with its bounds, at least what `Retry-After` says, and the
place of the last entry (sequence and hash prefix). None of them forgives anything: a number that
is skipped, told twice, or a resumption that is refused is a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
from fanout.world import frame, handshake

from tbot.client.backoff import FullJitter

JITTER_S: Final = (0.5, 20.0)
"""First and largest bound of the SDK's connections, and here of its subscriptions."""
WISH_JITTER_S: Final = (0.05, 5.0)
CONNECT_TIMEOUT_S: Final = 30.0
PREFIX_BYTES: Final = 8


class _Message(msgspec.Struct):
    op: str
    seq: int = 0
    prev: int = -1
    hash: str = ""
    code: str = ""
    temporary: bool = False
    retry_after_ms: int = 0
    subs: list[dict[str, Any]] = []


_decode: Final = msgspec.json.Decoder(_Message).decode


@dataclass
class Crowd:
    """What all of them share.

    Attributes:
        port: Of the server.
        back: One time (monotonic) for each resumption since `lost_all`.
        first_there_s: When the server first shook hands again.
    """

    port: int
    faults: list[str] = field(default_factory=list)
    back: list[float] = field(default_factory=list)
    first_there_s: float = 0.0
    begun: int = 0
    deltas: int = 0
    refused: int = 0

    def lost_all(self) -> None:
        """Count resumptions anew, from a moment at which everybody loses the connection."""
        self.back.clear()
        self.first_there_s = 0.0


class Watcher:
    """One client: follows one account, for as long as it is told to.

    Attributes:
        first: The entry after which it began; -1 before that.
        seq: The last entry, and `hash` its prefix.
        prefixes: Of the hashes of all entries that it was told.
        live: Whether it is subscribed now.
    """

    def __init__(self, crowd: Crowd, address: str, token: str, account: str) -> None:
        self._crowd = crowd
        self._address = address
        self._token = token
        self.account = account
        self.first = -1
        self.seq = 0
        self.hash = ""
        self.prefixes = bytearray()
        self.resumed = 0
        self.live = False
        self.retry_after_s = 0.0
        self._again = FullJitter(*WISH_JITTER_S)
        self._connection: _Connection | None = None

    async def run(self) -> None:
        """Until cancelled."""
        backoff = FullJitter(*JITTER_S)
        loop = asyncio.get_running_loop()
        while True:
            connection = self._connection = _Connection(self)
            self.retry_after_s = 0.0
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await loop.create_connection(
                        lambda connection=connection: connection,
                        "127.0.0.1",
                        self._crowd.port,
                        local_addr=(self._address, 0),
                    )
                try:
                    await connection.lost
                finally:
                    self._connection = None
                    connection.cut()
            if self.live:
                self.live = False
                backoff.reset()
                self._again.reset()
            await asyncio.sleep(backoff.next_s(self.retry_after_s))

    def hello(self) -> bytes:
        """What it says when the handshake is answered."""
        login = {"op": "auth", "token": self._token}
        return frame(json.dumps(login).encode()) + self.wish()

    def wish(self) -> bytes:
        """Its subscription, from where it is."""
        channel: dict[str, Any] = {"channel": "account", "account_id": self.account}
        if self.first >= 0:
            channel["resume"] = {"seq": self.seq, "hash": self.hash}
        return frame(json.dumps({"op": "sub", "channels": [channel]}).encode())

    def there(self) -> None:
        """The handshake was answered."""
        self._crowd.first_there_s = self._crowd.first_there_s or time.monotonic()

    def refused(self, after_s: float) -> None:
        """The server wants it to come back later."""
        self._crowd.refused += 1
        self.retry_after_s = after_s

    def heard(self, payload: bytes) -> None:
        """A message of the server."""
        message = _decode(payload)
        match message.op:
            case "delta":
                if message.seq != self.seq + 1 or message.prev != self.seq:
                    self._fault(f"{message.seq} after {self.seq}")
                self.seq, self.hash = message.seq, message.hash
                self.prefixes += bytes.fromhex(message.hash)[:PREFIX_BYTES]
                self._crowd.deltas += 1
            case "subbed":
                if (error := message.subs[0].get("error")) is not None:
                    self._not_now(error["code"], error["temporary"], error.get("retry_after_ms", 0))
                elif self.first >= 0:
                    if message.subs[0].get("recovered") is not True:
                        self._fault(f"not resumed at {self.seq}: {message.subs}")
                    self.resumed += 1
                    self.live = True
                    self._crowd.back.append(time.monotonic())
            case "snap":
                if self.first >= 0:
                    self._fault(f"a new beginning at {message.seq}, it was at {self.seq}")
                self.first = self.seq = message.seq
                self.hash = message.hash
                self.live = True
                self._crowd.begun += 1
            case "gap":
                self._fault(f"a gap at {message.seq}")
            case "error":
                self._not_now(message.code, message.temporary, message.retry_after_ms)

    def _not_now(self, code: str, temporary: bool, after_ms: int) -> None:
        """The wish was not granted: wish again in a moment, if that may help."""
        if not temporary:
            self._fault(f"error {code}")
            return
        self._crowd.refused += 1
        delay_s = self._again.next_s(after_ms / 1000)
        asyncio.get_running_loop().call_later(delay_s, self._wish_again, self._connection)

    def _wish_again(self, connection: _Connection | None) -> None:
        if connection is not None and connection is self._connection:
            connection.send(self.wish())

    def _fault(self, what: str) -> None:
        self._crowd.faults.append(f"{self.account}: {what}")


class _Connection(asyncio.Protocol):
    """One WebSocket connection of a watcher, in bytes: the load must cost little."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._buffer = bytearray()
        self._upgraded = False
        self._transport: asyncio.Transport | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        request = handshake(self._watcher._crowd.port, protocol="tbot.v1.json")
        self._transport.write(request)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, data: bytes) -> None:
        """Say something, if the connection is there."""
        if self._transport is not None:
            self._transport.write(data)

    def cut(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._upgraded and not self._shaken():
            return
        at, buffer = 0, self._buffer
        while len(buffer) - at >= 2:
            length, head = buffer[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(buffer[at + 2 : at + 4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(buffer[at + 2 : at + 10], "big"), 10
            if len(buffer) - at < head + length:
                break
            payload = bytes(buffer[at + head : at + head + length])
            if buffer[at] == 0x81:
                self._watcher.heard(payload)
            elif self._transport is not None and buffer[at] == 0x89:
                self._transport.write(frame(payload, opcode=10))
            elif buffer[at] == 0x88:
                self.cut()
                return
            at += head + length
        del buffer[:at]

    def _shaken(self) -> bool:
        """Whether the handshake is over; a refusal ends the connection."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 or self._transport is None:
            return False
        head = bytes(self._buffer[:end]).lower()
        del self._buffer[: end + 4]
        if not head.startswith(b"http/1.1 101"):
            _, found, after = head.partition(b"\r\nretry-after: ")
            self._watcher.refused(float(after.split(b"\r\n")[0]) if found else 0.0)
            self.cut()
            return False
        self._upgraded = True
        self._watcher.there()
        self._transport.write(self._watcher.hello())
        return True
