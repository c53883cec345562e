"""API keys: one's own, and for administrators those of programs."""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth import api_keys, self_service
from tbot.auth.api_keys import ADDRESSES_MAX, ApiKey
from tbot.auth.flow import Principal
from tbot.auth.scopes import Scope, text
from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.web.answers import json_answer
from tbot.web.dependencies import Admin, Parts, SecurityReader, SecurityWriter, peer_of
from tbot.web.deps import Deps
from tbot.web.fields import Answer, Id, Name, Request, Timestamp
from tbot.web.openapi import problems
from tbot.web.problems import invalid
from tbot.web.routes import SHOWS_SECRET, router

routes = router("security")

_MAKING: Final = (
    "step_up_required",
    "key_not_allowed",
    "insufficient_scope",
    "key_exists",
    "keys_max",
    "outcome_unknown",
)


def _canonical_network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        raise ValueError(
            "is no network: an address, or one with a prefix length and no host bits"
        ) from None


Network = Annotated[
    str,
    StringConstraints(max_length=43),
    AfterValidator(_canonical_network),
    Field(strict=True, examples=["192.0.2.0/24"]),
]


class NewKey(Request):
    """A key to be made."""

    name: Name
    scopes: Annotated[
        list[Scope],
        Field(min_length=1, max_length=32, description="At most those of the token that asks."),
    ]
    addresses: Annotated[
        list[Network],
        Field(
            max_length=ADDRESSES_MAX,
            description="Networks it is good from (CIDR); empty for everywhere.",
        ),
    ] = Field(default_factory=list)
    expires_in_s: Annotated[
        int | None,
        Field(
            ge=1,
            strict=True,
            description="Seconds; at most, and by default, `auth.key_ttl_s_max`.",
        ),
    ] = None


class KeyOut(Answer):
    """An API key, without the key itself."""

    id: Id
    name: str
    hint: Annotated[str, Field(description="How the key begins.", examples=["tbk_Zx9q"])]
    scope: Annotated[str, Field(examples=["market:read orders:read"])]
    addresses: list[str]
    created_at: Timestamp
    expires_at: Timestamp
    last_used_at: Annotated[Timestamp | None, Field(description="Within half a minute or so.")]
    last_address: str | None


class KeyCreated(KeyOut):
    """A new API key. `key` is not shown again."""

    key: Annotated[str, Field(description="For `Authorization: Bearer`, or `X-API-Key`.")]


class KeyList(Answer):
    """API keys that are not revoked, oldest first; at most `auth.keys_max`."""

    items: list[KeyOut]


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else clock.stamp(moment)


def _key(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "hint": key.hint,
        "scope": text(key.scopes),
        "addresses": list(key.addresses),
        "created_at": _stamp(key.created_at),
        "expires_at": _stamp(key.expires_at),
        "last_used_at": _stamp(key.last_used_at),
        "last_address": key.last_address,
    }


async def _create(
    request: HttpRequest, parts: Deps, principal: Principal, body: NewKey, owner_id: UUID | None
) -> Response:
    most = parts.settings.auth.key_ttl_s_max
    ttl_s = most if body.expires_in_s is None else body.expires_in_s
    if ttl_s > most:
        raise invalid(f"a key lasts at most {most} s", pointer="/expires_in_s")
    made, shown = await self_service.create_key(
        parts.auth,
        principal,
        peer_of(request),
        body.name,
        frozenset(body.scopes),
        tuple(dict.fromkeys(body.addresses)),
        ttl_s,
        owner_id,
    )
    where = "/v1/api-keys" if owner_id is None else f"/v1/users/{owner_id}/api-keys"
    headers = {"Location": f"{where}/{made.id}"}
    return json_answer({**_key(made), "key": shown}, 201, headers)


_CREATED: Final[dict[int | str, dict[str, Any]]] = {
    201: {"headers": {"Location": {"schema": {"type": "string"}}}}
}


