"""A stream that stays: it reconnects, subscribes again and goes on where it was.

After a loss it comes back at once where the server said so (close codes 42xx), else after a delay
with full jitter; it gives up only where coming back cannot help (40xx). Market channels begin again
with a snapshot or where they were, private ones resume by sequence and hash: nothing is missed
silently, nothing comes twice.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tbot.client.backoff import FullJitter
from tbot.client.channels import Channel
from tbot.client.errors import AuthError, ProtocolError, StreamClosed, Unavailable
from tbot.client.ordering import ConnectionLost, Ordering
from tbot.client.reconnecting import Lost, retry_after_of
from tbot.client.staying import PATIENT, Credentials, Timing
from tbot.client.subscribing import MESSAGE_BYTES_MAX, GapListener, Subscribing

PROTOCOL: Final = "tbot.v1.json"
PROTOCOL_PACKED: Final = "tbot.v1.msgpack"
CHANNELS_PER_MESSAGE: Final = 20
HEARTBEAT_S: Final = 15.0
HEARTBEAT_S_MAX: Final = 60.0
BUSY: Final = (429, 500, 502, 503, 504)
_AUTH_ID: Final = 0


class _Connect(connect):
    """Follows no redirects: the server makes none, and a token must not end up elsewhere."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """Whatever it is, it is the end of this attempt."""
        return exc


class Stream(Subscribing, Ordering):
    """A connection to `/v1/stream`; use it as an async context manager.

    Args:
        base_url: Of the server.
        tokens: Gives access tokens, or tickets.
        on_gap: Called whenever something was missed on a public channel.
        on_close: Called once, at the end.
        packed: Whether messages are in msgpack: smaller, and quicker to read.
        timing: How patient it is.
    """

    def __init__(
        self,
        base_url: str,
        tokens: Credentials,
        on_gap: GapListener | None = None,
        on_close: Callable[[Any], None] | None = None,
        packed: bool = False,
        timing: Timing = PATIENT,
    ) -> None:
        super().__init__(tokens, on_gap, on_close, timing)
        scheme, _, rest = base_url.rstrip("/").partition("://")
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/v1/stream"
        if not urlsplit(self._url).hostname:
            raise ValueError("base_url is http://… or https://…")
        self._packed = packed
        self._online = asyncio.Event()
        self._asked: dict[int, list[Channel]] = {}
        self._next_id = _AUTH_ID
        self._socket: ClientConnection | None = None
        self._heard_at_s = 0.0
        self._clock: tuple[Any, float] = (None, 0.0)
        """What the server's clock said, and when we read it."""
        self._authing: asyncio.Future[dict[str, Any]] | None = None

    def _over(self) -> None:
        super()._over()
        self._online.set()  # who waits for a connection must hear that there will be none

    # One connection

    async def _converse(self) -> None:
        """See `Staying._converse`."""
        token = await self._tokens.get()
        protocol = PROTOCOL_PACKED if self._packed else PROTOCOL
        try:
            async with _Connect(
                self._url,
                subprotocols=[protocol],  # type: ignore[list-item]
                compression=None,
                max_size=MESSAGE_BYTES_MAX,
                open_timeout=self.timing.connect_s,
                close_timeout=1.0,
                ping_interval=None,  # `_keep_alive` does it, as often as the server says
            ) as socket:
                if socket.subprotocol != protocol:
                    raise StreamClosed(1002, f"the server does not speak {protocol}")
                async with asyncio.timeout(self.timing.connect_s):
                    expires_in_s = await self._log_in(socket, token)
                await self._talk(socket, token, expires_in_s)
        except ConnectionClosed as closed:
            raise _lost(closed) from closed
        except InvalidStatus as refused:
            answer = refused.response
            if answer.status_code not in BUSY:
                why = f"the server refused the connection: HTTP {answer.status_code}"
                raise StreamClosed(answer.status_code, why) from refused
            wait_s = retry_after_of(answer.headers.get("Retry-After"), time.time())
            raise Lost(answer.status_code, "the server is busy", wait_s) from refused
        except (OSError, TimeoutError, InvalidHandshake, EOFError) as error:
            raise Lost(1006, f"cannot connect: {error!r}") from error

    async def _log_in(self, socket: ClientConnection, token: str) -> float:
        """Say who we are; how many seconds the token counts, as the server's clock has it."""
        hello = parsed(await socket.recv())
        if hello["op"] != "hello":
            raise ProtocolError("the first message is not hello")
        self._greeted(hello)
        self._clock = (hello.get("at"), time.monotonic())
        auth = {"op": "auth", "id": _AUTH_ID, self._tokens.kind: token}
        await socket.send(self._written(auth))
        while (message := parsed(await socket.recv()))["op"] != "authed":
            if message["op"] == "error" and message.get("code") == "invalid_token":
                await self._token_refused(token, str(message.get("msg")))
                raise Unavailable("the access token was not accepted")
        self._connected(hello)
        return self._expires_in_s(message)

    async def _talk(self, socket: ClientConnection, token: str, expires_in_s: float) -> None:
        self._socket = socket
        self._heard_at_s = time.monotonic()
        self._online.set()
        beside = [
            asyncio.create_task(self._keep_alive(socket)),
            asyncio.create_task(self._keep_logged_in(socket, token, expires_in_s)),
        ]
        try:
            await self._ask(self._wanted())
            while True:
                message = parsed(await socket.recv())
                self._heard_at_s = time.monotonic()
                self._heard(message)
        finally:
            for task in beside:
                task.cancel()

    async def _keep_alive(self, socket: ClientConnection) -> None:
        """Give a connection up that is silent and does not answer pings either."""
        while True:
            every_s = min(HEARTBEAT_S_MAX, self.limit("heartbeat_s", HEARTBEAT_S, 0.1))
            await asyncio.sleep(every_s)
            try:
                pong = asyncio.ensure_future(await socket.ping())
                asked_at_s = time.monotonic()
                while not pong.done():
                    await asyncio.wait((pong,), timeout=every_s)
                    if not pong.done() and self._heard_at_s < asked_at_s:
                        socket.transport.abort()
                        return
                    asked_at_s = time.monotonic()
            except ConnectionClosed:
                return

    async def _keep_logged_in(
        self, socket: ClientConnection, token: str, expires_in_s: float
    ) -> None:
        """Show a fresh token before the one in use ends."""
        backoff = FullJitter(0.5, 10.0)
        while True:
            margin_s = min(30.0, expires_in_s / 5)
            due_s = min(self._tokens.renew_in_s, expires_in_s - margin_s)
            if due_s == float("inf"):
                return
            await asyncio.sleep(max(min(1.0, margin_s), due_s))
            begun_s = time.monotonic()
            try:
                token = await self._tokens.get(stale=token)
                answer = await self._shown(socket, token)
            except Unavailable:
                answer = {}
            except (AuthError, ConnectionClosed):
                return  # the server will close the connection, and then all is tried again
            if answer.get("op") == "authed":
                backoff.reset()
                expires_in_s = self._expires_in_s(answer)
            else:
                await asyncio.sleep(backoff.next_s())
                expires_in_s = max(1.0, expires_in_s - due_s - (time.monotonic() - begun_s))

    def _expires_in_s(self, authed: dict[str, Any]) -> float:
        """How long the token counts by the server's clock; infinite when it does not say."""
        at, read_at_s = self._clock
        try:
            span = datetime.fromisoformat(authed["expires_at"]) - datetime.fromisoformat(at)
        except (KeyError, TypeError, ValueError):
            return float("inf")
        return max(0.0, span.total_seconds() - (time.monotonic() - read_at_s))

    async def _shown(self, socket: ClientConnection, token: str) -> dict[str, Any]:
        """What the server answers to a fresh token; empty when nothing came in time."""
        self._authing = asyncio.get_running_loop().create_future()
        auth = {"op": "auth", "id": _AUTH_ID, self._tokens.kind: token}
        await socket.send(self._written(auth))
        done, _ = await asyncio.wait((self._authing,), timeout=self.timing.answer_s)
        return self._authing.result() if done else {}

    def _disconnected(self) -> None:
        self._socket = None
        self._online.clear()
        self._unanswered()
        self._asked.clear()
        super()._disconnected()

    # Hearing

    def _heard(self, message: dict[str, Any]) -> None:
        match message["op"]:
            case "snap" | "delta" | "gap":
                self._take(message)
            case "subbed":
                channels = self._asked.pop(message.get("id", -1), None)
                if channels is not None:
                    self._subscribed(channels, message.get("subs"))
            case "placed" | "cancel_requested":
                self._answered(message)
            case "authed":
                self._auth_answered(message)
            case "error":
                if message.get("id") == _AUTH_ID:
                    self._auth_answered(message)
                elif not self._answered(message) and not self._access_ended(message):
                    self._refused(message)
            case "drain":
                self._draining(message)

    def _auth_answered(self, message: dict[str, Any]) -> None:
        if self._authing is not None and not self._authing.done():
            self._authing.set_result(message)

    def _draining(self, message: dict[str, Any]) -> None:
        """The server goes away: orders wait for the next connection, which comes soon."""
        self._going_away(message)
        self._online.clear()
        self._abort_later(self.timing.drain_s, lambda: True)

    def _abort_later(self, delay_s: float, wanted: Callable[[], bool]) -> None:
        """Give this connection up after a while, if that is still wanted then."""
        socket = self._socket

        def check() -> None:
            if socket is not None and self._socket is socket and wanted():
                socket.transport.abort()

        asyncio.get_running_loop().call_later(delay_s, check)

    def _refused(self, message: dict[str, Any]) -> None:
        """An error that answers a whole message of ours."""
        for channel in self._asked.pop(message.get("id", -1), []):
            self._denied(channel, message)

    # Asking

    def _written(self, message: dict[str, Any]) -> str | bytes:
        return msgspec.msgpack.encode(message) if self._packed else json.dumps(message)

    async def _say(self, message: dict[str, Any]) -> None:
        if self._socket is not None:
            try:
                await self._socket.send(self._written(message))
            except ConnectionClosed as closed:
                raise _lost(closed) from closed

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
        except Lost:
            raise ConnectionLost from None

    async def _ask(self, channels: list[Channel]) -> None:
        size = int(min(CHANNELS_PER_MESSAGE, self.limit("subscriptions", CHANNELS_PER_MESSAGE)))
        for start in range(0, len(channels), size):
            some = channels[start : start + size]
            number = self._number()
            self._asked[number] = some
            wishes = [channel.wish() for channel in some]
            await self._say({"op": "sub", "id": number, "channels": wishes})
            self._abort_later(self.timing.answer_s, lambda asked=number: asked in self._asked)  # type: ignore[misc]

    def _want(self, channel: Channel) -> None:
        if self._socket is not None:
            self._help(self._ask([channel]))

    def _unwant(self, number: int) -> None:
        self._help(self._say({"op": "unsub", "chs": [number]}))

    def _want_again(self, channel: Channel, delay_s: float) -> None:
        self._help(self._ask_again(channel, delay_s))

    async def _ask_again(self, channel: Channel, delay_s: float) -> None:
        socket = self._socket
        await asyncio.sleep(delay_s)
        # A new connection has asked for everything itself.
        if self._channels.get(channel.key) is channel and self._socket is socket:
            await self._ask([channel])


def _lost(closed: ConnectionClosed) -> Lost:
    """What the end of a connection says; a code that is only our own, or an echo, is a loss."""
    theirs = closed.rcvd
    if theirs is None or closed.rcvd_then_sent is False:
        ours = "" if closed.sent is None else f": {closed.sent.reason}"
        return Lost(1006, f"connection lost{ours}")
    return Lost(theirs.code, theirs.reason)


def parsed(text: str | bytes) -> dict[str, Any]:
    """A message of either protocol.

    Raises:
        ProtocolError: It is none.
    """
    try:
        message = msgspec.msgpack.decode(text) if isinstance(text, bytes) else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("a message is not understood") from error
    if not isinstance(message, dict) or not isinstance(message.get("op"), str):
        raise ProtocolError("a message has no op")
    return message
