"""Cancels: held while a placement is under way, and never believed too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tbot.core.errors import VenueAmbiguous, VenueRefused
from tbot.orders.model import State
from tbot.venues.base import OrderReport, Placement


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_cancel_waits_for_its_placement(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    answer = asyncio.Event()

    async def place(placement: Placement) -> OrderReport:
        await answer.wait()
        return scripted.book(placement).report()

    scripted.on_place = place
    order = await trader.place(account)
    await until(lambda: len(scripted.placed) == 1)
    await desk.cancel(order)
    await trader.until(order, lambda o: o.state is State.PENDING_CANCEL)
    assert scripted.cancels == []
    answer.set()
    order = await trader.until(order, lambda o: o.final)
    assert order.state is State.CANCELED
    assert scripted.cancels == [order.venue_client_id]


async def test_a_cancel_that_comes_too_late_learns_of_the_fill(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    order = await trader.place(account)
    await trader.until(order, lambda o: o.state is State.NEW)
    scripted.fill(order.venue_client_id)  # and no event tells
    await desk.cancel(order)
    order = await trader.until(order, lambda o: o.final)
    assert order.state is State.FILLED
    await desk.verified()


@pytest.mark.parametrize("executed", [True, False])
async def test_a_cancel_whose_answer_is_lost_is_asked_for(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any, executed: bool
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    order = await trader.place(account)
    await trader.until(order, lambda o: o.state is State.NEW)

    async def lose(client_id: str) -> OrderReport:
        scripted.on_cancel = scripted.obey
        if executed:
            await scripted.obey(client_id)
        raise VenueAmbiguous("no answer", "no_answer")

    scripted.on_cancel = lose
    await desk.cancel(order)
    await trader.until(order, lambda o: o.state is State.CANCELED)
    assert len(scripted.cancels) == (1 if executed else 2), "a cancel may be repeated"


async def test_a_refused_cancel_lets_the_order_live(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    order = await trader.place(account)
    await trader.until(order, lambda o: o.state is State.NEW)

    async def refuse(_client_id: str) -> OrderReport:
        raise VenueRefused("Order was not canceled due to cancel restrictions.", "cancel_refused")

    scripted.on_cancel = refuse
    await desk.cancel(order)
    order = await trader.until(order, lambda o: o.reason is not None)
    assert (order.state, order.cancel_requested) == (State.NEW, False)
    scripted.on_cancel = scripted.obey
    await desk.cancel(order)
    await trader.until(order, lambda o: o.state is State.CANCELED)


async def test_a_cancel_of_an_unsent_order_keeps_it_unsent(
    desk: Any, scripted: Any, new_gateway: Any, trader: Any
) -> None:
    await new_gateway(desk, scripted)
    account = await desk.open(USDT="1000")
    scripted.down = True
    order = await trader.place(account)
    await desk.cancel(order)
    order = await trader.until(order, lambda o: o.final)
    assert order.reason == "user"
    assert scripted.placed == []
