"""Connections that take too long, send too much, or are too many; and load beyond what can be done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import structlog
import uvicorn

from tbot.core.errors import Overloaded
from tbot.core.limit_settings import OverloadSettings
from tbot.core.settings import Settings
from tbot.web.overload import Overload
from tbot.web.server import server_options

HEAD = b"GET /health/live HTTP/1.1\r\nHost: t\r\n\r\n"


class Peer:
    """A client that says what it likes, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        async with asyncio.timeout(20):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            return head + await self.reader.readexactly(length)

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(20):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body of `/read`, and of nothing else; a POST answers 401."""
    if scope["path"] == "/read":
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass
        if message["type"] == "http.disconnect":
            return
    status = 401 if scope["method"] == "POST" else 200
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
async def world() -> AsyncIterator[Any]:
    """Serves an application with settings of `overload`; answers how to connect to it."""
    peers: list[Peer] = []
    servers: list[tuple[uvicorn.Server, asyncio.Task[None]]] = []

    async def start(**overload: Any) -> Any:
        settings = Settings(overload=OverloadSettings(**overload))
        options = server_options(application, settings) | {"port": 0}
        server = uvicorn.Server(uvicorn.Config(**options))
        servers.append((server, asyncio.create_task(server.serve())))
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]

        async def connect(source: str = "127.0.0.1") -> Peer:
            opened = await asyncio.open_connection("127.0.0.1", port, local_addr=(source, 0))
            peers.append(Peer(*opened))
            return peers[-1]

        return connect

    yield start
    for peer in peers:
        peer.writer.close()
    for server, task in servers:
        server.should_exit = True
        await task


def ended(answer: bytes, status: int, code: str) -> None:
    """Check a connection's last words."""
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    assert answer.count(b"HTTP/1.1 %d " % status) == 1
    lower = answer.lower()
    for header in (b"connection: close", b"x-request-id: ", b"x-content-type-options: nosniff"):
        assert header in lower
    assert b"content-type: application/problem+json" in lower
    assert b'"code":"%s"' % code.encode() in answer


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"", ""),
        (b"GET /health/live HTT", "request_timeout"),
        (b"GET /health/live HTTP/1.1\r\nHost: t\r\nX-Slow: ", "request_timeout"),
        (b"\r\n\r\n", "request_timeout"),
        (
            b"POST /read HTTP/1.1\r\nHost: t\r\nContent-Length: 50\r\n\r\nusername=",
            "request_timeout",
        ),
        (
            b"POST /read HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nuser\r\n",
            "request_timeout",
        ),
    ],
)
async def test_who_is_slow_is_timed_out_and_nobody_else_is(
    world: Any, said: bytes, code: str
) -> None:
    """Attack 35."""
    connect = await world(headers_timeout_s=0.3, body_timeout_s=0.3)
    quick = await connect()
    await quick.send(HEAD)
    assert (await quick.head()).startswith(b"HTTP/1.1 200 ")
    slow = await connect()  # its time runs from here on
    await slow.send(said)
    last = await slow.rest()
    if code:
        ended(last, 408, code)
    else:
        assert last == b""
    # `quick` was idle all that while, which it may be.
    await quick.send(HEAD)
    assert (await quick.head()).startswith(b"HTTP/1.1 200 ")


async def test_after_an_answer_a_slow_body_gets_no_second_one(world: Any) -> None:
    connect = await world(body_timeout_s=0.3)
    peer = await connect()
    await peer.send(b"POST /v1/orders HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n{")
    answer = await peer.rest()
    assert answer.startswith(b"HTTP/1.1 401 ")
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_idle_connection_ends(world: Any) -> None:
    connect = await world(keep_alive_s=0.3)
    peer = await connect()
    await peer.send(HEAD)
    assert (await peer.head()).startswith(b"HTTP/1.1 200 ")
    assert await peer.rest() == b""


