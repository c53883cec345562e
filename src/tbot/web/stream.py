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
from collections import Counter as Tally
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import urlsplit
from uuid import UUID

import msgspec
import structlog
from fastapi import APIRouter, WebSocket
from prometheus_client import Counter
from starlette.responses import Response

from tbot.auth import flow as auth_flow
from tbot.auth.flow import Auth
from tbot.auth.scopes import Scope
from tbot.auth.sessions import TOPIC as SESSIONS_TOPIC
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.cursors import Journal, Pool
from tbot.ledger.members import TOPIC as SHARING_TOPIC
from tbot.ledger.members_store import still_members
from tbot.market.channels import Market
from tbot.market.hub import CLOSE_DRAIN, Hub
from tbot.market.subscribers import Output
from tbot.web.sockets import EXTENSION, AsgiOutput, StreamSocket, denial
from tbot.web.stream_session import Session
from tbot.web.stream_words import PROTOCOL

_log = structlog.get_logger(__name__)

SESSIONS_INTERVAL_S: Final = 5.0
"""How often login sessions are checked besides wake-ups."""
SESSIONS_PAUSE_S: Final = 0.1
SESSIONS_PER_QUERY: Final = 500
DRAIN_BATCHES: Final = 20

_denied_total = Counter("tbot_stream_denied", "Connections refused.", ["code"])

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
    ) -> None:
        self.settings = settings
        self.hub = hub
        self.market = market
        self.journal = journal
        self.auth = auth
        self.pool = pool
        self.tasks = Tasks("streams")
        self.epoch = secrets.token_hex(8)
        """Names this run of the server: market sequences mean nothing beyond it."""
        self._bus = bus
        self._sessions: set[Session] = set()
        self._users: Tally[UUID] = Tally()
        self._addresses: Tally[str] = Tally()
        self._draining = False

    def start(self) -> None:
        """Begin to watch over login sessions; the hub and the journal begin too."""
        self.hub.start(self.market.retire)
        self.journal.start()
        self.tasks.start(self._watch_sessions(), "login_sessions")

    async def stop(self) -> None:
        """End everything that `start` began; safe to call twice. Call `drain` first."""
        self._draining = True
        await self.hub.stop()
        await self.journal.stop()
        await self.tasks.stop()

    async def drain(self) -> None:
        """Send everybody away, in batches, to come back at once; admit nobody any more."""
        self._draining = True
        subscribers = list(self.hub.subscribers)
        random.shuffle(subscribers)
        size = max(1, -(-len(subscribers) // DRAIN_BATCHES))
        pause_s = self.settings.drain_s / DRAIN_BATCHES
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
        refusal = self._refusal(websocket, address)
        if refusal is not None:
            await _deny(websocket, *refusal)
            return
        offered = websocket.scope.get("subprotocols") or []
        self._addresses[address] += 1
        try:
            await websocket.accept(PROTOCOL if PROTOCOL in offered else None)
        except BaseException:
            self._leave(address)
            raise
        # From here on the address is the session's to give back (`dismiss`).
        socket = websocket.scope.get("extensions", {}).get(EXTENSION)
        if not isinstance(socket, StreamSocket):
            await self._converse(websocket, address)
            return
        wire = socket.hand_over()
        if wire is None:
            self._leave(address)
        else:
            wire.listener = self._begin(wire, address)

    def _begin(self, output: Output, address: str) -> Session:
        session = Session(self, output, address)
        self._sessions.add(session)
        return session

    def _leave(self, address: str) -> None:
        self._addresses[address] -= 1
        if not self._addresses[address]:
            del self._addresses[address]

    def _refusal(self, websocket: WebSocket, address: str) -> tuple[HTTPStatus, str, str] | None:
        """Why this connection is not accepted, if so: status, code and words."""
        if self._draining or len(self.hub.subscribers) >= self.settings.clients_max:
            return HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", "as many clients as there may be"
        if self._addresses[address] >= self.settings.clients_per_address_max:
            return HTTPStatus.TOO_MANY_REQUESTS, "too_many_clients", "too many from your address"
        if not self._origin_allowed(websocket):
            return (
                HTTPStatus.FORBIDDEN,
                "origin_not_allowed",
                "pages of this origin may not connect",
            )
        if {"token", "access_token"} & set(websocket.query_params):
            return HTTPStatus.BAD_REQUEST, "bad_request", "a token in an address ends up in logs"
        offered = websocket.scope.get("subprotocols") or []
        if offered and PROTOCOL not in offered:
            return HTTPStatus.BAD_REQUEST, "bad_request", f"the subprotocol is {PROTOCOL}"
        return None

    def _origin_allowed(self, websocket: WebSocket) -> bool:
        """Programs send no Origin; pages must be our own or listed (attack: a foreign page)."""
        origins = websocket.headers.getlist("origin")
        if not origins:
            return True
        if len(origins) > 1 or origins[0] == "null":
            return False
        if origins[0] in self.settings.origins:
            return True
        parts = urlsplit(origins[0])
        host = websocket.headers.get("host", "")
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    async def _converse(self, websocket: WebSocket, address: str) -> None:
        """The conversation on a server that is not ours: a task that waits for messages."""
        task = asyncio.current_task()
        assert task is not None
        output = AsgiOutput(cast("Any", websocket.send), task)
        session = self._begin(output, address)
        try:
            while True:
                # Nothing else is awaited here: reading pauses until the next `receive`.
                message = await websocket.receive()
                if message["type"] != "websocket.receive":
                    break
                session.heard(message.get("text"))
        except asyncio.CancelledError:
            if not output.given_up:
                raise
        finally:
            session.lost()

    # Users

    def admit(self, session: Session, user_id: UUID) -> bool:
        """Count a session of a user that logged in; False when the user has too many."""
        if self._users[user_id] >= self.settings.clients_per_user_max:
            return False
        self._users[user_id] += 1
        return True

    def dismiss(self, session: Session) -> None:
        """A session is over."""
        self._sessions.discard(session)
        self._leave(session.address)
        if session.principal is not None:
            user_id = session.principal.user_id
            self._users[user_id] -= 1
            if not self._users[user_id]:
                del self._users[user_id]

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
        sessions: dict[UUID, list[Session]] = {}
        for session in self._sessions:
            if session.principal is not None:
                sessions.setdefault(session.principal.session_id, []).append(session)
        known = list(sessions)
        for start in range(0, len(known), SESSIONS_PER_QUERY):
            asked = known[start : start + SESSIONS_PER_QUERY]
            living = await auth_flow.living(self.auth, asked)
            for session_id in asked:
                if session_id not in living:
                    for session in sessions[session_id]:
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


async def _deny(websocket: WebSocket, status: HTTPStatus, code: str, detail: str) -> None:
    """Answer the handshake with a problem document, or a plain 403 where there is nothing else."""
    _denied_total.labels(code).inc()
    headers = {"Retry-After": "2"} if status in (503, 429) else {}
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        body = msgspec.json.encode(denial(status, detail, code))
        response = Response(body, status.value, headers, "application/problem+json")
        with contextlib.suppress(OSError):
            await websocket.send_denial_response(response)
    else:
        await websocket.close()
