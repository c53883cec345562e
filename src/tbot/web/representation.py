"""What an answer is sent as: its media type, coding and tag, and the headers that all answers have.

Entry points: `whole` for an answer with its body, `streamed` for one that is only beginning; both
for `Edge`, and for the routes that are served lean. The order of things matters: first the form
(MessagePack, nothing), then its tag, then whether the caller has it already (304), and last its
coding. So a tag names exactly the bytes that are sent, and nothing is compressed in vain.
"""

from __future__ import annotations

import re
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec
from starlette.types import Scope

from tbot.core.settings import HttpSettings
from tbot.core.trace import Trace
from tbot.web import deprecation
from tbot.web.compression import COMPRESSIBLE, Stream, compressed
from tbot.web.cors import Origins
from tbot.web.negotiation import GZIP, coding_of, packed_or_none
from tbot.web.preconditions import digest, matches
from tbot.web.ratelimit import headers_of

type Fields = list[tuple[bytes, bytes]]

SECRET: Final = "x-secret"  # noqa: S105 - the name of a mark
"""Member of a route's `openapi_extra`: its answers show a secret, so their length tells nothing."""

ALWAYS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"vary", b"Accept, Accept-Encoding, Origin"),
)
DEFAULTS: Final[tuple[tuple[bytes, bytes], ...]] = (
    # Whatever a route does not say can be kept, is private.
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)

_JSON: Final = b"application/json"
_STREAMED: Final = frozenset({b"application/x-ndjson", b"text/csv"})
_KEPT_BY_304: Final = frozenset(
    {b"cache-control", b"content-location", b"date", b"etag", b"expires", b"link", b"vary"}
)
_MINIMAL: Final = re.compile(rb'(?:^|,)\s*return\s*=\s*"?minimal"?\s*(?:;|,|$)', re.IGNORECASE)
_PREFER_BYTES_MAX: Final = 200

_unpack: Final = msgspec.json.Decoder().decode
_pack: Final = msgspec.msgpack.Encoder().encode


class Terms:
    """What holds for every answer of an application.

    Args:
        origins: Pages of other origins that may read.
    """

    __slots__ = ("bytes_min", "hsts", "level", "origins")

    def __init__(self, settings: HttpSettings, origins: Origins | None = None) -> None:
        self.bytes_min = settings.compress_bytes_min
        self.level = settings.compress_level
        self.origins = origins or Origins((), (), 0)
        hsts = b"max-age=%d; includeSubDomains" % settings.hsts_s
        self.hsts: Fields = [(b"strict-transport-security", hsts)] if settings.hsts_s else []


class Asked:
    """What a request says about the form of its answer.

    Args:
        scope: Of the request; the route and who asks are looked up there when it is answered.
        headers: Its headers by lower-case name, each once.
        method: As it came: HEAD is not yet taken for GET.
        request_id: Repeated in the answer.
        trace: That the request is part of.
    """

    __slots__ = ("headers", "method", "request_id", "scope", "terms", "trace")

    def __init__(
        self,
        terms: Terms,
        scope: Scope,
        headers: dict[bytes, bytes],
        method: str,
        request_id: str,
        trace: Trace | None,
    ) -> None:
        self.terms = terms
        self.scope = scope
        self.headers = headers
        self.method = method
        self.request_id = request_id
        self.trace = trace

    @property
    def reads(self) -> bool:
        """Whether it is a GET or a HEAD."""
        return self.method == "GET" or self.method == "HEAD"

    @property
    def secret(self) -> bool:
        """Whether the answer shows a secret."""
        return SECRET in (getattr(self.scope.get("route"), "openapi_extra", None) or ())

    def common(self, given: Fields) -> Fields:
        """What every answer says, besides the headers given."""
        names = {name for name, _ in given}
        found = [
            *headers_of(self.scope),
            (b"x-request-id", self.request_id.encode("ascii")),
            *ALWAYS,
        ]
        found += [header for header in DEFAULTS if header[0] not in names]
        if self.scope.get("scheme") == "https":
            found += self.terms.hsts
        origin = self.headers.get(b"origin")
        if origin is not None:
            found += self.terms.origins.headers(origin)
        return [*found, *deprecation.headers_of(self.scope)]


