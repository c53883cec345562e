"""A repetition is answered as the first time, however the batch it comes in is decided."""

from __future__ import annotations

import asyncio
from typing import Any

from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.journal.commands import Accepted
from tbot.journal.once import Kept, Once
from tbot.venues.base import VenueStatus


async def ahead(desk: Any) -> Any:
    """A desk whose batches are decided ahead, with an account in memory."""
    account_id = await desk.open(USDT="1000")
    for _ in range(3):
        outcome = await desk.place(account_id, "0.1", "90")
        assert isinstance(outcome, Accepted)
        await desk.cancel(outcome.result.order)
        await desk.report(outcome.result.order, VenueStatus.CANCELED)
    return account_id


async def test_client_id_of_a_final_order(desk: Any) -> None:
    account_id = await ahead(desk)
    first = await desk.place(account_id, "9", "100", client_order_id="mine")
    assert isinstance(first, Accepted), first
    await desk.report(first.result.order, VenueStatus.FILLED, ("1", "100", "9"))
    for _ in range(8):
        await desk.place(account_id, "0.1", "90")
    again = await desk.place(account_id, "9", "100", client_order_id="mine")
    assert isinstance(again, Accepted), again
    assert again.result.replayed and again.result.order.id == first.result.order.id


async def test_key_of_an_order_while_the_gateway_is_away(desk: Any) -> None:
    account_id = await ahead(desk)

    def render(outcome: Any) -> Kept | None:
        if isinstance(outcome, Refused):
            return None
        return Kept(201, {}, str(outcome.order.id).encode())

    once = Once(new_id(), b"c" * 16, render)
    first = await desk.committer.commit(desk.order(account_id), once)
    assert isinstance(first, Accepted), first
    away = Refused(Reason.GATEWAY_AWAY, "away")
    again = await desk.committer.commit(desk.order(account_id, hindrance=away), once)
    assert isinstance(again, Kept), again


async def test_a_twin_of_other_content_does_not_take_the_key_of_its_leader(desk: Any) -> None:
    account_id = await desk.open(USDT="1000")
    for _ in range(12):
        placed = await desk.place(account_id, "0.1", "90")
        await desk.cancel(placed.result.order)
        await desk.report(placed.result.order, VenueStatus.CANCELED)

    def render(outcome: Any) -> Kept | None:
        if isinstance(outcome, Refused):
            return Kept(422, {}, b"refused")
        return Kept(201, {}, str(outcome.order.id).encode())

    key = new_id()
    one = Once(key, b"1" * 16, render)
    other = Once(key, b"2" * 16, render)
    first, second = await asyncio.gather(
        desk.committer.commit(desk.order(account_id, client_order_id="one"), one),
        desk.committer.commit(desk.order(account_id, client_order_id="two"), other),
    )
    assert isinstance(first, Accepted), first
    assert isinstance(second, Refused) and second.reason is Reason.IDEMPOTENCY_KEY_REUSED, second
    again = await desk.committer.commit(desk.order(account_id, client_order_id="one"), one)
    assert isinstance(again, Kept) and again.status == 201, again
