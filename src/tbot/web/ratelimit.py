"""Rate limits of requests: which there are, whom they count, and what callers see of them.

Every request is of a `Kind` and counts under several policies at once: its address, its user, its
API key, and its kind. All of them are asked together, here or in Valkey, and either all are charged
or none. What is left is in the headers of the answer.

* A stranger (no token, or a bad one) counts by address alone; a user wherever they come from.
* Cancels and halts count under `cancels` alone: who used up everything can still stop.
* What Valkey cannot say is counted locally, except logins: those are refused with 503 until it can.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from enum import IntEnum, StrEnum
from functools import lru_cache
from typing import Final, Protocol

from fastapi.routing import APIRoute
from prometheus_client import Counter
from starlette.types import Scope

from tbot.auth.principal import Principal
from tbot.auth.throttle import network
from tbot.core.errors import QuotaExceeded, Unavailable
from tbot.core.limit_settings import LimitSettings
from tbot.core.ratelimit import (
    Cells,
    Claim,
    Quota,
    Standing,
    charge,
    limit_field,
    policy_field,
    standing,
    standings,
)

CHARGED: Final = "tbot.limits"
"""Where a request's scope says that it was counted: the headers of its answer."""
_RETRY_AFTER_S: Final = 1.0

_REFUSED: Final = Counter("tbot_limits_refused", "Requests refused by a rate limit.", ["policy"])
_UNSHARED: Final = Counter(
    "tbot_limits_unshared", "Requests that Valkey did not count, by what was done.", ["how"]
)

type Header = tuple[bytes, bytes]


class Kind(StrEnum):
    """What a request is, as far as limits are concerned."""

    READS = "reads"
    WRITES = "writes"
    ORDERS = "orders"
    CANCELS = "cancels"
    EXPORTS = "exports"
    LOGINS = "logins"
    STREAMS = "streams"
    HEALTH = "health"
    OTHER = "other"


_KINDS: Final = {
    "place_order": Kind.ORDERS,
    "cancel_order": Kind.CANCELS,
    "cancel_orders": Kind.CANCELS,
    "halt_switch": Kind.CANCELS,
    "log_in": Kind.LOGINS,
    "finish_log_in": Kind.LOGINS,
    "step_up": Kind.LOGINS,
    "change_password": Kind.LOGINS,
    "confirm_second_factor": Kind.LOGINS,
    "follow_events": Kind.STREAMS,
    "issue_ticket": Kind.STREAMS,
    "is_live": Kind.HEALTH,
    "is_ready": Kind.HEALTH,
    "get_metrics": Kind.HEALTH,
}
"""By operation; all others are reads or writes, by method."""


def kind_of(route: APIRoute) -> Kind:
    """What requests of a route are."""
    known = _KINDS.get(route.operation_id or "")
    if known is not None:
        return known
    return Kind.READS if (route.methods or set()) <= {"GET", "HEAD"} else Kind.WRITES


def is_stop(method: str, path: str) -> bool:
    """Whether a request stops something, before its route is known: it cancels, or halts."""
    if method == "DELETE":
        return path.startswith("/v1/orders")
    return method == "POST" and path.startswith("/v1/switches/") and path.endswith("/halt")


class _Who(IntEnum):
    """Whom a policy counts: the index of its subject."""

    ADDRESS = 0
    USER = 1
    KEY = 2


class Store(Protocol):
    """Where all processes count together."""

    async def charge(
        self, claims: Sequence[Claim], cost: int
    ) -> tuple[bool, Sequence[float]] | None:
        """Charge all or nothing.

        Returns:
            Whether it was charged, and every quota's debt in seconds; None when it cannot say.
        """


class _Plan:
    """The policies of one kind of request, and the header that names them."""

    __slots__ = ("field", "rates", "template", "wanted")

    def __init__(self, wanted: list[tuple[Cells, _Who]]) -> None:
        self.wanted = [(cells, int(who)) for cells, who in wanted]  # a plain index is quicker
        told = [Standing(cells.policy, cells.quota, 0, 0.0) for cells, _ in wanted]
        self.field: Header = (b"ratelimit-policy", policy_field(told).encode("ascii"))
        # Where every quota has something back within a second, only the amounts left vary.
        quick = all(cells.step_s <= 1.0 for cells, _ in wanted)
        template = ", ".join(f'"{one.policy}";r=%d;t=1' for one in told) if quick else ""
        self.template = template.encode("ascii")
        self.rates = [(cells.window_s, 1.0 / cells.step_s) for cells, _ in wanted]

    def left(self, debts: Sequence[float]) -> bytes:
        """The value of `RateLimit` after a request that was charged."""
        if self.template:
            left = [
                (window_s - debt_s) * rate
                for (window_s, rate), debt_s in zip(self.rates, debts)  # noqa: B905 - one for each
            ]
            return self.template % tuple(left)
        told = [
            standing(cells.policy, cells.quota, debt_s, 0, charged=True)
            for (cells, _), debt_s in zip(self.wanted, debts, strict=True)
        ]
        return limit_field(told).encode("ascii")


