"""Peers that do not read: bounded, closed, and nobody else's problem; with both kinds of output."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from typing import Any

import pytest

BTC = "BTC-USDT"


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame."""
    size = len(payload)
    assert size < 1 << 16
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    mask = os.urandom(4)
    return (
        bytes((0x80 | opcode,))
        + length
        + mask
        + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    )


async def deaf_client(stack: Any, *messages: dict[str, Any]) -> socket.socket:
    """A connection that says its messages and never reads; its receive buffer is small."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", int(stack.url.rpartition(":")[2])))
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /v1/stream HTTP/1.1",
        "Host: 127.0.0.1",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        "",
        "",
    ]
    await loop.sock_sendall(raw, "\r\n".join(lines).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:  # a client may not speak before the server agreed
        answer += await loop.sock_recv(raw, 1)
    for message in messages:
        await loop.sock_sendall(raw, masked(1, json.dumps(message).encode()))
    return raw


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
    await eventually(lambda: not stack.streams._addresses or len(hub.subscribers) == 1, 5)
    await eventually(lambda: stack.streams._addresses["127.0.0.1"] == 1, 5)
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
    transport = deaf.output.transport
    flood = masked(9, b"x" * 125) * 500
    loop = asyncio.get_running_loop()
    largest = 0
    with pytest.raises(ConnectionError):
        for _ in range(2000):
            await loop.sock_sendall(raw, flood)
            largest = max(largest, transport.get_write_buffer_size())
            await asyncio.sleep(0)
    assert largest < 1 << 20
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
