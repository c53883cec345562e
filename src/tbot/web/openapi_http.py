"""What the OpenAPI document says of HTTP: media types, tags, pages, preferences, deprecation.

The edge does these for every route alike, so they are written down here and not at each route.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi.routing import APIRoute

from tbot.web.deprecation import EXTENSION
from tbot.web.methods import MERGE_PATCH
from tbot.web.negotiation import JSON, MSGPACK
from tbot.web.representation import SECRET

NEVER_WRONG: Final = frozenset({"If-None-Match", "Prefer"})
"""Parameters that are ignored where they are not understood."""

_TAG: Final = {
    "description": "The strong tag of this representation, for `If-None-Match` and `If-Match`.",
    "schema": {"type": "string", "examples": ['"5f0c3e9a1b2d4c6e.41"']},
}
_CACHE: Final = {
    "description": "Whether and how long the answer may be kept: `no-store` unless said otherwise.",
    "schema": {"type": "string", "examples": ["no-store"]},
}
_VARY: Final = {
    "description": "The request headers that the answer depends on.",
    "schema": {"type": "string", "examples": ["Accept, Accept-Encoding, Origin"]},
}
_LINK: Final = {
    "description": 'The next page (RFC 8288, `rel="next"`), while there is one.',
    "schema": {"type": "string", "examples": ['</v1/orders?limit=100&cursor=…>; rel="next"']},
}
_APPLIED: Final = {
    "description": "The preferences that were honoured.",
    "schema": {"type": "string", "examples": ["return=minimal"]},
}
_IF_NONE_MATCH: Final = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "Tags of what the caller has; `304` when one is of what would be sent.",
    "schema": {"type": "string", "examples": ['"5f0c3e9a1b2d4c6e.41"']},
}
_PREFER: Final = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`return=minimal` (RFC 7240): the answer is `204`, without a body.",
    "schema": {"type": "string", "examples": ["return=minimal"]},
}
_MINIMAL: Final = "Done, with `Prefer: return=minimal`; with `Location` where it made something."


def complete(route: APIRoute, operation: dict[str, Any]) -> None:
    """Add to a route's operation what the edge does for it."""
    responses: dict[str, Any] = operation["responses"]
    good = [response for status, response in responses.items() if status.startswith("2")]
    for response in good:
        content = response.get("content", {})
        if JSON in content:
            content[MSGPACK] = {"schema": content[JSON]["schema"]}
    if "GET" in (route.methods or ()):
        _reads(operation, responses)
    elif SECRET not in (route.openapi_extra or {}):
        _writes(operation, responses, good)
    if "PATCH" in (route.methods or ()):
        content = operation["requestBody"]["content"]
        content[MERGE_PATCH] = content[JSON]
    declared: dict[str, str] = (route.openapi_extra or {}).get(EXTENSION, {})
    for response in good:
        for name, value in declared.items():
            _header(response, name, {"schema": {"type": "string", "examples": [value]}})


def _header(response: dict[str, Any], name: str, described: dict[str, Any]) -> None:
    """Describe a header of a response, in place of one that was only named."""
    headers = dict(response.get("headers", {}))
    headers[name] = described if "description" not in headers.get(name, {}) else headers[name]
    response["headers"] = headers


def _reads(operation: dict[str, Any], responses: dict[str, Any]) -> None:
    found = responses.get("200")
    if found is None or JSON not in found.get("content", {}):
        return
    _header(found, "ETag", _TAG)
    _header(found, "Cache-Control", _CACHE)
    _header(found, "Vary", _VARY)
    parameters = operation.setdefault("parameters", [])
    if any(parameter["name"] == "cursor" for parameter in parameters):
        _header(found, "Link", _LINK)
    parameters.append(_IF_NONE_MATCH)
    responses["304"] = {
        "description": "What the caller has is current.",
        "headers": {"ETag": _TAG, "Cache-Control": _CACHE, "Vary": _VARY},
    }


def _writes(
    operation: dict[str, Any], responses: dict[str, Any], good: list[dict[str, Any]]
) -> None:
    found = [one for one in good if {"Location", "ETag"} & set(one.get("headers", ()))]
    if not found:
        return
    for response in found:
        _header(response, "Preference-Applied", _APPLIED)
        if "ETag" in response["headers"]:
            _header(response, "ETag", _TAG)
    parameters = operation.setdefault("parameters", [])
    known = next((one for one in parameters if one["name"] == "Prefer"), None)
    if known is None:
        parameters.append(_PREFER)
    else:
        known["description"] = f"{known['description']} {_PREFER['description']}"
    kept = {name: one["headers"][name] for one in found for name in one["headers"]}
    kept = {name: kept[name] for name in ("Location", "ETag") if name in kept}
    headers = {**kept, "Preference-Applied": _APPLIED}
    responses.setdefault("204", {"description": _MINIMAL, "headers": headers})
