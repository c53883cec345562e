"""The WebSocket endpoint `/v1/stream`: admission, the sessions of a process, and their end.

`docs/streaming.md` is the protocol. `boot` builds `Hub`, `Market` and `Streams`, puts the latter
into `app.state.streams`, and calls `drain` before it stops the HTTP server: uvicorn cuts WebSocket
connections before it runs an application's shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, WebSocket
from starlette.responses import Response

from tbot.auth import flow as auth_flow
from tbot.auth.flow import Auth
from tbot.auth.scopes import Scope
from tbot.auth.sessions import TOPIC as SESSIONS_TOPIC
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.cache_settings import CacheSettings
from tbot.core.clock import boot_s
from tbot.core.errors import QuotaExceeded
from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.cursors import Journal, Pool
from tbot.ledger.members import TOPIC as SHARING_TOPIC
from tbot.ledger.members_store import still_members
from tbot.ledger.permissions import Permissions
from tbot.market.channels import Market
from tbot.market.hub import CLOSE_DRAIN, Hub
from tbot.market.subscribers import Output
from tbot.market.topics import CODECS, JSON, Codec
from tbot.web.ratelimit import Kind, Limits
from tbot.web.sockets import EXTENSION, AsgiOutput, StreamSocket, denial
from tbot.web.stream_admission import Admission, Denial, codec_of, denied_total
from tbot.web.stream_session import Session

if TYPE_CHECKING:
    from tbot.web.stream_orders import OrderEntry

_log = structlog.get_logger(__name__)

SESSIONS_INTERVAL_S: Final = 5.0
"""How often login sessions are checked besides wake-ups."""
SESSIONS_PAUSE_S: Final = 0.1
SESSIONS_PER_QUERY: Final = 500
DRAIN_BATCHES: Final = 20

router = APIRouter()


@router.websocket("/v1/stream")
async def stream(websocket: WebSocket) -> None:
    """The stream; see `docs/streaming.md`."""
    streams: Streams = websocket.app.state.streams
    await streams.serve(websocket)


class Streams:
    """What the stream's sessions share, one per process.

    Args:
        settings: Limits.
        hub, market: The fan-out and its topics.
        journal: The reading end of the journal.
        auth: Checks tokens.
        pool: For ownership and snapshots.
        bus: Says when login sessions end.
        permissions: Roles on shared accounts; None makes some of its own.
    """

    def __init__(
        self,
        settings: StreamSettings,
        hub: Hub,
        market: Market,
        journal: Journal,
        auth: Auth,
        pool: Pool,
        bus: Bus,
        permissions: Permissions | None = None,
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.market = market
        self.journal = journal
        self.auth = auth
        self.pool = pool
        self.permissions = permissions or Permissions(pool, bus, CacheSettings())
        self.tasks = Tasks("streams")
        self.epoch = secrets.token_hex(8)
        """Names this run of the server: market sequences mean nothing beyond it."""
        self._bus = bus
        self.admission = Admission(settings, lambda: len(hub.subscribers))
        self.orders: OrderEntry | None = None
        self.limits: Limits | None = None
        """Takes orders; None while nobody does. The application sets it."""
        self._sessions: set[Session] = set()

    def start(self) -> None:
        """Begin to watch over login sessions; the hub and the journal begin too."""
        self.hub.start(self.market.retire)
        self.journal.start()
        self.tasks.start(self._watch_sessions(), "login_sessions")
        self.tasks.start(self.admission.measure(), "lag")

    async def stop(self) -> None:
        """End everything that `start` began; safe to call twice. Call `drain` first."""
        self.admission.draining = True
        await self.hub.stop()
        await self.journal.stop()
        await self.tasks.stop()

    async def drain(self) -> None:
        """Send everybody away, in batches, to come back at once; admit nobody any more.

        Orders that are under way are answered first, if that does not take too long.
        """
        self.admission.draining = True
        self.admission.drained_at_s = boot_s() + self.settings.drain_s
        if self.orders is not None:
            await self.orders.settle(self.settings.drain_s)
        subscribers = list(self.hub.subscribers)
        random.shuffle(subscribers)
        size = max(1, -(-len(subscribers) // DRAIN_BATCHES))
        pause_s = self.settings.drain_s / DRAIN_BATCHES
        self.admission.drained_at_s = boot_s() + pause_s * max(0, -(-len(subscribers) // size) - 1)
        for start in range(0, len(subscribers), size):
            for subscriber in subscribers[start : start + size]:
                last = {
                    "op": "drain",
                    "reconnect_after_ms": random.randrange(int(self.settings.drain_s * 500) + 1),
                }
                subscriber.close(CLOSE_DRAIN, "the server is going away", last)
            if start + size < len(subscribers):
                await asyncio.sleep(pause_s)
        if subscribers:
            _log.info("streams_drained", clients=len(subscribers))

    # Admission

    async def serve(self, websocket: WebSocket) -> None:
        """One connection from its handshake to its end."""
        address = websocket.client.host if websocket.client is not None else ""
        offered = websocket.scope.get("subprotocols") or []
        codec = codec_of(offered)
        denied = self.admission.denial(websocket, address)
        if denied is None and codec is None:
            protocols = " or ".join(CODECS)
            denied = Denial(
                HTTPStatus.BAD_REQUEST, "bad_request", f"the subprotocol is {protocols}"
            )
        if denied is None and self.limits is not None:
            denied = await _too_often(self.limits, address)
        if denied is not None or codec is None:
            assert denied is not None
            await _deny(websocket, denied)
            return
        self.admission.arrived(address)
        try:
            await websocket.accept(codec.protocol if offered else None)
        except BaseException:
            self.admission.left(address, None)
            raise
        # From here on the address is the session's to give back (`dismiss`).
        socket = websocket.scope.get("extensions", {}).get(EXTENSION)
        if not isinstance(socket, StreamSocket):
            await self._converse(websocket, address, codec)
            return
        wire = socket.hand_over()
        if wire is None:
            self.admission.left(address, None)
        else:
            wire.listener = self.begin(wire, address, codec)

    def begin(self, output: Output, address: str, codec: Codec = JSON) -> Session:
        """A session of somebody who was counted as `arrived`; it gives the place back itself."""
        session = Session(self, output, address, codec)
        self._sessions.add(session)
        return session

    async def _converse(self, websocket: WebSocket, address: str, codec: Codec) -> None:
        """The conversation on a server that is not ours: a task that waits for messages."""
        task = asyncio.current_task()
        assert task is not None
        output = AsgiOutput(cast("Any", websocket.send), task)
        session = self.begin(output, address, codec)
        try:
            while True:
                # Nothing else is awaited here: reading pauses until the next `receive`.
                message = await websocket.receive()
                if message["type"] != "websocket.receive":
                    break
                session.heard(message.get("text"), message.get("bytes") or b"")
        except asyncio.CancelledError:
            if not output.given_up:
                raise
        finally:
            session.lost()

    def dismiss(self, session: Session) -> None:
        """A session is over."""
        self._sessions.discard(session)
        principal = session.principal
        self.admission.left(session.address, None if principal is None else principal.user_id)

    async def _watch_sessions(self) -> None:
        """Close connections whose login session ended: by wake-up, and every few seconds."""
        with self._bus.listening(SESSIONS_TOPIC, SHARING_TOPIC) as ended:
            while True:
                await wait_for_wake(ended, SESSIONS_INTERVAL_S)
                try:
                    await self._check_sessions()
                    await self._check_sharing()
                except DATABASE_FAULTS as error:
                    _log.warning("sessions_unchecked", error=repr(error))
                await asyncio.sleep(SESSIONS_PAUSE_S)  # many who log out are one round

    async def _check_sessions(self) -> None:
        """One round: a query for some hundreds of login sessions, however many connections."""
        sessions: dict[UUID, list[tuple[Session, frozenset[Scope]]]] = {}
        for session in self._sessions:
            if session.principal is not None:
                one = session, session.principal.scopes
                sessions.setdefault(session.principal.session_id, []).append(one)
        known = list(sessions)
        for start in range(0, len(known), SESSIONS_PER_QUERY):
            asked = known[start : start + SESSIONS_PER_QUERY]
            living = await auth_flow.living(self.auth, asked)
            for session_id in asked:
                allowed = living.get(session_id)
                for session, scopes in sessions[session_id]:
                    # An API key outlives its user's role: what that allowed ends with it.
                    if allowed is None or not scopes <= allowed:
                        session.end_session()

    async def _check_sharing(self) -> None:
        """One round: end private streams of accounts that are not shared with their readers now."""
        readers: dict[tuple[UUID, UUID], list[Session]] = {}
        for session in self._sessions:
            principal = session.principal
            if principal is None or Scope.AUDIT_READ in principal.scopes:
                continue
            for account_id in session.listens_to():
                readers.setdefault((account_id, principal.user_id), []).append(session)
        known = list(readers)
        for start in range(0, len(known), SESSIONS_PER_QUERY):
            asked = known[start : start + SESSIONS_PER_QUERY]
            async with self.pool.acquire() as connection:
                allowed = await still_members(connection, asked)
            for pair in asked:
                if pair not in allowed:
                    for session in readers[pair]:
                        session.end_account(pair[0])


async def _too_often(limits: Limits, address: str) -> Denial | None:
    """Count a newcomer under the rate limits; why they are not let in, if so."""
    try:
        await limits.take(Kind.STREAMS, address, None)
    except QuotaExceeded as error:
        why = HTTPStatus.TOO_MANY_REQUESTS
        return Denial(why, "quota_exceeded", str(error), error.retry_after_s)
    return None


async def _deny(websocket: WebSocket, denied: Denial) -> None:
    """Answer the handshake with a problem document, or a plain 403 where there is nothing else."""
    denied_total.labels(denied.code).inc()
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        body = msgspec.json.encode(denial(denied.status, denied.why, denied.code))
        response = Response(body, denied.status.value, denied.headers, "application/problem+json")
        with contextlib.suppress(OSError):
            await websocket.send_denial_response(response)
    else:
        await websocket.close()
