"""What routes are given: the parts of the program, who asks, and what they prefer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from fastapi import Depends, Header, Query, Security
from fastapi.security import APIKeyHeader, OAuth2PasswordBearer
from starlette.requests import Request
from starlette.types import Scope

from tbot.auth.api_keys import is_key
from tbot.auth.flow import Peer, Principal, authenticate
from tbot.auth.scopes import Scope as Allows
from tbot.core.errors import AuthError, InvalidToken
from tbot.journal.commands import Actor
from tbot.web.deps import Deps
from tbot.web.fields import Id
from tbot.web.problems import Problem
from tbot.web.ratelimit import Kind, Limits

bearer: Final = OAuth2PasswordBearer(
    "/v1/token",
    scheme_name="password",
    scopes={scope.value: scope.doc for scope in Allows},
    description="Log in with user name and password; the access token goes into "
    "`Authorization: Bearer`.",
    auto_error=False,
    refreshUrl="/v1/token/refresh",
)

api_key: Final = APIKeyHeader(
    name="X-API-Key",
    scheme_name="api_key",
    description="An API key (`POST /v1/api-keys`). `Authorization: Bearer` takes one, too.",
    auto_error=False,
)

PRINCIPAL: Final = "tbot.principal"
_USER_AGENT_LENGTH: Final = 200


async def get_deps(request: Request) -> Deps:
    """The parts of the program that `build_app` was given.

    A coroutine, because FastAPI sends plain functions through a thread pool.
    """
    deps: Deps = request.app.state.deps
    return deps


async def check_principal(
    request: Request, scopes: Sequence[str], kind: Kind = Kind.OTHER
) -> Principal:
    """Find out who asks and whether their token covers `scopes`; remembered for the request.

    The request is counted here, for its user or else for a stranger, before anything is done.

    Raises:
        AuthError: There is no token.
        InvalidToken, InsufficientScope: It is not good, or not good for this.
        QuotaExceeded: They ask too often.
    """
    limits: Limits = request.app.state.limits
    address = address_of(request.scope)
    try:
        principal = await _authenticated(request, address)
    except AuthError:
        await limits.charge(request.scope, kind, address)
        raise
    request.scope[PRINCIPAL] = principal
    await limits.charge(request.scope, kind, address, principal)
    principal.require(*scopes)
    return principal


async def _authenticated(request: Request, address: str | None) -> Principal:
    headers = request.headers.getlist("authorization")
    given = request.headers.getlist("x-api-key")
    if not headers and not given:
        raise AuthError("this call needs an access token")
    if len(headers) + len(given) > 1:
        raise InvalidToken("there has to be one token: one Authorization or one X-API-Key header")
    kind, _, token = headers[0].partition(" ") if headers else ("bearer", "", given[0])
    if kind.lower() != "bearer" or not token or not (headers or is_key(token)):
        raise InvalidToken("the Authorization header has to be one Bearer token")
    deps: Deps = request.app.state.deps
    return await authenticate(deps.auth, token.strip(" "), address)


async def current_principal(
    request: Request,
    _: Annotated[str | None, Depends(bearer)],
    _key: Annotated[str | None, Depends(api_key)],
) -> Principal:
    """Who asks, as `StrictRoute` found out by `check_principal` before it read the body."""
    principal: Principal = request.scope[PRINCIPAL]
    return principal


def actor_of(request: Request, principal: Principal) -> Actor:
    """Who asks, as the journal records it."""
    client = request.scope.get("client")
    return Actor(
        kind="user",
        user_id=principal.user_id,
        session=str(principal.session_id),
        address=client[0] if client else None,
        request=request.scope.get("tbot.request_id"),
        name=principal.key,
    )


def address_of(scope: Scope) -> str | None:
    """Where a connection comes from, as the server determined it."""
    client = scope.get("client")
    return client[0] if client else None


def peer_of(request: Request) -> Peer:
    """Where a request comes from, for sessions and security events."""
    agent = request.headers.get("user-agent")
    if agent is not None:
        shown = "".join(c if c.isprintable() else "?" for c in agent[:_USER_AGENT_LENGTH])
        agent = shown
    return Peer(address_of(request.scope), agent, request.scope.get("tbot.request_id"))


Parts = Annotated[Deps, Depends(get_deps)]
AnyUser = Annotated[Principal, Security(current_principal, scopes=[])]
MarketReader = Annotated[Principal, Security(current_principal, scopes=[Allows.MARKET_READ.value])]
AccountReader = Annotated[
    Principal, Security(current_principal, scopes=[Allows.ACCOUNT_READ.value])
]
AccountWriter = Annotated[
    Principal, Security(current_principal, scopes=[Allows.ACCOUNT_WRITE.value])
]
TransferWriter = Annotated[
    Principal, Security(current_principal, scopes=[Allows.TRANSFERS_WRITE.value])
]
OrderReader = Annotated[Principal, Security(current_principal, scopes=[Allows.ORDERS_READ.value])]
OrderWriter = Annotated[Principal, Security(current_principal, scopes=[Allows.ORDERS_WRITE.value])]
PaymentWriter = Annotated[
    Principal, Security(current_principal, scopes=[Allows.PAYMENTS_WRITE.value])
]
PaymentApprover = Annotated[
    Principal, Security(current_principal, scopes=[Allows.PAYMENTS_APPROVE.value])
]
WebhookWriter = Annotated[
    Principal, Security(current_principal, scopes=[Allows.WEBHOOKS_WRITE.value])
]
SwitchReader = Annotated[
    Principal, Security(current_principal, scopes=[Allows.SWITCHES_READ.value])
]
SwitchOperator = Annotated[
    Principal, Security(current_principal, scopes=[Allows.SWITCHES_OPERATE.value])
]
SecurityReader = Annotated[
    Principal, Security(current_principal, scopes=[Allows.SECURITY_READ.value])
]
SecurityWriter = Annotated[
    Principal, Security(current_principal, scopes=[Allows.SECURITY_WRITE.value])
]
Admin = Annotated[Principal, Security(current_principal, scopes=[Allows.ADMIN.value])]


# Prefer (RFC 7240)

_WAIT: Final = re.compile(r'\s*wait\s*=\s*"?([0-9]{1,6})"?\s*(?:;.*)?', re.IGNORECASE)


def preferred_wait_s(prefer: str | None, wait_s_max: float) -> float | None:
    """How long the caller would like us to wait: the `wait` of `Prefer`, within our limit.

    Preferences that are malformed or unknown are ignored, as RFC 7240 says.

    Example:
        >>> preferred_wait_s("respond-async, wait=90", 30.0), preferred_wait_s("wait=x", 30.0)
        (30.0, None)
    """
    if prefer is None or len(prefer) > 200:
        return None
    for preference in prefer.split(","):
        found = _WAIT.fullmatch(preference)
        if found:
            return min(float(found[1]), wait_s_max)
    return None


PreferHeader = Annotated[
    str | None,
    Header(
        alias="Prefer",
        description="`wait=N` (RFC 7240): answer only once the order has left `pending_new` (a "
        "market order: has ended), after at most N seconds. `Preference-Applied` says how long we "
        "were ready to wait.",
        examples=["wait=5"],
    ),
]

AccountFilter = Annotated[
    Id | None,
    Query(
        description="All your accounts when absent; to be named by who has more than "
        "`http.accounts_listed_max`."
    ),
]
PageLimit = Annotated[
    int | None, Query(ge=1, description="Most items on the page, up to `http.page_size_max`.")
]
PageCursor = Annotated[
    str | None,
    Query(
        max_length=512,
        # Only told, not checked here: whatever we did not issue answers `invalid_cursor`.
        json_schema_extra={"pattern": "^[A-Za-z0-9_-]{22,}$"},
        description="`next` of the page before, with the same filters.",
    ),
]


def page_limit(limit: int | None, deps: Deps) -> int:
    """The number of items for a page.

    Raises:
        Problem: It is above the server's largest.
    """
    most = deps.settings.http.page_size_max
    if limit is None:
        return min(deps.settings.http.page_size, most)
    if limit > most:
        detail = f"a page has at most {most} items"
        raise Problem(
            "validation_failed", detail, errors=[{"parameter": "limit", "detail": detail}]
        )
    return limit
