"""Identifiers: time-ordered UUIDs, and the order ids that venues see.

Entry points: `new_id`, `named_id`, `read_id`, `random_hex`, `venue_client_id`, `order_id_of`.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import Final
from uuid import UUID

_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32: no I, L, O, U
_VALUES: Final = {letter: value for value, letter in enumerate(_ALPHABET)}
_PREFIX: Final = "tb"
_DIGITS: Final = 26  # 130 bits hold a UUID's 128

FIRST_ID: Final = UUID(int=0)
LAST_ID: Final = UUID(int=2**128 - 1)
"""Before and after every id there is: where a list begins that no cursor continues."""

_last = 0
"""The upper half of the newest id: milliseconds, version, count."""

_POOL_BYTES: Final = 4096
_HALVES: Final = struct.Struct("8s" * (_POOL_BYTES // 8))
_RANDOM_BITS: Final = int.from_bytes((b"\x3f" + b"\xff" * 7) * (_POOL_BYTES // 8), "big")
_VARIANT_BITS: Final = int.from_bytes((b"\x80" + bytes(7)) * (_POOL_BYTES // 8), "big")
_pool = b""
_pool_at = 0
_lower: list[bytes] = []


def _plain(value: bytes | str) -> UUID:
    return UUID(bytes=value) if isinstance(value, bytes) else UUID(value)


_make: Callable[[bytes | str], UUID] = _plain


def make_with(make: Callable[[bytes | str], UUID]) -> None:
    """Have ids made by a class that is quicker than the standard library's.

    Args:
        make: Takes sixteen bytes, or the canonical text; answers a subclass of `UUID`.
    """
    global _make  # noqa: PLW0603 - one kind per process
    _make = make


def read_id(value: bytes | str) -> UUID:
    """The id of sixteen bytes, or that a canonical text names.

    Raises:
        ValueError: It names none.
    """
    return _make(value)


def _random(size_bytes: int) -> bytes:
    """Bytes from the operating system, fetched many at a time."""
    global _pool, _pool_at  # noqa: PLW0603 - one pool per process
    if _pool_at + size_bytes > len(_pool):
        _pool, _pool_at = os.urandom(_POOL_BYTES), 0
    _pool_at += size_bytes
    return _pool[_pool_at - size_bytes : _pool_at]


def _vary() -> None:
    """Fetch the lower halves of many ids: 62 random bits each, after the variant's two."""
    number = int.from_bytes(os.urandom(_POOL_BYTES), "big") & _RANDOM_BITS | _VARIANT_BITS
    _lower.extend(_HALVES.unpack(number.to_bytes(_POOL_BYTES, "big")))


def _after_fork() -> None:
    global _pool  # noqa: PLW0603 - a child must not hand out its parent's bytes
    _pool = b""
    _lower.clear()


os.register_at_fork(after_in_child=_after_fork)


def random_hex(size_bytes: int) -> str:
    """Hexadecimal digits for a name that nobody else uses. Not for secrets."""
    return _random(size_bytes).hex()


def new_id() -> UUID:
    """A UUID version 7 (RFC 9562, method 1): sorts by time, and by creation within a process.

    Twelve bits of `rand_a` count within a millisecond, so two ids of one process never tie.
    """
    global _last  # noqa: PLW0603 - one counter per process is the point
    now = time.time_ns() // 1_000_000 << 16 | 0x7000
    if now > _last:
        _last = now
    elif _last & 0xFFF < 0xFFF:
        _last += 1
    else:
        _last += 0xF001  # the next millisecond's first
    if not _lower:
        _vary()
    return _make(_last.to_bytes(8, "big") + _lower.pop())


def named_id(name: bytes) -> UUID:
    """A UUID version 8 (RFC 9562) made from a name's hash: the same each time.

    Args:
        name: 16 bytes that are as good as random; six bits of them do not count.

    Example:
        >>> named_id(bytes(16))
        UUID('00000000-0000-8000-8000-000000000000')
    """
    number = int.from_bytes(name, "big") & ~(0xF << 76 | 0x3 << 62) | 0x8 << 76 | 0x2 << 62
    return _make(number.to_bytes(16, "big"))


def venue_client_id(order_id: UUID) -> str:
    """The client order id that a venue sees: 28 letters and digits, reversible.

    Venues allow between 32 and 36 characters, OKX letters and digits only. The user's own
    `client_order_id` never travels.

    Example:
        >>> venue_client_id(UUID(int=31))
        'tb0000000000000000000000000Z'
    """
    number = order_id.int
    digits = []
    for _ in range(_DIGITS):
        number, value = divmod(number, 32)
        digits.append(_ALPHABET[value])
    return _PREFIX + "".join(reversed(digits))


def order_id_of(client_id: str) -> UUID | None:
    """The order behind a venue's client id, or None where it is not one of ours.

    Example:
        >>> order_id_of("tb0000000000000000000000000Z")
        UUID('00000000-0000-0000-0000-00000000001f')
        >>> order_id_of("web_1234") is None
        True
    """
    if len(client_id) != len(_PREFIX) + _DIGITS or not client_id.startswith(_PREFIX):
        return None
    number = 0
    for letter in client_id[len(_PREFIX) :]:
        value = _VALUES.get(letter)
        if value is None:
            return None
        number = number << 5 | value
    return UUID(int=number) if number < 1 << 128 else None
