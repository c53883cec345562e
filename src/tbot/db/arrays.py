"""Arrays of bulk writes in Postgres' binary form, written whole.

asyncpg writes an array element by element and asks each whether it is an array itself: for the
bulk writes of the write path that took as long as to decide what to write. Here a whole array is
joined from bytes in one go, which takes half the time. What arrives at the server is the same.

asyncpg lets nobody replace the codec of an array type in public; `install` asks its own settings
object, and leaves things as they are where that has changed.

Entry point: `install`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import structlog
from asyncpg.pgproto import pgproto

_log = structlog.get_logger(__name__)

_HEADER: Final = struct.Struct(">iiiii")
_NULL: Final = b"\xff\xff\xff\xff"
_EIGHT: Final = b"\x00\x00\x00\x08"
_SIXTEEN: Final = b"\x00\x00\x00\x10"
_LENGTHS: Final = [size.to_bytes(4, "big") for size in range(4096)]
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

type _Encode = Callable[[Sequence[Any]], bytes]
type _Decode = Callable[[bytes], Any]


def _array(element: int, values: Sequence[Any], parts: Iterable[bytes]) -> bytes:
    """One dimension, counted from 1; an empty array has none."""
    if not values:
        return struct.pack(">iii", 0, 0, element)
    header = _HEADER.pack(1, None in values, element, len(values), 1)
    return header + b"".join(parts)


def _length(size_bytes: int) -> bytes:
    return _LENGTHS[size_bytes] if size_bytes < len(_LENGTHS) else size_bytes.to_bytes(4, "big")


def _ids(values: Sequence[Any]) -> bytes:
    return _array(2950, values, [_NULL if v is None else _SIXTEEN + v.bytes for v in values])


def _whole_numbers(values: Sequence[Any]) -> bytes:
    parts = [_NULL if v is None else _EIGHT + v.to_bytes(8, "big", signed=True) for v in values]
    return _array(20, values, parts)


def _bytes(values: Sequence[Any], element: int = 17) -> bytes:
    parts = []
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts.append(_length(len(value)))
            parts.append(value)
    return _array(element, values, parts)


def _texts(values: Sequence[Any]) -> bytes:
    return _bytes([None if value is None else value.encode() for value in values], 25)


def _times(values: Sequence[Any]) -> bytes:
    known: dict[Any, bytes] = {None: _NULL}  # there are few different ones in a batch
    parts = []
    for value in values:
        part = known.get(value)
        if part is None:
            since = (value - _EPOCH) // _MICROSECOND
            part = known[value] = _EIGHT + since.to_bytes(8, "big", signed=True)
        parts.append(part)
    return _array(1184, values, parts)


def _reader(read: _Decode) -> _Decode:
    """What reads an array of one dimension, whose elements `read` reads."""

    def decode(data: bytes) -> list[Any]:
        dimensions, _, _ = struct.unpack_from(">iii", data)
        if dimensions == 0:
            return []
        if dimensions != 1:
            raise ValueError("an array of several dimensions")
        (count,) = struct.unpack_from(">i", data, 12)
        values: list[Any] = []
        at = 20
        for _ in range(count):
            (size,) = struct.unpack_from(">i", data, at)
            at += 4
            if size < 0:
                values.append(None)
            else:
                values.append(read(data[at : at + size]))
                at += size
        return values

    return decode


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big", signed=True)


def _time(data: bytes) -> datetime:
    return _EPOCH + _number(data) * _MICROSECOND


CODECS: Final[dict[str, tuple[int, _Encode, _Decode]]] = {
    "uuid": (2951, _ids, _reader(pgproto.UUID)),
    "bigint": (1016, _whole_numbers, _reader(_number)),
    "bytea": (1001, _bytes, _reader(bytes)),
    "text": (1009, _texts, _reader(bytes.decode)),
    "timestamptz": (1185, _times, _reader(_time)),
}
"""By element: the array type's object id, how it is written, how it is read."""


def install(connection: asyncpg.Connection[Any]) -> bool:
    """Have a connection write these arrays whole; False where asyncpg does not let us."""
    try:
        settings = connection._protocol.get_settings()  # type: ignore[attr-defined] # noqa: SLF001
        for name, (array, encode, decode) in CODECS.items():
            settings.add_python_codec(
                array, f"{name}[]", "pg_catalog", [], "scalar", encode, decode, "binary"
            )
    except (AttributeError, TypeError):
        _log.warning("arrays_not_installed")
        return False
    return True
