"""Candles: exact, and the same whatever way the trades come."""

from __future__ import annotations

import random
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tbot.core.clock import from_ms
from tbot.market.candle_builder import CandleBuilder
from tbot.market.candles import (
    INTERVALS,
    Candle,
    Interval,
    aggregate,
    better,
    insert,
)
from tbot.venues.base import MarketTrade

BASE_MS = 1_723_075_200_000  # 2024-08-08T00:00:00Z


def trade(number: int, at_ms: int, price: str = "100", quantity: str = "1") -> MarketTrade:
    return MarketTrade("BTCUSDT", number, Decimal(price), Decimal(quantity), False, from_ms(at_ms))


@st.composite
def histories(draw: st.DrawFn) -> list[MarketTrade]:
    """Trades with contiguous ids and times that never go back, over seconds to days."""
    steps = st.one_of(st.integers(0, 900), st.integers(0, 120_000), st.integers(0, 20_000_000))
    at_ms, found = BASE_MS, []
    first = draw(st.integers(1, 10**6))
    for number in range(draw(st.integers(1, 40))):
        at_ms += draw(steps)
        price = draw(st.decimals("0.01", "99999.99", places=2))
        quantity = draw(st.decimals("0.00001", "99.99999", places=5))
        found.append(MarketTrade("X", first + number, price, quantity, False, from_ms(at_ms)))
    return found


