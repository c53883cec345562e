"""The flood: `python -m flood.attack PORT SECONDS CONNECTIONS`; ends by itself, on one core.

Every kind of attacker has so many connections and so many acts a second, all together never more
than `ACTS_PER_S_MAX`. They come from sixteen loopback addresses, so that limits by address alone
would not do. Prints one line of JSON: how often each kind acted, and what it was told.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "src"))

import uvloop
from writepath.place import LOAD_CORE, pin

ADDRESSES = [f"127.0.1.{number}" for number in range(1, 17)]
SECONDS_MAX = 300.0
ACTS_PER_S_MAX = 1500.0
_ANSWER_TIMEOUT_S = 5.0
_HOST = b"Host: 127.0.0.1\r\n"
_FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
_JSON = b"Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Attacker:
    """One kind: its share of the connections, and how often all of them together act."""

    name: str
    share: float
    acts_per_s: float
    act: Callable[[Flood, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Flood:
    """What all attackers share: where, until when, and what came of it."""

    def __init__(self, port: int, until_s: float) -> None:
        self.port = port
        self.until_s = until_s
        self.told: Counter[str] = Counter()

    def over(self) -> bool:
        """Whether the time is up."""
        return asyncio.get_running_loop().time() >= self.until_s

    async def attack(self, kind: Attacker, number: int, connections: int) -> None:
        """One connection after the other, each until the server ends it."""
        every_s = connections / kind.acts_per_s
        await asyncio.sleep(random.random() * min(every_s, 3.0))
        while not self.over():
            writer = None
            try:
                address = ADDRESSES[number % len(ADDRESSES)]
                opening = asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
                reader, writer = await asyncio.wait_for(opening, _ANSWER_TIMEOUT_S)
                self.told[f"{kind.name}: connections"] += 1
                while not self.over():
                    await kind.act(self, reader, writer)
                    self.told[f"{kind.name}: acts"] += 1
                    await asyncio.sleep(every_s * (0.5 + random.random()))
            except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                self.told[f"{kind.name}: ended"] += 1
                await asyncio.sleep(every_s * (0.5 + random.random()))
            finally:
                if writer is not None:
                    writer.transport.abort()

    async def answer(self, name: str, reader: asyncio.StreamReader) -> None:
        """Read one answer and count its status."""
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            self.told[f"{name}: {head[9:12].decode('ascii', 'replace')}"] += 1
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line[15:]))

    async def said(self, name: str, reader: asyncio.StreamReader) -> None:
        """Note what the server says by itself, without waiting for it; its end is an error."""
        try:
            async with asyncio.timeout(0.001):
                await self.answer(name, reader)
        except TimeoutError:
            if reader.at_eof():
                raise ConnectionResetError from None


async def junk(flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes that are no HTTP."""
    writer.write(random.randbytes(random.randint(1, 4096)))
    await flood.answer("junk", reader)


async def slow_headers(
    flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A head that never ends, a line at a time."""
    if not flood_begun(writer):
        writer.write(b"POST /v1/orders HTTP/1.1\r\n" + _HOST)
    writer.write(b"X-Slow: 1\r\n")
    await flood.said("slow headers", reader)


async def slow_body(
    flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A login whose body comes a byte at a time."""
    if not flood_begun(writer):
        writer.write(
            b"POST /v1/token HTTP/1.1\r\n" + _HOST + _FORM + b"Content-Length: 4000\r\n\r\n"
        )
    writer.write(b"u")
    await flood.said("slow body", reader)


async def logins(flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Wrong passwords, of nobody and of the one user that there is."""
    name = random.choice([b"load", b"nobody%d" % random.randrange(10**6)])
    form = b"username=" + name + b"&password=wrong+horse+battery+%d" % random.randrange(10**9)
    length = b"Content-Length: %d\r\n\r\n" % len(form)
    writer.write(b"POST /v1/token HTTP/1.1\r\n" + _HOST + _FORM + length + form)
    await flood.answer("logins", reader)


async def oversized(
    flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """A body that says that it is a gigabyte, or one that does not say and never ends."""
    head = b"POST /v1/token HTTP/1.1\r\n" + _HOST + _FORM
    if random.random() < 0.5:
        writer.write(head + b"Content-Length: 1000000000\r\n\r\n" + b"x" * 16_384)
    else:
        chunk = b"4000\r\n" + b"x" * 16_384 + b"\r\n"
        writer.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 20)
    await flood.answer("oversized", reader)
    raise ConnectionResetError  # there is no telling where the next request would begin


async def bad_tokens(
    flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Orders with tokens and keys that are none."""
    token = random.choice(
        [b"eyJhbGciOiJub25lIn0.e30.", b"tbk_" + random.randbytes(21).hex().encode()]
    )
    authorization = b"Authorization: Bearer " + token + b"\r\n"
    writer.write(
        b"POST /v1/orders HTTP/1.1\r\n"
        + _HOST
        + authorization
        + _JSON
        + b"Content-Length: 2\r\n\r\n{}"
    )
    await flood.answer("bad tokens", reader)


async def nothing(flood: Flood, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Paths that are none."""
    writer.write(b"GET /wp-login.php?%d HTTP/1.1\r\n" % random.randrange(10**9) + _HOST + b"\r\n")
    await flood.answer("nothing", reader)


def flood_begun(writer: asyncio.StreamWriter) -> bool:
    """Whether a connection has been written to before; remembers that it is now."""
    begun = getattr(writer, "flood_begun", False)
    writer.flood_begun = True  # type: ignore[attr-defined]
    return bool(begun)


ATTACKERS = [
    Attacker("slow headers", 0.35, 150.0, slow_headers),
    Attacker("slow body", 0.35, 150.0, slow_body),
    Attacker("junk", 0.10, 100.0, junk),
    Attacker("logins", 0.05, 100.0, logins),
    Attacker("oversized", 0.05, 20.0, oversized),
    Attacker("bad tokens", 0.05, 100.0, bad_tokens),
    Attacker("nothing", 0.05, 100.0, nothing),
]


async def run(port: int, seconds: float, connections: int) -> Counter[str]:
    """All of it for a while."""
    assert sum(each.acts_per_s for each in ATTACKERS) <= ACTS_PER_S_MAX
    flood = Flood(port, asyncio.get_running_loop().time() + min(seconds, SECONDS_MAX))
    tasks = []
    for kind in ATTACKERS:
        count = max(1, round(kind.share * connections))
        tasks += [asyncio.create_task(flood.attack(kind, number, count)) for number in range(count)]
    await asyncio.wait(tasks, timeout=min(seconds, SECONDS_MAX) + 1.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return flood.told


def main() -> None:
    port, seconds, connections = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    pin(LOAD_CORE)
    os.nice(5)  # it shares its core with the customer and with Postgres
    told = uvloop.run(run(port, seconds, connections))
    print(json.dumps(dict(sorted(told.items()))), flush=True)


if __name__ == "__main__":
    main()
