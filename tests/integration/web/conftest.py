"""The whole edge on a database of the test's own: real auth and write path, no venue behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unittest.mock import MagicMock
from uuid import UUID

import asyncpg
import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tbot.auth import flow as auth_flow
from tbot.auth import users
from tbot.auth.flow import Auth
from tbot.auth.scopes import Role
from tbot.boot import projections
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.settings import CandleSettings, MarketSettings, Settings
from tbot.db.pool import connect_committer, connect_listener
from tbot.journal.commands import GATEWAY, SYSTEM
from tbot.journal.committer import Committer
from tbot.journal.cursors import Journal
from tbot.ledger.duty import PAYMENTS, WEBHOOKS, Duty
from tbot.ledger.entries import Limits, OpenAccount
from tbot.ledger.flow import AccountDesk
from tbot.ledger.payments_dispatch import Dispatcher
from tbot.ledger.payments_flow import PaymentDesk, apply_report, rules_of
from tbot.ledger.provider import Report, Said
from tbot.ledger.provider_sim import SimulatedProvider
from tbot.ledger.webhooks_delivery import Deliverer
from tbot.ledger.webhooks_target import Sender
from tbot.market.candle_feed import CandleFeed
from tbot.market.channels import Market
from tbot.market.feed import MarketFeed
from tbot.market.hub import Hub
from tbot.orders import store
from tbot.orders.flow import Instruments, OrderDesk
from tbot.orders.model import Order
from tbot.orders.reports import ApplyReport
from tbot.venues.base import (
    BestPrices,
    Capabilities,
    DepthDiff,
    DepthSnapshot,
    Instrument,
    Kline,
    Level,
    MarketEvent,
    MarketTrade,
    OrderReport,
    StreamGap,
    VenueFill,
    VenueStatus,
)
from tbot.web.app import build_app
from tbot.web.deps import Deps
from tbot.web.server import server_options
from tbot.web.stream import Streams

PASSWORD = "correct horse battery staple"
CALLBACK_SECRET = b"c" * 32
AT = datetime(2026, 11, 22, 5, 14, 43, 123456, tzinfo=UTC)


def instrument(base: str, quote: str = "USDT", **changes: Any) -> Instrument:
    """A paper instrument with a tick of 0.01 and a step of 0.00001."""
    rules: dict[str, Any] = {
        "base_scale": 8,
        "quote_scale": 8,
        "tick": Decimal("0.01"),
        "price_min": Decimal("0.01"),
        "price_max": Decimal(1_000_000),
        "step": Decimal("0.00001"),
        "quantity_min": Decimal("0.00001"),
        "quantity_max": Decimal(9000),
        "market_step": Decimal("0.00001"),
        "market_quantity_max": Decimal(100),
        "notional_min": Decimal(5),
        "notional_max": Decimal(9_000_000),
        "trading": True,
        **changes,
    }
    return Instrument("paper", f"{base}-{quote}", base + quote, base, quote, **rules)


class PaperDeposits:
    """The part of a paper venue that opening an account uses."""

    name = "paper"
    capabilities = Capabilities(deposits=True)

    def __init__(self) -> None:
        self.deposits: dict[str, tuple[str, Decimal]] = {}
        self.broken: Exception | None = None

    async def deposit(self, deposit_id: str, asset: str, amount: Decimal) -> None:
        """Remember a deposit; the same id again changes nothing."""
        if self.broken is not None:
            raise self.broken
        self.deposits.setdefault(deposit_id, (asset, amount))


class QuietMarket:
    """A market source that says a few things about BTCUSDT and then keeps silent.

    It remembers nothing of what was before.
    """

    name = "paper"

    async def market_events(self, instruments: Sequence[Instrument]) -> AsyncIterator[MarketEvent]:
        """A trade, best prices, and one change of the book."""
        one = Decimal(1)
        yield StreamGap("connected")
        yield BestPrices("BTCUSDT", 1, Decimal(99), one, Decimal(100), one)
        yield MarketTrade("BTCUSDT", 7, Decimal("99.5"), Decimal("0.25"), True, AT)
        yield DepthDiff("BTCUSDT", 1, 2, [Level(Decimal(99), one)], [], AT)
        await asyncio.Event().wait()

    async def depth_snapshot(self, asked: Instrument) -> DepthSnapshot:
        """Two levels a side."""
        bids = [Level(Decimal(99), Decimal(1)), Level(Decimal(98), Decimal(2))]
        asks = [Level(Decimal(100), Decimal(1)), Level(Decimal(101), Decimal(2))]
        return DepthSnapshot(asked.venue_symbol, 1, bids, asks)

    async def trades_from(self, *_: Any) -> list[MarketTrade]:
        """None."""
        return []

    async def klines(self, *_: Any) -> list[Kline]:
        """None."""
        return []


@dataclass
class Site:
    """A running edge, and a venue's part played by the test."""

    app: FastAPI
    settings: Settings
    pool: asyncpg.Pool[Any]
    auth: Auth
    committer: Committer
    orders: OrderDesk
    feed: MarketFeed
    venue: PaperDeposits
    checks: dict[str, Any]
    bus: Bus
    payments: PaymentDesk
    provider: SimulatedProvider
    streams: Streams
    candles: CandleFeed
    _tokens: dict[str, dict[str, Any]] = field(default_factory=dict)

    @asynccontextmanager
    async def client(
        self, username: str | None = None, scope: str = ""
    ) -> AsyncIterator[httpx.AsyncClient]:
        """An HTTP client into the application, logged in as `username`."""
        headers = {}
        if username is not None:
            headers["Authorization"] = f"Bearer {await self.token(username, scope)}"
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers=headers
        ) as client:
            yield client

    async def token(self, username: str, scope: str = "") -> str:
        """An access token of a user."""
        grant = await auth_flow.login(self.auth, username, PASSWORD, scope)
        return grant.access_token

    async def report(
        self, order: Mapping[str, Any] | Order, status: str, *fills: tuple[str, str, str]
    ) -> None:
        """What the gateway would do with a venue's report; fills are (id, price, quantity)."""
        if not isinstance(order, Order):
            async with self.pool.acquire() as connection:
                order = await store.get_order(connection, UUID(order["id"]))
        booked = tuple(
            VenueFill(
                trade_id=trade_id,
                price=Decimal(price),
                quantity=Decimal(quantity),
                quote_quantity=Decimal(price) * Decimal(quantity),
                fee=Decimal(quantity) / 1000,
                fee_asset="BTC",
                maker=False,
                at=AT,
            )
            for trade_id, price, quantity in fills
        )
        executed = sum((fill.quantity for fill in booked), order.filled_quantity)
        report = OrderReport(
            client_id=order.venue_client_id,
            venue_symbol="BTCUSDT",
            venue_order_id="1",
            status=VenueStatus(status),
            executed_quantity=executed,
            executed_quote=Decimal(0),
            updated_at=AT,
            fills=booked,
        )
        await self.committer.commit(
            ApplyReport(new_id(), GATEWAY, order.account_id, order.id, report)
        )

    async def account(self, client: httpx.AsyncClient, **balance: str) -> dict[str, Any]:
        """A new account of the client's user with a balance such as `USDT="1000"`."""
        answer = await client.post(
            "/v1/accounts", json={"name": "main", "starting_balance": balance or {"USDT": "1000"}}
        )
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    async def cash(self, client: httpx.AsyncClient, **balance: str) -> dict[str, Any]:
        """A new cash account of the client's user, with what deposits brought."""
        answer = await client.post("/v1/accounts", json={"name": "cash", "kind": "cash"})
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        for asset, amount in balance.items():
            body = {"account_id": created["id"], "asset": asset, "amount": amount}
            deposit = (await client.post("/v1/deposits", json=body)).json()
            payment_id = UUID(deposit["id"])
            report = Report(payment_id, Said.SUCCEEDED, asset, Decimal(amount), str(payment_id))
            await apply_report(self.payments, report)
        return created

    async def cash_of(self, username: str, **balance: str) -> str:
        """A cash account of a user with a balance that came from outside; its id."""
        user_id = await self.pool.fetchval("SELECT id FROM users WHERE username = $1", username)
        limits = self.orders.accounts.default_limits
        amounts = {asset: Decimal(text) for asset, text in balance.items()}
        command: Any = OpenAccount(
            new_id(), SYSTEM, new_id(), user_id, "cash", None, limits, amounts
        )
        outcome = await self.committer.commit(command)
        return str(outcome.result.id)

    async def user(self, username: str, role: Role = Role.TRADER) -> None:
        """One more user, with everybody's password."""
        await users.create_user(self.pool, self.auth.passwords, username, PASSWORD, role)

    async def journal_size(self) -> int:
        """How many entries accounts have: what a refused request must not change."""
        size: int = await self.pool.fetchval(
            "SELECT count(*) FROM journal WHERE kind NOT LIKE 'security.%'"
        )
        return size


