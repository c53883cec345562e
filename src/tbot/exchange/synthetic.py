"""A market made by a seeded generator: full books, clustered volatility, bursts of trades.

Pure and deterministic: the same seed gives the same events at the same source times. Only the
shape of the market is drawn with floating point; every price and size is a whole number of ticks
and steps.

How it is made, per symbol:

* *Volatility* is the exponential of three mean-reverting processes with memories of seconds, a
  minute and a quarter of an hour. Their sum makes the autocorrelation of |returns| decay slowly, as
  in real markets (a superposition of Ornstein-Uhlenbeck processes; Barndorff-Nielsen & Shephard
  2001).
* *Trades* arrive as a self-exciting process (Hawkes 1971, exponential kernel) whose base rate rises
  with volatility; their side has memory; their sizes are log-normal with a heavy tail.
* *The book* is a set of levels around a reference price. Trades eat levels; a moving price sweeps
  or refills them; spread and size shrink and grow with volatility. Levels come and go near the top
  all the time.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from decimal import Decimal
from random import Random
from typing import Final, NamedTuple

from tbot.exchange.events import Best, Depth, MarketEvent, Snapshot, Timed, Trade
from tbot.exchange.instruments import KNOWN, Instrument
from tbot.exchange.quotes import Quotes

_NS: Final = 1_000_000_000
_TICK_NS: Final = 100_000_000  # depth is published every 100 ms
_SUBSTEPS: Final = 2  # quotes move this many times in between
_LEVELS: Final = 250  # per side, kept between this and one and a half times it
_MEMORIES_S: Final = (4.0, 60.0, 900.0)
_WEIGHTS: Final = (0.35, 0.5, 0.6)
_EXCITE: Final = 0.6  # children per trade
_DECAY_PER_S: Final = 4.0
_RESUME_JUMP: Final = 1_000_000
"""Ids skipped at a restart: more than can pass between two marks of the source's position."""


class Character(NamedTuple):
    """What distinguishes one symbol's market.

    Attributes:
        price: Where it starts, in quote units.
        volatility: Standard deviation of one-second returns at rest.
        spread: Usual spread in ticks.
        gap: Mean distance between levels near the top, in ticks.
        size: Median level size in base units.
        trades_per_s: Base rate of trades.
        trade_size: Median size of a trade in base units.
    """

    price: float
    volatility: float
    spread: float
    gap: float
    size: float
    trades_per_s: float
    trade_size: float


CHARACTERS: Final = {
    "BTCUSDT": Character(61_800.0, 5.0e-5, 2.0, 25.0, 0.12, 4.0, 0.004),
    "ETHUSDT": Character(2_680.0, 6.0e-5, 2.0, 4.0, 2.2, 3.0, 0.06),
    "SOLUSDT": Character(155.0, 8.0e-5, 1.3, 1.4, 40.0, 2.0, 2.5),
    "BNBUSDT": Character(515.0, 5.0e-5, 1.6, 2.0, 6.0, 1.2, 0.25),
    "XRPUSDT": Character(0.61, 8.0e-5, 1.2, 1.2, 6_000.0, 1.2, 350.0),
    "DOGEUSDT": Character(0.105, 9.0e-5, 1.2, 1.2, 45_000.0, 1.2, 1_500.0),
}


def _text(units: int, scale: int) -> str:
    """Whole units of 10**-scale with eight decimals."""
    whole, part = divmod(units, 10**scale)
    return f"{whole}.{part:0{scale}d}{'0' * (8 - scale)}" if scale else f"{whole}.00000000"


