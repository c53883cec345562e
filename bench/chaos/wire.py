"""HTTP as cheap as it gets: one keep-alive connection, one request at a time, bytes made by hand.

The load generator shares the machine with what it tests, so it must cost next to nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any, cast

REQUEST_TIMEOUT_S = 15.0


class Unsent(Exception):
    """No connection: the server cannot have seen any of the request."""


class Unanswered(Exception):
    """The request was sent, at least in part, and no answer came: anything may have happened."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem document's code; empty when it is none."""
        try:
            return str(self.json().get("code", ""))
        except (ValueError, AttributeError):
            return ""

    @property
    def replayed(self) -> bool:
        """Whether the server says that this is the answer of an earlier request."""
        return self.headers.get(b"idempotent-replayed") == b"true"


class _Channel(asyncio.Protocol):
    """Collects one response at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[Answer] | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[bytes, bytes], int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            first, *rest = bytes(self._buffer[:end]).split(b"\r\n")
            headers = {}
            for line in rest:
                name, _, value = line.partition(b":")
                headers[name.lower()] = value.strip()
            del self._buffer[: end + 4]
            self._head = int(first[9:12]), headers, int(headers.get(b"content-length", b"0"))
        status, headers, length = self._head
        if len(self._buffer) < length:
            return
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        self._head = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(Answer(status, headers, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(Unanswered(repr(exc)))


class Line:
    """One client's connection to one API process; reconnects by itself.

    Args:
        host, port: Of the API.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._head = f"Host: {host}:{port}\r\n".encode()
        self._channel: _Channel | None = None

    async def _connected(self) -> _Channel:
        channel = self._channel
        if channel is None or channel.transport is None or channel.transport.is_closing():
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout(2.0):
                    _, channel = await loop.create_connection(_Channel, self._host, self._port)
            except OSError as error:
                raise Unsent(repr(error)) from error
            self._channel = channel
        return channel

    async def request(
        self,
        method: str,
        path: str,
        token: str,
        body: bytes = b"",
        key: str | None = None,
        hang_up_after_s: float | None = None,
    ) -> Answer:
        """Send a request and wait for its answer.

        Args:
            key: For `Idempotency-Key`.
            hang_up_after_s: Close the connection this long after sending, answered or not.

        Raises:
            Unsent, Unanswered: There is no answer.
        """
        channel = await self._connected()
        if channel.transport is None:
            raise Unsent("closed at once")
        head = f"{method} {path} HTTP/1.1\r\nAuthorization: Bearer {token}\r\n"
        if key is not None:
            head += f"Idempotency-Key: {key}\r\n"
        if body:
            head += "Content-Type: application/json\r\n"
        if body or method != "GET":
            head += f"Content-Length: {len(body)}\r\n"
        channel.answer = asyncio.get_running_loop().create_future()
        channel.transport.write(head.encode() + self._head + b"\r\n" + body)
        timeout_s = REQUEST_TIMEOUT_S if hang_up_after_s is None else hang_up_after_s
        try:
            async with asyncio.timeout(timeout_s):
                return await channel.answer
        except TimeoutError as error:
            self.close()
            raise Unanswered("no answer in time") from error
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Cut the connection, whatever is under way on it."""
        if self._channel is not None and self._channel.transport is not None:
            with contextlib.suppress(RuntimeError):
                self._channel.transport.abort()
        self._channel = None
