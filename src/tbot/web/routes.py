"""The route class of every JSON route: who asks is known before the body is read.

FastAPI reads and parses a body before it looks at a route's dependencies; here a stranger's body is
never read, and a body is parsed strictly. This is also where a request is counted under the rate
limits (`tbot.web.ratelimit`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import APIRouter, params
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request, empty_send
from starlette.responses import Response
from starlette.types import Receive, Scope

from tbot.web.dependencies import address_of, check_principal, current_principal
from tbot.web.limits import check_media_type, parse_json
from tbot.web.negotiation import STRUCTURED, preferred
from tbot.web.problems import Problem
from tbot.web.ratelimit import Kind, Limits, kind_of
from tbot.web.representation import SECRET

SHOWS_SECRET: Final = {SECRET: True}
"""The `openapi_extra` of a route whose good answers show a secret: they are sent as they are."""


class StrictRequest(Request):
    """A request whose `json` is strict.

    Args:
        read: Its body and what that parses to, where that is known already.
    """

    def __init__(
        self, scope: Scope, receive: Receive, read: tuple[bytes, Any] | None = None
    ) -> None:
        if read is None:
            super().__init__(scope, receive)
            return
        # What Starlette's own sets, without asking what is known.
        self.scope = scope
        self._receive = receive
        self._send = empty_send
        self._stream_consumed = self._is_disconnected = False
        self._form = None
        self._body, self._json = read

    async def json(self) -> Any:
        """The body, by `parse_json`."""
        if not hasattr(self, "_json"):
            depth_max = self.app.state.deps.settings.http.json_depth_max
            self._json = parse_json(await self.body(), depth_max)
        return self._json


class StrictRoute(APIRoute):
    """FastAPI's route behind our checks: token and scopes, media type, strict JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI calls once the route is chosen."""
        handler = super().get_route_handler()
        scopes = required_scopes(self)
        kind = kind_of(self)
        body = self.body_field
        form = body is not None and isinstance(body.field_info, params.Form)
        needed = body is not None and body.field_info.is_required()
        forms = offers(self)

        async def strict(request: Request) -> Response:
            asked = Kind.EXPORTS if kind is Kind.READS and _wants_file(request.headers) else kind
            if scopes is not None:
                await check_principal(request, scopes, asked)
            else:
                limits: Limits = request.app.state.limits
                await limits.charge(request.scope, asked, address_of(request.scope))
            if forms:
                _check_accept(request.headers, forms)
            if body is not None and (needed or _has_body(request.headers)):
                check_media_type(request.headers, form, request.method)
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def _wants_file(headers: Headers) -> bool:
    """Whether a list is asked for as a file."""
    accept = headers.get("accept", "")
    return "csv" in accept or "ndjson" in accept


def _has_body(headers: Headers) -> bool:
    """Whether a request brings a body, by what HTTP/1.1 says (RFC 9112, section 6)."""
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def offers(route: APIRoute) -> tuple[str, ...]:
    """The media types that a route's good answers can be had as; none where there is no choice."""
    declared: dict[str, None] = {}
    for status, response in route.responses.items():
        if str(status).startswith("2"):
            declared |= dict.fromkeys(response.get("content", ()))
    if route.response_model is None and not declared:
        return ()
    structured = STRUCTURED if route.response_model is not None else ()
    return (*structured, *(name for name in declared if name not in structured))


def _check_accept(headers: Headers, forms: tuple[str, ...]) -> None:
    """Refuse, before anything is done, what could not be answered as the caller likes.

    Raises:
        Problem: `not_acceptable`.
    """
    if preferred(",".join(headers.getlist("accept")), forms) is None:
        raise Problem("not_acceptable", "this can be had as " + ", ".join(forms))


def required_scopes(route: APIRoute) -> tuple[str, ...] | None:
    """The scopes a route asks for; None for a public one."""
    for dependency in route.dependant.dependencies:
        if dependency.call is current_principal:
            return tuple(dependency.own_oauth_scopes or ())
    return None


def router(tag: str, prefix: str = "/v1") -> APIRouter:
    """A router for one resource's routes."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=StrictRoute)
