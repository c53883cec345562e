"""Content codings of answers: whole bodies and streams, with gzip of the standard library.

What is compressed: JSON, MessagePack, problem documents, metrics, and exports. What is not: answers
below `http.compress_bytes_min`, for which it does not pay; answers that show a secret
(`tbot.web.routes.SECRET`), whose length must not tell anything of it; the event stream.
"""

from __future__ import annotations

import asyncio
import zlib
from functools import lru_cache
from typing import Final

GZIP_BITS: Final = 16 + zlib.MAX_WBITS
OWN_THREAD_BYTES: Final = 65_536
"""From this size on, compressing takes milliseconds: it happens beside the event loop."""

COMPRESSIBLE: Final = frozenset(
    {
        b"application/json",
        b"application/problem+json",
        b"application/msgpack",
        b"application/vnd.msgpack",
        b"application/x-msgpack",
        b"application/x-ndjson",
        b"text/csv",
        b"text/plain",
    }
)


def gzip_of(body: bytes, level: int) -> bytes:
    """A body as one gzip member, without a time, so that equal bodies stay equal.

    Example:
        >>> zlib.decompress(gzip_of(b"abc" * 100, 6), GZIP_BITS) == b"abc" * 100
        True
    """
    packer = zlib.compressobj(level, zlib.DEFLATED, GZIP_BITS)
    return packer.compress(body) + packer.flush()


@lru_cache(maxsize=8)
def _kept(body: bytes, level: int) -> bytes:
    return gzip_of(body, level)


async def compressed(body: bytes, level: int, *, public: bool) -> bytes:
    """A body compressed, beside the event loop when it is large.

    Args:
        level: 1 (quick) to 9 (small).
        public: Whether everybody gets the same answer: then its compressed form is kept.
    """
    if public:
        return _kept(body, level)
    if len(body) < OWN_THREAD_BYTES:
        return gzip_of(body, level)
    return await asyncio.to_thread(gzip_of, body, level)


class Stream:
    """A stream of chunks, each of which can be read as soon as it has arrived."""

    __slots__ = ("_packer",)

    def __init__(self, level: int) -> None:
        self._packer = zlib.compressobj(level, zlib.DEFLATED, GZIP_BITS)

    def chunk(self, data: bytes, *, last: bool) -> bytes:
        """The bytes to send for these."""
        packed = self._packer.compress(data)
        return packed + self._packer.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
