"""Errors as callers see them: RFC 9457 problem documents, mapped from our errors in one place.

Every problem has a `code` from `CATALOGUE` or from the refusal reasons; `docs/problems.md` is
generated from both. `detail` is written for the caller: it never tells how the server works inside.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import asyncpg
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tbot.core import errors
from tbot.core.ratelimit import limit_field, policy_field
from tbot.core.refusals import Reason, Refused

MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "urn:tbot:problem:"
QUOTA_TYPE: Final = "https://iana.org/assignments/http-problem-types#quota-exceeded"
"""What generic clients know `quota_exceeded` by."""
REALM: Final = "tbot"
ERRORS_MAX: Final = 50
"""Most broken rules listed in one document: a request of nothing but mistakes is not amplified."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: its HTTP status, its title, and what the caller can do about it."""

    status: int
    title: str
    advice: str


CATALOGUE: Final[Mapping[str, Kind]] = {
    "bad_request": Kind(400, "Bad request", "The request is not understood; the detail says why."),
    "malformed_json": Kind(
        400,
        "Malformed JSON",
        "The body is not one JSON value in UTF-8 as RFC 8259 has it, repeats a member, or nests "
        "too deeply. NaN and Infinity are not JSON.",
    ),
    "malformed_header": Kind(400, "Malformed header", "Correct the header that the detail names."),
    "invalid_cursor": Kind(
        400,
        "Invalid cursor",
        "Cursors are only good as they came, for the list and filters they came with. Begin again "
        "without one.",
    ),
    "unauthenticated": Kind(
        401, "Authentication required", "Send `Authorization: Bearer` with an access token."
    ),
    "invalid_token": Kind(
        401,
        "Invalid token",
        "The token is malformed, expired, revoked or of another kind. Refresh it or log in again.",
    ),
    "invalid_credentials": Kind(
        401, "Wrong user or password", "Both unknown users and wrong passwords answer this."
    ),
    "invalid_code": Kind(
        401,
        "Wrong code",
        "The code of the second factor is wrong, or was used before: each is good once. Wait for "
        "the next one.",
    ),
    "mfa_required": Kind(
        401,
        "Second factor required",
        "The password was right. Send `mfa_token` with a code to `POST /v1/token/mfa` within "
        "`expires_in` seconds.",
    ),
    "invalid_signature": Kind(
        401,
        "Invalid signature",
        "The callback is not signed with the secret agreed on, or was signed too long ago.",
    ),
    "insufficient_scope": Kind(
        403, "Insufficient scope", "Ask for a token with the scope that the document names."
    ),
    "origin_not_allowed": Kind(
        403,
        "Origin not allowed",
        "The operator lists in `stream.origins` which web pages may connect.",
    ),
    "step_up_required": Kind(
        403,
        "Fresh proof required",
        "Show the password (`method` is `password`) or a code of the second factor (`totp`) at "
        "`POST /v1/token/step-up`, then repeat the request.",
    ),
    "key_not_allowed": Kind(
        403, "Not for API keys", "An API key may not do this, whatever its scopes: log in."
    ),
    "insufficient_access": Kind(
        403,
        "Insufficient access",
        "The account is shared with you in a role that does not allow this; `role` says which "
        "would.",
    ),
    "cross_site": Kind(
        403,
        "Cross-site request",
        "The refresh cookie is for pages of our own origin or those of `auth.browser_origins`.",
    ),
    "not_found": Kind(
        404, "Not found", "There is no such thing, or it is not yours: the two look the same."
    ),
    "method_not_allowed": Kind(405, "Method not allowed", "Use a method that `Allow` lists."),
    "not_acceptable": Kind(
        406, "Not acceptable", "Ask in `Accept` for a media type that the detail names."
    ),
    "user_exists": Kind(409, "User exists", "Choose another user name."),
    "last_administrator": Kind(
        409, "Last administrator", "Make somebody else an administrator first."
    ),
    "not_halted": Kind(409, "Not halted", "Look at the list of switches which one is."),
    "venue_reset": Kind(
        409,
        "Venue reset",
        "The venue lost its memory, and its past has to be declared closed. `tbot switches resume "
        "venue:NAME`, where T-Bot runs, shows what that takes and does it with `--confirm`.",
    ),
    "key_exists": Kind(409, "Key exists", "Choose another name for the key, or revoke that one."),
    "keys_max": Kind(409, "Too many keys", "Revoke an API key first."),
    "factor_exists": Kind(409, "Second factor exists", "Remove it first."),
    "factor_not_begun": Kind(409, "No second factor", "Begin with `POST /v1/me/totp`."),
    "request_timeout": Kind(
        408, "Request timeout", "The request did not arrive in time. Send it again, in one go."
    ),
    "precondition_required": Kind(
        428,
        "Precondition required",
        "Read what you want to change, and send its `ETag` in `If-Match` (`*` for whatever it is).",
    ),
    "body_too_large": Kind(
        413, "Body too large", "Send at most `http.body_bytes_max` bytes (see the settings)."
    ),
    "uri_too_long": Kind(414, "URI too long", "Send a shorter path and query."),
    "unsupported_media_type": Kind(
        415,
        "Unsupported media type",
        "Send `Content-Type: application/json` (or a form, where the route takes one) without any "
        "`Content-Encoding`.",
    ),
    "switch_unknown": Kind(
        422,
        "Unknown switch",
        "No venue or instrument of this name is known: it would halt nothing. Correct the name, or "
        "say `to_come`.",
    ),
    "validation_failed": Kind(
        422, "Validation failed", "Correct what `errors` lists; nothing was done."
    ),
    "amend_unsupported": Kind(
        422, "Amending is not supported", "Cancel the order and place another one."
    ),
    "too_many_clients": Kind(
        429,
        "Too many connections",
        "As many as a user or an address may have. Close one, or try again after `Retry-After`.",
    ),
    "quota_exceeded": Kind(
        429,
        "Quota exceeded",
        "Nothing was done. `violated-policies` names the rate limits that are used up "
        "(`docs/rate-limits.md`). Try again after `Retry-After`.",
    ),
    "headers_too_large": Kind(
        431,
        "Headers too large",
        "Send a request head of at most `overload.headers_bytes_max` bytes.",
    ),
    "too_many_attempts": Kind(
        429,
        "Too many failed attempts",
        "Nothing was checked. Try again after `Retry-After`, or see `docs/authentication.md` for "
        "the other ways in.",
    ),
    "internal_error": Kind(
        500,
        "Internal error",
        "Our fault. Report the request id. A request that changes something may have been "
        "carried out: repeat it under the same key.",
    ),
    "unavailable": Kind(
        503, "Temporarily unavailable", "Certainly not done. Try again after `Retry-After`."
    ),
    "overloaded": Kind(
        503, "Overloaded", "Certainly not done. Try again after `Retry-After`, more slowly."
    ),
    "not_ready": Kind(503, "Not ready", "Some part is not ready to serve; `checks` says which."),
    "outcome_unknown": Kind(
        504,
        "Outcome unknown",
        "It may or may not have been done. Repeat it under the same key (`client_order_id`) to "
        "learn which; it is never done twice.",
    ),
}

