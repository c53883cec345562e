"""What can be subscribed to: the same over a WebSocket and over events.

A stream knows its channels, whichever connection it has. How something is asked for on it is the
transport's: `streams` and `events`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

from tbot.client.book import Book
from tbot.client.candles import CandleInterval, CandlesChannel
from tbot.client.channels import (
    BookChannel,
    BookListener,
    Channel,
    LatestChannel,
    TradesChannel,
    account_channel,
)
from tbot.client.errors import ProtocolError, Refused, Unavailable
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
from tbot.client.staying import Credentials, Staying, Timing
from tbot.client.subscription import Subscription, told

MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024

type GapListener = Callable[[Gap], None]


class Subscribing(Staying):
    """A stream, whatever carries it.

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
        super().__init__(tokens, on_close, timing)
        self._on_gap = on_gap
        self._channels: dict[tuple[Any, ...], Channel] = {}
        self._numbers: dict[int, Channel] = {}

    # What a transport does

    @abstractmethod
    def _want(self, channel: Channel) -> None:
        """Ask for a channel that is new, if there is a connection."""

    @abstractmethod
    def _unwant(self, number: int) -> None:
        """Nobody takes from the channel of this number any more."""

    @abstractmethod
    def _want_again(self, channel: Channel, delay_s: float) -> None:
        """Ask for a channel again after a delay, with the place that it has reached."""

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
        taker = kind(
            known.bound,
            known.overflow,
            lambda one: self._leave(known, one),
            lambda: self._room(known),
        )
        known.takers.add(taker)
        if known.latest is not None:
            taker.put(known.latest)
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

    def _park(self, channel: Channel) -> None:
        """Its program is slow: the server keeps what comes, until there is room for it here."""
        channel.parked = channel.waiting = True
        number = channel.number
        if number is not None and self._numbers.get(number) is channel:
            del self._numbers[number]
            self._unwant(number)

    def _room(self, channel: Channel) -> None:
        """Its program has taken enough to go on, if that is what it waits for."""
        if channel.parked and self._channels.get(channel.key) is channel:
            channel.parked = False
            self._want_again(channel, 0.0)

    def _wanted(self) -> list[Channel]:
        """What a new connection is to ask for."""
        return [channel for channel in self._channels.values() if not channel.parked]

    def _gap(self, gap: Gap) -> None:
        if self._on_gap is not None:
            told(self._on_gap, gap)

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

    def _take(self, message: dict[str, Any]) -> None:
        """Hand a message of a channel to it."""
        channel = self._numbers.get(message.get("ch", -1))
        if channel is None or channel.waiting:
            return
        try:
            fits = channel.take(message)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ProtocolError(f"a message of {channel.name} is not understood") from error
        if fits:
            self._nonsense = 0
            if channel.full:
                self._park(channel)
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

    def _access_ended(self, message: dict[str, Any]) -> bool:
        """Take an error about one channel; False when it is about none of ours."""
        channel = self._numbers.pop(message.get("ch", -1), None)
        if channel is not None:
            self._denied(channel, {**message, "temporary": False})
        return channel is not None
