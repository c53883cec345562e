"""Pages of lists: opaque cursors that only work where they were given, and links to the next.

A cursor is the position after the last item, signed together with the list's name, its filters and
its reader. So a forged cursor, or one from another list, filter or user, is refused rather than
misread, and what is in it can change without notice.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode
from uuid import UUID

from starlette.requests import Request

from tbot.core.errors import InvalidCursor

_SIGNATURE_BYTES: Final = 16
_CURSOR_LENGTH_MAX: Final = 512

type Position = list[str | int]


def encode_cursor(
    secret: bytes, reader: UUID, name: str, filters: Mapping[str, str], position: Position
) -> str:
    """The cursor for a position in a filtered list of one reader."""
    payload = json.dumps(position, separators=(",", ":")).encode("ascii")
    signature = _signature(secret, reader, name, filters, payload)
    return base64.urlsafe_b64encode(signature + payload).rstrip(b"=").decode("ascii")


def decode_cursor(
    secret: bytes, reader: UUID, name: str, filters: Mapping[str, str], cursor: str
) -> Position:
    """The position that `encode_cursor` was given for the same list.

    Raises:
        InvalidCursor: We did not issue this cursor for this list.
    """
    if not cursor.isascii() or len(cursor) > _CURSOR_LENGTH_MAX:
        raise InvalidCursor("not a cursor")
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise InvalidCursor("not a cursor") from None
    signature, payload = raw[:_SIGNATURE_BYTES], raw[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _signature(secret, reader, name, filters, payload)):
        raise InvalidCursor("not a cursor of this list")
    position: Position = json.loads(payload)
    return position


def _signature(
    secret: bytes, reader: UUID, name: str, filters: Mapping[str, str], payload: bytes
) -> bytes:
    bound = json.dumps([str(reader), name, sorted(filters.items())]).encode("ascii")
    message = len(bound).to_bytes(4, "big") + bound + payload
    return hmac.digest(secret, message, hashlib.sha256)[:_SIGNATURE_BYTES]


def next_link(request: Request, filters: Mapping[str, str], limit: int, cursor: str) -> str:
    """The `Link` header (RFC 8288) to the next page, relative to the server's root.

    Relative, because the host that a request names may be a stranger's.
    """
    query = urlencode({**filters, "limit": limit, "cursor": cursor})
    return f'<{request.url.path}?{query}>; rel="next"'
