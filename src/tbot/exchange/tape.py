"""What clients are told of a symbol's market: depth diffs, best prices and trades, with their ids.

Pure. Entry points: `Tape.on_event`, `Tape.on_outcome`, `Tape.snapshot`, `Tape.best`.

Invariants:

1. While no user's order touches the symbol and none ever did, every message is the source's own
   frame, byte for byte.
2. A client that follows the book rule (snapshot, then diffs with U = previous u + 1) holds, at
   every update, the market's book less what users took plus users' resting orders.
3. What users do appears as extra diffs of one update id each. Every later id of the source is
   shifted by the number of extra diffs so far, so ids stay contiguous and grow.
4. Trade ids stay contiguous too: each source's trade comes numbered after users' trades so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import NamedTuple

import msgspec

from tbot.core.money import ZERO
from tbot.exchange.engine import Market
from tbot.exchange.events import Best, Depth, MarketEvent, Trade
from tbot.exchange.model import Side
from tbot.exchange.outcome import Outcome, Print
from tbot.exchange.queue import Resting
from tbot.exchange.wire import decimal_text

_DATA_AT = b'"data":'


class Message(NamedTuple):
    """One message of one stream.

    Attributes:
        kind: `depth@100ms`, `bookTicker` or `trade`.
        data: Its JSON, as a raw stream sends it.
        combined: The same in a combined-stream frame.
    """

    kind: str
    data: bytes
    combined: bytes


class Told(NamedTuple):
    """Best prices that clients were told last."""

    bid: Decimal
    bid_quantity: Decimal
    ask: Decimal
    ask_quantity: Decimal


def _passed_on(kind: str, frame: bytes) -> Message:
    return Message(kind, frame[frame.index(_DATA_AT) + len(_DATA_AT) : -1], frame)


class Tape:
    """The published view of one symbol.

    Args:
        market: The symbol's market in the engine.
        bids, asks: Users' resting orders.
        start_ms: The source's clock before its first event.
    """

    def __init__(self, market: Market, bids: Resting, asks: Resting, start_ms: int = 0) -> None:
        self._market = market
        self._users = {Side.BUY: bids, Side.SELL: asks}
        self._symbol = market.instrument.symbol
        self._stream = self._symbol.lower()
        self._shown: dict[Side, dict[Decimal, Decimal]] = {Side.BUY: {}, Side.SELL: {}}
        self._shift = 0
        self._told: Told | None = None
        self._event_ms = start_ms
        self._last_trade_ms = 0

    @property
    def last_id(self) -> int:
        """The update id that clients have come to."""
        return self._market.book.last_id + self._shift

    @property
    def market_ms(self) -> int:
        """Time of the newest event, on the source's own clock."""
        return self._event_ms

    def note(self, event: MarketEvent) -> None:
        """Follow the source's clock."""
        if isinstance(event, Trade):
            self._last_trade_ms = event.time_ms
            self._event_ms = max(self._event_ms, event.event_ms)
        elif isinstance(event, Depth):
            self._event_ms = max(self._event_ms, event.event_ms)

    @property
    def trade_ms(self) -> int:
        """Time of a trade that a user causes now: the last trade's, so times never go back."""
        return self._last_trade_ms or self._event_ms

    @property
    def _untouched(self) -> bool:
        """Whether the source's own frames are the truth."""
        book, users, shown = self._market.book, self._users, self._shown
        return not (
            self._shift
            or users[Side.BUY].orders
            or users[Side.SELL].orders
            or book.bids.taken
            or book.asks.taken
            or shown[Side.BUY]
            or shown[Side.SELL]
        )

    def _wanted(self, side: Side, price: Decimal) -> Decimal:
        return self._market.side(side).live.get(price) + self._users[side].totals.get(price)

    def on_event(self, event: MarketEvent) -> Iterator[Message]:
        """Messages for an event that the engine has applied already."""
        self.note(event)
        if isinstance(event, Trade):
            if event.frame:
                yield _passed_on("trade", event.frame)
            else:  # renumbered
                yield self._trade(
                    event.id, event.price, event.quantity, event.buyer_is_maker, event.time_ms
                )
        elif isinstance(event, Depth):
            if self._untouched:
                yield _passed_on("depth@100ms", event.frame)
                return
            yield self._shifted(event)
            yield from self._best_if_changed()
        elif isinstance(event, Best):
            if self._untouched:
                self._told = None
                yield _passed_on("bookTicker", event.frame)
            else:
                yield from self._best_if_changed()

    def on_outcome(self, outcome: Outcome) -> Iterator[Message]:
        """Messages for what users did or had done to them: trades, an extra diff, best prices."""
        for printed in outcome.prints:
            yield self._printed(printed)
        changed = {side: self._changes(side, outcome.moved) for side in (Side.BUY, Side.SELL)}
        if changed[Side.BUY] or changed[Side.SELL]:
            self._shift += 1
            yield self._depth(self.last_id, self.last_id, changed[Side.BUY], changed[Side.SELL])
        yield from self._best_if_changed()

    def reveal(self) -> None:
        """After a restart, before any client: users' restored orders belong to the snapshot."""
        for side, users in self._users.items():
            self._changes(side, [(side, price) for price in users.orders])

    def _changes(
        self, side: Side, moved: Iterable[tuple[Side, Decimal]]
    ) -> list[tuple[Decimal, Decimal]]:
        """Levels to tell so that clients see what live matching sees; remembers what it tells."""
        shown, source = self._shown[side], self._market.side(side)
        prices = {price for where, price in moved if where is side}
        prices.update(source.hidden_prices)
        changes = []
        for price in sorted(prices):
            reference, wanted = source.reference(price), self._wanted(side, price)
            if wanted != shown.get(price, reference):
                changes.append((price, wanted))
                if wanted == reference:
                    shown.pop(price, None)
                else:
                    shown[price] = wanted
        return changes

    def _shifted(self, event: Depth) -> Message:
        """The source's diff as it looks with users' orders in the book."""
        sides = []
        for side, levels in ((Side.BUY, event.bids), (Side.SELL, event.asks)):
            shown, source = self._shown[side], self._market.side(side)
            told = [(price, self._wanted(side, price)) for price, _ in levels]
            named = {price for price, _ in told}
            for price, wanted in told:
                if wanted == source.reference(price):
                    shown.pop(price, None)
                else:
                    shown[price] = wanted
            for price in [price for price in shown if price not in named]:
                wanted = self._wanted(side, price)
                if wanted != shown[price]:
                    told.append((price, wanted))
                if wanted == source.reference(price):
                    del shown[price]
                else:
                    shown[price] = wanted
            sides.append(told)
        return self._depth(
            event.first_id + self._shift, event.last_id + self._shift, sides[0], sides[1]
        )

    def _depth(
        self,
        first_id: int,
        last_id: int,
        bids: list[tuple[Decimal, Decimal]],
        asks: list[tuple[Decimal, Decimal]],
    ) -> Message:
        return self._message(
            "depth@100ms",
            {
                "e": "depthUpdate",
                "E": self._event_ms,
                "s": self._symbol,
                "U": first_id,
                "u": last_id,
                "b": [(decimal_text(price), decimal_text(quantity)) for price, quantity in bids],
                "a": [(decimal_text(price), decimal_text(quantity)) for price, quantity in asks],
            },
        )

    def _printed(self, printed: Print) -> Message:
        return self._trade(
            printed.id, printed.price, printed.quantity, printed.buyer_is_maker, self.trade_ms
        )

    def _trade(
        self, number: int, price: Decimal, quantity: Decimal, buyer_is_maker: bool, time_ms: int
    ) -> Message:
        return self._message(
            "trade",
            {
                "e": "trade",
                "E": self._event_ms,
                "s": self._symbol,
                "t": number,
                "p": decimal_text(price),
                "q": decimal_text(quantity),
                "T": time_ms,
                "m": buyer_is_maker,
                "M": True,
            },
        )

    def best(self) -> Told | None:
        """Best bid and offer, users' orders included; None while a side is empty."""
        found = []
        for side in (Side.BUY, Side.SELL):
            live, own = self._market.side(side).live.best(), self._users[side].totals.best()
            if live is None and own is None:
                return None
            prices = [price for price in (live, own) if price is not None]
            price = max(prices) if side is Side.BUY else min(prices)
            found.append((price, self._wanted(side, price)))
        return Told(*found[0], *found[1])

    def _best_if_changed(self) -> Iterator[Message]:
        best = self.best()
        if best is None or best == self._told:
            return
        self._told = best
        newest = max(self._market.book.last_id, self._market.book.best_id)
        yield self._message(
            "bookTicker",
            {
                "u": newest + self._shift,
                "s": self._symbol,
                "b": decimal_text(best.bid),
                "B": decimal_text(best.bid_quantity),
                "a": decimal_text(best.ask),
                "A": decimal_text(best.ask_quantity),
            },
        )

    def _message(self, kind: str, data: dict[str, object]) -> Message:
        text = msgspec.json.encode(data)
        head = f'{{"stream":"{self._stream}@{kind}","data":'.encode()
        return Message(kind, text, head + text + b"}")

    def levels(self, side: Side, limit: int) -> list[tuple[Decimal, Decimal]]:
        """The published levels of a side as of `last_id`, best first."""
        source, shown = self._market.side(side), self._shown[side]
        if source.is_plain and not shown:
            quantities = source.live.quantities
            prices = source.live.prices
            picked = prices[: -limit - 1 : -1] if side is Side.BUY else prices[:limit]
            return [(price, quantities[price]) for price in picked]
        levels = source.reference_levels()
        levels.update(shown)
        ordered = sorted(levels, reverse=side is Side.BUY)
        return [(price, levels[price]) for price in ordered if levels[price] > ZERO][:limit]
