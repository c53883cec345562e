"""The outermost layer of every HTTP request, as plain ASGI: one pass for all that concerns all.

It gives each request an id, bounds its body, answers HEAD as a GET without its body, adds the
security headers, turns what nobody caught into a plain 500, counts, and writes the access log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from time import perf_counter
from typing import Any, Final

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tbot.core.errors import QuotaExceeded, Unavailable
from tbot.core.ids import random_hex
from tbot.core.log import heard
from tbot.core.settings import HttpSettings
from tbot.web import metrics
from tbot.web.limits import limited
from tbot.web.overload import Overload
from tbot.web.problems import Problem, problem_of
from tbot.web.ratelimit import Kind, Limits, headers_of

_log = structlog.get_logger(__name__)

# A caller's own id is kept and logged, so it has to be one: no token of ours, and no one-time code.
REQUEST_ID: Final = re.compile(rb"(?!eyJ|tb[a-z]_|whsec_|[0-9]{1,10}\Z)[A-Za-z0-9._-]{1,64}")

ALWAYS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
DEFAULTS: Final[tuple[tuple[bytes, bytes], ...]] = (
    # Whatever a route does not say can be kept, is private.
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


class Edge:
    """ASGI middleware around the whole application; see the module's text."""

    def __init__(
        self,
        app: ASGIApp,
        settings: HttpSettings,
        limits: Limits | None = None,
        overload: Overload | None = None,
    ) -> None:
        self.app = app
        self._limits = limits
        self._overload = overload
        self._bytes_max = settings.body_bytes_max
        self._log_from = settings.log_from

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; everything but HTTP passes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started_s = perf_counter()
        method: str = scope["method"]
        request_id = _request_id(scope)
        headers = [(b"x-request-id", request_id.encode("ascii")), *ALWAYS]
        inner = dict(scope)
        inner["tbot.request_id"] = request_id
        if method == "HEAD":
            inner["method"] = "GET"
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self._limits is not None:
                    await _count(self._limits, inner)
                if self._overload is not None:
                    self._overload.answering()
                given: list[tuple[bytes, bytes]] = list(message.get("headers", ()))
                names = {name for name, _ in given}
                given += headers_of(inner)
                given += headers
                given += [header for header in DEFAULTS if header[0] not in names]
                message = {**message, "headers": given}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(inner, limited(inner, receive, self._bytes_max), answer)
            except ClientDisconnect:
                # Nobody is left to be answered, and nothing of ours failed.
                _log.info("client_gone", method=method, route=_route(inner))
            except asyncio.CancelledError:
                late = None if self._overload is None else self._overload.overdue(method)
                if late is None or status:
                    raise
                await _answer_error(late, inner, receive, answer, request_id)
            except Exception as error:
                if status:  # half an answer is out: the connection has to go
                    _log.exception("request_failed", method=method, route=_route(inner))
                    raise
                await _answer_error(error, inner, receive, answer, request_id)
            finally:
                duration_s = perf_counter() - started_s
                metrics.observe(method, _route(inner), status, duration_s)
                if status >= self._log_from:
                    log_request(inner, method, status, duration_s)


async def _count(limits: Limits, scope: Scope) -> None:
    """Count what was answered before any route could; where that is too often, the next is refused.

    A path that is none, a page of the documentation.
    """
    with contextlib.suppress(QuotaExceeded, Unavailable):
        await limits.charge(scope, Kind.OTHER, (scope.get("client") or (None,))[0])


async def _answer_error(
    error: Exception, scope: Scope, receive: Receive, send: Send, request_id: str
) -> None:
    await problem_response(error, scope, request_id)(scope, receive, send)


def problem_response(error: Exception, scope: Scope, request_id: str) -> Response:
    """What the caller is told of an error; one that is our own fault is logged."""
    problem = problem_of(error)
    if problem is None:
        _log.error("request_failed", method=scope["method"], route=_route(scope), exc_info=error)
        problem = Problem("internal_error", "something went wrong on our side")
    return problem.response(request_id)


def _request_id(scope: Scope) -> str:
    """The caller's own id where it is harmless, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return bytes(value).decode("ascii")
    return random_hex(12)


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
