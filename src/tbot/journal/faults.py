"""What a failed statement or COMMIT means: who may try again, and who may not.

Entry points: `is_refusal`, `is_conflict`, `is_outage`.
"""

from __future__ import annotations

from typing import Final

import asyncpg

_CONFLICTS: Final = frozenset({"40001", "40P01"})
_KEYS: Final = "idempotency_keys_pkey"
_OUTAGE_CLASSES: Final = frozenset({"08", "53", "57", "58", "XX"})
_OUTAGES: Final = frozenset({"25006", "25P03", "25P04", "55P03"})


class RolledBack(Exception):
    """COMMIT answered something else than COMMIT: nothing was written."""


def is_refusal(error: Exception) -> bool:
    """The database itself said no to a COMMIT: certainly nothing was written."""
    if isinstance(error, RolledBack):
        return True
    return isinstance(error, asyncpg.PostgresError) and not is_outage(error)


def is_conflict(error: Exception) -> bool:
    """Deadlock, serialization failure, or a key taken: the whole batch may simply be run again.

    An idempotency key is taken by another command after it was looked for and found free, if that
    one locks other accounts: a second look finds it. Other unique indexes are no such matter.
    """
    if isinstance(error, RolledBack):
        return True
    if isinstance(error, asyncpg.UniqueViolationError):
        return error.constraint_name == _KEYS
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in _CONFLICTS


def is_outage(error: Exception) -> bool:
    """The database went away or is in trouble: nothing is wrong with the commands."""
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate is not None:
        return error.sqlstate[:2] in _OUTAGE_CLASSES or error.sqlstate in _OUTAGES
    # asyncpg answers a termination at an unlucky moment with an internal error of its own.
    return isinstance(
        error,
        OSError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError
        | asyncpg.PostgresConnectionError,
    )
