"""Which form of an answer a caller likes best: media types and content codings (RFC 9110, 12).

Entry points: `preferred`, `coding_of`, `packed_or_none`. Pure, and the busy ones remember what they
were asked: clients say the same in every request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
PACKED: Final = (MSGPACK, "application/vnd.msgpack", "application/x-msgpack")
"""MessagePack by its registered name, and by those from before it had one."""
STRUCTURED: Final = (JSON, *PACKED)
"""What any JSON answer can be had as, what we like best first."""

HEADER_CHARS_MAX: Final = 1000
"""Of `Accept` and `Accept-Encoding`; what is longer says nothing."""
_QUALITY: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")


@lru_cache(maxsize=256)
def _ranges(header: str) -> tuple[tuple[str, float], ...]:
    """Each range of a header with its quality."""
    found = []
    for part in header.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if not name:
            continue
        quality = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                # What is no quality is taken for a dislike rather than for the best.
                quality = float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
        found.append((name, quality))
    return tuple(found)


def _liking(ranges: Sequence[tuple[str, float]], media_type: str) -> float:
    """The quality of the most specific range that covers a type."""
    for wanted in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
        qualities = [quality for name, quality in ranges if name == wanted]
        if qualities:
            return max(qualities)
    return 0.0


def preferred(accept: str, offers: Sequence[str]) -> str | None:
    """The offer that `Accept` likes best, the first of equals; None when it likes none.

    Args:
        accept: The header; empty, and everything is fine.
        offers: Media types without parameters.

    Example:
        >>> preferred("text/csv, */*;q=0.1", (JSON, "text/csv")), preferred("*/*", (JSON,))
        ('text/csv', 'application/json')
        >>> preferred("application/*;q=0.5, application/json;q=0", (JSON,)) is None
        True
    """
    if not accept.strip() or len(accept) > HEADER_CHARS_MAX:
        return offers[0]
    ranges = _ranges(accept)
    best, most = None, 0.0
    for offer in offers:
        quality = _liking(ranges, offer)
        if quality > most:
            best, most = offer, quality
    return best


@lru_cache(maxsize=256)
def packed_or_none(accept: bytes) -> str | None:
    """The name of MessagePack that a JSON answer is to be had as; None for JSON as it is.

    Where neither is liked it is JSON too: an answer that is made is sent (RFC 9110, 12.4.1), and
    routes refuse before they do anything.
    """
    best = preferred(accept.decode("latin-1"), STRUCTURED)
    return best if best in PACKED else None


@lru_cache(maxsize=256)
def takes_structured(accept: bytes) -> bool:
    """Whether a JSON answer can be had in a form that the caller likes."""
    return preferred(accept.decode("latin-1"), STRUCTURED) is not None


GZIP: Final = "gzip"
IDENTITY: Final = "identity"


@lru_cache(maxsize=256)
def coding_of(accept_encoding: bytes, size_matters: bool) -> str:
    """The content coding for an answer.

    Args:
        accept_encoding: The header; empty means as it is.
        size_matters: Whether the answer is large enough for compression to pay. A small one is
            compressed only for who does not take it otherwise.

    Returns:
        `gzip` or `identity`; the latter also for who takes neither, as RFC 9110, 12.5.3 advises.

    Example:
        >>> coding_of(b"br, gzip;q=0.8", True), coding_of(b"gzip", False), coding_of(b"*;q=0", True)
        ('gzip', 'identity', 'identity')
    """
    if not accept_encoding or len(accept_encoding) > HEADER_CHARS_MAX:
        return IDENTITY
    likings = dict(_ranges(accept_encoding.decode("latin-1")))
    rest = likings.get("*", 0.0)
    gzip = max(likings.get("gzip", rest), likings.get("x-gzip", 0.0))
    # Unless it is named, plain is liked a little less than anything that is.
    plain = likings.get("identity", likings.get("*", math.nextafter(0.0, 1.0)))
    if gzip <= 0.0:
        return IDENTITY
    if not size_matters:
        return IDENTITY if plain > 0.0 else GZIP
    return GZIP if gzip >= plain else IDENTITY
