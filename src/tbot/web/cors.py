"""Which pages of other origins may read our answers (CORS, the Fetch standard).

An origin is allowed when it is in a list, character for character; there are no patterns and there
is no `*`. Credentials, which here means the refresh cookie, are for `auth.browser_origins` alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

type Headers = tuple[tuple[bytes, bytes], ...]

EXPOSED: Final = (
    "Content-Disposition", "Deprecation", "ETag", "Idempotent-Replayed", "Link", "Location",
    "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After", "Sunset", "X-Request-Id",
)  # fmt: skip
"""What a page may read besides what every page may."""
TAKEN: Final = (
    "Accept", "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-Modified-Since",
    "If-None-Match", "Last-Event-ID", "Prefer", "traceparent", "tracestate", "X-API-Key",
    "X-Request-Id",
)  # fmt: skip
"""What a page may send."""
_PREFLIGHT_VARY: Final = b"Access-Control-Request-Method, Access-Control-Request-Headers"


class Origins:
    """The origins that may read.

    Args:
        allowed: Origins as browsers write them: `https://app.example.com`.
        trusted: Of more: those that may also use the refresh cookie.
        max_age_s: How long a browser may remember a preflight's answer.
    """

    __slots__ = ("_granted", "_max_age_s")

    def __init__(self, allowed: Iterable[str], trusted: Iterable[str], max_age_s: int) -> None:
        exposed = ", ".join(EXPOSED).encode("ascii")
        granted: dict[bytes, Headers] = {}
        for origin, credentials in [*((o, False) for o in allowed), *((o, True) for o in trusted)]:
            name = origin.encode("ascii")
            granted[name] = (
                (b"access-control-allow-origin", name),
                *(((b"access-control-allow-credentials", b"true"),) if credentials else ()),
                (b"access-control-expose-headers", exposed),
            )
        self._granted: Mapping[bytes, Headers] = granted
        self._max_age_s = b"%d" % max_age_s

    def __bool__(self) -> bool:
        return bool(self._granted)

    def headers(self, origin: bytes) -> Headers:
        """What an answer to a page of an origin says; nothing, for one that is not allowed."""
        return self._granted.get(origin, ())

    def preflight(self, origin: bytes, methods: Sequence[str]) -> Headers:
        """What the answer to a preflight says besides, for an origin that is allowed.

        Args:
            methods: What there is at the path.
        """
        if origin not in self._granted:
            return ((b"vary", _PREFLIGHT_VARY),)
        return (
            (b"vary", _PREFLIGHT_VARY),
            (b"access-control-allow-methods", ", ".join(methods).encode("ascii")),
            (b"access-control-allow-headers", ", ".join(TAKEN).encode("ascii")),
            (b"access-control-max-age", self._max_age_s),
        )
