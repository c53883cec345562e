"""A stream that stays: it reconnects, subscribes again and goes on where it was.

After a loss it comes back at once where the server said so (close codes 42xx), else after a delay
with full jitter; it gives up only where coming back cannot help (40xx). Market channels begin again
with a snapshot or where they were, private ones resume by sequence and hash: nothing is missed
silently, nothing comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any, Final, Self
from uuid import UUID

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tbot.client.backoff import FullJitter
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
)
from tbot.client.errors import (
    ProtocolError,
    Refused,
    StreamClosed,
    TBotError,
    Unavailable,
)
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
from tbot.client.ordering import ConnectionLost, Ordering
from tbot.client.tokens import TokenKeeper

PROTOCOL: Final = "tbot.v1.json"
PROTOCOL_PACKED: Final = "tbot.v1.msgpack"
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
CONNECT_TIMEOUT_S: Final = 10.0
CHANNELS_PER_MESSAGE: Final = 20
STABLE_AFTER_S: Final = 10.0
"""A connection that lasted this long makes the next delay short again."""
AT_ONCE_MAX: Final = 3
"""How often in a row it comes back without delay; a server in a loop is not helped by more."""
HEARTBEAT_S: Final = 15.0

CLOSE_AUTH_EXPIRED: Final = 4103

type GapListener = Callable[[Gap], None]


class Stream(Ordering):
    """A connection to `/v1/stream`; use it as an async context manager.

    Args:
        base_url: Of the server.
        tokens: Gives access tokens.
        on_gap: Called whenever something was missed on a public channel.
        on_close: Called once, at the end.
        packed: Whether messages are in msgpack: smaller, and quicker to read.
    """

    def __init__(
        self,
        base_url: str,
        tokens: TokenKeeper,
        on_gap: GapListener | None,
        on_close: Callable[[Stream], None],
        packed: bool = False,
    ) -> None:
        super().__init__()
        self._packed = packed
        self._online = asyncio.Event()
        scheme, _, rest = base_url.partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/stream"
        self._tokens = tokens
        self._on_gap = on_gap
        self._on_close = on_close
        self._channels: dict[tuple[Any, ...], Channel] = {}
        self._numbers: dict[int, Channel] = {}
        self._asked: dict[int, list[Channel]] = {}
        self._next_id = 0
        self._socket: ClientConnection | None = None
        self._epoch = ""
        self._ready = asyncio.Event()
        self._error: Exception | None = None
        self._task: asyncio.Task[None] | None = None
        self._helpers: set[asyncio.Task[None]] = set()
        self._backoff = FullJitter(0.5, 20.0)
        self._at_once = 0
        self._drain_s = 0.0
        self.connections = 0
        """How often it was connected and logged in so far."""

    async def __aenter__(self) -> Self:
        """Connect and log in.

        Raises:
            AuthError: The credentials are not good.
            StreamClosed: The server does not want this client.
        """
        self._task = asyncio.create_task(self._run(), name="tbot-stream")
        await self._ready.wait()
        if self._error is not None:
            await self.close()
            raise self._error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End every subscription and the connection; safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        for helper in list(self._helpers):
            helper.cancel()
        self._online.set()
        self._end_all(None)
        self._on_close(self)

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
        channel = self._channel(BookChannel("book", parameters))
        if on_update is not None:
            channel.listeners.add(on_update)
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

    def _channel[C: Channel](self, channel: C) -> C:
        """The channel of this key that there is already, or this new one."""
        known = self._channels.get(channel.key)
        if known is None:
            known = self._channels[channel.key] = channel
            channel.on_gap = self._gap
            self._ask_soon([channel])
        assert isinstance(known, type(channel))
        return known

    def _join[S: Subscription[Any]](self, channel: Channel, kind: type[S]) -> S:
        if self._error is not None:
            raise self._error
        known = self._channel(channel)
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
        if number is not None and self._numbers.pop(number, None) is not None:
            self._help(self._say({"op": "unsub", "chs": [number]}))

    def _gap(self, gap: Gap) -> None:
        if self._on_gap is not None:
            self._on_gap(gap)

    # Staying connected

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            while error is None:
                delay_s = 0.0
                started_s = time.monotonic()
                try:
                    await self._converse()
                except ConnectionClosed as closed:
                    code = closed.rcvd.code if closed.rcvd is not None else 1006
                    reason = closed.rcvd.reason if closed.rcvd is not None else "connection lost"
                    if time.monotonic() - started_s > STABLE_AFTER_S:
                        self._backoff.reset()
                        self._at_once = 0
                    if 4000 <= code < 4100:
                        error = StreamClosed(code, reason)
                        break
                    delay_s = await self._delay_after(code)
                except InvalidStatus as refused:
                    status = refused.response.status_code
                    if status not in (429, 500, 502, 503, 504):
                        error = StreamClosed(status, "the server refused the connection")
                        break
                    delay_s = self._backoff.next_s(_seconds(refused.response.headers))
                except (OSError, TimeoutError, InvalidHandshake, Unavailable):
                    delay_s = self._backoff.next_s()
                finally:
                    self._disconnected()
                await asyncio.sleep(delay_s)
        except Exception as fatal:  # noqa: BLE001 - whoever takes from the stream must hear of it
            error = fatal
        self._error = error
        self._end_all(error)
        self._ready.set()
        self._online.set()  # who waits for a connection must hear that there will be none

    async def _delay_after(self, code: int) -> float:
        """How long to stay away after a close code."""
        if 4200 <= code < 4300 and self._at_once < AT_ONCE_MAX:
            self._at_once += 1
            drain_s, self._drain_s = self._drain_s, 0.0
            return drain_s
        if code == CLOSE_AUTH_EXPIRED:
            with contextlib.suppress(Unavailable):  # the next attempt tries again
                await self._tokens.renew()
        return self._backoff.next_s()

    def _disconnected(self) -> None:
        self._socket = None
        self._online.clear()
        self._unanswered()
        self._numbers.clear()
        self._asked.clear()
        for channel in self._channels.values():
            channel.lost()

    def _end_all(self, error: Exception | None) -> None:
        for channel in list(self._channels.values()):
            for taker in list(channel.takers):
                taker.end(error)
        self._channels.clear()

    async def _converse(self) -> None:
        """One connection, from its handshake to its end, which is always an exception."""
        token = await self._tokens.get()
        async with connect(
            self._url,
            subprotocols=[PROTOCOL_PACKED if self._packed else PROTOCOL],  # type: ignore[list-item]
            compression=None,
            max_size=MESSAGE_BYTES_MAX,
            open_timeout=CONNECT_TIMEOUT_S,
            close_timeout=1.0,
            ping_interval=HEARTBEAT_S,
            ping_timeout=HEARTBEAT_S,
        ) as socket:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                hello = _parsed(await socket.recv())
                self._epoch = str(hello.get("epoch", ""))
                await socket.send(self._written({"op": "auth", "id": 0, "token": token}))
                while (message := _parsed(await socket.recv()))["op"] != "authed":
                    if message["op"] == "error" and message.get("code") == "invalid_token":
                        # Perhaps it ended a moment ago; if a new one is no better, login says so.
                        await self._tokens.get(stale=token)
                        raise Unavailable("the access token was not accepted")
            self._socket = socket
            self._online.set()
            self.connections += 1
            self._ready.set()
            renewing = asyncio.create_task(self._keep_logged_in(socket))
            try:
                await self._ask(list(self._channels.values()))
                while True:
                    await self._heard(_parsed(await socket.recv()))
            finally:
                renewing.cancel()

    async def _keep_logged_in(self, socket: ClientConnection) -> None:
        """Show a fresh token before the one in use ends."""
        while (renew_in_s := self._tokens.renew_in_s) != float("inf"):
            await asyncio.sleep(max(1.0, renew_in_s))
            try:
                token = await self._tokens.get()
                await socket.send(self._written({"op": "auth", "id": 0, "token": token}))
            except (TBotError, ConnectionClosed):
                return  # the server will close the connection, and then all is tried again

    # Hearing

    async def _heard(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "snap" | "delta" | "gap":
                channel = self._numbers.get(message.get("ch", -1))
                if channel is not None and not channel.waiting:
                    await self._taken(channel, message)
            case "subbed":
                self._subscribed(message)
            case "placed" | "cancel_requested":
                self._answered(message)
            case "error":
                if not self._answered(message):
                    self._refused(message)
            case "drain":
                self._drain_s = min(60.0, float(message.get("reconnect_after_ms", 0)) / 1000)

    async def _taken(self, channel: Channel, message: dict[str, Any]) -> None:
        try:
            fits = await channel.take(message)
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(f"a message of {channel.name} is not understood") from error
        if not fits:
            channel.waiting = True
            # At once the first time; a channel that never fits must not keep the server busy.
            first = channel.backoff.attempts == 0
            delay_s = channel.backoff.next_s()
            delay_s = 0.0 if first else delay_s
            self._help(self._ask_again([channel], delay_s))

    def _subscribed(self, message: dict[str, Any]) -> None:
        channels = self._asked.pop(message.get("id", -1), [])
        for channel, answer in zip(channels, message.get("subs", []), strict=False):
            if "error" in answer:
                self._denied(channel, answer["error"])
            elif self._channels.get(channel.key) is channel:
                channel.confirmed(answer, self._epoch)
                self._numbers[answer["ch"]] = channel

    def _denied(self, channel: Channel, error: dict[str, Any]) -> None:
        if error.get("temporary"):
            self._help(self._ask_again([channel], channel.backoff.next_s(0.5)))
            return
        if self._channels.get(channel.key) is channel:
            del self._channels[channel.key]
        for taker in list(channel.takers):
            taker.end(Refused(str(error.get("code")), str(error.get("msg"))))

    def _refused(self, message: dict[str, Any]) -> None:
        """An error that answers a whole message of ours."""
        channels = self._asked.pop(message.get("id", -1), [])
        after_s = float(message.get("retry_after_ms") or 0) / 1000
        for channel in channels:
            if message.get("temporary"):
                self._help(self._ask_again([channel], channel.backoff.next_s(after_s)))
            else:
                self._denied(channel, message)

    # Asking

    def _written(self, message: dict[str, Any]) -> str | bytes:
        return msgspec.msgpack.encode(message) if self._packed else json.dumps(message)

    async def _say(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            await self._socket.send(self._written(message))

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id

    async def _say_when_connected(self, message: dict[str, Any], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            await self._online.wait()
        if self._socket is None:
            raise self._error or Unavailable("the stream is closed")
        try:
            await self._say(message)
        except ConnectionClosed:
            raise ConnectionLost from None

    async def _ask(self, channels: list[Channel]) -> None:
        for start in range(0, len(channels), CHANNELS_PER_MESSAGE):
            some = channels[start : start + CHANNELS_PER_MESSAGE]
            number = self._number()
            self._asked[number] = some
            wishes = [channel.wish() for channel in some]
            await self._say({"op": "sub", "id": number, "channels": wishes})

    def _ask_soon(self, channels: list[Channel]) -> None:
        if self._socket is not None:
            self._help(self._ask(channels))

    async def _ask_again(self, channels: list[Channel], delay_s: float) -> None:
        socket = self._socket
        await asyncio.sleep(delay_s)
        wanted = [one for one in channels if self._channels.get(one.key) is one]
        if wanted and self._socket is socket:  # a new connection has asked for everything itself
            await self._ask(wanted)

    def _help(self, coroutine: Any) -> None:
        """Run something beside the reading; that the connection ends is no news here."""

        async def quietly() -> None:
            try:
                await coroutine
            except ConnectionClosed:
                return

        task = asyncio.get_running_loop().create_task(quietly())
        self._helpers.add(task)
        task.add_done_callback(self._helpers.discard)


def _parsed(text: str | bytes) -> dict[str, Any]:
    try:
        message = msgspec.msgpack.decode(text) if isinstance(text, bytes) else json.loads(text)
    except ValueError as error:
        raise ProtocolError("a message is not understood") from error
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ProtocolError("a message has no op")
    return message


def _seconds(headers: Any) -> float:
    text = headers.get("Retry-After", "")
    return min(60.0, float(text)) if text.isdecimal() else 0.0
