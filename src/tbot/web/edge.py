"""The outermost layer of every HTTP request, as plain ASGI: one pass for all that concerns all.

On the way in it names the request (its id, its trace), bounds its body, takes HEAD for a GET
without its body and answers OPTIONS. On the way out it gives the answer the form that was asked for
and the headers that every answer has (`tbot.web.representation`), turns what nobody caught into a
plain 500, counts, and writes the access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tbot.core import trace as traces
from tbot.core.errors import QuotaExceeded, Unavailable
from tbot.core.ids import random_hex
from tbot.core.log import heard
from tbot.core.settings import HttpSettings
from tbot.core.trace import Trace
from tbot.web import metrics
from tbot.web.compression import Stream
from tbot.web.limits import limited
from tbot.web.methods import ACCEPT_PATCH, allowed_methods
from tbot.web.overload import Overload
from tbot.web.problems import Problem, problem_of
from tbot.web.ratelimit import Kind, Limits
from tbot.web.representation import Asked, Terms, streamed, whole

_log = structlog.get_logger(__name__)

# A caller's own id is kept and logged, so it has to be one: no token of ours, and no one-time code.
REQUEST_ID: Final = re.compile(rb"(?!eyJ|tb[a-z]_|whsec_|[0-9]{1,10}\Z)[A-Za-z0-9._-]{1,64}")
_NOBODY: Final[dict[str, str]] = {}
_EVENTS: Final = b"text/event-stream"


class _Enough(ClientDisconnect):
    """The caller has all it asked for: what would go on being sent can stop."""


class Edge:
    """ASGI middleware around the whole application; see the module's text.

    Args:
        terms: What holds for every answer; by default as settings say, for no other origin.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        limits: Limits | None = None,
        overload: Overload | None = None,
        terms: Terms | None = None,
    ) -> None:
        self.app = app
        self._limits = limits
        self._overload = overload
        self._bytes_max = settings.body_bytes_max
        self._log_from = settings.log_from
        self._terms = terms or Terms(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s = perf_counter()
        method: str = scope["method"]
        headers = joined(scope["headers"])
        request_id, trace = named(headers)
        inner = dict(scope)
        inner["tbot.request_id"] = request_id
        if method == "HEAD":
            inner["method"] = "GET"
        asked = Asked(self._terms, inner, headers, method, request_id, trace)
        answer = _Answer(asked, send, self._begins)
        traces.naming(log_fields(request_id, trace))
        try:
            _check_host(inner)
            if method == "OPTIONS":
                await self._options(asked)(inner, receive, answer)
            else:
                await self.app(inner, limited(inner, receive, self._bytes_max), answer)
        except _Enough:
            pass
        except ClientDisconnect:
            # Nobody is left to be answered, and nothing of ours failed.
            _log.info("client_gone", method=method, route=_route(inner))
        except asyncio.CancelledError:
            late = None if self._overload is None else self._overload.overdue(method)
            if late is None or answer.begun:
                raise
            await problem_response(late, inner, request_id)(inner, receive, answer)
        except Exception as error:
            if answer.begun:  # half an answer is out: the connection has to go
                _log.exception("request_failed", method=method, route=_route(inner))
                raise
            await problem_response(error, inner, request_id)(inner, receive, answer)
        finally:
            duration_s = perf_counter() - started_s
            metrics.observe(method, _route(inner), answer.status, duration_s)
            if answer.status >= self._log_from:
                log_request(inner, method, answer.status, duration_s)
            done(trace)

    async def _begins(self, scope: Scope) -> None:
        """An answer is about to be sent."""
        if self._limits is not None:
            await _count(self._limits, scope)
        if self._overload is not None:
            self._overload.answering()

    def _options(self, asked: Asked) -> Response:
        """What may be done at a path: for anybody, as it tells nothing that the docs do not."""
        path: str = asked.scope["path"]
        methods = allowed_methods(asked.scope["app"].routes, path)
        if not methods:
            raise Problem("not_found", "there is no such thing, or it is not yours")
        response = Response(status_code=204, headers={"Allow": ", ".join(methods)})
        if "PATCH" in methods:
            response.headers["Accept-Patch"] = ACCEPT_PATCH
        origin = asked.headers.get(b"origin")
        if origin is not None and b"access-control-request-method" in asked.headers:
            response.raw_headers += self._terms.origins.preflight(origin, methods)
        return response


class _Answer:
    """A `send` that keeps an answer's start back until it is seen whether the body is whole."""

    __slots__ = ("_asked", "_begins", "_packer", "_send", "_start", "begun", "status")

    def __init__(
        self, asked: Asked, send: Send, begins: Callable[[Scope], Awaitable[None]]
    ) -> None:
        self._asked = asked
        self._begins = begins
        self._send = send
        self._start: Message | None = None
        self._packer: Stream | None = None
        self.status = 0
        self.begun = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._start = message
            headers = message.get("headers", ())
            if any(name == b"content-type" and v.startswith(_EVENTS) for name, v in headers):
                await self._begin(message, live=True)
            return
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if self._start is not None:
            if not more:
                await self._whole(self._start, body)
                return
            await self._begin(self._start)
        if self._asked.method == "HEAD":
            body = b""
        elif self._packer is not None:
            body = self._packer.chunk(body, last=not more)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _begin(self, message: Message, *, live: bool = False) -> None:
        await self._begins(self._asked.scope)
        self.status, headers, self._packer = streamed(
            self._asked, message["status"], list(message.get("headers", ()))
        )
        self._start, self.begun = None, True
        await self._send({**message, "status": self.status, "headers": headers})
        if not live and (self._asked.method == "HEAD" or self.status == 304):
            await self._send({"type": "http.response.body", "body": b""})
            raise _Enough

    async def _whole(self, message: Message, body: bytes) -> None:
        await self._begins(self._asked.scope)
        self.status, headers, body = await whole(
            self._asked, message["status"], list(message.get("headers", ())), body
        )
        self._start, self.begun = None, True
        if self._asked.method == "HEAD":
            body = b""
        await self._send({**message, "status": self.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


async def _count(limits: Limits, scope: Scope) -> None:
    """Count what was answered before any route could; where that is too often, the next is refused.

    A path that is none, a page of the documentation.
    """
    with contextlib.suppress(QuotaExceeded, Unavailable):
        await limits.charge(scope, Kind.OTHER, (scope.get("client") or (None,))[0])


def problem_response(error: Exception, scope: Scope, request_id: str) -> Response:
    """What the caller is told of an error; one that is our own fault is logged."""
    problem = problem_of(error)
    if problem is None:
        _log.error("request_failed", method=scope["method"], route=_route(scope), exc_info=error)
        problem = Problem("internal_error", "something went wrong on our side")
    return problem.response(request_id)


def joined(given: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; what came several times is a list, as RFC 9110, 5.2 has it."""
    headers = dict(given)
    if len(headers) == len(given):
        return headers
    lists: dict[bytes, list[bytes]] = {}
    for name, value in given:
        lists.setdefault(name, []).append(value)
    return {name: b", ".join(values) for name, values in lists.items()}


def named(headers: dict[bytes, bytes]) -> tuple[str, Trace | None]:
    """The id of a request, and the trace it is part of, if any.

    The caller's own id where it is harmless; else, within a trace, one that names the trace, which
    so gets into the journal; else a new one.
    """
    trace = None
    parent = headers.get(b"traceparent")
    if parent is not None:
        state = headers.get(b"tracestate")
        states = [] if state is None else [state.decode("latin-1")]
        trace = traces.read(parent.decode("latin-1"), states)
        traces.begun(trace)
    given = headers.get(b"x-request-id")
    if given is not None and REQUEST_ID.fullmatch(given):
        return given.decode("ascii"), trace
    return (random_hex(12) if trace is None else trace.request_id), trace


def log_fields(request_id: str, trace: Trace | None) -> dict[str, str]:
    """What every log event of a request says."""
    if trace is None:
        return {"request_id": request_id}
    return {"request_id": request_id, "trace_id": trace.trace_id, "span_id": trace.span_id}


def done(trace: Trace | None) -> None:
    """What `named` and `log_fields` told the task is over."""
    traces.naming(_NOBODY)
    if trace is not None:
        traces.begun(None)


def _check_host(scope: Scope) -> None:
    """Refuse a request without Host, or with two of them (RFC 9112, 3.2)."""
    if scope.get("http_version") != "1.1":
        return
    if sum(name == b"host" for name, _ in scope["headers"]) != 1:
        raise Problem(
            "bad_request", "there has to be one Host header", headers={"Connection": "close"}
        )


def _route(scope: Scope) -> str:
    """The template of the route that was chosen, without what varies."""
    template: str | None = getattr(scope.get("route"), "path", None)
    return template or "unmatched"


def log_request(scope: Scope, method: str, status: int, duration_s: float) -> None:
    """Write the access log's event, if anybody wants to read it."""
    if not heard(logging.INFO):
        return
    principal = scope.get("tbot.principal")
    fields: dict[str, Any] = {
        "method": method,
        "route": _route(scope),
        "status": status,
        "duration_ms": round(duration_s * 1000, 3),
        "client": (scope.get("client") or ("",))[0],
    }
    if principal is not None:
        fields["user_id"] = str(principal.user_id)
    _log.info("http_request", **fields)
