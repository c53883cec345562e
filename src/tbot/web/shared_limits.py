"""Rate limits that all processes count together, in Valkey.

A request asks once for all of its quotas, and requests that come while one question is under way
are asked about together in the next: one script, one round trip, however many they are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import structlog
from redis.asyncio import Redis

from tbot.core.errors import ValkeyUnavailable
from tbot.core.limit_settings import LimitSettings
from tbot.core.ratelimit import SCRIPT, Claim
from tbot.core.tasks import Tasks
from tbot.core.valkey import Valkey

_TOGETHER: Final = 128
"""Requests in one question: the script takes some microseconds for each, and blocks Valkey."""

type Answer = tuple[bool, list[float]] | None

_log = structlog.get_logger(__name__)


class SharedStore:
    """A `tbot.web.ratelimit.Store` in Valkey; its clock counts, so processes need no common one.

    A key is `limit:POLICY:SUBJECT` after the prefix and goes by itself when its quota is whole.
    """

    def __init__(self, valkey: Valkey, settings: LimitSettings) -> None:
        self._valkey = valkey
        self._script = valkey.script(SCRIPT)
        self._waiting_max = settings.waiting_max
        self._waiting: dict[asyncio.Future[Answer], tuple[list[str], list[int]]] = {}
        self._tasks = Tasks("shared_limits")
        self._asking = False

    async def charge(self, claims: Sequence[Claim], cost: int) -> Answer:
        """Charge all or nothing.

        Returns:
            Whether it was charged, and every quota's debt in seconds; None when Valkey cannot
            say, or too many wait for its word.
        """
        if not self._valkey.trusted or len(self._waiting) >= self._waiting_max:
            return None
        keys, numbers = [], [cost, len(claims)]
        for cells, subject in claims:
            name = subject if isinstance(subject, str) else f"{subject:x}"
            keys.append(self._valkey.key("limit", cells.policy, name))
            numbers += (cells.quota.amount, cells.quota.window_s)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[future] = (keys, numbers)
        if not self._asking:
            self._asking = True
            self._tasks.start(self._ask(), "ask")
        return await future

    async def _ask(self) -> None:
        """Ask until nobody waits."""
        try:
            while self._waiting:
                asked = dict(islice(self._waiting.items(), _TOGETHER))
                for future in asked:
                    del self._waiting[future]
                answers: list[Answer] = [None] * len(asked)
                try:
                    answers = await self._answers(list(asked.values()))
                finally:
                    for future, answer in zip(asked, answers, strict=True):
                        if not future.done():  # its request may be gone
                            future.set_result(answer)
        finally:
            self._asking = False

    async def _answers(self, asked: list[tuple[list[str], list[int]]]) -> list[Answer]:
        keys = [key for names, _ in asked for key in names]
        numbers = [number for _, given in asked for number in given]

        async def run(client: Redis) -> Any:
            return await self._script(keys, numbers, client=client)

        try:
            said = iter(await self._valkey.call(run))
        except ValkeyUnavailable as error:
            _log.info("limits_not_shared", error=str(error))
            return [None] * len(asked)
        return [
            (next(said) == 1, [micros / 1e6 for micros in islice(said, len(names))])
            for names, _ in asked
        ]
