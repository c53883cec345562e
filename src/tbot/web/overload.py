"""What one process takes on at once: new work is refused first, reads next, cancels never.

Signals are how many requests are under way and how late the event loop's timers are, several times
in a row: one long pause refuses nobody. A refusal is a 503 with `Retry-After`, certainly without
effect, before anything was read or checked. The committer's queue has bounds of its own
(`tbot.journal.queue`), by the same order.

It also knows since when each request is under way, so that one that takes too long is ended: what
it wrote goes on, as for any caller that does not wait, so the answer is `outcome_unknown`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from enum import IntEnum
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge

from tbot.core.errors import OutcomeUnknown, Overloaded, TBotError, Unavailable
from tbot.core.limit_settings import OverloadSettings
from tbot.web.ratelimit import is_stop

_RETRY_AFTER_S: Final = (1, 3)
"""From and to: they who were refused together shall not come back together."""
_READS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_LATE_IN_A_ROW: Final = 4
_MORE: Final = 1.25
"""Times the number of requests that stops new work: then reads stop, too."""

_SHED: Final = Counter("tbot_http_shed", "Requests refused because of load.", ["work"])
_UNDER_WAY: Final = Gauge("tbot_http_requests_under_way", "Requests being answered.")
_LATE: Final = Gauge("tbot_http_late_seconds", "How late timers are, several times in a row.")
_OVERDUE: Final = Counter("tbot_http_requests_overdue", "Requests ended by their time limit.")

_log = structlog.get_logger(__name__)


class Work(IntEnum):
    """How early a request is refused: the higher, the earlier."""

    NEVER = 0
    READ = 1
    NEW = 2


def work_of(method: str, path: str) -> Work:
    """How early a request is refused; known before its route is.

    Whoever may cancel or halt has to be able to get the token for it, so refreshes are never
    refused.

    Example:
        >>> [work_of("POST", "/v1/orders").name, work_of("DELETE", "/v1/orders/1").name]
        ['NEW', 'NEVER']
        >>> work_of("POST", "/v1/switches/trading/halt").name
        'NEVER'
    """
    if is_stop(method, path):
        return Work.NEVER
    if method in _READS:
        return Work.NEVER if path.startswith(("/health/", "/metrics")) else Work.READ
    if path.startswith("/v1/token/re"):  # refresh, revoke
        return Work.NEVER
    return Work.NEW


class Overload:
    """The requests of one process; belongs to the event loop's thread.

    Attributes:
        lag_s: How late the loop's timers were, each of the last few times.
        now_s: Loop time of the last `look`: as exact as time limits need, and costs nothing.
    """

    __slots__ = ("_expired", "_lag_s_max", "_late", "_running", "_settings", "lag_s", "now_s")

    def __init__(self, settings: OverloadSettings) -> None:
        self._settings = settings
        self._late: deque[float] = deque([0.0], _LATE_IN_A_ROW)
        self.lag_s = 0.0
        self._lag_s_max = settings.lag_ms_max / 1000
        self._running: dict[asyncio.Task[Any], float] = {}
        self._expired: set[asyncio.Task[Any]] = set()
        self.now_s = 0.0

    @property
    def under_way(self) -> int:
        """How many requests are being answered."""
        return len(self._running)

    def check(self, method: str, path: str) -> None:
        """Refuse a request if there is too much to do.

        Raises:
            Overloaded: There is, for requests of its kind.
        """
        count, lag_s = len(self._running), self.lag_s
        most = self._settings.requests_max
        if count < most and lag_s <= self._lag_s_max:
            return
        work = work_of(method, path)
        reads_too = count >= most * _MORE or lag_s > 2 * self._lag_s_max
        if work is Work.NEW or (work is Work.READ and reads_too):
            _SHED.labels(work.name.lower()).inc()
            raise Overloaded(
                "too much to do at the moment", retry_after_s=random.randint(*_RETRY_AFTER_S)
            )

    def begin(self) -> asyncio.Task[Any]:
        """The current task is a request that is under way; for `end`."""
        task = asyncio.current_task()
        assert task is not None
        # Not `now_s`: nobody looks while there is no connection, and it would be of long ago.
        self._running[task] = task.get_loop().time()
        return task

    def end(self, task: asyncio.Task[Any]) -> None:
        """It is not any more."""
        self._running.pop(task, None)
        if self._expired:
            self._expired.discard(task)

    def answering(self) -> None:
        """The current request's answer begins: from now on only its reader can be too slow."""
        task = asyncio.current_task()
        if task in self._running:
            self._running[task] = math.inf

    def look(self, now_s: float, late_s: float = 0.0) -> None:
        """End what takes too long; called a few times a second.

        Args:
            late_s: How much too late.
        """
        self._late.append(late_s)
        self.lag_s = min(self._late)
        _LATE.set(self.lag_s)
        before_s = now_s - self._settings.request_timeout_s
        for task, since_s in self._running.items():
            if since_s < before_s and task not in self._expired:
                self._expired.add(task)
                _OVERDUE.inc()
                task.cancel()
        self.now_s = now_s
        _UNDER_WAY.set(len(self._running))

    def overdue(self, method: str) -> TBotError | None:
        """What to answer now that the current task was cancelled; None if not for its time.

        To be asked once, by who answers: the task lives on.
        """
        task = asyncio.current_task()
        if task is None or task not in self._expired:
            return None
        self.end(task)
        task.uncancel()
        _log.warning("request_overdue", method=method)
        if method in _READS:
            return Unavailable("this took too long")
        return OutcomeUnknown("this took too long")
