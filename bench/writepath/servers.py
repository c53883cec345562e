"""The servers that are compared, each a process of its own: `python -m writepath.servers KIND`.

They print one line of JSON when they are ready and end when their standard input does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import uvicorn
import uvloop
from pydantic import BaseModel
from writepath import edgecost
from writepath.place import SERVER_CORE, pin
from writepath.stock import stock_app
from writepath.transaction import OneTransactionEach

from tbot.auth import flow as auth_flow
from tbot.auth import users
from tbot.boot import PAPER, PaperAccess, Parts, running
from tbot.core import clock, log
from tbot.core.errors import Unavailable
from tbot.core.ids import new_id
from tbot.core.settings import Settings
from tbot.journal.commands import SYSTEM
from tbot.ledger.assets import save_assets
from tbot.ledger.entries import Limits, OpenAccount
from tbot.market.book import Reference
from tbot.serving import serve_http
from tbot.venues.base import Instrument
from tbot.web.app import build_app
from tbot.web.deps import Deps
from tbot.web.orders import NewOrder
from tbot.web.transfer_forms import TransferBody

PASSWORD = "only for these figures"
MUCH = Decimal(10) ** 15
NEVER_USED_UP = "100000000/1s"
"""Every request is counted under the rate limits, as always, and none is refused."""
LIMITS = Limits(
    max_order_notional=Decimal(1_000_000),
    max_open_orders=100_000_000,
    price_collar=Decimal("0.05"),
)
CASH_LIMITS = Limits(
    max_order_notional=Decimal(1),
    max_open_orders=0,
    price_collar=Decimal(0),
    overdraft={"USD": MUCH},
)
BTC_USDT = Instrument(
    venue=PAPER,
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
CONNECTIONS = 20
"""Of the baseline's pool."""


class _QuietMarket:
    """A market that always trades at the same prices."""

    _BID, _ASK = Decimal("60000.00"), Decimal("60000.01")

    def reference(self, symbol: str) -> Reference:
        return Reference(symbol, self._BID, self._ASK, self._BID, clock.boot_s())


def _settings(more: Mapping[str, Any]) -> Settings:
    os.environ["TBOT_AUTH__ACCESS_TTL_S"] = "86400"
    for policy in ("ADDRESS", "USER", "KEY", "ORDERS", "CANCELS", "WRITES"):
        os.environ[f"TBOT_LIMITS__{policy}"] = NEVER_USED_UP
    for name, value in more.items():
        os.environ[name] = str(value)
    return Settings(data_dir=Path("/nonexistent"))


async def _token(parts: Parts) -> tuple[str, UUID]:
    """Log the one user in who is there, or make it."""
    if not await users.admin_exists(parts.pool):
        await users.create_first_admin(parts.pool, parts.auth.passwords, PASSWORD, "load")
    grant = await auth_flow.login(parts.auth, "load", PASSWORD)
    return grant.access_token, grant.user_id


async def _accounts(parts: Parts, owner_id: UUID, count: int, cash: bool) -> list[str]:
    found = []
    for number in range(count):
        account_id = new_id()
        command = OpenAccount(
            new_id(),
            SYSTEM,
            account_id,
            owner_id,
            f"bench {number}",
            None if cash else PAPER,
            CASH_LIMITS if cash else LIMITS,
            {} if cash else {"USDT": MUCH, "BTC": MUCH},
        )
        for patience in range(9, -1, -1):  # a machine that is busy elsewhere may stall us
            try:
                await parts.committer.commit(command)
                break
            except Unavailable:
                if not patience:
                    raise
        found.append(str(account_id))
    return found


