"""How a stream stays connected: one connection after the other, until it is closed or has to end.

What is said on a connection is `subscribing`'s, and how, the transport's: `streams` and `events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from tbot.client.errors import AuthError, ProtocolError, StreamClosed, Unavailable
from tbot.client.reconnecting import Ending, Lost, Patience, ending_of

NONSENSE_MAX: Final = 5
"""Connections in a row that may end with something not understood; then the stream gives up."""
REFUSED_TOKENS_MAX: Final = 3
"""Tokens in a row that the server may refuse, each fresh, before it is believed."""


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient a stream is; all in seconds.

    Args:
        open_s: How long opening it may take, with all its attempts.
        connect_s: Of one attempt, to the end of its login.
        answer_s: How long an answer to a subscription may take; then the connection is given up.
        base_s, cap_s: The first and the largest bound of the jittered delay before coming back.
        drain_s: How long after `drain` the server may keep the connection open.
    """

    open_s: float = 30.0
    connect_s: float = 10.0
    answer_s: float = 10.0
    base_s: float = 0.5
    cap_s: float = 20.0
    drain_s: float = 10.0


PATIENT: Final = Timing()


class Credentials(Protocol):
    """Gives what logs in: see `TokenKeeper` and `TicketKeeper`."""

    kind: str
    """`token` or `ticket`: the member of `auth` that it goes into."""

    @property
    def renew_in_s(self) -> float:
        """Seconds until it should be renewed; infinite where that is not known."""

    async def get(self, stale: str | None = None) -> str:
        """A good one; another than `stale`.

        Raises:
            AuthError: There is none to be had.
            Unavailable: Not now.
        """

    async def renew(self) -> object:
        """The one at hand has ended: make sure that the next is another; raises as `get`."""


class Staying(ABC):
    """What stays connected; use it as an async context manager.

    Args:
        tokens: Gives what logs in.
        on_close: Called once, at the end.
    """

    def __init__(
        self, tokens: Credentials, on_close: Callable[[Any], None] | None, timing: Timing
    ) -> None:
        super().__init__()
        self.timing = timing
        self.limits: Mapping[str, Any] = {}
        """What the server allows, as its `hello` said; empty before the first."""
        self.connected = False
        """Whether there is a connection, logged in, at the moment."""
        self.connections = 0
        """How often it was connected and logged in so far."""
        self.last_loss: Lost | None = None
        """Why it last had to come back: `code` and `reason`."""
        self._tokens = tokens
        self._on_close = on_close
        self._ready = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._patience = Patience(timing.base_s, timing.cap_s)
        self._nonsense = 0
        self._refused_tokens = 0
        self._epoch = ""

    @abstractmethod
    async def _converse(self) -> None:
        """One connection, from its beginning to its end.

        Raises:
            Lost: It ended, and coming back may help.
            StreamClosed, AuthError: It would not.
            ProtocolError: The server said something that is not understood.
        """

    @abstractmethod
    def _disconnected(self) -> None:
        """A connection is over."""

    @abstractmethod
    def _end_all(self, error: Exception | None) -> None:
        """There is nothing more to come, for whoever waits for it."""

    # Its life

    async def __aenter__(self) -> Self:
        """Connect and log in.

        Raises:
            AuthError: The credentials are not good.
            StreamClosed: The server does not want this client.
            Unavailable: There was no connection within `Timing.open_s`.
        """
        self._start()
        try:
            async with asyncio.timeout(self.timing.open_s):
                await self._ready.wait()
        except TimeoutError:
            why = "no answer" if self.last_loss is None else str(self.last_loss)
            self._error = Unavailable(f"no connection within {self.timing.open_s:g} s ({why})")
        if self._error is not None:
            error = self._error
            await self.close()
            raise error
        return self

    def _start(self) -> None:
        if self._ended:
            raise RuntimeError("a stream is opened once; make another")
        self._task = asyncio.create_task(self._run(), name="tbot-stream")

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every subscription and the connection; safe to call twice."""
        first, self._ended = not self._ended, True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for helper in list(self._helpers):
            helper.cancel()
        self._end_all(None)
        self._over()
        if first and self._on_close is not None:
            self._on_close(self)

    def _over(self) -> None:
        """There will be no connection any more."""
        self._ready.set()

    # Staying connected

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            while True:
                delay_s = 0.0
                started_s = time.monotonic()
                try:
                    await self._converse()
                except Lost as lost:
                    self.last_loss = lost
                    delay_s = await self._delay_after(lost, time.monotonic() - started_s)
                except ProtocolError as nonsense:
                    self._nonsense += 1
                    if self._nonsense > NONSENSE_MAX:
                        raise
                    self.last_loss = Lost(1006, str(nonsense))
                    delay_s = self._patience.backoff.next_s()
                except Unavailable as busy:
                    self.last_loss = Lost(1006, str(busy))
                    delay_s = self._patience.backoff.next_s()
                finally:
                    self.connected = False
                    self._disconnected()
                await asyncio.sleep(delay_s)
        except Exception as fatal:  # noqa: BLE001 - whoever takes from the stream must hear of it
            error = fatal
        self._error = error
        self._end_all(error)
        self._over()

    async def _delay_after(self, lost: Lost, lasted_s: float) -> float:
        """How long to stay away.

        Raises:
            StreamClosed: For good.
        """
        ending = ending_of(lost.code)
        if ending is Ending.FOR_GOOD:
            raise StreamClosed(lost.code, lost.reason)
        if ending is Ending.RENEW:
            with contextlib.suppress(Unavailable):  # the next attempt tries again
                await self._tokens.renew()
        return self._patience.after(ending, lasted_s, lost.at_least_s)

    async def _token_refused(self, token: str, why: str) -> None:
        """The server does not take a token: get another, as long as that makes sense.

        Perhaps it ended a moment ago; if a new one is no better, the login says so, or we do.

        Raises:
            AuthError: It does not.
        """
        self._refused_tokens += 1
        if self._refused_tokens >= REFUSED_TOKENS_MAX:
            raise AuthError(f"the server takes none of our tokens: {why}", "invalid_token")
        await self._tokens.get(stale=token)

    def _connected(self, hello: dict[str, Any]) -> None:
        """A connection is logged in."""
        self.connected = True
        self.connections += 1
        self._refused_tokens = 0
        self._greeted(hello)
        self._ready.set()

    def _greeted(self, hello: dict[str, Any]) -> None:
        limits = hello.get("limits")
        self._epoch = str(hello.get("epoch", ""))
        self.limits = limits if isinstance(limits, dict) else {}

    def limit(self, name: str, otherwise: float, least: float = 1) -> float:
        """A figure of `limits`; `otherwise` where the server said none that makes sense."""
        value = self.limits.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value >= least:
            return otherwise
        return value

    def _going_away(self, message: dict[str, Any]) -> None:
        """The server is about to close, and says when to come back."""
        after_ms = message.get("reconnect_after_ms")
        known = isinstance(after_ms, int | float) and after_ms >= 0
        self._patience.drain_s = min(60.0, float(after_ms or 0) / 1000) if known else 0.0

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the reading; that the connection ends is no news here."""

        async def quietly() -> None:
            with contextlib.suppress(Lost):
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
