"""Tickers that processes share through Valkey, for one that has none of its own at the moment.

A process reads its own feed first: that is memory, and fresh. One whose feed is silent or not there
yet (it has just started, or its connection to the venue is gone) tells what another process heard,
at most `market.stale_after_s` old. Without Valkey it says that it has no data, as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from tbot.core.cache import Cache, Shared
from tbot.core.clock import boot_s
from tbot.core.tasks import Tasks
from tbot.market.feed import MarketFeed

_NAME: Final = "tickers"
_AT_ONCE: Final = 8
_SYMBOLS_MAX: Final = 10_000


class SharedTickers:
    """Tells and asks for tickers, as the JSON of `tbot.web.market.TickerOut`.

    Args:
        keep_s: How old one may be.
        interval_s: How often they are told.
        render: A feed's ticker of a symbol as that JSON.
    """

    def __init__(
        self,
        shared: Shared,
        keep_s: float,
        interval_s: float,
        render: Callable[[MarketFeed, str], dict[str, Any]],
    ) -> None:
        self._shared = shared
        self._render = render
        self._keep_s = keep_s
        self._interval_s = interval_s
        self._tasks = Tasks(_NAME)
        self._cache: Cache[tuple[str, str], dict[str, Any] | None] = Cache(
            _NAME, self._ask, ttl_s=min(interval_s, keep_s), size_max=_SYMBOLS_MAX
        )

    def start(self, feeds: Mapping[str, MarketFeed]) -> None:
        """Tell the others what these feeds, by venue, hear."""
        self._tasks.start(self._tell_for_ever(feeds), "tell")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop()
        await self._cache.stop()

    async def get(self, venue: str, symbol: str) -> dict[str, Any] | None:
        """What another process heard lately; None when nobody did."""
        return await self._cache.get((venue, symbol))

    async def _ask(self, key: tuple[str, str]) -> dict[str, Any] | None:
        found = await self._shared.get(_NAME, ":".join(key), self._keep_s)
        if found is None:
            return None
        ticker: dict[str, Any] = msgspec.json.decode(found[0])
        return ticker

    async def _tell_for_ever(self, feeds: Mapping[str, MarketFeed]) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if self._shared.trusted:
                await self.tell(feeds)

    async def tell(self, feeds: Mapping[str, MarketFeed]) -> None:
        """One round: every ticker that is not stale."""
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(key: str, content: bytes) -> None:
            async with places:
                await self._shared.put(_NAME, key, content, boot_s() + self._keep_s)

        due = [
            (f"{venue}:{symbol}", self._render(feed, symbol))
            for venue, feed in feeds.items()
            for symbol in feed.symbols()
            if not feed.stale(symbol)
        ]
        await asyncio.gather(*(one(key, msgspec.json.encode(ticker)) for key, ticker in due))
