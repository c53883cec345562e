"""Routes that are on their way out say so in every answer (RFC 9745, RFC 8594).

A route declares it: `@routes.get("/old", **deprecated(since=…, sunset=…, successor=…))`. Its
answers then carry `Deprecation`, `Sunset` and `Link`, and OpenAPI marks it; the metric of requests
by route tells whether anybody still needs it. `docs/http.md` has the policy.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

from starlette.types import Scope

EXTENSION: Final = "x-deprecation"
POLICY: Final = "/docs"
_MONTHS_LEAST_DAYS: Final = 180


def deprecated(
    *,
    since: datetime,
    sunset: datetime | None = None,
    successor: str | None = None,
    policy: str = POLICY,
) -> dict[str, Any]:
    """The arguments of a route that is deprecated.

    Args:
        since: From when it is; may lie ahead.
        sunset: When it may stop to work: at least half a year after `since`.
        successor: The path to use instead.
        policy: Where to read about it.

    Raises:
        ValueError: The times are no times of day in UTC, or too close.
    """
    if since.tzinfo is not UTC or (sunset is not None and sunset.tzinfo is not UTC):
        raise ValueError("times are in UTC")
    if sunset is not None and (sunset - since).days < _MONTHS_LEAST_DAYS:
        raise ValueError("clients have at least half a year between deprecation and sunset")
    headers = {"Deprecation": f"@{int(since.timestamp())}"}
    links = [f'<{policy}>; rel="deprecation"; type="text/html"']
    if sunset is not None:
        headers["Sunset"] = format_datetime(sunset, usegmt=True)
    if successor is not None:
        links.append(f'<{successor}>; rel="successor-version"')
    headers["Link"] = ", ".join(links)
    return {"deprecated": True, "openapi_extra": {EXTENSION: headers}}


def headers_of(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    """What an answer of the route that was chosen says of its deprecation."""
    route = scope.get("route")
    if not getattr(route, "deprecated", None):
        return ()
    declared: dict[str, str] = (getattr(route, "openapi_extra", None) or {}).get(EXTENSION, {})
    return tuple((name.lower().encode(), value.encode("ascii")) for name, value in declared.items())
