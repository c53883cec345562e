"""The private session: one usable WebSocket API connection, subscribed to the account's events.

Every (re)subscription puts a `StreamGap` into the events, *after* the venue confirmed it: a sweep
that starts from there misses nothing. A connection that the venue announces to close, or that
nears its 24 hours, is replaced first and closed when its requests are answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

import structlog

from tbot.core.errors import VenueAmbiguous, VenueError, VenueNotSent
from tbot.core.tasks import Tasks
from tbot.venues.backoff import FullJitter
from tbot.venues.base import StreamGap, UserEvent
from tbot.venues.binance.connection import Answer, ApiConnection
from tbot.venues.binance.wire import (
    Signer,
    account_position,
    api_request,
    execution_report,
)
from tbot.venues.budgets import Priority
from tbot.venues.governor import Governor

_log = structlog.get_logger(__name__)
_AGE_S_MAX: Final = 23 * 3600.0
_DRAIN_S: Final = 12.0
_ANSWER_S: Final = 10.0


class ApiSession:
    """Keeps the private connection.

    Args:
        clock_ms: The venue's time as best known.
        in_flight_max: Requests that may be unanswered at once.
        events_max: Events that may wait for `events`.
    """

    def __init__(
        self,
        url: str,
        signer: Signer,
        governor: Governor,
        clock_ms: Callable[[], int],
        window_ms: int,
        in_flight_max: int,
        events_max: int,
    ) -> None:
        self._url = url
        self._signer = signer
        self._governor = governor
        self._clock_ms = clock_ms
        self._window_ms = window_ms
        self._in_flight_max = in_flight_max
        self._current: ApiConnection | None = None
        self._ready = asyncio.Event()
        self._replace = asyncio.Event()
        self._terminated = asyncio.Event()
        # Overflow policy: everything waiting is dropped for one StreamGap, whose sweep finds it.
        self._events: asyncio.Queue[UserEvent] | None = None
        self._events_max = events_max
        self._tasks = Tasks("binance-session")
        self._open: set[ApiConnection] = set()
        self.dropped = 0

    def start(self) -> None:
        """Begin connecting."""
        self._tasks.start(self._keep(), "keep")

    async def stop(self) -> None:
        """Close every connection; safe to call twice."""
        await self._tasks.stop()
        self._current = None
        for connection in list(self._open):
            await self._close(connection)

    async def _close(self, connection: ApiConnection) -> None:
        self._open.discard(connection)
        await connection.close()

    async def ready(self) -> None:
        """Wait until requests can be sent."""
        await self._ready.wait()
        while self._current is None or not self._current.usable:
            # Lost, and `_keep` has not noticed yet.
            await asyncio.sleep(0.005)
            await self._ready.wait()

    def connection(self) -> ApiConnection:
        """The connection to write to.

        Raises:
            VenueNotSent: There is none at the moment.
        """
        if self._current is None or not self._current.usable:
            raise VenueNotSent("no connection to the venue", "not_connected")
        return self._current

    async def events(self) -> AsyncIterator[UserEvent]:
        """Private events for ever, beginning with a `StreamGap`; for one reader at a time."""
        # A queue of the reader's own: an earlier one that is cleaned up late takes nothing along.
        events: asyncio.Queue[UserEvent] = asyncio.Queue(self._events_max)
        self._events = events
        try:
            yield StreamGap("listening")
            while True:
                yield await events.get()
        finally:
            if self._events is events:
                self._events = None

    async def _keep(self) -> None:
        backoff = FullJitter()
        while True:
            connection = await self._connect(backoff)
            backoff.reset()
            self._current = connection
            self._ready.set()
            _log.info("venue_session_open", url=self._url)
            try:
                await self._use(connection)
            finally:
                self._current = None
                self._ready.clear()
            self._tasks.start(self._drain(connection), "drain")
            if not self._replace.is_set():
                await asyncio.sleep(backoff.next_s())
            self._replace.clear()

    async def _connect(self, backoff: FullJitter) -> ApiConnection:
        """A new connection whose subscription the venue has confirmed."""
        while True:
            connection: ApiConnection | None = None
            try:
                permit = await self._governor.take({"connections:5m": 1}, Priority.CANCEL)
                permit.settle()
                connection = await ApiConnection.open(
                    self._url, self._on_message, self._in_flight_max
                )
                self._open.add(connection)
                await self._subscribe(connection)
            except VenueError as error:
                self._log_failure(error)
                if connection is not None:
                    await self._close(connection)
                await asyncio.sleep(backoff.next_s())
            else:
                return connection

    def _log_failure(self, error: VenueError) -> None:
        _log.warning("venue_session_failed", url=self._url, error=str(error), code=error.code)

    async def _use(self, connection: ApiConnection) -> None:
        """Return when the connection has ended or is to be replaced."""
        closed = asyncio.ensure_future(connection.closed())
        try:
            async with asyncio.timeout(_AGE_S_MAX):
                while not closed.done() and not self._replace.is_set():
                    waits = [
                        asyncio.ensure_future(self._replace.wait()),
                        asyncio.ensure_future(self._terminated.wait()),
                    ]
                    try:
                        await asyncio.wait({closed, *waits}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for wait in waits:
                            wait.cancel()
                    if self._terminated.is_set() and connection.usable:
                        await self._subscribe(connection)
        except TimeoutError:
            self._replace.set()
        except VenueError as error:
            self._log_failure(error)
        finally:
            closed.cancel()

    async def _drain(self, connection: ApiConnection) -> None:
        """Close a connection once its requests are answered."""
        try:
            async with asyncio.timeout(_DRAIN_S):
                while connection.in_flight and connection.usable:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pass
        finally:
            await self._close(connection)

    async def _subscribe(self, connection: ApiConnection) -> None:
        self._terminated.clear()
        permit = await self._governor.take({"weight:1m": 2, "raw:5m": 1}, Priority.CANCEL)
        try:
            request_id = connection.next_id()
            frame = api_request(
                request_id,
                "userDataStream.subscribe.signature",
                {},
                self._signer,
                self._clock_ms(),
                self._window_ms,
            )
            async with asyncio.timeout(_ANSWER_S):
                answer = await connection.write(request_id, frame)
        except TimeoutError:
            raise VenueAmbiguous("no answer to the subscription", "no_answer") from None
        finally:
            permit.settle()
        if answer.get("status") != 200:
            error: Mapping[str, Any] = answer.get("error") or {}
            raise VenueNotSent(f"subscription refused: {error.get('msg')}", str(error.get("code")))
        self._put(StreamGap("subscribed"))

    def _on_message(self, message: Answer) -> None:
        event = message.get("event", message)
        kind = event.get("e")
        if kind == "executionReport":
            self._put(execution_report(event))
        elif kind == "outboundAccountPosition":
            self._put(account_position(event))
        elif kind == "eventStreamTerminated":
            _log.warning("venue_event_stream_terminated")
            self._terminated.set()
        elif kind == "serverShutdown":
            _log.info("venue_announced_shutdown")
            self._replace.set()
        elif "error" in message:
            _log.warning("venue_error_without_id", error=message["error"])

    def _put(self, event: UserEvent) -> None:
        events = self._events
        if events is None:
            return  # whoever comes begins with a gap
        try:
            events.put_nowait(event)
        except asyncio.QueueFull:
            self.dropped += events.qsize() + 1
            while not events.empty():
                events.get_nowait()
            events.put_nowait(StreamGap("events overflowed"))
            _log.error("venue_events_overflowed", dropped=self.dropped)
