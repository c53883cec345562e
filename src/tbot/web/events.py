"""The stream for those who cannot have a WebSocket: `GET /v1/events`, server-sent events.

The same session, channels, sequence numbers and limits as `/v1/stream`; each event's data is the
JSON message that a WebSocket would have carried. What a client would have said is in the request:
who it is (a bearer token, or a ticket in the query), what it wants (`channels`), and where it was
(`Last-Event-ID`, or `last_event_id` in the query for a page that begins anew).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Final

import msgspec
import structlog
from fastapi import Header, Query
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tbot.auth import tickets
from tbot.auth.flow import Principal
from tbot.core.errors import Unavailable
from tbot.db.pool import DATABASE_FAULTS
from tbot.market.topics import Batch, Frame, control
from tbot.web.dependencies import Parts, check_principal
from tbot.web.openapi import problems
from tbot.web.problems import Problem, invalid
from tbot.web.routes import router
from tbot.web.sockets import CLOSE_TIMEOUT_S
from tbot.web.stream import Streams
from tbot.web.stream_admission import Denial, denied_total
from tbot.web.stream_session import Session
from tbot.web.stream_words import CLOSE_UNAVAILABLE

_log = structlog.get_logger(__name__)

PATH: Final = "/v1/events"
CUT: Final = "tbot.cut"
"""Member of the ASGI scope: a function that cuts the connection."""
HEAD: Final = "tbot.head"
"""Member of the ASGI scope of a request that wants the headers alone."""
CHANNELS_MAX: Final = 32
"""Channels of one request: the places of all of them go into every event's id."""
CHANNELS_CHARS_MAX: Final = 2048
MEDIA_TYPE: Final = "text/event-stream"
_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
)
_HEAD: Final = re.compile(
    rb'\{"op":"(snap|delta|gap)","ch":(\d+),"seq":(\d+)(?:,"prev":\d+)?(?:,"hash":"([0-9a-f]+)")?'
)
_SUBBED: Final = b'{"op":"subbed",'
_NUMBERED: Final = ("trades", "candles")
"""Market channels that can go on where they were."""
_COMMENT: Final = b":\n\n"

routes = router("stream")


def wishes_of(text: str) -> list[dict[str, Any]]:
    """The wishes in the query parameter `channels`, as `sub` takes them.

    Each is `channel:symbol` (or the account's id), then `:name=value` for its parameters (numbers,
    and the interval of candles); commas separate them.

    Raises:
        Problem: It is not of this form.

    Example:
        >>> wishes_of("trades:BTC-USDT,book:BTC-USDT:depth=20")[1]
        {'channel': 'book', 'symbol': 'BTC-USDT', 'depth': 20}
    """
    wishes: list[dict[str, Any]] = []
    for part in text.split(","):
        name, *rest = part.split(":")
        if not rest:
            raise invalid("each is channel:symbol or account:id", parameter="channels")
        wish: dict[str, Any] = {"channel": name}
        wish["account_id" if name == "account" else "symbol"] = rest[0]
        for piece in rest[1:]:
            key, equals, value = piece.partition("=")
            form = r"[0-9]{1,3}[a-z]" if key == "interval" else r"[0-9]{1,6}"
            if not equals or not re.fullmatch(form, value) or key in wish:
                raise invalid("a parameter is name=number, once", parameter="channels")
            wish[key] = value if key == "interval" else int(value)
        wishes.append(wish)
    if len(wishes) > CHANNELS_MAX:
        raise invalid(f"at most {CHANNELS_MAX} channels", parameter="channels")
    return wishes


