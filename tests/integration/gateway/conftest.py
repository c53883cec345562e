"""A gateway on real Postgres, with a scripted venue that can be as bad as a test wants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec import structs

from tbot.core.errors import VenueAmbiguous, VenueDown, VenueNotSent, VenueRefused
from tbot.core.settings import GatewaySettings
from tbot.gateway.gateway import Gateway, GatewayParts
from tbot.orders import store
from tbot.orders.model import Order
from tbot.venues.base import (
    Capabilities,
    DepthSnapshot,
    Instrument,
    MarketEvent,
    OrderReport,
    Placement,
    Side,
    StreamGap,
    UserEvent,
    VenueFill,
    VenueStatus,
)

ZERO = Decimal(0)


def btc_usdt() -> Instrument:
    return Instrument(
        venue="paper",
        symbol="BTC-USDT",
        venue_symbol="BTCUSDT",
        base="BTC",
        quote="USDT",
        base_scale=8,
        quote_scale=8,
        tick=Decimal("0.01"),
        price_min=Decimal("0.01"),
        price_max=Decimal(1_000_000),
        step=Decimal("0.00001"),
        quantity_min=Decimal("0.00001"),
        quantity_max=Decimal(9000),
        market_step=Decimal("0.00001"),
        market_quantity_max=Decimal(100),
        notional_min=Decimal(5),
        notional_max=None,
        trading=True,
    )


@dataclass
class Held:
    """An order in the scripted venue's own books."""

    placement: Placement
    number: int
    status: VenueStatus = VenueStatus.NEW
    fills: tuple[VenueFill, ...] = ()

    @property
    def executed(self) -> Decimal:
        return sum((fill.quantity for fill in self.fills), ZERO)

    def report(self, *, with_fills: bool = True, last_only: bool = False) -> OrderReport:
        fills = self.fills[-1:] if last_only else self.fills
        return OrderReport(
            client_id=self.placement.client_id,
            venue_symbol="BTCUSDT",
            venue_order_id=str(self.number),
            status=self.status,
            executed_quantity=self.executed,
            executed_quote=sum((fill.quote_quantity for fill in self.fills), ZERO),
            updated_at=datetime.now(UTC),
            fills=fills if with_fills else (),
        )


class ScriptedVenue:
    """A venue in this process.

    Attributes:
        on_place: What the next placements meet; replace it to be nasty. The default books the
            order and acknowledges it.
        books: What it has, by client id.
        placed: Every client id that reached it, in order: a repetition is a double order.
    """

    name = "paper"

    def __init__(self) -> None:
        self.capabilities = Capabilities(engine_timeout_s=0.1, deposits=True)
        self.books: dict[str, Held] = {}
        self.placed: list[str] = []
        self.cancels: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.events: asyncio.Queue[UserEvent] = asyncio.Queue()
        self.session: str | None = "one"
        self.down = False
        self.denies = False
        self.on_place: Callable[[Placement], Awaitable[OrderReport]] = self.acknowledge
        self.on_cancel: Callable[[str], Awaitable[OrderReport]] = self.obey
        self._trades = 0

    def book(self, placement: Placement) -> Held:
        held = Held(placement, len(self.books) + 1)
        self.books[placement.client_id] = held
        return held

    def fill(self, client_id: str, quantity: str | None = None, price: str = "100") -> Held:
        """Execute an order, all of it unless told otherwise."""
        held = self.books[client_id]
        wanted = held.placement.quantity
        assert wanted is not None
        amount = wanted - held.executed if quantity is None else Decimal(quantity)
        self._trades += 1
        quote = amount * Decimal(price)
        buying = held.placement.side is Side.BUY
        fill = VenueFill(
            trade_id=str(self._trades),
            price=Decimal(price),
            quantity=amount,
            quote_quantity=quote,
            fee=(amount if buying else quote) / 1000,
            fee_asset="BTC" if buying else "USDT",
            maker=False,
            at=datetime.now(UTC),
        )
        held.fills = (*held.fills, fill)
        held.status = (
            VenueStatus.FILLED if held.executed == wanted else VenueStatus.PARTIALLY_FILLED
        )
        return held

    async def acknowledge(self, placement: Placement) -> OrderReport:
        return self.book(placement).report()

    async def obey(self, client_id: str) -> OrderReport:
        held = self.books.get(client_id)
        if held is None or held.status not in (VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED):
            raise VenueRefused("Unknown order sent.", "unknown_order")
        held.status = VenueStatus.CANCELED
        return held.report(with_fills=False)

    def tell(self, event: UserEvent) -> None:
        self.events.put_nowait(event)

    # What the gateway calls

    async def start(self) -> None:
        return None

    async def stop(self) -> None:
        return None

    async def session_id(self) -> str | None:
        return self.session

    async def instruments(self) -> list[Instrument]:
        return [btc_usdt()]

    async def place(self, placement: Placement, may_send: Callable[[], bool]) -> OrderReport:
        if self.down:
            raise VenueNotSent("no connection", "not_connected")
        if not may_send():
            raise VenueNotSent("no leave", "too_late")
        self.placed.append(placement.client_id)
        return await self.on_place(placement)

    async def cancel(
        self, client_id: str, instrument: Instrument, may_send: Callable[[], bool]
    ) -> OrderReport:
        if self.down or not may_send():
            raise VenueNotSent("no", "not_connected")
        self.cancels.append(client_id)
        return await self.on_cancel(client_id)

    async def query(self, client_id: str, instrument: Instrument) -> OrderReport | None:
        return self._question("query", client_id)

    async def search(
        self, client_id: str, instrument: Instrument, since: datetime
    ) -> OrderReport | None:
        return self._question("search", client_id)

    def _question(self, kind: str, client_id: str) -> OrderReport | None:
        if self.down:
            raise VenueDown("no connection")
        self.asked.append((kind, client_id))
        held = self.books.get(client_id)
        return None if held is None or self.denies else held.report(with_fills=False)

    async def open_orders(self) -> list[OrderReport]:
        if self.down:
            raise VenueDown("no connection")
        live = (VenueStatus.NEW, VenueStatus.PARTIALLY_FILLED)
        if self.denies:  # a venue that denies an order does not list it either
            return []
        return [h.report(with_fills=False) for h in self.books.values() if h.status in live]

    async def order_fills(self, instrument: Instrument, venue_order_id: str) -> list[VenueFill]:
        if self.down:
            raise VenueDown("no connection")
        return [f for h in self.books.values() if str(h.number) == venue_order_id for f in h.fills]

    async def balances(self) -> Mapping[str, tuple[Decimal, Decimal]]:
        return {}

    async def deposit(self, deposit_id: str, asset: str, amount: Decimal) -> None:
        return None

    async def user_events(self) -> AsyncIterator[UserEvent]:
        yield StreamGap("connected")
        while True:
            yield await self.events.get()

    def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        raise NotImplementedError

    async def depth_snapshot(self, instrument: Instrument) -> DepthSnapshot:
        raise NotImplementedError


