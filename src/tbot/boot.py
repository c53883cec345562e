"""The composition root: settings become a running T-Bot, and stop again in reverse order.

`running` builds the parts of one process around a database that somebody else runs and migrated.
`tbot.serving` serves them, and `tbot.up` starts the database and the paper exchange around both.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import structlog
from fastapi import FastAPI

from tbot.audit.anchorer import Anchorer
from tbot.audit.anchoring import place_of
from tbot.auth import flow as auth_flow
from tbot.auth import store as auth_store
from tbot.auth.flow import Auth
from tbot.core.bus import Bus
from tbot.core.cache import Shared
from tbot.core.errors import ConfigurationError, VenueError
from tbot.core.settings import RiskSettings, Settings
from tbot.core.tasks import Tasks
from tbot.core.valkey import Valkey
from tbot.db.access import require_durable, running_database
from tbot.db.migrate import require_current
from tbot.db.notify import NotifyBridge
from tbot.db.pool import DATABASE_FAULTS, connect_committer, connect_listener, create_pool
from tbot.gateway import switches
from tbot.gateway.gateway import Gateway, GatewayParts
from tbot.gateway.lease import LeaseWatch
from tbot.journal.committer import Committer
from tbot.journal.cursors import Journal
from tbot.journal.once import Cleaner
from tbot.journal.projections import Projections
from tbot.ledger import duty
from tbot.ledger.assets import save_assets
from tbot.ledger.entries import Limits
from tbot.ledger.flow import AccountDesk
from tbot.ledger.marks import MarksProjection
from tbot.ledger.members_store import MembersProjection
from tbot.ledger.payments_dispatch import Dispatcher
from tbot.ledger.payments_flow import PaymentDesk, rules_of
from tbot.ledger.payments_store import PaymentsProjection
from tbot.ledger.permissions import Permissions
from tbot.ledger.provider_sim import SimulatedProvider
from tbot.ledger.store import LedgerProjection
from tbot.ledger.transfers_flow import Expiry
from tbot.ledger.transfers_store import TransfersProjection
from tbot.ledger.webhooks_delivery import Deliverer
from tbot.ledger.webhooks_target import Sender
from tbot.market.candle_feed import CandleFeed
from tbot.market.candle_recorder import CandleRecorder
from tbot.market.channels import Market
from tbot.market.feed import MarketFeed
from tbot.market.hub import Hub
from tbot.market.status import Halt, StatusBoard
from tbot.orders import store as orders_store
from tbot.orders.flow import Instruments
from tbot.orders.flow import Market as ReferencePrices
from tbot.orders.flow import OrderDesk
from tbot.orders.instruments import InstrumentsFollower
from tbot.orders.store import OrdersProjection
from tbot.venues.base import Instrument
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import HmacSigner
from tbot.web.app import build_app
from tbot.web.checks import process_checks
from tbot.web.deps import Check, Deps
from tbot.web.market import ticker_json
from tbot.web.stream import Streams
from tbot.web.tickers import SharedTickers

PAPER: Final = "paper"
_STOP_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PaperAccess:
    """Where the paper exchange is, and the key to it."""

    url: str
    api_key: str
    api_secret: str


@dataclass(slots=True)
class Parts:
    """What runs in one process."""

    settings: Settings
    pool: asyncpg.Pool[asyncpg.Record]
    bus: Bus
    auth: Auth
    committer: Committer
    orders: OrderDesk
    feed: MarketFeed | None
    gateway: Gateway | None
    streams: Streams
    app: FastAPI
    checks: Mapping[str, Check]

    async def unready(self) -> dict[str, str]:
        """What is not ready yet, by name, with a few words why."""
        answers = {name: await check() for name, check in self.checks.items()}
        return {name: why for name, why in answers.items() if why is not None}


def projections() -> Projections:
    """Everything that keeps tables in step with the journal, in the order it applies."""
    return Projections(
        LedgerProjection(),
        MarksProjection(),
        TransfersProjection(),
        PaymentsProjection(),
        OrdersProjection(),
        MembersProjection(),
    )


def starting_limits(risk: RiskSettings) -> Limits:
    """The limits that a new account starts with."""
    return Limits(
        max_order_notional=risk.max_order_notional,
        max_open_orders=risk.max_open_orders,
        price_collar=risk.price_collar,
    )


def database_url(settings: Settings) -> str:
    """The database of the settings, or else the one that runs in the data directory.

    Raises:
        DataDirectoryError: Neither is there.
    """
    if settings.database.url is not None:
        return settings.database.url.get_secret_value()
    return running_database(settings.data_dir)


@asynccontextmanager
async def running(
    settings: Settings, dsn: str, paper: PaperAccess | None, own_url: str | None = None
) -> AsyncIterator[Parts]:
    """Start a process's parts; they stop, bounded in time, when the context ends.

    Venues are connected to in the background: the API answers meanwhile, and `Parts.checks` say
    what is missing.

    Args:
        dsn: A migrated database, for the application's role.
        paper: None leaves the paper venue out.
        own_url: Where this process serves the API, for the simulated provider's callbacks.

    Raises:
        ConfigurationError: The database is not durable or not migrated.
        OSError, asyncpg.PostgresError, JournalUnavailable: It cannot be reached.
    """
    async with AsyncExitStack() as stack:
        pool = await create_pool(dsn, settings.database)
        stack.push_async_callback(_close_pool, pool)
        await _check_database(dsn)
        valkey = _valkey(stack, settings)
        bus = Bus()
        notify = NotifyBridge(lambda: connect_listener(dsn), bus)
        await notify.start()
        stack.push_async_callback(notify.stop)
        shared = await _shared(pool, valkey)
        auth, permissions = await _identity(stack, settings, pool, bus, shared)
        committer = Committer(
            lambda: connect_committer(dsn, settings.committer),
            projections(),
            settings.committer,
            bus,
        )
        await committer.start()
        stack.push_async_callback(committer.stop)
        if settings.audit.anchor_interval_s:
            anchorer = Anchorer(
                lambda: connect_listener(dsn), place_of(settings), settings.audit.anchor_interval_s
            )
            anchorer.start()
            stack.push_async_callback(anchorer.stop)
        cleaner = Cleaner(pool, settings.idempotency)
        cleaner.start()
        stack.push_async_callback(cleaner.stop)
        await save_assets(pool, settings.ledger.assets)
        expiry = Expiry(pool, committer, settings.ledger)
        expiry.start()
        stack.push_async_callback(expiry.stop)
        instruments = Instruments()
        venue = feed = gateway = candles = None
        if paper is not None:
            follower = InstrumentsFollower(pool, bus, instruments, PAPER, settings.cache, shared)
            await follower.start()
            stack.push_async_callback(follower.stop)
            venue = BinanceVenue(
                PAPER,
                Endpoints.at(paper.url),
                HmacSigner(paper.api_key, paper.api_secret),
                settings.gateway,
                paper=True,
            )
            stack.push_async_callback(venue.stop)
            feed = MarketFeed(venue, settings.market)
            stack.push_async_callback(feed.stop)
            candles = _candles(stack, settings, dsn, pool, venue, feed)
            gateway = await _connect(
                stack, settings, dsn, pool, bus, committer, venue, feed, candles, instruments
            )
        served = _served(stack, pool, gateway)
        status = None if feed is None else _status(stack, settings, pool, feed, served)
        streams = _streams(
            stack, settings, feed, candles, status, bus, auth, committer, permissions
        )
        venues: dict[str, Any] = {} if venue is None else {PAPER: venue}
        accounts = AccountDesk(
            pool,
            committer,
            venues,
            starting_limits(settings.risk),
            settings=settings.ledger,
        )
        prices: dict[str, ReferencePrices] = {} if feed is None else {PAPER: feed}
        orders = OrderDesk(
            pool,
            committer,
            bus,
            accounts,
            instruments,
            prices,
            settings.gateway,
            settings.risk,
            (lambda _venue: 0.0) if venue is None else (lambda _venue: venue.estimate_wait_s()),
            served,
        )
        checks = process_checks(pool, committer, feed, gateway, lambda: served(PAPER))
        feeds = {} if feed is None else {PAPER: feed}
        payments = await _payments(stack, settings, dsn, bus, accounts, own_url)
        if settings.webhooks.enabled and "gateway" in settings.roles:
            _webhooks(stack, settings, dsn, pool, bus, committer)
        app = build_app(
            Deps(
                settings,
                pool,
                auth,
                orders,
                feeds,
                streams,
                checks,
                payments,
                {} if candles is None else {PAPER: candles},
                {} if status is None else {PAPER: status},
                valkey,
                _tickers(stack, settings, shared, feeds),
            )
        )
        yield Parts(
            settings, pool, bus, auth, committer, orders, feed, gateway, streams, app, checks
        )


def _valkey(stack: AsyncExitStack, settings: Settings) -> Valkey | None:
    """The shared Valkey, if there is one; it is connected to when it is first needed."""
    if settings.valkey.url is None:
        return None
    valkey = Valkey(settings.valkey)
    stack.push_async_callback(valkey.stop)
    return valkey


async def _identity(
    stack: AsyncExitStack,
    settings: Settings,
    pool: asyncpg.Pool[asyncpg.Record],
    bus: Bus,
    shared: Shared | None,
) -> tuple[Auth, Permissions]:
    """Who asks, and what they may do with accounts of others."""
    auth = await stack.enter_async_context(
        auth_flow.opened(pool, settings.auth, bus, shared=shared)
    )
    permissions = Permissions(pool, bus, settings.cache, shared)
    stack.push_async_callback(permissions.stop)
    return auth, permissions


async def _shared(pool: asyncpg.Pool[asyncpg.Record], valkey: Valkey | None) -> Shared | None:
    """What caches tell other processes, under a secret that all processes of the database have."""
    if valkey is None:
        return None
    async with pool.acquire() as connection:
        secret = await auth_store.shared_secret(connection, "caches", os.urandom(32))
    return Shared(valkey, secret)


async def _check_database(dsn: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=_STOP_TIMEOUT_S)
    try:
        await require_durable(connection)
        await require_current(connection)
    finally:
        await connection.close()


async def _close_pool(pool: asyncpg.Pool[asyncpg.Record]) -> None:
    try:
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await pool.close()
    except DATABASE_FAULTS:
        pool.terminate()


async def _connect(
    stack: AsyncExitStack,
    settings: Settings,
    dsn: str,
    pool: asyncpg.Pool[asyncpg.Record],
    bus: Bus,
    committer: Committer,
    venue: BinanceVenue,
    feed: MarketFeed,
    candles: CandleFeed,
    instruments: Instruments,
) -> Gateway | None:
    """Reach the venue in the background: instruments, then market data; orders in its role."""
    following = False

    def learned(found: Sequence[Instrument]) -> None:
        nonlocal following
        instruments.put(venue.name, list(found))
        if not following:
            following = True
            candles.start(found)
            feed.start(found)

    if "gateway" in settings.roles:
        gateway = Gateway(
            GatewayParts(
                venue=venue,
                committer=committer,
                pool=pool,
                bus=bus,
                settings=settings.gateway,
                connect=lambda: connect_listener(dsn),
                on_instruments=learned,
            )
        )
        gateway.start()
        stack.push_async_callback(gateway.stop)
        return gateway
    tasks = Tasks(f"venue-{venue.name}")
    tasks.start(_learn(venue, pool, learned), "learn")
    stack.push_async_callback(tasks.stop)
    return None


def _candles(
    stack: AsyncExitStack,
    settings: Settings,
    dsn: str,
    pool: asyncpg.Pool[asyncpg.Record],
    venue: BinanceVenue,
    feed: MarketFeed,
) -> CandleFeed:
    """Live candles; in the market role also what stores them, when it is this process's turn."""
    candles = CandleFeed(venue, settings.candles)
    feed.listen(candles.hear)
    stack.push_async_callback(candles.stop)
    if "market" in settings.roles:
        recorder = CandleRecorder(pool, candles, settings.candles)
        recording = duty.Duty(lambda: connect_listener(dsn), duty.CANDLES, recorder.run)
        recording.start()
        stack.push_async_callback(recording.stop)
    return candles


