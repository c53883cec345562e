"""One TCP connection: HTTP by httptools, WebSocket by websockets' sans-I/O protocol.

Requests are handled as they arrive, in order, without a task each; frames leave through the outbox.
Overflow policy: when more than `client_bytes_max` wait for a client, its connection is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast
from urllib.parse import parse_qsl, unquote

import httptools
import structlog
from websockets.datastructures import Headers
from websockets.exceptions import WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tbot.core.settings import ExchangeSettings
from tbot.exchange.gate import Gate
from tbot.exchange.hub import Hub, Outbox
from tbot.exchange.rest import Answer, Request, Rest
from tbot.exchange.streams import Listener, names_in
from tbot.exchange.wsapi import Call, Session

_log = structlog.get_logger(__name__)

_HEAD_BYTES_MAX: Final = 32_768
_BODY_BYTES_MAX: Final = 65_536
_MESSAGE_BYTES_MAX: Final = 65_536
_PONG: Final = b""


class House(Protocol):
    """What a connection needs of its server."""

    settings: ExchangeSettings
    gate: Gate
    rest: Rest
    hub: Hub
    outbox: Outbox

    def joined(self, connection: Connection) -> bool:
        """Register a connection; False when there are too many."""

    def left(self, connection: Connection) -> None:
        """Forget a connection."""

    def woken(self) -> None:
        """A client's buffer has drained."""