@routes.post(
    "/api-keys",
    operation_id="create_api_key",
    openapi_extra=SHOWS_SECRET,
    status_code=201,
    response_model=KeyCreated,
    responses={**_CREATED, **problems(*_MAKING)},
)
async def create_key(
    request: HttpRequest, parts: Parts, principal: SecurityWriter, body: NewKey
) -> Response:
    """Make an API key. It is shown in this answer, and never again.

    Needs a login with a fresh proof (`step_up_required`). A key's name is unique among yours, so
    a repetition after a lost answer is told `key_exists`: revoke that one and make another.
    """
    return await _create(request, parts, principal, body, None)


@routes.get("/api-keys", operation_id="list_api_keys", response_model=KeyList)
async def list_keys(parts: Parts, principal: SecurityReader) -> Response:
    """List your API keys that are not revoked, oldest first."""
    async with parts.pool.acquire() as connection:
        found = await api_keys.listed(connection, principal.user_id)
    return json_answer({"items": [_key(key) for key in found]})


async def _one(parts: Deps, key_id: UUID, owner_id: UUID) -> Response:
    async with parts.pool.acquire() as connection:
        key = await api_keys.get(connection, key_id, owner_id)
    if key is None:
        raise NotFound("no such key")
    return json_answer(_key(key))


@routes.get("/api-keys/{key_id}", operation_id="get_api_key", response_model=KeyOut)
async def get_key(parts: Parts, principal: SecurityReader, key_id: Id) -> Response:
    """Get one of your API keys."""
    return await _one(parts, key_id, principal.user_id)


@routes.delete(
    "/api-keys/{key_id}",
    operation_id="revoke_api_key",
    status_code=204,
    response_class=Response,
    responses=problems("key_not_allowed", "outcome_unknown"),
)
async def revoke_key(
    request: HttpRequest, parts: Parts, principal: SecurityWriter, key_id: Id
) -> Response:
    """Revoke one of your API keys: it is void, and its streams are closed."""
    await self_service.revoke_key(parts.auth, principal, peer_of(request), key_id)
    return Response(status_code=204)


@routes.post(
    "/users/{user_id}/api-keys",
    operation_id="create_users_api_key",
    openapi_extra=SHOWS_SECRET,
    status_code=201,
    response_model=KeyCreated,
    responses={**_CREATED, **problems(*_MAKING)},
)
async def create_users_key(
    request: HttpRequest, parts: Parts, principal: Admin, user_id: Id, body: NewKey
) -> Response:
    """Make an API key for a user: how programs (role `service`) get theirs."""
    return await _create(request, parts, principal, body, user_id)


@routes.get("/users/{user_id}/api-keys", operation_id="list_users_api_keys", response_model=KeyList)
async def list_users_keys(parts: Parts, _principal: Admin, user_id: Id) -> Response:
    """List a user's API keys that are not revoked, oldest first."""
    async with parts.pool.acquire() as connection:
        found = await api_keys.listed(connection, user_id)
    return json_answer({"items": [_key(key) for key in found]})


@routes.get(
    "/users/{user_id}/api-keys/{key_id}",
    operation_id="get_users_api_key",
    response_model=KeyOut,
)
async def get_users_key(parts: Parts, _principal: Admin, user_id: Id, key_id: Id) -> Response:
    """Get one of a user's API keys."""
    return await _one(parts, key_id, user_id)


@routes.delete(
    "/users/{user_id}/api-keys/{key_id}",
    operation_id="revoke_users_api_key",
    status_code=204,
    response_class=Response,
    responses=problems("key_not_allowed", "outcome_unknown"),
)
async def revoke_users_key(
    request: HttpRequest, parts: Parts, principal: Admin, user_id: Id, key_id: Id
) -> Response:
    """Revoke one of a user's API keys."""
    await self_service.revoke_key(parts.auth, principal, peer_of(request), key_id, user_id)
    return Response(status_code=204)
