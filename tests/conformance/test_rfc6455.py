"""RFC 6455, case by case, against an echo endpoint of the class that serves the stream.

The numbers are those of the sections of this file, in the order of the well-known fuzzing suites:
1 framing, 2 pings and pongs, 3 reserved bits, 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing,
9 limits, 10 cutting. Compression is not negotiated (cases 12 and 13 do not apply), which 11 shows.
Every case runs over a socket, and again with every byte in a segment of its own where that can
make a difference.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI, WebSocket

from tbot.core.settings import StreamSettings
from tbot.web.sockets import EXTENSION, Wire, uvicorn_options
from tbot.web.stream_frames import Kind, unmasked

LIMIT = 1 << 24


class Echo:
    """Says what it hears."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def heard(self, text: str | None, data: bytes = b"") -> None:
        if text is None:
            self._wire.send(Kind.BINARY, data)
        else:
            self._wire.send(Kind.TEXT, text.encode())

    def lost(self) -> None:
        return None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def port() -> AsyncIterator[int]:
    app = FastAPI()

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        handle = websocket.scope["extensions"][EXTENSION]
        await websocket.accept()
        wire = handle.hand_over()
        wire.listener = Echo(wire)

    options = uvicorn_options(StreamSettings(message_bytes_max=LIMIT))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", timeout_graceful_shutdown=2, **options)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.005)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await serving


