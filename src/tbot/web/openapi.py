"""The OpenAPI document: what FastAPI generates, made exact about errors.

Routes list the problems they can answer with `problems(...)`. What holds for every route (a 500, an
overlong URI, the request id) and for every secured one (401, 403) is added here, so a route cannot
forget it.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from tbot.auth.scopes import Scope
from tbot.core.refusals import Reason
from tbot.core.settings import HttpSettings, Settings
from tbot.web import openapi_http
from tbot.web.problems import CATALOGUE, MEDIA_TYPE, TYPE_PREFIX, reason_status
from tbot.web.routes import StrictRoute, offers, required_scopes

_EVERY: Final = (
    "uri_too_long",
    "internal_error",
    "request_timeout",
    "headers_too_large",
    "too_many_clients",
    "quota_exceeded",
    "overloaded",
)
_SECURED: Final = ("unauthenticated", "invalid_token", "unavailable")
_WITH_BODY: Final = (
    "malformed_json",
    "body_too_large",
    "unsupported_media_type",
    "validation_failed",
)
_SHARED: Final = frozenset(
    {
        Scope.ACCOUNT_READ,
        Scope.ACCOUNT_WRITE,
        Scope.ORDERS_READ,
        Scope.ORDERS_WRITE,
        Scope.PAYMENTS_WRITE,
        Scope.TRANSFERS_WRITE,
        Scope.WEBHOOKS_WRITE,
    }
)
"""Scopes for what is on accounts, which may be shared in some role."""
_CHALLENGE: Final = {
    "WWW-Authenticate": {
        "description": "The challenge (RFC 6750).",
        "schema": {"type": "string"},
    }
}
_RETRY: Final = {
    "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}
}
_RATE_LIMITS: Final = {
    "RateLimit-Policy": {
        "description": "The rate limits that the request counts under: `q` requests in `w` "
        "seconds.",
        "schema": {"type": "string", "examples": ['"user";q=20000;w=10, "orders";q=5000;w=10']},
    },
    "RateLimit": {
        "description": "What is left of them: `r` requests now, and more in `t` seconds.",
        "schema": {"type": "string", "examples": ['"user";r=19990;t=1, "orders";r=4990;t=1']},
    },
}
_REQUEST_ID: Final = {
    "description": "The request's id, also in our logs.",
    "schema": {"type": "string"},
}
_REPLAYED: Final = {
    "description": "`true` on an answer that a repetition gets.",
    "schema": {"type": "string", "const": "true"},
}
_HEADERS: Final = {401: _CHALLENGE, 403: _CHALLENGE, 429: _RETRY, 503: _RETRY}

_PROBLEM_SCHEMA: Final = {
    "title": "Problem",
    "type": "object",
    "description": "An RFC 9457 problem document. `docs/problems.md` lists every `code`.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri", "examples": [TYPE_PREFIX + "not_found"]},
        "title": {"type": "string"},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "code": {"type": "string", "examples": ["not_found"]},
        "request_id": {"type": "string", "description": "Also in `X-Request-Id`, and in our logs."},
        "errors": {
            "type": "array",
            "description": "Every broken rule, where there are several.",
            "items": {
                "type": "object",
                "required": ["detail"],
                "properties": {
                    "pointer": {"type": "string", "description": "RFC 6901, into the body."},
                    "parameter": {"type": "string", "description": "Of the query."},
                    "header": {"type": "string"},
                    "detail": {"type": "string"},
                },
            },
        },
        "violated-policies": {
            "type": "array",
            "description": "Of `quota_exceeded`: the rate limits that are used up.",
            "items": {"type": "string", "examples": ["orders"]},
        },
        "facts": {
            "type": "object",
            "description": "Of a refusal: the figures that decided.",
            "additionalProperties": True,
        },
    },
    "additionalProperties": True,
}


def problems(*codes: str | Reason) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that can answer with these problems.

    Args:
        codes: From the catalogue, or refusal reasons.
    """
    by_status: dict[int, list[str]] = {}
    for code in codes:
        status = reason_status(code) if isinstance(code, Reason) else CATALOGUE[code].status
        by_status.setdefault(status, []).append(str(code))
    return {status: _response(status, names) for status, names in sorted(by_status.items())}


