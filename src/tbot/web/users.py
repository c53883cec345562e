"""Users: oneself, and (for administrators) all of them."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import Response
from pydantic import Field, StringConstraints
from starlette.requests import Request as HttpRequest

from tbot.auth import scopes, store, users
from tbot.auth.scopes import Role
from tbot.auth.store import User
from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.web.answers import json_answer
from tbot.web.dependencies import Admin, AnyUser, PageCursor, PageLimit, Parts, page_limit
from tbot.web.fields import Answer, Id, Request, Timestamp, Username
from tbot.web.once import KeyHeader, keyed, respond
from tbot.web.openapi import problems
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.routes import router

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
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems("user_exists", "overloaded", "outcome_unknown"),
    },
)
async def create_user(
    request: HttpRequest, parts: Parts, principal: Admin, body: NewUser, _key: KeyHeader = None
) -> Response:
    """Add a user."""
    once = await keyed(request, parts, principal, principal.user_id, _created)
    outcome = await users.create_user(
        parts.pool, parts.auth.passwords, body.username, body.password, body.role, once
    )
    return respond(outcome, _created)


def _created(user: User) -> Response:
    headers = {"Location": f"/v1/users/{user.id}"}
    return json_answer(_out(user).model_dump(mode="json"), 201, headers)


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


@routes.get("/users/{user_id}", operation_id="get_user")
async def get_user(parts: Parts, _principal: Admin, user_id: Id) -> UserOut:
    """Get one user."""
    async with parts.pool.acquire() as connection:
        user = await store.user_by_id(connection, user_id)
    if user is None:
        raise NotFound("no such user")
    return _out(user)