def sent(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    """A client's frame."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    elif size < 1 << 16:
        length = b"\xfe" + size.to_bytes(2, "big")
    else:
        length = b"\xff" + size.to_bytes(8, "big")
    mask = os.urandom(4)
    return (
        bytes(((0x80 if fin else 0) | rsv << 4 | opcode,)) + length + mask + unmasked(payload, mask)
    )


def text(payload: str | bytes, fin: bool = True) -> bytes:
    return sent(1, payload.encode() if isinstance(payload, str) else payload, fin)


def closing(code: int | None, reason: bytes = b"") -> bytes:
    return sent(8, b"" if code is None else code.to_bytes(2, "big") + reason)


@dataclass
class Case:
    """Bytes to send, and the frames to get: opcode and payload; a close frame ends it.

    Attributes:
        get: (8, b"") stands for a close frame without a code; None for one with any code.
        fails: The close code with which the server refuses what was sent.
    """

    number: str
    send: bytes
    get: list[tuple[int, bytes]]
    fails: int | None = None
    slowly: bool = True

    def __str__(self) -> str:
        return self.number


def echoes(number: str, *payloads: tuple[int, bytes], slowly: bool = True) -> Case:
    """What is sent as whole messages comes back."""
    return Case(
        number,
        b"".join(sent(opcode, data) for opcode, data in payloads),
        list(payloads),
        None,
        slowly,
    )


def refused(number: str, data: bytes, *before: tuple[int, bytes], code: int = 1002) -> Case:
    return Case(number, data, list(before), code)


SIZES = (0, 125, 126, 127, 128, 65_535, 65_536)
WORDS = "κόσμε, Hello-µ@ßöäüàá-UTF-8!!".encode()
BAD_UTF_8 = (
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",  # a surrogate
    b"\xf4\x90\x80\x80",  # above U+10FFFF
    b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf", b"\xf8\x80\x80\x80\xaf",  # too long
    b"\x80", b"\xbf", b"\x80\xbf\x80", b"\xfe", b"\xff", b"\xc3", b"\xe2\x82", b"\xc3\x28",
    b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80", b"\xc1\xbf", b"\xfc\x80\x80\x80\x80\xaf",
)  # fmt: skip
GOOD_UTF_8 = (
    b"\x00", b"\x7f", b"\xc2\x80", b"\xdf\xbf", b"\xe0\xa0\x80", b"\xef\xbf\xbf", b"\xed\x9f\xbf",
    b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf0\x90\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xef\xbf\xbe",
    b"\xf0\x9f\xbf\xbe", "\U0010ffff".encode(), WORDS,
)  # fmt: skip
GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_CODES = (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)

CASES: list[Case] = [
    *(echoes(f"1.1.{n}", (1, b"*" * size), slowly=size < 200) for n, size in enumerate(SIZES, 1)),
    *(echoes(f"1.2.{n}", (2, b"\xfe" * size), slowly=size < 200) for n, size in enumerate(SIZES, 1)),
    Case("2.1", sent(9), [(10, b"")]),
    Case("2.2", sent(9, b"Hello"), [(10, b"Hello")]),
    Case("2.3", sent(9, b"\x00\xff\xfe\xfd"), [(10, b"\x00\xff\xfe\xfd")]),
    Case("2.4", sent(9, b"\xfe" * 125), [(10, b"\xfe" * 125)]),
    refused("2.5", sent(9, b"\xfe" * 126)),
    Case("2.7", sent(10) + sent(9, b"a"), [(10, b"a")]),
    Case("2.8", sent(10, b"unasked") + sent(9, b"b"), [(10, b"b")]),
    Case("2.10", b"".join(sent(9, b"%d" % n) for n in range(10)), [(10, b"%d" % n) for n in range(10)]),
    *(refused(f"3.{rsv}", text("a") + sent(1, b"x", rsv=rsv), (1, b"a")) for rsv in range(1, 8)),
    refused("3.8", sent(9, b"x", rsv=4)),
    refused("3.9", sent(8, b"", rsv=2)),
    *(refused(f"4.1.{n}", text("a") + sent(3 + n), (1, b"a")) for n in range(5)),
    *(refused(f"4.2.{n}", text("a") + sent(11 + n, b"x"), (1, b"a")) for n in range(5)),
    refused("5.1", sent(9, b"a", fin=False) + sent(0, b"b")),
    refused("5.2", sent(10, b"a", fin=False) + sent(0, b"b")),
    refused("5.2.1", sent(8, b"\x03\xe8", fin=False)),
    Case("5.3", text("frag", fin=False) + sent(0, b"ment"), [(1, b"fragment")]),
    Case("5.4", sent(2, b"\xff", fin=False) + sent(0, b"\x00"), [(2, b"\xff\x00")]),
    Case("5.6", text("a", fin=False) + sent(9, b"p") + sent(0, b"b"), [(10, b"p"), (1, b"ab")]),
    Case(
        "5.8", text("a", fin=False) + sent(9, b"1") + sent(0, b"", fin=False) + sent(9, b"2") + sent(0),
        [(10, b"1"), (10, b"2"), (1, b"a")],
    ),
    refused("5.9", sent(0, b"nothing") + text("a")),
    refused("5.10", sent(0, b"nothing", fin=False) + text("a")),
    refused("5.11", text("a") + sent(0, b"b"), (1, b"a")),
    refused("5.15", text("a", fin=False) + sent(0, b"b") + sent(0, b"c"), (1, b"ab")),
    refused("5.18", text("a", fin=False) + text("b")),
    refused("5.18.1", text("a", fin=False) + sent(2, b"b")),
    Case(
        "5.19", b"".join([text("1", fin=False), sent(0, b"2", fin=False), sent(9, b"p"),
                          sent(0, b"3", fin=False), sent(0, b"4"), sent(9, b"q")]),
        [(10, b"p"), (1, b"1234"), (10, b"q")],
    ),
    Case("6.1.1", text(""), [(1, b"")]),
    Case("6.1.2", text("", fin=False) + sent(0, b"", fin=False) + sent(0), [(1, b"")]),
    Case("6.1.3", text("", fin=False) + sent(0, b"middle", fin=False) + sent(0), [(1, b"middle")]),
    echoes("6.2.1", (1, WORDS)),
    Case("6.2.2", text(WORDS[:13], fin=False) + sent(0, WORDS[13:]), [(1, WORDS)]),
    Case(
        "6.2.3",
        text(b"", fin=False)
        + b"".join(sent(0, WORDS[n : n + 1], fin=False) for n in range(len(WORDS)))
        + sent(0),
        [(1, WORDS)],
    ),
    *(refused(f"6.3.{n}", text(bad), code=1007) for n, bad in enumerate(BAD_UTF_8, 1)),
    *(
        refused(f"6.4.{n}", text(bad, fin=False) + sent(0, b""), code=1007)
        for n, bad in enumerate(BAD_UTF_8, 1)
    ),
    *(echoes(f"6.5.{n}", (1, good)) for n, good in enumerate(GOOD_UTF_8, 1)),
    Case("6.6", sent(2, BAD_UTF_8[0]), [(2, BAD_UTF_8[0])]),
    Case("7.1.1", text("Hello") + closing(1000), [(1, b"Hello"), (8, b"\x03\xe8")]),
    Case("7.1.2", closing(1000) + closing(1000), [(8, b"\x03\xe8")]),
    Case("7.1.3", closing(1000) + sent(9, b"late"), [(8, b"\x03\xe8")]),
    Case("7.1.4", closing(1000) + text("late"), [(8, b"\x03\xe8")]),
    Case("7.1.5", text("a", fin=False) + closing(1000) + sent(0, b"b"), [(8, b"\x03\xe8")]),
    Case("7.3.1", closing(None), [(8, b"")]),
    refused("7.3.2", sent(8, b"\x03")),
    Case("7.3.3", closing(1000), [(8, b"\x03\xe8")]),
    Case("7.3.4", closing(1000, b"Hello"), [(8, b"\x03\xe8")]),
    Case("7.3.5", closing(1000, b"*" * 123), [(8, b"\x03\xe8")]),
    refused("7.3.6", closing(1000, b"*" * 124)),
    refused("7.5.1", closing(1000, BAD_UTF_8[0]), code=1007),
    *(
        Case(f"7.7.{n}", closing(code), [(8, code.to_bytes(2, "big"))])
        for n, code in enumerate(GOOD_CODES, 1)
    ),
    *(refused(f"7.9.{n}", closing(code)) for n, code in enumerate(BAD_CODES, 1)),
    *(
        echoes(f"9.1.{n}", (1, b"*" * size), slowly=False)
        for n, size in enumerate((1 << 18, 1 << 20, 1 << 22, 1 << 23), 1)
    ),
    *(
        echoes(f"9.2.{n}", (2, os.urandom(1024) * (size // 1024)), slowly=False)
        for n, size in enumerate((1 << 18, 1 << 20, 1 << 22, 1 << 23), 1)
    ),
    *(
        Case(
            f"9.3.{n}",
            text("", fin=False) + sent(0, b"*" * size, fin=False) * ((1 << 20) // size) + sent(0),
            [(1, b"*" * (1 << 20))],
            slowly=False,
        )
        for n, size in enumerate((64, 1024, 65_536, 1 << 20), 1)
    ),
    echoes("9.7", *[(1, b"*" * 64)] * 1000, slowly=False),
    refused("9.9", b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big"), code=1009),
    refused("10.1", b"\x81\x05Hello"),  # without a mask
    refused("10.2", b"\x81\xff" + b"\x80" + b"\x00" * 7),  # the highest bit of a length
    refused("10.3", b"\x81\xfe\x00\x05"),  # a length in more bytes than it needs
    refused("10.4", b"\x81\xff" + (65_535).to_bytes(8, "big")),
]  # fmt: skip


class Peer:
    """A socket after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def frame(self) -> tuple[int, bytes] | None:
        """The next frame, checked for what a server has to do; None at the end."""
        try:
            first, second = await self.reader.readexactly(2)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        assert not first & 0x70 and not second & 0x80, "reserved bits, or a mask"
        assert first & 0x80, "we do not send fragments"
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
            assert size > 125
        elif size == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
            assert size > 65_535
        return first & 0x0F, await self.reader.readexactly(size)


async def dial(port: int, *extra: str) -> tuple[Peer, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 25)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [
        "GET /echo HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: keep-alive, Upgrade",
        "Upgrade: WebSocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
        *extra, "", "",
    ]  # fmt: skip
    writer.write("\r\n".join(lines).encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    accept = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    assert head.startswith("HTTP/1.1 101 ")
    assert f"sec-websocket-accept: {base64.b64encode(accept).decode()}".lower() in head.lower()
    return Peer(reader, writer), head


async def run(port: int, case: Case, slowly: bool) -> None:
    peer, _ = await dial(port)

    async def send() -> None:
        try:
            if slowly:
                for n in range(len(case.send)):
                    peer.writer.write(case.send[n : n + 1])
                    await peer.writer.drain()
                    await asyncio.sleep(0)
            else:
                peer.writer.write(case.send)
                await peer.writer.drain()
        except ConnectionError:
            return  # refused before everything was sent

    sending = asyncio.create_task(send())
    async with asyncio.timeout(20):
        for expected in case.get:
            found = await peer.frame()
            assert found == expected
        ends = bool(case.get) and case.get[-1][0] == 8
        if case.fails is not None:
            found = await peer.frame()
            assert found is not None and found[0] == 8
            assert int.from_bytes(found[1][:2], "big") == case.fails
            ends = True
        if ends:
            assert await peer.frame() is None, "nothing follows a close frame"
        else:
            peer.writer.write(closing(1000))
            assert await peer.frame() == (8, b"\x03\xe8")
            assert await peer.frame() is None
        await sending
    peer.writer.close()


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.asyncio(loop_scope="module")
async def test_case(port: int, case: Case) -> None:
    await run(port, case, slowly=False)
    if case.slowly:
        await run(port, case, slowly=True)


@pytest.mark.asyncio(loop_scope="module")
async def test_11_compression_that_is_offered_is_not_taken(port: int) -> None:
    peer, head = await dial(port, "Sec-WebSocket-Extensions: permessage-deflate")
    assert "sec-websocket-extensions" not in head.lower()
    peer.writer.write(text("plain") + closing(1000))
    assert await peer.frame() == (1, b"plain")
    assert await peer.frame() == (8, b"\x03\xe8")
    peer.writer.close()
