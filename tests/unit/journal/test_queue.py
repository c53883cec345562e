"""What waits for the committer keeps its order, its bounds, and loses nothing."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tbot.core.errors import JournalUnavailable, Overloaded
from tbot.journal.commands import Priority
from tbot.journal.queue import CommandQueue, Pending


def pending(name: str, priority: Priority = Priority.NEW) -> Pending:
    command: Any = SimpleNamespace(name=name, priority=priority)
    return Pending(command)


def names(pendings: list[Pending]) -> str:
    return "".join(one.command.name for one in pendings)  # type: ignore[attr-defined]


def filled(letters: str, places: int = 10) -> CommandQueue:
    """Reports are `r`, cancels `c`."""
    queue = CommandQueue(places, 2)
    kinds = {"r": Priority.REPORT, "c": Priority.CANCEL}
    for letter in letters:
        queue.put(pending(letter, kinds.get(letter, Priority.NEW)))
    return queue


async def test_what_is_accepted_is_handed_over_most_urgent_first() -> None:
    queue = filled("abcr")
    taken: list[Pending] = []

    def accept(one: Pending) -> bool:
        taken.append(one)
        return True

    queue.offer(accept)
    assert names(taken) == "rcab"
    assert len(queue) == 0 and queue.take(9) == []


async def test_the_first_that_is_not_accepted_stays_in_its_place() -> None:
    queue = filled("abcd")
    taken: list[Pending] = []

    def accept(one: Pending) -> bool:
        if names([one]) == "b":
            return False
        taken.append(one)
        return True

    queue.offer(accept)
    assert names(taken) == "ca"
    assert names(queue.take(9)) == "bd"


async def test_what_is_put_back_meanwhile_comes_first_and_once() -> None:
    queue = filled("abde")
    taken: list[Pending] = []

    def accept(one: Pending) -> bool:
        """As the committer: with the third, all that it took wait again and nothing is taken."""
        if len(taken) == 3:
            return False
        taken.append(one)
        if len(taken) == 3:
            queue.put_back(taken)
        return True

    queue.offer(accept)
    assert len(queue) == 4
    assert names(queue.take(9)) == "abde"


async def test_new_orders_leave_places_to_cancels_and_reports() -> None:
    queue = filled("abde", places=6)
    late = pending("f")
    queue.put(late)
    with pytest.raises(Overloaded):
        await late.future
    for kind in (Priority.CANCEL, Priority.REPORT):
        queue.put(pending("x", kind))
    assert len(queue) == 6
    elsewhere = pending("c", Priority.CANCEL)
    queue.take(1)
    queue.put(elsewhere, elsewhere=1)
    with pytest.raises(Overloaded):
        await elsewhere.future
    queue.put(pending("r", Priority.REPORT), elsewhere=1)
    assert len(queue) == 6, "what is elsewhere takes no place from a report"


async def test_a_report_waits_for_room_and_not_for_a_closed_queue() -> None:
    queue = filled("ab", places=2)
    queue.put(pending("c", Priority.CANCEL))
    waiting = asyncio.ensure_future(queue.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    queue.take(1)
    await waiting
    queue.put(pending("c", Priority.CANCEL))
    waiting = asyncio.ensure_future(queue.room())
    await asyncio.sleep(0)
    queue.close()
    await waiting
    report = pending("r", Priority.REPORT)
    queue.put(report)
    with pytest.raises(JournalUnavailable):
        await report.future