def _status(
    stack: AsyncExitStack,
    settings: Settings,
    pool: asyncpg.Pool[asyncpg.Record],
    feed: MarketFeed,
    served: Callable[[str], bool],
) -> StatusBoard:
    async def halts() -> Sequence[Halt]:
        async with pool.acquire() as connection:
            turns = await switches.current(connection)
        return [Halt(turn.name, turn.reason, turn.at) for turn in turns if turn.halted]

    status = StatusBoard(
        PAPER, feed, halts, lambda: served(PAPER), settings.market.status_interval_s
    )
    stack.push_async_callback(status.stop)
    return status


async def _payments(
    stack: AsyncExitStack,
    settings: Settings,
    dsn: str,
    bus: Bus,
    accounts: AccountDesk,
    own_url: str | None,
) -> PaymentDesk:
    """Deposits and withdrawals; in the gateway role also what takes them to the provider."""
    pool, committer, rules = accounts.pool, accounts.committer, rules_of(settings.payments)
    if settings.payments.provider == "none":
        return PaymentDesk(pool, committer, accounts, None, rules)
    async with pool.acquire() as connection:
        secret = await auth_store.shared_secret(connection, "simulated_provider", os.urandom(32))
    provider = SimulatedProvider(
        pool,
        settings.simulated_provider,
        secret,
        settings.simulated_provider.callback_url
        or own_url
        or f"http://127.0.0.1:{settings.http.port}",
        settings.payments.callback_tolerance_s,
    )
    desk = PaymentDesk(pool, committer, accounts, provider, rules)
    if "gateway" in settings.roles:
        dispatcher = Dispatcher(desk, provider, bus, settings.payments)

        async def work() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(provider.run())
                group.create_task(dispatcher.run())

        dispatching = duty.Duty(lambda: connect_listener(dsn), duty.PAYMENTS, work)
        dispatching.start()
        stack.push_async_callback(dispatching.stop)
    return desk


