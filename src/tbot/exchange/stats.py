"""How a market behaves: spread, depth, trade times, volatility. Pure, but for the table printer.

Entry points: `measure` over any events, `table` to print several markets side by side.

Floating point is right here: these are statistics of a market, never money.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from typing import Final

from rich.table import Table

from tbot.exchange.book import BookSide, MarketBook
from tbot.exchange.events import Best, Depth, Snapshot, Timed, Trade

DEPTH_BP: Final = (5, 10, 50)
LAGS_S: Final = (1, 2, 5, 10, 30, 60, 120)
_YEAR_S: Final = 365 * 86_400
_NS: Final = 1_000_000_000
_DEPTH_EVERY_NS: Final = _NS


@dataclass(slots=True)
class Figures:
    """What was measured of one symbol; figures without data are NaN.

    Attributes:
        seconds: Span of the events.
        spread_bp: Mean, median and 95th percentile over time, in basis points of the middle.
        depth: Basis points → (mean base quantity, mean quote notional) of both sides together
            within that distance of the middle.
        inter_arrival_s: Median and mean time between trades, and the coefficient of variation
            (1 for a Poisson process, more when trades cluster).
        trade_size: Median and mean in the base asset.
        autocorrelation: Lag in seconds → autocorrelation of |one-second log returns|.
        volatility: Standard deviation of one-second log returns, annualised.
        kurtosis: Excess kurtosis of one-second returns (0 for a normal distribution).
    """

    events: int = 0
    trades: int = 0
    seconds: float = 0.0
    spread_bp: tuple[float, float, float] = (math.nan,) * 3
    depth: dict[int, tuple[float, float]] = field(default_factory=dict)
    inter_arrival_s: tuple[float, float, float] = (math.nan,) * 3
    trade_size: tuple[float, float] = (math.nan,) * 2
    autocorrelation: dict[int, float] = field(default_factory=dict)
    volatility: float = math.nan
    kurtosis: float = math.nan


def quantile(ordered: Sequence[float], q: float) -> float:
    """The q-quantile of sorted values, linear between neighbours; NaN of nothing."""
    if not ordered:
        return math.nan
    at = q * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN of nothing."""
    return math.fsum(values) / len(values) if values else math.nan


def deviation(values: Sequence[float]) -> float:
    """The standard deviation of a population; NaN of fewer than two values."""
    if len(values) < 2:
        return math.nan
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / len(values))


def autocorrelation(values: Sequence[float], lag: int) -> float:
    """The sample autocorrelation at a lag; NaN where there is too little or no variation."""
    if lag < 1 or len(values) < lag + 2:
        return math.nan
    middle = mean(values)
    centred = [value - middle for value in values]
    total = math.fsum(value * value for value in centred)
    if not total:
        return math.nan
    later = centred[lag:]
    return math.fsum(a * b for a, b in zip(centred, later, strict=False)) / total


def excess_kurtosis(values: Sequence[float]) -> float:
    """Fourth standardised moment less three; NaN without variation."""
    spread = deviation(values)
    if math.isnan(spread) or not spread:
        return math.nan
    middle = mean(values)
    return mean([((value - middle) / spread) ** 4 for value in values]) - 3.0


def weighted_quantile(pairs: Sequence[tuple[float, float]], q: float) -> float:
    """The q-quantile of (value, weight) pairs; NaN of nothing."""
    total = math.fsum(weight for _, weight in pairs)
    if not total:
        return math.nan
    reached = 0.0
    for value, weight in sorted(pairs):
        reached += weight
        if reached >= q * total:
            return value
    return max(pairs)[0]


def _within(side: BookSide, limit: Decimal, is_bid: bool) -> tuple[float, float]:
    prices, quantities = side.live.prices, side.live.quantities
    at = bisect_left(prices, limit)
    base = quote = 0.0
    for price in prices[at:] if is_bid else prices[:at]:
        quantity = float(quantities[price])
        base += quantity
        quote += quantity * float(price)
    return base, quote


