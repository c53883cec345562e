"""Placing and canceling orders: what the edge and the command line call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

import asyncpg

from tbot.core import clock
from tbot.core.bus import Bus, wait_for_wake
from tbot.core.errors import NotFound
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import GatewaySettings, RiskSettings
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.commands import Accepted, Actor
from tbot.journal.committer import Committer
from tbot.journal.once import Kept, Once
from tbot.ledger.flow import AccountDesk
from tbot.market.book import Reference
from tbot.orders import store
from tbot.orders.commands import Placed, PlaceOrder, RequestCancel
from tbot.orders.model import Order, State
from tbot.orders.rules import OrderRequest
from tbot.venues.base import Instrument, OrderType

CANCELS_AT_ONCE: Final = 128


class Market(Protocol):
    """Where market prices come from."""

    def reference(self, symbol: str) -> Reference | None:
        """The last prices heard of an instrument, however old."""


class Instruments:
    """The venues' instruments, in memory."""

    def __init__(self) -> None:
        self._by_venue: dict[str, dict[str, Instrument]] = {}

    async def reload(self, pool: asyncpg.Pool[asyncpg.Record], venue: str) -> None:
        """Read a venue's instruments from the tables."""
        async with pool.acquire() as connection:
            self.put(venue, await store.load_instruments(connection, venue))

    def put(self, venue: str, instruments: list[Instrument]) -> None:
        """Replace what is known of a venue."""
        self._by_venue[venue] = {i.symbol: i for i in instruments}

    def get(self, venue: str, symbol: str) -> Instrument | None:
        """One instrument, or None."""
        return self._by_venue.get(venue, {}).get(symbol)

    def all(self, venue: str) -> list[Instrument]:
        """A venue's instruments by symbol."""
        return list(self._by_venue.get(venue, {}).values())


@dataclass(frozen=True, slots=True)
class OrderDesk:
    """What the functions below need.

    Attributes:
        markets: By venue.
        wait_estimate_s: How long the venue's rate budget would delay a new order now.
        served: Whether any process sends orders to the venue at the moment. An order that is
            accepted while none does could only be asked about later, never sent.
    """

    pool: asyncpg.Pool[asyncpg.Record]
    committer: Committer
    bus: Bus
    accounts: AccountDesk
    instruments: Instruments
    markets: dict[str, Market]
    gateway: GatewaySettings
    risk: RiskSettings
    wait_estimate_s: Callable[[str], float] = lambda _venue: 0.0
    served: Callable[[str], bool] = lambda _venue: True

    def fresh_reference(self, venue: str, symbol: str) -> Reference | None:
        """A market price young enough to check an order with."""
        market = self.markets.get(venue)
        reference = None if market is None else market.reference(symbol)
        if reference is None or clock.boot_s() - reference.at_boot_s > self.risk.price_age_s_max:
            return None
        return reference


async def place(
    desk: OrderDesk,
    actor: Actor,
    account_id: UUID,
    request: OrderRequest,
    once: Once | None = None,
) -> Placed | Refused | Kept:
    """Accept an order, durably.

    When this returns, the order will be sent exactly once or not at all, whatever crashes.
    Repeating the call with the same `client_order_id` returns the same order; under the same
    idempotency key it returns the answer that was kept.

    Raises:
        NotFound: No such account.
        Unavailable: Certainly not accepted.
        OutcomeUnknown: Repeat it under the same `client_order_id`.
    """
    facts = desk.accounts.remembered(account_id) or await desk.accounts.facts(account_id)
    venue = facts.venue
    if venue is None:
        return Refused(Reason.ACCOUNT_KIND, "a cash account does not trade")
    send_within_s = desk.gateway.send_by_s
    hindrance = None
    if not desk.served(venue):
        hindrance = Refused(Reason.GATEWAY_AWAY, f"no gateway speaks to {venue} at the moment")
    elif desk.wait_estimate_s(venue) > send_within_s:
        hindrance = Refused(
            Reason.SEND_TOO_LATE, f"{venue} takes no new order within {send_within_s:g} s"
        )
    command = PlaceOrder(
        id=new_id(),
        actor=actor,
        account_id=account_id,
        order_id=new_id(),
        request=request,
        instrument=desk.instruments.get(venue, request.symbol),
        reference=desk.fresh_reference(venue, request.symbol),
        send_within_s=send_within_s,
        hindrance=hindrance,
    )
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def cancel(
    desk: OrderDesk, actor: Actor, account_id: UUID, order_id: UUID, once: Once | None = None
) -> Order | Refused | Kept:
    """Ask for an order's cancellation, durably; the venue decides whether it comes in time.

    Raises:
        NotFound: No such account.
        Unavailable, OutcomeUnknown: As for `place`; repeating it is harmless.
    """
    command = RequestCancel(new_id(), actor, account_id, order_id)
    outcome = await desk.committer.commit(command, once)
    return outcome.result if isinstance(outcome, Accepted) else outcome


async def cancel_all(
    desk: OrderDesk, actor: Actor, account_id: UUID, symbol: str | None = None
) -> list[UUID]:
    """Ask for the cancellation of every open order of an account, or of one instrument.

    Returns:
        The orders whose cancellation is under way; one that ended meanwhile is left out.
    """
    async with desk.pool.acquire() as connection:
        orders = await store.list_orders(
            connection, [account_id], symbol=symbol, is_open=True, limit=10_000
        )
    requested: list[UUID] = []
    # A few at a time: the queue's reserved places belong to everybody.
    for start in range(0, len(orders), CANCELS_AT_ONCE):
        outcomes = await asyncio.gather(
            *(
                cancel(desk, actor, account_id, order.id)
                for order in orders[start : start + CANCELS_AT_ONCE]
            )
        )
        requested += [o.id for o in outcomes if isinstance(o, Order)]
    return requested


def settled(order: Order) -> bool:
    """Whether waiting for an order's outcome is over: the venue has spoken.

    A resting limit order is settled when the venue has it; a market order only when it ended.
    """
    if order.type is OrderType.MARKET:
        return order.final
    return order.state not in (State.PENDING_NEW, State.UNKNOWN)


async def wait_for(
    desk: OrderDesk, order: Order, done: Callable[[Order], bool], wait_s: float
) -> Order:
    """The order as soon as `done` holds of it, or as it is after `wait_s`.

    It is durable already: when the database is away, the last known version is the answer.
    """
    until_s = clock.boot_s() + wait_s
    with desk.bus.listening(f"head:{order.account_id}") as woken:
        while True:
            woken.clear()
            try:
                async with desk.pool.acquire() as connection:
                    order = await store.get_order(connection, order.id)
            except DATABASE_FAULTS:
                # The order is accepted, whatever happens to the database now: say what is known.
                await asyncio.sleep(min(0.1, wait_s))
            rest_s = until_s - clock.boot_s()
            if done(order) or rest_s <= 0:
                return order
            await wait_for_wake(woken, min(rest_s, 1.0))


async def owned_order(desk: OrderDesk, order_id: UUID, owner_id: UUID | None) -> Order:
    """An order, if its account belongs to `owner_id` (None: whoever's).

    Raises:
        NotFound: No such order, or somebody else's.
    """
    async with desk.pool.acquire() as connection:
        order = await store.get_order(connection, order_id)
    facts = await desk.accounts.facts(order.account_id)
    if owner_id is not None and facts.owner_id != owner_id:
        raise NotFound("no such order")
    return order