class Places:
    """Where a client is in each channel that can be resumed: what an event's id says.

    Args:
        epoch: Of the server, for market channels.
    """

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._index: dict[int, tuple[int, bool]] = {}
        self._at: dict[int, str] = {}

    def resume(self, wishes: list[dict[str, Any]], last_id: str | None) -> None:
        """Add to the wishes where they are to go on; an id that is not ours says nothing."""
        epoch, *places = (last_id or "").split("/")
        for place in places:
            index, *words = place.split(".")
            if not index.isdecimal() or int(index) >= len(wishes) or len(words) != 2:
                continue
            seq, word = words
            if not re.fullmatch(r"[0-9]{1,15}", seq):
                continue
            wish = wishes[int(index)]
            if wish["channel"] == "account":
                wish["resume"] = {"seq": int(seq), "hash": word}
            elif wish["channel"] in _NUMBERED and wish.get("symbol") != "*" and word.isdecimal():
                wish["resume"] = {"epoch": epoch, "ch": int(word), "seq": int(seq)}

    def _subscribed(self, payload: bytes) -> None:
        """Learn from the answer which channel has which number."""
        for index, answer in enumerate(msgspec.json.decode(payload)["subs"]):
            if answer.get("channel") in ("account", *_NUMBERED) and "ch" in answer:
                self._index[answer["ch"]] = (index, answer["channel"] == "account")

    def passed(self, payload: bytes) -> str | None:
        """The id after a message, when it moved a place; None else."""
        if payload.startswith(_SUBBED):
            self._subscribed(payload)
            return None
        found = _HEAD.match(payload)
        known = None if found is None else self._index.get(int(found[2]))
        if found is None or known is None:
            return None
        index, private = known
        word = found[4] if private else found[2]
        self._at[index] = f"{index}.{found[3].decode()}.{(word or b'').decode()}"
        return "/".join([self._epoch, *self._at.values()])


class EventOutput:
    """An `Output` whose frames leave as events, one batch at a time, as fast as they are taken.

    Attributes:
        ready: Whether the last batch was taken.
        given_up: Set a second after `close`: what was not taken by then, is not going to be.
        heard_at: When the client last took something: pings are comments that it takes.
    """

    def __init__(self, places: Places, now: Callable[[], float]) -> None:
        self._places = places
        self._now = now
        self._batches: list[bytes] = []
        self._wake = asyncio.Event()
        self._ended = False
        self.given_up = asyncio.Event()
        self.ready = True
        self.heard_at = now()
        self.on_ready: Callable[[], None] = lambda: None

    def write(self, batch: Batch) -> None:
        """Take a batch."""
        self.ready = False
        self._batches.append(b"".join([self._event(frame) for frame in batch]))
        self._wake.set()

    def _event(self, frame: Frame) -> bytes:
        place = self._places.passed(frame.payload)
        head = b"" if place is None else b"id: " + place.encode("ascii") + b"\n"
        return head + b"data: " + frame.payload + b"\n\n"

    def ping(self) -> bool:
        """A comment, when the client takes anything at all."""
        if not self.ready:
            return False
        self.ready = False
        self._batches.append(_COMMENT)
        self._wake.set()
        return True

    def close(self, code: int, reason: str) -> None:
        """Say why, and end."""
        if not self._ended:
            self._ended = True
            self.ready = False
            last = control({"op": "close", "code": code, "reason": reason})
            self._batches.append(b"event: close\ndata: " + last.payload + b"\n\n")
            self._wake.set()
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self.given_up.set)

    async def pump(self, send: Send) -> None:
        """Send until it is closed."""
        while True:
            while not self._batches:
                if self._ended:
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                self._wake.clear()
                await self._wake.wait()
            batches, self._batches = self._batches, []
            body = b"".join(batches)
            await send({"type": "http.response.body", "body": body, "more_body": True})
            self.heard_at = self._now()
            if not self._ended:
                self.ready = True
                self.on_ready()


