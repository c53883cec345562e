"""Tickets for the stream: `POST /v1/stream/tickets`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.responses import Response

from tbot.auth import scopes, tickets
from tbot.core import clock
from tbot.web.answers import json_answer
from tbot.web.dependencies import AnyUser, Parts
from tbot.web.fields import Answer, Request, Timestamp
from tbot.web.openapi import problems
from tbot.web.routes import SHOWS_SECRET, router

routes = router("stream")


class TicketWish(Request):
    """What a ticket is to be good for."""

    scope: Annotated[
        str,
        Field(
            strict=True,
            max_length=1024,
            description="Scopes separated by spaces, of those that the token covers; empty for all "
            "of them.",
            examples=["market:read account:read"],
        ),
    ] = ""


class TicketOut(Answer):
    """A ticket: show it once, soon."""

    ticket: Annotated[str, Field(examples=["tbt_o3Vb5Zc0yFhJt8nXw1kQm2rS4uA6dE7gL9pTzC-iB_M"])]
    scope: str
    expires_at: Timestamp


@routes.post(
    "/stream/tickets",
    operation_id="issue_ticket",
    openapi_extra=SHOWS_SECRET,
    status_code=201,
    response_model=TicketOut,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems("insufficient_scope", "overloaded"),
    },
)
async def issue_ticket(parts: Parts, principal: AnyUser, body: TicketWish) -> Response:
    """Issue a ticket for a web page, which cannot send a token where a ticket goes.

    It logs in to `/v1/stream` (in the first message) or `/v1/events` (as query parameter), once,
    as the user and session of the token.
    """
    settings = parts.settings.stream
    ticket = await tickets.issue(
        parts.auth, principal, body.scope, settings.ticket_ttl_s, settings.tickets_max
    )
    answer = {
        "ticket": ticket.text,
        "scope": scopes.text(ticket.scopes),
        "expires_at": clock.stamp(ticket.expires_at),
    }
    return json_answer(answer, 201, {"Location": "/v1/stream"})
