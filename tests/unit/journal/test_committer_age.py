"""What was decided ahead waits no longer than it may, whatever stands before it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.errors import Unavailable
from tbot.core.settings import CommitterSettings
from tbot.journal.ahead import AheadBatch
from tbot.journal.commands import Priority
from tbot.journal.committer import Committer
from tbot.journal.projections import Projections
from tbot.journal.queue import Pending


async def _never() -> Any:
    raise AssertionError("no database is needed")


def _waiting(priority: Priority, age_s: float) -> Pending:
    command: Any = SimpleNamespace(priority=priority, accounts=())
    pending = Pending(command)
    pending.since_s = clock.boot_s() - age_s
    return pending


@pytest.mark.parametrize("urgent", [Priority.REPORT, Priority.CANCEL])
async def test_an_order_is_refused_in_time_behind_what_is_younger(urgent: Priority) -> None:
    committer = Committer(_never, Projections(), CommitterSettings(queue_age_s_max=60), Bus())
    first, order = _waiting(urgent, 0), _waiting(Priority.NEW, 61)
    committer._next = AheadBatch([first, order])
    committer._refuse_late()
    assert isinstance(order.future.exception(), Unavailable)
    assert not first.future.done() and committer._waiting() == 1
    await committer.stop()


async def test_a_report_that_waits_for_long_is_not_decided_again_for_it() -> None:
    committer = Committer(_never, Projections(), CommitterSettings(queue_age_s_max=60), Bus())
    batch = committer._next = AheadBatch([_waiting(Priority.REPORT, 61)])
    committer._refuse_late()
    assert committer._next is batch
    await committer.stop()
