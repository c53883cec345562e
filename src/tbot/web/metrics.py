"""Prometheus metrics of HTTP; other modules register theirs in the same default registry."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Histogram

REQUESTS: Final = Counter(
    "tbot_http_requests",
    "HTTP requests answered.",
    ["method", "route", "status"],
)
DURATION: Final = Histogram(
    "tbot_http_request_duration_seconds",
    "Time from a request's head to the end of its answer.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# `labels()` looks a child up under a lock; the few combinations there are fit in dictionaries.
_requests: dict[tuple[str, str, int], Counter] = {}
_durations: dict[tuple[str, str], Histogram] = {}


def observe(method: str, route: str, status: int, duration_s: float) -> None:
    """Count one request.

    Args:
        route: The route's template, never the path itself: labels must not grow with what
            strangers send. The same holds for methods, which are `other` unless well known.
    """
    if method not in _METHODS:
        method = "other"
    counter = _requests.get((method, route, status))
    if counter is None:
        counter = _requests[method, route, status] = REQUESTS.labels(method, route, str(status))
    counter.inc()
    histogram = _durations.get((method, route))
    if histogram is None:
        histogram = _durations[method, route] = DURATION.labels(method, route)
    histogram.observe(duration_s)
