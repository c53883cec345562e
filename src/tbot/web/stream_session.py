"""One client's conversation on the stream: what it may say, and what it is answered.

The receiving side only checks a message and queues it (`Session.heard` never waits); a worker
carries the messages out in order, so that a slow database never keeps the connection from being
read, and answers come in the order of the questions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any
from uuid import UUID

import structlog
from prometheus_client import Counter

from tbot import __version__
from tbot.auth import flow as auth_flow
from tbot.auth import tickets
from tbot.auth.flow import Principal
from tbot.auth.tokens import TOKEN_BYTES_MAX
from tbot.core import clock
from tbot.core.errors import AuthError, Unavailable
from tbot.db.pool import DATABASE_FAULTS
from tbot.market.channels import CHANNELS, EVERY, Channel
from tbot.market.subscribers import Output, Subscriber
from tbot.market.topics import JSON, Codec, Frame, Topic
from tbot.web.stream_account import PrivateStream
from tbot.web.stream_wishes import Start, Wishes
from tbot.web.stream_words import (
    CHANNELS_PER_MESSAGE,
    CLOSE_AUTH_EXPIRED,
    CLOSE_AUTH_FAILED,
    CLOSE_AUTH_TIMEOUT,
    CLOSE_CLIENTS,
    CLOSE_PROTOCOL,
    CLOSE_RATE,
    CLOSE_SESSION_OVER,
    CLOSE_UNAVAILABLE,
    OFFENCES_MAX,
    OPS,
    ORDER_OPS,
    WAITING_MAX,
    Malformed,
    Meter,
    id_of,
    orders_per_message,
    problem,
    read,
)

if TYPE_CHECKING:
    from tbot.web.stream import Streams
    from tbot.web.stream_orders import OrderLine

_log = structlog.get_logger(__name__)

_received_total = Counter("tbot_stream_received", "Messages from clients.", ["op"])


class Session:
    """One connection after its handshake.

    Args:
        streams: What all sessions of the process share.
        output: Where frames go.
        codec: Of the protocol that was agreed on.
    """

    __slots__ = (
        "_introduced", "_meter", "_offences", "_orders", "_private", "_streams", "_waiting",
        "_working",
        "address", "principal", "subscriber",
    )  # fmt: skip

    def __init__(self, streams: Streams, output: Output, address: str, codec: Codec = JSON) -> None:
        self._streams = streams
        self.address = address
        self.principal: Principal | None = None
        self.subscriber = Subscriber(streams.hub, output, self._closed, self._deadline)
        self.subscriber.codec = codec
        self._private: dict[int, PrivateStream] | None = None
        self._orders: OrderLine | None = None
        self._meter = Meter(streams.settings.messages_per_s_max)
        self._offences = 0
        self._waiting: deque[dict[str, Any]] | None = None
        self._working = False
        self._introduced = False
        streams.hub.add(self.subscriber)
        self._expect(streams.settings.auth_timeout_s)
        self.subscriber.tell(self._hello())

    def _expect(self, within_s: float) -> None:
        """Set the deadline: for the first message, and then for a fresh token."""
        self.subscriber.deadline_at = self._streams.hub.now() + within_s
        self._streams.hub.look_at(self.subscriber)

    def _deadline(self) -> None:
        if self.principal is None:
            if not self._introduced:
                self._too_late()
            return
        left_s = self.principal.expires_at_s - time.time()
        if left_s > 0:  # the wall clock was set back
            self.subscriber.deadline_at = self._streams.hub.now() + left_s
        else:
            self._expired()

    def _hello(self) -> dict[str, Any]:
        settings = self._streams.settings
        return {
            "op": "hello",
            "protocol": self.subscriber.codec.protocol,
            "version": __version__,
            "epoch": self._streams.epoch,
            "at": clock.stamp(clock.utc_now()),
            "channels": list(CHANNELS),
            "limits": {
                "auth_timeout_s": settings.auth_timeout_s,
                "subscriptions": settings.subscriptions_max,
                "message_bytes": settings.message_bytes_max,
                "messages_per_s": settings.messages_per_s_max,
                "heartbeat_s": settings.heartbeat_s,
                "orders_per_s": settings.orders_per_s_max,
                "orders_per_message": orders_per_message(settings),
                "orders_in_flight": settings.orders_in_flight_max,
            },
        }

    # Hearing: never waits

    def lost(self) -> None:
        """The peer closed the connection, or it broke."""
        self.subscriber.gone()

    def heard(self, text: str | None, data: bytes = b"") -> None:
        """Take one message; `text` is None for a binary one."""
        if self.subscriber.closing:
            return
        codec = self.subscriber.codec
        if codec.binary != (text is None):
            kind = "binary" if codec.binary else "text"
            self._break_off(f"this protocol has {kind} messages only")
            return
        raw = data if text is None else text
        if len(raw) > self._streams.settings.message_bytes_max:
            self.subscriber.close(1009, "message too large")
            return
        try:
            message = read(codec, raw)
        except Malformed:
            what = "msgpack map of JSON types" if codec.binary else "JSON object"
            self._break_off(f"a message is one {what}")
            return
        op = message.get("op")
        if op in ORDER_OPS and self.principal is not None:
            _received_total.labels(op).inc()
            self._order(message)
            return
        channels = message.get("channels")
        extra = len(channels) // CHANNELS_PER_MESSAGE if isinstance(channels, list) else 0
        wait_s = self._meter.take(self._streams.hub.now(), 1 + extra)
        waiting = self._waiting
        if wait_s > 0 or (waiting is not None and len(waiting) >= WAITING_MAX):
            self.offended(message, max(wait_s, 0.1))
            return
        _received_total.labels(op if op in OPS else "other").inc()
        if not self._introduced:
            if op != "auth":
                self._refuse_first(message)
                return
            # It kept its time: how long checking takes is our affair.
            self._introduced = True
        if waiting is None:
            waiting = self._waiting = deque()
        waiting.append(message)
        if not self._working:
            self._working = True
            self._streams.tasks.start(self._work(), "session")

    def _break_off(self, why: str) -> None:
        self.subscriber.close(CLOSE_PROTOCOL, why, problem("malformed", why))

    def _refuse_first(self, message: dict[str, Any]) -> None:
        why = "the first message must be auth"
        last = problem("unauthenticated", why, message)
        self.subscriber.close(CLOSE_AUTH_FAILED, why, last)

    def offended(self, message: dict[str, Any], wait_s: float) -> None:
        """Tell that a message came too fast, and close when that goes on."""
        self._offences += 1
        why = "messages come too fast; this one was ignored"
        told = problem("rate_limited", why, message, temporary=True, retry_after_s=wait_s)
        if self._offences > OFFENCES_MAX:
            self.subscriber.close(CLOSE_RATE, "messages come too fast", told)
        else:
            self.subscriber.tell(told)

    def _too_late(self) -> None:
        why = "no auth message in time"
        self.subscriber.close(CLOSE_AUTH_TIMEOUT, why, problem("auth_timeout", why))

    def _expired(self) -> None:
        why = "the access token has expired"
        last = problem("token_expired", why, temporary=True)
        self.subscriber.close(CLOSE_AUTH_EXPIRED, why, last)

    def end_session(self) -> None:
        """The login session is over: logged out, or its password changed."""
        why = "the login session is over"
        self.subscriber.close(CLOSE_SESSION_OVER, why, problem("session_over", why))

    def listens_to(self) -> list[UUID]:
        """The accounts whose private streams it has."""
        return [stream.account_id for stream in (self._private or {}).values()]

    def end_account(self, account_id: UUID) -> None:
        """The account is not the user's to read any more: its stream ends, the others go on."""
        for number, stream in list((self._private or {}).items()):
            if stream.account_id == account_id and self._private is not None:
                del self._private[number]
                self._end(stream)
                why = "the account is not shared with you any more"
                self.subscriber.tell({**problem("access_ended", why), "ch": number})

    # Carrying out, in order

    async def _work(self) -> None:
        try:
            while self._waiting and not self.subscriber.closing:
                await self._carry_out(self._waiting.popleft())
        finally:
            self._working = False
            self._waiting = None

    async def _carry_out(self, message: dict[str, Any]) -> None:
        op = message.get("op")
        if self.principal is None and op != "auth":
            self._refuse_first(message)
            return
        try:
            match op:
                case "auth":
                    await self._auth(message)
                case "sub":
                    await self.sub(message)
                case "unsub":
                    self._unsub(message)
                case "ping":
                    self.subscriber.tell({"op": "pong", **id_of(message)})
                case _ if op in ORDER_OPS:
                    self._order(message)
                case _:
                    self._tell_problem("unknown_op", f"op is one of {', '.join(OPS)}", message)
        except (*DATABASE_FAULTS, Unavailable) as error:
            _log.warning("stream_unavailable", op=op, error=repr(error))
            why = "temporarily unavailable"
            told = problem("unavailable", why, message, temporary=True, retry_after_s=1.0)
            if self.principal is None:
                self.subscriber.close(CLOSE_UNAVAILABLE, why, told)
            else:
                self.subscriber.tell(told)
        except Exception:  # noqa: BLE001 - logged, and the connection ends
            # A bug, but the client must not wait for an answer for ever.
            _log.exception("stream_message_failed", op=op)
            self.subscriber.close(1011, "something went wrong on our side")

    def _order(self, message: dict[str, Any]) -> None:
        """Begin what a message asks of the order desk; it answers when it is done."""
        if self._orders is None:
            if self._streams.orders is None:
                self._tell_problem("unknown_op", "no orders are taken here", message)
                return
            self._orders = self._streams.orders.line(self)
        self._orders.take(message)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that belongs to this connection but outlives it: it ends by itself."""
        self._streams.tasks.start(work, "order")

    def _tell_problem(self, code: str, why: str, message: dict[str, Any]) -> None:
        self.subscriber.tell(problem(code, why, message))

    async def _auth(self, message: dict[str, Any]) -> None:
        try:
            principal = await self._principal(message)
        except AuthError as error:
            last = problem("invalid_token", str(error), message)
            if self.principal is None:
                self.subscriber.close(CLOSE_AUTH_FAILED, "the token is not good", last)
            else:
                self.subscriber.tell(last)  # the token it came with still counts
            return
        self.enter(principal, message)

    async def _principal(self, message: dict[str, Any]) -> Principal:
        """Who an `auth` message says it is.

        Raises:
            AuthError: It does not say so convincingly.
        """
        token, ticket = message.get("token"), message.get("ticket")
        if ticket is not None:
            if not isinstance(ticket, str) or token is not None:
                raise AuthError("auth has a token or a ticket")
            return await tickets.redeem(self._streams.auth, ticket)
        if not isinstance(token, str) or len(token) > TOKEN_BYTES_MAX:
            raise AuthError("token must be an access token")
        return await auth_flow.authenticate(self._streams.auth, token, self.address)

    def enter(self, principal: Principal, message: dict[str, Any]) -> None:
        """Log in, or go on with a fresh token; answered with `authed`, or closed.

        Args:
            message: What it answers.
        """
        if self.subscriber.closing:
            return
        self._introduced = True
        before = self.principal
        if before is not None and before.user_id != principal.user_id:
            self._tell_problem("user_mismatch", "the token is another user's", message)
            return
        if any(channel.scope not in principal.scopes for channel in self._channels()):
            self._tell_problem(
                "insufficient_scope", "the token does not cover the subscriptions", message
            )
            return
        if before is None and not self._streams.admission.admit(principal.user_id):
            why = "too many connections of this user"
            self.subscriber.close(CLOSE_CLIENTS, why, problem("too_many_clients", why, message))
            return
        if before is None:
            self._streams.admission.known()
        self.principal = principal
        self._expect(max(0.0, principal.expires_at_s - time.time()))
        if self.subscriber.closing:
            return
        expires_at = clock.from_ms(principal.expires_at_s * 1000)
        self.subscriber.tell(
            {
                "op": "authed",
                **id_of(message),
                "user": str(principal.user_id),
                "scopes": sorted(principal.scopes),
                "expires_at": clock.stamp(expires_at),
            }
        )

    def _channels(self) -> set[Channel]:
        names = {topic.channel for topic in self.subscriber.subscriptions.values()}
        if self._private:
            names.add("account")
        return {CHANNELS[name] for name in names}

    async def sub(self, message: dict[str, Any]) -> None:
        """Subscribe to what a message asks for."""
        requests = message.get("channels")
        if not isinstance(requests, list) or not requests:
            self._tell_problem("bad_parameter", "channels must be a list of channels", message)
            return
        room = self._streams.settings.subscriptions_max
        if len(requests) > room:
            why = f"a connection has at most {room} subscriptions"
            self._tell_problem("too_many_subscriptions", why, message)
            return
        answers: list[dict[str, Any]] = []
        starts: list[Start] = []
        assert self.principal is not None
        wishes = Wishes(self._streams, self.subscriber, self.principal, self._private or {})
        taken = set(self.subscriber.subscriptions) | set(self._private or ())
        try:
            for request in requests:
                answer, begun = await wishes.check(request, taken)
                answers.append(answer)
                taken.update(what.number for what, _ in begun)
                starts += begun
        except BaseException:
            for what, _ in starts:
                if isinstance(what, PrivateStream):
                    self._end(what)
            raise
        # Nothing is sent in between, and answers outrank what the channels have to say: so the
        # answer comes first, and after it nothing of what these channels were before.
        topics: list[tuple[Topic, int | None]] = []
        for what, how in starts:
            if isinstance(what, PrivateStream):
                assert isinstance(how, list)
                self._begin(what, how)
            else:
                assert not isinstance(how, list)
                topics.append((what, how))
        self._streams.hub.subscribe(self.subscriber, topics)
        self.subscriber.tell({"op": "subbed", **id_of(message), "subs": answers})

    def _begin(self, stream: PrivateStream, first: list[Frame]) -> None:
        if self._private is None:
            self._private = {}
        before = self._private.pop(stream.number, None)
        if before is not None:
            self._end(before)
        if self.subscriber.closing:
            self._end(stream)
            return
        self._private[stream.number] = stream
        self._streams.tasks.start(stream.run(first), "account")

    def _end(self, stream: PrivateStream) -> None:
        stream.stop()
        self._streams.hub.release(stream.account_id)

    def _unsub(self, message: dict[str, Any]) -> None:
        numbers = message.get("chs")
        if numbers == EVERY:
            numbers = [*self.subscriber.subscriptions, *(self._private or ())]
        if not isinstance(numbers, list):
            self._tell_problem("bad_parameter", "chs must be a list of numbers, or *", message)
            return
        ended: dict[int, Topic | None] = {}
        unknown: list[Any] = []
        for number in numbers:
            if not isinstance(number, int) or abs(number) >= 1 << 53:
                unknown.append(number if isinstance(number, str) else None)
                continue
            if number in ended:
                continue
            topic = self.subscriber.subscriptions.get(number)
            private = self._private.pop(number, None) if self._private else None
            if private is not None:
                self._end(private)
            if topic is not None or private is not None:
                ended[number] = topic
            else:
                unknown.append(number)
        topics = [topic for topic in ended.values() if topic is not None]
        self._streams.hub.unsubscribe(self.subscriber, topics)
        answer = {"op": "unsubbed", **id_of(message), "chs": list(ended)}
        self.subscriber.tell(answer | ({"unknown": unknown} if unknown else {}))

    # The end

    def _closed(self) -> None:
        """The connection ends, whoever ended it."""
        self._waiting = None
        for stream in (self._private or {}).values():
            self._end(stream)
        self._private = None
        if self._orders is not None:
            self._orders.end()
        self._streams.dismiss(self)
