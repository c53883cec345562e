"""Logging in, refreshing, logging out."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Form
from pydantic import Field, StringConstraints

from tbot.auth import flow, scopes
from tbot.auth.flow import Grant
from tbot.web.dependencies import Parts
from tbot.web.fields import Answer, Request
from tbot.web.openapi import problems
from tbot.web.routes import router

routes = router("tokens", "/v1/token")

_PASSWORD_LENGTH_MAX = 4096
"""Of what is looked at at all; the real limit is a setting and answers as a wrong password does."""


class Tokens(Answer):
    """A pair of tokens (RFC 6749, section 5.1)."""

    access_token: Annotated[str, Field(description="For `Authorization: Bearer`.")]
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - a kind of token, not one
    expires_in: Annotated[int, Field(description="Seconds that the access token is good for.")]
    refresh_token: Annotated[
        str, Field(description="Good for exactly one refresh; a second use ends the session.")
    ]
    scope: Annotated[str, Field(examples=["market:read orders:read"])]


class RefreshToken(Request):
    """A refresh token, to be exchanged or revoked."""

    refresh_token: Annotated[
        str, StringConstraints(min_length=1, max_length=256), Field(strict=True)
    ]


class Revoked(Answer):
    """The token is not good any more, whether it was or not."""

    revoked: Literal[True] = True


def _tokens(grant: Grant) -> Tokens:
    return Tokens(
        access_token=grant.access_token,
        expires_in=grant.expires_in_s,
        refresh_token=grant.refresh_token,
        scope=scopes.text(grant.scopes),
    )


@routes.post(
    "",
    operation_id="log_in",
    responses=problems("invalid_credentials", "overloaded", "outcome_unknown"),
)
async def log_in(
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
    grant_type: Annotated[Literal["password", ""], Form()] = "password",
    client_id: Annotated[str | None, Form(max_length=256, description="Ignored.")] = None,
    client_secret: Annotated[str | None, Form(max_length=256, description="Ignored.")] = None,
) -> Tokens:
    """Log in with user name and password (OAuth 2.0 password grant) and begin a session."""
    return _tokens(await flow.login(parts.auth, username, password, scope))


@routes.post(
    "/refresh",
    operation_id="refresh_tokens",
    responses=problems("invalid_token", "unavailable", "outcome_unknown"),
)
async def refresh(parts: Parts, body: RefreshToken) -> Tokens:
    """Exchange a refresh token for a new pair.

    Each refresh token is good once. Of refreshes sent at the same time one wins; using a token
    again later ends the whole session, because then two parties hold it.
    """
    return _tokens(await flow.refresh(parts.auth, body.refresh_token))


@routes.post(
    "/revoke",
    operation_id="revoke_tokens",
    responses=problems("unavailable", "outcome_unknown"),
)
async def revoke(parts: Parts, body: RefreshToken) -> Revoked:
    """Log out: end the session of a refresh token, with its access tokens (RFC 7009).

    Answers the same for tokens that we do not know.
    """
    await flow.revoke(parts.auth, body.refresh_token)
    return Revoked()
