"""A venue's rate budgets, as pure arithmetic over a clock that the caller reads.

Entry points: `AlignedWindow`, `RollingWindow` (both `Bucket`), `Priority`, `admit`, `wait_s`.

Invariants:

1. A request counts from the moment it is granted until it is settled ("in flight"), and is charged
   to *every* window that the time from grant to settlement touches, widened by `guard_s` at both
   ends. The venue counts it once, at some instant in between: so as long as the clock error is
   below `guard_s`, no window of the venue ever holds more than our count of it.
2. What the venue says it has counted (headers, `rateLimits`) only ever raises our count within its
   window: answers overtake each other, and an older figure is smaller.
3. `admit` takes from all buckets or from none.
4. Lower priorities leave a reserve: a flood of new orders cannot keep a cancel waiting.

Times are seconds of one clock that follows the venue's (its windows are aligned to its epoch).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, Protocol

type Costs = Mapping[str, int]
"""Bucket name → what a request takes from it. A cost of 0 still respects the bucket's freeze."""


class Priority(IntEnum):
    """Who goes first when a budget is short; a smaller number wins."""

    CANCEL = 0
    RESOLVE = 1
    NEW = 2
    QUERY = 3
    BACKFILL = 4


RESERVE: Final[Mapping[Priority, float]] = {
    Priority.CANCEL: 0.0,
    Priority.RESOLVE: 0.05,
    Priority.NEW: 0.15,
    Priority.QUERY: 0.25,
    Priority.BACKFILL: 0.4,
}
"""Share of a shared bucket that a priority must leave free for those above it."""


class Bucket(Protocol):
    """One budget of a venue."""

    name: str
    limit: int
    window_s: float
    shared: bool
    """Whether priorities compete for it, so that reserves apply."""
    frozen_until_s: float

    def used(self, now_s: float) -> int:
        """What counts against the limit now, requests in flight included."""

    def take(self, now_s: float, cost: int) -> None:
        """Count a granted request as in flight."""

    def settle(self, now_s: float, cost: int, charged: bool) -> None:
        """End a request's flight; `charged` is False when the venue does not count it."""

    def observe(self, now_s: float, sent_s: float, count: int) -> None:
        """Take over the venue's own count from the answer to a request granted at `sent_s`."""

    def opens_s(self, now_s: float) -> float:
        """The next moment at which used budget may come back."""


@dataclass(slots=True)
class AlignedWindow:
    """A counter that the venue sets to zero at multiples of `window_s` of its own clock.

    Args:
        guard_s: Bound of the clock's error; below a quarter of the window.
    """

    name: str
    limit: int
    window_s: float
    shared: bool = True
    guard_s: float = 0.25
    frozen_until_s: float = 0.0
    _index: int = -1
    _charged: int = 0
    _late: int = 0  # of `_charged`, what the venue may count in the next window already
    _reported: int = 0
    _in_flight: int = 0

    def _roll(self, now_s: float) -> None:
        index = math.floor((now_s - self.guard_s) / self.window_s)
        if index > self._index:
            self._charged = self._late if index == self._index + 1 else 0
            self._index, self._late, self._reported = index, 0, 0

    def used(self, now_s: float) -> int:
        """What counts against the limit now, requests in flight included."""
        self._roll(now_s)
        return max(self._charged, self._reported) + self._in_flight

    def take(self, now_s: float, cost: int) -> None:
        """Count a granted request as in flight."""
        self._roll(now_s)
        self._in_flight += cost

    def settle(self, now_s: float, cost: int, charged: bool) -> None:
        """End a request's flight; charged to this window and, near its end, to the next too."""
        self._roll(now_s)
        self._in_flight -= cost
        if charged:
            self._charged += cost
            if now_s >= (self._index + 1) * self.window_s - self.guard_s:
                self._late += cost

    def observe(self, now_s: float, sent_s: float, count: int) -> None:
        """Take over the venue's count, if the request was surely counted in this window."""
        self._roll(now_s)
        opened_s = self._index * self.window_s + self.guard_s
        if sent_s >= opened_s and now_s < opened_s + self.window_s - 2 * self.guard_s:
            self._reported = max(self._reported, count)

    def opens_s(self, now_s: float) -> float:
        """The end of this window."""
        self._roll(now_s)
        return (self._index + 1) * self.window_s + self.guard_s


