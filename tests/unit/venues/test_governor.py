"""Rate budgets: the venue's own counters, simulated beside ours, must never be exceeded."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbot.core.errors import VenueNotSent
from tbot.venues.budgets import (
    AlignedWindow,
    Bucket,
    Priority,
    RollingWindow,
    admit,
    room,
    wait_s,
)
from tbot.venues.governor import Governor

requests = st.lists(
    st.tuples(
        st.floats(0, 0.8),  # pause before it is asked
        st.floats(0.001, 6.0),  # round trip
        st.floats(0, 1),  # where in the round trip the venue counts it
        st.integers(1, 4),  # cost
        st.booleans(),  # whether the answer carries the venue's count
    ),
    min_size=1,
    max_size=120,
)


@settings(max_examples=200)
@given(requests, st.floats(-0.25, 0.25), st.floats(10, 20), st.booleans())
def test_the_venues_counters_are_never_exceeded(
    script: list[tuple[float, float, float, int, bool]],
    clock_error_s: float,
    start_s: float,
    aligned: bool,
) -> None:
    limit, window_s = 10, 5.0
    bucket: Bucket = (
        AlignedWindow("b", limit, window_s, shared=False)
        if aligned
        else RollingWindow("b", limit, window_s, shared=False)
    )
    buckets = {"b": bucket}
    now_s = start_s
    flights: list[tuple[float, float, float, int, bool]] = []
    counted: list[tuple[float, int]] = []  # at the venue: (venue time, cost)

    def land(until_s: float) -> None:
        for flight in sorted(flights):
            ends_s, sent_s, arrives_s, cost, reported = flight
            if ends_s <= until_s:
                flights.remove(flight)
                bucket.settle(ends_s + clock_error_s, cost, charged=True)
                if reported:
                    index = math.floor(arrives_s / window_s)
                    total = sum(
                        other
                        for at_s, other in counted
                        if math.floor(at_s / window_s) == index and at_s <= arrives_s
                    )
                    bucket.observe(ends_s + clock_error_s, sent_s + clock_error_s, total)

    for pause_s, trip_s, share, cost, reported in script:
        now_s += pause_s
        land(now_s)
        if not admit(buckets, {"b": cost}, Priority.NEW, now_s + clock_error_s):
            arrives_s = now_s + trip_s * share
            counted.append((arrives_s, cost))
            flights.append((now_s + trip_s, now_s, arrives_s, cost, reported))
    if aligned:
        windows: Counter[int] = Counter()
        for at_s, cost in counted:
            windows[math.floor(at_s / window_s)] += cost
        assert max(windows.values(), default=0) <= limit
    else:
        for at_s, _ in counted:
            held = sum(c for other_s, c in counted if at_s - window_s < other_s <= at_s)
            assert held <= limit


@given(st.lists(st.tuples(st.sampled_from(list(Priority)), st.integers(1, 5)), max_size=200))
def test_lower_priorities_leave_the_reserve(asked: list[tuple[Priority, int]]) -> None:
    bucket = AlignedWindow("b", 100, 60.0)
    for priority, cost in asked:
        admit({"b": bucket}, {"b": cost}, priority, 100.0)
    if all(priority is not Priority.CANCEL for priority, _ in asked):
        assert room(bucket, Priority.CANCEL, 100.0) >= 5
    if all(priority >= Priority.NEW for priority, _ in asked):
        assert room(bucket, Priority.RESOLVE, 100.0) >= 10


def test_all_buckets_or_none() -> None:
    wide, narrow = AlignedWindow("wide", 100, 60.0), AlignedWindow("narrow", 1, 60.0)
    buckets: dict[str, Bucket] = {"wide": wide, "narrow": narrow}
    costs = {"wide": 5, "narrow": 1, "unheard-of": 3}
    assert admit(buckets, costs, Priority.CANCEL, 100.0) == frozenset()
    assert admit(buckets, costs, Priority.CANCEL, 100.0) == {"narrow"}
    assert wide.used(100.0) == 5


def test_the_venues_count_only_raises_ours() -> None:
    bucket = AlignedWindow("b", 100, 60.0)
    admit({"b": bucket}, {"b": 2}, Priority.NEW, 100.0)
    bucket.settle(101.0, 2, charged=True)
    bucket.observe(101.0, 100.0, 40)
    bucket.observe(102.0, 100.0, 30)  # overtaken
    assert bucket.used(103.0) == 40
    bucket.observe(103.0, 59.0, 90)  # sent in the window before: may be its count
    assert bucket.used(103.0) == 40
    assert bucket.used(121.0) == 0


class Clock:
    """A clock that the test moves; timers of the loop still run in real time."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def test_cancels_pass_new_orders_and_others_pass_what_they_do_not_need() -> None:
    clock = Clock()
    governor = Governor(
        [AlignedWindow("weight", 10, 10.0, shared=False), AlignedWindow("orders", 1, 10.0)], clock
    )
    first = await governor.take({"weight": 1, "orders": 1}, Priority.NEW)
    order: list[str] = []

    async def ask(name: str, costs: dict[str, int], priority: Priority) -> None:
        permit = await governor.take(costs, priority)
        order.append(name)
        permit.settle()

    async with asyncio.TaskGroup() as group:
        group.create_task(ask("new", {"weight": 1, "orders": 1}, Priority.NEW))
        group.create_task(ask("query", {"weight": 1}, Priority.QUERY))
        group.create_task(ask("cancel", {"weight": 1}, Priority.CANCEL))
        await asyncio.sleep(0.01)
        assert sorted(order) == ["cancel", "query"]  # "new" waits for `orders` alone
        first.settle()
        clock.now_s += 11
        governor.freeze([], 0)  # wakes the waiting room as its timer would
    assert order[-1] == "new"


