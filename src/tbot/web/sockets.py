"""Where stream frames leave: through uvicorn's transport, or as plain ASGI messages.

`StreamSocket` is the WebSocket class that uvicorn runs (`uvicorn_options`). It answers the
handshake like any; once the application has accepted, it hands the connection over to a `Wire`,
which lives for as long as the connection does. That is what makes a connection cheap: no task
waits for its messages, and what the handshake needed (parsers, headers, scope, the application's
frames) is gone. On another server, or where an extension was negotiated that changes frames,
`AsgiOutput` sends the same frames as messages.

Why not just `close()`: on a peer that does not read, an ASGI close waits for ever, and so does a
closing transport; and a peer that pings without reading grows the write buffer without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from asyncio.transports import BaseTransport
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final, Protocol, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from tbot.core.settings import StreamSettings
from tbot.market.hub import CLOSE_DRAIN
from tbot.market.topics import Batch
from tbot.web.stream_frames import Event, Inbound, Kind, Violation, close_frame

EXTENSION: Final = "tbot.socket"
CLOSE_TIMEOUT_S: Final = 1.0
"""How long a peer has to answer our close frame; then the connection is cut."""
_BUFFER_HIGH_BYTES: Final = 32_768
_BUFFER_LOW_BYTES: Final = 8_192
_NOTSENT_LOWAT: Final = getattr(socket, "TCP_NOTSENT_LOWAT", 25)
_UNSENT_BYTES_MAX: Final = 131_072
"""What the kernel may hold of one connection that it has not sent yet: it takes megabytes else."""
_PING: Final = b"\x89\x00"


def uvicorn_options(settings: StreamSettings) -> dict[str, Any]:
    """The `uvicorn.Config` arguments that the stream needs.

    Compression is off: it costs up to 64 KiB a connection, and shared frames could not be written.
    The hub sends the heartbeats.
    """
    return {
        "ws": StreamSocket,
        "ws_max_size": settings.message_bytes_max,
        "ws_ping_interval": None,
        "ws_per_message_deflate": False,
    }


class Listener(Protocol):
    """Who hears what a `Wire` receives. Neither call may wait."""

    def heard(self, text: str | None, data: bytes = b"") -> None:
        """A message; `text` is None for a binary one."""

    def lost(self) -> None:
        """The peer closed, or is gone: the last call."""


class StreamSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol for the handshake, with a handle in `scope["extensions"]`."""

    def handle_connect(self, event: Request) -> None:
        """Hand the application our handle, unless frames would have to be transformed."""
        super().handle_connect(event)
        if not self.conn.extensions and not self.close_sent:
            extensions = cast("dict[str, Any]", self.scope["extensions"])
            extensions[EXTENSION] = self

    async def send(self, message: Any) -> None:
        """Pass a message of the application on; a refused handshake is an answered one.

        Without this uvicorn logs an error for each of them, and a crowd that comes back to a busy
        server would fill the log.
        """
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True

    def hand_over(self) -> Wire | None:
        """Let a wire take the connection, right after it was accepted.

        The application returns then; the connection goes on without it. Set the wire's listener
        before anything is awaited.

        Returns:
            None when the connection is gone already.
        """
        if self.disconnected or self.close_sent or self.transport.is_closing():
            return None
        del self.scope["extensions"][EXTENSION]  # it would keep us alive until a collection
        transport = self.transport
        wire = Wire(self.loop, transport, self.connections, self.config.ws_max_size)
        wire.ready = self.writable.is_set()
        transport.set_protocol(wire)
        self.connections.discard(self)
        cast("set[Any]", self.connections).add(wire)
        self.transport = cast("asyncio.Transport", _HANDED_OVER)
        if self.read_paused or not self.queue.empty():
            transport.resume_reading()
            wire.close(1002, "a message before the handshake was answered")
        return wire


class _HandedOver:
    """The transport of a `StreamSocket` whose connection is a wire's: nothing to close."""

    def close(self) -> None:
        return None

    def is_closing(self) -> bool:
        return True


_HANDED_OVER: Final = _HandedOver()


