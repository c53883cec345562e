"""Tasks that have an owner.

A bare `asyncio.create_task` can be garbage-collected, and its exception goes unseen. `Tasks`
holds what it starts, logs what fails and, on `stop`, cancels and waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger(__name__)


class Tasks:
    """A set of background tasks that end together.

    Args:
        owner: Name used in logs and as prefix of the tasks' names.
        on_failure: Called with a task's name and exception when it ends by one; without it the
            failure is logged and the others go on.
    """

    __slots__ = ("_on_failure", "_owner", "_stopped", "_tasks")

    def __init__(
        self, owner: str, on_failure: Callable[[str, BaseException], None] | None = None
    ) -> None:
        self._owner = owner
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def start[T](
        self, coroutine: Coroutine[Any, Any, T], name: str, *, awaited: bool = False
    ) -> asyncio.Task[T]:
        """Run a coroutine until it ends or `stop` is called.

        Args:
            awaited: Somebody awaits it and is told of its failure: that is no news for the log.

        Raises:
            RuntimeError: The owner has stopped already; the coroutine is closed.
        """
        if self._stopped:
            coroutine.close()
            raise RuntimeError(f"{self._owner} has stopped; it cannot start {name}")
        task = asyncio.create_task(coroutine, name=f"{self._owner}:{name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard if awaited else self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            return
        _log.error("task_failed", task=task.get_name(), exc_info=error)
        if self._on_failure is not None:
            self._on_failure(task.get_name(), error)

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Cancel every task and wait for all of them; safe to call twice.

        A task that does not end within `timeout_s` is logged by name and left behind.
        """
        self._stopped = True
        current = asyncio.current_task()
        pending = {task for task in self._tasks if task is not current}
        for task in pending:
            task.cancel()
        if not pending:
            return
        _, late = await asyncio.wait(pending, timeout=timeout_s)
        for task in late:
            _log.error("task_did_not_stop", task=task.get_name(), timeout_s=timeout_s)
