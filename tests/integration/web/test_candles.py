"""Candles over HTTP: pages, caching, files; and a market's status."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from tbot.core.clock import from_ms
from tbot.core.settings import CandleSettings
from tbot.market import candle_store as store
from tbot.market.candle_builder import CandleBuilder
from tbot.market.candle_feed import CandleFeed
from tbot.market.candles import Candle, Interval
from tbot.market.feed import Traded
from tbot.market.status import Halt, StatusBoard
from tbot.venues.base import Kline, MarketTrade
from tbot.web.candles import CandlePage, StatusOut

DAY_MS = 1_723_075_200_000
PATH = "/v1/instruments/BTC-USDT/candles"


class Nothing:
    """A venue that remembers nothing."""

    name = "paper"

    async def trades_from(self, *_: Any) -> list[MarketTrade]:
        return []

    async def klines(self, *_: Any) -> list[Kline]:
        return []


def trade(number: int, at_ms: int) -> MarketTrade:
    price, quantity = Decimal(100 + number % 5), Decimal("0.5")
    return MarketTrade("BTCUSDT", number, price, quantity, False, from_ms(at_ms))


@pytest.fixture
async def market(site: Any) -> Any:
    """A site with 120 stored minutes, one in memory only, and an open one."""
    builder, closed = CandleBuilder(0), list[Candle]()
    trades = [trade(n + 1, DAY_MS + n * 20_000) for n in range(121 * 3 + 2)]
    for one in trades:
        closed += builder.add(one)
    minutes = [one for one in closed if one.interval is Interval.M1]
    assert len(minutes) == 121
    async with site.pool.acquire() as connection:
        await store.save(connection, "paper", [("BTC-USDT", one) for one in minutes[:120]])
    feed = CandleFeed(Nothing(), CandleSettings())
    feed.start(site.orders.instruments.all("paper"))
    for one in trades[118 * 3 :]:
        feed.hear("BTC-USDT", Traded(one))
    halts = [Halt("instrument:paper:BTC-USDT", "news", datetime(2024, 8, 8, tzinfo=UTC))]

    async def read() -> list[Halt]:
        return halts

    board = StatusBoard("paper", site.feed, read, lambda: True, 60.0)
    await board.look()
    site.app.state.deps = replace(
        site.app.state.deps, candles={"paper": feed}, statuses={"paper": board}
    )
    yield site
    await feed.stop()


def starts(page: dict[str, Any]) -> list[int]:
    return [
        (int(datetime.fromisoformat(one["start"]).timestamp()) * 1000 - DAY_MS) // 60_000
        for one in page["items"]
    ]


async def test_pages_reach_from_the_open_candle_to_the_first(market: Any, problem: Any) -> None:
    async with market.client("ann") as client:
        seen: list[int] = []
        query: dict[str, Any] = {"limit": 50}
        while True:
            answer = await client.get(PATH, params=query)
            page = answer.json()
            CandlePage.model_validate(page)
            seen += starts(page)
            if page["next"] is None:
                assert "link" not in answer.headers
                break
            assert 'rel="next"' in answer.headers["link"]
            query["cursor"] = page["next"]
        assert seen == list(range(121, -1, -1))
        first = (await client.get(PATH, params={"limit": 3})).json()
        assert [(one["closed"], one["complete"]) for one in first["items"]] == [
            (False, True), (True, True), (True, True),
        ]  # fmt: skip
        assert first["items"][1]["trades"] == 3
        assert first["items"][1]["first_trade_id"] == 120 * 3 + 1
        bob = await client.get(PATH, params={"cursor": first["next"], "interval": "5m"})
        problem(bob, 400, "invalid_cursor")
        problem(await client.get(PATH, params={"interval": "2m"}), 422, "validation_failed")
        problem(await client.get(PATH.replace("BTC", "NO")), 404, "not_found")
        backwards = {"from": "2024-08-09T00:00:00Z", "to": "2024-08-08T00:00:00Z"}
        problem(await client.get(PATH, params=backwards), 422, "validation_failed")


async def test_what_is_over_may_be_kept_and_what_is_open_hardly(market: Any) -> None:
    async with market.client("ann") as client:
        span = {"from": "2024-08-08T00:10:00Z", "to": "2024-08-08T00:20:00Z"}
        await market.pool.execute("UPDATE candles SET stored_at = now() + interval '1 hour'")
        just_now = await client.get(PATH, params=span)
        assert "last-modified" not in just_now.headers  # it would be later than the answer
        await market.pool.execute("UPDATE candles SET stored_at = now() - interval '1 hour'")
        over = await client.get(PATH, params=span)
        assert starts(over.json()) == list(range(19, 9, -1))
        assert over.headers["cache-control"] == "private, max-age=86400, immutable"
        assert over.json()["stale"] is False
        for condition in (
            {"If-None-Match": over.headers["etag"]},
            {"If-Modified-Since": over.headers["last-modified"]},
        ):
            again = await client.get(PATH, params=span, headers=condition)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == over.headers["etag"]
            assert again.headers["cache-control"] == over.headers["cache-control"]
        changed = {"If-None-Match": '"other"', "If-Modified-Since": over.headers["last-modified"]}
        assert (await client.get(PATH, params=span, headers=changed)).status_code == 200
        bad = {"If-Modified-Since": "yesterday"}
        assert (await client.get(PATH, params=span, headers=bad)).status_code == 200
        now = await client.get(PATH, params={"limit": 2})
        assert now.headers["cache-control"] == "private, max-age=1"
        tag = {"If-None-Match": now.headers["etag"]}
        assert (await client.get(PATH, params={"limit": 2}, headers=tag)).status_code == 304
        feed = market.app.state.deps.candles["paper"]
        feed.hear("BTC-USDT", Traded(trade(121 * 3 + 3, DAY_MS + 121 * 60_000 + 50_000)))
        assert (await client.get(PATH, params={"limit": 2}, headers=tag)).status_code == 200
        # A span whose end is still to come is not over, whatever it holds by now.
        future = {"from": "2024-08-08T00:10:00Z", "to": "2024-08-09T00:00:00Z"}
        later = await client.get(PATH, params=future)
        assert later.headers["cache-control"] == "private, max-age=1"


async def test_incomplete_candles_are_not_to_be_kept(market: Any) -> None:
    await market.pool.execute("UPDATE candles SET complete = false WHERE start_at = $1",
                              from_ms(DAY_MS + 12 * 60_000))  # fmt: skip
    async with market.client("ann") as client:
        span = {"from": "2024-08-08T00:10:00Z", "to": "2024-08-08T00:20:00Z"}
        answer = await client.get(PATH, params=span)
        assert answer.headers["cache-control"] == "private, max-age=1"
        assert [one["complete"] for one in answer.json()["items"]].count(False) == 1


async def test_what_is_still_asked_for_is_not_to_be_kept(market: Any) -> None:
    """A page of nothing but whole candles can lack some: as after an hour without the process."""
    span = {"from": "2024-08-08T00:10:00Z", "to": "2024-08-08T00:20:00Z"}
    async with market.client("ann") as client:
        kept = await client.get(PATH, params=span)
        assert "immutable" in kept.headers["cache-control"]
        async with market.pool.acquire() as connection:
            missing = store.Gap("BTC-USDT", Interval.M1, DAY_MS, DAY_MS + 10 * 60_000)
            await store.save_gaps(connection, "paper", [missing])
            answer = await client.get(PATH, params=span)
            assert answer.headers["cache-control"] == "private, max-age=1"
            later = {**span, "from": "2024-08-08T00:11:00Z"}  # none of these
            assert "immutable" in (await client.get(PATH, params=later)).headers["cache-control"]
        # Nothing was stored from its end on: what is missing before that may not be known yet.
        newest = {"from": "2024-08-08T01:55:00Z", "to": "2024-08-08T02:00:00Z"}
        answer = await client.get(PATH, params=newest)
        assert len(answer.json()["items"]) == 5
        assert answer.headers["cache-control"] == "private, max-age=1"


async def test_memory_fills_in_what_is_older_than_anything_stored(market: Any) -> None:
    feed = market.app.state.deps.candles["paper"]
    newest = feed.recent("BTC-USDT", Interval.M1, 100)[-1]
    await market.pool.execute("DELETE FROM candles")
    async with market.pool.acquire() as connection:
        await store.save(connection, "paper", [("BTC-USDT", newest)])
    async with market.client("ann") as client:
        assert starts((await client.get(PATH)).json()) == [121, 120, 119, 118]
        page = (await client.get(PATH, params={"limit": 2})).json()
        rest = (await client.get(PATH, params={"limit": 2, "cursor": page["next"]})).json()
        assert starts(page) + starts(rest) == [121, 120, 119, 118] and rest["next"] is None


async def test_all_of_them_as_a_file(market: Any, problem: Any) -> None:
    async with market.client("ann") as client:
        answer = await client.get(PATH, headers={"Accept": "text/csv"})
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        assert len(rows) == 120 and rows[0]["start"] == "2024-08-08T00:00:00.000000Z"
        assert (rows[0]["open"], rows[0]["complete"]) == ("101", "true")
        assert 'filename="candles-BTC-USDT-1m.csv"' in answer.headers["content-disposition"]
        span = {"from": "2024-08-08T01:00:00Z", "to": "2024-08-08T01:05:00Z"}
        lines = await client.get(PATH, params=span, headers={"Accept": "application/x-ndjson"})
        found = [json.loads(line) for line in lines.text.splitlines()]
        page = (await client.get(PATH, params=span)).json()
        assert found == page["items"][::-1] and len(found) == 5
        paged = await client.get(PATH, params={"limit": 5}, headers={"Accept": "text/csv"})
        problem(paged, 422, "validation_failed")


async def test_status(market: Any, problem: Any) -> None:
    async with market.client("ann") as client:
        answer = (await client.get("/v1/instruments/BTC-USDT/status")).json()
        StatusOut.model_validate(answer)
        assert (answer["book"], answer["stale"], answer["orders"]) == ("live", False, "halted")
        assert answer["halts"][0]["reason"] == "news"
        quiet = (await client.get("/v1/instruments/ETH-USDT/status")).json()
        assert (quiet["stale"], quiet["halts"], quiet["orders"]) == (True, [], "sent")
        problem(await client.get("/v1/instruments/NO-USDT/status"), 404, "not_found")