def _webhooks(
    stack: AsyncExitStack,
    settings: Settings,
    dsn: str,
    pool: asyncpg.Pool[asyncpg.Record],
    bus: Bus,
    committer: Committer,
) -> None:
    """Deliver the journal to webhooks, when it is this process's turn."""
    journal = Journal(pool, bus, settings.stream)
    committer.listen(journal.remember)
    journal.start()
    stack.push_async_callback(journal.stop)
    webhooks = settings.webhooks
    sender = Sender(webhooks.allow_private, webhooks.timeout_s, webhooks.in_flight_max)
    stack.push_async_callback(sender.close)
    deliverer = Deliverer(pool, journal, bus, webhooks, sender)
    delivering = duty.Duty(lambda: connect_listener(dsn), duty.WEBHOOKS, deliverer.run)
    delivering.start()
    stack.push_async_callback(delivering.stop)


def _tickers(
    stack: AsyncExitStack,
    settings: Settings,
    shared: Shared | None,
    feeds: Mapping[str, MarketFeed],
) -> SharedTickers | None:
    """Tickers for processes that hear nothing themselves; the market role tells them."""
    if shared is None:
        return None
    tickers = SharedTickers(
        shared, settings.market.stale_after_s, settings.cache.tickers_interval_s, ticker_json
    )
    stack.push_async_callback(tickers.stop)
    if "market" in settings.roles:
        tickers.start(feeds)
    return tickers


