"""The whole way to the paper exchange and back, while processes die and connections break.

Whatever happens: every acknowledged order is known here once, it executed at the exchange at most
once, and in the end both sides tell the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import structs

from tbot.core.ids import order_id_of, venue_client_id
from tbot.core.settings import GatewaySettings, MarketSettings
from tbot.journal.commands import Accepted
from tbot.ledger.entries import Limits
from tbot.market.book import Reference
from tbot.market.feed import MarketFeed
from tbot.orders import store
from tbot.orders.model import Order, State
from tbot.venues.base import Side
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import Ed25519Signer, HmacSigner

SETTINGS = GatewaySettings(
    receive_window_ms=1500,
    absence_margin_s=1.0,
    lease_ttl_s=5.0,  # not lost where a busy machine stalls for a while
    unknown_interval_s=0.2,
    answer_timeout_s=10.5,
    open_orders_interval_s=5,
)
LIMITS = Limits(
    max_order_notional=Decimal(1_000_000), max_open_orders=100_000, price_collar=Decimal("0.05")
)
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


class Exchange:
    """The paper exchange as a process that can be killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        arguments = ["--port", str(self.port), "--data-dir", str(self.directory), "--faults"]
        self.process = subprocess.Popen(  # noqa: ASYNC220 - killed with SIGKILL, not awaited
            [sys.executable, "-m", "tbot.exchange", *arguments],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.startswith(b"READY"), line
        self.port = int(line.rsplit(b":", 1)[1])

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    def credentials(self) -> dict[str, str]:
        content: dict[str, str] = json.loads((self.directory / "exchange.json").read_text())
        return content

    def venue(self, settings: GatewaySettings = SETTINGS) -> BinanceVenue:
        keys = self.credentials()
        signer = HmacSigner(keys["api_key"], keys["api_secret"])
        endpoints = Endpoints.at(f"http://127.0.0.1:{self.port}")
        return BinanceVenue("paper", endpoints, signer, settings, paper=True)


@pytest.fixture
async def exchange(tmp_path: Path) -> AsyncIterator[Exchange]:
    made = Exchange(tmp_path / "exchange")
    await made.start()
    yield made
    made.kill()


@pytest.fixture
async def venue(exchange: Exchange) -> AsyncIterator[BinanceVenue]:
    made = exchange.venue()
    yield made
    await made.stop()


async def funded(desk: Any, venue: BinanceVenue, **amounts: str) -> UUID:
    """An account whose deposits the exchange has as well."""
    account_id: UUID = await desk.open(limits=LIMITS, **amounts)
    for asset, amount in amounts.items():
        await venue.deposit(f"{account_id}:{asset}", asset, Decimal(amount))
    return account_id


async def market(venue: BinanceVenue) -> tuple[MarketFeed, Any]:
    instrument = next(i for i in await venue.instruments() if i.symbol == "BTC-USDT")
    feed = MarketFeed(venue, MarketSettings())
    feed.start([instrument])
    async with asyncio.timeout(10):
        while not feed.synced or feed.best("BTC-USDT") is None:
            await asyncio.sleep(0.01)
    return feed, instrument


def command(desk: Any, account: UUID, feed: MarketFeed, instrument: Any, rng: Any) -> Any:
    """A market order, or a limit order that rests below the market."""
    now = feed.reference("BTC-USDT")
    assert now is not None
    assert now.bid is not None
    reference = Reference("BTC-USDT", now.bid, now.ask, now.last, now.at_boot_s)
    limit = rng.random() < 0.4
    price = (now.bid * rng.choice((97, 98, 99)) / 100 // instrument.tick) * instrument.tick
    side = Side.BUY if limit or rng.random() < 0.6 else Side.SELL
    order = desk.order(
        account,
        quantity=str(instrument.step * rng.randrange(20, 60)),
        price=str(price) if limit else None,
        side=side,
    )
    return structs.replace(order, reference=reference, instrument=instrument, send_within_s=1.0)


async def accepted(desk: Any, placing: Any) -> Order:
    """The order; none of these is refused."""
    outcome = await desk.committer.commit(placing)
    assert isinstance(outcome, Accepted), outcome
    order: Order = outcome.result.order
    return order


async def settled(pool: asyncpg.Pool[Any], timeout_s: float = 40.0) -> list[Order]:
    """Every order, once none is in doubt or under way any more."""
    async with asyncio.timeout(timeout_s):
        while await pool.fetchval(
            "SELECT count(*) FROM orders WHERE state IN ('pending_new', 'unknown')"
            " OR state = 'pending_cancel'"
        ):
            await asyncio.sleep(0.05)
    async with pool.acquire() as connection:
        rows = await connection.fetch("SELECT id FROM orders")
        return [await store.get_order(connection, row["id"]) for row in rows]


async def agreed(venue: BinanceVenue, pool: asyncpg.Pool[Any]) -> list[Order]:
    """Every order, once both sides tell the same; resting orders may still fill meanwhile."""
    async with asyncio.timeout(60):
        for attempts_left in range(10, -1, -1):
            orders = await settled(pool)
            try:
                await compare(orders, venue, pool)
                return orders
            except AssertionError:
                if not attempts_left:
                    raise
            await asyncio.sleep(0.5)
    raise AssertionError


async def compare(orders: list[Order], venue: BinanceVenue, pool: asyncpg.Pool[Any]) -> None:
    """Fail unless the exchange and we tell the same of every order, and of the money."""
    instrument = next(i for i in await venue.instruments() if i.symbol == "BTC-USDT")
    listed = await venue._lists.all_orders(instrument)
    at_venue = Counter(_placed(order["clientOrderId"]) for order in listed)
    assert set(at_venue.values()) <= {1}, "an order was executed twice"
    ours = {order.venue_client_id: order for order in orders}
    unknown_here = set(at_venue) - set(ours)
    assert not unknown_here, f"the exchange has orders that we do not know: {unknown_here}"
    for client_id, order in ours.items():
        report = await venue.query(client_id, instrument)
        if report is None:
            assert order.state is State.REJECTED or order.cancel_requested, order
            assert order.final
            assert order.venue_order_id is None
        else:
            assert report.status.value == order.state.value, (order, report)
            assert report.executed_quantity == order.filled_quantity
            assert report.executed_quote == order.filled_quote
    rows = await pool.fetch("SELECT asset, sum(available + held) AS sum FROM balances GROUP BY 1")
    balances = await venue.balances()
    for row in rows:
        free, locked = balances.get(row["asset"], (Decimal(0), Decimal(0)))
        assert row["sum"] == free + locked, row["asset"]


def states_of(orders: list[Order]) -> Counter[str]:
    return Counter(order.state.value for order in orders)


def _placed(client_id: str) -> str:
    return "tb" + client_id[2:] if client_id.startswith("tc") else client_id


LONG = pytest.mark.long


@pytest.mark.parametrize(("seed", "count"), [(11, 150), pytest.param(12, 3000, marks=LONG)])
async def test_random_faults_of_the_exchange(
    desk: Any,
    pool: asyncpg.Pool[Any],
    venue: BinanceVenue,
    new_gateway: Any,
    seed: int,
    count: int,
) -> None:
    await new_gateway(desk, venue, SETTINGS)
    account = await funded(desk, venue, USDT="1000000", BTC="10")
    feed, instrument = await market(venue)
    rng = random.Random(seed)
    placed: list[Order] = []
    for number in range(count):
        if number % 6 == 0:
            kind = rng.choice(
                [
                    "drop_before", "drop_after", "timeout_before", "timeout_after", "not_found",
                    "not_found", "drop_user_streams",
                ]
            )  # fmt: skip
            params = {"kind": kind, "count": 1}
            await venue._rest.post("/paper/v1/faults", params, weight=1, priority=0)  # type: ignore[arg-type]
        placed.append(await accepted(desk, command(desk, account, feed, instrument, rng)))
        if rng.random() < 0.3:
            await desk.cancel(rng.choice(placed))
        await asyncio.sleep(rng.random() * 0.01)
    orders = await agreed(venue, pool)
    states = states_of(orders)
    assert states["filled"] > 50
    assert len(orders) == count
    assert {order.id for order in orders} == {order.id for order in placed}
    await feed.stop()
    await desk.verified()


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=LONG)])
async def test_kill_the_exchange_while_orders_flow(
    desk: Any,
    pool: asyncpg.Pool[Any],
    exchange: Exchange,
    venue: BinanceVenue,
    new_gateway: Any,
    kills: int,
) -> None:
    await new_gateway(desk, venue, SETTINGS)
    account = await funded(desk, venue, USDT="1000000", BTC="10")
    feed, instrument = await market(venue)
    rng = random.Random(12)
    placed: list[Order] = []
    for _ in range(kills):
        async with asyncio.TaskGroup() as group:
            stop = asyncio.Event()

            async def trade(until: asyncio.Event = stop) -> None:
                while not until.is_set():
                    placed.append(
                        await accepted(desk, command(desk, account, feed, instrument, rng))
                    )
                    await asyncio.sleep(rng.random() * 0.01)

            for _ in range(3):
                group.create_task(trade())
            await asyncio.sleep(0.3 + rng.random() * 0.3)
            exchange.kill()
            await asyncio.sleep(0.2)
            stop.set()
        await exchange.start()
        async with asyncio.timeout(20):
            await venue.wait_ready()
            while not feed.synced:
                await asyncio.sleep(0.02)
    orders = await agreed(venue, pool)
    states = states_of(orders)
    assert {order.id for order in orders} == {order.id for order in placed}
    assert states["filled"] > 20
    await feed.stop()
    await desk.verified()