@pytest.mark.parametrize("chunks", [1, 20])
async def test_a_large_head_is_refused_while_it_comes(world: Any, chunks: int) -> None:
    """Attack 36."""
    connect = await world(headers_bytes_max=8192)
    peer = await connect()
    part = b"X-More: " + b"x" * (10_000 // chunks) + b"\r\n"
    await peer.send(b"GET /health/live HTTP/1.1\r\nHost: t\r\n")
    for _ in range(chunks):
        await peer.send(part)
    ended(await peer.rest(), 431, "headers_too_large")
    whole = await connect()
    await whole.send(HEAD[:-2] + part * chunks + b"\r\n")
    ended(await whole.rest(), 431, "headers_too_large")
    # A head that fits is not confused with the body that comes with it.
    fits = await connect()
    body = b"x" * 20_000
    await fits.send(
        b"POST /v1/orders HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
        + HEAD
    )
    assert (await fits.head()).startswith(b"HTTP/1.1 401 ")
    assert (await fits.head()).startswith(b"HTTP/1.1 200 ")


async def test_junk_ends_its_connection_with_a_problem(world: Any) -> None:
    connect = await world()
    for junk in (b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"\x00" * 5000, b"GET\r\n\r\n"):
        peer = await connect()
        await peer.send(junk)
        ended(await peer.rest(), 400, "bad_request")
    # In the middle of a body, the request's own answer stands.
    peer = await connect()
    await peer.send(
        b"POST /v1/orders HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    )
    assert (await peer.rest()).count(b"HTTP/1.1 4") == 1


async def test_an_address_has_so_many_connections(world: Any) -> None:
    connect = await world(connections_per_address_max=2)
    kept = [await connect() for _ in range(2)]
    for peer in kept:
        await peer.send(HEAD)
        assert (await peer.head()).startswith(b"HTTP/1.1 200 ")
    ended(await (await connect()).rest(), 429, "too_many_clients")
    elsewhere = await connect("127.0.0.2")
    await elsewhere.send(HEAD)
    assert (await elsewhere.head()).startswith(b"HTTP/1.1 200 ")
    # One that leaves makes room; when the server has noticed.
    kept[0].writer.close()
    await kept[0].writer.wait_closed()
    async with asyncio.timeout(10):
        while True:
            again = await connect()
            await again.send(HEAD)
            if (await again.head()).startswith(b"HTTP/1.1 200 "):
                break


async def test_when_all_places_are_taken_who_is_idle_makes_room(world: Any) -> None:
    connect = await world(connections_max=3)
    silent = [await connect() for _ in range(3)]
    customer = await connect()
    await customer.send(HEAD)
    assert (await customer.head()).startswith(b"HTTP/1.1 200 ")
    _, pending = await asyncio.wait(
        [asyncio.create_task(peer.rest()) for peer in silent],
        timeout=20,
        return_when="FIRST_COMPLETED",
    )
    assert len(pending) == 2
    for task in pending:
        task.cancel()


async def test_when_all_are_busy_newcomers_wait_outside(world: Any) -> None:
    connect = await world(connections_max=2)
    busy = [await connect() for _ in range(2)]
    for peer in busy:
        await peer.send(b"GET /health/live HTTP/1.1\r\n")
    # They are known to be busy once something after them was served.
    await busy[0].send(b"Host: t\r\n\r\n")
    assert (await busy[0].head()).startswith(b"HTTP/1.1 200 ")
    await busy[0].send(b"GET /health/live HTTP/1.1\r\n")
    other = await connect()
    said = await other.rest()
    assert said.startswith(b"HTTP/1.1 503 ") or said == b""


# Load


def full(**settings: Any) -> Overload:
    return Overload(OverloadSettings(**settings))


CASES = {
    "NEW": [
        ("POST", "/v1/orders"),
        ("POST", "/v1/token"),
        ("PATCH", "/v1/accounts/1"),
        ("DELETE", "/v1/sessions/1"),
    ],
    "READ": [("GET", "/v1/orders"), ("HEAD", "/nope")],
    "NEVER": [
        ("DELETE", "/v1/orders"),
        ("DELETE", "/v1/orders/1"),
        ("POST", "/v1/token/refresh"),
        ("POST", "/v1/token/revoke"),
        ("GET", "/health/ready"),
        ("GET", "/metrics"),
    ],
}


def refused(overload: Overload) -> set[str]:
    found = set()
    for name, requests in CASES.items():
        for method, path in requests:
            with contextlib.suppress(Overloaded):
                overload.check(method, path)
                continue
            found.add(name)
    return found


def test_new_work_is_shed_first_and_cancels_never_by_lateness() -> None:
    overload = full(lag_ms_max=100)
    for late_s, expected in (
        ((0.05, 0.05, 0.05, 0.05), set()),
        ((9.0, 0.0, 9.0, 9.0), set()),  # a pause, and not all the time
        ((0.15, 0.15, 9.0, 0.15), {"NEW"}),
        ((0.3, 0.3, 0.3, 9.0), {"NEW", "READ"}),
        ((0.0,), set()),
    ):
        for each in late_s:
            overload.look(1.0, each)
        assert refused(overload) == expected


async def test_new_work_is_shed_first_and_cancels_never_by_number() -> None:
    overload = full(requests_max=4)
    leave = asyncio.Event()

    async def request() -> None:
        task = overload.begin()
        await leave.wait()
        overload.end(task)

    tasks = []
    for count, expected in ((3, set()), (4, {"NEW"}), (5, {"NEW", "READ"})):
        while len(tasks) < count:
            tasks.append(asyncio.create_task(request()))
            await asyncio.sleep(0)
        assert overload.under_way == count
        assert refused(overload) == expected
    leave.set()
    await asyncio.gather(*tasks)
    assert overload.under_way == 0
    assert refused(overload) == set()


async def test_what_is_shed_gets_a_problem_and_cancels_go_through(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann:
        account = await site.account(ann, USDT="1000")
        order = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "99",
        }
        placed = await ann.post("/v1/orders", json=order)
        before = await site.journal_size()
        site.app.state.overload.lag_s = 1e6
        for refused_one in (
            await ann.post("/v1/orders", json=order),
            await ann.post("/v1/orders?x", json=order),
            await ann.get("/v1/orders"),
        ):
            problem(refused_one, 503, "overloaded")
            assert int(refused_one.headers["retry-after"]) >= 1
        assert await site.journal_size() == before
        assert (await ann.delete(placed.headers["location"])).status_code == 202
        assert (await ann.get("/health/live")).status_code == 200


async def test_what_takes_too_long_is_ended_and_may_have_been_done(
    site: Any, problem: Any, eventually: Any
) -> None:
    overload = site.app.state.overload
    async with site.client("ann") as ann:
        account = await site.account(ann, USDT="1000")
        order = {
            "account_id": account["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "99",
            "client_order_id": "slow",
        }
        lean = asyncio.create_task(
            ann.post("/v1/orders", json=order, headers={"Prefer": "wait=30"})
        )
        stock = asyncio.create_task(
            ann.post("/v1/orders?x", json=order, headers={"Prefer": "wait=30"})
        )
        await eventually(lambda: overload.under_way == 2)
        size = await site.journal_size()
        await eventually(lambda: site.journal_size())
        now_s = asyncio.get_running_loop().time()
        overload.look(now_s)
        assert not lean.done()
        with structlog.testing.capture_logs() as logs:
            overload.look(now_s + 100)
            problem(await lean, 504, "outcome_unknown")
            problem(await stock, 504, "outcome_unknown")
        assert [log["event"] for log in logs].count("request_overdue") == 2
        assert overload.under_way == 0
        assert size >= 1
        # Under the same key one learns what became of it.
        again = await ann.post("/v1/orders", json=order)
        assert again.status_code in (200, 201)
        assert len((await ann.get("/v1/orders")).json()["items"]) == 1


async def test_a_read_that_takes_too_long_is_unavailable(
    site: Any, problem: Any, eventually: Any
) -> None:
    overload = site.app.state.overload
    held: list[Any] = [await site.pool.acquire() for _ in range(8)]
    try:
        async with site.client() as stranger:
            stuck = asyncio.create_task(stranger.get("/health/ready"))
            site.checks["stuck"] = lambda: asyncio.Event().wait()
            await eventually(lambda: overload.under_way == 1)
            overload.look(asyncio.get_running_loop().time() + 100)
            problem(await stuck, 503, "unavailable")
    finally:
        for connection in held:
            await site.pool.release(connection)
    assert isinstance(stuck.result(), httpx.Response)
