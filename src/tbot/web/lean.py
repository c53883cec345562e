"""Hot routes without FastAPI's machinery: the same checks, the same function, fewer steps.

A POST to an exact path whose function takes a body model, header texts and the parts that every
route is given, and returns a `Response`, is served here. It stays registered with FastAPI, which
describes it in OpenAPI, and which gets every request that is not plain or not good: nothing has
been done by then, so whatever is wrong with it is found and told there, in the same words. Only
what happens after the function was called is answered here.

`Application` is the FastAPI that looks here first.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Annotated, Any, Final, get_type_hints

import msgspec
from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tbot.auth.api_keys import is_key
from tbot.auth.flow import authenticate, recognised
from tbot.core import trace as traces
from tbot.core.errors import QuotaExceeded, TBotError, Unavailable
from tbot.web import events, metrics
from tbot.web.dependencies import PRINCIPAL, current_principal, get_deps
from tbot.web.deps import Deps
from tbot.web.edge import done, joined, log_fields, log_request, named, problem_response
from tbot.web.http1 import Cycle, written
from tbot.web.limits import URI_BYTES_MAX, parse_json
from tbot.web.negotiation import GZIP, coding_of, packed_or_none, takes_structured
from tbot.web.once import CONTENT, HEADERS
from tbot.web.overload import Overload
from tbot.web.peers import Proxies
from tbot.web.ratelimit import CHARGED, Kind, Limits, headers_of, is_stop, kind_of
from tbot.web.representation import ALWAYS, DEFAULTS, Asked, Terms, whole
from tbot.web.routes import StrictRequest, StrictRoute, required_scopes

_JSON: Final = b"application/json"
_BEARER: Final = re.compile(rb"[Bb]earer ([!-~]+)")
_LENGTH: Final = re.compile(rb"[0-9]{1,15}")
_ALL_DEFAULTS: Final = [*ALWAYS, *DEFAULTS]
_CONSTANT: Final = b"".join([b"%b: %b\r\n" % header for header in _ALL_DEFAULTS])
_DEFAULT_NAMES: Final = frozenset(name for name, _ in DEFAULTS)
_BEGUN: Final = "tbot.begun"
"""Where a request's scope says that its answer is on its way, in pieces."""
_NOT_PLAIN: Final = frozenset({b"origin", b"prefer"})
_HABITS_MAX: Final = 4096
_HABIT_BYTES_MAX: Final = 4096
"""Callers whose headers are remembered, and of how many bytes at most: 16 MiB in all."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """How to call one route's function."""

    route: APIRoute
    call: Callable[..., Awaitable[Response]]
    scopes: Sequence[str]
    kind: Kind
    validate: Callable[[Any], Any]
    body_name: str
    request_name: str | None
    parts_names: tuple[str, ...]
    principal_names: tuple[str, ...]
    headers: tuple[tuple[str, bytes, Callable[[Any], Any]], ...]
    """Name and header of each header parameter, and what reads and checks it."""


def _plan(route: APIRoute) -> _Plan | None:
    """How to serve a route lean; None for one that needs more than there is here."""
    scopes = required_scopes(route)
    needs = route.dependant
    if scopes is None or route.methods != {"POST"} or "{" in route.path or route.deprecated:
        return None
    if (
        needs.path_params
        or needs.query_params
        or needs.cookie_params
        or len(needs.body_params) != 1
    ):
        return None
    if any(
        (
            needs.response_param_name,
            needs.background_tasks_param_name,
            needs.http_connection_param_name,
            needs.security_scopes_param_name,
        )
    ):
        return None
    model = needs.body_params[0].field_info.annotation
    returns = get_type_hints(route.endpoint).get("return")
    calls = {dependency.call for dependency in needs.dependencies}
    if (
        returns is not Response
        or not (isinstance(model, type) and issubclass(model, BaseModel))
        or not calls <= {get_deps, current_principal}
    ):
        return None
    return _Plan(
        route=route,
        call=route.endpoint,
        scopes=scopes,
        kind=kind_of(route),
        validate=model.__pydantic_validator__.validate_python,
        body_name=needs.body_params[0].name,
        request_name=needs.request_param_name,
        parts_names=_names(route, get_deps),
        principal_names=_names(route, current_principal),
        headers=tuple(
            (field.name, field.alias.lower().encode(), _reader(field.field_info))
            for field in needs.header_params
        ),
    )


