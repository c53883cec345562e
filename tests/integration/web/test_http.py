"""HTTP itself, over real sockets: bytes in, bytes out."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import structlog


async def exchange(url: str, request: bytes, *, half_close: bool = False) -> tuple[int, str, bytes]:
    """Send raw bytes; answers the status, the head and the body of the first response."""
    target = urlsplit(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    try:
        writer.write(request)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            length = next(
                (
                    int(line.split(":")[1])
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length:")
                ),
                0,
            )
            body = await reader.readexactly(length) if not request.startswith(b"HEAD") else b""
    finally:
        writer.close()
    return int(head.split(" ")[1]), head.lower(), body


async def closed(url: str, request: bytes) -> bool:
    """Whether the server closes the connection after answering."""
    target = urlsplit(url)
    reader, writer = await asyncio.open_connection(target.hostname, target.port)
    try:
        writer.write(request)
        async with asyncio.timeout(10):
            await reader.read()  # until the end
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


@pytest.fixture
async def url(site: Any, serve: Any) -> str:
    served: str = await serve(site)
    return served


async def test_a_whole_trade_over_a_socket(site: Any, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        form = {"username": "ann", "password": "correct horse battery staple"}
        tokens = (await client.post("/v1/token", data=form)).json()
        client.headers["Authorization"] = f"Bearer {tokens['access_token']}"
        account = (
            await client.post(
                "/v1/accounts", json={"name": "a", "starting_balance": {"USDT": "100"}}
            )
        ).json()
        order = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "market",
            "quote_amount": "50",
        }
        answer = await client.post("/v1/orders", json=order)
        assert answer.status_code == 201
        assert (await client.get(answer.headers["location"])).json()["quote_amount"] == "50"
        entries = await client.get(f"/v1/accounts/{account['id']}/journal")
        by = entries.json()["entries"][-1]["entry"]["by"]
        assert by["request"] == answer.headers["x-request-id"]
        assert by["address"] == "127.0.0.1"


async def test_security_headers_are_on_every_answer(site: Any, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for method, path in (
            ("GET", "/health/live"),
            ("GET", "/nope"),
            ("GET", "/v1/me"),
            ("PUT", "/v1/orders"),
            ("GET", "/docs"),
            ("GET", "/docs/swagger-ui.css"),
            ("HEAD", "/openapi.json"),
        ):
            answer = await client.request(method, path)
            headers = answer.headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["cache-control"]
            assert len(headers.get_list("x-request-id")) == 1
            assert "server" not in headers
            assert "access-control-allow-origin" not in headers


async def test_head_is_a_get_without_its_body(site: Any, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        got, head = await client.get("/health/live"), await client.head("/health/live")
        assert head.status_code == 200
        assert head.headers["content-length"] == got.headers["content-length"]
        assert head.content == b""
        # The connection is still in step.
        assert (await client.get("/health/live")).json() == {"status": "ok"}


async def test_methods(site: Any, url: str, problem: Any) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for method, path, allow in (
            ("PUT", "/v1/orders", "DELETE, GET, HEAD, OPTIONS, POST"),
            ("PATCH", "/v1/orders/x", "DELETE, GET, HEAD, OPTIONS"),
            ("DELETE", "/v1/me", "GET, HEAD, OPTIONS"),
            ("TRACE", "/v1/me", "GET, HEAD, OPTIONS"),
            ("PROPFIND", "/v1/token", "OPTIONS, POST"),
        ):
            answer = await client.request(method, path)
            problem(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == allow
        override = await client.post("/v1/me", headers={"X-HTTP-Method-Override": "GET"})
        problem(override, 405, "method_not_allowed")
        for path in ("/v1/me/", "//v1/me", "/v1//me", "/V1/me", "/v1/me%00"):
            problem(await client.get(path), 404, "not_found")
    for target in (
        b"/v1/../v1/me",
        b"/v1/%2e%2e/v1/me",
        b"/docs/../../etc/passwd",
        b"/docs/%2e%2e",
    ):
        status, _, _ = await exchange(url, b"GET " + target + b" HTTP/1.1\r\nHost: t\r\n\r\n")
        assert status == 404


async def test_request_ids(site: Any, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        own = await client.get("/nope", headers={"X-Request-Id": "my-id.1"})
        assert own.headers["x-request-id"] == "my-id.1"
        assert own.json()["request_id"] == "my-id.1"
        for bad in ("x" * 65, "a b", "<script>", "é".encode()):
            answer = await client.get("/nope", headers={"X-Request-Id": bad})
            assert len(answer.headers["x-request-id"]) == 24


async def test_attack_36_bodies_are_refused_early(site: Any, url: str) -> None:
    head = b"POST /v1/token/refresh HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
    declared = head + b"Content-Length: 1000000000\r\n\r\n{"
    status, text, _ = await exchange(url, declared)
    assert (status, "connection: close" in text) == (413, True)
    assert await closed(url, declared)
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    status, text, body = await exchange(
        url, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5
    )
    assert (status, "connection: close" in text) == (413, True)
    assert json.loads(body)["code"] == "body_too_large"
    status, _, _ = await exchange(url, b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    assert status == 414


async def test_a_strangers_body_is_never_read(site: Any, url: str) -> None:
    """The answer comes although the body never does."""
    request = (
        b"POST /v1/orders HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
        b"Content-Length: 60000\r\n\r\n"
    )
    status, _, body = await exchange(url, request)
    assert (status, json.loads(body)["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"POST /v1/token HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/token HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        b"POST /v1/token HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/token HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: t\r\nX: a\x00b\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
async def test_attack_34_ambiguous_requests_are_refused_and_closed(
    site: Any, url: str, request_bytes: bytes
) -> None:
    status, _, _ = await exchange(url, request_bytes)
    assert status == 400
    assert await closed(url, request_bytes)


async def test_attack_25_forwarding_headers_change_nothing(site: Any, url: str) -> None:
    with structlog.testing.capture_logs() as logs:
        async with httpx.AsyncClient(base_url=url) as client:
            forged = {
                "X-Forwarded-For": "10.9.8.7",
                "X-Forwarded-Host": "evil",
                "Forwarded": "for=10.9.8.7",
            }
            answer = await client.get("/nope", headers=forged)
    assert "evil" not in str(answer.headers)
    (event,) = [log for log in logs if log["event"] == "http_request"]
    assert event["client"] == "127.0.0.1"


async def test_the_access_log_tells_who_asked_what(site: Any) -> None:
    with structlog.testing.capture_logs() as logs:
        async with site.client("ann") as client:
            await client.get(
                "/v1/orders/0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10?x=secret",
                headers={"X-Request-Id": "r-1"},
            )
    (event,) = [log for log in logs if log["event"] == "http_request"]
    assert event["route"] == "/v1/orders/{order_id}"
    assert (event["method"], event["status"]) == ("GET", 404)
    assert event["duration_ms"] > 0
    assert event["user_id"]
    assert "secret" not in str(event)


@pytest.mark.parametrize(("setting", "logged"), [("all", 2), ("errors", 1), ("off", 0)])
async def test_how_much_is_logged(new_site: Any, setting: str, logged: int) -> None:
    site = await new_site(http={"access_log": setting})
    with structlog.testing.capture_logs() as logs:
        async with site.client() as client:
            await client.get("/health/live")
            await client.get("/nope")
    assert len([log for log in logs if log["event"] == "http_request"]) == logged


async def test_attack_61_a_fault_of_ours_tells_nothing(
    site: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(site.orders.instruments, "all", fail)
    with structlog.testing.capture_logs() as logs:
        async with site.client("ann") as client:
            answer = await client.get("/v1/instruments")
    document = problem(answer, 500, "internal_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    (event,) = [log for log in logs if log["event"] == "request_failed"]
    assert "secret detail" in repr(event["exc_info"])
    assert document["request_id"]


async def test_a_database_that_is_away_is_503(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        assert (await client.get("/v1/me")).status_code == 200
        await site.pool.close()
        answer = await client.get("/v1/accounts")
        problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        # Whether the session lives cannot be asked either: closed, not open.
        site.auth.sessions.forget()
        problem(await client.get("/v1/instruments"), 503, "unavailable")


async def test_health_and_metrics(site: Any, problem: Any) -> None:
    async with site.client() as client:
        assert (await client.get("/health/live")).json() == {"status": "ok"}

        async def fine() -> str | None:
            return None

        async def away() -> str | None:
            return "no connection"

        async def broken() -> str | None:
            raise RuntimeError("secret")

        site.checks["database"] = fine
        answer = await client.get("/health/ready")
        assert answer.json() == {"status": "ok", "checks": {"database": "ok"}}
        site.checks.update(gateway=away, market=broken)
        answer = await client.get("/health/ready")
        document = problem(answer, 503, "not_ready")
        assert document["checks"] == {
            "database": "ok",
            "gateway": "no connection",
            "market": "failed",
        }
        assert "secret" not in answer.text
        for path in ("/random-1", "/random-2"):
            await client.request("GET", path)
        await client.request("BREW", "/random-3")
        text = (await client.get("/metrics")).text
        assert 'tbot_http_requests_total{method="GET",route="/health/live",status="200"}' in text
        assert 'route="unmatched",status="404"' in text
        assert "random" not in text
        assert "BREW" not in text
        assert "tbot_http_request_duration_seconds_bucket" in text
