"""The edge alone: a route that does nothing, and what each layer around it costs."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from tbot.auth.flow import authenticate
from tbot.boot import Parts
from tbot.core import log
from tbot.core.settings import HttpSettings
from tbot.web import metrics, orders
from tbot.web.answers import json_answer
from tbot.web.compression import gzip_of
from tbot.web.cors import Origins
from tbot.web.dependencies import AnyUser
from tbot.web.edge import log_request, named
from tbot.web.fields import Answer
from tbot.web.limits import limited, parse_json
from tbot.web.orders import NewOrder
from tbot.web.representation import Asked, Terms, whole

LEAN, FASTAPI = "/v1/bench/lean", "/v1/bench/fastapi"
CALLS = 2_000
ROUNDS = 7
PAGE_BYTES = 10_240
BODY = {
    "account_id": "00000000-0000-7000-8000-000000000000",
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.00125",
    "limit_price": "30000.01",
}


class Accepted(Answer):
    """What the stock route answers, too."""

    status: str


def add_routes() -> None:
    """Two routes that do what the stock one does; to be called before the application is built."""

    @orders.routes.post("/bench/lean", status_code=201, response_model=Accepted)
    async def lean(principal: AnyUser, body: NewOrder) -> Response:
        return json_answer({"status": "accepted"}, 201)

    @orders.routes.post("/bench/fastapi", status_code=201, response_model=Accepted)
    async def plain(
        principal: AnyUser, body: NewOrder, _unused: Annotated[int | None, Query()] = None
    ) -> Response:
        return json_answer({"status": "accepted"}, 201)

    # `serve_lean` asks for the return type, and reads it from this module.
    for route in (lean, plain):
        route.__annotations__["return"] = Response


async def _timed(call: Callable[[], Any]) -> float:
    """Processor time of one call in µs: the least of the rounds, which others disturbed least."""
    found = []
    for _ in range(ROUNDS):
        began_s = time.process_time()
        for _ in range(CALLS):
            result = call()
            if isinstance(result, Awaitable):
                await result
        found.append((time.process_time() - began_s) / CALLS * 1e6)
    return round(min(found), 2)


async def layers(parts: Parts, token: str) -> dict[str, float]:
    """What each layer takes of the processor for one request, in µs.

    Each is called as the edge calls it, with the headers of a usual client. `compression` is that
    of a page of ten kilobytes; a small answer has none.
    """
    given = [
        (b"host", b"127.0.0.1:8000"),
        (b"accept", b"*/*"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"user-agent", b"python-httpx/0.28.1"),
        (b"authorization", f"Bearer {token}".encode()),
    ]
    traced = [*given, (b"traceparent", b"00-" + b"ab" * 16 + b"-" + b"cd" * 8 + b"-01")]
    origin = [*given, (b"origin", b"https://app.example.com")]
    principal = await authenticate(parts.auth, token, "127.0.0.1")
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": LEAN,
        "raw_path": LEAN.encode(),
        "query_string": b"",
        "headers": given,
        "client": ("127.0.0.1", 1),
        "scheme": "http",
        "tbot.principal": principal,
    }
    terms = Terms(HttpSettings(), Origins(["https://app.example.com"], (), 600))
    body, small = json.dumps(BODY).encode(), b'{"status":"accepted"}'
    page = json.dumps([{**BODY, "quantity": f"0.{n:05d}"} for n in range(200)]).encode()
    page = page[:PAGE_BYTES]
    start = [(b"content-length", b"21"), (b"content-type", b"application/json")]

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    def receiving() -> Any:
        return limited(scope, receive, 262_144)()

    def asked(headers: list[tuple[bytes, bytes]]) -> Asked:
        return Asked(terms, scope, dict(headers), "POST", "0" * 24, None)

    def packed(headers: list[tuple[bytes, bytes]]) -> Asked:
        kept = [header for header in headers if header[0] != b"accept"]
        return asked([*kept, (b"accept", b"application/msgpack")])

    plain_us = await _timed(lambda: whole(asked(given), 201, start, small))
    found = {
        "ids": await _timed(lambda: named(dict(given))),
        "trace": await _timed(lambda: named(dict(traced))),
        "auth": await _timed(lambda: authenticate(parts.auth, token, "127.0.0.1")),
        "limits": await _timed(receiving),
        "validation": await _timed(lambda: NewOrder.model_validate(parse_json(body, 32))),
        "form_and_headers": plain_us,
        "cors": round(await _timed(lambda: whole(asked(origin), 201, start, small)) - plain_us, 2),
        "msgpack": round(
            await _timed(lambda: whole(packed(given), 201, start, small)) - plain_us, 2
        ),
        "compression_10k": await _timed(lambda: gzip_of(page, terms.level)),
        "metrics": await _timed(lambda: metrics.observe("POST", LEAN, 201, 0.001)),
    }
    found |= await _rate_limits(parts, scope)
    with open("/dev/null", "w") as nowhere, redirect_stderr(nowhere):  # noqa: ASYNC230, PTH123
        log.configure("info", "json")
        found["logs"] = await _timed(lambda: log_request(scope, "POST", 201, 0.001))
    log.configure("warning", "json")
    assert zlib.decompress(gzip_of(page, 4), 31) == page
    return found


async def _rate_limits(parts: Parts, scope: dict[str, Any]) -> dict[str, float]:
    """What counting a request against every policy costs."""
    limits = getattr(parts.app.state, "limits", None)
    if limits is None:
        return {}
    from tbot.web.ratelimit import Kind

    principal = scope["tbot.principal"]

    def charge() -> Any:
        return limits.charge(dict(scope), Kind.OTHER, "127.0.0.1", principal)

    return {"rate_limits": await _timed(charge)}