class SyntheticMarket:
    """One symbol.

    Args:
        instrument: Its rules.
        seed: Of the generator; mixed with the symbol.
        start_ms: Exchange time of source time zero.
        resume: From an earlier `resume()`: the price in ticks, trade id, update id.
    """

    def __init__(
        self, instrument: Instrument, seed: int, start_ms: int, resume: list[int] | None = None
    ) -> None:
        self.symbol = instrument.symbol
        character = CHARACTERS[instrument.symbol]
        self._character = character
        self._random = Random(f"{seed}:{instrument.symbol}:{resume}")
        self._start_ms = start_ms
        self._price_scale = -int(instrument.tick.as_tuple().exponent)
        self._size_scale = -int(instrument.step.as_tuple().exponent)
        self._unit = 10.0**self._size_scale
        start_ticks = round(character.price * 10**self._price_scale)
        resume = resume or [start_ticks, 1_000_000, 10_000_000]
        self._mid = float(resume[0])
        self.trade_id, self._update_id = resume[1], resume[2]
        self._first_id = self._update_id + 1
        self._factors = [0.0, 0.0, 0.0]
        self._heat = 0.0
        self._lean = 0.0
        self._bids = Quotes(-1)
        self._asks = Quotes(1)
        self._top = (0, 0, 0, 0)
        self._fill_books()
        self._bids.changed.clear()
        self._asks.changed.clear()

    # Books

    def _size(self, distance: float) -> int:
        """A level's size in steps; deeper levels are larger, quiet markets deeper."""
        random = self._random
        size = self._character.size * math.exp(random.gauss(0.0, 1.0) - 0.35 * self._stress())
        return max(1, round(size * (0.6 + min(distance, 400.0) / 80.0) * self._unit))

    def _gap(self, distance_levels: int) -> int:
        """Ticks to the next level; levels thin out away from the top."""
        mean = self._character.gap * (1.0 + distance_levels / 60.0)
        return 1 + int(self._random.expovariate(1.0 / mean)) if mean > 1.05 else 1

    def _stress(self) -> float:
        weights = zip(_WEIGHTS, self._factors, strict=True)
        return sum(weight * factor for weight, factor in weights)

    def _half_spread(self) -> float:
        widening = math.exp(0.5 * self._stress())
        return max(0.5, 0.5 * self._character.spread * widening)

    def _fill_books(self) -> None:
        """Clear levels on the wrong side of the price, add missing ones, prune the far end."""
        half = self._half_spread()
        bid_max, ask_min = math.floor(self._mid - half), math.ceil(self._mid + half)
        if ask_min <= bid_max:
            ask_min = bid_max + 1
        self._fill_side(self._bids, bid_max)
        self._fill_side(self._asks, ask_min)

    def _fill_side(self, side: Quotes, edge: int) -> None:
        side.clear_better(edge)
        if not side.levels or (side.best - edge) * side.way > self._character.gap * 0.5:
            side.fill_from(edge, self._gap, self._size, _LEVELS)
        if len(side.levels) < _LEVELS:
            side.extend(_LEVELS + 20, self._gap, self._size)
        elif len(side.levels) > _LEVELS * 3 // 2:
            side.prune(_LEVELS)

    def _flicker(self) -> None:
        """Some levels near the top change, come or go."""
        random = self._random
        for side in (self._bids, self._asks):
            for _ in range(random.randint(0, 3)):
                distance = int(random.expovariate(1.0 / 12.0))
                tick = side.best + side.way * int(distance * self._character.gap)
                if tick <= 0:
                    continue
                if tick in side.levels and tick != side.best and random.random() < 0.4:
                    side.drop(tick)
                else:
                    side.set(tick, self._size(distance))

    # The course of time

    def snapshot(self) -> Snapshot:
        """The book as it is now."""
        return Snapshot(
            self.symbol,
            self._update_id,
            [self._level(*level) for level in sorted(self._bids.levels.items(), reverse=True)],
            [self._level(*level) for level in sorted(self._asks.levels.items())],
        )

    def resume(self) -> list[int]:
        """What a later run needs to go on from here, with ids that cannot have been used."""
        return [
            round(self._mid),
            self.trade_id + _RESUME_JUMP,
            self._update_id + _RESUME_JUMP,
        ]

    def _level(self, tick: int, size: int) -> tuple[Decimal, Decimal]:
        return (
            Decimal(_text(tick, self._price_scale)),
            Decimal(_text(size, self._size_scale)),
        )

    def events(self) -> Iterator[tuple[int, MarketEvent]]:
        """Events for ever, with their source times in nanoseconds."""
        step_ns = _TICK_NS // _SUBSTEPS
        at_ns = 0
        while True:
            for _ in range(_SUBSTEPS):
                yield from self._step(at_ns, step_ns)
                at_ns += step_ns
            if self._bids.changed or self._asks.changed:
                yield at_ns, self._depth(at_ns)

    def _step(self, at_ns: int, step_ns: int) -> Iterator[tuple[int, MarketEvent]]:
        random, character = self._random, self._character
        step_s = step_ns / _NS
        for number, memory_s in enumerate(_MEMORIES_S):
            pull = step_s / memory_s
            self._factors[number] += -pull * self._factors[number] + math.sqrt(
                2.0 * pull
            ) * random.gauss(0.0, 1.0)
        stress = min(self._stress(), 3.5)
        base = character.trades_per_s * math.exp(0.7 * stress)
        self._heat *= math.exp(-_DECAY_PER_S * step_s)
        when = 0.0
        while True:
            when += random.expovariate(base + self._heat)
            if when >= step_s:
                break
            self._heat += _EXCITE * _DECAY_PER_S
            self._heat = min(self._heat, 60.0 * character.trades_per_s)
            yield from self._trade(at_ns + int(when * _NS))
        sigma = character.volatility * math.exp(stress)
        self._mid *= math.exp(sigma * math.sqrt(step_s) * random.gauss(0.0, 1.0))
        self._mid = max(self._mid, 10.0 * character.gap)
        self._fill_books()
        if random.random() < 0.6:
            self._flicker()
        best = self._best()
        if best is not None:
            yield at_ns + step_ns, best

    def _trade(self, at_ns: int) -> Iterator[tuple[int, MarketEvent]]:
        random, character = self._random, self._character
        self._lean = 0.9 * self._lean + 0.1 * random.gauss(0.0, 1.0)
        buys = random.random() < 1.0 / (1.0 + math.exp(-4.0 * self._lean))
        spread = 1.1 + (1.0 if random.random() < 0.05 else 0.0)
        size = character.trade_size * math.exp(random.gauss(0.0, 1.0) * spread)
        left = max(1, round(size * self._unit))
        side = self._asks if buys else self._bids
        for _ in range(5):
            tick, there = side.best, side.best_size
            taken = min(left, there)
            left -= taken
            if taken == there:
                side.drop(tick)
            else:
                side.set(tick, there - taken)
            self._update_id += 1
            self.trade_id += 1
            yield at_ns, self._print(at_ns, tick, taken, not buys)
            if not left or len(side.levels) < _LEVELS // 2:
                break
        # A trade moves the reference a little its own way: order flow has impact.
        pressure = character.volatility * 0.15 * self._mid
        self._mid += pressure if buys else -pressure
        ticker = self._best()
        if ticker is not None:
            yield at_ns, ticker

    # Messages

    def _ms(self, at_ns: int) -> int:
        return self._start_ms + at_ns // 1_000_000

    def _print(self, at_ns: int, tick: int, size: int, buyer_is_maker: bool) -> Trade:
        price, quantity = _text(tick, self._price_scale), _text(size, self._size_scale)
        at_ms = self._ms(at_ns)
        maker = "true" if buyer_is_maker else "false"
        frame = (
            f'{{"stream":"{self.symbol.lower()}@trade","data":{{"e":"trade","E":{at_ms},'
            f'"s":"{self.symbol}","t":{self.trade_id},"p":"{price}","q":"{quantity}",'
            f'"T":{at_ms},"m":{maker},"M":true}}}}'
        )
        return Trade(
            self.symbol,
            self.trade_id,
            Decimal(price),
            Decimal(quantity),
            buyer_is_maker,
            at_ms,
            at_ms,
            frame.encode(),
        )

    def _best(self) -> Best | None:
        """Best prices if they changed."""
        bid, ask = self._bids.best, self._asks.best
        top = (bid, self._bids.best_size, ask, self._asks.best_size)
        if top == self._top:
            return None
        self._top = top
        self._update_id += 1
        bid_text, ask_text = _text(bid, self._price_scale), _text(ask, self._price_scale)
        bid_size, ask_size = _text(top[1], self._size_scale), _text(top[3], self._size_scale)
        frame = (
            f'{{"stream":"{self.symbol.lower()}@bookTicker","data":{{"u":{self._update_id},'
            f'"s":"{self.symbol}","b":"{bid_text}","B":"{bid_size}",'
            f'"a":"{ask_text}","A":"{ask_size}"}}}}'
        )
        return Best(
            self.symbol,
            self._update_id,
            Decimal(bid_text),
            Decimal(bid_size),
            Decimal(ask_text),
            Decimal(ask_size),
            frame.encode(),
        )

    def _depth(self, at_ns: int) -> Depth:
        self._update_id += 1
        first_id, self._first_id = self._first_id, self._update_id + 1
        texts, sides = [], []
        for side in (self._bids, self._asks):
            pairs = [
                (_text(tick, self._price_scale), _text(size, self._size_scale))
                for tick, size in side.take_changed()
            ]
            texts.append(",".join(f'["{price}","{size}"]' for price, size in pairs))
            sides.append([(Decimal(price), Decimal(size)) for price, size in pairs])
        at_ms = self._ms(at_ns)
        frame = (
            f'{{"stream":"{self.symbol.lower()}@depth@100ms","data":{{"e":"depthUpdate",'
            f'"E":{at_ms},"s":"{self.symbol}","U":{first_id},"u":{self._update_id},'
            f'"b":[{texts[0]}],"a":[{texts[1]}]}}}}'
        )
        return Depth(
            self.symbol, first_id, self._update_id, sides[0], sides[1], at_ms, frame.encode()
        )


