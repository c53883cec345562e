"""Which login sessions live, remembered for a few seconds.

Ending a session must stop its access tokens, yet a request must not cost a query. So an answer of
the database is believed for `session_cache_s`. In the process that ends a session it is forgotten
at once; other processes are woken over the bus and follow at the latest when the time is over.
That time is the bound on how long an ended session's token can still be used anywhere. Without the
database nothing is believed beyond it: requests fail with 503, never open.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final
from uuid import UUID

from tbot.auth import store
from tbot.core.clock import boot_s
from tbot.core.tasks import Tasks

TOPIC: Final = "sessions"
"""Bus topic that says: some session ended somewhere, forget what you believe."""


class Sessions:
    """A bounded cache in front of `store.session_lives`; concurrent questions share one query."""

    def __init__(self, pool: store.Pool, ttl_s: float, size_max: int, tasks: Tasks) -> None:
        self._pool = pool
        self._ttl_s = ttl_s
        self._size_max = size_max
        self._tasks = tasks
        self._believed: OrderedDict[tuple[UUID, UUID], tuple[bool, float]] = OrderedDict()
        self._asking: dict[tuple[UUID, UUID], asyncio.Task[bool]] = {}
        self._generation = 0

    async def lives(self, session_id: UUID, user_id: UUID) -> bool:
        """Whether the session of this user lives, as of at most `session_cache_s` ago."""
        key = (session_id, user_id)
        believed = self._believed.get(key)
        if believed is not None and boot_s() < believed[1]:
            return believed[0]
        task = self._asking.get(key)
        if task is None:
            task = self._tasks.start(self._ask(key), name="session", awaited=True)
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        # Shielded: a client that goes away does not take the answer from the others.
        return await asyncio.shield(task)

    def forget(self) -> None:
        """Believe nothing any more; questions under way are answered but not remembered."""
        self._generation += 1
        self._believed.clear()
        self._asking.clear()

    def _answered(self, key: tuple[UUID, UUID], task: asyncio.Task[bool]) -> None:
        if self._asking.get(key) is task:
            del self._asking[key]

    async def _ask(self, key: tuple[UUID, UUID]) -> bool:
        generation = self._generation
        # Believed from before the question, so that the bound holds for slow answers too.
        until_s = boot_s() + self._ttl_s
        async with self._pool.acquire() as connection:
            lives = await store.session_lives(connection, *key)
        if generation == self._generation:
            self._believed[key] = (lives, until_s)
            self._believed.move_to_end(key)
            while len(self._believed) > self._size_max:
                self._believed.popitem(last=False)
        return lives
