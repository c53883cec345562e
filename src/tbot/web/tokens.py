"""Logging in, with a second factor where there is one; refreshing, proving again, logging out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Form
from pydantic import Field, StringConstraints
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth import flow, proofs, scopes
from tbot.auth.flow import Grant
from tbot.core.errors import InvalidToken
from tbot.web.browser import check_same_site, clear_cookie, refresh_cookie, set_cookie
from tbot.web.dependencies import AnyUser, Parts, peer_of
from tbot.web.fields import Answer, Request
from tbot.web.openapi import problems
from tbot.web.routes import router

routes = router("tokens", "/v1/token")

_PASSWORD_LENGTH_MAX = 4096
"""Of what is looked at at all; the real limit is a setting and answers as a wrong password does."""

# As long as any token of ours, so that one of another kind is told that it is no good here.
Secret = Annotated[str, StringConstraints(min_length=1, max_length=2048), Field(strict=True)]
Password = Annotated[
    str,
    StringConstraints(min_length=1, max_length=_PASSWORD_LENGTH_MAX),
    Field(strict=True, json_schema_extra={"format": "password"}),
]
Code = Annotated[
    str,
    StringConstraints(min_length=6, max_length=32),
    Field(
        strict=True,
        description="Six digits from the authenticator app, or a recovery code.",
        examples=["287082"],
    ),
]
Mode = Annotated[
    Literal["body", "browser"],
    Field(
        description="`browser`: the refresh token comes in an HttpOnly `__Host-` cookie, and not "
        "in the body."
    ),
]


class Tokens(Answer):
    """A pair of tokens (RFC 6749, section 5.1)."""

    access_token: Annotated[str, Field(description="For `Authorization: Bearer`.")]
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a kind of token, not one
    expires_in: Annotated[int, Field(description="Seconds that the access token is good for.")]
    refresh_token: Annotated[
        str | None,
        Field(
            description="Good for exactly one refresh; a second use ends the session. Absent in "
            "browser mode: it is in the cookie."
        ),
    ] = None
    scope: Annotated[str, Field(examples=["market:read orders:read"])]


class RefreshToken(Request):
    """A refresh token, to be exchanged or revoked."""

    refresh_token: Annotated[Secret, Field(examples=["tbr_" + "A" * 43])]


class SecondStep(Request):
    """What finishes a login that was answered `mfa_required`."""

    mfa_token: Annotated[Secret, Field(examples=["tbm_" + "A" * 43])]
    code: Code
    mode: Mode = "body"


class Proof(Request):
    """The password, or (for who has a second factor) a code."""

    password: Password | None = None
    code: Code | None = None


class Proven(Answer):
    """What was shown, and for how long it opens what needs it."""

    method: Literal["password", "totp"]
    expires_in: Annotated[int, Field(description="Seconds.")]


class Revoked(Answer):
    """The token is not good any more, whether it was or not."""

    revoked: Literal[True] = True


def granted(grant: Grant, response: Response, mode: str = "body") -> Tokens:
    """A grant as its caller gets it: all of it in the body, or the refresh token in the cookie."""
    if mode == "browser":
        set_cookie(response, grant)
    return Tokens(
        access_token=grant.access_token,
        expires_in=grant.expires_in_s,
        refresh_token=None if mode == "browser" else grant.refresh_token,
        scope=scopes.text(grant.scopes),
    )


@routes.post(
    "",
    operation_id="log_in",
    response_model_exclude_none=True,
    responses=problems(
        "invalid_credentials",
        "invalid_code",
        "mfa_required",
        "cross_site",
        "too_many_attempts",
        "overloaded",
        "outcome_unknown",
    ),
)
async def log_in(
    request: HttpRequest,
    response: Response,
    parts: Parts,
    username: Annotated[str, Form(max_length=256, examples=["admin"])],
    password: Annotated[
        str, Form(max_length=_PASSWORD_LENGTH_MAX, json_schema_extra={"format": "password"})
    ],
    scope: Annotated[
        str,
        Form(
            max_length=1024,
            description="Scopes separated by spaces; empty asks for all that the role allows.",
        ),
    ] = "",
    otp: Annotated[
        str | None,
        Form(max_length=32, description="The second factor's code, to log in in one step."),
    ] = None,
    mode: Annotated[
        Literal["body", "browser"],
        Form(description="`browser`: the refresh token comes in an HttpOnly `__Host-` cookie."),
    ] = "body",
    grant_type: Annotated[Literal["password", ""], Form()] = "password",
    client_id: Annotated[str | None, Form(max_length=256, description="Ignored.")] = None,
    client_secret: Annotated[str | None, Form(max_length=256, description="Ignored.")] = None,
) -> Tokens:
    """Log in with user name and password (OAuth 2.0 password grant) and begin a session.

    Who has a second factor is answered `mfa_required`, with an `mfa_token` for
    `POST /v1/token/mfa`.
    """
    if mode == "browser":
        check_same_site(request, parts.settings.auth)
    code = otp or None
    grant = await flow.login(parts.auth, username, password, scope, peer_of(request), code)
    return granted(grant, response, mode)


@routes.post(
    "/mfa",
    operation_id="finish_log_in",
    response_model_exclude_none=True,
    responses=problems(
        "invalid_token",
        "invalid_code",
        "cross_site",
        "too_many_attempts",
        "unavailable",
        "outcome_unknown",
    ),
)
async def finish_log_in(
    request: HttpRequest, response: Response, parts: Parts, body: SecondStep
) -> Tokens:
    """Finish a login with a code of the second factor, or with a recovery code.

    Each code is good once. The `mfa_token` is good for this alone, for `auth.mfa_ttl_s`, and for
    five wrong codes.
    """
    if body.mode == "browser":
        check_same_site(request, parts.settings.auth)
    grant = await proofs.finish_login(parts.auth, body.mfa_token, body.code, peer_of(request))
    return granted(grant, response, body.mode)


@routes.post(
    "/refresh",
    operation_id="refresh_tokens",
    response_model_exclude_none=True,
    responses=problems("invalid_token", "cross_site", "unavailable", "outcome_unknown"),
)
async def refresh(
    request: HttpRequest, response: Response, parts: Parts, body: RefreshToken | None = None
) -> Tokens:
    """Exchange a refresh token, from the body or the browser's cookie, for a new pair.

    Each refresh token is good once. Of refreshes sent at the same time one wins; using a token
    again later ends the whole session, because then two parties hold it.
    """
    if body is not None:
        token, mode = body.refresh_token, "body"
    else:
        cookie = refresh_cookie(request, parts.settings.auth)
        if cookie is None:
            raise InvalidToken("there is no refresh token, in the body or in a cookie")
        token, mode = cookie, "browser"
    return granted(await flow.refresh(parts.auth, token, peer_of(request)), response, mode)


@routes.post(
    "/revoke",
    operation_id="revoke_tokens",
    responses=problems("cross_site", "unavailable", "outcome_unknown"),
)
async def revoke(
    request: HttpRequest, response: Response, parts: Parts, body: RefreshToken | None = None
) -> Revoked:
    """Log out: end the session of a refresh token, with its access tokens (RFC 7009).

    The token is in the body, or in the browser's cookie, which is cleared. Answers the same for
    tokens that we do not know.
    """
    if body is not None:
        await flow.revoke(parts.auth, body.refresh_token, peer_of(request))
        return Revoked()
    token = refresh_cookie(request, parts.settings.auth)
    if token is not None:
        await flow.revoke(parts.auth, token, peer_of(request))
    clear_cookie(response)
    return Revoked()


@routes.post(
    "/step-up",
    operation_id="step_up",
    responses=problems(
        "invalid_credentials",
        "invalid_code",
        "step_up_required",
        "key_not_allowed",
        "too_many_attempts",
        "overloaded",
        "outcome_unknown",
    ),
)
async def step_up(request: HttpRequest, parts: Parts, principal: AnyUser, body: Proof) -> Proven:
    """Show who you are again: a code of the second factor, or without one the password.

    For `auth.step_up_s` this session may then do what answers `step_up_required`: withdraw, make
    API keys, share accounts, change the second factor.
    """
    method = await proofs.step_up(parts.auth, principal, peer_of(request), body.password, body.code)
    return Proven(
        method="totp" if method == "totp" else "password",
        expires_in=parts.settings.auth.step_up_s,
    )
