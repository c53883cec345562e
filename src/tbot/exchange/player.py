"""Plays a market source onto the floor at its pace.

At speed N an event is due N times sooner than it was recorded; at 0 events follow each other as
fast as clients read. A player that falls more than a second behind (a paused machine, or a speed
that it cannot keep) moves its time line instead of bursting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import structlog

from tbot.exchange.events import Snapshot, Timed
from tbot.exchange.floor import Floor
from tbot.exchange.hub import Hub
from tbot.exchange.instruments import Instrument
from tbot.exchange.model import Marked

_log = structlog.get_logger(__name__)

_RUN: Final = 64  # events between two looks at the clock and at other work
_LATE_S_MAX: Final = 1.0


class Source(Protocol):
    """Where the market comes from."""

    @property
    def identity(self) -> str:
        """Names the source and what it plays: a position is only good for the same one."""

    @property
    def start_ms(self) -> int:
        """Its own clock before its first event."""

    def instruments(self) -> list[Instrument]:
        """The rules of every symbol that it plays."""

    def openings(self) -> list[Snapshot]:
        """The books before the first event."""

    def trade_ids(self) -> Mapping[str, int]:
        """By symbol, the trade id before its first event."""

    def events(self) -> Iterator[Timed]:
        """Every event from the first, in source time."""

    def resume(self) -> dict[str, list[int]]:
        """What it needs beside a position to go on after a restart."""


class Player:
    """Plays one source.

    Args:
        source: Fresh; its events are taken once.
        floor: Where they are played.
        speed: Times real time, 0 for as fast as possible.
        position: Events before it are applied to the books in silence: a restart.
        wait_for: Streams that must have a listener before the first event.
        clear: Awaited at speed 0: returns when no client's buffer is full.
    """

    def __init__(
        self,
        source: Source,
        floor: Floor,
        speed: float,
        position: int,
        wait_for: Sequence[str],
        clear: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._source = source
        self._floor = floor
        self._speed = speed
        self._wait_for = set(wait_for)
        self._clear = clear
        self._events = source.events()
        self._next: Timed | None = None
        self.finished = False
        self.started = False
        self._skip(position)

    def _skip(self, position: int) -> None:
        """Bring the books to where they were; users' orders have met these events already."""
        floor = self._floor
        if not position:
            return
        for timed in self._events:
            if timed.index >= position:
                self._next = timed
                break
            floor.skip(timed.event)
        floor.position = position

    def marked(self) -> Marked:
        """Where the market stands, for the log."""
        return Marked(self._source.identity, self._floor.position, self._source.resume())

    async def play(self, hub: Hub) -> None:
        """Play to the end of the source; a synthetic one has none."""
        if self._wait_for:
            await self._audience(hub)
        self.started = True
        await (self._paced() if self._speed else self._unpaced())
        self.finished = True
        _log.info("replay_finished", events=self._floor.events_played)

    async def _audience(self, hub: Hub) -> None:
        there = asyncio.Event()
        hub.on_subscribe = there.set
        while not self._wait_for <= hub.wanted_streams():
            there.clear()
            await there.wait()
        hub.on_subscribe = lambda: None

    def _rest(self) -> Iterator[Timed]:
        if self._next is not None:
            yield self._next
            self._next = None
        yield from self._events

    async def _unpaced(self) -> None:
        play = self._floor.play
        for count, timed in enumerate(self._rest(), 1):
            play(timed)
            if count % _RUN == 0:
                blocked = self._clear()
                if blocked is None:
                    await asyncio.sleep(0)
                else:
                    await blocked

    async def _paced(self) -> None:
        loop = asyncio.get_running_loop()
        play = self._floor.play
        per_ns = 1e-9 / self._speed
        zero_ns: int | None = None
        began_s = loop.time()
        count = 0
        for timed in self._rest():
            if zero_ns is None:
                zero_ns, began_s = timed.at_ns, loop.time()
                # Whoever wants to know when an event was due counts from here.
                _log.info("market_started", speed=self._speed)
            due_s = began_s + (timed.at_ns - zero_ns) * per_ns
            wait_s = due_s - loop.time()
            if wait_s > 0.0005:
                await asyncio.sleep(wait_s)
                count = 0
            elif wait_s < -_LATE_S_MAX:
                _log.warning("market_behind", late_s=round(-wait_s, 3))
                began_s -= wait_s
            count += 1
            if count % _RUN == 0:
                await asyncio.sleep(0)
            play(timed)
