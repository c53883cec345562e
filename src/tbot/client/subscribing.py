"""What can be subscribed to, and how a stream stays: the same over a WebSocket and over events.

A stream knows its channels and runs one connection after the other. What a connection is
(`_converse`) and how something is asked for on it is the transport's: `streams` and `events`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self
from uuid import UUID

from tbot.client.book import Book
from tbot.client.candles import CandleInterval, CandlesChannel
from tbot.client.channels import (
    BookChannel,
    BookListener,
    Channel,
    LatestChannel,
    Subscription,
    TradesChannel,
    account_channel,
    told,
)
from tbot.client.errors import AuthError, ProtocolError, Refused, StreamClosed, Unavailable
from tbot.client.models import (
    AccountSnapshot,
    BestPrices,
    Candle,
    Entry,
    Gap,
    MarketStatus,
    Ticker,
    Trade,
)
from tbot.client.reconnecting import Ending, Lost, Patience, ending_of

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
NONSENSE_MAX: Final = 5
"""Connections in a row that may end with something not understood; then the stream gives up."""
REFUSED_TOKENS_MAX: Final = 3
"""Tokens in a row that the server may refuse, each fresh, before it is believed."""

type GapListener = Callable[[Gap], None]


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


class Subscribing(ABC):
    """A stream, whatever carries it; use it as an async context manager.

    Args:
        tokens: Gives what logs in.
        on_gap: Called whenever something was missed on a public channel.
        on_close: Called once, at the end.
    """

    def __init__(
        self,
        tokens: Credentials,
        on_gap: GapListener | None,
        on_close: Callable[[Any], None] | None,
        timing: Timing,
    ) -> None:
        super().__init__()
        self.timing = timing
        self.limits: Mapping[str, Any] = {}
        """What the server allows, as its `hello` said; empty before the first."""
        self.connections = 0
        """How often it was connected and logged in so far."""
        self.last_loss: Lost | None = None
        """Why it last had to come back: `code` and `reason`."""
        self._tokens = tokens
        self._on_gap = on_gap
        self._on_close = on_close
        self._channels: dict[tuple[Any, ...], Channel] = {}
        self._numbers: dict[int, Channel] = {}
        self._epoch = ""
        self._ready = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False
        self._task: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._patience = Patience(timing.base_s, timing.cap_s)
        self._nonsense = 0
        self._refused_tokens = 0

    # What a transport does

    @abstractmethod
    async def _converse(self) -> None:
        """One connection, from its beginning to its end.

        Raises:
            Lost: It ended, and coming back may help.
            StreamClosed, AuthError: It would not.
            ProtocolError: The server said something that is not understood.
        """

    @abstractmethod
    def _want(self, channel: Channel) -> None:
        """Ask for a channel that is new, if there is a connection."""

    @abstractmethod
    def _unwant(self, number: int) -> None:
        """Nobody takes from the channel of this number any more."""

    @abstractmethod
    def _want_again(self, channel: Channel, delay_s: float) -> None:
        """Ask for a channel again after a delay, with the place that it has reached."""

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

    # What can be subscribed to

    def trades(self, symbol: str) -> Subscription[Trade]:
        """Every public trade of a market, in order."""
        return self._join(TradesChannel("trades", {"symbol": symbol}), Subscription[Trade])

    def best_prices(self, symbol: str, interval_ms: int = 0) -> Subscription[BestPrices]:
        """Best bid and offer; the newest, at most once per interval (0: at every change)."""
        parameters = {"symbol": symbol, "interval_ms": interval_ms}
        return self._join(LatestChannel("bbo", parameters), Subscription[BestPrices])

    def ticker(self, symbol: str, interval_ms: int = 0) -> Subscription[Ticker]:
        """A market in figures; the newest, at most once per interval."""
        parameters = {"symbol": symbol, "interval_ms": interval_ms}
        return self._join(LatestChannel("ticker", parameters), Subscription[Ticker])

    def candles(
        self, symbol: str, interval: CandleInterval = "1m", interval_ms: int = 250
    ) -> Subscription[Candle]:
        """The newest candles, then every one that closes, and the open one as it changes.

        Each replaces an earlier one of the same `start`: a closed candle may come again when what
        it lacked was found.

        Args:
            interval_ms: How often the open candle is told at most.
        """
        parameters = {"symbol": symbol, "interval": interval, "interval_ms": interval_ms}
        return self._join(CandlesChannel("candles", parameters), Subscription[Candle])

    def status(self, symbol: str) -> Subscription[MarketStatus]:
        """How a market is, whenever that changes."""
        channel = LatestChannel("status", {"symbol": symbol})
        return self._join(channel, Subscription[MarketStatus])

    def book(
        self,
        symbol: str,
        depth: int = 50,
        interval_ms: int = 0,
        on_update: BookListener | None = None,
    ) -> Subscription[Book]:
        """A market's book, kept current: each item is the same `Book` after new changes.

        Args:
            depth: Levels of each side: 5, 10, 20, 50, 100, 500, 1000, or 0 for all.
            on_update: Called after every single update, also those that the loop was too slow
                to see.
        """
        parameters = {"symbol": symbol, "depth": depth, "interval_ms": interval_ms}
        channel = BookChannel("book", parameters)
        known = self._channels.get(channel.key, channel)
        if on_update is not None and isinstance(known, BookChannel):
            known.listeners.add(on_update)
        return self._join(channel, Subscription[Book])

    def account(
        self, account_id: UUID | str, resume: tuple[int, str] | None = None
    ) -> Subscription[AccountSnapshot | Entry]:
        """An account's journal: a snapshot, then every entry once and in order.

        Args:
            resume: `(seq, hash)` of the last entry that was handled, by an earlier run of the
                program perhaps: then it goes on after that, without a snapshot, if the server
                still knows it.

        Raises:
            ValueError: This stream has it already; take from that, or use another stream.
        """
        channel = account_channel(account_id, resume)
        if channel.key in self._channels:
            raise ValueError("this account is subscribed already on this stream")
        return self._join(channel, Subscription[AccountSnapshot | Entry])

    def _join[S: Subscription[Any]](self, channel: Channel, kind: type[S]) -> S:
        if self._error is not None:
            raise self._error
        if self._ended:
            raise Unavailable("the stream is closed")
        known = self._channels.get(channel.key)
        if known is None:
            self._want(channel)
            known = self._channels[channel.key] = channel
            channel.on_gap = self._gap
        taker = kind(known.bound, known.overflow, lambda one: self._leave(known, one))
        known.takers.add(taker)
        if known.latest is not None:
            taker.begin(known.latest)
        return taker

    def _leave(self, channel: Channel, taker: Subscription[Any]) -> None:
        channel.takers.discard(taker)
        if channel.takers or self._channels.get(channel.key) is not channel:
            return
        del self._channels[channel.key]
        number = channel.number
        if number is not None and self._numbers.get(number) is channel:
            del self._numbers[number]
            self._unwant(number)

    def _gap(self, gap: Gap) -> None:
        if self._on_gap is not None:
            told(self._on_gap, gap)

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

    def _disconnected(self) -> None:
        self._numbers.clear()
        for channel in self._channels.values():
            channel.lost()

    def _end_all(self, error: Exception | None) -> None:
        for channel in list(self._channels.values()):
            for taker in list(channel.takers):
                taker.end(error)
        self._channels.clear()

    # Hearing

    async def _take(self, message: dict[str, Any]) -> None:
        """Hand a message of a channel to it."""
        channel = self._numbers.get(message.get("ch", -1))
        if channel is None or channel.waiting:
            return
        try:
            fits = await channel.take(message)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ProtocolError(f"a message of {channel.name} is not understood") from error
        if fits:
            self._nonsense = 0
            return
        channel.waiting = True
        # At once the first time; a channel that never fits must not keep the server busy.
        channel.repairs += 1
        first = channel.backoff.attempts == 0
        delay_s = channel.backoff.next_s()
        self._want_again(channel, 0.0 if first else delay_s)

    def _subscribed(self, channels: list[Channel], answers: Any) -> None:
        """Take the answers to what was asked, one for each channel."""
        if not isinstance(answers, list) or len(answers) != len(channels):
            raise ProtocolError("subbed does not answer what was asked")
        for channel, answer in zip(channels, answers, strict=True):
            current = self._channels.get(channel.key)
            if isinstance(answer.get("error"), dict):
                self._denied(channel, answer["error"])
            elif not isinstance(answer.get("ch"), int):
                raise ProtocolError("a subscription has no number")
            elif current is channel:
                channel.confirmed(answer, self._epoch)
                self._numbers[answer["ch"]] = channel
            elif current is None:  # left in the meantime
                self._unwant(answer["ch"])

    def _denied(self, channel: Channel, error: dict[str, Any]) -> None:
        """A channel was refused, now or for good."""
        if error.get("temporary"):
            after_s = float(error.get("retry_after_ms") or 500) / 1000
            self._want_again(channel, channel.backoff.next_s(min(60.0, after_s)))
            return
        if self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
        for taker in list(channel.takers):
            taker.end(Refused(str(error.get("code")), str(error.get("msg"))))

    def _going_away(self, message: dict[str, Any]) -> None:
        """The server is about to close, and says when to come back."""
        after_ms = message.get("reconnect_after_ms")
        known = isinstance(after_ms, int | float) and after_ms >= 0
        self._patience.drain_s = min(60.0, float(after_ms or 0) / 1000) if known else 0.0

    def _access_ended(self, message: dict[str, Any]) -> bool:
        """Take an error about one channel; False when it is about none of ours."""
        channel = self._numbers.pop(message.get("ch", -1), None)
        if channel is not None:
            self._denied(channel, {**message, "temporary": False})
        return channel is not None

    def _help(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the reading; that the connection ends is no news here."""

        async def quietly() -> None:
            with contextlib.suppress(Lost):
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)
