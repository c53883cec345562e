"""Attacks 47–52: pages, strangers, floods and slow readers on the stream."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import struct
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from streamclient import Client, dial
from streamfakes import deaf_client, flood_with_pings
from tbot.core.settings import StreamSettings

pytestmark = pytest.mark.asyncio(loop_scope="session")
BTC = "BTC-USDT"


async def refused(url: str, status: int, code: str, **options: Any) -> None:
    with pytest.raises(InvalidStatus) as error:
        await dial(url, **options)
    response = error.value.response
    assert response.status_code == status
    assert json.loads(response.body)["code"] == code


async def test_a47_foreign_pages_and_tokens_in_the_address(world: Any) -> None:
    host = world.url.removeprefix("http://")
    for origin in (
        "https://evil.example", "null", f"http://{host}.evil.example", f"http://evil.{host}",
        "http://127.0.0.1", "file://",
    ):  # fmt: skip
        headers = {"Origin": origin}
        await refused(world.url, 403, "origin_not_allowed", additional_headers=headers)
    person = await world.person()
    for name in ("token", "access_token", "Authorization", "api_key"):
        with pytest.raises(InvalidStatus) as error:
            await connect(f"ws{world.url[4:]}/v1/stream?{name}={person.token}")
        assert error.value.response.status_code == 400
        assert person.token not in str(error.value.response.body)
    async with dial(world.url, additional_headers={"Origin": f"http://{host}"}) as own:
        assert json.loads(await own.recv())["op"] == "hello"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def hasty(world: Any) -> Any:
    """A server on which the time to log in is short: only for those who do not."""
    short = {"auth_timeout_s": 0.5}
    return await world.new_server(stream=world.site.settings.stream.model_dump() | short)


async def test_a48_who_does_not_log_in_and_who_asks_for_anothers(world: Any, hasty: Any) -> None:
    assert StreamSettings().auth_timeout_s == 5.0
    async with dial(hasty.url) as silent:
        await silent.recv()
        await silent.wait_closed()
        assert silent.close_code == 4002
    async with dial(world.url) as early:
        await early.recv()
        await early.send(
            json.dumps({"op": "sub", "channels": [{"channel": "trades", "symbol": BTC}]})
        )
        assert json.loads(await early.recv())["code"] == "unauthenticated"
        await early.wait_closed()
        assert early.close_code == 4001
    ann, bob = await world.person(), await world.person()
    account = await world.site.account(ann.http)
    stream = await bob.stream()
    (answer,) = await stream.sub({"channel": "account", "account_id": account["id"]})
    assert answer["error"]["code"] == "not_found"
    order = {"symbol": BTC, "side": "buy", "type": "limit", "quantity": "0.1", "limit_price": "99"}
    placed = await ann.http.post("/v1/orders", json={**order, "account_id": account["id"]})
    assert placed.status_code == 201
    await stream.say(op="ping", id=7)
    assert await stream.hear() == {"op": "pong", "id": 7}, "nothing of hers came"
    await stream.socket.close()


def frame(opcode: int, payload: bytes, *, last: bool = True, size: int | None = None) -> bytes:
    """A client's frame; `size` is the length that it claims to have."""
    first = (0x80 if last else 0) | opcode
    mask = os.urandom(4)
    claimed = len(payload) if size is None else size
    if claimed < 126:
        head = bytes((first, 0x80 | claimed))
    elif claimed < 1 << 16:
        head = bytes((first, 0xFE)) + struct.pack("!H", claimed)
    else:
        head = bytes((first, 0xFF)) + struct.pack("!Q", claimed)
    return head + mask + bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))


