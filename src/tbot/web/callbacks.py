"""Where payment providers tell what became of payments: public, and believed only if signed."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Header, Path
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.core.errors import InvalidSignature, NotFound, ProviderError
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Actor
from tbot.ledger import payments_flow as flow
from tbot.web.dependencies import Parts
from tbot.web.openapi import problems
from tbot.web.payments import desk_of
from tbot.web.problems import Problem, refused
from tbot.web.routes import router

routes = router("payments")

_BODY: Any = {
    "requestBody": {
        "required": True,
        "description": "In the provider's own words; the signature covers it byte for byte.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
}


@routes.post(
    "/callbacks/{provider}",
    operation_id="take_callback",
    status_code=204,
    response_class=Response,
    openapi_extra=_BODY,
    responses={
        204: {"description": "Booked, or known already. Anything else is to be sent again."},
        **problems(
            "bad_request",
            "invalid_signature",
            "body_too_large",
            "overloaded",
            "outcome_unknown",
            Reason.PAYMENT_CONTRADICTED,
        ),
    },
)
async def take_callback(
    request: HttpRequest,
    parts: Parts,
    provider: Annotated[str, Path(json_schema_extra={"maxLength": 64}, examples=["simulated"])],
    message_id: Annotated[str, Header(alias="webhook-id", max_length=256)] = "",
    timestamp: Annotated[str, Header(alias="webhook-timestamp", max_length=32)] = "",
    signature: Annotated[str, Header(alias="webhook-signature", max_length=1024)] = "",
) -> Response:
    """Take a payment provider's callback (signed as Standard Webhooks has it).

    Repeating one changes nothing, and their order does not matter.
    """
    desk = desk_of(parts)
    if desk.provider is None or desk.provider.name != provider:
        raise NotFound("no such provider")
    body = await request.body()
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if len(request.headers.getlist(name)) != 1:
            raise InvalidSignature(f"the message needs one {name} header")
    desk.provider.verify(message_id, timestamp, signature, body)
    try:
        report = desk.provider.read(body)
    except ProviderError as error:
        raise Problem("bad_request", str(error)) from None
    actor = Actor(
        "provider",
        address=request.client.host if request.client is not None else None,
        request=request.scope.get("tbot.request_id"),
        name=provider,
    )
    outcome = await flow.apply_report(desk, report, actor, message_id)
    if isinstance(outcome, Refused):
        raise refused(outcome)
    return Response(status_code=204)