async def whole(asked: Asked, status: int, given: Fields, body: bytes) -> tuple[int, Fields, bytes]:
    """The status, headers and body that an answer is sent with."""
    fields = dict(given)
    media = fields.get(b"content-type", b"").partition(b";")[0]
    terms, own_tag, secret = asked.terms, fields.get(b"etag"), asked.secret
    suffix = b""
    if media == _JSON:
        if asked.reads and status == 200 and own_tag is None and not secret:
            own_tag = b'"%b"' % digest(body, _reader(asked.scope)).encode("ascii")
        packed = packed_or_none(asked.headers.get(b"accept", b""))
        if packed is not None:
            media, suffix = packed.encode("ascii"), b"+msgpack"
            body = _pack(_unpack(body))
            given = _with(given, b"content-type", media)
        if not asked.reads and not secret and _wants_minimal(asked, fields):
            return _minimal(asked, given)
    coded = False
    if media in COMPRESSIBLE and not secret and b"content-encoding" not in fields:
        accepted = asked.headers.get(b"accept-encoding", b"")
        coded = coding_of(accepted, len(body) >= terms.bytes_min) == GZIP
        suffix += b"+gzip" if coded else b""
    if asked.reads and status == 200:
        if own_tag is not None:
            own_tag = _suffixed(own_tag, suffix)
            given = _with(given, b"etag", own_tag)
        if is_current(asked.headers, own_tag, fields.get(b"last-modified")):
            return 304, [*_of_304(given), *asked.common(given)], b""
    if coded:
        public = fields.get(b"cache-control", b"").startswith(b"public")
        body = await compressed(body, terms.level, public=public)
        given = _with(given, b"content-encoding", b"gzip")
    if b"content-length" in fields:
        given = _with(given, b"content-length", b"%d" % len(body))
    return status, [*given, *asked.common(given)], body


def streamed(asked: Asked, status: int, given: Fields) -> tuple[int, Fields, Stream | None]:
    """The status and headers of an answer in pieces, and what packs the pieces, if anything."""
    fields = dict(given)
    packer = None
    good = asked.reads and status == 200
    if good and is_current(asked.headers, fields.get(b"etag"), fields.get(b"last-modified")):
        return 304, [*_of_304(given), *asked.common(given)], None
    media = fields.get(b"content-type", b"").partition(b";")[0]
    accepted = asked.headers.get(b"accept-encoding", b"")
    if media in _STREAMED and coding_of(accepted, True) == GZIP:
        packer = Stream(asked.terms.level)
        given = [*given, (b"content-encoding", b"gzip")]
    return status, [*given, *asked.common(given)], packer


def is_current(headers: dict[bytes, bytes], tag: bytes | None, modified: bytes | None) -> bool:
    """Whether the caller has what would be sent (RFC 9110, 13.2.2).

    Args:
        tag, modified: `ETag` and `Last-Modified` of the answer. Who asks by tag is answered by tag
            alone.
    """
    names = headers.get(b"if-none-match")
    if names is not None:
        return tag is not None and matches(names, tag)
    since = headers.get(b"if-modified-since")
    if since is None or modified is None:
        return False
    try:
        return _moment(modified) <= _moment(since)
    except (ValueError, TypeError, OverflowError):
        return False


def _moment(value: bytes) -> float:
    return parsedate_to_datetime(value.decode("latin-1")).timestamp()


def _reader(scope: Scope) -> bytes:
    principal: Any = scope.get("tbot.principal")
    return b"" if principal is None else bytes(principal.user_id.bytes)


def _with(given: Fields, name: bytes, value: bytes) -> Fields:
    """The headers with one replaced, or added at the end."""
    if any(field[0] == name for field in given):
        return [(name, value) if field[0] == name else field for field in given]
    return [*given, (name, value)]


def _suffixed(tag: bytes, suffix: bytes) -> bytes:
    return tag[:-1] + suffix + b'"' if suffix else tag


def _of_304(given: Fields) -> Fields:
    return [field for field in given if field[0] in _KEPT_BY_304]


def _wants_minimal(asked: Asked, fields: dict[bytes, bytes]) -> bool:
    """Whether the caller does without the body, and can get it elsewhere."""
    prefer = asked.headers.get(b"prefer")
    if prefer is None or len(prefer) > _PREFER_BYTES_MAX or not _MINIMAL.search(prefer):
        return False
    return b"location" in fields or b"etag" in fields


def _minimal(asked: Asked, given: Fields) -> tuple[int, Fields, bytes]:
    """The answer without its body (RFC 7240, 4.2): No Content, with `Location` where it was new."""
    applied = b"return=minimal"
    kept = []
    for name, value in given:
        if name == b"preference-applied":
            applied += b", " + value
        elif name not in (b"content-type", b"content-length"):
            kept.append((name, value))
    kept.append((b"preference-applied", applied))
    return 204, [*kept, *asked.common(kept)], b""