def ambiguous(after: Callable[[Placement], Any] | None = None) -> Any:
    """A placement whose answer is lost, after `after` was done at the venue."""

    async def place(placement: Placement) -> OrderReport:
        if after is not None:
            after(placement)
        raise VenueAmbiguous("no answer", "no_answer")

    return place


QUICK = GatewaySettings(
    receive_window_ms=100,
    absence_margin_s=1.0,
    lease_ttl_s=6.0,  # a busy machine may stall for a second or two, and loses none
    unknown_interval_s=0.1,
    open_orders_interval_s=3600,
)


class Trader:
    """Orders through a desk, and what became of them."""

    def __init__(self, desk: Any, pool: asyncpg.Pool[Any]) -> None:
        self.desk = desk
        self.pool = pool

    async def place(self, account_id: UUID, *args: Any, within_s: float = 5.0, **kw: Any) -> Order:
        command = structs.replace(self.desk.order(account_id, *args, **kw), send_within_s=within_s)
        outcome = await self.desk.committer.commit(command)
        order: Order = outcome.result.order
        return order

    async def get(self, order: Order) -> Order:
        async with self.pool.acquire() as connection:
            return await store.get_order(connection, order.id)

    async def until(
        self, order: Order, condition: Callable[[Order], bool], timeout_s: float = 15.0
    ) -> Order:
        """The order once `condition` holds of it."""
        found = order
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    found = await self.get(order)
                    if condition(found):
                        return found
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"still {found}") from None


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
def scripted() -> ScriptedVenue:
    return ScriptedVenue()


@pytest.fixture
async def new_gateway(
    pool: asyncpg.Pool[Any], database_url: str
) -> AsyncIterator[Callable[..., Awaitable[Gateway]]]:
    """Makes gateways; each is started, and ready unless told otherwise."""
    made: list[Gateway] = []

    async def make(
        desk: Any, venue: Any, settings: GatewaySettings = QUICK, *, ready: bool = True
    ) -> Gateway:
        parts = GatewayParts(
            venue=venue,
            committer=desk.committer,
            pool=pool,
            bus=desk.bus,
            settings=settings,
            connect=lambda: asyncpg.connect(database_url),
        )
        gateway = Gateway(parts)
        made.append(gateway)
        gateway.start()
        if ready:
            async with asyncio.timeout(10):
                await gateway.ready.wait()
        return gateway

    yield make
    for gateway in made:
        await gateway.stop()


@pytest.fixture
def trader(desk: Any, pool: asyncpg.Pool[Any]) -> Trader:
    return Trader(desk, pool)


@pytest.fixture
def nasty_answer() -> Callable[..., Any]:
    return ambiguous


@pytest.fixture
def quick() -> GatewaySettings:
    return QUICK
