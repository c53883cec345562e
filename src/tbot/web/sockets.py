"""Where stream frames leave: through uvicorn's transport, or as plain ASGI messages.

`StreamSocket` is the WebSocket class that uvicorn runs (`uvicorn_options`). It lets the stream
write shared frames straight to the transport, hears when the peer takes no more, and can end a
connection whose peer reads nothing. After a connection was accepted, everything that is sent on
it goes through its output. On another server, or where an extension was negotiated that changes
frames, `AsgiOutput` sends the same frames as messages.

Why not just `close()`: on a peer that does not read, an ASGI close waits for ever, and so does a
closing transport; and a peer that pings without reading grows the write buffer without bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.transports import BaseTransport
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState, ProtocolError
from websockets.frames import Frame as WireFrame
from websockets.http11 import Request

from tbot.core.settings import StreamSettings
from tbot.market.hub import CLOSE_DRAIN
from tbot.market.topics import Frame

EXTENSION: Final = "tbot.socket"
CLOSE_TIMEOUT_S: Final = 1.0
"""How long a peer has to answer our close frame; then the connection is cut."""
_BUFFER_HIGH_BYTES: Final = 32_768
_BUFFER_LOW_BYTES: Final = 8_192


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


class StreamSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol with a handle in `scope["extensions"]`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heard_at = self.loop.time()
        self.on_writable: Callable[[], None] | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Bound what the transport may hold for a peer that does not read."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=_BUFFER_HIGH_BYTES, low=_BUFFER_LOW_BYTES)

    def data_received(self, data: bytes) -> None:
        """Any byte is a sign of life."""
        self.heard_at = self.loop.time()
        super().data_received(data)

    def handle_connect(self, event: Request) -> None:
        """Hand the application our handle, unless frames would have to be transformed."""
        super().handle_connect(event)
        if not self.conn.extensions and not self.close_sent:
            extensions = cast("dict[str, Any]", self.scope["extensions"])
            extensions[EXTENSION] = self

    def handle_ping(self) -> None:
        """Answer a ping, but not into a buffer that nobody empties."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()

    def handle_pong(self, event: WireFrame) -> None:
        """Nothing: `data_received` has noted the sign of life."""

    def resume_writing(self) -> None:
        """The peer took what it was sent."""
        super().resume_writing()
        if self.on_writable is not None and not self.close_sent:
            self.on_writable()

    def shutdown(self) -> None:
        """The server ends and this connection was not drained: tell it to come back at once."""
        if self.close_sent:
            self.transport.abort()
        elif self.handshake_complete and not self.disconnected:
            self.end(CLOSE_DRAIN, "the server is going away")
        else:
            super().shutdown()

    def end(self, code: int, reason: str) -> None:
        """Send a close frame if the peer still reads; cut the connection a second later."""
        if self.disconnected:
            return
        if not self.close_sent:
            self.close_sent = True
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
            if self.writable.is_set() and not self.transport.is_closing():
                with contextlib.suppress(InvalidState, ProtocolError):
                    self.conn.send_close(code, reason)
                    self.transport.write(b"".join(self.conn.data_to_send()))
            if self.read_paused:  # the peer's close frame must be read
                self.read_paused = False
                self.transport.resume_reading()
        if self.close_timer is None:
            self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)


class SocketOutput:
    """Writes shared frames to the transport of a `StreamSocket`."""

    __slots__ = ("_socket", "on_ready")

    def __init__(self, socket: StreamSocket) -> None:
        self._socket = socket
        self.on_ready: Callable[[], None] = _nothing
        socket.on_writable = self._writable

    def _writable(self) -> None:
        self.on_ready()

    @property
    def ready(self) -> bool:
        """Whether the transport's buffer is below its high-water mark."""
        socket = self._socket
        return socket.writable.is_set() and not (socket.close_sent or socket.disconnected)

    @property
    def heard_at(self) -> float | None:
        """When the last byte came."""
        return self._socket.heard_at

    def write(self, frames: Sequence[Frame]) -> None:
        """One write, one system call, however many frames."""
        transport = self._socket.transport
        if not transport.is_closing():
            if len(frames) == 1:
                transport.write(frames[0].framed)
            else:
                transport.write(b"".join([frame.framed for frame in frames]))

    def ping(self) -> None:
        """Send a ping; its pong, like any byte, moves `heard_at`."""
        socket = self._socket
        if self.ready and not socket.transport.is_closing():
            with contextlib.suppress(InvalidState):
                socket.conn.send_ping(b"")
                socket.transport.write(b"".join(socket.conn.data_to_send()))

    def close(self, code: int, reason: str) -> None:
        """See `StreamSocket.end`."""
        self._socket.end(code, reason)


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

    def write(self, frames: Sequence[Frame]) -> None:
        """Begin to send a batch."""
        self._sending = asyncio.create_task(self._deliver(list(frames)))

    async def _deliver(self, frames: list[Frame]) -> None:
        try:
            for frame in frames:
                await self._send({"type": "websocket.send", "text": frame.text})
        except (OSError, RuntimeError):  # the peer is gone; the receiving side hears of it
            return
        finally:
            self._sending = None
        self.on_ready()

    def ping(self) -> None:
        """Nothing: ASGI cannot ping."""

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