async def _ours(dsn: str, options: dict[str, Any], each: bool = False) -> None:
    """T-Bot's own application; the gateway is on when an exchange is given.

    Args:
        each: With one transaction per request instead of the committer.
    """
    exchange = options.get("exchange")
    access = None if exchange is None else PaperAccess(**exchange)
    settings = _settings(options.get("environment", {}))
    async with running(settings, dsn, access) as parts:
        token, owner_id = await _token(parts)
        cash = options.get("cash_accounts", 0)
        await save_assets(parts.pool, {"USD": 2})
        accounts = await _accounts(parts, owner_id, cash or options.get("accounts", 64), bool(cash))
        orders = parts.orders
        app: Any = parts.app
        if access is None:
            orders.instruments.put(PAPER, [BTC_USDT])
            orders = dataclasses.replace(
                orders, markets={PAPER: _QuietMarket()}, served=lambda _venue: True
            )
            if each:
                pool = await asyncpg.create_pool(dsn, min_size=CONNECTIONS, max_size=CONNECTIONS)
                orders = dataclasses.replace(orders, committer=OneTransactionEach(pool))  # type: ignore[arg-type]
            app = build_app(Deps(settings, parts.pool, parts.auth, orders, streams=parts.streams))
        else:
            while await parts.unready():
                await asyncio.sleep(0.05)
            venue = orders.accounts.venues[PAPER]
            for asset in ("USDT", "BTC"):
                await venue.deposit(f"bench:{asset}", asset, Decimal(10) ** 12)
        parts.app = app
        listener = _listen({"token": token, "accounts": accounts})
        await serve_http(parts, listener, _standard_input_ended())


async def _one_transaction(dsn: str, options: dict[str, Any]) -> None:
    await _ours(dsn, options, each=True)


async def _stock(dsn: str, options: dict[str, Any]) -> None:
    settings = _settings({})
    async with running(settings, dsn, None) as parts:
        token, _ = await _token(parts)
        model: type[BaseModel] = NewOrder
        if options["path"] == "/v1/transfers":
            model = TransferBody
        app = stock_app(parts.auth, options["path"], model, options["cached"])
        config = {"app": app, "http": "httptools", "access_log": False, "log_config": None}
        await _serve({**config, "lifespan": "off"}, {"token": token, "accounts": []})


async def _edge(dsn: str, _options: dict[str, Any]) -> None:
    """T-Bot's own application with routes that do nothing."""
    edgecost.add_routes()
    async with running(_settings({}), dsn, None) as parts:
        token, _ = await _token(parts)
        await serve_http(parts, _listen({"token": token}), _standard_input_ended())


async def _layers(dsn: str, _options: dict[str, Any]) -> None:
    """No server: what each layer of the edge costs, told at once."""
    async with running(_settings({}), dsn, None) as parts:
        token, _ = await _token(parts)
        _listen({"layers": await edgecost.layers(parts, token)}).close()


def _listen(facts: dict[str, Any]) -> socket.socket:
    """Take a port, and tell it with what else one has to know."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    listener.setblocking(False)
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1], **facts}) + "\n")
    sys.stdout.flush()
    return listener


def _standard_input_ended() -> asyncio.Event:
    """An event that is set when whoever started us closes our standard input."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            ended.set()

    loop.add_reader(0, look)
    return ended


async def _serve(config: dict[str, Any], facts: dict[str, Any]) -> None:
    server = uvicorn.Server(uvicorn.Config(**config))
    listener = _listen(facts)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ending = asyncio.create_task(_standard_input_ended().wait())
    await asyncio.wait({ending, serving}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving


KINDS: dict[str, Callable[[str, dict[str, Any]], Awaitable[None]]] = {
    "ours": _ours,
    "one_transaction": _one_transaction,
    "stock": _stock,
    "edge": _edge,
    "layers": _layers,
}


def main() -> None:
    kind, dsn, options = sys.argv[1:]
    pin(SERVER_CORE)
    log.configure("warning", "json")  # as `tbot up` runs it

    async def run() -> None:
        await KINDS[kind](dsn, json.loads(options))

    uvloop.run(run())


if __name__ == "__main__":
    main()
