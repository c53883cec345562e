"""An event loop without a world: virtual time, a seeded order, no sockets and no sleeping.

Time stands still while anything is ready to run, then jumps to the next timer. With `shuffled`
the next callback is any of the ready ones, otherwise the oldest, as asyncio has it. One `Random`
makes every choice, so a seed is a whole run.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, cast


class Stuck(Exception):
    """Nothing is ready and no timer is set, or far too much has run: somebody waits for ever."""


class Handle:
    """A callback that waits for its turn or its time."""

    __slots__ = ("args", "callback", "context", "dropped", "when_s")

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], context: Any, when_s: float
    ) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.when_s = when_s
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped

    def when(self) -> float:
        return self.when_s


class VirtualLoop:
    """As much of an event loop as tasks, futures and timers need.

    Attributes:
        steps: Callbacks run so far; `at_step` hooks into that count.
        complaints: What the loop's exception handler was told: each is a fault of the program.
    """

    def __init__(self, rng: random.Random, *, shuffled: bool) -> None:
        self.now_s = 0.0
        self.steps = 0
        self.complaints: list[str] = []
        self._random = rng.random
        self._shuffled = shuffled
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._timers_set = 0
        self._hooks: dict[int, Callable[[], None]] = {}

    # What tasks and futures call.

    def time(self) -> float:
        return self.now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> Handle:
        handle = Handle(callback, args, context, self.now_s)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> Handle:
        handle = Handle(callback, args, context, when)
        self._timers_set += 1
        heapq.heappush(self._timers, (when, self._timers_set, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coroutine, loop=self, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(f"{context.get('message')}: {context.get('exception')!r}")

    # What the simulation calls.

    def burn(self, seconds: float) -> None:
        """Let computing take time: the clock advances within a step."""
        self.now_s += seconds

    def at_step(self, step: int, hook: Callable[[], None]) -> None:
        """Call `hook` just before the callback of this number runs."""
        while step in self._hooks:
            step += 1
        self._hooks[step] = hook

    def run(self, coroutine: Coroutine[Any, Any, Any], *, steps_max: int, time_s_max: float) -> Any:
        """Run until the coroutine ends.

        Raises:
            Stuck: It cannot end any more, or not within the bounds.
        """
        events._set_running_loop(cast("Any", self))
        try:
            main = self.create_task(coroutine)
            until_step = self.steps + steps_max
            while not main.done():
                if self.steps > until_step:
                    raise Stuck(f"no end after {steps_max} steps")
                if not self._ready:
                    self._advance(time_s_max)
                self._step()
            return main.result()
        finally:
            events._set_running_loop(None)

    def abandon(self) -> None:
        """End every task that is left, without running it any further than its clean-up."""
        events._set_running_loop(cast("Any", self))
        try:
            for task in asyncio.all_tasks(self):
                task.cancel()
            for _ in range(10_000):
                if not self._ready:
                    break
                self._step()
        finally:
            events._set_running_loop(None)

    def _advance(self, time_s_max: float) -> None:
        timers = self._timers
        while timers and timers[0][2].dropped:
            heapq.heappop(timers)
        if not timers:
            raise Stuck("nothing is ready and no timer is set")
        self.now_s = max(self.now_s, timers[0][0])
        if self.now_s > time_s_max:
            raise Stuck(f"no end within {time_s_max} virtual seconds")
        while timers and timers[0][0] <= self.now_s:
            handle = heapq.heappop(timers)[2]
            if not handle.dropped:
                self._ready.append(handle)

    def _step(self) -> None:
        ready = self._ready
        if self._shuffled and len(ready) > 1:
            ready.rotate(int(self._random() * len(ready)))
        handle = ready.popleft()
        self.steps += 1
        hook = self._hooks.pop(self.steps, None) if self._hooks else None
        if hook is not None:
            hook()
        if handle.dropped:
            return
        if handle.context is None:
            handle.callback(*handle.args)
        else:
            handle.context.run(handle.callback, *handle.args)