_REASON_STATUS: Final[Mapping[Reason, int]] = {
    Reason.ORDER_NOT_FOUND: 404,
    Reason.ORDER_CLOSED: 409,
    Reason.PRECONDITION_FAILED: 412,
    Reason.ACCOUNT_EXISTS: 409,
    Reason.ACCOUNT_NOT_EMPTY: 409,
    Reason.TRANSFER_NOT_FOUND: 404,
    Reason.TRANSFER_NOT_ALLOWED: 403,
    Reason.TRANSFER_NOT_PENDING: 409,
    Reason.TRANSFER_EXPIRED: 409,
    Reason.TRANSFER_NOT_POSTED: 409,
    Reason.TRANSFER_REVERSED: 409,
    Reason.TRANSFER_IS_REVERSAL: 409,
    Reason.PAYMENT_NOT_FOUND: 404,
    Reason.PAYMENT_STATE: 409,
    Reason.PAYMENT_CONTRADICTED: 409,
    Reason.APPROVER_IS_REQUESTER: 403,
    Reason.GATEWAY_AWAY: 503,
    Reason.SEND_TOO_LATE: 503,
}
_STATUS_CODE: Final[Mapping[int, str]] = {
    401: "unauthenticated",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    413: "body_too_large",
    414: "uri_too_long",
    415: "unsupported_media_type",
    422: "validation_failed",
    503: "unavailable",
}


