"""One client of the stream: what waits for it, and by which policy it is served when it is slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final, Protocol

from prometheus_client import Counter

from tbot.core.settings import StreamSettings
from tbot.market.groups import WRITE_BYTES_MAX, Group, Interest
from tbot.market.topics import JSON, Batch, Frame, Run, Slow, Topic, control

CLOSE_SLOW: Final = 4101

sent_total = Counter("tbot_stream_sent", "Frames handed to clients' outputs.")
sent_bytes_total = Counter("tbot_stream_sent_bytes", "Bytes of those frames.")
skipped_total = Counter(
    "tbot_stream_skipped", "Times a slow reader's backlog was skipped.", ["channel", "policy"]
)
closes_total = Counter("tbot_stream_closes", "Connections closed by us.", ["code"])


class Output(Protocol):
    """Where a subscriber's frames go. Nothing here blocks.

    Attributes:
        ready: Whether `write` may be called: the last batch has left.
        heard_at: Loop time at which the peer was last heard, or None where that is not known and
            the server itself watches over silent peers.
        on_ready: Called when `ready` turns true again.
    """

    on_ready: Callable[[], None]

    @property
    def ready(self) -> bool:
        """See the class."""

    @property
    def heard_at(self) -> float | None:
        """See the class."""

    def write(self, batch: Batch) -> None:
        """Send frames in order; only while `ready`."""

    def ping(self) -> bool:
        """Ask the peer for a sign of life; False while it takes nothing: ask again."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame if the peer takes it, and end the connection within a second."""


class Desk(Protocol):
    """What a subscriber needs of the hub."""

    @property
    def settings(self) -> StreamSettings:
        """Limits."""

    @property
    def nothing(self) -> Interest:
        """The interest of those who subscribe to nothing."""

    def now(self) -> float:
        """The loop's clock."""

    def revisit(self, subscriber: Subscriber) -> None:
        """Flush the subscriber again soon."""

    def blocked(self, subscriber: Subscriber) -> None:
        """Its output takes nothing: watch how long."""

    def remove(self, subscriber: Subscriber) -> None:
        """The subscriber is gone: end its subscriptions."""


def due(topic: Topic, cursor: int | None) -> list[Frame]:
    """What a reader is owed who has a topic's frames up to `cursor`.

    By the topic's policy where it fell behind the ring. The reader's new place is the number of
    the last frame that it is handed.

    Args:
        cursor: None while a snapshot is due.
    """
    if cursor is None:
        snapshot = topic.snapshot()
        return [] if snapshot is None else [snapshot]
    if topic.holds_after(cursor):
        return topic.after(cursor) if topic.head > cursor else []
    skipped_total.labels(topic.channel, topic.slow.value).inc()
    match topic.slow:
        case Slow.SNAPSHOT:
            return due(topic, None)
        case Slow.GAP:
            newest = topic.newest_half()
            last = newest[0].seq - 1
            gap = {"op": "gap", "ch": topic.number, "seq": last, "from": cursor + 1}
            notice = control({**gap, "to": last, "why": "slow"}, topic.codec)
            notice.seq = last
            return [notice, *newest]
        case _:
            return [topic.frames[-1]]


