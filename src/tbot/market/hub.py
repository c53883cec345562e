"""The fan-out: market events in, shared frames out to every subscriber, slow readers by policy.

A subscription is a cursor into its topic's ring (`tbot.market.topics`), not a queue: what a slow
reader misses costs it nothing and us nothing. A subscriber's output takes one batch at a time;
while it is busy its cursors wait, and whoever falls out of a ring gets what the channel's class
says. All calls belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.market.topics import Frame, Slow, Topic, control

_log = structlog.get_logger(__name__)

WRITE_BYTES_MAX: Final = 65_536
"""Most bytes handed to an output at once (one larger frame goes alone): they cannot be recalled."""
SOCKETS_PER_TURN: Final = 500
"""Outputs written before other tasks of the loop get their turn."""

CLOSE_SLOW: Final = 4101
CLOSE_SILENT: Final = 4106
CLOSE_DRAIN: Final = 4201

clients_gauge = Gauge("tbot_stream_clients", "Connected stream clients.")
subscriptions_gauge = Gauge("tbot_stream_subscriptions", "Subscriptions.", ["channel"])
published_total = Counter("tbot_stream_published", "Frames published, once each.", ["channel"])
sent_total = Counter("tbot_stream_sent", "Frames handed to clients' outputs.")
sent_bytes_total = Counter("tbot_stream_sent_bytes", "Bytes of those frames.")
skipped_total = Counter(
    "tbot_stream_skipped", "Times a slow reader's backlog was skipped.", ["channel", "policy"]
)
gaps_total = Counter("tbot_stream_gaps", "Gaps told to whole channels.", ["channel"])
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
    def ready(self) -> bool: ...
    @property
    def heard_at(self) -> float | None: ...

    def write(self, frames: Sequence[Frame]) -> None:
        """Send frames in order; only while `ready`."""

    def ping(self) -> None:
        """Ask the peer for a sign of life."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame if the peer takes it, and end the connection within a second."""


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
        "_behind", "_control", "_control_bytes", "_hub", "_private", "_private_bytes", "_room",
        "blocked_since", "closing", "on_close", "output", "pinged_at", "subscriptions",
    )  # fmt: skip

    def __init__(self, hub: Hub, output: Output, on_close: Callable[[], None]) -> None:
        self._hub = hub
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
        if self._control_bytes > self._hub.settings.queue_bytes_max:
            self.close(CLOSE_SLOW, "answers are not being read")
            return
        self.flush()

    async def room(self) -> bool:
        """Wait until there is room for a page of private frames.

        Returns:
            False when the client is gone: the caller stops.
        """
        while self._private_bytes > self._hub.settings.queue_bytes_max // 2 and not self.closing:
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
                    self.blocked_since = self._hub.now()
                return
            self.blocked_since = None
            frames = self._collect()
            if not frames:
                return
            sent_total.inc(len(frames))
            sent_bytes_total.inc(sum(len(frame.payload) for frame in frames))
            self.output.write(frames)
        if self._behind or self._control or self._private:
            self._hub.revisit(self)

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
        self._hub.remove(self)
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
            self._hub.remove(self)
            if self._room is not None:
                self._room.set()
            self.on_close()


@dataclass(slots=True)
class _Private:
    number: int
    readers: int = 0