class EventStream(Response):
    """The answer: a session of the stream, until either side ends it.

    Args:
        principal: Who asks.
        wishes: What they want.
        last_id: Where they were.
    """

    def __init__(
        self,
        streams: Streams,
        principal: Principal,
        wishes: list[dict[str, Any]],
        last_id: str | None,
    ) -> None:
        self._streams = streams
        self._principal = principal
        self._wishes = wishes
        self._last_id = last_id
        self.status_code = 200
        self.background = None
        self.init_headers()

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """As they have to be: a stream has no length."""
        self.raw_headers = list(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve until the end; a client that does not take its end is cut off."""
        await send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)})
        if scope.get(HEAD):
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        streams = self._streams
        places = Places(streams.epoch)
        output = EventOutput(places, streams.hub.now)
        address = address_of(scope)
        streams.admission.arrived(address)
        session = streams.begin(output, address)
        pump = asyncio.create_task(output.pump(send))
        gone = asyncio.create_task(_disconnected(receive))
        over = asyncio.create_task(output.given_up.wait())
        try:
            session.enter(self._principal, {})
            places.resume(self._wishes, self._last_id)
            await _subscribe(session, self._wishes)
            await asyncio.wait((pump, gone, over), return_when=asyncio.FIRST_COMPLETED)
            if over.done() and CUT in scope:
                scope[CUT]()  # uvicorn would wait for it to take what is written
                await asyncio.wait((gone,), timeout=CLOSE_TIMEOUT_S)
        finally:
            session.lost()
            for task in (pump, gone, over):
                task.cancel()
            await asyncio.gather(pump, gone, over, return_exceptions=True)


async def _subscribe(session: Session, wishes: list[dict[str, Any]]) -> None:
    if session.subscriber.closing:
        return
    try:
        await session.sub({"channels": wishes})
    except (*DATABASE_FAULTS, Unavailable) as error:
        _log.warning("stream_unavailable", op="events", error=repr(error))
        session.subscriber.close(CLOSE_UNAVAILABLE, "temporarily unavailable")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def prepare(scope: Scope, send: Send) -> None:
    """Note on a request what only the outermost layer can know.

    That it is a HEAD, which is answered as the GET that has no end; and how to cut its connection.
    """
    scope[HEAD] = scope["method"] == "HEAD"
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        scope[CUT] = transport.abort


def address_of(scope: Scope) -> str:
    """The address of whoever asks."""
    client = scope.get("client")
    return client[0] if client else ""


async def _principal(request: HttpRequest, parts: Parts, ticket: str | None) -> Principal:
    """Who asks: by ticket, or as everywhere.

    Raises:
        AuthError: It is not known.
        Problem: Both were given.
    """
    if ticket is None:
        return await check_principal(request, ())
    if "authorization" in request.headers:
        raise Problem("bad_request", "a token or a ticket, not both")
    return await tickets.redeem(parts.auth, ticket)


def _deny(denied: Denial) -> Problem:
    denied_total.labels(denied.code).inc()
    return Problem(denied.code, denied.why, denied.status, headers=denied.headers)


@routes.get(
    "/events",
    operation_id="follow_events",
    status_code=200,
    response_class=Response,
    responses={
        200: {
            "description": "Events, until either side ends it.",
            # No type: what follows is a sequence of events, which OpenAPI 3.1 cannot say.
            "content": {MEDIA_TYPE: {"schema": {"description": "The stream's messages in JSON."}}},
        },
        **problems(
            "bad_request",
            "unauthenticated",
            "invalid_token",
            "origin_not_allowed",
            "not_acceptable",
            "validation_failed",
            "too_many_clients",
            "overloaded",
            "unavailable",
        ),
    },
)
async def follow_events(
    request: HttpRequest,
    parts: Parts,
    channels: Annotated[
        str,
        Query(
            max_length=CHANNELS_CHARS_MAX,
            description="`channel:symbol` or `account:id`, each with `:name=number` for its "
            "parameters, separated by commas.",
            examples=["trades:BTC-USDT,book:BTC-USDT:depth=20"],
        ),
    ],
    ticket: Annotated[
        str | None,
        Query(max_length=128, description="Of `/v1/stream/tickets`, in place of a token."),
    ] = None,
    last_event_id: Annotated[
        str | None, Query(max_length=4096, description="As the header of that name.")
    ] = None,
    last_event_id_header: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            max_length=4096,
            description="The id of the last event that was handled: what can, goes on there.",
        ),
    ] = None,
) -> Response:
    """Follow channels of the stream as server-sent events.

    With an access token or, for a web page's `EventSource`, a ticket. `docs/streaming.md` tells of
    channels and messages; each event's data is one.
    """
    streams: Streams = request.app.state.streams
    denied = streams.admission.denial(request, address_of(request.scope))
    if denied is not None:
        raise _deny(denied)
    accept = request.headers.get("accept", "*/*")
    if not any(kind in accept for kind in (MEDIA_TYPE, "text/*", "*/*")):
        raise Problem("not_acceptable", f"this can be had as {MEDIA_TYPE}")
    wishes = wishes_of(channels)
    principal = await _principal(request, parts, ticket)
    if not streams.admission.has_room(principal.user_id):
        raise _deny(
            Denial(
                HTTPStatus.TOO_MANY_REQUESTS,
                "too_many_clients",
                "too many connections of this user",
            )
        )
    return EventStream(streams, principal, wishes, last_event_id_header or last_event_id)
