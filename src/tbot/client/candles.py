"""Candles: `client.candles`, and the stream's channel of them.

async for candle in client.candles.newest("BTC-USDT", "1h"):
    print(candle.start, candle.close, candle.volume)

await client.candles.download("BTC-USDT", "1m", Path("may.csv"), begin=may, end=june)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from tbot.client.channels import NumberedChannel
from tbot.client.http import Api, save
from tbot.client.models import Candle, MarketStatus
from tbot.client.statements import FileFormat, Moment, moment_text

type CandleInterval = Literal["1s", "1m", "5m", "15m", "1h", "4h", "1d"]

CANDLES_MAX: Final = 10_000
_ACCEPT: Final = {"csv": "text/csv", "ndjson": "application/x-ndjson"}


class Candles:
    """Past candles and a market's status.

    Args:
        api: Of the client that this belongs to.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def newest(
        self,
        symbol: str,
        interval: CandleInterval = "1m",
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        page: int | None = None,
    ) -> AsyncIterator[Candle]:
        """Candles, newest first, the open one included; page by page, for as long as one takes.

        Args:
            begin: Only candles that begin at or after it; `end`: only those that begin before it.
            page: How many to ask for at once.
        """
        params = {**_span(interval, begin, end), "limit": page}
        return self._api.pages(Candle, _path(symbol), params)

    def stream(
        self,
        symbol: str,
        interval: CandleInterval = "1m",
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        format: FileFormat = "csv",
    ) -> AsyncIterator[bytes]:
        """All closed candles as a file, oldest first, in chunks as they come.

        Raises:
            Unavailable: It could not begin, or broke off: what came is not the whole.
        """
        params = _span(interval, begin, end)
        return self._api.stream(_path(symbol), params, _ACCEPT[format])

    async def download(
        self,
        symbol: str,
        interval: CandleInterval,
        target: Path,
        *,
        begin: Moment | None = None,
        end: Moment | None = None,
        format: FileFormat = "csv",
    ) -> int:
        """Write candles to a file, which appears when it is complete; its size in bytes.

        Raises:
            Unavailable: As for `stream`; an older file of that name is left as it was.
        """
        return await save(
            self.stream(symbol, interval, begin=begin, end=end, format=format), target
        )

    async def status(self, symbol: str) -> MarketStatus:
        """How a market is: heard or stale, its book, and what halts its orders."""
        path = f"/v1/instruments/{symbol}/status"
        return await self._api.request(MarketStatus, "GET", path)


def _path(symbol: str) -> str:
    return f"/v1/instruments/{symbol}/candles"


def _span(interval: str, begin: Moment | None, end: Moment | None) -> dict[str, Any]:
    return {"interval": interval, "from": moment_text(begin), "to": moment_text(end)}


class CandlesChannel(NumberedChannel):
    """Every closed candle, and the open one as it changes.

    Candles are absolute: a later one of the same start replaces the earlier one.
    """

    bound = CANDLES_MAX
    kind = Candle

    def __init__(self, name: str, parameters: dict[str, Any]) -> None:
        super().__init__(name, parameters)
        self._told: datetime | None = None
        """Start of the newest candle that was told."""

    def restart(self, data: dict[str, Any]) -> None:
        """See `NumberedChannel.restart`."""
        candles = msgspec.convert(data["candles"], list[Candle])
        told = self._told
        if told is not None and candles and candles[0].start > told:
            self.missed("reconnected", None)
        for candle in candles:
            if told is None or candle.start >= told:
                self.tell(candle)

    def tell(self, item: Candle) -> None:
        """See `NumberedChannel.tell`."""
        if self._told is None or item.start > self._told:
            self._told = item.start
        self.give(item)

    def count(self, messages: int) -> int | None:
        """A candle is told many times while it is open."""
        return None
