"""Builds the ASGI application from its parts."""

from __future__ import annotations

import json
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tbot import __version__
from tbot.web import (
    accounts,
    callbacks,
    candles,
    docs_page,
    events,
    health,
    history,
    keys,
    market,
    openapi,
    orders,
    payments,
    second_factor,
    sessions,
    sharing,
    statements,
    stream,
    switches,
    tickets,
    tokens,
    transfers,
    users,
    webhooks,
    wellknown,
)
from tbot.web.cors import Origins
from tbot.web.deps import Deps
from tbot.web.edge import Edge
from tbot.web.exports import Exports
from tbot.web.lean import Application
from tbot.web.methods import allowed_methods
from tbot.web.overload import Overload
from tbot.web.problems import Problem, problem_of
from tbot.web.ratelimit import Limits
from tbot.web.representation import Terms
from tbot.web.shared_limits import SharedStore
from tbot.web.stream_orders import OrderEntry

_DESCRIPTION: Final = """
An order API that cannot lose or double an order, on a double-entry ledger.

* Amounts, prices and quantities are **strings** of plain decimals, never JSON numbers.
* Every error is a [problem document](https://www.rfc-editor.org/rfc/rfc9457) with a `code`.
* Give orders a `client_order_id`: after a timeout or a 504, repeat the request under it, and you
  get the one order that was placed.
* Lists come in pages: follow `next` (also in the `Link` header) until it is null.

To try it here, press **Authorize** and log in with your user name and password.
"""
_TAGS: Final = [
    {"name": "tokens", "description": "Log in, refresh, log out."},
    {"name": "users", "description": "Yourself; for administrators, all users."},
    {"name": "security", "description": "Your sessions, API keys, second factor and password."},
    {"name": "accounts", "description": "Accounts, what is on them, and how it came there."},
    {"name": "transfers", "description": "Move money between accounts."},
    {"name": "orders", "description": "Place, follow and cancel orders."},
    {"name": "payments", "description": "Deposits and withdrawals of cash accounts."},
    {"name": "webhooks", "description": "What happens on accounts, sent to an address of yours."},
    {"name": "stream", "description": "Market data and private events as they happen."},
    {"name": "market", "description": "Instruments and market data."},
    {"name": "switches", "description": "Halt and resume trading, withdrawals and transfers."},
    {"name": "health", "description": "For those who operate T-Bot."},
]


def build_app(deps: Deps) -> Application:
    """The edge's application.

    Args:
        deps: Started parts; `boot` starts and stops them around the server, the application
            itself has no lifespan.
    """
    app = Application(
        title="T-Bot",
        version=__version__,
        summary="A self-hosted trading backend for spot markets.",
        description=_DESCRIPTION,
        openapi_tags=_TAGS,
        license_info={"name": "MIT", "identifier": "MIT"},
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.deps = deps
    app.state.exports = Exports(deps.settings.http)
    app.exception_handlers.clear()
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    store = None
    if deps.valkey is not None and deps.settings.limits.store == "auto":
        store = SharedStore(deps.valkey, deps.settings.limits)
    app.state.limits = limits = Limits(deps.settings.limits, store)
    app.state.overload = overload = Overload(deps.settings.overload)
    terms = Terms(deps.settings.http, origins_of(deps))
    app.add_middleware(
        Edge, settings=deps.settings.http, limits=limits, overload=overload, terms=terms
    )
    # One flat table: FastAPI's nested routers are matched twice for every request.
    for module in (
        orders,
        accounts,
        history,
        statements,
        transfers,
        payments,
        callbacks,
        webhooks,
        market,
        candles,
        tokens,
        users,
        sessions,
        keys,
        second_factor,
        sharing,
        switches,
        wellknown,
        health,
    ):
        app.router.routes.extend(module.routes.routes)
    if deps.streams is not None:
        app.state.streams = deps.streams
        deps.streams.limits = limits
        deps.streams.orders = OrderEntry(deps, limits)
        app.router.routes.extend(stream.router.routes)
        app.router.routes.extend(tickets.routes.routes)
        app.router.routes.extend(events.routes.routes)
    if deps.settings.http.public_docs:
        app.router.routes.extend(docs_page.docs_routes())
        app.add_api_route("/openapi.json", _schema, include_in_schema=False)
    app.serve_lean(deps, terms)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        app.openapi_schema = openapi.document(app)
    return app.openapi_schema


async def _schema(request: Request) -> Response:
    app = request.app
    if not hasattr(app.state, "openapi_text"):
        app.state.openapi_text = json.dumps(app.openapi())
    return Response(
        app.state.openapi_text,
        media_type="application/json",
        headers={"Cache-Control": "public, max-age=60"},
    )


async def _answer(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem is None:
        raise error
    if problem.status_code == 405:
        methods = allowed_methods(request.app.routes, request.url.path)
        problem = Problem(
            "method_not_allowed",
            f"{request.url.path} takes {', '.join(methods)}",
            headers={"Allow": ", ".join(methods)},
        )
    return problem.response(request.scope.get("tbot.request_id", ""))


def origins_of(deps: Deps) -> Origins:
    """Which pages of other origins may read answers."""
    http = deps.settings.http
    return Origins(http.cors_origins, deps.settings.auth.browser_origins, http.cors_max_age_s)
