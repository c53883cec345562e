"""The stream where WebSockets do not get through: server-sent events, taken the same way.

    async with client.events() as stream:
        async for trade in stream.trades("BTC-USDT"):
            print(trade.price)

What differs: one request carries all channels, so a channel that is added or left makes it ask
again (it goes on where it was, as after a loss); and there are no orders, which go over REST.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Final, Self

import httpx

from tbot.client.channels import Channel
from tbot.client.errors import ProtocolError, StreamClosed, Unavailable
from tbot.client.http import error_of
from tbot.client.reconnecting import Lost, retry_after_of
from tbot.client.sse import Event, EventParser
from tbot.client.staying import PATIENT, Credentials, Timing
from tbot.client.streams import BUSY, HEARTBEAT_S, HEARTBEAT_S_MAX, parsed
from tbot.client.subscribing import MESSAGE_BYTES_MAX, GapListener, Subscribing

CHANNELS_MAX: Final = 32
"""The server takes no more in one request."""
RETRY_S_MAX: Final = 60.0
_MEDIA_TYPE: Final = "text/event-stream"
_SETTLE_S: Final = 0.01
"""Channels that a program adds one after the other go into one request."""


class EventStream(Subscribing):
    """A stream of `/v1/events`; use it as an async context manager.

    It connects when there is something to follow: a refusal is heard by whoever takes items.

    Args:
        http: Sends requests to the server.
        tokens: Gives access tokens, or tickets.
        on_gap: Called whenever something was missed on a public channel.
        on_close: Called once, at the end.
        timing: How patient it is; `open_s` counts for the login alone.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        tokens: Credentials,
        on_gap: GapListener | None = None,
        on_close: Callable[[Any], None] | None = None,
        timing: Timing = PATIENT,
    ) -> None:
        super().__init__(tokens, on_gap, on_close, timing)
        self._http = http
        self._changed = asyncio.Event()
        self._asked: list[Channel] = []
        self._retry_s = 0.0

    async def __aenter__(self) -> Self:
        """Log in.

        Raises:
            AuthError: The credentials are not good.
            Unavailable: The server could not be reached in time.
        """
        if self._tokens.kind == "token":
            try:
                async with asyncio.timeout(self.timing.open_s):
                    await self._tokens.get()
            except TimeoutError:
                raise Unavailable(f"no login within {self.timing.open_s:g} s") from None
        self._start()
        return self

    # One request

    async def _converse(self) -> None:
        """See `Staying._converse`: it ends without an exception when the channels changed."""
        while not self._wanted():
            self._changed.clear()
            await self._changed.wait()
        await asyncio.sleep(_SETTLE_S)
        self._changed.clear()
        changed = asyncio.create_task(self._changed.wait())
        following = asyncio.create_task(self._follow(self._wanted()))
        try:
            await asyncio.wait((changed, following), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (changed, following):
                task.cancel()
            await asyncio.gather(changed, following, return_exceptions=True)
        if not following.cancelled():
            following.result()

    async def _follow(self, channels: list[Channel]) -> None:
        token = await self._tokens.get()
        params = {"channels": ",".join(map(wish_text, channels))}
        headers = {"Accept": _MEDIA_TYPE, "Cache-Control": "no-store"}
        if self._tokens.kind == "ticket":
            params["ticket"] = token
        else:
            headers["Authorization"] = f"Bearer {token}"
        place = place_text(channels)
        if place:
            headers["Last-Event-ID"] = place
        timeout = httpx.Timeout(self.timing.connect_s, read=None)  # `_read` does it
        try:
            async with self._http.stream(
                "GET", "/v1/events", params=params, headers=headers, timeout=timeout
            ) as answer:
                await self._check(answer, token)
                self._asked = channels
                await self._read(answer)
        except httpx.TransportError as error:
            raise Lost(1006, f"connection lost: {error!r}", self._retry_s) from error
        raise Lost(1006, "the events ended", self._retry_s)

    async def _check(self, answer: httpx.Response, token: str) -> None:
        """Whether this is a stream of events at all.

        Raises:
            Lost, StreamClosed, AuthError: It is not.
        """
        status = answer.status_code
        if status == 200:
            if answer.headers.get("Content-Type", "").partition(";")[0].strip() != _MEDIA_TYPE:
                raise StreamClosed(status, f"the server does not send {_MEDIA_TYPE}")
            return
        if status in BUSY:
            wait_s = retry_after_of(answer.headers.get("Retry-After"), time.time())
            raise Lost(status, "the server is busy", max(wait_s, self._retry_s))
        await answer.aread()
        why = str(error_of(answer))
        if status == 401:
            await self._token_refused(token, why)
            raise Unavailable("the access token was not accepted")
        raise StreamClosed(status, why)  # 204 too: the standard has it end an event stream

    async def _read(self, answer: httpx.Response) -> None:
        parser = EventParser(MESSAGE_BYTES_MAX)
        chunks = answer.aiter_bytes()
        while True:
            # Silence is filled with comments: two of them missing is a connection that is dead.
            every_s = min(HEARTBEAT_S_MAX, self.limit("heartbeat_s", HEARTBEAT_S, 0.1))
            try:
                async with asyncio.timeout(2 * every_s + 1):
                    chunk = await anext(chunks, None)
            except TimeoutError:
                raise Lost(1006, "the server is silent", self._retry_s) from None
            if chunk is None:
                return
            for event in parser.feed(chunk):
                self._event(event)
            if parser.retry_s is not None:
                self._retry_s = min(RETRY_S_MAX, parser.retry_s)

    def _event(self, event: Event) -> None:
        if event.name == "close":
            try:
                document = json.loads(event.data)
                code, reason = int(document["code"]), str(document.get("reason", ""))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ProtocolError("an event is not understood") from error
            raise Lost(code, reason, self._retry_s)
        if event.name != "message":
            return
        message = parsed(event.data)
        match message["op"]:
            case "hello":
                self._connected(message)
            case "subbed":
                self._subscribed(self._asked, message.get("subs"))
            case "snap" | "delta" | "gap":
                self._take(message)
            case "error":
                self._access_ended(message)
            case "drain":
                self._going_away(message)

    # Asking is a new request

    def _want(self, channel: Channel) -> None:
        if len(self._channels) >= CHANNELS_MAX:
            raise ValueError(f"a stream of events has at most {CHANNELS_MAX} channels")
        self._changed.set()

    def _unwant(self, number: int) -> None:
        self._changed.set()

    def _want_again(self, channel: Channel, delay_s: float) -> None:
        self._help(self._ask_again(channel, delay_s))

    async def _ask_again(self, channel: Channel, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        if self._channels.get(channel.key) is channel and channel.waiting:
            self._changed.set()


def wish_text(channel: Channel) -> str:
    """A channel as the query has it.

    Example:
        >>> wish_text(Channel("book", {"symbol": "BTC-USDT", "depth": 20}))
        'book:BTC-USDT:depth=20'
    """
    first, *rest = channel.parameters.items()
    return ":".join([channel.name, str(first[1]), *(f"{name}={value}" for name, value in rest)])


def place_text(channels: list[Channel]) -> str:
    """Where the channels are, as the id of an event tells it; empty where none can go on."""
    epoch, places = "", []
    for index, channel in enumerate(channels):
        resume = channel.wish().get("resume")
        if resume is None:
            continue
        epoch = resume.get("epoch", epoch)
        places.append(f"{index}.{resume['seq']}.{resume.get('hash', resume.get('ch'))}")
    return "/".join([epoch, *places]) if places else ""