class Subscriber:
    """One connected client: what waits for it, and where it goes.

    Three queues by rank: control answers (bounded by closing the client), private frames (bounded
    by making their producer wait) and places in market topics (which hold no bytes). Thousands of
    these exist: what most of them do not need exists only while it is needed.

    Attributes:
        interest: What it subscribes to.
        cursors: Its place in each of its topics, None where a snapshot is due; no such thing while
            it is in step with a group.
        codec: How its messages are written; its topics are of the same.
        waiting_bytes: Bytes of control and private frames that wait for the output.
        pinged_at: Loop time of the last ping; `patient_from` of the last moment at which the output
            took something again: a ping may have waited for it.
        deadline_at: Loop time at which `on_deadline` is to be called; infinite for never.
        tick: The timing wheel's own.
    """

    __slots__ = (
        "_control", "_desk", "_group", "_private", "_private_bytes", "_room",
        "blocked_since", "closing", "codec", "cursors", "deadline_at", "interest", "on_close",
        "on_deadline", "output", "patient_from", "pinged_at", "tick", "waiting_bytes",
    )  # fmt: skip

    def __init__(
        self,
        desk: Desk,
        output: Output,
        on_close: Callable[[], None],
        on_deadline: Callable[[], None] | None = None,
    ) -> None:
        self._desk = desk
        self.output = output
        self.on_close = on_close
        self.on_deadline = on_deadline
        self.deadline_at = inf
        self.closing = False
        self.codec = JSON
        self.interest = desk.nothing
        self.cursors: dict[Topic, int | None] | None = {}
        self._group: Group | None = None
        self._control: list[Frame] | None = None
        self._private: deque[tuple[int, Frame]] | None = None
        self._private_bytes = 0
        self.waiting_bytes = 0
        self._room: asyncio.Event | None = None
        self.blocked_since: float | None = None
        self.pinged_at = self.patient_from = 0.0
        self.tick = -1
        output.on_ready = self.flush

    @property
    def subscriptions(self) -> dict[int, Topic]:
        """Number → topic; shared with all who subscribe to the same: not to be changed."""
        return self.interest.topics

    # In step or astray

    def stray(self) -> dict[Topic, int | None]:
        """Leave the group; returns the places in the topics, to be changed by the caller."""
        group = self._group
        if group is not None:
            self._group = None
            self.cursors = dict(group.marks)
            self.interest.leave(group, self)
        assert self.cursors is not None
        return self.cursors

    def join(self, group: Group) -> None:
        """Be in step with a group, which stands exactly where this one does."""
        self.cursors = None
        self._group = group
        group.members.add(self)

    def go_astray(self) -> None:
        """Leave the group and be served alone."""
        self.stray()
        self._desk.revisit(self)

    def fall_behind(self) -> None:
        """The output takes no more: keep the place."""
        self.stray()
        self._note_blocked()

    def _note_blocked(self) -> None:
        if self.blocked_since is None:
            self.blocked_since = self._desk.now()
            self._desk.blocked(self)

    # What waits

    def tell(self, message: dict[str, Any]) -> None:
        """Queue an answer. A client that does not read its answers is closed as slow."""
        if self.closing:
            return
        frame = control(message, self.codec)
        if self._control is None:
            self._control = []
        self._control.append(frame)
        self.waiting_bytes += len(frame.payload)
        if self.waiting_bytes - self._private_bytes > self._desk.settings.queue_bytes_max:
            self.close(CLOSE_SLOW, "answers are not being read")
            return
        self.flush()

    async def room(self) -> bool:
        """Wait until there is room for a page of private frames.

        Returns:
            False when the client is gone: the caller stops.
        """
        while self._private_bytes > self._desk.settings.queue_bytes_max // 2 and not self.closing:
            self._room = self._room or asyncio.Event()
            self._room.clear()
            await self._room.wait()
        return not self.closing

    def push(self, number: int, frames: Sequence[Frame]) -> None:
        """Queue a page of private frames, after `room`; nothing is ever skipped.

        Args:
            number: The private channel they belong to.
        """
        if self.closing or not frames:
            return
        if self._private is None:
            self._private = deque()
        self._private.extend((number, frame) for frame in frames)
        self._count_private(sum([len(frame.payload) for frame in frames]))
        self.flush()

    def withdraw(self, number: int) -> None:
        """Drop a private channel's frames that were not handed over yet: it was unsubscribed."""
        if self._private is not None:
            self._private = deque(item for item in self._private if item[0] != number)
            left_bytes = sum([len(frame.payload) for _, frame in self._private])
            self._count_private(left_bytes - self._private_bytes)

    def _count_private(self, change_bytes: int) -> None:
        self._private_bytes += change_bytes
        self.waiting_bytes += change_bytes

    # Handing over

    def flush(self) -> None:
        """Hand the output what it may take now."""
        for _ in range(4):
            if self.closing:
                return
            if not self.output.ready:
                self._note_blocked()
                return
            if self.blocked_since is not None:
                self.blocked_since = None
                self.patient_from = self._desk.now()
                if self._group is None:
                    self._desk.revisit(self)  # to join a group
            frames = self._collect()
            if not frames:
                return
            batch = Batch([Run(frames)])
            sent_total.inc(batch.count)
            sent_bytes_total.inc(len(batch.data))
            self.output.write(batch)
        if self.waiting_bytes or self._group is None:
            self._desk.revisit(self)

    def _collect(self) -> list[Frame]:
        batch: list[Frame] = self._control or []
        self._control = None
        size_bytes = self.waiting_bytes - self._private_bytes
        self.waiting_bytes = self._private_bytes
        if self._private is not None:
            private_bytes = 0
            while self._private and size_bytes + private_bytes < WRITE_BYTES_MAX:
                _, frame = self._private.popleft()
                private_bytes += len(frame.payload)
                batch.append(frame)
            self._count_private(-private_bytes)
            size_bytes += private_bytes
            if not self._private:
                self._private = None
                if self._room is not None:
                    self._room.set()
        if self.cursors:
            self._collect_market(self.cursors, batch, size_bytes)
        return batch

    def _collect_market(
        self, cursors: dict[Topic, int | None], batch: list[Frame], size_bytes: int
    ) -> None:
        for topic, cursor in list(cursors.items()):
            if cursor == topic.head:
                continue
            if size_bytes >= WRITE_BYTES_MAX:
                return
            for frame in due(topic, cursor):
                if size_bytes >= WRITE_BYTES_MAX:
                    cursors[topic] = cursors.pop(topic)  # to the end of the line
                    return
                cursors[topic] = frame.seq
                size_bytes += len(frame.payload)
                batch.append(frame)

    # The end

    def close(self, code: int, reason: str, last: dict[str, Any] | None = None) -> None:
        """Stop sending, at once and for good; then end the connection.

        Args:
            last: An error to send before the close frame, if the output takes it.
        """
        if self.closing:
            return
        closes_total.labels(str(code)).inc()
        self._end()
        if last is not None and self.output.ready:
            self.output.write(Batch([Run([control(last, self.codec)])]))
        self.output.close(code, reason)
        self._tell_owner()

    def gone(self) -> None:
        """The peer ended the connection."""
        if not self.closing:
            self._end()
            self._tell_owner()

    def _tell_owner(self) -> None:
        """Call `on_close`, and let go of the owner: nothing of us waits for a collection."""
        on_close, self.on_close, self.on_deadline = self.on_close, _nothing, None
        on_close()

    def _end(self) -> None:
        self.closing = True
        self._desk.remove(self)
        self._control = self._private = None
        self.waiting_bytes = self._private_bytes = 0
        self.deadline_at = inf
        if self._room is not None:
            self._room.set()


def _nothing() -> None:
    return None