async def test_unwanted_requests_leave_and_the_waiting_room_is_bounded() -> None:
    clock = Clock()
    governor = Governor([AlignedWindow("orders", 1, 10.0, shared=False)], clock, waiting_max=1)
    await governor.take({"orders": 1}, Priority.NEW)
    wanted = True
    waiting = asyncio.create_task(governor.take({"orders": 1}, Priority.NEW, lambda: wanted))
    await asyncio.sleep(0)
    with pytest.raises(VenueNotSent) as full:
        await governor.take({"orders": 1}, Priority.NEW)
    assert full.value.code == "governor_full"
    wanted = False
    governor.freeze([], 0)
    with pytest.raises(VenueNotSent) as late:
        await waiting
    assert late.value.code == "too_late"
    with pytest.raises(VenueNotSent) as much:
        await governor.take({"orders": 2}, Priority.NEW)
    assert much.value.code == "over_budget"


async def test_frozen_budgets_grant_nothing_and_a_cancelled_waiter_gives_back() -> None:
    clock = Clock()
    governor = Governor([AlignedWindow("orders", 5, 10.0, shared=False)], clock)
    governor.freeze(["orders"], 30.0)
    assert governor.try_take({"orders": 1}, Priority.NEW) is None
    assert governor.estimate_wait_s({"orders": 1}, Priority.NEW) == pytest.approx(30.0)
    waiting = asyncio.create_task(governor.take({"orders": 1}, Priority.NEW))
    await asyncio.sleep(0)
    clock.now_s += 31
    governor.freeze([], 0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert governor.used()["orders"] == (0, 5)


async def test_a_request_that_was_never_written_costs_nothing() -> None:
    governor = Governor([AlignedWindow("orders", 5, 10.0, shared=False)], Clock())
    permit = await governor.take({"orders": 1}, Priority.NEW)
    permit.cancel()
    permit.settle()
    assert governor.used()["orders"] == (0, 5)


def test_estimates_count_the_queue() -> None:
    bucket = AlignedWindow("orders", 50, 10.0, shared=False)
    buckets: dict[str, Bucket] = {"orders": bucket}
    for _ in range(50):
        admit(buckets, {"orders": 1}, Priority.NEW, 1001.0)
    assert wait_s(buckets, {"orders": 1}, {}, Priority.NEW, 1001.0) == pytest.approx(9.25)
    assert wait_s(buckets, {"orders": 1}, {"orders": 50}, Priority.NEW, 1001.0) == pytest.approx(
        19.25
    )