class Raw:
    """A WebSocket whose frames the test writes itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @staticmethod
    async def open(url: str) -> Raw:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        key = base64.b64encode(os.urandom(16)).decode()
        writer.write(
            f"GET /v1/stream HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 101 " in head
        return Raw(reader, writer)

    async def close_code(self) -> int:
        """Read to the end; the code of the close frame."""
        async with asyncio.timeout(15):
            while True:
                first, second = await self.reader.readexactly(2)
                size = second & 0x7F
                if size == 126:
                    (size,) = struct.unpack("!H", await self.reader.readexactly(2))
                payload = await self.reader.readexactly(size)
                if first & 0x0F == 8:
                    self.writer.close()
                    return int.from_bytes(payload[:2], "big")


async def test_a49_frames_that_are_too_large_broken_or_endless(world: Any, hasty: Any) -> None:
    # A megabyte is refused by its declared length, before it comes.
    raw = await Raw.open(world.url)
    raw.writer.write(frame(1, b"x" * 10, size=1 << 20))
    assert await raw.close_code() == 1009
    raw = await Raw.open(world.url)
    raw.writer.write(frame(1, b'{"op":"\xff\xfe"}'))
    assert await raw.close_code() == 1007
    # Fragments count together: small ones without end …
    raw = await Raw.open(world.url)
    raw.writer.write(frame(1, b"x" * 30_000, last=False))
    for _ in range(4):
        raw.writer.write(frame(0, b"x" * 30_000, last=False))
    assert await raw.close_code() == 1009
    # … even empty ones.
    raw = await Raw.open(hasty.url)
    raw.writer.write(frame(1, b"", last=False) + frame(0, b"", last=False) * 20_000)
    assert await raw.close_code() in (1002, 1008, 1009, 4000, 4002)
    for broken in (
        bytes((0xC1, 0x80)) + bytes(4),  # a reserved bit
        bytes((0x81, 0x01)) + b"x",  # not masked
        frame(3, b""),  # an opcode of nothing
        frame(9, b"x" * 126),  # a ping that is too long
        frame(0, b"x"),  # the end of nothing
    ):
        raw = await Raw.open(world.url)
        raw.writer.write(broken)
        assert await raw.close_code() == 1002


async def test_a50_floods_of_messages_and_subscriptions(world: Any) -> None:
    person = await world.person()
    stream = await person.stream()
    wishes = [{"channel": "trades", "symbol": f"X{n}-USDT"} for n in range(250)]
    codes: set[str | None] = set()
    with pytest.raises(ConnectionClosed):
        for _ in range(40):  # ten thousand
            await stream.say(op="sub", id=1, channels=wishes)
        while True:
            codes.add((await stream.hear()).get("code"))
    assert stream.socket.close_code == 4102 and "rate_limited" in codes
    stream = await person.stream()
    with pytest.raises(ConnectionClosed):
        for _ in range(1000):
            await stream.say(op="ping", id=1)
            await asyncio.sleep(0)
        while True:
            codes.add((await stream.hear()).get("code"))
    assert stream.socket.close_code == 4102
    stream = await person.stream()
    books = [{"channel": "book", "symbol": BTC, "depth": depth} for depth in (5, 10, 20, 50)]
    seen = await stream.sub(*books)
    assert all("ch" in one for one in seen)
    most = world.site.settings.stream.subscriptions_max
    await stream.say(op="sub", id=3, channels=books * (most // 2))
    assert (await stream.hear_answer(3))["code"] in ("too_many_subscriptions", "rate_limited")
    await stream.socket.close()


async def test_a51_a_reader_that_does_not_read(world: Any, eventually: Any) -> None:
    """Bounded, closed, and nobody else's problem."""
    person = await world.person()
    reader = await person.stream()
    hub = world.site.streams.hub
    others = set(hub.subscribers)
    raw = await deaf_client(world, {"op": "auth", "token": person.token})
    await eventually(lambda: set(hub.subscribers) - others)
    (deaf,) = set(hub.subscribers) - others
    assert await flood_with_pings(raw, deaf.output.transport) < 1 << 20
    await eventually(lambda: deaf not in hub.subscribers)
    await reader.say(op="ping", id=1)
    assert (await reader.hear())["op"] == "pong"
    raw.close()
    await reader.socket.close()


async def test_a52_a_token_that_ends_under_way(world: Any, problem: Any) -> None:
    own = await world.new_server()
    for ttl_s in (2, 4, 8):  # a busy machine may need longer than that to log in
        own.site.auth.settings.access_ttl_s = ttl_s
        person = await own.person()
        stream = Client(await dial(own.url))
        await stream.hear()
        await stream.say(op="auth", token=person.token)
        if (await stream.hear())["op"] == "authed":
            break
    said = await stream.hear_op("error")
    assert said["code"] == "token_expired"
    assert await stream.closed() == 4103
    problem(await person.http.get("/v1/me"), 401, "invalid_token")
    late = Client(await dial(own.url))
    await late.hear()
    await late.say(op="auth", token=person.token)
    assert (await late.hear())["code"] == "invalid_token"
    assert await late.closed() == 4001
