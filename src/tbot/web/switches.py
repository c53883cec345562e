"""Switches: halting trading, a venue, an instrument, withdrawals or transfers, and resuming it.

Halting has to be quick, and takes nothing but the scope: also an API key may. Resuming has to be
deliberate: it takes a fresh proof, and the tag of the halt that it is about.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Any

from fastapi import Path, Query
from pydantic import Field, StringConstraints
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.proofs import require_fresh
from tbot.core import clock
from tbot.core.errors import ConfigurationError, NotFound
from tbot.core.refusals import Reason, Refused
from tbot.gateway import switches
from tbot.gateway.switches import Connection, Turn
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    PageCursor,
    PageLimit,
    Parts,
    SwitchOperator,
    SwitchReader,
    actor_of,
    page_limit,
)
from tbot.web.deps import Deps
from tbot.web.fields import Answer, Harmless, Request, Timestamp
from tbot.web.once import KeyHeader, carried_out, keyed, respond
from tbot.web.openapi import problems
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.preconditions import TAGGED, IfMatch, expected_versions, tag_of
from tbot.web.problems import Problem
from tbot.web.routes import router

routes = router("switches")

Name = Annotated[
    str,
    Path(
        pattern=switches.NAME_PATTERN,
        description="`trading`, `withdrawals`, `transfers`, `venue:NAME` or "
        "`instrument:VENUE:SYMBOL`.",
        examples=["instrument:paper:BTC-USDT"],
    ),
]
Why = Annotated[
    str,
    StringConstraints(min_length=1, max_length=switches.REASON_LENGTH_MAX),
    Harmless,
    Field(strict=True, examples=["an inspection"]),
]
Who = Annotated[
    str, Field(description="In words.", examples=["user root", "operator ann@desk", "gateway"])
]
By = Annotated[
    dict[str, str],
    Field(
        description="Who, as in the journal: `kind`, and where known `user`, `session` (a login or "
        "an API key), `address`, `request` and `name`."
    ),
]


class NewHalt(Request):
    """Why something is halted."""

    reason: Annotated[Why, Field(description="Kept, and told to whoever is refused.")]
    to_come: Annotated[
        bool,
        Field(strict=True, description="Also a venue or instrument that is not known here yet."),
    ] = False


class Resumption(Request):
    """Why something is resumed."""

    reason: Annotated[Why, Field(description="Kept.")]


class SwitchOut(Answer):
    """A switch as it is now."""

    name: str
    halted: bool
    reason: Annotated[
        str | None, Field(description="Of its last turn; null where nobody ever turned it.")
    ]
    since: Annotated[Timestamp | None, Field(description="When it was last turned.")]
    who: Who | None
    by: By | None


class SwitchPage(Answer):
    """A page of switches, by name."""

    items: list[SwitchOut]
    next: str | None


class TurnOut(Answer):
    """A switch as it was turned at one time."""

    halted: bool
    reason: str
    at: Timestamp
    who: Who
    by: By


class TurnPage(Answer):
    """A page of turns, newest first."""

    items: list[TurnOut]
    next: str | None


def _json(name: str, turn: Turn | None) -> dict[str, Any]:
    if turn is None:
        never = dict.fromkeys(("reason", "since", "who", "by"))
        return {"name": name, "halted": False, **never}
    return {
        "name": name,
        "halted": turn.halted,
        "reason": turn.reason,
        "since": clock.stamp(turn.at),
        "who": turn.by,
        "by": dict(turn.actor),
    }


def _version(name: str, turn: Turn | None) -> str:
    """A name for a switch's last turn."""
    told = f"{name} {turn.halted} {clock.stamp(turn.at)} {turn.reason}" if turn else name
    return blake2b(told.encode(), digest_size=8).hexdigest()


def _answer(turn: Turn) -> Response:
    headers = {"ETag": tag_of(_version(turn.name, turn), "0")}
    return json_answer(_json(turn.name, turn), headers=headers)


async def _check_known(deps: Deps, connection: Connection, name: str) -> None:
    """See `switches.check_known`."""
    switches.check_known(name, await switches.known_here(connection, deps.feeds))


async def _find(
    deps: Deps, connection: Connection, name: str, *, lock: bool = False
) -> Turn | None:
    """A switch as it is now; None if it was never turned.

    Raises:
        NotFound: Nor is there anything that it would halt.
    """
    turn = await switches.find(connection, name, lock=lock)
    if turn is None:
        try:
            await _check_known(deps, connection, name)
        except ConfigurationError as error:
            raise NotFound(str(error)) from None
    return turn