UNHURRIED: dict[str, dict[str, Any]] = {
    # The market speaks once: how long a test takes until it orders decides nothing.
    "risk": {"price_age_s_max": 86_400},
    # A busy machine is no overload here.
    "overload": {"lag_ms_max": 1e6},
    "stream": {"admission_lag_ms_max": 1e6},
}

type NewSite = Callable[..., Any]


@pytest.fixture
async def new_site(database_url: str) -> AsyncIterator[NewSite]:
    """Makes sites on the test's database: each is what one API process has."""
    async with AsyncExitStack() as stack:

        async def make(**changes: Any) -> Site:
            quiet = {part: more | changes.pop(part, {}) for part, more in UNHURRIED.items()}
            return await _site(stack, database_url, Settings(**quiet, **changes))

        yield make


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    """One API process with the users ann and bob (traders) and root (administrator)."""
    made: Site = await new_site()
    for name, role in (("ann", Role.TRADER), ("bob", Role.TRADER), ("root", Role.ADMIN)):
        await made.user(name, role)
    return made


async def _site(stack: AsyncExitStack, url: str, settings: Settings) -> Site:
    bus = Bus()
    pool = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1, max_size=8))
    auth = await stack.enter_async_context(auth_flow.opened(pool, settings.auth, bus))
    committer = Committer(
        lambda: connect_committer(url, settings.committer), projections(), settings.committer, bus
    )
    await committer.start()
    stack.push_async_callback(committer.stop)
    markets = [instrument("BTC"), instrument("ETH")]
    async with pool.acquire() as connection:
        await store.save_instruments(connection, markets)
    instruments = Instruments()
    await instruments.reload(pool, "paper")
    # The market speaks once, and is no staler for a test that takes its time.
    feed = MarketFeed(QuietMarket(), MarketSettings(stale_after_s=86_400))
    hub = Hub(settings.stream)
    candles = CandleFeed(QuietMarket(), CandleSettings())
    market = Market(hub, feed, candles)
    for listener in (candles.hear, market.hear):
        feed.listen(listener)
    candles.listen(market.hear)
    candles.start(markets)
    stack.push_async_callback(candles.stop)
    synced = asyncio.Event()
    feed.listen(lambda symbol, _: synced.set() if feed.book("BTC-USDT") else None)
    feed.start(markets)
    stack.push_async_callback(feed.stop)
    await asyncio.wait_for(synced.wait(), 10)
    venue = PaperDeposits()
    limits = Limits(
        max_order_notional=settings.risk.max_order_notional,
        max_open_orders=settings.risk.max_open_orders,
        price_collar=settings.risk.price_collar,
    )
    venues: Any = {"paper": venue}
    accounts = AccountDesk(pool, committer, venues, limits, settings=settings.ledger)
    orders = OrderDesk(
        pool,
        committer,
        bus,
        accounts,
        instruments,
        {"paper": feed},  # type: ignore[dict-item]
        settings.gateway,
        settings.risk,
    )
    checks: dict[str, Any] = {}
    provider = SimulatedProvider(
        pool, settings.simulated_provider, CALLBACK_SECRET, "http://test", 300.0
    )
    payments = PaymentDesk(pool, committer, accounts, provider, rules_of(settings.payments))
    journal = Journal(pool, bus, settings.stream)
    committer.listen(journal.remember)
    streams = Streams(settings.stream, hub, market, journal, auth, pool, bus)
    streams.start()
    stack.push_async_callback(streams.stop)
    parts = Deps(
        settings, pool, auth, orders, {"paper": feed}, streams, checks, payments, {"paper": candles}
    )
    return Site(
        build_app(parts), settings, pool, auth, committer, orders, feed, venue, checks, bus,
        payments, provider, streams, candles,
    )  # fmt: skip


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Site], Any]]:
    """Serves a site on a real socket; answers its base URL."""
    running: list[tuple[Site, uvicorn.Server, asyncio.Task[None]]] = []

    async def start(site: Site) -> str:
        options = server_options(site.app, site.settings)
        server = uvicorn.Server(uvicorn.Config(**{**options, "port": 0}))
        task = asyncio.create_task(server.serve())
        running.append((site, server, task))
        while not server.started:
            assert not task.done(), task.exception()
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    yield start
    for site, server, task in running:
        await site.streams.drain()
        server.should_exit = True
        await task


