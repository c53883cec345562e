"""A timing wheel: when to look at each of many things next. Pure: no clock of its own.

One timer of the event loop serves all of them. Moments are rounded up to a tick, and those beyond
the wheel's reach come up at its end: whoever is looked at says anew when it wants to be next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

TICK_S: Final = 0.1
SLOTS: Final = 512


class Watched(Protocol):
    """Something that is looked at.

    Attributes:
        tick: Where in the wheel it is; -1 while it is nowhere. The wheel's own.
    """

    tick: int


class Wheel[W: Watched]:
    """Things by the tick at which to look at them.

    Args:
        now_s: The time at which the wheel stands.
    """

    __slots__ = ("_slots", "_tick")

    def __init__(self, now_s: float) -> None:
        self._slots: list[set[W]] = [set() for _ in range(SLOTS)]
        self._tick = int(now_s / TICK_S)

    def put(self, thing: W, at_s: float) -> None:
        """Look at a thing at this time instead of when it was due before."""
        tick = min(max(int(at_s / TICK_S) + 1, self._tick + 1), self._tick + SLOTS - 1)
        if tick != thing.tick:
            self.remove(thing)
            thing.tick = tick
            self._slots[tick % SLOTS].add(thing)

    def remove(self, thing: W) -> None:
        """Look at it no more."""
        if thing.tick >= 0:
            self._slots[thing.tick % SLOTS].discard(thing)
            thing.tick = -1

    def due(self, now_s: float) -> Iterator[W]:
        """Everything whose time has come; each is out of the wheel when it is yielded."""
        target = int(now_s / TICK_S)
        # After a long pause every slot is passed once, not once for every tick that was missed.
        self._tick = max(self._tick, target - SLOTS)
        while self._tick < target:
            self._tick += 1
            slot = self._slots[self._tick % SLOTS]
            while slot:
                thing = slot.pop()
                thing.tick = -1
                yield thing