class Wire(asyncio.Protocol):
    """One accepted WebSocket connection: an `Output` for the hub, and frames for its listener.

    Attributes:
        ready: Whether the transport's buffer is below its high-water mark and nothing was closed.
        heard_at: Loop time of the last byte.
    """

    __slots__ = (
        "_bytes_max", "_close_timer", "_closed", "_connections", "_inbound", "_loop", "heard_at",
        "listener", "on_ready", "ready", "transport",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        transport: asyncio.Transport,
        connections: set[Any],
        bytes_max: int,
    ) -> None:
        self._loop = loop
        self.transport = transport
        self._connections = connections
        self._bytes_max = bytes_max
        self.heard_at = loop.time()
        self.ready = True
        self.on_ready: Callable[[], None] = _nothing
        self.listener: Listener | None = None
        self._inbound: Inbound | None = None
        self._closed = False
        self._close_timer: asyncio.TimerHandle | None = None
        # Bound what the transport may hold for a peer that does not read.
        transport.set_write_buffer_limits(high=_BUFFER_HIGH_BYTES, low=_BUFFER_LOW_BYTES)
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, _UNSENT_BYTES_MAX)

    # What uvicorn and the transport say

    def shutdown(self) -> None:
        """Uvicorn ends and this connection was not drained: tell it to come back at once."""
        if self._closed:
            self.transport.abort()
        else:
            self.close(CLOSE_DRAIN, "the server is going away")

    def connection_made(self, transport: BaseTransport) -> None:
        """Never called: the connection was made before."""

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is written to."""
        self.ready = False

    def resume_writing(self) -> None:
        """The peer took what it was sent."""
        if not self._closed:
            self.ready = True
            self.on_ready()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._connections.discard(self)
        self._closed = True
        self.ready = False
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        self._let_go()

    def _let_go(self) -> None:
        """Tell the listener the last thing it hears."""
        listener, self.listener = self.listener, None
        self.on_ready = _nothing
        self._inbound = None
        if listener is not None:
            listener.lost()

    def data_received(self, data: bytes) -> None:
        """Any byte is a sign of life."""
        self.heard_at = self._loop.time()
        inbound = self._inbound or Inbound(self._bytes_max)
        violation = None
        try:
            events = inbound.take(data)
        except Violation as error:
            violation, events = error, error.events
        self._inbound = None if inbound.idle else inbound
        for event in events:
            if not self._take(event):
                return
        if violation is not None:
            self._inbound = None
            self.close(violation.code, str(violation))
            self._hang_up()

    def _take(self, event: Event) -> bool:
        """Handle one event; False when nothing after it counts."""
        if event.kind is Kind.CLOSE:
            if not self._closed:
                self._send_close(event.code, "")
            self._hang_up()
            return False
        if self._closed:
            return True  # still waiting for the peer's close frame
        if event.kind is Kind.PING:
            if not self.ready:  # not into a buffer that nobody empties
                self.transport.abort()
                return False
            self.transport.write(bytes((0x8A, len(event.data))) + event.data)
        elif event.kind is not Kind.PONG and self.listener is not None:
            self.listener.heard(event.text if event.kind is Kind.TEXT else None, event.data)
        return True

    def _hang_up(self) -> None:
        """The closing handshake is over: flush what was written, within the time it may take."""
        self.transport.close()
        if self._close_timer is None:
            self._close_timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)
        self._let_go()

    # What the hub says

    def write(self, batch: Batch) -> None:
        """One write, one system call, however many frames."""
        self.transport.write(batch.data)

    def send(self, opcode: Kind, payload: bytes) -> None:
        """Write a single message, for those who have no hub."""
        size = len(payload)
        if size <= 125:
            head = bytes((0x80 | opcode, size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 127)) + size.to_bytes(8, "big")
        if not self._closed:
            self.transport.write(head + payload)

    def ping(self) -> bool:
        """Send a ping, if the peer takes it; its pong, like any byte, moves `heard_at`."""
        if not self.ready:
            return False
        self.transport.write(_PING)
        return True

    def close(self, code: int, reason: str) -> None:
        """Send a close frame if the peer still reads; cut the connection a second later."""
        if not self._closed:
            self._send_close(code, reason)
            if self._close_timer is None:
                self._close_timer = self._loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _send_close(self, code: int, reason: str) -> None:
        if self.ready and not self.transport.is_closing():
            self.transport.write(close_frame(code, reason))
        self._closed = True
        self.ready = False


class AsgiOutput:
    """Sends frames as ASGI messages, one batch at a time, on any server.

    Args:
        send: The connection's ASGI send.
        task: The connection's task; cancelled when the peer does not take the close frame in
            time, since nothing in ASGI cuts a connection.
    """

    __slots__ = ("_closing", "_send", "_sending", "_task", "given_up", "on_ready")

    def __init__(
        self, send: Callable[[dict[str, Any]], Awaitable[None]], task: asyncio.Task[Any]
    ) -> None:
        self._send = send
        self._task = task
        self._sending: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self.on_ready: Callable[[], None] = _nothing
        self.given_up = False

    @property
    def ready(self) -> bool:
        """Whether the last batch was taken."""
        return self._sending is None and self._closing is None

    @property
    def heard_at(self) -> float | None:
        """Unknown here: the server's own keep-alive watches over the peer."""
        return None

    def write(self, batch: Batch) -> None:
        """Begin to send a batch."""
        self._sending = asyncio.create_task(self._deliver(batch))

    async def _deliver(self, batch: Batch) -> None:
        try:
            for frame in batch:
                what = {"bytes": frame.payload} if frame.binary else {"text": frame.text}
                await self._send({"type": "websocket.send", **what})
        except (OSError, RuntimeError):  # the peer is gone; the receiving side hears of it
            return
        finally:
            self._sending = None
        self.on_ready()

    def ping(self) -> bool:
        """Nothing: ASGI cannot ping."""
        return True

    def close(self, code: int, reason: str) -> None:
        """Send a close message once the last batch is out, both within a second."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._end(code, reason))

    async def _end(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                if self._sending is not None:
                    await asyncio.wait({self._sending})
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except TimeoutError:
            self.given_up = True
            if self._sending is not None:
                self._sending.cancel()
            self._task.cancel()
        except (OSError, RuntimeError):
            return


def _nothing() -> None:
    return None


def denial(status: HTTPStatus, detail: str, code: str) -> dict[str, Any]:
    """A problem document for a connection that is refused before it is accepted."""
    return {
        "type": f"urn:tbot:problem:{code}",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "code": code,
    }
