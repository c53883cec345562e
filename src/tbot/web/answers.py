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

    One that is kept under a key waits for its batch with a hundred others, so it is small until it
    is sent: its headers are written only then.

    Attributes:
        told: Its headers as they were given, besides those of its body.
    """

    media_type = "application/json"
    _written: list[tuple[bytes, bytes]] | None = None

    def __init__(self, body: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.status_code = status
        self.background = None
        self.body: bytes = body
        self.told = headers

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:  # type: ignore[override] # only read
        """The headers as they are sent; whoever changes the list, changes them."""
        written = self._written
        if written is None:
            written = self._written = [
                (_NAMES.get(name) or name.lower().encode("latin-1"), value.encode("latin-1"))
                for name, value in self.told.items()
            ]
            written.append((b"content-length", b"%d" % len(self.body)))
            written.append(_TYPE)
        return written
