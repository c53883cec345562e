"""Resuming a halted switch, above all that of a venue that lost its memory.

A venue of another session denies every order that it ever took and has none of the money that the
ledger says is there. Nothing that it answers about the past may be believed. So before trading goes
on, somebody declares the past closed, and this is what the declaration does, in this order:

1. every order that was open at the venue is canceled in the journal, in the declarer's name, and
   what it held is released; what was filled there without our knowing is lost with the venue;
2. a paper venue is given what the ledger says it holds and it does not have;
3. the new session becomes the known one, and the switch is released, in one transaction.

Until 3 the venue takes no orders and the gateway sends nothing; whatever interrupts the way is
mended by going it again. The gateway notices by itself, and begins a new epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg

from tbot.core import clock, money
from tbot.core.errors import ConfigurationError, NotFound
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.core.settings import GatewaySettings
from tbot.db.pool import transaction
from tbot.gateway import switches
from tbot.gateway.switches import Connection, Turn
from tbot.journal.commands import Actor
from tbot.journal.committer import Committer
from tbot.ledger import store as ledger_store
from tbot.ledger.entries import venue_holder
from tbot.orders import store as orders_store
from tbot.orders.lost import CloseLostOrder
from tbot.orders.model import Order, State
from tbot.venues.base import Venue

_VENUE: Final = "venue:"


@dataclass(frozen=True, slots=True)
class Loss:
    """A venue that lost its memory.

    Attributes:
        known: The session that orders were placed in.
        found: The session that it was found in.
        orders: Open orders of the lost session.
        expected: Asset → what the ledger says the venue holds for us.
        wait_until: Before it, an order of unknown outcome may still arrive there.
    """

    venue: str
    known: str
    found: str
    orders: Sequence[Order]
    expected: Mapping[str, Decimal]
    wait_until: datetime | None


@dataclass(frozen=True, slots=True)
class Situation:
    """What a resumption has to deal with.

    Attributes:
        loss: None when the switch was merely turned.
    """

    turn: Turn
    loss: Loss | None


@dataclass(slots=True)
class Done:
    """What a resumption did.

    Attributes:
        funded: Asset → what the venue was given.
        surplus: Asset → what the venue has beyond what the ledger says; left alone.
    """

    closed: int = 0
    funded: dict[str, Decimal] = field(default_factory=dict)
    surplus: dict[str, Decimal] = field(default_factory=dict)


async def look(connection: Connection, name: str, settings: GatewaySettings) -> Situation:
    """What has to be dealt with before a switch can be released; changes nothing.

    Raises:
        NotFound: The switch is not halted.
    """
    turns = {turn.name: turn for turn in await switches.current(connection)}
    turn = turns.get(name)
    if turn is None or not turn.halted:
        raise NotFound(f"{name} is not halted")
    return Situation(turn, await _loss(connection, name, settings))


async def _loss(connection: Connection, name: str, settings: GatewaySettings) -> Loss | None:
    if not name.startswith(_VENUE):
        return None
    venue = name.removeprefix(_VENUE)
    row = await connection.fetchrow(
        "SELECT session_id, found_id FROM venue_sessions WHERE venue = $1", venue
    )
    if row is None or row["found_id"] in (None, row["session_id"]):
        return None
    orders = [
        order
        for order in await orders_store.list_venue_open(connection, venue)
        if order.state is not State.HELD
    ]
    balances = await ledger_store.counter_balance(connection, venue_holder(venue))
    expected = {asset: -amount for asset, amount in sorted(balances.items()) if amount}
    # As for every doubt: a request may be on its way for so long.
    late = timedelta(seconds=settings.receive_window_ms / 1000 + settings.absence_margin_s + 10)
    unplaced = [clock.unstamp(o.send_by) + late for o in orders if o.venue_order_id is None]
    return Loss(
        venue, row["session_id"], row["found_id"], orders, expected, max(unplaced, default=None)
    )


async def resume(
    pool: asyncpg.Pool[Any],
    committer: Committer,
    venues: Mapping[str, Venue],
    situation: Situation,
    actor: Actor,
    reason: str,
) -> Done:
    """Do what is left to do, and release the switch.

    Args:
        venues: By name; the one that lost its memory has to be among them.
        situation: As `look` found it just now.
        actor: Who declares the past closed; in every entry and in the switch's row.

    Raises:
        ConfigurationError: The venue cannot be asked, an order may still be on its way, or the
            venue is in yet another session; nothing was released.
        Conflict: Somebody resumed it, or the venue lost its memory, since `look`: look again.
        VenueError: The venue did not answer; go the way again.
        Unavailable, OutcomeUnknown: See `Committer.commit`; go the way again.
    """
    done, loss, name = Done(), situation.loss, situation.turn.name
    if loss is None:
        async with transaction(pool) as connection:
            await switches.release(connection, name, reason, actor)
        return done
    venue = await _found_again(venues, loss)
    for order in loss.orders:
        outcome = await committer.commit(
            CloseLostOrder(new_id(), actor, order.account_id, order.id, reason)
        )
        done.closed += not isinstance(outcome, Refused) and bool(outcome.entries)
    await _fund(venue, loss, done)
    async with transaction(pool) as connection:
        accepted = await connection.execute(
            "UPDATE venue_sessions SET session_id = found_id, found_id = NULL, since = now()"
            " WHERE venue = $1 AND session_id = $2 AND found_id = $3",
            loss.venue,
            loss.known,
            loss.found,
        )
        if accepted == "UPDATE 0":
            raise ConfigurationError(f"{loss.venue} changed again meanwhile: look once more")
        await switches.release(connection, name, reason, actor)
    return done


async def _found_again(venues: Mapping[str, Venue], loss: Loss) -> Venue:
    venue = venues.get(loss.venue)
    if venue is None:
        raise ConfigurationError(f"{loss.venue} is switched off: it cannot be asked")
    if loss.wait_until is not None and clock.utc_now() < loss.wait_until:
        raise ConfigurationError(
            "an order whose outcome is unknown may still arrive at the venue: wait until"
            f" {clock.stamp(loss.wait_until)}"
        )
    session = await venue.session_id()
    if session != loss.found:
        raise ConfigurationError(
            f"{loss.venue} is in session {session} now, the halt found {loss.found}: wait until the"
            " gateway has seen it (some 30 s), and look again"
        )
    return venue


async def _fund(venue: Venue, loss: Loss, done: Done) -> None:
    """Give a paper venue what the ledger says it has. Going the way again gives only the rest."""
    there = await venue.balances()
    for asset in sorted(loss.expected.keys() | there.keys()):
        free, locked = there.get(asset, (money.ZERO, money.ZERO))
        missing = loss.expected.get(asset, money.ZERO) - free - locked
        if missing > 0:
            await venue.deposit(f"resume:{new_id()}", asset, missing)
            done.funded[asset] = missing
        elif missing < 0:
            done.surplus[asset] = -missing
