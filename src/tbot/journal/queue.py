"""Commands that wait for the committer: bounded, by priority, oldest first.

When it is full, new orders are refused first: the last `reserved` places belong to cancels and
venue reports. A report is a fact and is never refused; its caller waits for room instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tbot.core import clock
from tbot.core.errors import JournalUnavailable, Overloaded
from tbot.core.refusals import Refused
from tbot.journal.commands import Accepted, Command, Priority
from tbot.journal.once import Kept, Once

type Outcome = Accepted[Any] | Refused | Kept


class Pending:
    """A command, its key, since when it waits, and the future its caller awaits."""

    __slots__ = ("attempts", "command", "future", "once", "since_s")

    def __init__(self, command: Command[Any], once: Once | None = None) -> None:
        self.command = command
        self.once = once
        self.future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.since_s = clock.boot_s()
        self.attempts = 0

    def answer(self, outcome: Outcome) -> None:
        """Tell the caller what became of it."""
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: Exception) -> None:
        """Tell the caller that it ended in a fault."""
        if not self.future.done():
            self.future.set_exception(error)
            # A caller that has gone away must not turn this into a warning at collection.
            self.future.exception()


class Answers:
    """What many commands of one caller are answered: one future for all of them.

    Attributes:
        future: Has the outcomes, faults among them, in the commands' order, once all are there.
    """

    __slots__ = ("_missing", "_outcomes", "future")

    def __init__(self, count: int) -> None:
        self.future: asyncio.Future[list[Outcome | Exception]] = (
            asyncio.get_running_loop().create_future()
        )
        self._outcomes: list[Outcome | Exception | None] = [None] * count
        self._missing = count

    def put(self, place: int, outcome: Outcome | Exception) -> None:
        """Take one command's outcome; only its first counts."""
        if self._outcomes[place] is not None:
            return
        self._outcomes[place] = outcome
        self._missing -= 1
        if not self._missing and not self.future.done():
            self.future.set_result([one for one in self._outcomes if one is not None])


class PendingOfMany(Pending):
    """A command whose caller awaits many at once."""

    __slots__ = ("_answers", "_place")

    def __init__(
        self,
        command: Command[Any],
        once: Once | None,
        since_s: float,
        answers: Answers,
        place: int,
    ) -> None:
        # A future of its own is what it saves: nobody awaits it alone.
        self.command = command
        self.once = once
        self.since_s = since_s
        self.attempts = 0
        self._answers = answers
        self._place = place

    def answer(self, outcome: Outcome) -> None:
        """Tell the caller what became of it."""
        self._answers.put(self._place, outcome)

    def fail(self, error: Exception) -> None:
        """Tell the caller that it ended in a fault."""
        self._answers.put(self._place, error)


class CommandQueue:
    """The committer's inbox.

    Args:
        places: Most commands waiting.
        reserved: Places of those that new orders may not take.
    """

    __slots__ = ("_filled", "_lanes", "_length", "_places", "_reserved", "_room", "closed")

    def __init__(self, places: int, reserved: int) -> None:
        self._places = places
        self._reserved = min(reserved, places - 1)
        self._lanes: dict[Priority, deque[Pending]] = {p: deque() for p in sorted(Priority)}
        self._length = 0
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self.closed = False

    def __len__(self) -> int:
        return self._length

    def places(self, priority: Priority) -> int:
        """How many commands may wait for one more of this priority to be taken in."""
        return self._places - (self._reserved if priority is Priority.NEW else 0)

    async def room(self) -> None:
        """Wait for a place, as who brings a report does; also over once the queue is closed."""
        while self._length >= self._places and not self.closed:
            self._room.clear()
            await self._room.wait()

    def put(self, pending: Pending, elsewhere: int = 0) -> None:
        """Let a command wait; where that cannot be, it is told so: certainly not executed.

        Args:
            elsewhere: Commands that wait outside of the queue and count as well, but not for
                reports: they had to find `room` before.
        """
        priority = pending.command.priority
        waiting = self._length + (0 if priority is Priority.REPORT else elsewhere)
        if self.closed:
            pending.fail(JournalUnavailable("the server is stopping", retry_after_s=2.0))
        elif waiting >= self.places(priority):
            pending.fail(Overloaded("too many commands are waiting to be committed"))
        else:
            self._lanes[priority].append(pending)
            self._length += 1
            self._filled.set()

    def put_back(self, pendings: Iterable[Pending]) -> None:
        """Return commands that a batch took but did not run; they keep their place in front."""
        for pending in reversed(list(pendings)):
            self._lanes[pending.command.priority].appendleft(pending)
            self._length += 1
        if self._length:
            self._filled.set()

    def take(self, most: int) -> list[Pending]:
        """Remove and return the next commands, most urgent first."""
        taken: list[Pending] = []
        for lane in self._lanes.values():
            while lane and len(taken) < most:
                taken.append(lane.popleft())
        self._length -= len(taken)
        if not self._length:
            self._filled.clear()
        self._room.set()
        return taken

    def offer(self, accept: Callable[[Pending], bool]) -> bool:
        """Hand over what waits, most urgent first, up to the first that is not accepted.

        Args:
            accept: Whether it takes one; it may put some back, and must not raise.

        Returns:
            Whether all were accepted.
        """
        for lane in self._lanes.values():
            while lane:
                pending = lane.popleft()
                self._length -= 1
                if not accept(pending):
                    self.put_back([pending])
                    return False
                self._room.set()
        return True

    def expired(self, age_s_max: float) -> Iterator[Pending]:
        """Remove and yield what has waited longer than it may; reports never expire."""
        before_s = clock.boot_s() - age_s_max
        for priority, lane in self._lanes.items():
            while priority is not Priority.REPORT and lane and lane[0].since_s < before_s:
                self._length -= 1
                yield lane.popleft()
        if not self._length:
            self._filled.clear()
        self._room.set()

    async def wait(self) -> None:
        """Return once something waits, or once the queue is closed."""
        if not self.closed:
            if not self._length:
                self._filled.clear()
            await self._filled.wait()

    def close(self) -> None:
        """Take nothing more; what waits can still be taken."""
        self.closed = True
        self._filled.set()
        self._room.set()
