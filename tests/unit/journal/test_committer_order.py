"""Commands keep their order when a batch is split and a part of it takes too long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from tbot.core.bus import Bus
from tbot.core.settings import CommitterSettings
from tbot.journal.batch import Batch
from tbot.journal.commands import Accepted, Priority
from tbot.journal.committer import Committer
from tbot.journal.projections import Projections
from tbot.journal.queue import Pending


class _Connection:
    """Does nothing."""

    async def execute(self, _sql: str) -> str:
        return "ROLLBACK"

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None:
        """Nothing to end."""


async def _never() -> Any:
    raise AssertionError("no database is needed")


async def test_what_follows_a_command_that_was_left_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    committer = Committer(_never, Projections(), CommitterSettings(), Bus())
    command: Any = SimpleNamespace(priority=Priority.NEW, accounts=())
    pendings = [Pending(command) for _ in range(4)]
    tried: list[list[int]] = []

    async def attempt(batch: Batch) -> None:
        """The whole breaks a constraint; then only one is decided in time."""
        tried.append([pendings.index(one) for one in batch.pendings])
        if len(tried) == 1:
            raise asyncpg.CheckViolationError("one of them is poison")
        batch.outcomes = [(batch.pendings[0], Accepted(None))]
        batch.left = batch.pendings[1:]

    committer._connection = _Connection()  # type: ignore[assignment]
    monkeypatch.setattr(committer, "_attempt", attempt)
    await committer._settle(pendings)
    assert tried == [[0, 1, 2, 3], [0, 1]]
    assert [one.future.done() for one in pendings] == [True, False, False, False]
    assert committer._queue.take(4) == pendings[1:]
    await committer.stop()
