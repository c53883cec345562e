"""The SDK's orders over the stream: placed once, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from tbot.client import AuthError, Entry, NewOrder, NotFound, Order, Refused, TBotClient
from tbot.client.errors import OutcomeUnknown, Unavailable
from tbot.client.streams import Stream
from tbot.core.ids import new_id
from tbot.orders import flow

BTC = "BTC-USDT"


class Desk:
    """A client with an account."""

    def __init__(self, site: Any, client: TBotClient, account_id: str) -> None:
        self.site = site
        self.client = client
        self.account_id = account_id

    def good(self) -> dict[str, Any]:
        return {"quantity": "0.1", "limit_price": Decimal("90.00")}

    async def count(self) -> int:
        """Orders that there are."""
        size: int = await self.site.pool.fetchval("SELECT count(*) FROM orders")
        return size


@pytest.fixture
async def desk(site: Any, serve: Any) -> AsyncIterator[Desk]:
    async with site.client("ann") as http:
        account = await site.account(http, USDT="100000")
    url = await serve(site)
    async with TBotClient(url, token=await site.token("ann")) as client:
        yield Desk(site, client, account["id"])


@pytest.mark.parametrize("packed", [False, True])
async def test_orders_are_placed_and_canceled_beside_subscriptions(
    desk: Desk, packed: bool
) -> None:
    async with desk.client.stream(packed=packed) as stream:
        account = stream.account(desk.account_id)
        await anext(account)
        order = await stream.place(desk.account_id, BTC, "buy", **desk.good())
        assert order.limit_price == 90
        entry = await anext(account)
        assert isinstance(entry, Entry) and entry.kind == "order.accepted"
        again = await stream.place(
            desk.account_id, BTC, "buy", **desk.good(), client_order_id=order.client_order_id
        )
        assert again.id == order.id
        assert (await stream.cancel(order.id)).cancel_requested
        orders = [NewOrder(desk.account_id, BTC, "buy", **desk.good()) for _ in range(3)]
        poor = NewOrder(desk.account_id, BTC, "buy", quantity="0.1", limit_price="90.001")
        *placed, refused = await stream.place_all([*orders, poor])
        assert all(isinstance(one, Order) for one in placed)
        assert isinstance(refused, Refused) and refused.code == "price_off_tick"
        assert len(await stream.cancel_all(desk.account_id, BTC)) == 4
        with pytest.raises(Refused) as wrong:
            await stream.place(desk.account_id, BTC, "buy", quantity="0", limit_price="90")
        assert wrong.value.code == "validation_failed" and wrong.value.problem["errors"]
        with pytest.raises(NotFound):
            await stream.place(new_id(), BTC, "buy", **desk.good())


async def test_a_hundred_at_once_are_each_placed_once(desk: Desk) -> None:
    async with desk.client.stream() as stream:
        placed = await asyncio.gather(
            *(stream.place(desk.account_id, BTC, "buy", **desk.good()) for _ in range(100))
        )
    assert len({order.id for order in placed}) == 100 == await desk.count()


async def test_a_lost_connection_places_no_order_twice(desk: Desk, monkeypatch: Any) -> None:
    place = flow.place
    lost = 0

    async def lossy(*args: Any) -> Any:
        nonlocal lost
        outcome = await place(*args)
        if lost < 3:
            lost += 1
            for subscriber in list(desk.site.streams.hub.subscribers):
                subscriber.output.transport.abort()
        return outcome

    monkeypatch.setattr(flow, "place", lossy)
    async with desk.client.stream() as stream:
        stream._patience.backoff._base_s = 0.05
        order = await stream.place(desk.account_id, BTC, "buy", **desk.good())
        assert lost == 3 and stream.connections == 4
    assert await desk.count() == 1 and str(order.account_id) == desk.account_id


async def test_what_cannot_be_known_is_said(desk: Desk, monkeypatch: Any) -> None:
    async def stuck(*args: Any) -> Any:
        await asyncio.Event().wait()

    async with desk.client.stream() as stream:
        monkeypatch.setattr(flow, "place", stuck)
        stream._retry_s = 0.3
        with pytest.raises(OutcomeUnknown) as unknown:
            await stream.place(desk.account_id, BTC, "buy", **desk.good(), client_order_id="mine")
        assert unknown.value.key == "mine"
        assert not stream._calls
        closing: Stream = stream
    with pytest.raises(Unavailable):
        await closing.place(desk.account_id, BTC, "buy", **desk.good())


async def test_a_token_without_the_scope_places_nothing(desk: Desk, site: Any) -> None:
    token = await site.token("ann", "orders:read")
    async with TBotClient(desk.client.base_url, token=token) as client:  # noqa: SIM117
        async with client.stream() as stream:
            with pytest.raises(AuthError):
                await stream.place(desk.account_id, BTC, "buy", **desk.good())
    assert await desk.count() == 0