class _Gauge:
    """Collects one symbol."""

    def __init__(self) -> None:
        self.book = MarketBook()
        self.events = 0
        self.first_ns = self.last_ns = 0
        self._mid: float | None = None
        self._spread = math.nan
        self._since_ns = 0
        self.spreads: list[tuple[float, float]] = []
        self.mids: list[float] = []
        self._second = 0
        self.depths: dict[int, list[tuple[float, float]]] = {bp: [] for bp in DEPTH_BP}
        self._depth_ns = -_DEPTH_EVERY_NS
        self.trade_ns: list[int] = []
        self.sizes: list[float] = []

    def add(self, timed: Timed) -> None:
        event, at_ns = timed.event, timed.at_ns
        if not self.events:
            self.first_ns = self._since_ns = at_ns
            self._second = at_ns // _NS
        self.events += 1
        self.last_ns = at_ns
        self._sample(at_ns)
        if isinstance(event, Trade):
            self.trade_ns.append(at_ns)
            self.sizes.append(float(event.quantity))
            return
        if isinstance(event, Snapshot):
            self.book.apply_snapshot(event)
        elif isinstance(event, Depth):
            self.book.apply_depth(event)
        else:
            self.book.apply_best(event)
        self._look(at_ns, event)

    def _sample(self, at_ns: int) -> None:
        """Record the middle at every whole second that has passed."""
        second = at_ns // _NS
        while self._second < second:
            self._second += 1
            if self._mid is not None:
                self.mids.append(self._mid)

    def _look(self, at_ns: int, event: Snapshot | Depth | Best) -> None:
        bid, ask = self.book.bids.live.best(), self.book.asks.live.best()
        if bid is None or ask is None:
            return
        low, high = float(bid), float(ask)
        mid = (low + high) / 2
        if not math.isnan(self._spread):
            self.spreads.append((self._spread, (at_ns - self._since_ns) / _NS))
        self._mid, self._spread, self._since_ns = mid, (high - low) / mid * 1e4, at_ns
        if isinstance(event, Depth) and at_ns - self._depth_ns >= _DEPTH_EVERY_NS:
            self._depth_ns = at_ns
            for bp in DEPTH_BP:
                reach = mid * bp / 1e4
                bids = _within(self.book.bids, Decimal(str(mid - reach)), True)
                asks = _within(self.book.asks, Decimal(str(mid + reach)), False)
                self.depths[bp].append((bids[0] + asks[0], bids[1] + asks[1]))

    def figures(self) -> Figures:
        weights = [(value, weight) for value, weight in self.spreads if weight > 0]
        total = math.fsum(weight for _, weight in weights)
        average = math.fsum(v * w for v, w in weights) / total if total else math.nan
        gaps = [(b - a) / _NS for a, b in pairwise(self.trade_ns)]
        returns = [math.log(b / a) for a, b in pairwise(self.mids)]
        sizes = sorted(self.sizes)
        return Figures(
            events=self.events,
            trades=len(self.trade_ns),
            seconds=(self.last_ns - self.first_ns) / _NS,
            spread_bp=(
                average,
                weighted_quantile(weights, 0.5),
                weighted_quantile(weights, 0.95),
            ),
            depth={
                bp: (mean([d[0] for d in found]), mean([d[1] for d in found]))
                for bp, found in self.depths.items()
            },
            inter_arrival_s=(
                quantile(sorted(gaps), 0.5),
                mean(gaps),
                deviation(gaps) / mean(gaps) if len(gaps) > 1 and mean(gaps) else math.nan,
            ),
            trade_size=(quantile(sizes, 0.5), mean(sizes)),
            autocorrelation={
                lag: autocorrelation([abs(r) for r in returns], lag) for lag in LAGS_S
            },
            volatility=deviation(returns) * math.sqrt(_YEAR_S),
            kurtosis=excess_kurtosis(returns),
        )


def measure(openings: Iterable[Snapshot], events: Iterable[Timed]) -> dict[str, Figures]:
    """Measure every symbol of a market.

    Args:
        openings: The books before the first event.
        events: In the order of their times.
    """
    gauges: dict[str, _Gauge] = {}
    for snapshot in openings:
        gauges.setdefault(snapshot.symbol, _Gauge()).book.apply_snapshot(snapshot)
    for timed in events:
        symbol = timed.event.symbol
        gauge = gauges.get(symbol)
        if gauge is None:
            gauge = gauges[symbol] = _Gauge()
        gauge.add(timed)
    return {symbol: gauge.figures() for symbol, gauge in gauges.items()}


def _number(value: float, digits: int = 3) -> str:
    if math.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def table(markets: Mapping[str, Figures]) -> Table:
    """Figures of several markets, one column each.

    Args:
        markets: Column title → figures.
    """
    made = Table(title="Market statistics", title_justify="left")
    made.add_column("")
    for name in markets:
        made.add_column(name, justify="right")

    def row(label: str, values: Iterable[str]) -> None:
        made.add_row(label, *values)

    found = list(markets.values())
    row("span, s", (_number(f.seconds) for f in found))
    row("events", (f"{f.events:,}" for f in found))
    row("trades", (f"{f.trades:,}" for f in found))
    for at, label in enumerate(("mean", "median", "p95")):
        row(f"spread {label}, bp", (_number(f.spread_bp[at]) for f in found))
    for bp in DEPTH_BP:
        none = (math.nan, math.nan)
        row(f"depth ±{bp} bp, base", (_number(f.depth.get(bp, none)[0]) for f in found))
        row(f"depth ±{bp} bp, quote", (_number(f.depth.get(bp, none)[1]) for f in found))
    for at, label in enumerate(("median", "mean")):
        row(f"trade gap {label}, s", (_number(f.inter_arrival_s[at]) for f in found))
    row("trade gap CV", (_number(f.inter_arrival_s[2]) for f in found))
    row("trade size median", (_number(f.trade_size[0]) for f in found))
    row("trade size mean", (_number(f.trade_size[1]) for f in found))
    row("volatility, % a year", (_number(f.volatility * 100) for f in found))
    row("excess kurtosis, 1 s", (_number(f.kurtosis) for f in found))
    for lag in LAGS_S:
        row(
            f"autocorr. |r|, {lag} s",
            (_number(f.autocorrelation.get(lag, math.nan), 2) for f in found),
        )
    return made
