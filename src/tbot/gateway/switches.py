"""Switches: halting and resuming trading, a venue, one instrument, withdrawals or transfers.

A switch is a row that every batch of the write path reads `FOR SHARE`, so a halt that has returned
is seen by every order accepted afterwards. A switch is no account and has no journal; who turned
it, when and why is in its row, and every turn it ever took is in `switch_changes`, where it cannot
be changed. Functions take a connection first; `halt` and `release` take part in its transaction.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec
import structlog

from tbot.auth import store as auth_store
from tbot.core.errors import ConfigurationError, Conflict
from tbot.journal.commands import Actor

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

REASON_LENGTH_MAX: Final = 500
_TOLD: Final = 10
"""Names that a refusal tells of."""
GLOBAL: Final = ("trading", "withdrawals", "transfers")
"""Switches that there are everywhere."""
NAME_PATTERN: Final = (
    r"^(trading|withdrawals|transfers|venue:[a-z0-9_-]{1,32}"
    r"|instrument:[a-z0-9_-]{1,32}:[A-Z0-9-]{1,41})$"
)
_NAME: Final = re.compile(NAME_PATTERN[1:-1])
_VENUE: Final = "venue:"
_COLUMNS: Final = "name, halted, reason, changed_by, at, actor"
_FIND: Final = f"SELECT {_COLUMNS} FROM switches WHERE name = $1"
_FIND_LOCKED: Final = f"{_FIND} FOR NO KEY UPDATE"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Turn:
    """A switch as it was turned at one time.

    Attributes:
        by: Who, in words, as `operator ann@desk`, `user root` or `gateway`.
        actor: The same as the journal's entries have it (see `Actor.to_json`).
        id: Of a turn in a switch's history, growing; 0 elsewhere.
    """

    name: str
    halted: bool
    reason: str
    by: str
    at: datetime
    actor: Mapping[str, str]
    id: int = field(default=0, compare=False)


def _turn(row: Mapping[str, Any], number: int = 0) -> Turn:
    by: str = row["changed_by"]
    if row["actor"] is not None:
        actor = msgspec.json.decode(row["actor"], type=dict[str, str])
    else:
        kind, _, name = by.partition(" ")
        actor = {"kind": kind, "name": name} if name else {"kind": kind}
    return Turn(row["name"], row["halted"], row["reason"], by, row["at"], actor, number)


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
    rows = await connection.fetch(f"SELECT {_COLUMNS} FROM switches ORDER BY name")
    return [_turn(row) for row in rows]


async def page(
    connection: Connection,
    always: Sequence[str],
    after: str,
    limit: int,
    *,
    halted: bool | None = None,
) -> Sequence[tuple[str, Turn | None]]:
    """A page of switches by name, each with its last turn; None where nobody turned it yet.

    Args:
        always: Names that are there even if they were never turned.
        after: The last name of the page before; empty for the first page.
        halted: Only those that are, or are not.
    """
    rows = await connection.fetch(
        f"SELECT {_COLUMNS} FROM switches FULL JOIN unnest($1::text[]) AS always (name)"
        " USING (name) WHERE name > $2 AND ($3::boolean IS NULL OR coalesce(halted, false) = $3)"
        " ORDER BY name LIMIT $4",
        always,
        after,
        halted,
        limit,
    )
    return [(row["name"], None if row["halted"] is None else _turn(row)) for row in rows]


async def find(connection: Connection, name: str, *, lock: bool = False) -> Turn | None:
    """A switch as it is now; None if it was never turned.

    Args:
        lock: Nobody else turns it until the transaction ends, and orders wait for that.
    """
    row = await connection.fetchrow(_FIND_LOCKED if lock else _FIND, name)
    return None if row is None else _turn(row)


async def history(
    connection: Connection, name: str, limit: int = 100, before: int | None = None
) -> Sequence[Turn]:
    """How a switch was turned, newest first.

    Args:
        before: The id of the last turn of the page before.
    """
    rows = await connection.fetch(
        f"SELECT id, {_COLUMNS} FROM switch_changes WHERE name = $1 AND id < $2"
        " ORDER BY id DESC LIMIT $3",
        name,
        before if before is not None else (1 << 62),
        limit,
    )
    return [_turn(row, row["id"]) for row in rows]


async def halt(connection: Connection, name: str, reason: str, actor: Actor) -> Turn:
    """Halt; once the transaction is committed, no new order gets past the switch.

    What is halted for the same reason already stays as it is. Orders wait until the transaction
    ends: commit at once.

    Returns:
        The switch as it is now.
    """
    reason, by = reason[:REASON_LENGTH_MAX], await _in_words(connection, actor)
    # A batch that is under way read the switches before there was this row: it ends first.
    await connection.execute("LOCK TABLE switches IN EXCLUSIVE MODE")
    before = await find(connection, name)
    if before is not None and before.halted and before.reason == reason:
        return before
    row = await connection.fetchrow(
        "INSERT INTO switches (name, halted, reason, changed_by, at, actor)"
        " VALUES ($1, true, $2, $3, clock_timestamp(), $4::jsonb) ON CONFLICT (name) DO UPDATE"
        " SET halted = true, reason = excluded.reason, changed_by = excluded.changed_by,"
        f" at = excluded.at, actor = excluded.actor RETURNING {_COLUMNS}",
        name,
        reason,
        by,
        msgspec.json.encode(actor.to_json()).decode(),
    )
    assert row is not None, "it was just written"
    _log.warning("switch_halted", name=name, reason=reason, by=by)
    return _turn(row)


async def release(connection: Connection, name: str, reason: str, actor: Actor) -> Turn:
    """Let orders through again; what has to be done before that is in `resume`.

    Returns:
        The switch as it is now.

    Raises:
        Conflict: It is not halted (`not_halted`), or it is that of a venue which lost its memory,
            and nobody has accepted its new session yet (`venue_reset`).
    """
    reason, by = reason[:REASON_LENGTH_MAX], await _in_words(connection, actor)
    row = await connection.fetchrow(
        "UPDATE switches SET halted = false, reason = $2, changed_by = $3,"
        " at = clock_timestamp(), actor = $4::jsonb WHERE name = $1 AND halted"
        f" RETURNING {_COLUMNS}",
        name,
        reason,
        by,
        msgspec.json.encode(actor.to_json()).decode(),
    )
    if row is None:
        raise Conflict("not_halted", f"{name} is not halted")
    # After the update: who finds another session from now on halts once more.
    if name.startswith(_VENUE) and await connection.fetchval(
        "SELECT true FROM venue_sessions WHERE venue = $1 AND found_id <> session_id",
        name.removeprefix(_VENUE),
    ):
        raise Conflict(
            "venue_reset",
            f"{name.removeprefix(_VENUE)} lost its memory, and its new session has to be"
            f" accepted: `tbot switches resume {name}`, where T-Bot runs, shows what that takes",
        )
    _log.warning("switch_released", name=name, reason=reason, by=by)
    return _turn(row)


async def _in_words(connection: Connection, actor: Actor) -> str:
    if actor.user_id is None:
        return f"{actor.kind} {actor.name or ''}".strip()
    user = await auth_store.user_by_id(connection, actor.user_id)
    named = f"{actor.kind} {actor.user_id if user is None else user.username}"
    return named if actor.name is None else f"{named} by key {actor.name}"
