"""Hands out permits within a venue's budgets; the waiting room around `tbot.venues.budgets`.

A request takes a permit, is signed *after* it, sent, and settles the permit with whatever the
answer said about the budgets. Waiting is by priority, then by arrival; a request that lacks one
bucket does not hold up those that need others, but nobody below it may drain that bucket.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import structlog

from tbot.core.errors import VenueNotSent
from tbot.venues.budgets import Bucket, Costs, Priority, admit, wait_s

_log = structlog.get_logger(__name__)
_POLL_S = 1.0  # how often waiting requests are asked whether they are still wanted


class Permit:
    """The right to send one request now. Settle it exactly once; later calls change nothing."""

    __slots__ = ("_governor", "_taken", "sent_s")

    def __init__(self, governor: Governor, taken: list[tuple[Bucket, int]], sent_s: float) -> None:
        self._governor: Governor | None = governor
        self._taken = taken
        self.sent_s = sent_s

    def settle(self, counts: Mapping[str, int] | None = None, free: Iterable[str] = ()) -> None:
        """The request's flight has ended, with or without an answer.

        Args:
            counts: The venue's own counts, where the answer held them.
            free: Buckets that the venue does not charge for this outcome.
        """
        if self._governor is not None:
            governor, self._governor = self._governor, None
            governor.settle(self._taken, frozenset(free), counts or {}, self.sent_s)

    def cancel(self) -> None:
        """The request was never written: give everything back."""
        self.settle(free=[bucket.name for bucket, _ in self._taken])


class _Waiting:
    __slots__ = ("costs", "future", "priority", "wanted")

    def __init__(
        self,
        costs: Costs,
        priority: Priority,
        wanted: Callable[[], bool] | None,
        future: asyncio.Future[Permit],
    ) -> None:
        self.costs = costs
        self.priority = priority
        self.wanted = wanted
        self.future = future


class Governor:
    """Permits of one venue account in this process.

    Args:
        clock: Seconds since the epoch by the venue's clock, as best known; may step by less than
            the buckets' guard.
        waiting_max: Requests that may wait; further ones are refused with `VenueNotSent`.
    """

    def __init__(
        self, buckets: Iterable[Bucket], clock: Callable[[], float], waiting_max: int = 4096
    ) -> None:
        self._buckets = {bucket.name: bucket for bucket in buckets}
        self._clock = clock
        self._latest_s = 0.0
        self._waiting_max = waiting_max
        self._waiting: dict[tuple[int, int], _Waiting] = {}
        self._arrivals = count()
        self._timer: asyncio.TimerHandle | None = None

    def now_s(self) -> float:
        """The venue's time; never goes back, so that a window once closed stays closed."""
        self._latest_s = max(self._latest_s, self._clock())
        return self._latest_s

    def set_bucket(self, bucket: Bucket) -> None:
        """Add a budget, or change the limit of one that is already kept."""
        known = self._buckets.get(bucket.name)
        if known is not None and known.window_s == bucket.window_s:
            known.limit = bucket.limit
        else:
            self._buckets[bucket.name] = bucket

    def used(self) -> dict[str, tuple[int, int]]:
        """Bucket name → (used, limit), for metrics."""
        now_s = self.now_s()
        return {name: (each.used(now_s), each.limit) for name, each in self._buckets.items()}

    def try_take(self, costs: Costs, priority: Priority) -> Permit | None:
        """A permit at once, or None when the request would have to wait."""
        if any(waiting.priority <= priority for waiting in self._waiting.values()):
            return None
        now_s = self.now_s()
        if admit(self._buckets, costs, priority, now_s):
            return None
        return self._permit(costs, now_s)

    def _permit(self, costs: Costs, now_s: float) -> Permit:
        taken = [
            (self._buckets[name], cost) for name, cost in costs.items() if name in self._buckets
        ]
        return Permit(self, taken, now_s)

    async def take(
        self, costs: Costs, priority: Priority, wanted: Callable[[], bool] | None = None
    ) -> Permit:
        """Wait for a permit.

        Args:
            costs: Of every bucket that the request touches.
            priority: Who goes first.
            wanted: Asked about once a second; the request is dropped when it answers False.

        Raises:
            VenueNotSent: Too many wait already, the request is not wanted any more, or it costs
                more than a budget ever holds.
        """
        permit = self.try_take(costs, priority)
        if permit is not None:
            return permit
        if len(self._waiting) >= self._waiting_max:
            raise VenueNotSent(
                "too many requests wait for the venue's rate budget", "governor_full"
            )
        if any(
            cost > self._buckets[name].limit
            for name, cost in costs.items()
            if name in self._buckets
        ):
            raise VenueNotSent(
                "the request costs more than the venue's whole budget", "over_budget"
            )
        future: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        key = (priority, next(self._arrivals))
        self._waiting[key] = _Waiting(costs, priority, wanted, future)
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                future.result().cancel()
            raise
        finally:
            self._waiting.pop(key, None)

    def estimate_wait_s(self, costs: Costs, priority: Priority) -> float:
        """How long a request made now would wait for its permit."""
        queued: Counter[str] = Counter()
        for waiting in self._waiting.values():
            if waiting.priority <= priority:
                queued.update(waiting.costs)
        return wait_s(self._buckets, costs, queued, priority, self.now_s())

    def freeze(self, names: Iterable[str], for_s: float) -> None:
        """Grant nothing from these buckets for a while: the venue said so."""
        until_s = self.now_s() + for_s
        for name in names:
            bucket = self._buckets.get(name)
            if bucket is not None:
                bucket.frozen_until_s = max(bucket.frozen_until_s, until_s)
                _log.warning("venue_budget_frozen", bucket=name, for_s=round(for_s, 3))
        self._pump()

    def names(self, prefix: str = "") -> list[str]:
        """The kept buckets whose name starts with `prefix`."""
        return [name for name in self._buckets if name.startswith(prefix)]

    def settle(
        self,
        taken: list[tuple[Bucket, int]],
        free: frozenset[str],
        counts: Mapping[str, int],
        sent_s: float,
    ) -> None:
        """End a permit's flight; called by `Permit.settle`."""
        now_s = self.now_s()
        for bucket, cost in taken:
            bucket.settle(now_s, cost, charged=bucket.name not in free)
        for name, used in counts.items():
            if name in self._buckets:
                self._buckets[name].observe(now_s, sent_s, used)
        if self._waiting:
            self._pump()

    def _pump(self) -> None:
        """Grant what can be granted, in order; wake again when a budget may have come back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = self.now_s()
        contested: set[str] = set()
        for key in sorted(self._waiting):
            waiting = self._waiting[key]
            if waiting.future.done():
                continue
            if waiting.wanted is not None and not waiting.wanted():
                waiting.future.set_exception(
                    VenueNotSent("not wanted any more while it waited for its permit", "too_late")
                )
                continue
            if contested.isdisjoint(waiting.costs):
                short = admit(self._buckets, waiting.costs, waiting.priority, now_s)
                if not short:
                    waiting.future.set_result(self._permit(waiting.costs, now_s))
                    continue
                contested |= short
        pending = [each for each in self._waiting.values() if not each.future.done()]
        if pending:
            delay_s = min((self._opens_in_s(name, now_s) for name in contested), default=_POLL_S)
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(delay_s, 0.001), _POLL_S), self._pump)

    def _opens_in_s(self, name: str, now_s: float) -> float:
        bucket = self._buckets[name]
        if now_s < bucket.frozen_until_s:
            return bucket.frozen_until_s - now_s
        return bucket.opens_s(now_s) - now_s