@dataclass(slots=True)
class RollingWindow:
    """At most `limit` within any stretch of `window_s`.

    Its memory is bounded by `limit` entries: nothing more is granted.
    """

    name: str
    limit: int
    window_s: float
    shared: bool = True
    guard_s: float = 0.25
    frozen_until_s: float = 0.0
    _in_flight: int = 0
    _charged: int = 0
    _settled: deque[tuple[float, int]] = field(default_factory=deque)

    def _expire(self, now_s: float) -> None:
        before_s = now_s - self.window_s - self.guard_s
        while self._settled and self._settled[0][0] < before_s:
            self._charged -= self._settled.popleft()[1]

    def used(self, now_s: float) -> int:
        """What counts against the limit now, requests in flight included."""
        self._expire(now_s)
        return self._charged + self._in_flight

    def take(self, now_s: float, cost: int) -> None:
        """Count a granted request as in flight."""
        self._in_flight += cost

    def settle(self, now_s: float, cost: int, charged: bool) -> None:
        """End a request's flight; it counts for a whole window from here."""
        self._in_flight -= cost
        if charged and cost:
            self._settled.append((now_s, cost))
            self._charged += cost

    def observe(self, now_s: float, sent_s: float, count: int) -> None:
        """Rolling budgets are not reported by any venue we know: our own count stands."""

    def opens_s(self, now_s: float) -> float:
        """When the oldest settled request stops counting."""
        self._expire(now_s)
        if not self._settled:
            return now_s + self.window_s
        return self._settled[0][0] + self.window_s + self.guard_s


def room(bucket: Bucket, priority: Priority, now_s: float) -> int:
    """What a request of this priority may still take; negative when others have overdrawn."""
    reserve = math.floor(bucket.limit * RESERVE[priority]) if bucket.shared else 0
    return bucket.limit - reserve - bucket.used(now_s)


def admit(
    buckets: Mapping[str, Bucket], costs: Costs, priority: Priority, now_s: float
) -> frozenset[str]:
    """Take a request's costs from all its buckets, or from none.

    Returns:
        The names of the buckets that have no room; empty when the request was admitted. Buckets
        that the venue does not have are ignored.
    """
    short = frozenset(
        name
        for name, cost in costs.items()
        if (bucket := buckets.get(name)) is not None and _lacks(bucket, cost, priority, now_s)
    )
    if not short:
        for name, cost in costs.items():
            if name in buckets:
                buckets[name].take(now_s, cost)
    return short


def _lacks(bucket: Bucket, cost: int, priority: Priority, now_s: float) -> bool:
    if now_s < bucket.frozen_until_s:
        return True
    if not cost or cost <= room(bucket, priority, now_s):
        return False
    # A reserve must not lock out for ever what costs more than the rest: an idle bucket serves it.
    return cost > bucket.limit or bucket.used(now_s) > 0


def wait_s(
    buckets: Mapping[str, Bucket], costs: Costs, queued: Costs, priority: Priority, now_s: float
) -> float:
    """How long a request would wait, behind `queued` costs of its own and higher priorities.

    An estimate for refusing early, not a promise; requests in flight count as used until the
    window ends.
    """
    longest_s = 0.0
    for name, cost in costs.items():
        bucket = buckets.get(name)
        if bucket is None:
            continue
        wait = max(0.0, bucket.frozen_until_s - now_s)
        missing = cost + queued.get(name, 0) - room(bucket, priority, now_s)
        if cost and missing > 0:
            share = 1 - (RESERVE[priority] if bucket.shared else 0.0)
            windows = math.ceil(missing / max(1.0, bucket.limit * share))
            wait = max(wait, bucket.opens_s(now_s) - now_s + (windows - 1) * bucket.window_s)
        longest_s = max(longest_s, wait)
    return longest_s
