"""Who may connect to the stream: the doorkeeper of `/v1/stream` and `/v1/events`.

Everybody is counted: by address from the handshake on, by user from login on. Those who have not
logged in yet have places of their own, so that strangers cannot take those of customers; and when
the server itself is late, those who are connected come first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit
from uuid import UUID

from prometheus_client import Counter, Gauge
from starlette.requests import HTTPConnection

from tbot.auth.throttle import network
from tbot.core.clock import boot_s
from tbot.core.settings import StreamSettings
from tbot.market.topics import CODECS, JSON, Codec

RETRY_AFTER_S: Final = (1, 5)
"""From and to: they who were refused together shall not come back together."""
TOKEN_PARAMETERS: Final = frozenset(
    {"access_token", "api_key", "apikey", "auth", "authorization", "bearer", "jwt", "token"}
)
"""Where other servers take credentials in an address; none of ours does."""
LAG_INTERVAL_S: Final = 0.25
_LATE_IN_A_ROW: Final = 4
"""Measurements: a single pause refuses nobody, however long; after it everybody comes back."""

denied_total = Counter("tbot_stream_denied", "Connections refused.", ["code"])
_newcomers = Gauge("tbot_stream_newcomers", "Connections that have not logged in yet.")
_lag = Gauge("tbot_stream_late_seconds", "How late timers are, several times in a row.")


class Denial(NamedTuple):
    """Why somebody is not let in."""

    status: HTTPStatus
    code: str
    why: str
    retry_after_s: int = 0
    """At least."""
    spread_s: tuple[int, int] = RETRY_AFTER_S
    """From and to, of what chance says; the longer of the two counts."""

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        if self.status not in (
            HTTPStatus.SERVICE_UNAVAILABLE,
            HTTPStatus.TOO_MANY_REQUESTS,
        ):
            return {}
        return {"Retry-After": str(max(self.retry_after_s, random.randint(*self.spread_s)))}


class Admission:
    """The tallies of one process.

    Args:
        clients: How many are connected.

    Attributes:
        addresses: Of IPv6, by the network of a site.
        draining: Nobody is let in any more.
        drained_at_s: By the boot clock, when the last one will have been sent away.
        lag_s: How late the loop's timers were, each of the last few times.
    """

    def __init__(self, settings: StreamSettings, clients: Callable[[], int]) -> None:
        self._settings = settings
        self._clients = clients
        self.users: Tally[UUID] = Tally()
        self.addresses: Tally[str] = Tally()
        self.newcomers = 0
        self.draining = False
        self.drained_at_s = 0.0
        self._late: deque[float] = deque([0.0], _LATE_IN_A_ROW)
        self.lag_s = 0.0

    async def measure(self) -> None:
        """Watch how late the loop is, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.look(max(0.0, loop.time() - due_s))

    def look(self, late_s: float) -> None:
        """A timer went off so late; called a few times a second."""
        self._late.append(late_s)
        self.lag_s = min(self._late)
        _lag.set(self.lag_s)

    def denial(self, connection: HTTPConnection, address: str) -> Denial | None:
        """Why this connection is not let in, if so."""
        if not TOKEN_PARAMETERS.isdisjoint(name.lower() for name in connection.query_params):
            return Denial(
                HTTPStatus.BAD_REQUEST, "bad_request", "a token in an address ends up in logs"
            )
        if not self._origin_allowed(connection):
            return Denial(
                HTTPStatus.FORBIDDEN,
                "origin_not_allowed",
                "pages of this origin may not connect",
            )
        if self.addresses[network(address)] >= self._settings.clients_per_address_max:
            return Denial(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many_clients", "too many from your address"
            )
        if self.draining:
            return self._drained()
        full = self._full()
        if full is not None:
            return Denial(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", full)
        return None

    def _full(self) -> str | None:
        settings = self._settings
        if self._clients() >= settings.clients_max:
            return "as many clients as there may be"
        if self.newcomers >= settings.newcomers_max:
            return "too many are about to log in"
        if self.lag_s * 1000 > settings.admission_lag_ms_max:
            return "too busy for newcomers at the moment"
        return None

    def _drained(self) -> Denial:
        """For as long as there is nobody else here to come to, and not a second longer.

        Who was sent away comes back within the drain: to another process, if there is one, and
        else to this one. They were sent away one after the other, so no chance has to part them.
        """
        left_s = max(1, math.ceil(self.drained_at_s - boot_s()))
        why = "the server is going away"
        return Denial(HTTPStatus.SERVICE_UNAVAILABLE, "overloaded", why, left_s, (0, 0))

    def _origin_allowed(self, connection: HTTPConnection) -> bool:
        """Programs send no Origin; pages must be our own or listed (attack: a foreign page)."""
        origins = connection.headers.getlist("origin")
        if not origins:
            return True
        if len(origins) > 1 or origins[0] == "null":
            return False
        if origins[0] in self._settings.origins:
            return True
        parts = urlsplit(origins[0])
        host = connection.headers.get("host", "")
        return parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()

    # Counting

    def arrived(self, address: str) -> None:
        """Somebody is let in, who is not known yet."""
        self.addresses[network(address)] += 1
        self.newcomers += 1
        _newcomers.set(self.newcomers)

    def known(self) -> None:
        """One of the newcomers has logged in, or left."""
        self.newcomers -= 1
        _newcomers.set(self.newcomers)

    def admit(self, user_id: UUID) -> bool:
        """Count a connection of a user; False when the user has too many."""
        if not self.has_room(user_id):
            return False
        self.users[user_id] += 1
        return True

    def has_room(self, user_id: UUID) -> bool:
        """Whether a user may have one more connection."""
        return self.users[user_id] < self._settings.clients_per_user_max

    def left(self, address: str, user_id: UUID | None) -> None:
        """Somebody is gone; `user_id` is None for one who never logged in."""
        where = network(address)
        self.addresses[where] -= 1
        if not self.addresses[where]:
            del self.addresses[where]
        if user_id is None:
            self.known()
            return
        self.users[user_id] -= 1
        if not self.users[user_id]:
            del self.users[user_id]


def codec_of(offered: list[str]) -> Codec | None:
    """The protocol that client and server both speak, the client's favourite; None for none.

    Without any offer it is JSON.

    Example:
        >>> codec_of(["x", "tbot.v1.msgpack", "tbot.v1.json"]).protocol, codec_of(["x"])
        ('tbot.v1.msgpack', None)
    """
    if not offered:
        return JSON
    return next((CODECS[name] for name in offered if name in CODECS), None)
