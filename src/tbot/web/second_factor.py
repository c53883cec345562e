"""One's own second factor: time-based codes, and recovery codes for who loses the phone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth import proofs
from tbot.core import clock
from tbot.web.dependencies import Parts, SecurityReader, SecurityWriter, peer_of
from tbot.web.fields import Answer, Request, Timestamp
from tbot.web.openapi import problems
from tbot.web.routes import SHOWS_SECRET, router
from tbot.web.tokens import Code

routes = router("security")

_SENSITIVE = ("step_up_required", "key_not_allowed", "outcome_unknown")


class FactorOut(Answer):
    """Whether a login needs a second factor."""

    enrolled: bool
    confirmed_at: Timestamp | None
    recovery_codes_left: int


class EnrolmentOut(Answer):
    """A secret for an authenticator app, not in force before its first code."""

    secret: Annotated[str, Field(description="Base 32, to be typed.")]
    otpauth_uri: Annotated[str, Field(description="To be shown as a QR code.")]


class FirstCode(Request):
    """A code of the new secret."""

    code: Code


class RecoveryCodes(Answer):
    """Codes that are good once each, instead of the app's. They are not shown again."""

    recovery_codes: Annotated[list[str], Field(examples=[["MFRG-GZDF-MZTW-Q2LK"]])]


@routes.get("/me/totp", operation_id="get_second_factor")
async def get_factor(parts: Parts, principal: SecurityReader) -> FactorOut:
    """Tell whether you have a second factor, and how many recovery codes are left."""
    factor = await proofs.factor_of(parts.auth, principal)
    if factor is None or factor.confirmed_at is None:
        return FactorOut(enrolled=False, confirmed_at=None, recovery_codes_left=0)
    return FactorOut(
        enrolled=True,
        confirmed_at=clock.stamp(factor.confirmed_at),
        recovery_codes_left=factor.recovery_codes_left,
    )


@routes.post(
    "/me/totp",
    operation_id="begin_second_factor",
    openapi_extra=SHOWS_SECRET,
    responses=problems("factor_exists", *_SENSITIVE),
)
async def begin_factor(parts: Parts, principal: SecurityWriter) -> EnrolmentOut:
    """Begin with a second factor (RFC 6238): a secret that its first code puts in force."""
    enrolment = await proofs.begin_enrolment(parts.auth, principal)
    return EnrolmentOut(secret=enrolment.secret, otpauth_uri=enrolment.uri)


@routes.post(
    "/me/totp/confirm",
    operation_id="confirm_second_factor",
    openapi_extra=SHOWS_SECRET,
    responses=problems("factor_not_begun", "invalid_code", "too_many_attempts", *_SENSITIVE),
)
async def confirm_factor(
    request: HttpRequest, parts: Parts, principal: SecurityWriter, body: FirstCode
) -> RecoveryCodes:
    """Put the second factor in force with its first code. Keep the recovery codes.

    From now on each login needs a code, and so does what needs a fresh proof.
    """
    codes = await proofs.confirm_enrolment(parts.auth, principal, peer_of(request), body.code)
    return RecoveryCodes(recovery_codes=codes)


@routes.post(
    "/me/totp/recovery-codes",
    operation_id="renew_recovery_codes",
    openapi_extra=SHOWS_SECRET,
    responses=problems("factor_not_begun", *_SENSITIVE),
)
async def renew_recovery_codes(
    request: HttpRequest, parts: Parts, principal: SecurityWriter
) -> RecoveryCodes:
    """Get new recovery codes; the old ones are void."""
    codes = await proofs.new_recovery_codes(parts.auth, principal, peer_of(request))
    return RecoveryCodes(recovery_codes=codes)


@routes.delete(
    "/me/totp",
    operation_id="remove_second_factor",
    status_code=204,
    response_class=Response,
    responses=problems(*_SENSITIVE),
)
async def remove_factor(request: HttpRequest, parts: Parts, principal: SecurityWriter) -> Response:
    """Remove the second factor; needs one that was shown within `auth.step_up_s`."""
    await proofs.remove_factor(parts.auth, principal, peer_of(request))
    return Response(status_code=204)
