"""A webhook's owner comes while an attempt is under way."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tbot.ledger import webhooks as store


@pytest.mark.parametrize("way", ["replay", "change"])
@pytest.mark.parametrize("first", ["owner", "attempt"])
async def test_an_attempt_that_was_under_way_when_its_owner_came_delays_nothing(
    site: Any, eventually: Any, way: str, first: str
) -> None:
    """It fails just then: what it notes must not keep the entry waiting for an hour."""
    async with site.client("ann") as client:
        account = await site.cash(client)
        asked = {"account_id": account["id"], "url": "https://example.com/a", "from_sequence": 1}
        made = await client.post("/v1/webhooks", json=asked)
        path = f"/v1/webhooks/{made.json()['id']}"
        async with site.pool.acquire() as connection:
            (before,) = await store.list_enabled(connection, 10)
        now = datetime.now(UTC)
        late = store.Delivery(
            before.id, 1, "account.opened", "retrying", 9, 500, "?", now, now + timedelta(hours=1)
        )

        async def owner() -> None:
            if way == "replay":
                answer = await client.post(f"{path}/replay", json={"from_sequence": 1})
            else:
                match = {"If-Match": "*"}
                answer = await client.patch(path, headers=match, json={"enabled": True})
            assert answer.status_code == 200, answer.text

        if first == "owner":
            await owner()
            async with site.pool.acquire() as connection:
                await store.postpone(connection, before, late)
        else:
            async with site.pool.acquire() as connection, connection.transaction():
                await store.postpone(connection, before, late)
                coming = asyncio.create_task(owner())

                async def waits() -> bool:
                    waiting: int = await site.pool.fetchval(
                        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                        " AND datname = current_database() AND query LIKE '%UPDATE webhooks%'"
                    )
                    return waiting == 1

                await eventually(waits)
            await coming
        async with site.pool.acquire() as connection:
            assert await store.retrying(connection, before.id, 1) is None
