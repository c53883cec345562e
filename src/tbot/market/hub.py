"""The fan-out: market events in, shared frames out to every subscriber, slow readers by policy.

A subscription is a cursor into its topic's ring (`tbot.market.topics`), not a queue: what a slow
reader misses costs it nothing and us nothing. A subscriber's output takes one batch at a time;
while it is busy its cursors wait, and whoever falls out of a ring gets what the channel's class
says. All calls belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge

from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.market.subscribers import CLOSE_SLOW, Subscriber, Subscription
from tbot.market.topics import Topic

SOCKETS_PER_TURN: Final = 500
"""Outputs written before other tasks of the loop get their turn."""

CLOSE_SILENT: Final = 4106
CLOSE_DRAIN: Final = 4201

clients_gauge = Gauge("tbot_stream_clients", "Connected stream clients.")
subscriptions_gauge = Gauge("tbot_stream_subscriptions", "Subscriptions.", ["channel"])
published_total = Counter("tbot_stream_published", "Frames published, once each.", ["channel"])
gaps_total = Counter("tbot_stream_gaps", "Gaps told to whole channels.", ["channel"])


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
        if cursor is None and not topic.begun:
            # Nothing to begin with: then the first thing that is published is the beginning, and
            # not a later snapshot that would hide what came before it.
            cursor = topic.seq
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
