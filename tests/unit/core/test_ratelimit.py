"""GCRA as a model has it: a bucket of `amount` units that fills evenly."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tbot.core.limit_settings import LimitSettings
from tbot.core.ratelimit import Cells, Quota, charge, limit_field, standings


class Bucket:
    """The model, in exact numbers."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.level = Fraction(quota.amount)
        self.at = Fraction(0)

    def after(self, now: Fraction) -> Fraction:
        filled = self.level + (now - self.at) * self.quota.amount / self.quota.window_s
        return min(Fraction(self.quota.amount), filled)


@given(
    quotas=st.lists(
        st.builds(Quota, st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4
    ),
    calls=st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 3), st.sampled_from("ab")), max_size=80
    ),
)
def test_it_is_a_bucket_that_fills_evenly_and_all_or_nothing(
    quotas: list[Quota], calls: list[tuple[int, int, str]]
) -> None:
    tables = [Cells(f"p{n}", quota, 100) for n, quota in enumerate(quotas)]
    buckets = {(n, who): Bucket(quota) for n, quota in enumerate(quotas) for who in "ab"}
    now = Fraction(1000)
    for pause, cost, who in calls:
        now += Fraction(pause, 4)
        claims = [(cells, who) for cells in tables]
        levels = [buckets[n, who].after(now) for n in range(len(quotas))]
        costs = [min(cost, quota.amount) for quota in quotas]
        fits = all(level >= each for level, each in zip(levels, costs, strict=True))
        debts = charge(claims, cost, float(now))
        assert (debts is not None) == fits
        told = standings(claims, cost, float(now), charged=fits)
        for n, one in enumerate(told):
            left = levels[n] - costs[n] if fits else levels[n]
            assert one.remaining == int(left)
            assert one.refused == (not fits and levels[n] < costs[n])
            if fits:
                buckets[n, who].level, buckets[n, who].at = left, now
        for n, one in enumerate(told):
            if one.refused:  # what it says is exactly when
                lacking = costs[n] - levels[n]
                wait = lacking * quotas[n].window_s / quotas[n].amount
                assert one.wait_s == pytest.approx(float(wait), abs=1e-3)
                assert one.reset_s >= wait - Fraction(1, 100)


def test_memory_is_bounded_and_those_who_are_whole_go_first() -> None:
    cells = Cells("x", Quota(10, 10), 50)
    for number in range(200):
        charge([(cells, f"old {number}")], 10, 100.0)
    assert len(cells) <= 50
    # Of those whose quota is whole, two go for each that comes.
    for number in range(40):
        charge([(cells, number)], 1, 200.0)
    assert len(cells) == 40
    assert all(cells.debt_s(number, 200.0) > 0 for number in range(40))


def test_a_refusal_tells_when_and_takes_nothing() -> None:
    few, many = Cells("few", Quota(2, 60), 10), Cells("many", Quota(100, 10), 10)
    claims = [(few, "ann"), (many, "ann")]
    assert charge(claims, 1, 5.0) is not None
    assert charge(claims, 1, 5.0) is not None
    assert charge(claims, 1, 5.0) is None
    told = standings(claims, 1, 5.0, charged=False)
    assert limit_field(told) == '"few";r=0;t=30, "many";r=98;t=1'
    assert [one.refused for one in told] == [True, False]
    assert charge(claims, 1, 34.9) is None
    assert charge(claims, 1, 35.0) is not None
    assert charge([(few, "bob")], 1, 5.0) is not None


@pytest.mark.parametrize("text", ["", "10", "0/1s", "1/0s", "10/1m", "-1/1s", "1/1s ", "1e3/1s"])
def test_a_quota_has_one_form(text: str) -> None:
    with pytest.raises(ValueError, match="such as 100/10s"):
        Quota.parse(text)
    with pytest.raises(ValueError, match="such as 100/10s"):
        LimitSettings(orders=text)


def test_a_quota_reads_as_it_is_written() -> None:
    assert str(Quota.parse("600/60s")) == "600/60s"
    assert LimitSettings(orders="off").orders == "off"
