"""A write path on a database of the test's own; and paper exchanges in processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot import boot
from tbot.boot import PaperAccess, projections
from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.settings import CommitterSettings
from tbot.db.pool import connect_committer
from tbot.journal.commands import GATEWAY, SYSTEM, Accepted
from tbot.journal.committer import Committer
from tbot.ledger.entries import Limits, OpenAccount
from tbot.ledger.transfers import NewTransfer, create_transfers
from tbot.market.book import Reference
from tbot.orders import store as orders_store
from tbot.orders.commands import PlaceOrder, RequestCancel
from tbot.orders.reports import ApplyReport
from tbot.orders.rules import OrderRequest
from tbot.venues.base import (
    Instrument,
    OrderReport,
    OrderType,
    Side,
    TimeInForce,
    VenueFill,
    VenueStatus,
)
from tbot.verify import verify

LIMITS = Limits(
    max_order_notional=Decimal(1_000_000), max_open_orders=1000, price_collar=Decimal("0.05")
)
BTC_USDT = Instrument(
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
    notional_max=Decimal(9_000_000),
    trading=True,
)


@dataclass
class Desk:
    """Commands against one committer, in few words."""

    dsn: str
    committer: Committer
    bus: Bus
    entries: list[Any] = field(default_factory=list)

    async def open(
        self, venue: str | None = "paper", limits: Limits = LIMITS, **deposits: str
    ) -> UUID:
        """Open an account with deposits such as `USDT="1000"`; a cash account has no venue."""
        account_id = new_id()
        amounts = {asset: Decimal(text) for asset, text in deposits.items()}
        outcome = await self.committer.commit(
            OpenAccount(new_id(), SYSTEM, account_id, UUID(int=7), "test", venue, limits, amounts)
        )
        assert outcome.result.id == account_id
        return account_id

    def order(
        self,
        account_id: UUID,
        quantity: str | None = "0.1",
        price: str | None = "100",
        side: Side = Side.BUY,
        client_order_id: str | None = None,
        **more: Any,
    ) -> PlaceOrder:
        """A limit order (a market order without a price) in a market of 99 to 100."""
        request = OrderRequest(
            symbol="BTC-USDT",
            side=side,
            type=OrderType.MARKET if price is None else OrderType.LIMIT,
            time_in_force=TimeInForce.GTC,
            quantity=None if quantity is None else Decimal(quantity),
            quote_amount=None,
            limit_price=None if price is None else Decimal(price),
            client_order_id=client_order_id,
        )
        now = Reference("BTC-USDT", Decimal(99), Decimal(100), Decimal(100), clock.boot_s())
        return PlaceOrder(
            new_id(), SYSTEM, account_id, new_id(), request, BTC_USDT, now, 5.0, **more
        )

    async def place(self, account_id: UUID, *args: Any, **kwargs: Any) -> Any:
        """Commit `order(…)`; the outcome."""
        return await self.committer.commit(self.order(account_id, *args, **kwargs))

    async def transfer(
        self, source_id: UUID, target_id: UUID, amount: str, asset: str = "EUR", **more: Any
    ) -> Any:
        """Commit one transfer; the transfer, or the refusal."""
        new = NewTransfer(
            id=new_id(),
            source_id=source_id,
            target_id=target_id,
            asset=asset,
            amount=Decimal(amount),
            **more,
        )
        outcome = await self.committer.commit(create_transfers(new_id(), SYSTEM, (new,)))
        return outcome.result[0] if isinstance(outcome, Accepted) else outcome

    async def resolve(self, kind: type, transfer: Any, *more: Any) -> Any:
        """Commit a command about a transfer, such as `PostTransfer`; its result or refusal."""
        outcome = await self.committer.commit(
            kind(new_id(), SYSTEM, transfer.id, transfer.source_id, transfer.target_id, *more)
        )
        return outcome.result if isinstance(outcome, Accepted) else outcome

    async def cancel(self, order: Any) -> Any:
        """Request an order's cancellation."""
        return await self.committer.commit(
            RequestCancel(new_id(), SYSTEM, order.account_id, order.id)
        )

    async def report(
        self,
        order: Any,
        status: VenueStatus,
        *fills: tuple[str, str, str],
        executed: str | None = None,
    ) -> Any:
        """Apply a report; fills are (trade id, price, quantity), fees 0.1 % of what is received."""
        booked = [fill_of(order, *fill) for fill in fills]
        total = sum((f.quantity for f in booked), order.filled_quantity)
        outcome = await self.committer.commit(
            ApplyReport(
                new_id(),
                GATEWAY,
                order.account_id,
                order.id,
                OrderReport(
                    client_id=order.venue_client_id,
                    venue_symbol="BTCUSDT",
                    venue_order_id="1",
                    status=status,
                    executed_quantity=total if executed is None else Decimal(executed),
                    executed_quote=Decimal(0),
                    updated_at=datetime.now(UTC),
                    fills=tuple(booked),
                ),
            )
        )
        return outcome.result

    async def verified(self) -> None:
        """Fail unless the tables are what the journal says."""
        verdict = await verify(self.dsn, projections())
        assert verdict.sound, verdict.faults