def _ids(lines: list[bytes]) -> Iterator[UUID]:
    for line in lines:
        if len(line.strip()) == 36:
            yield UUID(line.strip().decode())


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=LONG)])
async def test_kill_the_gateway_while_orders_flow(
    desk: Any,
    pool: asyncpg.Pool[Any],
    exchange: Exchange,
    venue: BinanceVenue,
    new_gateway: Any,
    database_url: str,
    kills: int,
) -> None:
    await venue.start()
    account = await funded(desk, venue, USDT="1000000", BTC="10")
    keys = exchange.credentials()
    rng = random.Random(13)
    acknowledged: list[UUID] = []
    for run in range(kills):
        process = subprocess.Popen(  # noqa: ASYNC220
            [
                sys.executable,
                str(Path(__file__).with_name("trading_process.py")),
                database_url,
                f"http://127.0.0.1:{exchange.port}",
                keys["api_key"],
                keys["api_secret"],
                str(account),
                str(run),
            ],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert (await asyncio.to_thread(process.stdout.readline)).strip() == b"ready"
        await asyncio.sleep(0.3 + rng.random() * 0.5)
        process.kill()
        acknowledged += _ids(await asyncio.to_thread(process.stdout.readlines))
        process.wait()
        process.stdout.close()
    assert len(acknowledged) > 20
    await new_gateway(desk, venue, SETTINGS)
    orders = await agreed(venue, pool)
    states = states_of(orders)
    assert set(acknowledged) <= {order.id for order in orders}
    assert all(order_id_of(venue_client_id(each)) == each for each in acknowledged)
    assert states["filled"] > 10
    await desk.verified()


async def test_a_stopped_gateway_does_nothing_when_it_wakes(
    desk: Any,
    pool: asyncpg.Pool[Any],
    exchange: Exchange,
    venue: BinanceVenue,
    new_gateway: Any,
    database_url: str,
) -> None:
    """SIGSTOP in the middle of trading, a takeover, SIGCONT: nobody executes anything twice."""
    await venue.start()
    account = await funded(desk, venue, USDT="1000000", BTC="10")
    keys = exchange.credentials()
    process = subprocess.Popen(  # noqa: ASYNC220
        [
            sys.executable,
            str(Path(__file__).with_name("trading_process.py")),
            database_url,
            f"http://127.0.0.1:{exchange.port}",
            keys["api_key"],
            keys["api_secret"],
            str(account),
            "5",
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert (await asyncio.to_thread(process.stdout.readline)).strip() == b"ready"
    await asyncio.sleep(0.4)
    process.send_signal(signal.SIGSTOP)
    gateway = await new_gateway(desk, venue, SETTINGS)  # waits for the lease to end
    process.send_signal(signal.SIGCONT)
    # The old process goes on accepting orders; only the new holder sends them.
    await asyncio.sleep(1.0)
    assert gateway.ready.is_set()
    process.kill()
    acknowledged = list(_ids(await asyncio.to_thread(process.stdout.readlines)))
    process.wait()
    process.stdout.close()
    orders = await agreed(venue, pool)
    assert set(acknowledged) <= {order.id for order in orders}
    await desk.verified()


async def test_the_exchange_accepts_both_kinds_of_keys(exchange: Exchange) -> None:
    keys = exchange.credentials()
    private = serialization.load_pem_private_key(keys["ed25519_private_key"].encode(), None)
    assert isinstance(private, Ed25519PrivateKey)
    venue = BinanceVenue(
        "paper",
        Endpoints.at(f"http://127.0.0.1:{exchange.port}"),
        Ed25519Signer(keys["ed25519_api_key"], private),
        SETTINGS,
        paper=True,
    )
    await venue.start()
    try:
        await venue.deposit("first:USDT", "USDT", Decimal(5))
        await venue.deposit("first:USDT", "USDT", Decimal(5))
        assert await venue.balances() == {"USDT": (Decimal(5), Decimal(0))}
        instrument = next(i for i in await venue.instruments() if i.symbol == "BTC-USDT")
        assert await venue.query("tbNever", instrument) is None
    finally:
        await venue.stop()
