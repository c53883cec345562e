"""Streams that are made from others, and only while someone listens.

`depth` (once a second), `depth<5|10|20>[@100ms]`, `aggTrade`, `ticker`, `miniTicker` and
`kline_<interval>`. One-second streams follow the market's own clock, so a fast replay sends them
at its own pace.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from tbot.exchange.events import Depth, MarketEvent, Trade
from tbot.exchange.hub import Hub
from tbot.exchange.model import Side
from tbot.exchange.tape import Tape
from tbot.exchange.tickers import INTERVALS, Candle, Tickers
from tbot.exchange.wire import decimal_text

_SECOND_MS: Final = 1000
_PARTIAL: Final = (5, 10, 20)


class _Diff(msgspec.Struct, gc=False):
    E: int
    s: str
    U: int
    u: int
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]


_diff = msgspec.json.Decoder(_Diff)


class _Slow:
    """The once-a-second depth stream of a symbol: levels changed since its last message."""

    __slots__ = ("asks", "bids", "first_id", "sent_ms")

    def __init__(self, first_id: int, sent_ms: int) -> None:
        self.first_id = first_id
        self.sent_ms = sent_ms
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}


class Derived:
    """Makes the derived streams of all symbols.

    Args:
        hub: Where they are sent.
        tapes, tickers: By symbol.
    """

    def __init__(self, hub: Hub, tapes: Mapping[str, Tape], tickers: Mapping[str, Tickers]) -> None:
        self._hub = hub
        self._tapes = tapes
        self._tickers = tickers
        self._sent_ms: dict[str, int] = {}
        self._slow: dict[str, _Slow] = {}

    def on_event(self, event: MarketEvent) -> None:
        """Send what an event makes due; the tape has told of the event already."""
        if self._hub.is_silent:
            return
        wanted = self._hub.wanted_streams()
        stream = event.symbol.lower()
        if isinstance(event, Trade):
            if f"{stream}@aggTrade" in wanted:
                self._agg_trade(stream, event)
            for interval in INTERVALS:
                if f"{stream}@kline_{interval}" in wanted:
                    self._kline(stream, event, interval)
        elif isinstance(event, Depth):
            for levels in _PARTIAL:
                for suffix, every_ms in (("@100ms", 0), ("", _SECOND_MS)):
                    name = f"{stream}@depth{levels}{suffix}"
                    if name in wanted and self._due(name, event.event_ms, every_ms):
                        self._partial(name, event.symbol, levels)
            for name in (f"{stream}@ticker", f"{stream}@miniTicker"):
                if name in wanted and self._due(name, event.event_ms, _SECOND_MS):
                    self._ticker(name, event.symbol, event.event_ms)

    def on_depth(self, stream: str, data: bytes) -> None:
        """Take a published 100 ms diff into the once-a-second one.

        Args:
            stream: `<symbol>@`, lower case.
        """
        name = stream + "depth"
        if not self._hub.wanted(name):
            self._slow.pop(name, None)
            return
        diff = _diff.decode(data)
        slow = self._slow.get(name)
        if slow is None:
            slow = self._slow[name] = _Slow(diff.U, diff.E)
        slow.bids.update(diff.b)
        slow.asks.update(diff.a)
        if diff.E - slow.sent_ms < _SECOND_MS:
            return
        self._slow[name] = _Slow(diff.u + 1, diff.E)
        self._send(
            name,
            {
                "e": "depthUpdate",
                "E": diff.E,
                "s": diff.s,
                "U": slow.first_id,
                "u": diff.u,
                "b": list(slow.bids.items()),
                "a": list(slow.asks.items()),
            },
        )

    def _due(self, name: str, now_ms: int, every_ms: int) -> bool:
        if now_ms - self._sent_ms.get(name, 0) < every_ms:
            return False
        self._sent_ms[name] = now_ms
        return True

    def _send(self, name: str, data: dict[str, Any]) -> None:
        text = msgspec.json.encode(data)
        self._hub.publish(name, text, b'{"stream":"%s","data":%s}' % (name.encode(), text))

    def _agg_trade(self, stream: str, trade: Trade) -> None:
        self._send(
            f"{stream}@aggTrade",
            {
                "e": "aggTrade",
                "E": trade.event_ms,
                "s": trade.symbol,
                "a": trade.id,
                "p": decimal_text(trade.price),
                "q": decimal_text(trade.quantity),
                "f": trade.id,
                "l": trade.id,
                "T": trade.time_ms,
                "m": trade.buyer_is_maker,
                "M": True,
            },
        )

    def _kline(self, stream: str, trade: Trade, interval: str) -> None:
        candle = self._tickers[trade.symbol].current(interval)
        if candle is not None:
            data = kline_event(candle, trade.symbol, interval, trade.event_ms)
            self._send(f"{stream}@kline_{interval}", data)

    def _partial(self, name: str, symbol: str, levels: int) -> None:
        tape = self._tapes[symbol]
        sides = {
            key: [
                (decimal_text(price), decimal_text(quantity))
                for price, quantity in tape.levels(side, levels)
            ]
            for key, side in (("bids", Side.BUY), ("asks", Side.SELL))
        }
        self._send(name, {"lastUpdateId": tape.last_id, **sides})

    def _ticker(self, name: str, symbol: str, event_ms: int) -> None:
        full = self._tickers[symbol].figures()
        if name.endswith("@miniTicker"):
            data = {
                "e": "24hrMiniTicker",
                "E": event_ms,
                "s": symbol,
                "c": full["lastPrice"],
                "o": full["openPrice"],
                "h": full["highPrice"],
                "l": full["lowPrice"],
                "v": full["volume"],
                "q": full["quoteVolume"],
            }
        else:
            best = self._tapes[symbol].best()
            prices = [decimal_text(value) for value in best] if best else ["0.00000000"] * 4
            data = {
                "e": "24hrTicker",
                "E": event_ms,
                "s": symbol,
                "p": full["priceChange"],
                "P": full["priceChangePercent"],
                "w": full["weightedAvgPrice"],
                "x": full["prevClosePrice"],
                "c": full["lastPrice"],
                "Q": full["lastQty"],
                "b": prices[0],
                "B": prices[1],
                "a": prices[2],
                "A": prices[3],
                "o": full["openPrice"],
                "h": full["highPrice"],
                "l": full["lowPrice"],
                "v": full["volume"],
                "q": full["quoteVolume"],
                "O": full["openTime"],
                "C": full["closeTime"],
                "F": full["firstId"],
                "L": full["lastId"],
                "n": full["count"],
            }
        self._send(name, data)


def kline_event(candle: Candle, symbol: str, interval: str, event_ms: int) -> dict[str, Any]:
    """The kline stream's message for a candle that is still open."""
    start_ms = candle.minute * 60_000
    return {
        "e": "kline",
        "E": event_ms,
        "s": symbol,
        "k": {
            "t": start_ms,
            "T": start_ms + INTERVALS[interval] * 60_000 - 1,
            "s": symbol,
            "i": interval,
            "f": candle.first_id,
            "L": candle.last_id,
            "o": decimal_text(candle.open),
            "c": decimal_text(candle.close),
            "h": decimal_text(candle.high),
            "l": decimal_text(candle.low),
            "v": decimal_text(candle.volume),
            "n": candle.count,
            "x": False,
            "q": decimal_text(candle.quote),
            "V": decimal_text(candle.bought),
            "Q": decimal_text(candle.bought_quote),
            "B": "0",
        },
    }
