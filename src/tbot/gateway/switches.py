"""Switches: halting and resuming trading, a venue, one instrument, withdrawals or transfers.

A switch is a row that every batch of the write path reads `FOR SHARE`, so a halt that has returned
is seen by every order accepted afterwards. A switch is no account and has no journal; who turned
it, when and why is in its row, and every turn it ever took is in `switch_changes`, where it cannot
be changed. Functions take a connection first.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import asyncpg
import structlog

from tbot.core.errors import ConfigurationError, NotFound

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

REASON_LENGTH_MAX: Final = 500
_TOLD: Final = 10
"""Names that a refusal tells of."""
_NAME: Final = re.compile(
    r"trading|withdrawals|transfers|venue:[a-z0-9_-]{1,32}|instrument:[a-z0-9_-]{1,32}:[A-Z0-9-]+"
)

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
    """A switch's name, if it has the form of one.

    Whether there is anything that it would halt is for `check_known` to say.

    Raises:
        ConfigurationError: No switch can be called that.
    """
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} is no switch: there are trading, venue:NAME, instrument:VENUE:SYMBOL,"
            " withdrawals and transfers"
        )
    return name


def check_known(name: str, known: Mapping[str, Collection[str]]) -> str:
    """A switch's name, if there is something here that it halts.

    For who halts: a mistyped name would halt nothing and look like success. Who resumes needs no
    such check, a switch that is halted can always be released.

    Args:
        known: Venue → the symbols of its instruments, from `known_here`.

    Raises:
        ConfigurationError: No switch can be called that, or nothing of this name is known here;
            the text says what is.
    """
    check_name(name)
    _, _, what = name.partition(":")
    venue, _, symbol = what.partition(":")
    if not venue or (venue in known and (not symbol or symbol in known[venue])):
        return name
    if venue not in known:
        raise ConfigurationError(
            f"no venue {venue} is known here, {name} would halt nothing: known is"
            f" {_some(venue, known)}"
        )
    raise ConfigurationError(
        f"{venue} has no instrument {symbol}, {name} would halt nothing: known is"
        f" {_some(symbol, known[venue])}"
    )


def _some(wrong: str, names: Collection[str]) -> str:
    """What there is, those that were probably meant first."""
    near = difflib.get_close_matches(wrong, names, _TOLD, 0.5)
    told = [*near, *sorted(set(names) - set(near))][:_TOLD]
    more = len(names) - len(told)
    return (", ".join(told) or "none yet") + (f" and {more} more" if more else "")


async def known_here(
    connection: Connection, venues: Collection[str] = ()
) -> dict[str, frozenset[str]]:
    """What can be halted: venue → the symbols of its instruments, as last seen.

    Args:
        venues: Known also before they told of any instrument: those that are set up.
    """
    known: dict[str, set[str]] = {venue: set() for venue in venues}
    for row in await connection.fetch("SELECT venue, symbol FROM instruments"):
        known.setdefault(row["venue"], set()).add(row["symbol"])
    return {venue: frozenset(symbols) for venue, symbols in known.items()}


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
