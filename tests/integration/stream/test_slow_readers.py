"""Peers that do not read: bounded, closed, and nobody else's problem; with both kinds of output."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamfakes import deaf_client, flood_with_pings, masked

BTC = "BTC-USDT"


@pytest.mark.parametrize("plain", [False, True], ids=["transport", "asgi"])
async def test_a_stalled_reader_is_bounded_and_closed_and_others_do_not_notice(
    new_stack: Any, eventually: Any, plain: bool
) -> None:
    stack = await new_stack(plain=plain, stall_timeout_s=0.5, queue_bytes_max=65_536)
    await stack.user()
    reader = await stack.client()
    await reader.sub({"channel": "trades", "symbol": BTC})
    hub = stack.streams.hub
    raw = await deaf_client(
        stack,
        {"op": "auth", "token": stack.tokens["alice"]},
        {"op": "sub", "channels": [{"channel": "book", "symbol": BTC, "depth": 0}]},
    )
    await eventually(lambda: sum(len(one.subscriptions) for one in hub.subscribers) == 2)
    deaf = next(
        one
        for one in hub.subscribers
        if any(topic.channel == "book" for topic in one.subscriptions.values())
    )
    trades = 0
    while not deaf.closing:
        for price in range(200):
            stack.feed.change(BTC, "bid", f"{price + 1}.123456", "1.23456789")
        stack.feed.trade(BTC)
        trades += 1
        assert deaf.waiting_bytes <= 65_536
        await asyncio.sleep(0.002)
    got = 0
    while got < trades:
        message = await reader.hear()
        assert message["op"] != "gap"
        got += message["op"] == "delta"
    # The connection itself goes too, within the time a close frame gets.
    await eventually(lambda: not stack.streams.admission.addresses or len(hub.subscribers) == 1, 5)
    await eventually(lambda: stack.streams.admission.addresses["127.0.0.1"] == 1, 5)
    raw.close()


async def test_pings_of_a_peer_that_does_not_read_do_not_pile_up(
    new_stack: Any, eventually: Any
) -> None:
    stack = await new_stack()
    await stack.user()
    hub = stack.streams.hub
    raw = await deaf_client(stack, {"op": "auth", "token": stack.tokens["alice"]})
    await eventually(lambda: any(hub.subscribers))
    (deaf,) = hub.subscribers
    assert await flood_with_pings(raw, deaf.output.transport) < 1 << 20
    await eventually(lambda: not hub.subscribers)
    raw.close()


async def test_a_message_that_is_not_utf_8_ends_the_connection(stack: Any) -> None:
    raw = await deaf_client(stack, {"op": "auth", "token": stack.tokens["alice"]})
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, masked(1, b'{"op":"\xff"}'))
    received = b""
    async with asyncio.timeout(10):
        while chunk := await loop.sock_recv(raw, 4096):
            received += chunk
    assert (1007).to_bytes(2, "big") in received
    raw.close()


async def test_stopping_with_stalled_readers_takes_no_longer(
    new_stack: Any, eventually: Any
) -> None:
    stack = await new_stack(stall_timeout_s=60)
    await stack.user()
    hub = stack.streams.hub
    raws = [
        await deaf_client(
            stack,
            {"op": "auth", "token": stack.tokens["alice"]},
            {"op": "sub", "channels": [{"channel": "book", "symbol": BTC, "depth": 0}]},
        )
        for _ in range(3)
    ]
    await eventually(lambda: sum(len(one.subscriptions) for one in hub.subscribers) == 3)
    while not all(one.blocked_since is not None for one in hub.subscribers):
        for price in range(200):
            stack.feed.change(BTC, "bid", f"{price + 1}.123456", "1.23456789")
        await asyncio.sleep(0.002)
    await asyncio.wait_for(stack.stop(), 6)
    for raw in raws:
        raw.close()
