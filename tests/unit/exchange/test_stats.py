"""Statistics on series whose answers are known, and on the synthetic market's promises."""

from __future__ import annotations

import io
import math
from decimal import Decimal
from itertools import takewhile

import pytest
from rich.console import Console

from tbot.exchange.events import Depth, Snapshot, Timed, Trade
from tbot.exchange.instruments import KNOWN
from tbot.exchange.stats import (
    autocorrelation,
    deviation,
    excess_kurtosis,
    measure,
    quantile,
    table,
    weighted_quantile,
)
from tbot.exchange.synthetic import SyntheticMarket

D = Decimal
SECOND = 1_000_000_000


def test_small_series() -> None:
    assert quantile([1, 2, 3, 4], 0.5) == 2.5
    assert math.isnan(quantile([], 0.5))
    assert deviation([2, 4, 4, 4, 5, 5, 7, 9]) == 2
    assert weighted_quantile([(1, 9), (5, 1)], 0.5) == 1
    assert weighted_quantile([(1, 9), (5, 1)], 0.95) == 5
    alternating = [1.0, -1.0] * 100
    assert autocorrelation(alternating, 1) == pytest.approx(-0.995)
    assert autocorrelation(alternating, 2) == pytest.approx(0.99)
    assert math.isnan(autocorrelation([1.0, 1.0, 1.0, 1.0], 1))
    assert excess_kurtosis([1.0, -1.0] * 50) == pytest.approx(-2)


def test_a_market_with_known_figures() -> None:
    snapshot = Snapshot("X", 1, [(D("99"), D("2")), (D("90"), D("5"))], [(D("101"), D("4"))])
    events = [
        Timed(0, 0, Depth("X", 2, 2, [], [], 0)),
        Timed(1 * SECOND, 1, Trade("X", 1, D("101"), D("1"), False, 0, 0)),
        Timed(2 * SECOND, 2, Trade("X", 2, D("101"), D("3"), False, 0, 0)),
        Timed(3 * SECOND, 3, Depth("X", 3, 3, [(D("99.9"), D("1"))], [(D("100.1"), D("1"))], 0)),
        Timed(6 * SECOND, 4, Depth("X", 4, 4, [], [], 0)),
    ]
    figures = measure([snapshot], events)["X"]
    assert (figures.events, figures.trades, figures.seconds) == (5, 2, 6)
    assert figures.spread_bp[0] == pytest.approx((200 + 20) / 2)
    assert figures.inter_arrival_s[:2] == (1, 1)
    assert figures.trade_size == (2, 2)
    # ±50 bp of 100 holds nothing at first, then one unit on each side.
    assert figures.depth[50][0] == pytest.approx((0 + 2 + 2) / 3)
    console = Console(file=io.StringIO(), width=100)
    console.print(table({"X": figures}))
    assert "spread mean, bp" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_synthetic_market_clusters() -> None:
    market = SyntheticMarket(KNOWN["ETHUSDT"], 5, 0)
    opening = market.snapshot()
    stretch = takewhile(lambda item: item[0] < 1500 * SECOND, market.events())
    timed = (Timed(at_ns, n, event) for n, (at_ns, event) in enumerate(stretch))
    figures = measure([opening], timed)["ETHUSDT"]
    correlations = figures.autocorrelation
    assert all(correlations[lag] > 0.05 for lag in (1, 2, 5, 10))
    assert correlations[120] < correlations[1]
    assert figures.inter_arrival_s[2] > 1.2, "trades come in bursts"
    assert figures.spread_bp[2] > figures.spread_bp[1], "the spread varies"
    assert figures.kurtosis > 0.5
    assert figures.depth[5][0] < figures.depth[10][0] < figures.depth[50][0]