class Limits:
    """The rate limits of one process; belongs to the event loop's thread.

    Args:
        store: None counts in this process alone.
    """

    def __init__(self, settings: LimitSettings, store: Store | None = None) -> None:
        self._settings = settings
        self._store = store
        self._cells: dict[str, Cells] = {}
        for name, info in LimitSettings.model_fields.items():
            text = getattr(settings, name)
            if info.annotation is str and text != "off":
                cells = Cells(name, Quota.parse(text), settings.subjects_max)
                self._cells[name] = cells
        self._strangers = {kind: self._plan(kind, stranger=True, key=False) for kind in Kind}
        self._users = {kind: self._plan(kind, stranger=False, key=False) for kind in Kind}
        self._keys = {kind: self._plan(kind, stranger=False, key=True) for kind in Kind}

    def _plan(self, kind: Kind, *, stranger: bool, key: bool) -> _Plan:
        by_address = kind in (Kind.LOGINS, Kind.STREAMS)
        names: list[tuple[str, _Who]] = [("address", _Who.ADDRESS)]
        if kind is Kind.CANCELS and not stranger:
            names = [("cancels", _Who.USER)]
        elif kind is Kind.HEALTH:
            pass
        elif stranger:
            names.append((kind.value if by_address else "strangers", _Who.ADDRESS))
        else:
            names.append(("user", _Who.USER))
            if key:
                names.append(("key", _Who.KEY))
            if kind is not Kind.OTHER:
                names.append((kind.value, _Who.ADDRESS if by_address else _Who.USER))
        return _Plan([(self._cells[n], who) for n, who in names if n in self._cells])

    async def charge(
        self,
        scope: Scope,
        kind: Kind,
        address: str | None,
        principal: Principal | None = None,
        cost: int = 1,
    ) -> None:
        """Count a request, unless it was counted already; what is left goes into its scope.

        Raises:
            QuotaExceeded: A limit is used up; nothing was taken from any.
            Unavailable: A login, and Valkey does not answer.
        """
        if CHARGED not in scope:
            scope[CHARGED] = ()  # a refusal brings headers of its own
            scope[CHARGED] = await self.take(kind, address, principal, cost)

    async def take(
        self, kind: Kind, address: str | None, principal: Principal | None, cost: int = 1
    ) -> tuple[Header, ...]:
        """Count something that costs so many units; the headers that tell what is left.

        Raises:
            QuotaExceeded, Unavailable: As `charge`.
        """
        where = _network(address)
        plan, claims = self._claims(kind, where, principal)
        if not claims:
            return ()
        if self._store is not None:
            answer = await self._store.charge(claims, cost)
            if answer is not None:
                return self._shared(plan, claims, cost, *answer, where)
            if kind is Kind.LOGINS:
                _UNSHARED.labels("refused").inc()
                raise Unavailable("logins cannot be counted at the moment", _RETRY_AFTER_S)
            _UNSHARED.labels("local").inc()
        return _taken(plan, claims, cost)

    @property
    def local(self) -> bool:
        """Whether this process counts for itself: then `take_here` will do."""
        return self._store is None

    def take_here(
        self, kind: Kind, address: str | None, principal: Principal
    ) -> tuple[Header, ...]:
        """`take` one unit without asking anybody.

        Raises:
            QuotaExceeded: As `charge`.
        """
        plan, claims = self._claims(kind, _network(address), principal)
        return _taken(plan, claims, 1) if claims else ()

    def _claims(
        self, kind: Kind, where: str, principal: Principal | None
    ) -> tuple[_Plan, list[Claim]]:
        """What a request counts under."""
        subjects: tuple[str | int, ...]
        if principal is None:
            plan, subjects = self._strangers[kind], (where, 0, 0)
        else:
            plan = (self._users if principal.key is None else self._keys)[kind]
            subjects = (where, principal.user_id.int, principal.session_id.int)
        return plan, [(cells, subjects[who]) for cells, who in plan.wanted]

    def _shared(
        self,
        plan: _Plan,
        claims: Sequence[Claim],
        cost: int,
        charged: bool,
        debts: Sequence[float],
        where: str,
    ) -> tuple[Header, ...]:
        """What Valkey's answer means."""
        if charged:
            return (plan.field, (b"ratelimit", plan.left(debts)))
        told = [
            standing(cells.policy, cells.quota, debt_s, min(cost, cells.quota.amount), False)
            for (cells, _), debt_s in zip(claims, debts, strict=True)
        ]
        for (cells, _), one in zip(claims, told, strict=True):
            if one.refused and cells.policy == "address":
                # Until then nobody needs to be asked again.
                now_s = time.monotonic()
                cells.set(where, now_s + cells.quota.window_s - cells.step_s + one.wait_s, now_s)
        raise _exceeded(told)

    def check_open(self, address: str | None) -> None:
        """Refuse a request of an address that has used up everything, before any work is done.

        Raises:
            QuotaExceeded: It has.
        """
        cells = self._cells.get("address")
        if cells is None:
            return
        where = _network(address)
        now_s = time.monotonic()
        if cells.exhausted_s(where, now_s) > 0:
            raise _exceeded(standings([(cells, where)], 1, now_s, charged=False))


def _taken(plan: _Plan, claims: Sequence[Claim], cost: int) -> tuple[Header, ...]:
    """Count in this process; what is left."""
    now_s = time.monotonic()
    debts = charge(claims, cost, now_s)
    if debts is None:
        raise _exceeded(standings(claims, cost, now_s, charged=False))
    return (plan.field, (b"ratelimit", plan.left(debts)))


@lru_cache(8192)
def _network(address: str | None) -> str:
    return network(address)


def _exceeded(told: Sequence[Standing]) -> QuotaExceeded:
    error = QuotaExceeded(told)
    for policy in error.policies:
        _REFUSED.labels(policy).inc()
    return error


def headers_of(scope: Scope) -> Sequence[Header]:
    """The headers that tell what is left after a request; none if it was not counted."""
    told: Sequence[Header] = scope.get(CHARGED, ())
    return told