def _reader(told: FieldInfo) -> Callable[[Any], Any]:
    """What a header parameter is read by: Pydantic's own, as FastAPI calls it in several steps."""
    kind: Any = told.annotation
    if told.metadata:
        kind = Annotated[(kind, *told.metadata)]
    return TypeAdapter(kind).validator.validate_python


def _names(route: APIRoute, call: Any) -> tuple[str, ...]:
    found = (d.name for d in route.dependant.dependencies if d.call is call)
    return tuple(name for name in found if name is not None)


class _Habit(msgspec.Struct, frozen=True):
    """What follows from headers that a caller sends in the same words every time.

    Attributes:
        token: The access token or API key.
        plain: Whether small answers go out as they are made: JSON, not compressed.
        large: Whether answers of any size do.
    """

    token: str
    plain: bool
    large: bool


class _Aside(Exception):
    """This request is for FastAPI."""


class Application(FastAPI):
    """FastAPI, with its hot routes served lean once `serve_lean` was called."""

    def serve_lean(self, deps: Deps, terms: Terms | None = None) -> list[str]:
        """Look through the routes; the paths of those that are served lean from now on."""
        self._deps = deps
        self._limits: Limits = self.state.limits
        self._overload: Overload = self.state.overload
        self._proxies = Proxies(deps.settings.http)
        self._bytes_max = deps.settings.http.body_bytes_max
        self._depth_max = deps.settings.http.json_depth_max
        self._log_from = deps.settings.http.log_from
        self._terms = terms or Terms(deps.settings.http)
        self._habits: dict[tuple[bytes | None, ...], _Habit] = {}
        self._plans = {
            route.path: plan
            for route in self.router.routes
            if isinstance(route, StrictRoute) and (plan := _plan(route)) is not None
        }
        return sorted(self._plans)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, unless there is too much of them."""
        if self._proxies.any and scope["type"] != "lifespan":
            self._proxies.resolve(scope)
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        started_s = perf_counter()
        method, path = scope["method"], scope["path"]
        plan = self._plans.get(path) if method == "POST" else None
        try:
            self._overload.check(method, path)
            if plan is None and not is_stop(method, path):
                self._check_open(scope)
        except TBotError as error:
            await self._refuse(error, scope, send, started_s)
            return
        if path == events.PATH:  # has no end
            events.prepare(scope, send)
            await super().__call__(scope, receive, send)
            return
        task = self._overload.begin()
        try:
            if plan is None:
                await super().__call__(scope, receive, send)
            else:
                await self._serve_lean(plan, scope, receive, send, started_s)
        except asyncio.CancelledError:
            late = self._overload.overdue(method)
            if late is None or _BEGUN in scope:
                raise
            await self._refuse(late, scope, send, started_s)
        finally:
            self._overload.end(task)

    async def _serve_lean(
        self, plan: _Plan, scope: Scope, receive: Receive, send: Send, started_s: float
    ) -> None:
        messages: list[Message] = []
        try:
            arguments, asked, habit = await self._arguments(plan, scope, receive, messages)
        except (QuotaExceeded, Unavailable) as error:
            await self._refuse(error, scope, send, started_s, plan.route.path)
        except Exception:  # noqa: BLE001 - told by those who tell everything that is wrong
            try:
                self._check_open(scope)
            except QuotaExceeded as error:
                await self._refuse(error, scope, send, started_s)
            else:
                await super().__call__(scope, _replay(messages, receive), send)
        else:
            await self._answer(plan, arguments, asked, habit, started_s, scope, send)

    async def _arguments(
        self, plan: _Plan, scope: Scope, receive: Receive, messages: list[Message]
    ) -> tuple[dict[str, Any], Asked, _Habit | None]:
        """What to call the function with, what is asked, and what says whether that is plain.

        Args:
            messages: Takes what was received, for somebody else to receive it again.

        Returns:
            The last is None where the form of the answer has to be looked into.

        Raises:
            Exception: It is not for us.
        """
        given: list[tuple[bytes, bytes]] = scope["headers"]
        headers = dict(given)
        if (
            len(headers) != len(given)
            or scope["query_string"]
            or b"host" not in headers
            or b"content-encoding" in headers
            or len(scope["raw_path"]) > URI_BYTES_MAX
        ):
            raise _Aside
        habit = self._habit(headers)
        cycle = getattr(receive, "__self__", None)
        body = cycle.whole_body() if type(cycle) is Cycle else None
        if body is None:
            length = headers[b"content-length"]
            if not _LENGTH.fullmatch(length) or int(length) > self._bytes_max:
                raise _Aside
        elif len(body) > self._bytes_max or b"content-length" not in headers:
            raise _Aside
        client = scope.get("client")
        address = client[0] if client else None
        principal = recognised(self._deps.auth, habit.token)
        if principal is None:
            self._limits.check_open(address)
            principal = await authenticate(self._deps.auth, habit.token, address)
        if self._limits.local:
            scope[CHARGED] = ()
            scope[CHARGED] = self._limits.take_here(plan.kind, address, principal)
        else:
            await self._limits.charge(scope, plan.kind, address, principal)
        principal.require(*plan.scopes)
        if body is None:
            body = await _body(receive, messages)
        content = parse_json(body, self._depth_max)
        arguments = {plan.body_name: plan.validate(content)}
        for name, header, read in plan.headers:
            value = headers.get(header)
            if value is not None:
                arguments[name] = read(value.decode("latin-1"))
        request_id, trace = named(headers)
        scope["tbot.request_id"] = request_id
        asked = Asked(self._terms, scope, headers, "POST", request_id, trace)
        plain = _NOT_PLAIN.isdisjoint(headers) and scope["scheme"] == "http"
        scope[PRINCIPAL] = principal
        scope[HEADERS] = headers
        scope[CONTENT] = content
        scope["app"] = self
        scope["route"] = plan.route
        for name in plan.parts_names:
            arguments[name] = self._deps
        for name in plan.principal_names:
            arguments[name] = principal
        if plan.request_name is not None:
            arguments[plan.request_name] = StrictRequest(scope, receive, (body, content))
        return arguments, asked, habit if plain else None

    def _check_open(self, scope: Scope) -> None:
        """Refuse an address that has used up everything, before any work is done for it."""
        client = scope.get("client")
        self._limits.check_open(client[0] if client else None)

    def _habit(self, headers: dict[bytes, bytes]) -> _Habit:
        """Looked up by the headers themselves, once they were read.

        Raises:
            Exception: It is not for us.
        """
        get = headers.get
        said = (
            get(b"authorization"),
            get(b"x-api-key"),
            get(b"content-type"),
            get(b"accept", b""),
            get(b"accept-encoding", b""),
        )
        habit = self._habits.get(said)
        if habit is None:
            habit = _habit_of(*said)
            if sum(map(len, filter(None, said))) <= _HABIT_BYTES_MAX:
                if len(self._habits) >= _HABITS_MAX:
                    self._habits.clear()
                self._habits[said] = habit
        return habit

    async def _answer(
        self,
        plan: _Plan,
        arguments: dict[str, Any],
        asked: Asked,
        habit: _Habit | None,
        started_s: float,
        scope: Scope,
        send: Send,
    ) -> None:
        """Call the function and send what it answers, as `Edge` would."""
        status = 0
        request_id = asked.request_id
        traces.naming(log_fields(request_id, asked.trace))
        try:
            try:
                response = await plan.call(**arguments)
            except Exception as error:  # noqa: BLE001 - every fault gets an answer
                response = problem_response(error, scope, request_id)
            except asyncio.CancelledError:
                late = self._overload.overdue("POST")
                if late is None:
                    raise
                response = problem_response(late, scope, request_id)
            status, body = response.status_code, bytes(response.body)
            constant = b""
            if habit is not None and (
                habit.large or (habit.plain and len(body) < self._terms.bytes_min)
            ):
                headers, constant = _with_ours(response.raw_headers, headers_of(scope), request_id)
            else:
                status, headers, body = await whole(asked, status, response.raw_headers, body)
            if not written(send, status, headers, body, constant):
                if constant:
                    headers += _ALL_DEFAULTS
                scope[_BEGUN] = True
                self._overload.answering()
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        finally:
            duration_s = perf_counter() - started_s
            metrics.observe("POST", plan.route.path, status, duration_s)
            if status >= self._log_from:
                log_request(scope, "POST", status, duration_s)
            done(asked.trace)

    async def _refuse(
        self,
        error: Exception,
        scope: Scope,
        send: Send,
        started_s: float,
        route: str = "unmatched",
    ) -> None:
        """Answer a request that is not even looked at."""
        given = joined(scope["headers"])
        request_id, trace = named(given)
        response = problem_response(error, scope, request_id)
        asked = Asked(self._terms, scope, given, scope["method"], request_id, trace)
        status, body = response.status_code, bytes(response.body)
        status, headers, body = await whole(asked, status, response.raw_headers, body)
        if scope["method"] == "HEAD":
            body = b""
        if not written(send, status, headers, body):
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})
        duration_s = perf_counter() - started_s
        metrics.observe(scope["method"], route, status, duration_s)
        if status >= self._log_from:
            traces.naming(log_fields(request_id, trace))
            log_request(scope, scope["method"], status, duration_s)
        done(trace)


def _habit_of(
    bearer: bytes | None,
    key: bytes | None,
    content_type: bytes | None,
    accept: bytes,
    accept_encoding: bytes,
) -> _Habit:
    """What these headers say.

    Raises:
        _Aside: It is not for us.
    """
    found = _BEARER.fullmatch(bearer if bearer is not None else b"Bearer " + (key or b""))
    if (
        found is None
        or (bearer is not None and key is not None)
        or content_type != _JSON
        or not takes_structured(accept)
    ):
        raise _Aside
    token = found[1].decode("ascii")
    if bearer is None and not is_key(token):
        raise _Aside
    json = packed_or_none(accept) is None
    return _Habit(
        token,
        json and coding_of(accept_encoding, False) != GZIP,
        json and coding_of(accept_encoding, True) != GZIP,
    )


def _with_ours(
    given: list[tuple[bytes, bytes]], told: Sequence[tuple[bytes, bytes]], request_id: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """A response's headers with those that every response has, and the lines that never vary.

    Args:
        told: What is left of the rate limits.
    """
    headers = [*given, *told, (b"x-request-id", request_id.encode("ascii"))]
    for name, _ in given:
        if name in _DEFAULT_NAMES:
            said = {name for name, _ in given}
            rest = [header for header in DEFAULTS if header[0] not in said]
            return [*headers, *ALWAYS, *rest], b""
    return headers, _CONSTANT


async def _body(receive: Receive, messages: list[Message]) -> bytes:
    body = b""
    while True:
        message = await receive()
        messages.append(message)
        if message["type"] != "http.request":
            raise _Aside
        part: bytes = message.get("body", b"")
        body = body + part if body else part
        if not message.get("more_body", False):
            return body


def _replay(messages: list[Message], receive: Receive) -> Receive:
    """A `receive` that begins with what was received already."""
    if not messages:
        return receive
    rest = iter(messages)

    async def again() -> Message:
        for message in rest:
            return message
        return await receive()

    return again
