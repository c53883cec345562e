"""Accounts shared with other users: who may do what with whose."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth import store as users_store
from tbot.auth.proofs import require_fresh
from tbot.auth.self_service import may_manage
from tbot.core import clock
from tbot.core.errors import NotFound
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.ledger import members_store
from tbot.ledger.members import Access, MemberRole, ShareAccount
from tbot.web.answers import json_answer
from tbot.web.dependencies import AccountReader, AccountWriter, Parts, actor_of
from tbot.web.deps import Deps
from tbot.web.fields import Answer, Id, Request, Timestamp
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.problems import invalid, refused
from tbot.web.routes import router

routes = router("accounts")

MEMBERS_MAX = 100
"""Members of one account."""


class MemberOut(Answer):
    """Somebody who may use an account."""

    user_id: Id
    role: Annotated[
        Literal["viewer", "trader", "owner"],
        Field(
            description="A viewer reads; a trader also places and cancels orders; an owner does "
            "everything, sharing included."
        ),
    ]
    since: Annotated[Timestamp | None, Field(description="Null for who opened the account.")]


class Members(Answer):
    """Who may use an account: first who opened it, then the members."""

    items: list[MemberOut]


class MemberRoleBody(Request):
    """What somebody is to be."""

    role: MemberRole


@routes.get("/accounts/{account_id}/members", operation_id="list_members", response_model=Members)
async def list_members(parts: Parts, principal: AccountReader, account_id: Id) -> Response:
    """List who may use an account; for everybody who may."""
    facts = await own_account(parts, principal, account_id, need=Access.READ)
    async with parts.pool.acquire() as connection:
        found = await members_store.list_members(connection, account_id)
    items = [{"user_id": facts.owner_id, "role": "owner", "since": None}]
    items += [
        {"user_id": one.user_id, "role": one.role.value, "since": clock.stamp(one.since)}
        for one in found
    ]
    return json_answer({"items": items})


@routes.put(
    "/accounts/{account_id}/members/{user_id}",
    operation_id="share_account",
    response_model=MemberOut,
    responses={
        200: {"description": "They were a member already, and are one in this role now."},
        201: {"model": MemberOut, "description": "They are a member now."},
        **problems(
            "insufficient_access",
            "step_up_required",
            "key_not_allowed",
            "overloaded",
            "outcome_unknown",
            Reason.ACCOUNT_CLOSED,
        ),
    },
)
async def share_account(
    request: HttpRequest,
    parts: Parts,
    principal: AccountWriter,
    account_id: Id,
    user_id: Id,
    body: MemberRoleBody,
) -> Response:
    """Share an account with a user, who tells you their id, or change their role.

    Repeating it changes nothing. It needs a fresh proof (`step_up_required`).
    """
    facts = await own_account(parts, principal, account_id)
    may_manage(parts.auth, principal)
    await require_fresh(parts.auth, principal, keys=parts.settings.auth.keys_manage)
    if user_id == facts.owner_id:
        raise invalid("this is who opened the account, and stays its owner", parameter="user_id")
    async with parts.pool.acquire() as connection:
        user = await users_store.user_by_id(connection, user_id)
        found = await members_store.list_members(connection, account_id)
    if user is None or user.status != "active":
        raise NotFound("no such user")
    member = next((one for one in found if one.user_id == user_id), None)
    new = member is None
    if new and len(found) >= MEMBERS_MAX:
        raise invalid(f"an account has at most {MEMBERS_MAX} members", parameter="user_id")
    if member is None or member.role is not body.role:
        await _commit(request, parts, principal, account_id, user_id, body.role)
        async with parts.pool.acquire() as connection:
            found = await members_store.list_members(connection, account_id)
        member = next((one for one in found if one.user_id == user_id), None)
    if member is None:  # somebody else took it away again
        raise NotFound("no such member")
    since = clock.stamp(member.since)
    shared = {"user_id": user_id, "role": member.role.value, "since": since}
    return json_answer(shared, 201 if new else 200)


@routes.delete(
    "/accounts/{account_id}/members/{user_id}",
    operation_id="unshare_account",
    status_code=204,
    response_class=Response,
    responses=problems("insufficient_access", "key_not_allowed", "overloaded", "outcome_unknown"),
)
async def unshare_account(
    request: HttpRequest,
    parts: Parts,
    principal: AccountWriter,
    account_id: Id,
    user_id: Id,
) -> Response:
    """Take a member's role away: at once for requests, within seconds for open streams.

    Members may leave by themselves.
    """
    need = Access.READ if user_id == principal.user_id else Access.OWN
    await own_account(parts, principal, account_id, need=need)
    may_manage(parts.auth, principal)
    async with parts.pool.acquire() as connection:
        access = await members_store.member_access(connection, account_id, user_id)
    if access is None:
        raise NotFound("no such member")
    await _commit(request, parts, principal, account_id, user_id, None)
    return Response(status_code=204)


async def _commit(
    request: HttpRequest,
    parts: Deps,
    principal: AccountWriter,
    account_id: UUID,
    user_id: UUID,
    role: MemberRole | None,
) -> None:
    actor = actor_of(request, principal)
    command = ShareAccount(new_id(), actor, account_id, user_id, role)
    outcome = await parts.orders.accounts.committer.commit(command)
    if isinstance(outcome, Refused):
        raise refused(outcome)
