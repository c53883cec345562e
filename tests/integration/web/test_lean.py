"""What is served lean cannot be told from what FastAPI serves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog

from tbot.web import lean
from tbot.web.deps import Deps

ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99",
}


def _with_escape(body: dict[str, Any]) -> bytes:
    return json.dumps(body).replace("BTC-USDT", "BTC\\u002dUSDT").encode()


BODIES: list[Callable[[dict[str, Any]], bytes]] = [
    lambda order: json.dumps(order).encode(),
    lambda order: json.dumps(order, indent=3).encode(),
    _with_escape,
    lambda order: json.dumps({**order, "symbol": "ETH-EUR"}).encode(),
    lambda order: json.dumps({**order, "quantity": "1000"}).encode(),
    lambda order: json.dumps({**order, "quantity": 0.1}).encode(),
    lambda order: json.dumps({**order, "limit_price": None}).encode(),
    lambda order: json.dumps({**order, "colour": "red", "side": "left"}).encode(),
    lambda order: json.dumps(
        {**order, "account_id": "00000000-0000-7000-8000-000000000000"}
    ).encode(),
    lambda order: json.dumps({**order, "account_id": "x"}).encode(),
    lambda order: json.dumps(order).encode()[:-1] + b', "side": "buy"}',
    lambda order: json.dumps(order).encode()[:-1],
    lambda order: json.dumps(order).encode() + b"{}",
    lambda order: json.dumps({**order, "quantity": float("nan")}).encode(),
    lambda order: b"[" * 40 + b"]" * 40,
    lambda order: b'{"a": "\xff"}',
    lambda order: b'"text"',
    lambda order: b"null",
    lambda order: b"",
    lambda order: b"{" + b" " * 5_000_000 + b"}",
]
HEADERS: list[dict[str, str]] = [
    {"Content-Type": "text/plain"},
    {"Content-Type": "application/json; charset=utf-8"},
    {"Content-Encoding": "gzip"},
    {"Authorization": "Bearer nonsense"},
    {"Authorization": "Basic YTpi"},
    {"Idempotency-Key": "a b"},
    {"Idempotency-Key": "x" * 300},
    {"Prefer": "wait=0"},
    {"X-Request-Id": "mine"},
    {"X-Request-Id": "not mine\t"},
]


async def _told(client: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> Any:
    """What a caller sees of an answer, without what differs from one order to the next."""
    given = {"Content-Type": "application/json", **headers}
    answer = await client.post("/v1/orders", content=body, headers=given)
    seen = dict(answer.headers)
    if "request_id" in (content := answer.json()):
        assert content.pop("request_id") == seen["x-request-id"]
    for name in ("id", "created_at", "updated_at", "sequence", "client_order_id"):
        content.pop(name, None)
    for name in ("location", "etag", "content-length", "ratelimit"):
        seen[name] = "" if name in seen else "missing"
    if seen["x-request-id"] != headers.get("X-Request-Id"):
        assert len(seen.pop("x-request-id")) == 24
    return answer.status_code, content, seen


@pytest.fixture
def plain(site: Any) -> Any:
    """The same application without lean routes."""
    deps: Deps = site.app.state.deps
    application = lean.Application(telemetry={"tracing": False, "metrics": False, "logs": False})
    application.__dict__.update({**site.app.__dict__, "_plans": {}})
    assert application.state.deps is deps
    return application


def test_the_hot_routes_are_served_lean(site: Any) -> None:
    served = site.app.serve_lean(site.app.state.deps)
    assert {"/v1/orders", "/v1/transfers", "/v1/transfers/bulk"} <= set(served)


async def test_no_body_tells_the_difference(site: Any, plain: Any) -> None:
    async with site.client("ann") as client:
        account = (await site.account(client, USDT="1000"))["id"]
        headers = dict(client.headers)
        transport = httpx.ASGITransport(plain)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as slow:
            statuses = set()
            for number, make in enumerate(BODIES):
                order = {**ORDER, "account_id": account}
                named = {**order, "client_order_id": f"a-{number}"}
                found = await _told(client, make(named), {})
                expected = await _told(slow, make({**named, "client_order_id": f"b-{number}"}), {})
                assert found == expected, make(named)
                statuses.add(found[0])
            assert statuses == {201, 400, 404, 413, 422}


async def test_no_header_tells_the_difference(site: Any, plain: Any) -> None:
    async with site.client("ann") as client:
        account = (await site.account(client, USDT="1000"))["id"]
        body = json.dumps({**ORDER, "account_id": account}).encode()
        transport = httpx.ASGITransport(plain)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=dict(client.headers)
        ) as slow:
            statuses = set()
            for headers in HEADERS:
                found = await _told(client, body, headers)
                assert found == await _told(slow, body, headers), headers
                statuses.add(found[0])
            assert statuses == {201, 400, 401, 415, 422}


async def test_a_fault_after_the_function_was_called_is_an_answer(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    async with site.client("ann") as client:
        account = (await site.account(client, USDT="1000"))["id"]
        monkeypatch.setattr("tbot.orders.flow.place", broken)
        with structlog.testing.capture_logs() as logs:
            answer = await client.post("/v1/orders", json={**ORDER, "account_id": account})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert [log["event"] for log in logs if log["log_level"] == "error"] == ["request_failed"]


async def _exchange(address: tuple[str, int], request: bytes, count: int) -> list[bytes]:
    """The raw answers to requests that are sent at once on one connection."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request * count)
        answers = []
        for _ in range(count):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            answers.append(head + await reader.readexactly(length))
        return answers
    finally:
        writer.close()


async def test_on_a_socket_pipelined_answers_come_whole_and_in_order(
    site: Any, plain: Any, serve: Any
) -> None:
    async with site.client("ann") as client:
        account = (await site.account(client, USDT="1000"))["id"]
        token = client.headers["Authorization"]
    body = json.dumps({**ORDER, "quantity": "0.06", "account_id": account}).encode()
    request = (
        f"POST /v1/orders HTTP/1.1\r\nHost: test\r\nAuthorization: {token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    quick = urlsplit(await serve(site))
    site.app = plain
    slow = urlsplit(await serve(site))
    sequences = []
    names = []
    for where in (quick, slow):
        assert where.hostname is not None
        assert where.port is not None
        for answer in await _exchange((where.hostname, where.port), request, 3):
            head, _, content = answer.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 201 Created\r\n")
            sequences.append(json.loads(content)["sequence"])
            names.append([line.split(b":")[0].lower() for line in head.split(b"\r\n")[1:]])
    assert sequences == sorted(sequences)
    assert names == names[:1] * 6