def reason_status(reason: Reason) -> int:
    """The HTTP status of a refusal: 422 unless it says that something is missing or over."""
    return _REASON_STATUS.get(reason, 422)


class Problem(HTTPException):
    """A problem document, raised by the edge's own code or made from an error by `problem_of`.

    An `HTTPException`, because FastAPI turns every other exception of body parsing into its own.

    Args:
        code: From `CATALOGUE`, or a refusal's reason (then `status` and `title` are given).
        errors: For `validation_failed`: `{pointer | parameter | header, detail}` for each broken
            rule; a pointer is an RFC 6901 JSON pointer into the body.
        extras: Further members of the document.
        headers: Of the response, such as `Retry-After`.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        status: int = 0,
        title: str = "",
        *,
        errors: Sequence[Mapping[str, str]] = (),
        extras: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        kind = CATALOGUE.get(code)
        if kind is not None:
            status, title = status or kind.status, title or kind.title
        super().__init__(status, detail, headers)
        self.code = code
        self.title = title
        self.errors = errors
        self.extras = extras or {}

    def document(self, request_id: str) -> dict[str, Any]:
        """The JSON object that is sent."""
        document: dict[str, Any] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status_code,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id,
        }
        if self.errors:
            document["errors"] = list(self.errors[:ERRORS_MAX])
        return {**document, **self.extras}

    def response(self, request_id: str) -> Response:
        """The whole HTTP answer."""
        # ASCII with escapes: whatever a caller sent that is reflected here is inert.
        body = json.dumps(self.document(request_id), separators=(",", ":")).encode("ascii")
        return Response(body, self.status_code, dict(self.headers or {}), MEDIA_TYPE)


def invalid(detail: str, *, pointer: str | None = None, parameter: str | None = None) -> Problem:
    """A broken rule that no schema expresses, told like one that a schema does."""
    where = {"pointer": pointer} if pointer is not None else {"parameter": parameter or ""}
    listed = [{**where, "detail": detail}]
    return Problem("validation_failed", _first(listed), errors=listed)


def refused(refusal: Refused) -> Problem:
    """A business refusal: its reason is the code."""
    reason = refusal.reason
    headers = {"Retry-After": "1"} if reason_status(reason) == 503 else {}
    extras = {"facts": refusal.facts} if refusal.facts else {}
    return Problem(
        reason.value,
        refusal.detail or reason.doc,
        reason_status(reason),
        reason.value.replace("_", " ").capitalize(),
        extras=extras,
        headers=headers,
    )


def problem_of(error: Exception) -> Problem | None:
    """The problem that an error means to its caller; None for one that is nobody's fault but ours.

    The one place where errors of the domain get HTTP statuses.
    """
    match error:
        case Problem():
            return error
        case RequestValidationError():
            return _validation(error)
        case HTTPException():
            return _http(error)
        case errors.AuthError():
            return _authentication(error)
        case errors.NotFound():
            return Problem("not_found", "there is no such thing, or it is not yours")
        case errors.InvalidCursor():
            return Problem("invalid_cursor", "the cursor does not belong to this list")
        case errors.InvalidAmount():
            return Problem("validation_failed", str(error))
        case errors.InvalidUser() | errors.UserExists() | errors.Conflict():
            return _of_users(error)
        case errors.TooManyAttempts() | errors.QuotaExceeded():
            return _too_often(error)
        case errors.InvalidSignature():
            challenge = {"WWW-Authenticate": f'Signature realm="{REALM}"'}
            return Problem("invalid_signature", str(error), headers=challenge)
        case errors.OutcomeUnknown():
            return Problem(
                "outcome_unknown", "it may or may not have been done: repeat it to learn"
            )
        case errors.Unavailable():
            code = "overloaded" if isinstance(error, errors.Overloaded) else "unavailable"
            return Problem(code, str(error), headers=_retry_after(error.retry_after_s))
        case errors.VenueRateLimited():
            return Problem(
                "unavailable",
                "the venue limits our requests at the moment",
                headers=_retry_after(error.retry_after_s),
            )
        case (
            errors.VenueError()
            | asyncpg.PostgresConnectionError()
            | asyncpg.CannotConnectNowError()
            | asyncpg.TooManyConnectionsError()
            | asyncpg.AdminShutdownError()
            | asyncpg.CrashShutdownError()
            | asyncpg.QueryCanceledError()
            | asyncpg.InterfaceError()
            | asyncpg.InternalClientError()
            | ConnectionError()
            | FileNotFoundError()  # the database's socket, while its server is started again
            | TimeoutError()
        ):
            # Only reads end here: the write path turns what may have happened into OutcomeUnknown.
            return Problem(
                "unavailable", "a part that this needs is away", headers=_retry_after(1.0)
            )
    return None


def _of_users(error: errors.InvalidUser | errors.UserExists | errors.Conflict) -> Problem:
    match error:
        case errors.InvalidUser():
            return invalid(str(error), pointer=f"/{error.field}")
        case errors.UserExists():
            return Problem("user_exists", str(error))
    return Problem(error.code, str(error))


def _too_often(error: errors.TooManyAttempts | errors.QuotaExceeded) -> Problem:
    if isinstance(error, errors.TooManyAttempts):
        wait = _retry_after(error.retry_after_s)
        return Problem("too_many_attempts", str(error), headers=wait)
    return Problem(
        "quota_exceeded",
        str(error),
        extras={"type": QUOTA_TYPE, "violated-policies": error.policies},
        headers={
            "RateLimit-Policy": policy_field(error.standings),
            "RateLimit": limit_field([one for one in error.standings if one.refused]),
            "Retry-After": str(error.retry_after_s),
        },
    )


def _retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _authentication(error: errors.AuthError) -> Problem:
    challenge = f'Bearer realm="{REALM}"'
    match error:
        case errors.InsufficientScope():
            challenge += f', error="insufficient_scope", scope="{error.scope}"'
            return Problem(
                "insufficient_scope",
                str(error),
                extras={"scope": error.scope},
                headers={"WWW-Authenticate": challenge},
            )
        case errors.InvalidCredentials():
            return Problem(
                "invalid_credentials", str(error), headers={"WWW-Authenticate": challenge}
            )
        case errors.InvalidCode():
            return Problem("invalid_code", str(error), headers={"WWW-Authenticate": challenge})
        case errors.SecondFactorRequired():
            return Problem(
                "mfa_required",
                str(error),
                extras={"mfa_token": error.mfa_token, "expires_in": error.expires_in_s},
                headers={"WWW-Authenticate": challenge},
            )
        case errors.StepUpRequired():
            # RFC 9470, section 3
            challenge += ', error="insufficient_user_authentication"'
            challenge += f", max_age={error.max_age_s}"
            return Problem(
                "step_up_required",
                str(error),
                extras={"method": error.method, "max_age_s": error.max_age_s},
                headers={"WWW-Authenticate": challenge},
            )
        case errors.KeyNotAllowed() | errors.CrossSite() | errors.InsufficientAccess():
            return _forbidden(error, challenge)
        case errors.InvalidToken():
            challenge += ', error="invalid_token"'
            return Problem("invalid_token", str(error), headers={"WWW-Authenticate": challenge})
    return Problem(
        "unauthenticated",
        "this call needs an access token",
        headers={"WWW-Authenticate": challenge},
    )


def _forbidden(
    error: errors.KeyNotAllowed | errors.CrossSite | errors.InsufficientAccess, challenge: str
) -> Problem:
    headers = {"WWW-Authenticate": challenge}
    match error:
        case errors.InsufficientAccess():
            extras = {"role": error.role}
            return Problem("insufficient_access", str(error), extras=extras, headers=headers)
        case errors.KeyNotAllowed():
            return Problem("key_not_allowed", str(error), headers=headers)
    return Problem("cross_site", str(error), headers=headers)


def _http(error: HTTPException) -> Problem:
    code = _STATUS_CODE.get(error.status_code)
    if code is None:
        code = "bad_request" if error.status_code < 500 else "internal_error"
    kind = CATALOGUE[code]
    headers = dict(error.headers or {})
    return Problem(code, kind.advice, headers=headers)


def _validation(error: RequestValidationError) -> Problem:
    listed: list[dict[str, str]] = []
    for item in error.errors()[:ERRORS_MAX]:
        place, *path = item["loc"]
        if place == "path":
            # An id that cannot exist names nothing.
            return Problem("not_found", "there is no such thing, or it is not yours")
        detail = _sentence(item)
        if place == "body":
            listed.append({"pointer": _pointer(path), "detail": detail})
        elif place == "header":
            listed.append({"header": ".".join(map(str, path)), "detail": detail})
        else:
            listed.append({"parameter": ".".join(map(str, path)), "detail": detail})
    return Problem("validation_failed", _first(listed), errors=listed)


def _first(listed: Sequence[Mapping[str, str]]) -> str:
    """The first broken rule, with its place in front."""
    first = listed[0]
    where = first.get("pointer") or first.get("parameter") or first.get("header") or "the body"
    return f"{where}: {first['detail']}"


_NAME: Final = re.compile(r"[A-Za-z0-9_.:/~-]{1,40}")


def _pointer(path: Sequence[Any]) -> str:
    # A step that begins with @ is the tag of a union's member (see `tbot.web.account_forms`).
    steps = [_shown(str(step)) for step in path if not str(step).startswith("@")]
    return "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in steps)


def _shown(name: str) -> str:
    """A member's name; not one that cannot be ours: it may be a secret in the wrong place."""
    return name if _NAME.fullmatch(name) else "?"


