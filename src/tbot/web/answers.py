"""Answers that are encoded straight to JSON, past the models that only describe them.

A test holds them to those models; at run time a busy route need not validate what it just made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response

_NAMES: Final = {"Location": b"location", "ETag": b"etag"}
_TYPE: Final = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode


def json_answer(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A JSON response.

    Args:
        content: Of JSON types, UUIDs (written in canonical form) and `msgspec.Raw`; amounts are
            texts already.
    """
    return JsonAnswer(_encode(content), status, headers or {})


def json_body(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response whose body is written already."""
    return JsonAnswer(body, status, headers or {})


class JsonAnswer(Response):
    """A response that is made in one step: Starlette takes several, which ask what we know.

    Attributes:
        told: Its headers as they were given, besides those of its body: what is kept of them under
            a key. Whoever adds to the response's headers later adds nothing here.
    """

    media_type = "application/json"

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.body: bytes = body
        self.told = headers
        # At once, though it may be kept for a while: what cannot be written must not be kept.
        self.raw_headers = [
            (_NAMES.get(name) or name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in headers.items()
        ]
        self.raw_headers.append((b"content-length", b"%d" % len(body)))
        self.raw_headers.append(_TYPE)
