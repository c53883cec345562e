"""The fan-out: market events in, shared frames out to every subscriber, slow readers by policy.

A subscription is a place in its topic's ring (`tbot.market.topics`), not a queue: what a slow
reader misses costs it nothing and us nothing. Subscribers who are in the same place are served as
a group (`tbot.market.groups`): joined once, one write each. An output takes one batch at a time;
while it is busy its place waits, and whoever falls out of a ring gets what the channel's class
says. All calls belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final
from uuid import UUID

from prometheus_client import Counter, Gauge, Histogram

from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.market.groups import Group, Interest, Strays, Tally
from tbot.market.subscribers import (
    CLOSE_SLOW,
    Subscriber,
    sent_bytes_total,
    sent_total,
)
from tbot.market.topics import Topic
from tbot.market.wheel import TICK_S, Wheel

SOCKETS_PER_TURN: Final = 500
"""Outputs written before other tasks of the loop get their turn."""

CLOSE_SILENT: Final = 4106
CLOSE_DRAIN: Final = 4201

clients_gauge = Gauge("tbot_stream_clients", "Connected stream clients.")
subscriptions_gauge = Gauge("tbot_stream_subscriptions", "Subscriptions.", ["channel"])
published_total = Counter("tbot_stream_published", "Frames published, once each.", ["channel"])
gaps_total = Counter("tbot_stream_gaps", "Gaps told to whole channels.", ["channel"])
conflated_total = Counter("tbot_stream_conflated", "Changes told with a later one.", ["channel"])
blocked_gauge = Gauge("tbot_stream_blocked", "Clients whose connection takes nothing.")
waiting_gauge = Gauge("tbot_stream_waiting_bytes", "Answers and private messages that wait.")
lag_seconds = Histogram(
    "tbot_stream_lag_seconds",
    "From a frame's publication to its write: the oldest frame of each turn of the flush.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)


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
        self.nothing = Interest({})
        self._interests: dict[frozenset[int], Interest] = {self.nothing.key: self.nothing}
        self._interested: dict[Topic, dict[Interest, None]] = {}
        self._idle_since: dict[Topic, float] = {}
        self._on_retire: Callable[[Topic], None] = lambda topic: None
        self._private: dict[UUID, _Private] = {}
        self._number = 0
        self._published: dict[str, Counter] = {}
        self._dirty: dict[Topic, None] = {}
        self._visits: dict[Subscriber, None] = {}
        self._turn: deque[Group | Strays | Subscriber] = deque()
        self._blocked: set[Subscriber] = set()
        self._wheel: Wheel[Subscriber] = Wheel(0.0)
        self._flush_handle: asyncio.Handle | None = None
        self._flushing = False
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
        self._wheel = Wheel(self._loop.time())
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
        self.nothing.subscribers += 1
        clients_gauge.set(len(self.subscribers))
        self.look_at(subscriber)

    def remove(self, subscriber: Subscriber) -> None:
        """A client is gone: end its subscriptions."""
        if subscriber not in self.subscribers:
            return
        self.subscribers.discard(subscriber)
        clients_gauge.set(len(self.subscribers))
        self._blocked.discard(subscriber)
        self._visits.pop(subscriber, None)
        self._wheel.remove(subscriber)
        for topic in subscriber.subscriptions.values():
            self._count(topic, -1)
        self._move(subscriber, {})
        self.nothing.subscribers -= 1
        subscriber.cursors = {}

    def subscribe(self, subscriber: Subscriber, wishes: list[tuple[Topic, int | None]]) -> None:
        """Let a client read topics from a frame on, or from a fresh snapshot (cursor None).

        Subscribing again is how a client asks for a fresh snapshot.

        Args:
            wishes: Topics, each with the number of the last frame that the client has.
        """
        if subscriber.closing or not wishes:
            return
        before = subscriber.subscriptions
        added = {topic.number: topic for topic, _ in wishes if topic.number not in before}
        for topic in added.values():
            self._count(topic, 1)
        cursors = subscriber.stray()
        if added:
            self._move(subscriber, before | added)
        for topic, cursor in wishes:
            # With nothing to begin with, the first thing that is published is the beginning, and
            # not a later snapshot that would hide what came before it.
            fresh = cursor is None and not topic.begun
            cursors[topic] = topic.seq if fresh else cursor
        self.revisit(subscriber)

    def unsubscribe(self, subscriber: Subscriber, topics: list[Topic]) -> None:
        """End subscriptions; their topics linger for a while, for those who come back."""
        ended = {topic.number for topic in topics} & set(subscriber.subscriptions)
        if not ended:
            return
        cursors = subscriber.stray()
        left = dict(subscriber.subscriptions)
        for number in ended:
            topic = left.pop(number)
            cursors.pop(topic, None)
            self._count(topic, -1)
        self._move(subscriber, left)
        self.revisit(subscriber)

    def _count(self, topic: Topic, change: int) -> None:
        """A topic has a reader more, or less."""
        topic.readers += change
        subscriptions_gauge.labels(topic.channel).inc(change)
        if topic.readers:
            self._idle_since.pop(topic, None)
        else:
            self._idle_since[topic] = self.now()

    def _move(self, subscriber: Subscriber, topics: dict[int, Topic]) -> None:
        """Let a subscriber, who is astray for it, be interested in these topics."""
        subscriber.stray()
        old = subscriber.interest
        new = self._interests.get(frozenset(topics))
        if new is None:
            new = Interest(topics)
            self._interests[new.key] = new
            for topic in topics.values():
                self._interested.setdefault(topic, {})[new] = None
        old.strays.pop(subscriber, None)
        old.subscribers -= 1
        new.subscribers += 1
        subscriber.interest = new
        if old.subscribers == 0 and old is not self.nothing:
            del self._interests[old.key]
            for topic in old.topics.values():
                del self._interested[topic][old]

    # Publishing

    def changed(self, topic: Topic) -> None:
        """Call after every update of a topic: publishes now, or when its interval is over."""
        if topic.pending and topic.interval_ms:
            if topic in self._timers:
                conflated_total.labels(topic.channel).inc()
            elif self._loop is not None:
                delay_s = topic.interval_ms / 1000
                self._timers[topic] = self._loop.call_later(delay_s, self._expire, topic)
            return
        self._publish(topic)

    def _expire(self, topic: Topic) -> None:
        self._timers.pop(topic, None)
        if topic.flush():
            self._publish(topic)

    def _publish(self, topic: Topic) -> None:
        counter = self._published.get(topic.channel)
        if counter is None:
            counter = self._published[topic.channel] = published_total.labels(topic.channel)
        counter.inc()
        if topic.frames:
            topic.frames[-1].at = self.now()
        if topic.readers:
            self._dirty[topic] = None
            self._schedule()

    def revisit(self, subscriber: Subscriber) -> None:
        """Flush one subscriber at the next flush."""
        if not subscriber.closing:
            self._visits[subscriber] = None
            self._schedule()

    def blocked(self, subscriber: Subscriber) -> None:
        """Watch how long a subscriber's output takes nothing."""
        self._blocked.add(subscriber)

    def _schedule(self) -> None:
        if self._flush_handle is None and not self._flushing and self._loop is not None:
            # The first event after a pause goes out at once; a burst is joined per interval.
            due = self._flushed_at + self.settings.flush_interval_ms / 1000
            self._flush_handle = self._loop.call_at(max(due, self._loop.time()), self._flush)

    def _flush(self) -> None:
        topics, self._dirty = self._dirty, {}
        visits, self._visits = self._visits, {}
        interests: dict[Interest, None] = {}
        for subscriber in visits:
            if subscriber.closing:
                continue
            if subscriber.cursors is None or not subscriber.cursors:
                self._turn.append(subscriber)
            else:
                subscriber.interest.strays[subscriber] = None
                interests[subscriber.interest] = None
        for topic in topics:
            interests.update(self._interested.get(topic, ()))
        for interest in interests:
            self._turn.extend(interest.groups)
            if interest.strays:
                self._turn.append(Strays(interest))
        self._flush_some()

    def _flush_some(self) -> None:
        """Flush some subscribers and leave the rest for the loop's next turn."""
        assert self._loop is not None
        self._flush_handle = None
        self._flushing = True  # what is written may ask for a flush: that comes after this one
        tally = Tally()
        turn = self._turn
        while turn and tally.sockets < SOCKETS_PER_TURN:
            part = turn.popleft()
            if isinstance(part, Group):
                part.flush(tally)
            elif isinstance(part, Subscriber):
                part.flush()
                tally.sockets += 1
            elif not part.serve(tally, SOCKETS_PER_TURN):
                turn.append(part)
        now = self._flushed_at = self._loop.time()
        if tally.frames:
            sent_total.inc(tally.frames)
            sent_bytes_total.inc(tally.bytes)
        if tally.oldest_at < inf:
            lag_seconds.observe(max(0.0, now - tally.oldest_at))
        self._flushing = False
        if turn:
            self._flush_handle = self._loop.call_soon(self._flush_some)
        elif self._dirty or self._visits:
            self._schedule()

    # Watching over

    async def _watch(self) -> None:
        """In every tick: silent peers, deadlines, stalled readers, topics that nobody reads."""
        while True:
            await asyncio.sleep(TICK_S)
            self.look_around()

    def look_around(self) -> None:
        """One round of the watch."""
        now = self.now()
        blocked_gauge.set(len(self._blocked))
        waiting_gauge.set(sum([subscriber.waiting_bytes for subscriber in self._blocked]))
        for subscriber in list(self._blocked):
            since = subscriber.blocked_since
            if since is None:
                self._blocked.discard(subscriber)
            elif now - since > self.settings.stall_timeout_s:
                subscriber.close(CLOSE_SLOW, "reading stalled")
        for subscriber in self._wheel.due(now):
            self._look_at(subscriber, now)
        for topic, since in list(self._idle_since.items()):
            if now - since > self.settings.linger_s:
                self._retire(topic)

    def look_at(self, subscriber: Subscriber) -> None:
        """Watch over a subscriber whose deadline is another one now."""
        if not subscriber.closing:
            self._look_at(subscriber, self.now())

    def _look_at(self, subscriber: Subscriber, now: float) -> None:
        """Do what is due for one subscriber, and decide when to look at it next."""
        settings = self.settings
        if now >= subscriber.deadline_at and subscriber.on_deadline is not None:
            subscriber.deadline_at = inf
            subscriber.on_deadline()
        next_at = subscriber.deadline_at
        heard_at = subscriber.output.heard_at
        if heard_at is not None and not subscriber.closing:
            quiet_at = heard_at + settings.heartbeat_s
            if now > quiet_at:
                next_at = min(next_at, self._ask_for_life(subscriber, quiet_at, now))
            else:
                next_at = min(next_at, quiet_at)
        if not subscriber.closing and next_at < inf:
            self._wheel.put(subscriber, next_at)

    def _ask_for_life(self, subscriber: Subscriber, quiet_at: float, now: float) -> float:
        """Ping who has said nothing since before `quiet_at`; when to look at it again.

        While its connection takes nothing it cannot be asked, nor answer what it was asked before:
        then `stall_timeout_s` counts, and afterwards it has its time again.
        """
        if subscriber.pinged_at < quiet_at:
            if not subscriber.output.ping():
                return now + TICK_S
            subscriber.pinged_at = now
        elif subscriber.blocked_since is not None:
            return now + TICK_S
        asked_at = max(subscriber.pinged_at, subscriber.patient_from)
        closes_at = asked_at + self.settings.heartbeat_timeout_s
        if now > closes_at:
            subscriber.close(CLOSE_SILENT, "no sign of life")
        return closes_at

    def _retire(self, topic: Topic) -> None:
        del self._idle_since[topic]
        self._interested.pop(topic, None)
        timer = self._timers.pop(topic, None)
        if timer is not None:
            timer.cancel()
        self._on_retire(topic)
