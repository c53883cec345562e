"""What one loop of the program takes from a stream: an async iterator over a bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, Self

type Overflow = Literal["oldest", "latest", "park"]
"""What happens beyond the bound: the oldest items go, all but the newest go, or the stream asks
for no more until there is room."""


def told[T](listener: Callable[[T], None], item: T) -> None:
    """Call a function of the program's; what it raises is the event loop's to tell, not ours."""
    try:
        listener(item)
    except Exception as error:  # noqa: BLE001 - a stream does not end by its listener's fault
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"{listener!r} of a stream raised", "exception": error}
        )


class Subscription[T]:
    """What one loop of the program takes: an async iterator over a bounded queue.

    It goes on over reconnections and ends when its stream is closed. Leave it with `close` (or use
    it as an async context manager) to unsubscribe while the stream goes on.

    What happens when the program is slower than the server depends on the channel:

    - trades, candles: the oldest are dropped beyond 10,000, and the stream's `on_gap` is told;
    - book, best prices, ticker, status: only the newest is kept;
    - account: nothing is dropped. Beyond 1,000 entries the stream leaves the channel, and takes it
      up again where it was once the program has taken half of them. Other channels go on.
    """

    def __init__(
        self,
        bound: int,
        overflow: Overflow,
        on_close: Callable[[Subscription[T]], None],
        on_room: Callable[[], None],
    ) -> None:
        self._bound = bound
        self._overflow = overflow
        self._on_close = on_close
        self._on_room = on_room
        self._items: deque[T] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._error: Exception | None = None
        self.dropped = 0
        """Items that the program was too slow to take."""

    @property
    def full(self) -> bool:
        """Whether nothing more may be put: only where the stream asks for no more then."""
        return self._overflow == "park" and len(self._items) >= self._bound

    def put(self, item: T) -> bool:
        """Queue an item, while it is not `full`; False when another one had to go for it."""
        whole = True
        if self._overflow == "latest":
            self._items.clear()
        elif self._overflow == "oldest" and len(self._items) >= self._bound:
            self._items.popleft()
            self.dropped += 1
            whole = False
        if not self._ended:
            self._items.append(item)
            self._changed.set()
        return whole

    def end(self, error: Exception | None = None) -> None:
        """No more items will come; what is queued is still delivered, then the error."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._changed.set()

    def close(self) -> None:
        """Unsubscribe; safe to call twice."""
        self.end()
        self._items.clear()
        self._on_close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while not self._items:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        item = self._items.popleft()
        if len(self._items) <= self._bound // 2:
            self._on_room()
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
