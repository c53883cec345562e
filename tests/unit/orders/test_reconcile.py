"""Doubts: absence is believed late and twice, or not at all."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tbot.core.clock import from_ms
from tbot.orders.reconcile import (
    Question,
    begin,
    deadline_s,
    denied,
    failed,
    merged,
)
from tbot.venues.base import OrderReport, VenueFill, VenueStatus

answers = st.lists(
    st.tuples(st.sampled_from(["denied", "failed"]), st.floats(0, 3)), min_size=1, max_size=60
)


@given(answers, st.floats(0, 30))
def test_absence_needs_both_denials_after_the_deadline(
    script: list[tuple[str, float]], deadline: float
) -> None:
    doubt = begin(0.0, deadline, 0.5)
    history: list[tuple[str, Question, float]] = []
    now_s = 0.0
    for answer, took_s in script:
        asked_s = max(now_s, doubt.next_s)
        now_s = asked_s + took_s
        history.append((answer, doubt.question, asked_s))
        if answer == "failed":
            doubt = failed(doubt, now_s, 0.5)
            assert doubt.question is Question.BY_ID
            continue
        left = denied(doubt, asked_s, now_s, 0.5)
        if left is None:
            last_two = history[-2:]
            assert [each[0] for each in last_two] == ["denied", "denied"]
            assert [each[1] for each in last_two] == [Question.BY_ID, Question.EVERYWHERE]
            assert all(each[2] > deadline for each in last_two)
            return
        doubt = left
        assert doubt.next_s >= now_s
        assert doubt.next_s <= max(now_s + 10, deadline + 0.001)


@given(st.floats(0, 5), st.floats(0, 30))
def test_a_venue_that_keeps_denying_is_believed_soon_after_the_deadline(
    took_s: float, deadline: float
) -> None:
    doubt = begin(0.0, deadline, 0.5)
    now_s = 0.0
    for _ in range(1000):
        asked_s = max(now_s, doubt.next_s)
        now_s = asked_s + took_s
        left = denied(doubt, asked_s, now_s, 0.5)
        if left is None:
            assert now_s <= max(deadline, 0.5) + 4 * took_s + 0.6
            return
        doubt = left
    raise AssertionError("never believed")


def report(status: VenueStatus, executed: int, *trades: int, at: int = 0) -> OrderReport:
    fills = tuple(
        VenueFill(str(n), Decimal(1), Decimal(1), Decimal(1), Decimal(0), "X", False, from_ms(n))
        for n in trades
    )
    return OrderReport(
        "tbX", "X", "1", status, Decimal(executed), Decimal(executed), from_ms(at), fills
    )


@given(st.permutations(range(5)), st.lists(st.integers(0, 4), max_size=5))
def test_reports_merge_in_any_order(order: list[int], repeated: list[int]) -> None:
    new, part, filled = VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED, VenueStatus.FILLED
    said = [
        report(new, 0, at=1),
        report(part, 1, 1, at=2),
        report(part, 2, 2, at=3),
        report(filled, 3, 3, at=4),
        report(part, 2, at=5),  # a lagging answer, stamped late
    ]
    found = merged([said[number] for number in (*order, *repeated)])
    assert (found.status, found.executed_quantity) == (filled, 3)
    assert {fill.trade_id for fill in found.fills} == {"1", "2", "3"}


def test_the_deadline() -> None:
    assert deadline_s(5.0, 3.0, 10.0, 5.0) == 23.0