def fill_of(order: Any, trade_id: str, price: str, quantity: str) -> VenueFill:
    """A fill with a fee of 0.1 % of what the order receives."""
    quote = Decimal(price) * Decimal(quantity)
    buying = order.side is Side.BUY
    received = Decimal(quantity) if buying else quote
    return VenueFill(
        trade_id=trade_id,
        price=Decimal(price),
        quantity=Decimal(quantity),
        quote_quantity=quote,
        fee=received / 1000,
        fee_asset="BTC" if buying else "USDT",
        maker=False,
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
async def new_desk(database_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Makes desks on the test's database: each has a committer of its own, as a process would."""
    committers: list[Committer] = []

    async def make(dsn: str = database_url, **settings: Any) -> Desk:
        bus = Bus()
        # Many commands at once may wait for long on a busy machine: a test of the age says its own.
        chosen = CommitterSettings(**{"queue_age_s_max": 120.0, **settings})
        committer = Committer(lambda: connect_committer(dsn, chosen), projections(), chosen, bus)
        await committer.start()
        committers.append(committer)
        desk = Desk(database_url, committer, bus)
        committer.listen(desk.entries.extend)
        return desk

    yield make
    for committer in committers:
        await committer.stop()


@pytest.fixture
async def desk(new_desk: Callable[..., Any]) -> Desk:
    """One committer on the test's database."""
    made: Desk = await new_desk()
    return made


type StartExchange = Callable[..., Awaitable[PaperAccess]]


@pytest.fixture
async def start_exchange(tmp_path: Path) -> AsyncIterator[StartExchange]:
    """Starts a paper exchange with more arguments, such as `--seed 7`; it ends with the test."""
    processes: list[subprocess.Popen[bytes]] = []

    async def start(*arguments: str) -> PaperAccess:
        directory = tmp_path / f"exchange-{len(processes)}"
        command = [*(sys.executable, "-m", "tbot.exchange"), "--data-dir", str(directory)]
        process = subprocess.Popen(  # noqa: ASYNC220
            [*command, "--port", "0", *arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        assert process.stdout is not None
        line = await asyncio.to_thread(process.stdout.readline)
        assert line.startswith(b"READY"), line
        keys = json.loads((directory / "exchange.json").read_text())
        return PaperAccess(keys["url"], keys["api_key"], keys["api_secret"])

    yield start
    for process in processes:
        process.terminate()
        await asyncio.to_thread(process.wait, 10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture
def undurable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `boot` run on the tests' own database, which is not durable, and need not be."""

    async def accept(_connection: Any) -> None:
        """Whatever it is."""

    monkeypatch.setattr(boot, "require_durable", accept)


@pytest.fixture
async def listed(pool: asyncpg.Pool[Any]) -> None:
    """The paper venue has told of one instrument."""
    async with pool.acquire() as connection:
        await orders_store.save_instruments(connection, [BTC_USDT])
