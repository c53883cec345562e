"""One client's conversation on the stream: what it may say, and what it is answered.

The receiving side only checks a message and queues it (`Session.heard` never waits); a worker
carries the messages out in order, so that a slow database never keeps the connection from being
read, and answers come in the order of the questions.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import structlog
from prometheus_client import Counter

from tbot import __version__
from tbot.auth import flow as auth_flow
from tbot.auth.flow import Principal
from tbot.auth.tokens import TOKEN_BYTES_MAX
from tbot.core import clock
from tbot.core.errors import AuthError, Unavailable
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.chain import HASH_PREFIX_DIGITS
from tbot.market.channels import CHANNELS, Channel, Denied, wanted
from tbot.market.subscribers import Output, Subscriber
from tbot.market.topics import Frame, Topic
from tbot.web.ownership import may_listen
from tbot.web.stream_account import (
    PrivateStream,
    read_snapshot,
    snapshot_frame,
)
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
    FULL,
    OFFENCES_MAX,
    PROTOCOL,
    WAITING_MAX,
    Meter,
    denial_of,
    id_of,
    is_wish,
    problem,
    resume_of,
    uuid_of,
)

if TYPE_CHECKING:
    from tbot.web.stream import Streams

_log = structlog.get_logger(__name__)

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_received_total = Counter("tbot_stream_received", "Messages from clients.", ["op"])


class Session:
    """One connection after its handshake.

    Args:
        streams: What all sessions of the process share.
        output: Where frames go.
    """

    __slots__ = (
        "_introduced", "_meter", "_offences", "_private", "_streams", "_waiting", "_working",
        "address", "principal", "subscriber",
    )  # fmt: skip

    def __init__(self, streams: Streams, output: Output, address: str) -> None:
        self._streams = streams
        self.address = address
        self.principal: Principal | None = None
        self.subscriber = Subscriber(streams.hub, output, self._closed, self._deadline)
        self._private: dict[int, PrivateStream] | None = None
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
            "protocol": PROTOCOL,
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
        if text is None:
            self._break_off("this protocol has text messages only")
            return
        if len(text) > self._streams.settings.message_bytes_max:
            self.subscriber.close(1009, "message too large")
            return
        try:
            message = _decode(text)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            self._break_off("a message is one JSON object")
            return
        channels = message.get("channels")
        extra = len(channels) // CHANNELS_PER_MESSAGE if isinstance(channels, list) else 0
        wait_s = self._meter.take(self._streams.hub.now(), 1 + extra)
        waiting = self._waiting
        if wait_s > 0 or (waiting is not None and len(waiting) >= WAITING_MAX):
            self._offended(message, max(wait_s, 0.1))
            return
        op = message.get("op")
        _received_total.labels(op if op in ("auth", "sub", "unsub", "ping") else "other").inc()
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

    def _offended(self, message: dict[str, Any], wait_s: float) -> None:
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
                    await self._sub(message)
                case "unsub":
                    self._unsub(message)
                case "ping":
                    self.subscriber.tell({"op": "pong", **id_of(message)})
                case _:
                    self._tell_problem("unknown_op", "op is auth, sub, unsub or ping", message)
        except (*DATABASE_FAULTS, Unavailable) as error:
            _log.warning("stream_unavailable", op=op, error=repr(error))
            why = "temporarily unavailable"
            told = problem("unavailable", why, message, temporary=True, retry_after_s=1.0)
            if self.principal is None:
                self.subscriber.close(CLOSE_UNAVAILABLE, why, told)
            else:
                self.subscriber.tell(told)

    def _tell_problem(self, code: str, why: str, message: dict[str, Any]) -> None:
        self.subscriber.tell(problem(code, why, message))

    async def _auth(self, message: dict[str, Any]) -> None:
        token = message.get("token")
        try:
            if not isinstance(token, str) or len(token) > TOKEN_BYTES_MAX:
                raise AuthError("token must be an access token")
            principal = await auth_flow.authenticate(self._streams.auth, token, self.address)
        except AuthError as error:
            last = problem("invalid_token", str(error), message)
            if self.principal is None:
                self.subscriber.close(CLOSE_AUTH_FAILED, "the token is not good", last)
            else:
                self.subscriber.tell(last)  # the token it came with still counts
            return
        if self.subscriber.closing:
            return
        before = self.principal
        if before is not None and before.user_id != principal.user_id:
            self._tell_problem("user_mismatch", "the token is another user's", message)
            return
        if any(channel.scope not in principal.scopes for channel in self._channels()):
            self._tell_problem(
                "insufficient_scope", "the token does not cover the subscriptions", message
            )
            return
        if before is None and not self._streams.admit(self, principal.user_id):
            why = "too many connections of this user"
            self.subscriber.close(CLOSE_CLIENTS, why, problem("too_many_clients", why, message))
            return
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

    async def _sub(self, message: dict[str, Any]) -> None:
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
        starts: list[tuple[Topic, int | None] | tuple[PrivateStream, list[Frame]]] = []
        taken = set(self.subscriber.subscriptions) | set(self._private or ())
        try:
            for request in requests:
                answer, start = await self._one(request, full=len(taken) >= room)
                answers.append(answer)
                if start is not None:
                    taken.add(answer["ch"])
                    starts.append(start)
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

    async def _one(
        self, request: Any, full: bool
    ) -> tuple[dict[str, Any], tuple[Topic, int | None] | tuple[PrivateStream, list[Frame]] | None]:
        """Check one wish; what to answer and what to start."""
        found = CHANNELS.get(request.get("channel")) if is_wish(request) else None
        if found is None:
            return denial_of(Denied("unknown_channel", f"channels are {', '.join(CHANNELS)}")), None
        assert self.principal is not None
        if found.scope not in self.principal.scopes:
            return denial_of(Denied("insufficient_scope", f"needs the scope {found.scope}")), None
        if found.private:
            return await self._private_wish(found, request, full)
        wish = wanted(found, request)
        topic = wish if isinstance(wish, Denied) else self._streams.market.topic(wish)
        if isinstance(topic, Denied):
            return denial_of(topic), None
        if full and topic.number not in self.subscriber.subscriptions:
            return denial_of(FULL), None
        answer = {"ch": topic.number, "channel": found.name, **topic.parameters}
        cursor: int | None = None
        resume = request.get("resume")
        if resume is not None:
            cursor = self._resumed(topic, resume)
            answer["recovered"] = cursor is not None
        return answer, (topic, cursor)

    def _resumed(self, topic: Topic, resume: Any) -> int | None:
        """The number to go on after, if the topic still is the one that the client knows."""
        if not isinstance(resume, dict) or resume.get("epoch") != self._streams.epoch:
            return None
        seq = resume.get("seq")
        if resume.get("ch") != topic.number or not isinstance(seq, int):
            return None
        return seq if topic.holds_after(seq) else None

    async def _private_wish(
        self, channel: Channel, request: dict[str, Any], full: bool
    ) -> tuple[dict[str, Any], tuple[PrivateStream, list[Frame]] | None]:
        unknown = sorted(set(request) - {"channel", "account_id", "resume"})
        if unknown:
            return denial_of(Denied("bad_parameter", f"no such parameter: {unknown[0]:.40}")), None
        account_id = uuid_of(request.get("account_id"))
        assert self.principal is not None
        pool, journal = self._streams.pool, self._streams.journal
        if account_id is None or not await may_listen(pool, self.principal, account_id):
            return denial_of(Denied("not_found", "no such account, or it is not yours")), None
        mine = (self._private or {}).values()
        if full and not any(one.account_id == account_id for one in mine):
            return denial_of(FULL), None
        resume = request.get("resume")
        place = None
        answer: dict[str, Any] = {"channel": channel.name, "account_id": str(account_id)}
        if resume is not None:
            seq, prefix = resume_of(resume)
            if prefix is None:
                hint = f"resume is seq and hash, the first {HASH_PREFIX_DIGITS} hex digits"
                return denial_of(Denied("bad_parameter", hint)), None
            place = await journal.find(account_id, seq, prefix)
            answer["recovered"] = place is not None
        data = None
        if place is None:
            place, data = await read_snapshot(pool, account_id)
        number = self._streams.hub.private_number(account_id)
        stream = PrivateStream(journal, self.subscriber, account_id, number, place)
        first = [] if data is None else [snapshot_frame(number, place, data)]
        return {"ch": number, **answer}, (stream, first)

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
        if not isinstance(numbers, list):
            self._tell_problem("bad_parameter", "chs must be a list of numbers", message)
            return
        ended: dict[int, Topic | None] = {}
        for number in numbers:
            if not isinstance(number, int) or number in ended:
                continue
            topic = self.subscriber.subscriptions.get(number)
            private = self._private.pop(number, None) if self._private else None
            if private is not None:
                self._end(private)
            if topic is not None or private is not None:
                ended[number] = topic
        topics = [topic for topic in ended.values() if topic is not None]
        self._streams.hub.unsubscribe(self.subscriber, topics)
        self.subscriber.tell({"op": "unsubbed", **id_of(message), "chs": list(ended)})

    # The end

    def _closed(self) -> None:
        """The connection ends, whoever ended it."""
        self._waiting = None
        for stream in (self._private or {}).values():
            self._end(stream)
        self._private = None
        self._streams.dismiss(self)