def directly(trades: list[MarketTrade], interval: Interval) -> list[Candle]:
    """The definition of a candle, as plainly as can be."""
    buckets: dict[int, list[MarketTrade]] = {}
    for one in trades:
        at_ms = int(one.at.timestamp() * 1000)
        buckets.setdefault(at_ms // interval.ms * interval.ms, []).append(one)
    return [
        Candle(
            interval, start_ms, inside[0].price, max(t.price for t in inside),
            min(t.price for t in inside), inside[-1].price,
            sum((t.quantity for t in inside), Decimal(0)),
            sum((t.price * t.quantity for t in inside), Decimal(0)),
            len(inside), inside[0].trade_id, inside[-1].trade_id, True,
        )
        for start_ms, inside in sorted(buckets.items())
    ]  # fmt: skip


def built(builder: CandleBuilder, deliveries: list[MarketTrade]) -> dict[Interval, list[Candle]]:
    """All candles, the open ones last."""
    found: dict[Interval, list[Candle]] = {interval: [] for interval in INTERVALS}
    for one in deliveries:
        for candle in builder.add(one):
            found[candle.interval].append(candle)
    for interval in INTERVALS:
        candle = builder.view(interval)
        if candle is not None:
            found[interval].append(candle)
    return found


@given(histories())
def test_every_interval_is_what_its_definition_says(trades: list[MarketTrade]) -> None:
    found = built(CandleBuilder(trades[0].trade_id - 1), trades)
    for interval in INTERVALS:
        assert found[interval] == directly(trades, interval), interval


@given(histories(), st.randoms(use_true_random=False))
def test_order_batches_and_repetitions_change_nothing(
    trades: list[MarketTrade], chance: random.Random
) -> None:
    """Duplicates anywhere, trades that overtake each other: the candles are the same."""
    deliveries = trades + chance.choices(trades, k=len(trades))
    chance.shuffle(deliveries)
    builder = CandleBuilder(trades[0].trade_id - 1)
    found: dict[Interval, list[Candle]] = {interval: [] for interval in INTERVALS}
    while deliveries:  # in batches of any size
        size = chance.randint(1, len(deliveries))
        batch, deliveries = deliveries[:size], deliveries[size:]
        for one in batch:
            for candle in builder.add(one):
                found[candle.interval].append(candle)
    assert builder.missing is None
    assert {
        interval: closed + ([open_] if (open_ := builder.view(interval)) else [])
        for interval, closed in found.items()
    } == built(CandleBuilder(trades[0].trade_id - 1), trades)


@given(histories())
def test_larger_candles_are_sums_of_smaller_ones(trades: list[MarketTrade]) -> None:
    found = {interval: directly(trades, interval) for interval in INTERVALS}
    for place, larger in enumerate(INTERVALS):
        for smaller in INTERVALS[:place]:
            assert aggregate(found[smaller], larger) == found[larger]


@given(histories(), st.data())
def test_a_rebased_day_is_the_same_day(trades: list[MarketTrade], data: st.DataObject) -> None:
    """Beginning in the middle, with the day's earlier minutes from elsewhere."""
    place = data.draw(st.integers(0, len(trades) - 1))
    began = trades[place]
    until_ms = Interval.M1.floor(int(began.at.timestamp() * 1000))
    # The open minute is whole when we hear all of it.
    while place and int(trades[place - 1].at.timestamp() * 1000) >= until_ms:
        place -= 1
    day_ms = Interval.D1.floor(until_ms)
    today = [one for one in trades if int(one.at.timestamp() * 1000) >= day_ms]
    builder = CandleBuilder(trades[place].trade_id - 1)
    for one in trades[place : trades.index(began) + 1]:
        builder.add(one)
    minutes = [c for c in directly(today, Interval.M1) if c.start_ms < until_ms]
    builder.rebase(minutes, until_ms)
    for one in trades[trades.index(began) + 1 :]:
        builder.add(one)
    for interval in INTERVALS:
        assert builder.view(interval) == directly(trades, interval)[-1]
    assert builder.whole


def test_a_missing_trade_is_waited_for_and_then_counted_in_its_place() -> None:
    builder = CandleBuilder(0)
    builder.add(trade(1, BASE_MS, "100"))
    assert builder.add(trade(4, BASE_MS + 1500, "104")) == []
    assert builder.add(trade(3, BASE_MS + 900, "90")) == []
    assert builder.missing == (2, 2)
    (second,) = builder.add(trade(2, BASE_MS + 500, "110"))
    assert (second.open, second.high, second.low, second.close) == (100, 110, 90, 90)
    assert second.complete and (second.first_id, second.last_id, second.trades) == (1, 3, 3)
    assert builder.missing is None


def test_what_never_comes_leaves_candles_in_doubt_until_they_are_whole_again() -> None:
    builder = CandleBuilder(0)
    builder.add(trade(1, BASE_MS))
    builder.add(trade(5, BASE_MS + 61_000))
    closed = builder.skip()
    assert [(one.interval, one.complete) for one in closed] == [("1s", False), ("1m", False)]
    (span,) = builder.doubted
    assert (span.from_ms, span.to_ms) == (BASE_MS, BASE_MS + 61_000)
    later = builder.add(trade(6, BASE_MS + 62_000))
    assert [(one.interval, one.complete) for one in later] == [("1s", False)]
    assert [one.complete for one in builder.add(trade(7, BASE_MS + 63_000))] == [True]
    assert not builder.whole
    # The venue's own minutes end the doubt about the larger ones, once a whole minute was heard.
    turned = builder.add(trade(8, BASE_MS + 120_000))
    minute = turned[-1]
    assert (minute.interval, minute.complete) == ("1m", False)
    minutes = [
        Candle(Interval.M1, BASE_MS + at, *[Decimal(100)] * 6, 4, None, None, True)  # type: ignore[call-arg]
        for at in (0, 60_000)
    ]
    builder.rebase(minutes, BASE_MS + 120_000)
    assert builder.whole
    day = builder.view(Interval.D1)
    assert day is not None and (day.trades, day.last_id) == (9, 8)


def test_a_trade_that_is_missing_within_a_second_leaves_the_next_one_whole() -> None:
    builder = CandleBuilder(0)
    builder.add(trade(1, BASE_MS + 100))
    builder.add(trade(3, BASE_MS + 600))
    builder.skip()
    (first,) = builder.add(trade(4, BASE_MS + 1_200))
    assert (first.start_ms, first.complete) == (BASE_MS, False)
    (second,) = builder.add(trade(5, BASE_MS + 2_500))
    assert (second.start_ms, second.complete) == (BASE_MS + 1_000, True)


def test_a_clock_that_was_set_back_does_not_turn_a_doubted_stretch_round() -> None:
    builder = CandleBuilder(0)
    builder.add(trade(1, BASE_MS + 5_000))
    builder.add(trade(3, BASE_MS + 2_000))
    builder.skip()
    assert all(span.from_ms <= span.to_ms for span in builder.doubted)
    assert min(span.from_ms for span in builder.doubted) == BASE_MS + 2_000
    assert max(span.to_ms for span in builder.doubted) == BASE_MS + 5_000


def test_a_rebase_that_comes_too_late_changes_nothing() -> None:
    builder = CandleBuilder()
    builder.add(trade(1, BASE_MS + 60_000))
    assert builder.rebase([], BASE_MS) == []
    assert not builder.whole


def test_too_many_waiting_trades_are_told() -> None:
    builder = CandleBuilder(0, pending_max=2)
    for number in (5, 6, 7):
        builder.add(trade(number, BASE_MS))
    assert builder.full
    builder.skip()
    assert (builder.last_id, builder.full) == (6, False)


def test_the_clock_closes_candles_without_another_trade() -> None:
    builder = CandleBuilder(0)
    builder.add(trade(1, BASE_MS + 59_500))
    assert builder.advance(BASE_MS + 60_500) == []
    closed = builder.advance(BASE_MS + 62_000)
    assert [one.interval for one in closed] == ["1s", "1m"]
    assert all(one.complete for one in closed)
    assert builder.view(Interval.S1) is None and builder.view(Interval.M1) is None
    five = builder.view(Interval.M5)
    assert five is not None and five.trades == 1
    # One that comes later than anybody would think is in the larger candles, which are in doubt.
    assert builder.add(trade(2, BASE_MS + 59_900)) == []
    five = builder.view(Interval.M5)
    assert five is not None and (five.trades, five.complete) == (2, False)
    assert [span.from_ms for span in builder.doubted] == [BASE_MS + 59_900]


def test_ids_that_begin_anew_are_another_beginning() -> None:
    builder = CandleBuilder(1000)
    builder.add(trade(1001, BASE_MS))
    closed = builder.restart(trade(1, BASE_MS + 1000))
    assert [one.complete for one in closed] == [False]
    assert builder.last_id == 1
    assert builder.add(trade(2, BASE_MS + 1001)) == []


def test_the_better_account_of_an_interval_wins_whichever_comes_first() -> None:
    full = Candle(Interval.M1, BASE_MS, *[Decimal(1)] * 6, 5, 1, 5, True)  # type: ignore[call-arg]
    part = Candle(Interval.M1, BASE_MS, *[Decimal(1)] * 6, 3, 3, 5, False)  # type: ignore[call-arg]
    venue = Candle(Interval.M1, BASE_MS, *[Decimal(1)] * 6, 5, None, None, True)  # type: ignore[call-arg]
    assert better(full, part) == better(part, full) == full
    assert better(full, venue) == better(venue, full) == full
    assert better(part, venue) == venue
    recent: list[Candle] = []
    assert insert(recent, part, 10) == part
    assert insert(recent, full, 10) == full
    assert insert(recent, venue, 10) is None
    assert recent == [full]