class Connection(asyncio.Protocol):
    """A client, from its first byte to its last."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._address = ""
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_list: list[tuple[bytes, bytes]] = []
        self._body = b""
        self._head_bytes = 0
        self._closing = False
        self._socket: ServerProtocol | None = None
        self._fragments: list[bytes] = []
        self._fragments_bytes = 0
        self.session: Session | None = None
        self.listener: Listener | None = None
        self._asked_s = 0.0
        self._answered = True
        self.is_stalled = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        peer = self._transport.get_extra_info("peername")
        self._address = peer[0] if isinstance(peer, tuple) else "local"
        if not self._house.joined(self):
            self._transport.abort()

    def connection_lost(self, _exc: Exception | None) -> None:
        """The connection is gone, whoever ended it."""
        self._transport = None
        if self.session is not None:
            self.session.close()
        if self.listener is not None:
            self.listener.close()
        self._house.left(self)

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        if self._socket is not None:
            self._feed_socket(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.drop("bad_http")

    def pause_writing(self) -> None:
        """The client reads slower than we write."""
        self.is_stalled = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self.is_stalled = False
        self._house.woken()

    # Receiver

    def write(self, data: bytes) -> None:
        """Put bytes on the wire, or drop the connection when too much waits already."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() > self._house.settings.client_bytes_max:
            self.drop("slow_client")
            return
        transport.write(data)
        if self._closing:
            transport.close()

    def say(self, data: bytes) -> None:
        """Send bytes through the outbox."""
        self._house.outbox.send(self, data)

    def drop(self, why: str) -> None:
        """End the connection at once."""
        if self._transport is not None and not self._transport.is_closing():
            _log.info("client_dropped", why=why, address=self._address)
            self._transport.abort()

    # HTTP

    def on_message_begin(self) -> None:
        """httptools: a request starts."""
        self._url, self._body, self._head_bytes = b"", b"", 0
        self._headers, self._header_list = {}, []

    def on_url(self, url: bytes) -> None:
        """httptools: a piece of the request target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """httptools: one header."""
        self._count_head(len(name) + len(value))
        self._headers[name.lower()] = value
        self._header_list.append((name, value))

    def _count_head(self, size_bytes: int) -> None:
        self._head_bytes += size_bytes
        if self._head_bytes > _HEAD_BYTES_MAX:
            raise httptools.HttpParserError("head too large")

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the body."""
        if len(self._body) + len(body) > _BODY_BYTES_MAX:
            raise httptools.HttpParserError("body too large")
        self._body += body

    def on_message_complete(self) -> None:
        """httptools: the request is whole."""
        if self._headers.get(b"upgrade", b"").lower() == b"websocket":
            return  # HttpParserUpgrade follows
        path, _, query = self._url.partition(b"?")
        request = Request(
            method=self._parser.get_method().decode(),
            path=unquote(path.decode("latin-1")),
            query=query,
            headers=self._headers,
            body=self._body,
            address=self._address,
            keep_alive=self._parser.should_keep_alive(),
        )
        rest = self._house.rest
        fault, delay_s = rest.delay_before_s(request)

        def answer() -> None:
            self._closing = self._closing or not request.keep_alive
            self._deliver(rest.handle(request, fault))

        self._after(delay_s, answer)

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        if delay_s > 0:
            self._loop.call_later(delay_s, act)
        else:
            act()

    def _deliver(self, answer: Answer) -> None:
        if answer.drop:
            self.drop("fault")
            return
        self._after(answer.delay_s, lambda: self.say(answer.data))

    # WebSocket

    def _upgrade(self, rest: bytes) -> None:
        if self._headers.get(b"upgrade", b"").lower() != b"websocket":
            self._closing = True  # answered as plain HTTP; what follows is another protocol
            self.say(b"")
            return
        protocol = ServerProtocol()
        headers = Headers()
        for name, value in self._header_list:
            headers[name.decode("latin-1")] = value.decode("latin-1")
        target = self._url.decode("latin-1")
        response = protocol.accept(Handshake(target, headers))
        path, _, query = target.partition("?")
        options = dict(parse_qsl(query))
        streams = names_in(unquote(path), options)
        if response.status_code == 101 and streams is None and path != "/ws-api/v3":
            response = protocol.reject(404, "no such stream or socket\n")
        protocol.send_response(response)
        self._socket = protocol
        self._flush_socket()
        if protocol.state is not OPEN:
            self._closing = True
            self.write(b"")
            return
        # httptools has read the handshake, so a protocol that starts after it takes over.
        self._socket = ServerProtocol(state=OPEN, max_size=_MESSAGE_BYTES_MAX)
        house = self._house
        self._asked_s = self._loop.time()
        if path == "/ws-api/v3":
            told = options.get("returnRateLimits", "true") != "false"
            self.session = Session(house.gate, house.hub, self, self._address, told)
        else:
            assert streams is not None
            rate = house.settings.stream_messages_per_s_max
            self.listener = Listener(house.hub, self, streams[0], streams[1], rate)
        if rest:
            self._feed_socket(rest)

    def _feed_socket(self, data: bytes) -> None:
        socket = self._socket
        assert socket is not None
        try:
            socket.receive_data(data)
        except (WebSocketException, EOFError):
            self.drop("bad_websocket")
            return
        for event in socket.events_received():
            if isinstance(event, Frame):
                self._on_frame(event)
        self._flush_socket()
        if socket.close_expected() and self._transport is not None:
            self._transport.close()

    def _flush_socket(self) -> None:
        assert self._socket is not None
        for data in self._socket.data_to_send():
            if data:
                self.say(data)

    def _on_frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            if frame.fin and not self._fragments:
                self._on_text(bytes(frame.data))
                return
            self._fragments.append(bytes(frame.data))
            self._fragments_bytes += len(frame.data)
            if self._fragments_bytes > _MESSAGE_BYTES_MAX:
                self.drop("message_too_large")
            elif frame.fin:
                whole = b"".join(self._fragments)
                self._fragments, self._fragments_bytes = [], 0
                self._on_text(whole)
        elif frame.opcode is Opcode.PONG:
            self._answered = True
        elif self.listener is not None and not self.listener.allow():
            self.drop("too_many_messages")

    def _on_text(self, text: bytes) -> None:
        if self.listener is not None:
            if not self.listener.allow():
                self.drop("too_many_messages")
                return
            self.say(self.listener.handle(text))
            return
        session = self.session
        assert session is not None
        call = session.parse(text)
        if isinstance(call, Answer):
            self._deliver(call)
            return
        self._run(session, call)

    def _run(self, session: Session, call: Call) -> None:
        fault = call.fault
        if fault is not None and fault.kind == "delay_before":
            self._loop.call_later(
                fault.delay_ms / 1000, lambda: self._deliver(session.handle(call))
            )
            return
        self._deliver(session.handle(call))

    def keep_alive(self, now_s: float) -> None:
        """Ping when it is time; drop a client that has not answered one for too long."""
        if self._socket is None or self._socket.state is not OPEN:
            return
        settings = self._house.settings
        if not self._answered and now_s - self._asked_s > settings.ping_timeout_s:
            self.drop("no_pong")
        elif self._answered and now_s - self._asked_s >= settings.ping_interval_s:
            self._asked_s, self._answered = now_s, False
            self._socket.send_ping(_PONG)
            self._flush_socket()

    def close(self) -> None:
        """The server stops: say goodbye and end."""
        if self._socket is not None and self._socket.state is OPEN:
            self._socket.send_close(1001, "server stops")
            for data in self._socket.data_to_send():
                if data:
                    self.write(data)
        if self._transport is not None:
            self._transport.close()