class Synthetic:
    """All synthetic symbols on one time line.

    Args:
        seed: The same seed gives the same market.
        start_ms: Exchange time of source time zero; wall time, so that events are of now.
        resume: From the last mark of an earlier run, empty for a new session.
    """

    def __init__(
        self, seed: int, start_ms: int, resume: dict[str, list[int]] | None = None
    ) -> None:
        self.identity = self.identity_of(seed)
        self.start_ms = start_ms
        self._markets = {
            symbol: SyntheticMarket(KNOWN[symbol], seed, start_ms, (resume or {}).get(symbol))
            for symbol in CHARACTERS
        }

    @staticmethod
    def identity_of(seed: int) -> str:
        """Names the market that a seed gives."""
        return f"synthetic:{seed}"

    def instruments(self) -> list[Instrument]:
        """The rules of every symbol."""
        return [KNOWN[symbol] for symbol in self._markets]

    def openings(self) -> list[Snapshot]:
        """The books at source time zero."""
        return [market.snapshot() for market in self._markets.values()]

    def trade_ids(self) -> dict[str, int]:
        """By symbol, the trade id before its first event."""
        return {symbol: market.trade_id for symbol, market in self._markets.items()}

    def events(self) -> Iterator[Timed]:
        """Events for ever, in the order of source time."""
        merged = heapq.merge(
            *(market.events() for market in self._markets.values()), key=lambda item: item[0]
        )
        for index, (at_ns, event) in enumerate(merged):
            yield Timed(at_ns, index, event)

    def resume(self) -> dict[str, list[int]]:
        """Where each symbol stands."""
        return {symbol: market.resume() for symbol, market in self._markets.items()}
