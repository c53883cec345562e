"""One's own sessions, password, and what happened to them."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth import events, proofs, self_service, session_store
from tbot.auth.principal import Principal
from tbot.auth.session_store import SessionRow
from tbot.core import clock
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    PageCursor,
    PageLimit,
    Parts,
    SecurityReader,
    SecurityWriter,
    page_limit,
    peer_of,
)
from tbot.web.deps import Deps
from tbot.web.fields import Answer, Id, Request, Timestamp
from tbot.web.openapi import problems
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.routes import router
from tbot.web.tokens import Mode, Password, Tokens, granted

routes = router("security")


class SessionOut(Answer):
    """A login session that lives."""

    id: Id
    created_at: Timestamp
    last_used_at: Annotated[Timestamp, Field(description="Within half a minute or so.")]
    expires_at: Annotated[Timestamp, Field(description="The end that no refresh moves.")]
    address: Annotated[str | None, Field(description="Where it was begun or refreshed last.")]
    user_agent: str | None
    scope: str
    second_factor: Annotated[bool, Field(description="Whether a second factor was shown in it.")]
    current: Annotated[bool, Field(description="Whether it is the one that asks.")]


class SessionPage(Answer):
    """A page of sessions, newest first."""

    items: list[SessionOut]
    next: str | None


class NewPassword(Request):
    """A password in place of the old one."""

    current_password: Annotated[
        Password | None,
        Field(description="May be left out within `auth.step_up_s` of a second factor."),
    ] = None
    new_password: Password
    revoke_keys: Annotated[bool, Field(description="Whether your API keys end, too.")] = False
    mode: Mode = "body"


class SecurityEvent(Answer):
    """Something that happened to your login, keys or factors, as the journal has it."""

    sequence: int
    at: Timestamp
    kind: Annotated[str, Field(examples=[events.LOGIN])]
    by: Annotated[
        dict[str, str],
        Field(description="Who: `kind`, and where known `user`, `session`, `address`, `name`."),
    ]
    data: dict[str, Any]


class SecurityEventPage(Answer):
    """A page of events, newest first."""

    items: list[SecurityEvent]
    next: str | None


def _session(row: SessionRow, current: UUID) -> dict[str, Any]:
    return {
        "id": row.id,
        "created_at": clock.stamp(row.created_at),
        "last_used_at": clock.stamp(row.last_used_at),
        "expires_at": clock.stamp(row.expires_at),
        "address": row.address,
        "user_agent": row.user_agent,
        "scope": row.scope,
        "second_factor": row.factor,
        "current": row.id == current,
    }


@routes.get(
    "/sessions",
    operation_id="list_sessions",
    response_model=SessionPage,
    responses=problems("invalid_cursor"),
)
async def list_sessions(
    request: HttpRequest,
    parts: Parts,
    principal: SecurityReader,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List your login sessions that live, newest first."""
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    before = None
    if cursor is not None:
        before = UUID(str(decode_cursor(secret, reader, "sessions", {}, cursor)[0]))
    async with parts.pool.acquire() as connection:
        found = await session_store.listed(connection, reader, before, size + 1)
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "sessions", {}, [str(found[size - 1].id)])
        headers["Link"] = next_link(request, {}, size, following)
    items = [_session(row, principal.session_id) for row in found[:size]]
    return json_answer({"items": items, "next": following}, headers=headers)


@routes.delete(
    "/sessions/{session_id}",
    operation_id="end_session",
    status_code=204,
    response_class=Response,
    responses=problems("key_not_allowed", "outcome_unknown"),
)
async def end_session(
    request: HttpRequest, parts: Parts, principal: SecurityWriter, session_id: Id
) -> Response:
    """End one of your sessions: its tokens are void and its streams are closed."""
    await self_service.end_session(parts.auth, principal, peer_of(request), session_id)
    return Response(status_code=204)


@routes.delete(
    "/sessions",
    operation_id="end_sessions",
    status_code=204,
    response_class=Response,
    responses=problems("key_not_allowed", "outcome_unknown"),
)
async def end_sessions(
    request: HttpRequest,
    parts: Parts,
    principal: SecurityWriter,
    keep_current: Annotated[
        bool, Query(description="Whether the session that asks lives on.")
    ] = False,
) -> Response:
    """Log out everywhere: end all your sessions, with this one unless `keep_current`.

    API keys are no sessions; revoke them one by one, or with a new password.
    """
    await self_service.end_sessions(parts.auth, principal, peer_of(request), keep_this=keep_current)
    return Response(status_code=204)


@routes.post(
    "/me/password",
    operation_id="change_password",
    response_model=Tokens,
    response_model_exclude_none=True,
    responses=problems(
        "invalid_credentials",
        "step_up_required",
        "key_not_allowed",
        "too_many_attempts",
        "overloaded",
        "outcome_unknown",
    ),
)
async def change_password(
    request: HttpRequest,
    response: Response,
    parts: Parts,
    principal: SecurityWriter,
    body: NewPassword,
) -> Tokens:
    """Change your password. Every session ends, this one too; the answer begins a new one."""
    grant = await proofs.change_password(
        parts.auth,
        principal,
        peer_of(request),
        body.new_password,
        body.current_password,
        revoke_keys=body.revoke_keys,
    )
    return granted(grant, response, body.mode)


@routes.get(
    "/me/security-events",
    operation_id="list_security_events",
    response_model=SecurityEventPage,
    responses=problems("invalid_cursor"),
)
async def list_security_events(
    request: HttpRequest,
    parts: Parts,
    principal: SecurityReader,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List what happened to your login, API keys, factors and shared accounts, newest first.

    These are entries of a hash-chained journal of your own, numbered from 1 without gaps.
    """
    return await security_events_page(request, parts, principal, principal.user_id, limit, cursor)


async def security_events_page(
    request: HttpRequest,
    parts: Deps,
    principal: Principal,
    user_id: UUID,
    limit: int | None,
    cursor: str | None,
) -> Response:
    """A page of a user's events, for whoever may read them.

    Raises:
        InvalidCursor: It was not issued to this reader for this user.
    """
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    about = {"user": str(user_id)}
    before = None
    if cursor is not None:
        before = int(decode_cursor(secret, reader, "security-events", about, cursor)[0])
    async with parts.pool.acquire() as connection:
        found = await events.listed(connection, user_id, before, size + 1)
    headers = {}
    following = None
    if len(found) > size:
        position: list[str | int] = [found[size - 1].seq]
        following = encode_cursor(secret, reader, "security-events", about, position)
        headers["Link"] = next_link(request, {}, size, following)
    items = [
        {"sequence": e.seq, "at": e.at, "kind": e.kind, "by": e.by, "data": e.data}
        for e in found[:size]
    ]
    return json_answer({"items": items, "next": following}, headers=headers)