def _served(
    stack: AsyncExitStack, pool: asyncpg.Pool[asyncpg.Record], gateway: Gateway | None
) -> Callable[[str], bool]:
    """Whether any process sends orders to a venue at the moment."""
    if gateway is not None:
        return lambda _venue: gateway.served()
    watch = LeaseWatch(pool, f"venue:{PAPER}")
    watch.start()
    stack.push_async_callback(watch.stop)
    return lambda _venue: watch.served()


async def _learn(
    venue: BinanceVenue,
    pool: asyncpg.Pool[asyncpg.Record],
    learned: Callable[[Sequence[Instrument]], None],
) -> None:
    await venue.start()
    while True:
        try:
            found = await venue.instruments()
            async with pool.acquire() as connection:
                await orders_store.save_instruments(connection, found)
            learned(found)
            return
        except (VenueError, *DATABASE_FAULTS) as error:
            _log.warning("instruments_not_learned", error=str(error))
            await asyncio.sleep(1.0)


def _streams(
    stack: AsyncExitStack,
    settings: Settings,
    feed: MarketFeed | None,
    candles: CandleFeed | None,
    status: StatusBoard | None,
    bus: Bus,
    auth: Auth,
    committer: Committer,
    permissions: Permissions,
) -> Streams:
    hub = Hub(settings.stream)
    market = Market(hub, feed if feed is not None else _NoMarket(), candles, status)
    if feed is not None:
        feed.listen(market.hear)
    if candles is not None:
        candles.listen(market.hear)
    if status is not None:
        status.start(market.hear)
    pool = permissions.pool
    journal = Journal(pool, bus, settings.stream)
    committer.listen(journal.remember)
    streams = Streams(settings.stream, hub, market, journal, auth, pool, bus, permissions)
    streams.start()
    stack.push_async_callback(streams.stop)
    return streams


class _NoMarket:
    """The market source of a process without any venue."""

    def knows(self, _symbol: str) -> bool:
        return False

    def symbols(self) -> Sequence[str]:
        return ()

    def book(self, _symbol: str) -> None:
        return None

    def trades(self, _symbol: str, _limit: int) -> Sequence[Any]:
        return ()

    def best(self, _symbol: str) -> None:
        return None

    def ticker(self, _symbol: str) -> None:
        return None

    def stale(self, _symbol: str) -> bool:
        return True


def paper_access(settings: Settings, exchange_dir: Path) -> PaperAccess | None:
    """How to reach the paper exchange: by the settings, or by what the supervised child wrote.

    Returns:
        None when the paper venue is switched off.

    Raises:
        ConfigurationError: Neither says.
    """
    from tbot.exchange import credentials

    paper = settings.paper
    if not paper.enabled:
        return None
    if paper.url:
        return PaperAccess(paper.url, paper.api_key, paper.api_secret.get_secret_value())
    found = credentials.load(exchange_dir)
    if found is None or not found.url:
        raise ConfigurationError(
            f"the paper exchange has not run yet ({exchange_dir} has no exchange.json): start "
            "`tbot up`, or name one with TBOT_PAPER__URL"
        )
    return PaperAccess(found.url, found.api_key, found.api_secret)