@routes.get(
    "/switches",
    operation_id="list_switches",
    response_model=SwitchPage,
    responses=problems("invalid_cursor"),
)
async def list_switches(
    request: HttpRequest,
    parts: Parts,
    principal: SwitchReader,
    halted: Annotated[
        bool | None, Query(description="Only those that are halted, or that are not.")
    ] = None,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List the switches by name: those of the whole and of venues, and all that were ever turned.

    Instruments are not in it as long as nobody turned theirs.
    """
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    filters = {} if halted is None else {"halted": "true" if halted else "false"}
    after = ""
    if cursor is not None:
        after = str(decode_cursor(secret, reader, "switches", filters, cursor)[0])
    always = [*switches.GLOBAL, *(f"venue:{venue}" for venue in parts.feeds)]
    async with parts.pool.acquire() as connection:
        found = await switches.page(connection, always, after, size + 1, halted=halted)
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "switches", filters, [found[size - 1][0]])
        headers["Link"] = next_link(request, filters, size, following)
    items = [_json(name, turn) for name, turn in found[:size]]
    return json_answer({"items": items, "next": following}, headers=headers)


@routes.get("/switches/{name}", operation_id="get_switch", response_model=SwitchOut)
async def get_switch(parts: Parts, _principal: SwitchReader, name: Name) -> Response:
    """Get one switch as it is now."""
    async with parts.pool.acquire() as connection:
        turn = await _find(parts, connection, name)
    return json_answer(_json(name, turn), headers={"ETag": tag_of(_version(name, turn), "0")})


@routes.get(
    "/switches/{name}/turns",
    operation_id="list_switch_turns",
    response_model=TurnPage,
    responses=problems("invalid_cursor"),
)
async def list_switch_turns(
    request: HttpRequest,
    parts: Parts,
    principal: SwitchReader,
    name: Name,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List how a switch was turned: by whom, when and why, newest first."""
    size = page_limit(limit, parts)
    secret, reader, of = parts.auth.keys.cursor_secret, principal.user_id, f"turns:{name}"
    before = None
    if cursor is not None:
        before = int(decode_cursor(secret, reader, of, {}, cursor)[0])
    async with parts.pool.acquire() as connection:
        found = await switches.history(connection, name, size + 1, before)
        if not found:
            await _find(parts, connection, name)
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, of, {}, [found[size - 1].id])
        headers["Link"] = next_link(request, {}, size, following)
    items = [
        {
            "halted": turn.halted,
            "reason": turn.reason,
            "at": clock.stamp(turn.at),
            "who": turn.by,
            "by": dict(turn.actor),
        }
        for turn in found[:size]
    ]
    return json_answer({"items": items, "next": following}, headers=headers)


@routes.post(
    "/switches/{name}/halt",
    operation_id="halt_switch",
    response_model=SwitchOut,
    responses={200: TAGGED, **problems("switch_unknown", "outcome_unknown")},
)
async def halt_switch(
    request: HttpRequest,
    parts: Parts,
    principal: SwitchOperator,
    name: Name,
    body: NewHalt,
    _key: KeyHeader = None,
) -> Response:
    """Halt: once this is answered, nothing that comes later is accepted, by any process.

    What is under way goes on: cancels, reports, releases of what is held. Halted for the same
    reason already, it stays as it is; for another one, that is its reason from now on.
    """
    actor = actor_of(request, principal)

    async def turn(connection: Connection) -> Turn:
        if not body.to_come:
            try:
                await _check_known(parts, connection, name)
            except ConfigurationError as error:
                detail = f"{error} (`to_come` halts it in advance)"
                raise Problem("switch_unknown", detail) from None
        return await switches.halt(connection, name, body.reason, actor)

    once = await keyed(request, parts, principal, _answer)
    return respond(await carried_out(parts, once, turn), _answer)


@routes.post(
    "/switches/{name}/resume",
    operation_id="resume_switch",
    response_model=SwitchOut,
    responses={
        200: TAGGED,
        **problems(
            "not_halted",
            "venue_reset",
            "step_up_required",
            "key_not_allowed",
            "outcome_unknown",
            "precondition_required",
            Reason.PRECONDITION_FAILED,
        ),
    },
)
async def resume_switch(
    request: HttpRequest,
    parts: Parts,
    principal: SwitchOperator,
    name: Name,
    body: Resumption,
    _match: IfMatch = None,
    _key: KeyHeader = None,
) -> Response:
    """Resume what is halted. It needs a fresh proof (`step_up_required`), and no API key may.

    `If-Match` says which halt it is about: one that somebody else has turned on since is not
    resumed by mistake. A venue that lost its memory is not resumed here (`venue_reset`).
    """
    await require_fresh(parts.auth, principal)
    versions = expected_versions(request)
    actor = actor_of(request, principal)

    async def turn(connection: Connection) -> Turn | Refused:
        found = await _find(parts, connection, name, lock=True)
        if versions is not None and _version(name, found) not in versions:
            return Refused(Reason.PRECONDITION_FAILED)
        return await switches.release(connection, name, body.reason, actor)

    once = await keyed(request, parts, principal, _answer)
    return respond(await carried_out(parts, once, turn), _answer)