class Hub:
    """Topics, their subscribers and the flush that connects them.

    Args:
        settings: Limits of the stream.
    """

    def __init__(self, settings: StreamSettings) -> None:
        self.settings = settings
        self.subscribers: set[Subscriber] = set()
        self._readers: dict[Topic, set[Subscription]] = {}
        self._idle_since: dict[Topic, float] = {}
        self._on_retire: Callable[[Topic], None] = lambda topic: None
        self._private: dict[UUID, _Private] = {}
        self._number = 0
        self._dirty: dict[Topic, None] = {}
        self._turn: deque[Subscriber] = deque()
        self._flush_handle: asyncio.Handle | None = None
        self._flushed_at = 0.0
        self._timers: dict[Topic, asyncio.TimerHandle] = {}
        self._tasks = Tasks("stream_hub")
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, on_retire: Callable[[Topic], None]) -> None:
        """Begin to watch over clients and topics.

        Args:
            on_retire: Told of topics that nobody reads any more.
        """
        self._loop = asyncio.get_running_loop()
        self._on_retire = on_retire
        self._tasks.start(self._watch(), "watch")

    async def stop(self) -> None:
        """End every timer and close who is still connected; safe to call twice."""
        for subscriber in list(self.subscribers):
            subscriber.close(CLOSE_DRAIN, "the server is going away")
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        await self._tasks.stop()

    def now(self) -> float:
        """The loop's clock."""
        return self._loop.time() if self._loop is not None else 0.0

    # Numbers, topics and subscriptions

    def next_number(self) -> int:
        """A channel number that was never used before."""
        self._number += 1
        return self._number

    def private_number(self, account_id: UUID) -> int:
        """The channel number of an account's private stream; give it back with `release`."""
        private = self._private.get(account_id)
        if private is None:
            private = self._private[account_id] = _Private(self.next_number())
        private.readers += 1
        return private.number

    def release(self, account_id: UUID) -> None:
        """A private subscription ended."""
        private = self._private[account_id]
        private.readers -= 1
        if private.readers == 0:
            del self._private[account_id]

    def add(self, subscriber: Subscriber) -> None:
        """A client connected."""
        self.subscribers.add(subscriber)
        clients_gauge.set(len(self.subscribers))

    def remove(self, subscriber: Subscriber) -> None:
        """A client is gone: end its subscriptions."""
        self.subscribers.discard(subscriber)
        clients_gauge.set(len(self.subscribers))
        for subscription in list(subscriber.subscriptions.values()):
            self.unsubscribe(subscription)

    def subscribe(self, subscriber: Subscriber, topic: Topic, cursor: int | None) -> Subscription:
        """Let a client read a topic from a frame on, or from a fresh snapshot (cursor None).

        Subscribing again is how a client asks for a fresh snapshot.
        """
        subscription = subscriber.subscriptions.get(topic.number)
        if subscription is None:
            subscription = Subscription(subscriber, topic, cursor)
            subscriber.subscriptions[topic.number] = subscription
            self._readers.setdefault(topic, set()).add(subscription)
            self._idle_since.pop(topic, None)
            subscriptions_gauge.labels(topic.channel).inc()
        subscription.cursor = cursor
        subscriber.mark(subscription)
        self.revisit(subscriber)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription; its topic lingers for a while, for those who come back."""
        subscription.subscriber.forget(subscription)
        readers = self._readers.get(subscription.topic)
        if readers is None or subscription not in readers:
            return
        readers.discard(subscription)
        subscriptions_gauge.labels(subscription.topic.channel).dec()
        if not readers:
            self._idle_since[subscription.topic] = self.now()

    # Publishing

    def changed(self, topic: Topic) -> None:
        """Call after every update of a topic: publishes now, or when its interval is over."""
        if topic.pending and topic.interval_ms:
            if topic not in self._timers and self._loop is not None:
                delay_s = topic.interval_ms / 1000
                self._timers[topic] = self._loop.call_later(delay_s, self._expire, topic)
            return
        self._publish(topic)

    def _expire(self, topic: Topic) -> None:
        self._timers.pop(topic, None)
        if topic.flush():
            self._publish(topic)

    def _publish(self, topic: Topic) -> None:
        published_total.labels(topic.channel).inc()
        self._dirty[topic] = None
        self._schedule()

    def revisit(self, subscriber: Subscriber) -> None:
        """Flush one subscriber at the next flush."""
        self._turn.append(subscriber)
        self._schedule()

    def _schedule(self) -> None:
        if self._flush_handle is None and self._loop is not None:
            # The first event after a pause goes out at once; a burst is joined per interval.
            due = self._flushed_at + self.settings.flush_interval_ms / 1000
            self._flush_handle = self._loop.call_at(max(due, self._loop.time()), self._flush)

    def _flush(self) -> None:
        self._flush_handle = None
        topics, self._dirty = self._dirty, {}
        affected = dict.fromkeys(self._turn)
        for topic in topics:
            for subscription in self._readers.get(topic, ()):
                subscription.subscriber.mark(subscription)
                affected[subscription.subscriber] = None
        self._turn = deque(affected)
        self._flush_some()

    def _flush_some(self) -> None:
        """Flush some subscribers and leave the rest for the loop's next turn."""
        self._flush_handle = None
        assert self._loop is not None
        for _ in range(min(SOCKETS_PER_TURN, len(self._turn))):
            self._turn.popleft().flush()
        self._flushed_at = self._loop.time()
        if self._turn:
            if self._flush_handle is not None:
                self._flush_handle.cancel()
            self._flush_handle = self._loop.call_soon(self._flush_some)
        elif self._dirty:
            self._schedule()

    # Watching over

    async def _watch(self) -> None:
        """Once a second: silent peers, stalled readers, topics that nobody reads."""
        while True:
            await asyncio.sleep(1.0)
            self.look_around()

    def look_around(self) -> None:
        """One round of the watch."""
        now = self.now()
        settings = self.settings
        for subscriber in list(self.subscribers):
            blocked = subscriber.blocked_since
            if blocked is not None and now - blocked > settings.stall_timeout_s:
                subscriber.close(CLOSE_SLOW, "reading stalled")
                continue
            heard_at = subscriber.output.heard_at
            if heard_at is None or now - heard_at <= settings.heartbeat_s:
                continue
            if now - heard_at > settings.heartbeat_s + settings.heartbeat_timeout_s:
                subscriber.close(CLOSE_SILENT, "no sign of life")
            elif subscriber.pinged_at < heard_at + settings.heartbeat_s:
                subscriber.pinged_at = now
                subscriber.output.ping()
        for topic, since in list(self._idle_since.items()):
            if now - since > settings.linger_s:
                self._retire(topic)

    def _retire(self, topic: Topic) -> None:
        del self._idle_since[topic]
        self._readers.pop(topic, None)
        timer = self._timers.pop(topic, None)
        if timer is not None:
            timer.cancel()
        self._on_retire(topic)
