"""What has to be ready before a process may be sent requests. Valkey has not: it is for speed."""

from __future__ import annotations

from collections.abc import Callable

import asyncpg

from tbot.db.pool import DATABASE_FAULTS
from tbot.gateway.gateway import Gateway
from tbot.journal.committer import Committer
from tbot.market.feed import MarketFeed
from tbot.web.deps import Check


def process_checks(
    pool: asyncpg.Pool[asyncpg.Record],
    committer: Committer,
    feed: MarketFeed | None,
    gateway: Gateway | None,
    served: Callable[[], bool],
) -> dict[str, Check]:
    """The checks of one process.

    Args:
        served: Whether any process sends orders to the venue at the moment.
    """

    async def database() -> str | None:
        try:
            await pool.fetchval("select 1", timeout=1.0)
        except DATABASE_FAULTS:
            return "no answer"
        return None

    async def journal() -> str | None:
        return None if committer.healthy else "the committer has no connection"

    async def market() -> str | None:
        assert feed is not None
        if not feed.symbols():
            return "the venue has not been reached yet"
        return None if feed.synced else "order books are being fetched"

    async def orders() -> str | None:
        if not served():
            return "no process holds the venue account's lease"
        # A process that waits for the lease is ready: another one sends its orders.
        if gateway is None or gateway.ready.is_set() or not gateway.leading:
            return None
        return "open orders are being compared with the venue"

    checks: dict[str, Check] = {"database": database, "journal": journal}
    if feed is not None:
        checks |= {"market": market, "gateway": orders}
    return checks
