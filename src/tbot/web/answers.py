"""Answers that are encoded straight to JSON, past the models that only describe them.

A test holds them to those models; at run time a busy route need not validate what it just made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

_encode = msgspec.json.Encoder().encode


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response.

    Args:
        content: Of JSON types, UUIDs (written in canonical form) and `msgspec.Raw`; amounts are
            texts already.
    """
    return _Json(_encode(content), status, headers or {})


def json_body(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response whose body is written already."""
    return _Json(body, status, headers or {})


class _Json(Response):
    """A response that is made in one step: Starlette takes several, which ask what we know."""

    media_type = "application/json"

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.body = body
        self.raw_headers = [
            *((name.lower().encode("latin-1"), v.encode("latin-1")) for name, v in headers.items()),
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def not_modified(tag: str) -> Response:
    """304: what the caller has is current."""
    return Response(status_code=304, headers={"ETag": tag})
