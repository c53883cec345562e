"""A process that trades until it is killed: committer, gateway and feed, as the server has them.

Arguments: database URL, exchange URL, API key, API secret, account id, seed. Prints `ready`, then the
id of every order that was acknowledged as durable.
"""

from __future__ import annotations

import asyncio
import random
import sys
from uuid import UUID

import asyncpg

from tbot.boot import projections
from tbot.core import log
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.core.settings import CommitterSettings, GatewaySettings, MarketSettings
from tbot.db.pool import connect_committer
from tbot.gateway.gateway import Gateway, GatewayParts
from tbot.journal.commands import SYSTEM
from tbot.journal.committer import Committer
from tbot.market.book import Reference
from tbot.market.feed import MarketFeed
from tbot.orders.commands import PlaceOrder, RequestCancel
from tbot.orders.rules import OrderRequest
from tbot.venues.base import OrderType, Side, TimeInForce
from tbot.venues.binance.client import BinanceVenue, Endpoints
from tbot.venues.binance.wire import HmacSigner

SETTINGS = GatewaySettings(
    send_by_s=1.0,
    receive_window_ms=1500,
    absence_margin_s=1.0,
    lease_ttl_s=1.0,
    unknown_interval_s=0.2,
    answer_timeout_s=10.5,
    open_orders_interval_s=5,
)


async def main(dsn: str, url: str, key: str, secret: str, account: str, seed: str) -> None:
    rng = random.Random(int(seed))
    account_id = UUID(account)
    chosen = CommitterSettings()
    bus = Bus()
    committer = Committer(
        lambda: connect_committer(dsn, chosen),
        projections(),
        chosen,
        bus,
    )
    await committer.start()
    pool = await asyncpg.create_pool(dsn, min_size=1, max_size=4)
    venue = BinanceVenue("paper", Endpoints.at(url), HmacSigner(key, secret), SETTINGS, paper=True)
    gateway = Gateway(
        GatewayParts(venue, committer, pool, bus, SETTINGS, lambda: asyncpg.connect(dsn))
    )
    gateway.start()
    await gateway.ready.wait()
    feed = MarketFeed(venue, MarketSettings())
    instruments = {i.symbol: i for i in await venue.instruments()}
    feed.start([instruments["BTC-USDT"]])
    while not feed.synced or feed.best("BTC-USDT") is None:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    placed: list[UUID] = []
    while True:
        now = feed.reference("BTC-USDT")
        assert now is not None
        assert now.bid is not None
        instrument = instruments["BTC-USDT"]
        away = (now.bid * rng.choice((97, 98, 99)) / 100 // instrument.tick) * instrument.tick
        limit = rng.random() < 0.4
        request = OrderRequest(
            symbol="BTC-USDT",
            side=Side.BUY if limit or rng.random() < 0.6 else Side.SELL,
            type=OrderType.LIMIT if limit else OrderType.MARKET,
            time_in_force=TimeInForce.GTC,
            quantity=instrument.step * rng.randrange(20, 60),
            quote_amount=None,
            limit_price=away if limit else None,
            client_order_id=None,
        )
        reference = Reference("BTC-USDT", now.bid, now.ask, now.last, now.at_boot_s)
        outcome = await committer.commit(
            PlaceOrder(new_id(), SYSTEM, account_id, new_id(), request, instrument, reference, 1.0)
        )
        if not isinstance(outcome, Refused):
            order = outcome.result.order
            print(order.id, flush=True)
            placed.append(order.id)
        if placed and rng.random() < 0.2:
            order_id = rng.choice(placed)
            await committer.commit(RequestCancel(new_id(), SYSTEM, account_id, order_id))
        await asyncio.sleep(rng.random() * 0.01)


if __name__ == "__main__":
    log.configure("warning", "text")
    asyncio.run(main(*sys.argv[1:]))
