"""Wake-ups between parts of the program: hints, never facts.

A topic says only "look again": `head:<account>` (the account's journal grew), `orders:<venue>`
(there may be orders to send or cancel). Who listens reads the truth from the journal, and also
looks by itself every second in case a wake-up was lost. `tbot.db.notify` carries topics between
processes.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

EVERYTHING: Final = "*"
"""The topic that wakes every listener: sent when a wake-up would have had to name too much."""


class Bus:
    """In-process wake-ups. All calls belong to the event loop's thread.

    A listener owns one `asyncio.Event` for all its topics, so a million wake-ups before it runs
    cost one flag: there is no queue that could grow. Who has to know *what* changed, and at once,
    hears instead: caches, which forget it.
    """

    __slots__ = ("_events", "_hearers")

    def __init__(self) -> None:
        self._events: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._hearers: dict[str, list[Callable[[str | None], None]]] = {}

    def wake(self, topics: Iterable[str]) -> None:
        """Set the event of every listener of any of the topics, and tell who hears."""
        for topic in topics:
            if topic == EVERYTHING:
                for events in self._events.values():
                    for event in events:
                        event.set()
                for hearers in self._hearers.values():
                    for heard in hearers:
                        heard(None)
                return
            for event in self._events.get(topic, ()):
                event.set()
            kind, named, rest = topic.partition(":")
            if named:
                for heard in self._hearers.get(kind, ()):
                    heard(rest)

    def hear(self, kind: str, heard: Callable[[str | None], None]) -> None:
        """Call `heard` from now on, within `wake`, for every topic `kind:what`.

        Args:
            heard: Is given `what`, or None when it may have been anything; has to be quick, and
                must not raise.
        """
        self._hearers.setdefault(kind, []).append(heard)

    @contextmanager
    def listening(
        self, *topics: str, event: asyncio.Event | None = None
    ) -> Iterator[asyncio.Event]:
        """An event that `wake` sets; the listener clears it *before* it looks.

        Example:
            >>> bus = Bus()
            >>> with bus.listening("head:1") as woken:
            ...     bus.wake(["head:1"])
            ...     woken.is_set()
            True
        """
        mine = event or asyncio.Event()
        for topic in topics:
            self._events[topic].add(mine)
        try:
            yield mine
        finally:
            for topic in topics:
                listeners = self._events[topic]
                listeners.discard(mine)
                if not listeners:
                    del self._events[topic]


async def wait_for_wake(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait until `event` is set, at most `timeout_s`; clears it. True when it was set."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True
