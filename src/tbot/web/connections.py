"""HTTP connections: how many there may be, and how long they may take.

uvicorn's own protocol waits for ever for the rest of a request and reads heads of any size. The
one here counts connections, in all and by address, bounds a request's head, and looks a few times a
second for connections that take too long to send a head or a body, to take their answer, or to say
anything at all. One timer looks after all of them, so a request costs nothing more for it.

Once a connection has become a WebSocket it is the stream's, which has bounds of its own.
"""

from __future__ import annotations

import asyncio
from asyncio.transports import BaseTransport
from collections import Counter as Tally
from enum import IntEnum
from typing import Any, Final, cast

import httptools
import structlog
from prometheus_client import Counter, Gauge
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from tbot.auth.throttle import network
from tbot.core.ids import random_hex
from tbot.core.limit_settings import OverloadSettings
from tbot.core.settings import Settings
from tbot.web.http1 import Http1Protocol
from tbot.web.overload import Overload
from tbot.web.peers import Proxies
from tbot.web.problems import Problem
from tbot.web.representation import ALWAYS, DEFAULTS

LOOK_INTERVAL_S: Final = 0.25
_ROOM: Final = 32
"""Part of all connections that is made free when there is no place left: looking for whom to close
takes its time, so it is not done for every newcomer."""

_OPEN: Final = Gauge("tbot_http_connections", "Open HTTP connections.")
_REFUSED: Final = Counter("tbot_http_connections_refused", "Connections refused.", ["why"])
_CLOSED: Final = Counter(
    "tbot_http_connections_closed", "Connections closed before their peer did.", ["why"]
)

_log = structlog.get_logger(__name__)


