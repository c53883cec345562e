"""A circuit breaker: what keeps failing is left alone for a while instead of being hammered.

*Closed*: calls pass; `failures_max` failures in a row open it. *Open*: calls are refused at once,
for `open_s`. *Half-open*: one call at a time is let through; its success closes the circuit, its
failure opens it again. Whether an exception is a failure of what lies behind, or only a no, is the
caller's knowledge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from tbot.core import clock
from tbot.core.errors import CircuitOpen

_log = structlog.get_logger(__name__)

_STATE: Final = Gauge(
    "tbot_breaker_state", "Circuit breakers: 0 closed, 1 half-open, 2 open.", ["name"]
)
_CALLS: Final = Counter(
    "tbot_breaker_calls", "Calls through circuit breakers.", ["name", "outcome"]
)


class BreakerState(IntEnum):
    """See the module's text."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """A circuit breaker for one dependency; belongs to the event loop's thread.

    Args:
        name: For logs and metrics.
        failures_max: Failures in a row that open it (>= 1).
        open_s: How long it stays open.
        now_s: A clock that never goes back.
    """

    __slots__ = ("_failures", "_failures_max", "_name", "_now_s", "_open_s", "_probing", "_until_s")

    def __init__(
        self,
        name: str,
        failures_max: int,
        open_s: float,
        now_s: Callable[[], float] = clock.boot_s,
    ) -> None:
        self._name = name
        self._failures_max = failures_max
        self._open_s = open_s
        self._now_s = now_s
        self._failures = 0
        self._until_s: float | None = None
        self._probing = False
        _STATE.labels(name).set(BreakerState.CLOSED)

    @property
    def state(self) -> BreakerState:
        """What would happen to a call now."""
        if self._until_s is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if self._now_s() < self._until_s else BreakerState.HALF_OPEN

    @property
    def rest_s(self) -> float:
        """How long it stays open; 0 when a call may pass."""
        return 0.0 if self._until_s is None else max(0.0, self._until_s - self._now_s())

    async def call[T](
        self,
        operation: Callable[[], Awaitable[T]],
        failures: type[Exception] | tuple[type[Exception], ...],
    ) -> T:
        """Do something through the circuit.

        Args:
            operation: Awaited if the circuit lets it.
            failures: Exceptions that count against the dependency; any other exception, and a
                cancellation, says nothing about it.

        Raises:
            CircuitOpen: It was not even tried; `retry_after_s` says when it may be.
        """
        state = self.state
        if state is BreakerState.OPEN or (state is BreakerState.HALF_OPEN and self._probing):
            _CALLS.labels(self._name, "refused").inc()
            raise CircuitOpen(
                f"{self._name} has failed too often lately", retry_after_s=max(0.1, self.rest_s)
            )
        self._probing = probe = state is BreakerState.HALF_OPEN
        try:
            result = await operation()
        except failures as error:
            _CALLS.labels(self._name, "failed").inc()
            self._failed(probe, error)
            raise
        finally:
            if probe:
                self._probing = False
        _CALLS.labels(self._name, "done").inc()
        self._failures = 0
        if probe or self._until_s is None:
            self._close()
        return result

    def _failed(self, probe: bool, error: Exception) -> None:
        self._failures += 1
        if probe or (self._until_s is None and self._failures >= self._failures_max):
            self._until_s = self._now_s() + self._open_s
            _STATE.labels(self._name).set(BreakerState.OPEN)
            _log.warning("breaker_opened", name=self._name, error=repr(error))

    def _close(self) -> None:
        if self._until_s is not None:
            self._until_s = None
            _STATE.labels(self._name).set(BreakerState.CLOSED)
            _log.info("breaker_closed", name=self._name)
