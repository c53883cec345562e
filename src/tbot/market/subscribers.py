"""One client of the stream: what waits for it, and by which policy it is served when it is slow."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from prometheus_client import Counter

from tbot.core.settings import StreamSettings
from tbot.market.topics import Frame, Slow, Topic, control

WRITE_BYTES_MAX: Final = 65_536
"""Most bytes handed to an output at once (one larger frame goes alone): they cannot be recalled."""

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

    def write(self, frames: Sequence[Frame]) -> None:
        """Send frames in order; only while `ready`."""

    def ping(self) -> None:
        """Ask the peer for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame if the peer takes it, and end the connection within a second."""


class Desk(Protocol):
    """What a subscriber needs of the hub."""

    @property
    def settings(self) -> StreamSettings:
        """Limits."""

    def now(self) -> float:
        """The loop's clock."""

    def revisit(self, subscriber: Subscriber) -> None:
        """Flush the subscriber again soon."""

    def remove(self, subscriber: Subscriber) -> None:
        """The subscriber is gone: end its subscriptions."""


class Subscription:
    """One subscriber's place in one topic.

    Attributes:
        cursor: Number of the last frame handed over; None while a snapshot is due.
    """

    __slots__ = ("cursor", "subscriber", "topic")

    def __init__(self, subscriber: Subscriber, topic: Topic, cursor: int | None) -> None:
        self.subscriber = subscriber
        self.topic = topic
        self.cursor = cursor

    def due(self) -> list[Frame]:
        """What this reader is owed now, by the topic's policy where it fell behind the ring."""
        topic = self.topic
        if self.cursor is None:
            snapshot = topic.snapshot()
            return [] if snapshot is None else [snapshot]
        if topic.holds_after(self.cursor):
            return topic.after(self.cursor)
        skipped_total.labels(topic.channel, topic.slow.value).inc()
        match topic.slow:
            case Slow.SNAPSHOT:
                self.cursor = None
                return self.due()
            case Slow.GAP:
                newest = topic.newest_half()
                last = newest[0].seq - 1
                gap = {"op": "gap", "ch": topic.number, "seq": last, "from": self.cursor + 1}
                notice = control({**gap, "to": last, "why": "slow"})
                notice.seq = last
                return [notice, *newest]
            case _:
                return [topic.frames[-1]]


class Subscriber:
    """One connected client: what waits for it, and where it goes.

    Three queues by rank: control answers (bounded by closing the client), private frames (bounded
    by making their producer wait) and cursors into market topics (which hold no bytes).
    """

    __slots__ = (
        "_behind", "_control", "_control_bytes", "_desk", "_private", "_private_bytes", "_room",
        "blocked_since", "closing", "on_close", "output", "pinged_at", "subscriptions",
    )  # fmt: skip

    def __init__(self, desk: Desk, output: Output, on_close: Callable[[], None]) -> None:
        self._desk = desk
        self.output = output
        self.on_close = on_close
        self.closing = False
        self.subscriptions: dict[int, Subscription] = {}
        self._behind: dict[Subscription, None] = {}
        self._control: deque[Frame] = deque()
        self._control_bytes = 0
        self._private: deque[tuple[int, Frame]] = deque()
        self._private_bytes = 0
        self._room: asyncio.Event | None = None
        self.blocked_since: float | None = None
        self.pinged_at = 0.0
        output.on_ready = self.flush

    @property
    def waiting_bytes(self) -> int:
        """Bytes of control and private frames that wait for the output."""
        return self._control_bytes + self._private_bytes

    def tell(self, message: dict[str, Any]) -> None:
        """Queue an answer. A client that does not read its answers is closed as slow."""
        if self.closing:
            return
        frame = control(message)
        self._control.append(frame)
        self._control_bytes += len(frame.payload)
        if self._control_bytes > self._desk.settings.queue_bytes_max:
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
        if self.closing:
            return
        self._private.extend((number, frame) for frame in frames)
        self._private_bytes += sum(len(frame.payload) for frame in frames)
        self.flush()

    def withdraw(self, number: int) -> None:
        """Drop a private channel's frames that were not handed over yet: it was unsubscribed."""
        self._private = deque(item for item in self._private if item[0] != number)
        self._private_bytes = sum(len(frame.payload) for _, frame in self._private)

    def mark(self, subscription: Subscription) -> None:
        """Remember that this subscription's topic has news."""
        if not self.closing:
            self._behind[subscription] = None

    def forget(self, subscription: Subscription) -> None:
        """The subscription ended."""
        self._behind.pop(subscription, None)
        self.subscriptions.pop(subscription.topic.number, None)

    def flush(self) -> None:
        """Hand the output what it may take now."""
        for _ in range(4):
            if self.closing:
                return
            if not self.output.ready:
                if self.blocked_since is None:
                    self.blocked_since = self._desk.now()
                return
            self.blocked_since = None
            frames = self._collect()
            if not frames:
                return
            sent_total.inc(len(frames))
            sent_bytes_total.inc(sum(len(frame.payload) for frame in frames))
            self.output.write(frames)
        if self._behind or self._control or self._private:
            self._desk.revisit(self)

    def _collect(self) -> list[Frame]:
        batch: list[Frame] = list(self._control)
        size_bytes = self._control_bytes
        self._control.clear()
        self._control_bytes = 0
        while self._private and size_bytes < WRITE_BYTES_MAX:
            _, frame = self._private.popleft()
            self._private_bytes -= len(frame.payload)
            size_bytes += len(frame.payload)
            batch.append(frame)
        if self._room is not None and not self._private:
            self._room.set()
        while self._behind and size_bytes < WRITE_BYTES_MAX:
            subscription = next(iter(self._behind))
            del self._behind[subscription]
            frames = subscription.due()
            for frame in frames:
                subscription.cursor = frame.seq
                size_bytes += len(frame.payload)
                batch.append(frame)
                if size_bytes >= WRITE_BYTES_MAX and frame is not frames[-1]:
                    self._behind[subscription] = None  # to the end of the line
                    break
        return batch

    def close(self, code: int, reason: str, last: dict[str, Any] | None = None) -> None:
        """Stop sending, at once and for good; then end the connection.

        Args:
            last: An error to send before the close frame, if the output takes it.
        """
        if self.closing:
            return
        self.closing = True
        closes_total.labels(str(code)).inc()
        self._desk.remove(self)
        self._behind.clear()
        self._control.clear()
        self._private.clear()
        self._control_bytes = self._private_bytes = 0
        if self._room is not None:
            self._room.set()
        if last is not None and self.output.ready:
            self.output.write([control(last)])
        self.output.close(code, reason)
        self.on_close()

    def gone(self) -> None:
        """The peer ended the connection."""
        if not self.closing:
            self.closing = True
            self._desk.remove(self)
            if self._room is not None:
                self._room.set()
            self.on_close()
