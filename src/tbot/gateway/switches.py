"""Switches: halting and resuming trading, a venue or one instrument.

A switch is a row that every batch of the write path reads `FOR SHARE`, so a halt that has returned
is seen by every order accepted afterwards. A switch is no account and has no journal; who turned
it, when and why is in its row, and every turn it ever took is in `switch_changes`, where it cannot
be changed. Functions take a connection first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.errors import ConfigurationError, NotFound

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

REASON_LENGTH_MAX: Final = 500
_NAME: Final = re.compile(r"trading|venue:[a-z0-9_-]{1,32}|instrument:[a-z0-9_-]{1,32}:[A-Z0-9-]+")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """A switch as it was turned at one time.

    Attributes:
        by: Who, as `operator ann@desk` or `gateway`.
    """

    name: str
    halted: bool
    reason: str
    by: str
    at: datetime


def check_name(name: str) -> str:
    """A switch's name, if it is one.

    Raises:
        ConfigurationError: Nothing looks at a switch of this name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no switch: there are trading, venue:NAME and instrument:VENUE:SYMBOL"
        )
    return name


async def current(connection: Connection) -> Sequence[Turn]:
    """Every switch that was ever turned, as it is now."""
    rows = await connection.fetch(
        "SELECT name, halted, reason, changed_by, at FROM switches ORDER BY name"
    )
    return [Turn(*row) for row in rows]


async def history(connection: Connection, name: str, limit: int = 100) -> Sequence[Turn]:
    """How a switch was turned, newest first."""
    rows = await connection.fetch(
        "SELECT name, halted, reason, changed_by, at FROM switch_changes WHERE name = $1"
        " ORDER BY id DESC LIMIT $2",
        name,
        limit,
    )
    return [Turn(*row) for row in rows]


async def halt(connection: Connection, name: str, reason: str, by: str) -> None:
    """Halt; once this is committed, no new order gets past the switch.

    Orders wait until then: commit at once.
    """
    async with connection.transaction():
        # A batch that is under way read the switches before there was this row: it ends first.
        await connection.execute("LOCK TABLE switches IN EXCLUSIVE MODE")
        await connection.execute(
            "INSERT INTO switches (name, halted, reason, changed_by, at)"
            " VALUES ($1, true, $2, $3, now()) ON CONFLICT (name) DO UPDATE"
            " SET halted = true, reason = excluded.reason, changed_by = excluded.changed_by,"
            " at = now()",
            name,
            reason[:REASON_LENGTH_MAX],
            by,
        )
    _log.warning("switch_halted", name=name, reason=reason, by=by)


async def release(connection: Connection, name: str, reason: str, by: str) -> None:
    """Let orders through again; what has to be done before that is in `resume`.

    Raises:
        NotFound: It is not halted.
    """
    done = await connection.execute(
        "UPDATE switches SET halted = false, reason = $2, changed_by = $3, at = now()"
        " WHERE name = $1 AND halted",
        name,
        reason[:REASON_LENGTH_MAX],
        by,
    )
    if done == "UPDATE 0":
        raise NotFound(f"{name} is not halted")
    _log.warning("switch_released", name=name, reason=reason, by=by)