def _response(status: int, codes: list[str]) -> dict[str, Any]:
    response: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}: " + ", ".join(f"`{code}`" for code in codes),
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in _HEADERS:
        response["headers"] = _HEADERS[status]
    return response


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of an application built by `build_app`."""
    generated = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=app.description,
        routes=app.routes,
        tags=app.openapi_tags,
        license_info=app.license_info,
    )
    schemas = generated.setdefault("components", {}).setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["Problem"] = _PROBLEM_SCHEMA
    settings: Settings = app.state.deps.settings
    for route, operation in operations(app, generated):
        _never_null(operation)
        _complete(route, operation)
        _bound_pages(operation, settings.http)
    password = schemas["NewUser"]["properties"]["password"]
    password["minLength"] = settings.auth.password_length_min
    password["maxLength"] = settings.auth.password_length_max
    return generated


def _bound_pages(operation: dict[str, Any], http: HttpSettings) -> None:
    """Say how large a page may be here: a setting, so the routes' signatures cannot."""
    for parameter in operation.get("parameters", ()):
        if parameter["name"] == "limit":
            parameter["schema"]["maximum"] = http.page_size_max


def _never_null(operation: dict[str, Any]) -> None:
    """Say of optional parameters what they can be when they are sent.

    FastAPI tells the default of the routes' signatures, too: that they can be `null`. Neither a
    query nor a header can, and who sends that word sends four letters.
    """
    for parameter in operation.get("parameters", ()):
        schema = parameter["schema"]
        kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
        if len(kinds) == 1:
            del schema["anyOf"]
            parameter["schema"] = {**kinds[0], **schema}


def operations(
    app: FastAPI, generated: dict[str, Any]
) -> Iterator[tuple[APIRoute, dict[str, Any]]]:
    """Every route with its operation in the document."""
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                yield route, generated["paths"][route.path_format][method.lower()]


def _is_validated(parameter: dict[str, Any]) -> bool:
    return parameter["in"] != "path" and parameter["name"] not in openapi_http.NEVER_WRONG


def _of_parameters(operation: dict[str, Any]) -> list[str | Reason]:
    """What an operation answers to parameters that are not as they should be."""
    parameters = operation.get("parameters", ())
    codes: list[str | Reason] = []
    if any(_is_validated(parameter) for parameter in parameters):
        codes.append("validation_failed")
    taken = {parameter["name"] for parameter in parameters}
    if taken & {"Idempotency-Key", "If-Match"}:
        codes.append("malformed_header")
    if "Idempotency-Key" in taken:
        codes.append(Reason.IDEMPOTENCY_KEY_REUSED)
    return codes


def _complete(route: APIRoute, operation: dict[str, Any]) -> None:
    codes: list[str | Reason] = list(_EVERY)
    scopes = required_scopes(route)
    if isinstance(route, StrictRoute) and offers(route):
        codes.append("not_acceptable")
    openapi_http.complete(route, operation)
    if scopes is not None:
        codes += _SECURED
        if scopes:
            codes.append("insufficient_scope")
        if _SHARED.intersection(scopes):
            codes.append("insufficient_access")
    if route.body_field is not None:
        codes += _WITH_BODY
    codes += _of_parameters(operation)
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]  # FastAPI's own, which we never send
    if "{" in route.path_format:
        codes.append("not_found")
    keyed = Reason.IDEMPOTENCY_KEY_REUSED in codes
    for status, response in problems(*dict.fromkeys(codes)).items():
        known = responses.get(str(status))
        if known is None:
            responses[str(status)] = response
            continue
        named = known["description"]
        missing = [c for c in response["description"].split(": ")[1].split(", ") if c not in named]
        if missing:
            known["description"] = ", ".join([named, *missing])
    for status, response in responses.items():
        headers = {**response.get("headers", {}), **_RATE_LIMITS, "X-Request-Id": _REQUEST_ID}
        if keyed and status.startswith("2"):
            headers["Idempotent-Replayed"] = _REPLAYED
        response["headers"] = headers
    operation["responses"] = dict(sorted(responses.items()))
