"""Server-sent events: the stream's messages for those without a WebSocket, over a real socket."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tbot.auth import flow as auth_flow
from tbot.market.feed import Traded
from tbot.venues.base import MarketTrade
from tbot.web import events

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streamclient import Client, dial

BTC = "BTC-USDT"
PASSWORD = "correct horse battery staple"


class Event:
    """One event, and the last id up to it."""

    def __init__(self, id: str, name: str, data: str) -> None:
        self.id = id
        self.name = name
        self.message: dict[str, Any] = json.loads(data)


class Source:
    """What a browser's EventSource does with an answer's bytes."""

    def __init__(self, response: httpx.Response) -> None:
        self._events = self._parse(response.aiter_lines())
        self.comments = 0

    async def _parse(self, lines: AsyncIterator[str]) -> AsyncIterator[Event]:
        last, name, data = "", "message", ""
        async for line in lines:
            field, _, value = line.partition(": ")
            if not line and data:
                yield Event(last, name, data)
                name, data = "message", ""
            elif line.startswith(":"):
                self.comments += 1
            elif field == "id":
                last = value
            elif field == "event":
                name = value
            elif field == "data":
                data = value

    async def next(self, *ops: str) -> Event:
        """The next event of one of these kinds."""
        async with asyncio.timeout(10):
            async for event in self._events:
                if event.message["op"] in ops:
                    return event
        raise AssertionError("the events ended")


class Page:
    """Ann's page."""

    def __init__(self, site: Any, url: str, account_id: str) -> None:
        self.site = site
        self.url = url
        self.account_id = account_id

    @asynccontextmanager
    async def follow(self, channels: str, last_id: str = "", **more: Any) -> AsyncIterator[Source]:
        """An open stream of events, by bearer token."""
        headers = {"Authorization": f"Bearer {await self.site.token('ann')}"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        params = {"channels": channels, **more}
        async with (
            httpx.AsyncClient(base_url=self.url, timeout=10) as client,
            client.stream("GET", "/v1/events", params=params, headers=headers) as response,
        ):
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-store"
            yield Source(response)

    async def order(self) -> None:
        """One entry more in the journal."""
        async with self.site.client("ann") as client:
            order = {
                "account_id": self.account_id,
                "symbol": BTC,
                "side": "buy",
                "type": "limit",
                "quantity": "0.1",
                "limit_price": "90.00",
            }
            assert (await client.post("/v1/orders", json=order)).status_code == 201

    def trade(self, trade_id: int) -> None:
        """A trade on the market, each a second later."""
        at = datetime(2026, 11, 22, 5, 14, 43, tzinfo=UTC) + timedelta(seconds=trade_id)
        trade = MarketTrade("BTCUSDT", trade_id, Decimal(100), Decimal(1), False, at)
        for hear in (self.site.candles.hear, self.site.streams.market.hear):
            hear(BTC, Traded(trade))


@pytest.fixture
async def page(site: Any, serve: Any) -> Page:
    async with site.client("ann") as client:
        account = await site.account(client, USDT="100000")
    return Page(site, await serve(site), account["id"])


async def test_the_events_are_the_streams_own_messages(page: Page) -> None:
    wishes = f"trades:{BTC},book:{BTC}:depth=5:interval_ms=50,account:{page.account_id},bbo:NO-SUCH"
    async with page.follow(wishes) as source:
        hello = await source.next("hello")
        assert hello.message["protocol"] == "tbot.v1.json" and hello.id == ""
        assert (await source.next("authed")).message["user"]
        subs = (await source.next("subbed")).message["subs"]
        assert subs[1]["depth"] == 5 and subs[3]["error"]["code"] == "unknown_symbol"
        snaps = [(await source.next("snap")).message for _ in range(3)]
        assert {snap["ch"] for snap in snaps} == {sub["ch"] for sub in subs[:3]}
        page.trade(8)
        delta = (await source.next("delta")).message
        assert delta["ch"] == subs[0]["ch"] and delta["data"]["trade_id"] == 8
        await page.order()
        entry = await source.next("delta")
        assert entry.message["ch"] == subs[2]["ch"] and entry.id
        # A WebSocket gets the same numbers.
        async with dial(page.url) as websocket:
            client = Client(websocket)
            await client.hear()
            await client.say(op="auth", token=await page.site.token("ann"))
            await client.hear_op("authed")
            (sub,) = await client.sub({"channel": "trades", "symbol": BTC})
            assert sub["ch"] == subs[0]["ch"]
            assert (await client.hear_op("snap"))["seq"] == delta["seq"]


async def deltas(source: Source, subs: list[dict[str, Any]], *least: int) -> tuple[Any, str]:
    """The numbers of the next deltas, at least so many of each channel, and the last event's id."""
    numbers = [sub["ch"] for sub in subs]
    found: list[list[int]] = [[] for _ in least]
    last = ""
    while any(len(seqs) < most for seqs, most in zip(found, least, strict=True)):
        event = await source.next("delta", "snap", "gap")
        assert event.message["op"] == "delta", event.message
        found[numbers.index(event.message["ch"])].append(event.message["seq"])
        last = event.id
    return found, last


async def test_everything_goes_on_after_the_last_event(page: Page) -> None:
    wishes = f"account:{page.account_id},trades:{BTC},candles:{BTC}:interval=1s:interval_ms=0"
    async with page.follow(wishes) as source:
        begun = (await source.next("subbed")).message["subs"]
        for _ in begun:
            await source.next("snap")
        await page.order()
        page.trade(8)
        # Of candles the one that closed, and the one that is open.
        before, last_id = await deltas(source, begun, 1, 1, 2)
    for number in range(9, 12):
        page.trade(number)
    await page.order()
    for how in ({"last_id": last_id}, {"last_event_id": last_id}):
        async with page.follow(wishes, **how) as source:  # type: ignore[arg-type]
            subs = (await source.next("subbed")).message["subs"]
            assert [sub["recovered"] for sub in subs] == [True, True, True]
            again, _ = await deltas(source, subs, 1, 3, 6)
            for seqs, known in zip(again, before, strict=True):
                assert seqs == list(range(known[-1] + 1, known[-1] + 1 + len(seqs)))


async def test_an_id_that_is_not_ours_begins_anew(page: Page) -> None:
    account = f"account:{page.account_id}"
    for last_id in ("x", "a/b/c", "e/0.1", "e/9.1.2", "e/0.x.y", "e/0.1.0000000000000000"):
        async with page.follow(account, last_id=last_id) as source:
            assert (await source.next("snap")).message["seq"] >= 1
    async with page.follow(account, last_id="e/0.1.short") as source:
        (sub,) = (await source.next("subbed")).message["subs"]
        assert sub["error"]["code"] == "bad_parameter"


async def test_a_ticket_opens_it_once(page: Page, problem: Any) -> None:
    async with page.site.client("ann") as client:
        ticket = (await client.post("/v1/stream/tickets", json={})).json()["ticket"]
    params = {"channels": f"bbo:{BTC}", "ticket": ticket}
    async with httpx.AsyncClient(base_url=page.url, timeout=10) as client:
        async with client.stream("GET", "/v1/events", params=params) as response:
            assert response.status_code == 200
            await Source(response).next("snap")
        problem(await client.get("/v1/events", params=params), 401, "invalid_token")


async def test_what_is_not_well_asked_is_refused(page: Page, problem: Any) -> None:
    bearer = {"Authorization": f"Bearer {await page.site.token('ann')}"}
    good = {"channels": f"bbo:{BTC}"}
    cases: list[tuple[dict[str, str], dict[str, str], int, str]] = [
        (good, {}, 401, "unauthenticated"),
        ({**good, "ticket": "x"}, bearer, 400, "bad_request"),
        ({**good, "token": "x"}, bearer, 400, "bad_request"),
        ({}, bearer, 422, "validation_failed"),
        ({"channels": ""}, bearer, 422, "validation_failed"),
        ({"channels": "bbo"}, bearer, 422, "validation_failed"),
        ({"channels": "book:X-Y:depth"}, bearer, 422, "validation_failed"),
        ({"channels": "book:X-Y:depth=x"}, bearer, 422, "validation_failed"),
        ({"channels": ",".join(["bbo:X-Y"] * 33)}, bearer, 422, "validation_failed"),
        ({"channels": "a" * 3000}, bearer, 422, "validation_failed"),
        (good, {**bearer, "Accept": "application/json"}, 406, "not_acceptable"),
        (good, {**bearer, "Origin": "https://evil.example"}, 403, "origin_not_allowed"),
    ]
    async with httpx.AsyncClient(base_url=page.url, timeout=10) as client:
        for params, headers, status, code in cases:
            problem(await client.get("/v1/events", params=params, headers=headers), status, code)
        head = await client.head("/v1/events", params=good, headers=bearer)
        assert head.status_code == 200 and head.content == b""
        assert (await client.post("/v1/events", headers=bearer)).status_code == 405
    assert not page.site.streams.hub.subscribers


async def test_it_counts_as_a_connection(page: Page, problem: Any, eventually: Any) -> None:
    settings, streams = page.site.settings.stream, page.site.streams
    settings.clients_per_user_max = 1
    bearer = {"Authorization": f"Bearer {await page.site.token('ann')}"}
    params = {"channels": f"bbo:{BTC}"}
    async with (
        httpx.AsyncClient(base_url=page.url, timeout=10) as client,
        page.follow(f"bbo:{BTC}") as source,
    ):
        await source.next("snap")
        answer = await client.get("/v1/events", params=params, headers=bearer)
        problem(answer, 429, "too_many_clients")
        assert int(answer.headers["retry-after"]) >= 1
        settings.clients_max = 1
        answer = await client.get("/v1/events", params=params, headers=bearer)
        problem(answer, 503, "overloaded")
    await eventually(lambda: not streams.hub.subscribers)
    assert not streams.admission.users and not streams.admission.addresses
    assert streams.admission.newcomers == 0


async def test_silence_is_filled_with_comments(page: Page, monkeypatch: Any) -> None:
    monkeypatch.setattr(page.site.settings.stream, "heartbeat_s", 0.2)
    async with page.follow(f"bbo:{BTC}") as source:
        await source.next("snap")
        listening = asyncio.create_task(source.next("drain"))
        while source.comments < 2:
            await asyncio.sleep(0.02)
        draining = asyncio.create_task(page.site.streams.drain())
        assert (await listening).message["reconnect_after_ms"] >= 0
        end = await source.next("close")
        assert end.name == "close" and end.message["code"] == 4201
        await draining


async def test_it_ends_with_the_session(page: Page) -> None:
    grant = await auth_flow.login(page.site.auth, "ann", PASSWORD)
    headers = {"Authorization": f"Bearer {grant.access_token}"}
    params = {"channels": f"bbo:{BTC}"}
    async with (
        httpx.AsyncClient(base_url=page.url, timeout=10) as client,
        client.stream("GET", "/v1/events", params=params, headers=headers) as response,
        aclosing(response),
    ):
        source = Source(response)
        await source.next("snap")
        await auth_flow.revoke(page.site.auth, grant.refresh_token)
        assert (await source.next("error")).message["code"] == "session_over"
        assert (await source.next("close")).message["code"] == 4003


async def test_who_does_not_read_is_bounded_and_cut_off(
    page: Page, monkeypatch: Any, eventually: Any
) -> None:
    settings, streams = page.site.settings.stream, page.site.streams
    monkeypatch.setattr(settings, "stall_timeout_s", 0.3)
    host, port = page.url.removeprefix("http://").split(":")
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(stalled, (host, int(port)))
    request = (
        f"GET /v1/events?channels=trades:{BTC} HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {await page.site.token('ann')}\r\n\r\n"
    )
    await loop.sock_sendall(stalled, request.encode())
    await eventually(lambda: any(one.subscriptions for one in streams.hub.subscribers))
    output = next(iter(streams.hub.subscribers)).output
    assert isinstance(output, events.EventOutput)
    number = 100
    while streams.hub.subscribers:
        for _ in range(200):
            number += 1
            page.trade(number)
        assert sum(map(len, output._batches)) < 200_000
        await asyncio.sleep(0)
    await eventually(lambda: not page.site.streams.admission.addresses)
    await eventually(lambda: not owned(int(port), stalled.getsockname()[1]))
    stalled.close()


def owned(local: int, remote: int) -> bool:
    """Whether somebody still has the socket between two ports; the kernel's orphans have no inode."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        ports = [int(word.rpartition(":")[2], 16) for word in words[1:3]]
        if ports == [local, remote] and words[9] != "0":
            return True
    return False


async def test_a_client_that_leaves_leaves_nothing(page: Page, eventually: Any) -> None:
    streams = page.site.streams
    async with AsyncExitStack() as stack:
        sources = [
            await stack.enter_async_context(page.follow(f"account:{page.account_id}"))
            for _ in range(5)
        ]
        for source in sources:
            await source.next("snap")
        assert len(streams.hub.subscribers) == 5
    await eventually(lambda: not streams.hub.subscribers)
    assert not streams.hub._private and UUID(page.account_id)
