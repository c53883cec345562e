"""Two whole processes that share a Valkey, a paper exchange behind them, and one order followed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prometheus_client import REGISTRY

from tbot.auth.scopes import Role
from tbot.auth.users import create_user
from tbot.boot import PaperAccess, Parts, running
from tbot.core.ids import venue_client_id
from tbot.core.settings import Settings

PASSWORD = "correct horse battery staple"


@dataclass
class Two:
    """A process of every role, and one that has no venue at all."""

    whole: Parts
    api: Parts
    valkey: Any
    access: PaperAccess

    def client(self, parts: Parts, **headers: str) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(parts.app)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers)

    async def log_in(self, parts: Parts, username: str = "ann") -> str:
        async with self.client(parts) as client:
            form = {"username": username, "password": PASSWORD}
            answer = await client.post("/v1/token", data=form)
            assert answer.status_code == 200, answer.text
            return f"Bearer {answer.json()['access_token']}"


@pytest.fixture
async def two(
    database_url: str,
    tmp_path: Path,
    own_valkey: Any,
    eventually: Any,
    start_exchange: Any,
    undurable: None,
) -> AsyncIterator[Two]:
    access = await start_exchange("--seed", "7", "--speed", "20")
    valkey = {"url": own_valkey.url, "timeout_s": 1.0, "open_s": 0.1}
    settings = Settings(data_dir=tmp_path, valkey=valkey)
    async with AsyncExitStack() as stack:
        whole = await stack.enter_async_context(running(settings, database_url, access))
        alone = Settings(data_dir=tmp_path, valkey=valkey, roles=["api"])
        api = await stack.enter_async_context(running(alone, database_url, None))
        for name in ("ann", "bob", "eve"):
            await create_user(whole.pool, whole.auth.passwords, name, PASSWORD, Role.TRADER)

        async def ready() -> bool:
            return not await whole.unready()

        await eventually(ready, 60)
        yield Two(whole, api, own_valkey, access)


def shared_reads(cache: str) -> float:
    labels = {"cache": cache, "outcome": "shared"}
    return REGISTRY.get_sample_value("tbot_cache_reads_total", labels) or 0.0


async def share(two: Two, client: httpx.AsyncClient) -> tuple[str, str]:
    """An account of ann's, shared with bob; its address and that of bob's membership."""
    made = await client.post("/v1/accounts", json={"name": "a", "kind": "cash"})
    bob = await two.whole.pool.fetchval("SELECT id FROM users WHERE username = 'bob'")
    path = f"/v1/accounts/{made.json()['id']}"
    member = f"{path}/members/{bob}"
    assert (await client.put(member, json={"role": "viewer"})).is_success
    return path, member


async def test_a_valkey_that_is_lost_and_comes_back_changes_speed_only(
    two: Two, eventually: Any
) -> None:
    ann = await two.log_in(two.whole)
    bob = await two.log_in(two.whole, "bob")
    async with AsyncExitStack() as stack:
        clients = {
            (who, where): await stack.enter_async_context(two.client(parts, Authorization=token))
            for who, token in (("ann", ann), ("bob", bob))
            for where, parts in (("whole", two.whole), ("api", two.api))
        }
        path, member = await share(two, clients["ann", "whole"])
        statuses: list[tuple[str, int]] = []

        async def ask_everything(phase: str) -> None:
            for (who, _), client in clients.items():
                for target in ("/v1/me", path, "/v1/instruments"):
                    status = (await client.get(target)).status_code
                    statuses.append((f"{phase} {who} {target}", status))

        async def shares() -> bool:
            """Whether a login that one process asked the database about is known to the other."""
            count = shared_reads("sessions")
            token = await two.log_in(two.whole)
            for parts in (two.whole, two.api):
                async with two.client(parts, Authorization=token) as client:
                    assert (await client.get("/v1/me")).status_code == 200
                await asyncio.gather(*parts.auth.sessions.cache._tasks._tasks)
            return shared_reads("sessions") > count

        await ask_everything("well")
        await eventually(shares, 30)

        # A process without any venue tells what the other one hears, through Valkey.
        ticker = "/v1/instruments/BTC-USDT/ticker"
        await two.api.orders.instruments.reload(two.api.pool, "paper")

        async def told() -> bool:
            answer = await clients["ann", "api"].get(ticker)
            return answer.status_code == 200 and answer.json()["symbol"] == "BTC-USDT"

        await eventually(told, 30)

        # Logins are counted in Valkey, and wait for it: these are from before.
        eve = await two.log_in(two.api, "eve")
        two.valkey.kill()
        for parts in (two.whole, two.api):
            parts.auth.sessions.forget()  # every answer has to be asked for again
        await ask_everything("killed")
        async with (
            two.client(two.api, Authorization=eve) as here,
            two.client(two.whole, Authorization=eve) as there,
        ):
            for client in (here, there):
                assert (await client.get("/v1/me")).status_code == 200
            assert (await here.delete("/v1/sessions")).status_code == 204
            assert (await here.get("/v1/me")).status_code == 401, "at once where it ended"

            async def gone() -> bool:
                return (await there.get("/v1/me")).status_code == 401

            await eventually(gone)  # by Postgres' word: Valkey is away
        await ask_everything("still away")

        two.valkey.start()
        two.valkey.halt()
        two.whole.auth.sessions.forget()
        await asyncio.gather(*(ask_everything("halted") for _ in range(5)))
        two.valkey.go_on()
        await ask_everything("back")
        assert {status for _, status in statuses} == {200}, [s for s in statuses if s[1] != 200]

        await eventually(shares, 30)
        # A role that is taken away: at once here, soon there.
        assert (await clients["ann", "whole"].delete(member)).status_code == 204
        assert (await clients["bob", "whole"].get(path)).status_code == 404

        async def taken() -> bool:
            return (await clients["bob", "api"].get(path)).status_code == 404

        await eventually(taken)


async def test_one_order_from_the_request_to_the_venue_and_the_journal(
    two: Two, database_url: str, log_lines: Callable[[], list[str]], eventually: Any
) -> None:
    """Taken by the process that sends it, and by one that leaves the sending to the other."""
    await follow_an_order(two, two.whole, "5f3c1f0a-follow-me", log_lines, eventually)
    settings = two.whole.settings.model_copy(update={"roles": ["api", "market"]})
    async with running(settings, database_url, two.access) as taker:

        async def ready() -> bool:
            return not await taker.unready()

        await eventually(ready, 60)
        assert taker.gateway is None
        await follow_an_order(two, taker, "5f3c1f0a-me-too", log_lines, eventually)


async def follow_an_order(
    two: Two, parts: Parts, request_id: str, log_lines: Callable[[], list[str]], eventually: Any
) -> None:
    token = await two.log_in(parts)
    async with two.client(parts, Authorization=token) as client:
        body = {"name": "a", "starting_balance": {"USDT": "100000"}}
        account = (await client.post("/v1/accounts", json=body)).json()["id"]
        order = {"account_id": account, "symbol": "BTC-USDT", "side": "buy", "type": "market"}
        answer = await client.post(
            "/v1/orders",
            json={**order, "quantity": "0.001"},
            headers={"X-Request-ID": request_id, "Prefer": "wait=20"},
        )
        assert answer.status_code in (200, 201, 202), answer.text
        assert answer.headers["x-request-id"] == request_id
        placed = answer.json()

        def events() -> list[dict[str, Any]]:
            every = [json.loads(line) for line in log_lines()]
            return [one for one in every if one.get("request_id") == request_id]

        await eventually(lambda: {"http_request", "order_sent"} <= {e["event"] for e in events()})
        (sent,) = [event for event in events() if event["event"] == "order_sent"]
        (heard,) = [event for event in events() if event["event"] == "http_request"]
        assert sent["order"] == placed["id"] and sent["outcome"] == "answered"
        assert sent["venue"] == "paper"
        assert heard["route"] == "/v1/orders" and heard["user_id"]

        entries = [
            json.loads(row["body"])
            for row in await two.whole.pool.fetch(
                "SELECT body FROM journal WHERE account_id = $1::uuid ORDER BY seq", account
            )
        ]
        (accepted,) = [e for e in entries if e["kind"] == "order.accepted"]
        assert accepted["by"]["request"] == request_id
        assert accepted["data"]["accepted"]["id"] == placed["id"]
        filled = [e for e in entries if "fill" in e["data"]]
        assert filled and all(e["data"]["order"] == placed["id"] for e in filled)
        # What the venue knows the order by is in the log, and is made from the order's id.
        assert sent["client_id"] == venue_client_id(UUID(placed["id"]))