def _sentence(item: Mapping[str, Any]) -> str:
    match item["type"]:
        case "missing":
            return "is required"
        case "extra_forbidden":
            return "is not a member that this request may have"
        case "too_short" | "too_long" as which:
            limits = item["ctx"]
            if which == "too_short":
                return f"has to have {_items('at least', limits['min_length'])}"
            return f"may have {_items('at most', limits['max_length'])}"
        case "value_error":
            return str(item["msg"]).removeprefix("Value error, ")
        case _:
            message = str(item["msg"])
            return message[:1].lower() + message[1:]


def _items(bound: str, number: int) -> str:
    return f"{bound} {number} item{'' if number == 1 else 's'}"


def catalogue_markdown() -> str:
    """The text of `docs/problems.md`."""
    lines = [
        "# Problems",
        "",
        "Generated from `src/tbot/web/problems.py` and `src/tbot/core/refusals.py`.",
        "",
        "Every error answer is an [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) document,",
        f"`Content-Type: {MEDIA_TYPE}`, with the members `type` (`{TYPE_PREFIX}` and the code),",
        "`title`, `status` (that of the answer), `detail` (for people), `code` and `request_id`",
        "(also the `X-Request-Id` header, and in our logs). `validation_failed` adds `errors`, a",
        "list of `{pointer, detail}` for members of the body (an RFC 6901 pointer) and",
        "`{parameter, detail}` for the query. Refusals may add `facts`: the figures that decided.",
        "",
        "A 4xx or 503 answer means that nothing was changed. After a 504, and after no answer at",
        "all, repeat the request under the same key.",
        "",
        "## Of any request",
        "",
        "| code | status | title | what to do |",
        "| --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{code}` | {kind.status} | {kind.title} | {kind.advice} |"
        for code, kind in CATALOGUE.items()
    ]
    lines += [
        "",
        "## Refusals of orders and accounts",
        "",
        "| code | status | meaning |",
        "| --- | --- | --- |",
    ]
    lines += [f"| `{reason.value}` | {reason_status(reason)} | {reason.doc} |" for reason in Reason]
    return "\n".join(lines) + "\n"
