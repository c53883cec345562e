"""HTTP/1.1, WebSocket frames and events, written by hand: a server that must be able to misbehave.

Nothing but the standard library, so that a client in any language can be run against it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REASONS: Final = {
    200: "OK", 201: "Created", 204: "No Content", 301: "Moved Permanently", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 406: "Not Acceptable",
    409: "Conflict", 422: "Unprocessable Content", 429: "Too Many Requests",
    500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable",
    504: "Gateway Timeout",
}  # fmt: skip


class Gone(Exception):
    """The client closed the connection, or it broke."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head and body."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed; an empty object when it is none."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError:
            return {}


class Wire:
    """One connection.

    Args:
        reader, writer: Of the socket.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.unmasked = 0
        """Frames that came without a mask, which a client must not send."""

    async def request(self) -> Request:
        """The next request on the connection.

        Raises:
            Gone: There is none.
        """
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.rstrip("\r\n").split("\r\n")
            method, target, _ = first.split(" ", 2)
            pairs = (line.partition(":") for line in lines)
            headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
            body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError, ValueError):
            raise Gone from None
        parts = urlsplit(target)
        return Request(method, parts.path, dict(parse_qsl(parts.query)), headers, body)

    async def raw(self, data: bytes) -> None:
        """Write bytes as they are.

        Raises:
            Gone: Nobody takes them.
        """
        if self.writer.is_closing():
            raise Gone
        try:
            self.writer.write(data)
            await self.writer.drain()
        except (OSError, RuntimeError):  # gone, or ended by us
            raise Gone from None

    async def answer(self, status: int, document: Any = None, **headers: str) -> None:
        """A whole HTTP answer; names of headers have underscores for hyphens."""
        body = b"" if document is None else json.dumps(document).encode()
        head = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in head.items()]
        await self.raw("\r\n".join([*lines, "", ""]).encode() + body)

    async def upgrade(self, request: Request, protocol: str | None, wrong: bool = False) -> None:
        """Accept a WebSocket; `wrong` makes the accept key one of another handshake."""
        key = request.headers.get("sec-websocket-key", "").encode() + (b"!" if wrong else b"")
        accept = base64.b64encode(hashlib.sha1(key + _GUID).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: Upgrade"]
        lines.append(f"sec-websocket-accept: {accept}")
        if protocol is not None:
            lines.append(f"sec-websocket-protocol: {protocol}")
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def events(self) -> None:
        """Begin an answer of events, which ends when the connection does."""
        lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream; charset=utf-8"]
        lines += ["cache-control: no-store", "connection: close"]
        await self.raw("\r\n".join([*lines, "", ""]).encode())

    async def hear(self) -> tuple[int, bytes]:
        """The next frame from the client, control frames too.

        Raises:
            Gone: There is none.
        """
        try:
            first, second = await self.reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            if length > 1 << 20:
                raise Gone
            mask = await self.reader.readexactly(4) if second & 0x80 else b""
            self.unmasked += not mask
            data = await self.reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            raise Gone from None
        if mask:
            data = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
        return first & 0x0F, data

    def abort(self) -> None:
        """Cut the connection, without a goodbye."""
        self.writer.transport.abort()

    async def end(self) -> None:
        """Close the connection."""
        with contextlib.suppress(OSError):
            self.writer.close()
            await self.writer.wait_closed()


def frame(kind: int, data: bytes, fin: bool = True, reserved: int = 0, mask: bool = False) -> bytes:
    """A server's frame; `mask` and `reserved` are what it must not have."""
    head = bytes([(0x80 if fin else 0) | reserved << 4 | kind])
    size, flag = len(data), 0x80 if mask else 0
    if size < 126:
        head += bytes([flag | size])
    elif size < 1 << 16:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if mask else b"") + data


def close_frame(code: int | None, reason: str = "") -> bytes:
    """A close frame; None for one without a code."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason.encode())


def text(message: Mapping[str, Any]) -> bytes:
    """A message's bytes in JSON."""
    return json.dumps(message, separators=(",", ":")).encode()
