"""Refresh tokens for pages: in a cookie that no script can read and no other site can use.

A page that logs in with `mode=browser` gets its refresh token as a `__Host-` cookie (HttpOnly,
Secure, SameSite=Strict) and never in a body; the access token it keeps in memory. Calls that the
cookie authenticates are taken from our own pages only: `Sec-Fetch-Site`, which no script can set,
and `Origin` both have to say so.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import Response

from tbot.auth.flow import Grant
from tbot.core.errors import CrossSite
from tbot.core.settings import AuthSettings

COOKIE: Final = "__Host-tbot_refresh"


def check_same_site(request: Request, settings: AuthSettings) -> None:
    """Check that a page of ours, or of a listed origin, made this request.

    Raises:
        CrossSite: Another did, or it does not say.
    """
    origins = request.headers.getlist("origin")
    if len(origins) != 1:
        raise CrossSite("a request with the refresh cookie needs one Origin")
    listed = origins[0] in settings.browser_origins
    parts = urlsplit(origins[0])
    host = request.headers.get("host", "")
    ours = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower() != ""
    # Browsers that do not send it yet send Origin, which is enough.
    site = request.headers.get("sec-fetch-site", "same-origin")
    if not ((ours and site == "same-origin") or (listed and site in ("same-origin", "same-site"))):
        raise CrossSite("pages of this origin may not use the refresh cookie")


def refresh_cookie(request: Request, settings: AuthSettings) -> str | None:
    """The refresh token in the request's cookie, if there is one.

    Raises:
        CrossSite: There is, and the request is not from a page of ours.
    """
    token = request.cookies.get(COOKIE)
    if token is not None:
        check_same_site(request, settings)
    return token


def set_cookie(response: Response, grant: Grant) -> None:
    """Put a grant's refresh token into the cookie."""
    response.set_cookie(
        COOKIE,
        grant.refresh_token,
        max_age=grant.session_expires_in_s,
        path="/",
        secure=True,
        httponly=True,
        samesite="strict",
    )


def clear_cookie(response: Response) -> None:
    """Have the browser forget the cookie."""
    response.delete_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="strict")
