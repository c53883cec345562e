"""uvicorn's HTTP/1.1 protocol with a shorter way for the usual request.

The same steps in fewer calls: a plain target is not parsed, a body that is there is not waited for,
and a request's end does not go through the loop once more. Whatever is unusual takes uvicorn's way.

Entry points: `Http1Protocol`, and `written`, which sends a whole answer at once.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any, Final

from starlette.types import ASGIApp, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_METHODS: Final = {
    name.encode("ascii"): name
    for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}

_TARGET_BYTES: Final = 64
"""Longest target that is remembered."""


def _plain_target(url: bytes) -> tuple[str, bytes, bytes] | None:
    """Path, raw path and query of a request's target; None for one that has to be parsed."""
    if len(url) <= _TARGET_BYTES and b"?" not in url:  # what is asked may be a secret: a ticket
        return _known_target(url)
    return _target(url)


def _target(url: bytes) -> tuple[str, bytes, bytes] | None:
    if (
        not url.startswith(b"/")
        or url.startswith(b"//")
        or not url.isascii()
        or b"%" in url
        or b"#" in url
    ):
        return None
    raw_path, _, query = url.partition(b"?")
    return raw_path.decode("ascii"), raw_path, query


_known_target = lru_cache(4096)(_target)  # the same few are asked for again and again


class Cycle(RequestResponseCycle):
    """One request and its answer.

    A request whose body is there with its head waits for nothing, so what it would wait for is only
    made when somebody asks for it.
    """

    _event: asyncio.Event | None
    _stirred: bool

    def __init__(self, protocol: HttpToolsProtocol, keep_alive: bool) -> None:
        # What uvicorn's sets, from where uvicorn takes it.
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self._event = None
        self._stirred = False
        self.on_response = protocol.on_response_complete
        self.disconnected = False
        self.keep_alive = keep_alive
        self.waiting_for_100_continue = protocol.expect_100_continue
        self.body = bytearray()
        self.more_body = True
        self.response_started = False
        self.response_complete = False
        self.chunked_encoding = None
        self.expected_content_length = 0

    @property
    def message_event(self) -> asyncio.Event:  # type: ignore[override] # only ever read
        """Set when there is news for `receive`."""
        event = self._event
        if event is None:
            event = self._event = asyncio.Event()
            if self._stirred:
                event.set()
        return event

    def stir(self) -> None:
        """There is news for `receive`."""
        self._stirred = True
        if self._event is not None:
            self._event.set()

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is there; it can still be received."""
        if self.more_body or self.disconnected:
            return None
        return bytes(self.body)

    async def run(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        """Answer it, and leave the tasks that a server waits for."""
        ended: Any = None
        try:
            try:
                await app(self.scope, self.receive, self.send)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - uvicorn tells all of them
                ended = _Ended(error)
            if ended is None and self.response_complete:
                self.on_response = _nothing  # it leads back here
            else:  # what is wrong, uvicorn tells, and ends as it does
                await self.run_asgi(ended or _Ended(None))
        finally:
            task: Any = asyncio.current_task()
            tasks.discard(task)


def _nothing() -> None:
    pass


class _Ended:
    """An application that ends at once, as another one did; once."""

    def __init__(self, failed: BaseException | None) -> None:
        self._failed = failed

    async def __call__(self, *_: Any) -> None:
        # An error's traceback leads to all who hold it: nobody may, or it would lead to itself.
        failed, self._failed = self._failed, None
        try:
            if failed is not None:
                raise failed
        finally:
            del failed


class Http1Protocol(HttpToolsProtocol):
    """See the module."""

    def on_headers_complete(self) -> None:
        """A request's head is whole: answer it, or let it wait for those before it."""
        target = _plain_target(self.url)
        method = _METHODS.get(self.parser.get_method())
        if (
            method is None
            or self.limit_concurrency is not None
            or self.config.reset_contextvars
            or self.root_path
            or self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
            or target is None
        ):
            super().on_headers_complete()
            return
        scope: dict[str, Any] = self.scope  # type: ignore[assignment] # uvicorn's own type
        scope["method"] = method
        scope["path"], scope["raw_path"], scope["query_string"] = target
        before = self.cycle
        cycle = self.cycle = Cycle(self, self.parser.should_keep_alive())
        if before is None or before.response_complete:  # type: ignore[redundant-expr]
            self._start_asgi_task(cycle, self.app)
        else:  # the answers to pipelined requests come in order
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def on_body(self, body: bytes) -> None:
        """A part of a request's body."""
        cycle = self.cycle
        if type(cycle) is not Cycle or self.parser.should_upgrade():
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.stir()

    def on_message_complete(self) -> None:
        """A request's last byte."""
        cycle = self.cycle
        if type(cycle) is not Cycle or self.parser.should_upgrade():
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.more_body = False
            cycle.stir()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if type(cycle) is Cycle:
            self.tasks.add(self.loop.create_task(cycle.run(app, self.tasks)))
        else:
            super()._start_asgi_task(cycle, app)


_lines: tuple[list[tuple[bytes, bytes]], bytes] = [], b""


def _always(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The lines of uvicorn's own headers, which it makes anew once a second."""
    global _lines  # noqa: PLW0603 - one server per process
    known, lines = _lines
    if known is not headers:
        lines = b"".join([name + b": " + value + b"\r\n" for name, value in headers])
        _lines = headers, lines
    return lines


def written(
    send: Send,
    status: int,
    headers: list[tuple[bytes, bytes]],
    body: bytes,
    constant: bytes = b"",
) -> bool:
    """Write a whole response to uvicorn's transport at once; False where that cannot be.

    uvicorn checks and writes header by header, which takes a tenth of the time of an order. Here
    only what the request decides is checked: that no header's value ends its line.

    Args:
        constant: Header lines that are written already, each with its end.
    """
    cycle = getattr(send, "__self__", None)
    if (
        not isinstance(cycle, RequestResponseCycle)
        or cycle.disconnected
        or cycle.response_started
        or cycle.flow.write_paused
        or not cycle.keep_alive
        or cycle.access_log
    ):
        return False
    text = b"\r\n".join([name + b": " + value for name, value in headers])
    ends = len(headers) - 1
    if text.count(b"\n") != ends or text.count(b"\r") != ends:
        return False
    cycle.response_started = True
    cycle.response_complete = True
    always = _always(cycle.default_headers)
    transport: Any = cycle.transport
    # Now, and not after what else is to be done in this turn of the loop: when a batch is durable,
    # a hundred answers are, and who has the first one need not wait for the last.
    transport.set_write_buffer_limits(high=0)
    transport.write(b"".join((STATUS_LINE[status], always, text, b"\r\n", constant, b"\r\n", body)))
    transport.set_write_buffer_limits()
    if type(cycle) is Cycle:
        cycle.stir()
    else:
        cycle.message_event.set()
    cycle.on_response()
    return True
