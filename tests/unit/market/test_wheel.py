"""The timing wheel: everything comes up once, not before its time and at most a tick after it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tbot.market.wheel import SLOTS, TICK_S, Wheel


class Thing:
    def __init__(self) -> None:
        self.tick = -1


@given(
    start=st.floats(0, 1e6),
    delays=st.lists(st.floats(0, SLOTS * TICK_S * 0.9), max_size=30),
    step=st.floats(0.01, 20),
)
def test_each_comes_up_once_and_in_time(start: float, delays: list[float], step: float) -> None:
    wheel: Wheel[Thing] = Wheel(start)
    due = {}
    for delay in delays:
        thing = Thing()
        due[thing] = start + delay
        wheel.put(thing, start + delay)
    now = start
    while due:
        now += step
        for thing in wheel.due(now):
            assert due.pop(thing) <= now and thing.tick == -1
        late = [at for at in due.values() if at < now - 2 * TICK_S]
        assert not late


def test_a_later_wish_replaces_an_earlier_one_and_removed_things_never_come() -> None:
    wheel: Wheel[Thing] = Wheel(0.0)
    moved, removed = Thing(), Thing()
    wheel.put(moved, 1.0)
    wheel.put(moved, 3.0)
    wheel.put(removed, 1.0)
    wheel.remove(removed)
    assert list(wheel.due(2.0)) == []
    assert list(wheel.due(3.2)) == [moved]


def test_what_is_beyond_the_wheel_comes_up_at_its_end() -> None:
    wheel: Wheel[Thing] = Wheel(0.0)
    far = Thing()
    wheel.put(far, 10_000.0)
    assert list(wheel.due(SLOTS * TICK_S)) == [far]
