"""One WebSocket API connection: requests by id, answers by id, and the private events between.

Two guarantees the order path stands on:

1. `write` is synchronous down to the transport: it never suspends, so whoever checked a lease and
   signed just before knows that nothing happened in between. It uses the protocol object and the
   transport of `websockets` directly, because `send` may wait before it returns. Back-pressure is
   checked first: a request is never parked in a full buffer to go stale there.
2. When `write` raises `VenueNotSent`, no byte was handed to the transport. Once it returns, the
   request's fate is told by its future alone: an answer, or `VenueAmbiguous`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Final

import msgspec
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.protocol import State

from tbot.core.errors import VenueAmbiguous, VenueDown, VenueNotSent

_log = structlog.get_logger(__name__)

type Answer = Mapping[str, Any]

OPEN_TIMEOUT_S: Final = 10.0
PING_INTERVAL_S: Final = 15.0
PING_TIMEOUT_S: Final = 10.0
_BUFFER_BYTES_MAX: Final = 65_536
_MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
_decode = msgspec.json.Decoder().decode


class ApiConnection:
    """A connection to `/ws-api/v3`; made by `ApiConnection.open`.

    Args:
        events: Called with every private event, in the order of arrival, from the reading task.
        in_flight_max: Requests that may be unanswered at once.
    """

    def __init__(
        self,
        socket: ClientConnection,
        events: Callable[[Answer], None],
        in_flight_max: int,
    ) -> None:
        self._socket = socket
        self._events = events
        self._in_flight_max = in_flight_max
        self._pending: dict[int, asyncio.Future[Answer]] = {}
        self._ids = count(1)
        self._lost: str | None = None
        self._reader = asyncio.create_task(self._read(), name="binance:api-reader")

    @classmethod
    async def open(
        cls, url: str, events: Callable[[Answer], None], in_flight_max: int
    ) -> ApiConnection:
        """Connect.

        Raises:
            VenueDown: No connection; try again later.
        """
        try:
            socket = await connect(
                url,
                open_timeout=OPEN_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                ping_timeout=PING_TIMEOUT_S,
                close_timeout=1.0,
                max_size=_MESSAGE_BYTES_MAX,
                max_queue=256,
                compression=None,
                proxy=None,
            )
        except (OSError, TimeoutError, WebSocketException, ValueError) as error:
            raise VenueDown(f"no connection to the venue: {type(error).__name__}") from error
        return cls(socket, events, in_flight_max)

    @property
    def usable(self) -> bool:
        """Whether a request could be written now."""
        return self._lost is None and self._socket.state is State.OPEN

    @property
    def in_flight(self) -> int:
        """Requests without an answer."""
        return len(self._pending)

    def next_id(self) -> int:
        """An id for a request on this connection."""
        return next(self._ids)

    def write(self, request_id: int, frame: bytes) -> asyncio.Future[Answer]:
        """Hand a request to the transport, without suspending.

        Returns:
            The future of its answer. It fails with `VenueAmbiguous` when the connection ends
            first.

        Raises:
            VenueNotSent: Nothing was written.
        """
        self.check_writable()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = answer
        answer.add_done_callback(lambda _: self._pending.pop(request_id, None))
        # From here on the bytes may leave: whatever fails now is ambiguous.
        try:
            self._socket.protocol.send_text(frame)
            self._socket.send_data()
        except Exception as error:  # noqa: BLE001
            self._fail(f"writing failed: {type(error).__name__}")
            self._socket.transport.abort()
        return answer

    def check_writable(self) -> None:
        """Raise `VenueNotSent` unless `write` would hand its bytes over at once."""
        if not self.usable:
            raise VenueNotSent("no connection to the venue", "not_connected")
        if len(self._pending) >= self._in_flight_max:
            raise VenueNotSent("too many requests without an answer", "in_flight_full")
        if self._socket.transport.get_write_buffer_size() > _BUFFER_BYTES_MAX:
            raise VenueNotSent("the connection to the venue is congested", "congested")

    async def closed(self) -> None:
        """Wait until the connection has ended."""
        await asyncio.shield(self._reader)

    async def close(self) -> None:
        """End the connection; requests without an answer become ambiguous. Safe to call twice."""
        with contextlib.suppress(Exception):
            await self._socket.close()
        self._reader.cancel()
        await asyncio.wait({self._reader})
        self._fail("connection closed")

    async def _read(self) -> None:
        why = "connection closed by the venue"
        try:
            async for message in self._socket:
                self._take(_decode(message))
        except (OSError, WebSocketException) as error:
            why = f"connection lost: {type(error).__name__}"
        except Exception as error:  # noqa: BLE001
            # Which request an unreadable message answers cannot be known: all are in doubt.
            why = f"unreadable message: {type(error).__name__}"
            _log.warning("venue_message_unreadable", error=str(error)[:200])
            self._socket.transport.abort()
        finally:
            self._fail(why)

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            raise TypeError("a message is no object")
        request_id = message.get("id")
        if request_id is None:
            # An event, or an error that names no request: then one of ours stays unanswered.
            self._events(message)
            return
        future = self._pending.get(request_id)
        if future is not None and not future.done():
            future.set_result(message)

    def _fail(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
        for future in list(self._pending.values()):
            if not future.done():
                future.set_exception(VenueAmbiguous(f"no answer: {self._lost}", "no_answer"))
                future.exception()  # retrieved: a caller that was cancelled leaves no warning
