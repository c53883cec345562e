"""The SDK over server-sent events and by ticket, against the real endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
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
        """A trade on the market."""
        at = datetime(2026, 11, 22, tzinfo=UTC)
        trade = MarketTrade("BTCUSDT", trade_id, Decimal(100), Decimal(1), False, at)
        self.site.streams.market.hear(BTC, Traded(trade))

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
        trades = stream.trades(BTC)
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
    assert not gaps
    async with reader.client.events() as stream:
        again = await anext(stream.account(reader.account_id, resume=place))
        assert isinstance(again, Entry) and again.seq == entry.seq + 1


async def test_what_events_are_refused(reader: Reader) -> None:
    async with reader.client.events() as stream:
        missing, candles = stream.ticker("NO-SUCH"), stream.candles(BTC, "1h")
        with pytest.raises(Refused, match="unknown_symbol"):
            await anext(missing)
        with pytest.raises(Refused, match="no channel candles"):  # which is not this site's
            await anext(candles)
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
