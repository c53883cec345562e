"""Server processes under test, and crowds of clients on them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fanout.reader import Reader, Stats, open_reader

HERE: Final = Path(__file__).resolve().parent
FILES: Final = 20_000
USERS: Final = 8
"""Client n belongs to user n modulo this many, and so does account n."""
SMALL_BYTES: Final = 16_384
"""Receive buffer of a client that is to stall soon after it stops reading."""
BUSY_MAX: Final = 60
BUSY_S: Final = 0.5
PER_ADDRESS: Final = 20_000
"""Connections from one loopback address: below the number of its ports."""


def raise_files_limit() -> int:
    """As many sockets as this machine lets us have; returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


@dataclass
class Server:
    """A process that serves; see `fanout.servers`."""

    process: subprocess.Popen[bytes]
    facts: dict[str, Any]

    @property
    def port(self) -> int:
        port: int = self.facts["port"]
        return port

    def order(self, **words: Any) -> None:
        """Tell it to do something."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, collect: bool = True) -> dict[str, Any]:
        """What it holds now; see `facts` there. Collecting garbage first takes a while."""
        self.order(do="facts", collect=collect)
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def heard(self) -> list[tuple[int, float]]:
        """Each trade that it heard of, and the wall clock's time then."""
        self.order(do="heard")
        assert self.process.stdout is not None
        found: list[tuple[int, float]] = json.loads(self.process.stdout.readline())["heard"]
        return found

    def pss_kib(self) -> int:
        """Its memory: what is shared with other processes counts in part."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
        raise RuntimeError("no Pss in smaps_rollup")

    def processor_s(self) -> float:
        """Processor time that it has taken so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def serving(kind: str, dsn: str, **options: Any) -> Iterator[Server]:
    """A server on the servers' core; ends with the context."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TBOT_")}
    environment["PYTHONPATH"] = f"{HERE.parent.parent / 'src'}:{HERE.parent}"
    process = subprocess.Popen(
        [sys.executable, "-m", "fanout.servers", kind, dsn, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"the server {kind} did not start")
        yield Server(process, json.loads(line))
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def frame(payload: bytes, opcode: int = 1) -> bytes:
    """A client's frame; the mask is zero, which the protocol allows and costs nothing here."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, 0x80 | size, 0, 0, 0, 0)) + payload
    return bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big") + b"\0\0\0\0" + payload


def handshake(port: int, path: str = "/v1/stream", protocol: str = "") -> bytes:
    """The request that asks for a WebSocket."""
    extra = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"{extra}\r\n"
    ).encode()


def connect(port: int, number: int, receive_bytes: int = 0) -> socket.socket:
    """A connected socket; addresses of 127.0.0.0/8 take turns where one has too few ports."""
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.bind((f"127.0.0.{2 + number // PER_ADDRESS}", 0))
    connection.connect(("127.0.0.1", port))
    return connection


class Busy(Exception):
    """The server is too busy for newcomers, and says so: come back in a moment."""


def admitted(
    port: int, number: int, request: bytes, receive_bytes: int = 0
) -> tuple[socket.socket, bytes]:
    """A connection that has shaken hands, and what came behind the answer.

    Who is told to come back does so, a bounded number of times.
    """
    for _ in range(BUSY_MAX):
        connection = connect(port, number, receive_bytes)
        try:
            return connection, upgraded(connection, request)
        except Busy:
            connection.close()
            time.sleep(BUSY_S)
    raise SystemExit("the server stays too busy for newcomers")


def upgraded(connection: socket.socket, request: bytes) -> bytes:
    """Shake hands; returns what came behind the answer.

    Raises:
        Busy: The server answered 503.
    """
    connection.sendall(request)
    received = b""
    while b"\r\n\r\n" not in received:
        data = connection.recv(65_536)
        if not data:
            raise SystemExit(f"the handshake was not answered: {received!r}")
        received += data
    head, _, rest = received.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 503"):
        raise Busy
    if not head.startswith(b"HTTP/1.1 101"):
        raise SystemExit(f"the handshake was refused: {received[:300]!r}")
    return rest


@dataclass
class Crowd:
    """Clients on one server, read by one reader."""

    server: Server
    reader: Reader
    stats: Stats = field(default_factory=Stats)
    indexes: list[int] = field(default_factory=list)

    def fresh(self) -> Stats:
        """Begin to count anew; returns what was counted."""
        before, self.stats = self.stats, Stats()
        return before

    def say(self, index: int, message: dict[str, Any]) -> None:
        """Let one client send a message; the server reads, so that there is room for it."""
        self.reader.send(index, frame(json.dumps(message).encode()))

    def run(self, seconds: float) -> Stats:
        """Read for so long; returns what was read."""
        self.fresh()
        self.reader.run(seconds, self.stats)
        return self.fresh()


type Wishes = Callable[[int], list[dict[str, Any]]]


def gather(
    server: Server,
    count: int,
    wishes: Wishes | None = None,
    plain: bool = False,
    reader: Reader | None = None,
    first: int = 0,
    small: frozenset[int] = frozenset(),
) -> Crowd:
    """Connect clients, log them in and subscribe them; returns when all are subscribed.

    Args:
        wishes: The channels of client n; None for a server that has no channels.
        reader: One to add to; else a new one.
        small: Clients whose machine takes little before its program reads.
    """
    crowd = Crowd(server, reader or open_reader(count, plain=plain))
    tokens = server.facts.get("tokens", [])
    for number in range(first, first + count):
        request = handshake(server.port, protocol="tbot.v1.json" if wishes else "")
        receive_bytes = SMALL_BYTES if number in small else 0
        connection, rest = admitted(server.port, number, request, receive_bytes)
        if wishes is not None:
            login = json.dumps({"op": "auth", "token": tokens[number % len(tokens)]})
            wish = json.dumps({"op": "sub", "channels": wishes(number)})
            connection.sendall(frame(login.encode()) + frame(wish.encode()))
        crowd.indexes.append(crowd.reader.add(connection, rest, crowd.stats))
        if number % 100 == 99:
            crowd.reader.run(0.02, crowd.stats)
    crowd.reader.run(60.0, crowd.stats, count)
    if crowd.stats.subscribed < count:
        raise SystemExit(f"{crowd.stats.subscribed} of {count} clients subscribed")
    crowd.stats.require_sound("subscribing")
    return crowd


def one_trade_channel(_number: int) -> list[dict[str, Any]]:
    """Everybody reads the same market."""
    return [{"channel": "trades", "symbol": "BENCH100-USDT"}]


def random_channels(symbols: int, count: int, accounts: list[str], seed: int) -> Wishes:
    """Everybody reads other markets, and an account of their own."""

    def wishes(number: int) -> list[dict[str, Any]]:
        chosen = random.Random(seed * 100_003 + number).sample(range(symbols), count)
        found: list[dict[str, Any]] = [
            {"channel": "trades", "symbol": f"BENCH{100 + each}-USDT"} for each in chosen
        ]
        if accounts:
            found.append({"channel": "account", "account_id": accounts[number % len(accounts)]})
        return found

    return wishes
