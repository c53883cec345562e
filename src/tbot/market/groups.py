"""Who reads the same: subscribers with equal subscriptions, and those of them who are in step.

Most subscribers have been handed everything up to the same numbers. They are members of a *group*,
hold no place of their own, and what is new is joined once for all of them. A subscriber whose
connection took no more, or who asked for something else, is a *stray*: it has a place in each of
its topics, is served by itself, and joins a group again as soon as it is where the group is.

Groups are small (`MEMBERS_MAX`), so that serving one is short: nothing of the event loop happens
in between, and each is handed what is newest when its turn comes rather than when the flush began.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from tbot.market.topics import Batch, Run, Topic

if TYPE_CHECKING:
    from tbot.market.subscribers import Subscriber

MEMBERS_MAX: Final = 250
WRITE_BYTES_MAX: Final = 65_536
"""Most bytes handed to an output at once (one larger frame goes alone): they cannot be recalled."""


class Tally:
    """What one turn of the flush has done.

    Attributes:
        oldest_at: When the oldest frame of the turn was published; infinite without any.
    """

    __slots__ = ("bytes", "frames", "oldest_at", "sockets")

    def __init__(self) -> None:
        self.sockets = 0
        self.frames = 0
        self.bytes = 0
        self.oldest_at = inf


class Group:
    """Subscribers of one interest who were all handed everything up to the same numbers.

    Attributes:
        marks: topic → number of the last frame that the members were handed.
    """

    __slots__ = ("marks", "members")

    def __init__(self, marks: dict[Topic, int]) -> None:
        self.marks = marks
        self.members: set[Subscriber] = set()

    def flush(self, tally: Tally) -> None:
        """Hand every member what is new; who cannot take it becomes a stray."""
        marks = self.marks
        runs: list[Run] = []
        for topic, mark in marks.items():
            if topic.head != mark:
                run = topic.runs.get(mark)
                if run is None:
                    if mark < topic.lost_through:
                        self._break_up()
                        return
                    run = topic.run_after(mark)
                runs.append(run)
        if not runs:
            return
        if 0.0 < runs[0].oldest_at < tally.oldest_at:
            tally.oldest_at = runs[0].oldest_at
        whole = Batch(runs)
        small = len(whole.data) <= WRITE_BYTES_MAX
        for batch in (whole,) if small else whole.cut(WRITE_BYTES_MAX):
            handed = 0
            for member in tuple(self.members):
                output = member.output
                if member.waiting_bytes:
                    member.flush()
                if output.ready:
                    output.write(batch)
                    handed += 1
                elif not member.closing:
                    member.fall_behind()
            for run in batch.runs:
                assert run.topic is not None
                marks[run.topic] = run.last
            tally.sockets += handed
            tally.frames += handed * batch.count
            tally.bytes += handed * len(batch.data)

    def _break_up(self) -> None:
        """A topic's ring ran over before this group's turn: each gets what the channel says."""
        for member in tuple(self.members):
            member.go_astray()


class Interest:
    """A set of topics, and all who subscribe to exactly these.

    Attributes:
        topics: number → topic.
        subscribers: How many, in step or not.
        strays: Those who are not in step, and may be served.
    """

    __slots__ = ("groups", "key", "strays", "subscribers", "topics")

    def __init__(self, topics: dict[int, Topic]) -> None:
        self.key = frozenset(topics)
        self.topics = topics
        self.groups: list[Group] = []
        self.strays: dict[Subscriber, None] = {}
        self.subscribers = 0

    def open_group(self) -> Group:
        """A group with room, or a new one that is where the topics are."""
        for group in self.groups:
            if len(group.members) < MEMBERS_MAX:
                return group
        group = Group({topic: topic.head for topic in self.topics.values()})
        self.groups.append(group)
        return group

    def leave(self, group: Group, subscriber: Subscriber) -> None:
        """A member goes; a group without members goes too."""
        group.members.discard(subscriber)
        if not group.members and group in self.groups:
            self.groups.remove(group)


class Strays:
    """The strays of an interest at one moment: each is served, and joins a group if it can."""

    __slots__ = ("_interest", "_waiting")

    def __init__(self, interest: Interest) -> None:
        self._interest = interest
        self._waiting = list(interest.strays)

    def serve(self, tally: Tally, limit: int) -> bool:
        """Go on serving.

        Args:
            limit: Sockets to serve before others get their turn.

        Returns:
            False when some are left for the next turn.
        """
        interest = self._interest
        group: Group | None = None
        while self._waiting and tally.sockets < limit:
            stray = self._waiting.pop()
            if stray not in interest.strays:
                continue
            if group is None or len(group.members) >= MEMBERS_MAX:
                group = interest.open_group()
                group.flush(tally)
            tally.sockets += 1
            stray.flush()
            if stray.closing:
                continue
            if stray.cursors == group.marks:
                del interest.strays[stray]
                stray.join(group)
                if len(group.members) == 1 and group not in interest.groups:
                    interest.groups.append(group)
            elif not stray.output.ready:
                del interest.strays[stray]  # it asks for a visit when it is ready again
        if group is not None and not group.members and group in interest.groups:
            interest.groups.remove(group)
        return not self._waiting
