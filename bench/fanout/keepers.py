"""Clients that keep the books of a recorded market, and hold them against the recording.

They use the SDK's `Book`, which shares no code with the server. All of them check every number, and
every fourth checksum, each client others; at checkpoints, of which each client has its own, and at
the end, the whole book has to be that of the recording after the same update. They run in a thread
beside the compiled reader.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from fanout import world
from fanout.recording import Recording, fingerprint, units

from tbot.client import Book

MESSAGES_PER_TURN: Final = 200
WAITING_MAX: Final = 100_000
CHECKSUM_EVERY: Final = 4
CHECK_EVERY: Final = 400
"""Updates between two checkpoints of one client's book; clients take turns."""
READ_BYTES: Final = 1 << 18
_decode: Final = msgspec.json.Decoder().decode


@dataclass
class Keeper:
    """One client: its connection, its books and what it was told."""

    number: int
    connection: socket.socket
    rest: bytearray
    symbols: dict[int, tuple[str, str]] = field(default_factory=dict)
    seqs: dict[int, int] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    updates: int = 0
    trades: dict[str, int] = field(default_factory=dict)


class Keepers(threading.Thread):
    """A crowd of them.

    Attributes:
        updates: Of books, over all clients; likewise `checkpoints` and `trades`.
        told_gaps: Announced ones; a book begins anew after one.
        faults: What must not be.
    """

    def __init__(self, server: world.Server, count: int, first: int, recording: Recording) -> None:
        super().__init__(daemon=True)
        self._recording = recording
        self._epoll = select.epoll()
        self._keepers: dict[int, Keeper] = {}
        self._waiting: deque[tuple[Keeper, bytes]] = deque()
        self._over = threading.Event()
        self.subscribed = 0
        self.updates = self.checkpoints = self.trades = self.told_gaps = 0
        self.faults: list[str] = []
        wishes = [
            {"channel": name, "symbol": symbol} | more
            for symbol in recording.markets
            for name, more in (("book", {"depth": 0}), ("trades", {}))
        ]
        tokens = server.facts["tokens"]
        for number in range(first, first + count):
            request = world.handshake(server.port, protocol="tbot.v1.json")
            connection, rest = world.admitted(server.port, number, request)
            login = {"op": "auth", "token": tokens[number % len(tokens)]}
            for message in (login, {"op": "sub", "channels": wishes}):
                connection.sendall(world.frame(json.dumps(message).encode()))
            connection.setblocking(False)
            keeper = Keeper(number, connection, bytearray(rest))
            self._keepers[connection.fileno()] = keeper
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Read until `finish`."""
        try:
            while not self._over.is_set():
                waiting = self._waiting
                for descriptor, _ in self._epoll.poll(0.0 if waiting else 0.1):
                    self._read(self._keepers[descriptor])
                for _ in range(min(MESSAGES_PER_TURN, len(waiting))):
                    self._take(*waiting.popleft())
        except Exception as error:  # a thread's end is a finding like others
            self.faults.append(f"a client failed: {error!r}")

    def arrived(self) -> bool:
        """Whether every client has been told the last update and the last trade of each market."""
        return not self.is_alive() or all(
            (book := keeper.books.get(symbol)) is not None
            and book.update_id == market.update_id
            and keeper.trades.get(symbol) == (market.trades[-1][0] if market.trades else None)
            for keeper in self._keepers.values()
            for symbol, market in self._recording.markets.items()
        )

    def finish(self) -> None:
        """Stop, and hold every book against the end of the recording."""
        self._over.set()
        self.join()
        for keeper in self._keepers.values():
            for symbol, market in self._recording.markets.items():
                book, where = keeper.books.get(symbol), f"client {keeper.number}, {symbol}"
                if book is None or book.update_id != market.update_id:
                    at = None if book is None else book.update_id
                    self.faults.append(f"{where}: at {at}, the end is {market.update_id}")
                elif _levels(book) != (market.bids, market.asks):
                    self.faults.append(f"{where}: the book at the end differs")
                last = market.trades[-1][0] if market.trades else None
                if keeper.trades.get(symbol) != last:
                    self.faults.append(
                        f"{where}: last trade {keeper.trades.get(symbol)}, not {last}"
                    )
            keeper.connection.close()
        self._epoll.close()

    def _read(self, keeper: Keeper) -> None:
        """Take what there is; pings are answered at once, messages when their turn comes."""
        if len(self._waiting) > WAITING_MAX:
            return  # enough: let the server feel it
        with contextlib.suppress(BlockingIOError):
            data = keeper.connection.recv(READ_BYTES)
            if not data:
                self._gone(keeper, "the connection ended")
            keeper.rest += data
        at, rest = 0, keeper.rest
        while len(rest) - at >= 2:
            length, head = rest[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(rest[at + 2 : at + 4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(rest[at + 2 : at + 10], "big"), 10
            if len(rest) - at < head + length:
                break
            payload = bytes(rest[at + head : at + head + length])
            if rest[at] == 0x81:
                self._waiting.append((keeper, payload))
            elif rest[at] == 0x89:
                keeper.connection.send(world.frame(payload, opcode=10))
            elif rest[at] == 0x88:
                self._gone(keeper, f"closed: {payload!r}")
            at += head + length
        del rest[:at]

    def _gone(self, keeper: Keeper, why: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._epoll.unregister(keeper.connection.fileno())
            self.faults.append(f"client {keeper.number}: {why}")

    def _take(self, keeper: Keeper, payload: bytes) -> None:
        message = _decode(payload)
        operation = message["op"]
        if operation == "subbed":
            keeper.symbols = {sub["ch"]: (sub["channel"], sub["symbol"]) for sub in message["subs"]}
            self.subscribed += 1
        elif operation == "error":
            self.faults.append(f"client {keeper.number}: {message}")
        elif operation in ("snap", "delta", "gap"):
            number, seq = message["ch"], message["seq"]
            channel, symbol = keeper.symbols[number]
            known = keeper.seqs.get(number)
            before = {"delta": message.get("prev"), "gap": message.get("from", 0) - 1}.get(
                operation
            )
            if before is not None and known not in (before, None):
                self.faults.append(f"client {keeper.number}: {channel} {seq} after {known}")
            keeper.seqs[number] = seq
            if operation == "gap":
                self.told_gaps += 1
            elif channel == "trades":
                if operation == "delta":
                    self.trades += 1
                    keeper.trades[symbol] = message["data"]["trade_id"]
            else:
                self._book(keeper, symbol, message)

    def _book(self, keeper: Keeper, symbol: str, message: dict[str, Any]) -> None:
        data = message["data"]
        levels = message["seq"], data["update_id"], data["bids"], data["asks"]
        if message["op"] == "snap":
            book = keeper.books[symbol] = Book(symbol, 0)
            book.replace(*levels)
        else:
            book = keeper.books[symbol]
            book.apply(*levels)
        self.updates += 1
        keeper.updates += 1
        where = f"client {keeper.number}, {symbol}, update {book.update_id}"
        turn = keeper.updates % CHECKSUM_EVERY == keeper.number % CHECKSUM_EVERY
        if turn and book.checksum() != data["checksum"]:
            self.faults.append(f"{where}: the checksum differs")
        expected = self._recording.markets[symbol].prints.get(book.update_id)
        if expected is None:
            self.faults.append(f"{where}: there is no such update")
        elif keeper.updates % CHECK_EVERY == keeper.number % CHECK_EVERY:
            self.checkpoints += 1
            bids, asks = _levels(book)
            if fingerprint("bids", bids) + fingerprint("asks", asks) != expected:
                self.faults.append(f"{where}: the book differs")


def _levels(book: Book) -> tuple[dict[int, int], dict[int, int]]:
    return (
        {units(price): units(size) for price, size in book.bids()},
        {units(price): units(size) for price, size in book.asks()},
    )
