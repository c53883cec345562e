"""Clocks: wall time for records, boot time for deadlines.

`boot_ns` keeps counting while the machine sleeps or the process is stopped, so a deadline held in
it expires during a pause, as it must for leases and for the age of a signed request.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boot_ns() -> int:
    """Nanoseconds since boot, pauses included. Only differences mean anything."""
    return time.clock_gettime_ns(_CLOCK)


def boot_s() -> float:
    """`boot_ns` in seconds."""
    return time.clock_gettime_ns(_CLOCK) / 1e9


def utc_now() -> datetime:
    """Wall time in UTC with microseconds."""
    return datetime.now(UTC)


def wall_ms() -> int:
    """Wall time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def from_ms(epoch_ms: int) -> datetime:
    """The instant `epoch_ms` milliseconds after the epoch, exactly.

    Example:
        >>> from_ms(1723161255342).isoformat()
        '2024-08-08T23:54:15.342000+00:00'
    """
    return _EPOCH + timedelta(milliseconds=epoch_ms)


def to_ms(at: datetime) -> int:
    """Milliseconds since the epoch, cut towards the past."""
    return (at - _EPOCH) // timedelta(milliseconds=1)


def stamp(at: datetime) -> str:
    """An instant as JSON carries it: RFC 3339, UTC, microseconds, `Z`.

    Example:
        >>> stamp(from_ms(1723161255342))
        '2024-08-08T23:54:15.342000Z'
    """
    if at.tzinfo is not UTC:
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"


def unstamp(text: str) -> datetime:
    """The instant that `stamp` wrote."""
    return datetime.fromisoformat(text)
