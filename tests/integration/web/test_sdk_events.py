"""The SDK over server-sent events and by ticket, against the real endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from tbot.client import (
    AccountSnapshot,
    AuthError,
    Entry,
    Gap,
    Refused,
    Stream,
    TBotClient,
    TicketKeeper,
    Unavailable,
)
from tbot.client.channels import AccountChannel
from tbot.market.feed import Traded
from tbot.venues.base import MarketTrade

BTC = "BTC-USDT"


class Reader:
    """Ann's program, with an account."""

    def __init__(self, site: Any, url: str, client: TBotClient, account_id: str) -> None:
        self.site = site
        self.url = url
        self.client = client
        self.account_id = account_id
        self.renamed = 0

    def trade(self, trade_id: int) -> None:
        """A trade on the market, each a second later."""
        at = datetime(2026, 11, 22, 5, 14, 43, tzinfo=UTC) + timedelta(seconds=trade_id)
        trade = MarketTrade("BTCUSDT", trade_id, Decimal(100), Decimal(1), False, at)
        for hear in (self.site.candles.hear, self.site.streams.market.hear):
            hear(BTC, Traded(trade))

    async def rename(self) -> None:
        """One entry more in the journal."""
        self.renamed += 1
        await self.client.change_account(self.account_id, name=f"name {self.renamed}")

    def send_away(self, code: int) -> None:
        """End every connection."""
        for subscriber in list(self.site.streams.hub.subscribers):
            subscriber.close(code, "test")


@pytest.fixture
async def reader(site: Any, serve: Any) -> AsyncIterator[Reader]:
    async with site.client("ann") as http:
        account = await site.account(http, USDT="100000")
    url = await serve(site)
    async with TBotClient(url, token=await site.token("ann")) as client:
        yield Reader(site, url, client, account["id"])


async def test_events_go_on_over_losses_and_new_channels(reader: Reader, eventually: Any) -> None:
    gaps: list[Gap] = []
    async with reader.client.events(gaps.append) as stream:
        account = stream.account(reader.account_id)
        trades, candles = stream.trades(BTC), stream.candles(BTC, "1s", interval_ms=0)
        first = await anext(account)
        assert isinstance(first, AccountSnapshot) and stream.limits["subscriptions"] > 0
        reader.trade(8)
        assert (await anext(trades)).trade_id == 8
        await reader.rename()
        assert (await anext(account)).seq == first.seq + 1
        for lost, code in enumerate((4101, 4201), 1):
            reader.send_away(code)
            await eventually(lambda: not reader.site.streams.hub.subscribers)
            reader.trade(8 + lost)
            await reader.rename()
            assert (await anext(trades)).trade_id == 8 + lost
            entry = await anext(account)
            assert isinstance(entry, Entry) and entry.seq == first.seq + 1 + lost
        connections = stream.connections
        book = stream.book(BTC, depth=5)
        assert (await anext(book)).synced and stream.connections == connections + 1
        reader.trade(11)
        await reader.rename()
        assert (await anext(trades)).trade_id == 11
        assert (await anext(account)).seq == first.seq + 4
        book.close()
        place = (entry.seq, entry.hash)
        closed: list[int] = []
        async for candle in candles:
            assert candle.first_trade_id is not None
            if candle.closed:
                closed.append(candle.first_trade_id)
            elif candle.first_trade_id == 11:
                break
    assert closed == [7, 8, 9, 10] and not gaps
    async with reader.client.events() as stream:
        again = await anext(stream.account(reader.account_id, resume=place))
        assert isinstance(again, Entry) and again.seq == entry.seq + 1


@pytest.mark.parametrize("kind", ["stream", "events"])
async def test_an_account_that_is_taken_slowly_waits_at_the_server(
    reader: Reader, eventually: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(AccountChannel, "bound", 4)
    opening: Any = getattr(reader.client, kind)
    async with opening() as stream:
        account = stream.account(reader.account_id)
        first = await anext(account)
        for _ in range(11):
            await reader.rename()
        await eventually(lambda: account.full)
        assert (await anext(stream.best_prices(BTC))).bid == 99
        entries = [await anext(account) for _ in range(11)]
    assert [entry.seq for entry in entries] == list(range(first.seq + 1, first.seq + 12))


async def test_what_events_are_refused(reader: Reader) -> None:
    async with reader.client.events() as stream:
        missing = stream.ticker("NO-SUCH")
        with pytest.raises(Refused, match="unknown_symbol"):
            await anext(missing)
        for number in range(32):
            stream.best_prices(BTC, number)
        with pytest.raises(ValueError, match="at most 32"):
            stream.status(BTC)
    with pytest.raises(Unavailable, match="closed"):
        stream.trades(BTC)
    async with TBotClient(reader.url, token="no.such.token") as stranger, stranger.events() as bad:
        with pytest.raises(AuthError):
            await anext(bad.trades(BTC))


async def test_a_stream_is_opened_by_tickets(reader: Reader) -> None:
    asked = 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        return (await reader.client.ticket("market:read")).ticket

    async with Stream(reader.url, TicketKeeper(ask)) as stream:
        trades, account = stream.trades(BTC), stream.account(reader.account_id)
        with pytest.raises(Refused, match="insufficient_scope"):
            await anext(account)
        reader.send_away(4201)
        reader.trade(8)
        assert (await anext(trades)).trade_id == 8
    assert asked == 2
