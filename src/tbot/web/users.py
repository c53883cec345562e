"""Users: oneself, and (for administrators) all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Response
from pydantic import Field, StringConstraints
from starlette.requests import Request as HttpRequest

from tbot.auth import scopes, store, users
from tbot.auth.proofs import require_fresh
from tbot.auth.scopes import Role
from tbot.auth.self_service import may_manage
from tbot.auth.state import sessions_ended
from tbot.auth.store import User
from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.core.refusals import Reason
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    Admin,
    AnyUser,
    PageCursor,
    PageLimit,
    Parts,
    actor_of,
    page_limit,
)
from tbot.web.fields import Answer, Id, Request, Timestamp, Username
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.preconditions import TAGGED, IfMatch, expected_versions, tag_of
from tbot.web.problems import invalid
from tbot.web.routes import router
from tbot.web.sessions import SecurityEventPage, security_events_page

routes = router("users")


class UserOut(Answer):
    """A user."""

    id: Id
    username: Username
    role: Role
    status: Literal["active", "disabled"]
    created_at: Timestamp


class Me(UserOut):
    """The user who asks, and what the token at hand allows."""

    scope: Annotated[str, Field(examples=["market:read orders:read"])]


class NewUser(Request):
    """A user to be added."""

    username: Username
    password: Annotated[
        str,
        StringConstraints(min_length=1, max_length=4096),
        Field(
            strict=True,
            json_schema_extra={"format": "password"},
            description="At least `auth.password_length_min` characters.",
        ),
    ]
    role: Role


class UserChanges(Request):
    """Changes of a user, as a merge patch (RFC 7396): what is left out stays as it is."""

    role: Annotated[Role | None, Field(description="What they are from now on.")] = None
    status: Annotated[
        Literal["active", "disabled"] | None, Field(description="Whether they may come in.")
    ] = None


class UserPage(Answer):
    """A page of users, oldest first."""

    items: list[UserOut]
    next: str | None


def _out(user: User) -> UserOut:
    return UserOut(
        id=user.id,
        username=user.username,
        role=user.role,
        status="active" if user.status == "active" else "disabled",
        created_at=clock.stamp(user.created_at),
    )


@routes.get("/me", operation_id="get_me")
async def me(parts: Parts, principal: AnyUser) -> Me:
    """Who the token at hand belongs to."""
    async with parts.pool.acquire() as connection:
        user = await store.user_by_id(connection, principal.user_id)
    if user is None:
        raise NotFound("no such user")
    return Me(**_out(user).model_dump(), scope=scopes.text(principal.scopes))


@routes.post(
    "/users",
    operation_id="create_user",
    status_code=201,
    response_model=UserOut,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}, **TAGGED["headers"]}},
        **problems("user_exists", "overloaded", "outcome_unknown"),
    },
)
async def create_user(
    request: HttpRequest, parts: Parts, principal: Admin, body: NewUser, _key: KeyHeader = None
) -> Response:
    """Add a user."""
    once = await keyed(request, parts, principal, _created)
    outcome = await users.create_user(
        parts.pool,
        parts.auth.passwords,
        body.username,
        body.password,
        body.role,
        once,
        actor_of(request, principal),
    )
    return respond(outcome, _created)


def _created(user: User) -> Response:
    return _answer(user, 201, {"Location": f"/v1/users/{user.id}"})


def _answer(user: User, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # All that is shown of a user either never changes or is in its version.
    tag = tag_of(users.version_of(user), "0")
    return json_answer(_out(user).model_dump(mode="json"), status, {**(headers or {}), "ETag": tag})


@routes.get("/users", operation_id="list_users", responses=problems("invalid_cursor"))
async def list_users(
    request: HttpRequest,
    response: Response,
    parts: Parts,
    principal: Admin,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> UserPage:
    """List users, oldest first."""
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    after = None
    if cursor is not None:
        after = UUID(str(decode_cursor(secret, reader, "users", {}, cursor)[0]))
    async with parts.pool.acquire() as connection:
        found = await store.users_after(connection, after, size + 1)
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "users", {}, [str(found[size - 1].id)])
        response.headers["Link"] = next_link(request, {}, size, following)
    return UserPage(items=[_out(user) for user in found[:size]], next=following)


@routes.get("/users/{user_id}", operation_id="get_user", response_model=UserOut)
async def get_user(parts: Parts, _principal: Admin, user_id: Id) -> Response:
    """Get one user."""
    async with parts.pool.acquire() as connection:
        user = await store.user_by_id(connection, user_id)
    if user is None:
        raise NotFound("no such user")
    return _answer(user)


@routes.patch(
    "/users/{user_id}",
    operation_id="change_user",
    response_model=UserOut,
    responses={
        200: TAGGED,
        **problems(
            "last_administrator",
            "step_up_required",
            "key_not_allowed",
            "outcome_unknown",
            "precondition_required",
            Reason.PRECONDITION_FAILED,
        ),
    },
)
async def change_user(
    request: HttpRequest,
    parts: Parts,
    principal: Admin,
    user_id: Id,
    body: UserChanges,
    _match: IfMatch = None,
    _key: KeyHeader = None,
) -> Response:
    """Change a user's role, or let them in or keep them out.

    Whoever is kept out, or is something else now, is logged out everywhere: tokens, live streams.
    API keys stay and allow no more than the role does. The last administrator stays one. It needs a
    fresh proof (`step_up_required`).
    """
    may_manage(parts.auth, principal)
    await require_fresh(parts.auth, principal, keys=parts.settings.auth.keys_manage)
    for name in ("role", "status"):
        if name in body.model_fields_set and getattr(body, name) is None:
            raise invalid("cannot be taken away", pointer=f"/{name}")
    versions = expected_versions(request)
    active = None if body.status is None else body.status == "active"
    once = await keyed(request, parts, principal, _answer)
    actor = actor_of(request, principal)
    outcome = await users.change_user(parts.pool, user_id, actor, body.role, active, once, versions)
    sessions_ended(parts.auth, user_id)
    return respond(outcome, _answer)


@routes.get(
    "/users/{user_id}/security-events",
    operation_id="list_users_security_events",
    response_model=SecurityEventPage,
    responses=problems("invalid_cursor"),
)
async def list_users_security_events(
    request: HttpRequest,
    parts: Parts,
    principal: Admin,
    user_id: Id,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List what happened to a user's login, API keys, factors and standing, newest first."""
    async with parts.pool.acquire() as connection:
        if await store.user_by_id(connection, user_id) is None:
            raise NotFound("no such user")
    return await security_events_page(request, parts, principal, user_id, limit, cursor)