class _Reading(IntEnum):
    """What is awaited from a connection's peer."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class Watch:
    """The HTTP connections of one process.

    Attributes:
        now_s: Loop time when it looked last.
    """

    def __init__(
        self, settings: OverloadSettings, proxies: Proxies, overload: Overload | None
    ) -> None:
        self.settings = settings
        self.now_s = 0.0
        self._proxies = proxies
        self._overload = overload
        self._connections: set[GuardedProtocol] = set()
        self._addresses: Tally[str] = Tally()
        self._timer: asyncio.TimerHandle | None = None
        self._no_room_until_s = 0.0

    def arrive(self, connection: GuardedProtocol, address: str | None) -> Problem | None:
        """Count a new connection; why there is no place for it, if so."""
        if self._timer is None:
            self._look(connection.loop, connection.loop.time())
        where = None
        if address is not None and not self._proxies.trusts(address):
            where = network(address)
            if self._addresses[where] >= self.settings.connections_per_address_max:
                _REFUSED.labels("address").inc()
                return Problem(
                    "too_many_clients", "too many from your address", headers={"Retry-After": "1"}
                )
        if len(self._connections) >= self.settings.connections_max and not self._make_room():
            _REFUSED.labels("full").inc()
            return Problem(
                "overloaded", "as many connections as there may be", headers={"Retry-After": "2"}
            )
        self._connections.add(connection)
        _OPEN.set(len(self._connections))
        connection.where = where
        if where is not None:
            self._addresses[where] += 1
        return None

    def leave(self, connection: GuardedProtocol) -> None:
        """A connection is gone, or a WebSocket now."""
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        _OPEN.set(len(self._connections))
        where = connection.where
        if where is not None:
            self._addresses[where] -= 1
            if not self._addresses[where]:
                del self._addresses[where]

    def _make_room(self) -> bool:
        """Close those that have been idle for longest; whether there were any."""
        if self.now_s < self._no_room_until_s:
            return False
        idle = [one for one in self._connections if one.idle]
        if not idle:
            self._no_room_until_s = self.now_s + LOOK_INTERVAL_S
            return False
        idle.sort(key=lambda one: one.since_s)
        for one in idle[: max(1, self.settings.connections_max // _ROOM)]:
            one.cut("room")
            self.leave(one)
        return True

    def _look(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        """Close what takes too long; again and again until there is nothing to look at."""
        self.now_s = now_s = loop.time()
        if self._overload is not None:
            self._overload.look(now_s, max(0.0, now_s - due_s))
        begun = self._timer is None
        self._timer = None
        if begun or self._connections or (self._overload and self._overload.under_way):
            # Before anything that could fail.
            again_s = now_s + LOOK_INTERVAL_S
            self._timer = loop.call_at(again_s, self._look, loop, again_s)
        for connection in list(self._connections):
            connection.look(now_s)


class GuardedProtocol(Http1Protocol):
    """uvicorn's HTTP/1.1 protocol within bounds; `guarded` makes the class that is served.

    Attributes:
        where: The address it is counted under; None for a trusted proxy's.
        since_s: Since when (by `Watch.now_s`) what is awaited is awaited, or it is idle.
    """

    watch: Watch
    where: str | None = None
    since_s: float = 0.0
    _reading: _Reading = _Reading.HEAD
    _head_bytes: int = 0
    _blocked_s: float = 0.0
    """Since when the peer takes nothing; 0 when it does."""
    _over: bool = False
    """Nothing more that it sends counts."""

    def connection_made(self, transport: BaseTransport) -> None:
        """Take a connection, if there is a place for it."""
        super().connection_made(cast("asyncio.Transport", transport))
        problem = self.watch.arrive(self, self.client[0] if self.client else None)
        self.since_s = self.watch.now_s
        if problem is not None:
            self._end(problem)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self.watch.leave(self)
        super().connection_lost(exc)

    @property
    def _last_cycle(self) -> RequestResponseCycle | None:
        """The newest request; uvicorn's type does not say that at first there is none."""
        return self.cycle

    @property
    def idle(self) -> bool:
        """Whether it neither sends a request nor waits for an answer."""
        cycle = self._last_cycle
        return (cycle is None or cycle.response_complete) and (
            self._reading is _Reading.NOTHING
            or (self._reading is _Reading.HEAD and not self._head_bytes)
        )

    @property
    def _may_answer(self) -> bool:
        """Whether an answer of ours would be taken for that of the request it is about.

        Answers come in order: while an earlier request is under way, ours would be taken for its
        answer, and who was told that it failed might repeat what was carried out.
        """
        cycle = self._last_cycle
        if cycle is None:
            return True
        if self._reading is _Reading.BODY:  # it is about the newest request
            return not (cycle.response_started or self.pipeline)
        return cycle.response_complete

    # What is received

    def data_received(self, data: bytes) -> None:
        """Parse what came; what cannot be parsed ends the connection."""
        if self._over:
            return
        if self._reading is not _Reading.BODY:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._upgrade()
        except httptools.HttpParserError:
            if not self._over:
                self._end(Problem("bad_request", "this is no HTTP/1.1 request"), "malformed")
            return
        if (
            self._reading is not _Reading.BODY
            and self._head_bytes > self.watch.settings.headers_bytes_max
        ):
            self._end(self._too_large(), "head")

    def _upgrade(self) -> None:
        if self._over:
            return
        if self._should_upgrade():
            self.watch.leave(self)
            self.handle_websocket_upgrade()
        elif self._last_cycle is None:
            self._end(Problem("bad_request", "this cannot be upgraded"), "malformed")

    def on_message_begin(self) -> None:
        """A request's first bytes."""
        self._reading = _Reading.HEAD
        self.since_s = self.watch.now_s
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is whole."""
        if self._head_bytes > self.watch.settings.headers_bytes_max:
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size > self.watch.settings.headers_bytes_max:
                self._end(self._too_large(), "head")
        if self._over:
            return
        self._reading = _Reading.BODY
        self._head_bytes = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        if not self._over:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request's last byte."""
        self._reading = _Reading.NOTHING
        self.since_s = self.watch.now_s
        if not self._over:
            super().on_message_complete()

    def _too_large(self) -> Problem:
        most = self.watch.settings.headers_bytes_max
        return Problem("headers_too_large", f"a request's head has at most {most} bytes")

    # What is sent

    def on_response_complete(self) -> None:
        """An answer is out."""
        # As uvicorn's, but for the timer that it sets for the time until the next request.
        self.server_state.total_requests += 1
        self.since_s = self.watch.now_s
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)

    def pause_writing(self) -> None:
        """The peer takes its answer more slowly than it comes."""
        self._blocked_s = self.watch.now_s
        super().pause_writing()

    def resume_writing(self) -> None:
        """It took it."""
        self._blocked_s = 0.0
        super().resume_writing()

    # Time

    def look(self, now_s: float) -> None:
        """End the connection if its peer takes too long."""
        settings = self.watch.settings
        waited_s = now_s - self.since_s
        if self._over:  # its last answer may be one that nobody reads
            if waited_s > settings.write_timeout_s:
                self.transport.abort()
        elif self._blocked_s and now_s - self._blocked_s > settings.write_timeout_s:
            self.cut("write")
        elif self.idle:
            limit_s = settings.keep_alive_s if self._last_cycle else settings.headers_timeout_s
            if waited_s > limit_s:
                self.cut("idle")
        elif self._reading is _Reading.HEAD and waited_s > settings.headers_timeout_s:
            self._end(Problem("request_timeout", "the request's head is late"), "head_timeout")
        elif self._reading is _Reading.BODY and waited_s > settings.body_timeout_s:
            self._end(Problem("request_timeout", "the request's body is late"), "body_timeout")

    def cut(self, why: str) -> None:
        """Close the connection at once, without a word and with whatever was not sent yet."""
        if not self._over:
            _CLOSED.labels(why).inc()
        self._over = True
        self.transport.abort()

    def _end(self, problem: Problem, why: str | None = None) -> None:
        """Answer with a problem and close, whatever is still to come."""
        self._over = True
        self.since_s = self.watch.now_s
        if self.transport.is_closing():
            return
        if why is not None:
            _CLOSED.labels(why).inc()
        if self._may_answer:
            self.transport.write(_written(problem))
        cycle = self._last_cycle
        if cycle is not None and not cycle.response_complete:
            # The application is not to answer any more: to it, the client is gone.
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()


def _written(problem: Problem) -> bytes:
    """A whole answer, that is the connection's last."""
    request_id = random_hex(12)
    response = problem.response(request_id)
    headers = [
        *response.raw_headers,
        (b"x-request-id", request_id.encode("ascii")),
        (b"connection", b"close"),
        *ALWAYS,
        *DEFAULTS,
    ]
    lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
    return STATUS_LINE[problem.status_code] + lines + b"\r\n" + bytes(response.body)


def guarded(app: ASGIApp, settings: Settings) -> type[GuardedProtocol]:
    """The protocol class for `uvicorn.Config(http=...)`, with the memory of one process.

    Args:
        app: With `app.state.overload`, where it has one.
    """
    overload: Any = getattr(getattr(app, "state", None), "overload", None)
    watch = Watch(settings.overload, Proxies(settings.http), overload)
    return type("Guarded", (GuardedProtocol,), {"watch": watch})
