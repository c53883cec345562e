"""Rolling statistics against a plain recomputation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tbot.core.clock import to_ms
from tbot.market.ticker import DayWindow
from tbot.venues.base import MarketTrade

START = datetime(2024, 8, 9, tzinfo=UTC)


@given(
    st.lists(
        st.tuples(st.integers(0, 5 * 3600), st.integers(1, 50), st.integers(1, 9)),
        min_size=1,
        max_size=40,
    )
)
def test_equal_to_a_recomputation(script: list[tuple[int, int, int]]) -> None:
    window = DayWindow("BTC-USDT")
    trades: list[MarketTrade] = []
    at = START
    for number, (pause_s, price, quantity) in enumerate(script):
        at += timedelta(seconds=pause_s)
        trades.append(MarketTrade("BTCUSDT", number, Decimal(price), Decimal(quantity), True, at))
        ticker = window.add(trades[-1])
        minute = to_ms(at) - to_ms(at) % 60_000
        kept = [t for t in trades if to_ms(t.at) >= minute - 86_400_000]
        assert ticker.volume == sum(t.quantity for t in kept)
        assert ticker.quote_volume == sum(t.quantity * t.price for t in kept)
        assert (ticker.high, ticker.low) == (
            max(t.price for t in kept),
            min(t.price for t in kept),
        )
        assert (ticker.open, ticker.last) == (kept[0].price, Decimal(price))
        assert ticker.trades == len(kept)
