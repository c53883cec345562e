"""Prometheus metrics of HTTP; other modules register theirs in the same default registry.

Every request counts here, so it is counted in plain numbers of the event loop's thread, without the
locks of `prometheus_client`, which asks for them when it is asked itself.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

_BOUNDS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Durations:
    """How long the requests of one method and route took.

    Attributes:
        counts: Those within each of the bounds and above the one before, and at last the rest.
    """

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_S) + 1)
        self.sum_s = 0.0


class _Answered:
    """The requests of one method, route and status."""

    __slots__ = ("count", "durations")

    def __init__(self, durations: _Durations) -> None:
        self.count = 0
        self.durations = durations


class _Requests(Collector):
    """All requests that this process answered."""

    def __init__(self) -> None:
        self.answered: dict[tuple[str, str, int], _Answered] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}

    def answers(self, method: str, route: str, status: int) -> _Answered:
        """Begin to count a combination."""
        if method not in _METHODS:
            method = "other"
        durations = self._durations.setdefault((method, route), _Durations())
        return self.answered.setdefault((method, route, status), _Answered(durations))

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        requests = CounterMetricFamily(
            "tbot_http_requests", "HTTP requests answered.", labels=["method", "route", "status"]
        )
        for (method, route, status), answered in list(self.answered.items()):
            requests.add_metric([method, route, str(status)], answered.count)
        yield requests
        durations = HistogramMetricFamily(
            "tbot_http_request_duration_seconds",
            "Time from a request's head to the end of its answer.",
            labels=["method", "route"],
        )
        bounds = [*map(str, _BOUNDS_S), "+Inf"]
        for (method, route), one in list(self._durations.items()):
            counts = accumulate(one.counts)
            durations.add_metric([method, route], list(zip(bounds, counts, strict=True)), one.sum_s)
        yield durations


_requests: Final = _Requests()
REGISTRY.register(_requests)


def observe(method: str, route: str, status: int, duration_s: float) -> None:
    """Count one request.

    Args:
        route: The route's template, never the path itself: labels must not grow with what
            strangers send. The same holds for methods, which are `other` unless well known.
    """
    answered = _requests.answered.get((method, route, status))
    if answered is None:
        answered = _requests.answers(method, route, status)
    answered.count += 1
    durations = answered.durations
    durations.counts[bisect_left(_BOUNDS_S, duration_s)] += 1
    durations.sum_s += duration_s
