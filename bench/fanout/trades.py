"""The messages that are fanned out, and the pace at which they are published."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

import msgspec

from tbot.core import clock
from tbot.market.channels import trade_json
from tbot.venues.base import MarketTrade

MESSAGE_BYTES: Final = 190
FIRST: Final = 1_000_000
"""Sequence numbers begin here, so that every message has the same size."""
PRICE: Final = Decimal("61685.99")


def symbol_of(number: int) -> str:
    """Names of one length for up to 900 markets."""
    return f"BENCH{100 + number}-USDT"


class Trades:
    """Trades of one market, each message of the wanted size."""

    def __init__(self, symbol: str, first: int) -> None:
        self.symbol = symbol
        self.number = first
        self._quantity = Decimal(1)
        for digits in range(1, 60):
            self._quantity = Decimal("0." + "1" * digits)
            if len(self.message(first + 1, self._trade(datetime.now(UTC)))) >= MESSAGE_BYTES:
                break

    def _trade(self, at: datetime) -> MarketTrade:
        return MarketTrade(self.symbol, self.number, PRICE, self._quantity, False, at)

    def next(self, at: datetime) -> MarketTrade:
        """The trade that was due at this moment."""
        self.number += 1
        return self._trade(at)

    def message(self, channel: int, trade: MarketTrade) -> bytes:
        """What the stream makes of it, for servers that are not ours."""
        seq = trade.trade_id
        head = {"op": "delta", "ch": 1, "seq": seq, "prev": seq - 1}
        return msgspec.json.encode({**head, "data": trade_json(trade)})


async def paced(rate: float, seconds: float, publish: Callable[[datetime], Any]) -> int:
    """Publish at a rate; what is late is published at once, with the time at which it was due."""
    loop = asyncio.get_running_loop()
    started_s, wall_s, done = loop.time(), clock.utc_now().timestamp(), 0
    while (passed_s := loop.time() - started_s) < seconds:
        while done < int(passed_s * rate):
            waiting = publish(datetime.fromtimestamp(wall_s + done / rate, UTC))
            if waiting is not None:
                await waiting
            done += 1
            if waiting is not None and loop.time() - started_s > seconds + 1:
                return done
        await asyncio.sleep(0.001)
    return done