@pytest.fixture
async def dispatch(serve: Callable[[Site], Any]) -> AsyncIterator[Callable[..., Any]]:
    """Serves sites and takes their payments to the provider, as a process in that role does."""
    duties: list[Duty] = []

    async def start(site: Site, dsn: str, provider: Any = None) -> Dispatcher:
        site.provider.callback_url = await serve(site)
        moving = provider or site.provider
        dispatcher = Dispatcher(site.payments, moving, site.bus, site.settings.payments)

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(dispatcher.run())
                if moving is site.provider:
                    group.create_task(site.provider.run())

        duties.append(Duty(lambda: connect_listener(dsn), PAYMENTS, work))
        duties[-1].start()
        return dispatcher

    yield start
    for one in duties:
        await one.stop()


@pytest.fixture
async def deliver(new_site: NewSite) -> AsyncIterator[Callable[..., Any]]:
    """Delivers a site's journal to webhooks, as a process in that role does."""
    async with AsyncExitStack() as stack:

        async def start(site: Site, dsn: str, sender: Sender | None = None) -> Duty:
            settings = site.settings.webhooks
            journal = Journal(site.pool, site.bus, site.settings.stream)
            site.committer.listen(journal.remember)
            journal.start()
            stack.push_async_callback(journal.stop)
            sender = sender or Sender(settings.allow_private, settings.timeout_s, 8)
            stack.push_async_callback(sender.close)
            deliverer = Deliverer(site.pool, journal, site.bus, settings, sender)
            duty = Duty(lambda: connect_listener(dsn), WEBHOOKS, deliverer.run)
            duty.start()
            stack.push_async_callback(duty.stop)
            return duty

        yield start


@pytest.fixture(scope="session")
def document() -> dict[str, Any]:
    """The OpenAPI document, of an application with nothing behind it."""
    nothing: Any = MagicMock()
    app = build_app(Deps(Settings(), nothing, nothing, nothing, streams=nothing))
    made: dict[str, Any] = json.loads(json.dumps(app.openapi()))
    return made


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is the problem document expected, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code, document
    assert document["type"] == f"urn:tbot:problem:{code}"
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]
    assert document["request_id"] == answer.headers["x-request-id"]
    return document


@pytest.fixture(name="problem")
def _problem() -> Callable[..., dict[str, Any]]:
    return problem
