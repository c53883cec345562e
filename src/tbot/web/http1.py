"""uvicorn's HTTP/1.1 protocol with a shorter way for the usual request.

The same steps in fewer calls: a plain target is not parsed, a body that is there is not waited for,
and a request's end does not go through the loop once more. Whatever is unusual takes uvicorn's way.

Entry points: `Http1Protocol`, and `written`, which sends a whole answer at once.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

from starlette.types import ASGIApp, Send
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

_METHODS: Final = {
    name.encode("ascii"): name
    for name in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
}


class Cycle(RequestResponseCycle):
    """One request and its answer."""

    def __init__(self, protocol: HttpToolsProtocol, keep_alive: bool) -> None:
        # What uvicorn's sets, from where uvicorn takes it.
        self.scope = protocol.scope
        self.transport = protocol.transport
        self.flow = protocol.flow
        self.logger = protocol.logger
        self.access_logger = protocol.access_logger
        self.access_log = protocol.access_log
        self.default_headers = protocol.server_state.default_headers
        self.message_event = asyncio.Event()
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

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it is there; it can still be received."""
        if self.more_body or self.disconnected:
            return None
        return bytes(self.body)

    async def run(self, app: ASGIApp, tasks: set[asyncio.Task[None]]) -> None:
        """Answer it, and leave the tasks that a server waits for."""
        try:
            await self.run_asgi(app)  # type: ignore[arg-type]
        finally:
            tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))


class Http1Protocol(HttpToolsProtocol):
    """See the module."""

    def on_headers_complete(self) -> None:
        """A request's head is whole: answer it, or let it wait for those before it."""
        url = self.url
        method = _METHODS.get(self.parser.get_method())
        if (
            method is None
            or self.limit_concurrency is not None
            or self.config.reset_contextvars
            or self.root_path
            or self.parser.get_http_version() != "1.1"
            or self.parser.should_upgrade()
            or not url.startswith(b"/")
            or url.startswith(b"//")
            or not url.isascii()
            or b"%" in url
            or b"#" in url
        ):
            super().on_headers_complete()
            return
        scope: dict[str, Any] = cast("dict[str, Any]", self.scope)
        raw_path, _, query = url.partition(b"?")
        scope["method"] = method
        scope["path"] = raw_path.decode("ascii")
        scope["raw_path"] = raw_path
        scope["query_string"] = query
        before = self.cycle
        cycle = self.cycle = Cycle(self, self.parser.should_keep_alive())
        if before is None or before.response_complete:  # type: ignore[redundant-expr]
            self._start_asgi_task(cycle, self.app)
        else:  # the answers to pipelined requests come in order
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if type(cycle) is Cycle:
            self.tasks.add(self.loop.create_task(cycle.run(app, self.tasks)))
        else:
            super()._start_asgi_task(cycle, app)


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
    lines = [name + b": " + value for name, value in cycle.default_headers]
    lines += [name + b": " + value for name, value in headers]
    text = b"\r\n".join(lines)
    ends = len(lines) - 1
    if text.count(b"\n") != ends or text.count(b"\r") != ends:
        return False
    cycle.response_started = True
    cycle.response_complete = True
    cycle.transport.write(b"".join((STATUS_LINE[status], text, b"\r\n", constant, b"\r\n", body)))
    cycle.message_event.set()
    cycle.on_response()
    return True
