"""What to test the fan-out with: a feed and an output of nothing but memory, and a deaf client."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tbot.core.settings import StreamSettings
from tbot.market.channels import CHANNELS, Denied, Market, Wanted, wanted
from tbot.market.feed import BestChanged, BookChanged, BookReset, FeedEvent, Missed, Traded
from tbot.market.hub import Hub
from tbot.market.subscribers import Subscriber
from tbot.market.ticker import Ticker
from tbot.market.topics import Batch
from tbot.venues.base import BestPrices, Level, MarketTrade

SYMBOL = "BTC-USDT"
AT = datetime(2024, 8, 8, 23, 54, tzinfo=UTC)


class FakeBook:
    """A book that tests change by hand."""

    def __init__(self) -> None:
        self.update_id = 0
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}

    def levels(self, depth: int) -> tuple[list[Level], list[Level]]:
        bids = [Level(price, self.bids[price]) for price in sorted(self.bids, reverse=True)]
        asks = [Level(price, self.asks[price]) for price in sorted(self.asks)]
        return bids[: depth or None], asks[: depth or None]


class FakeFeed:
    """Markets with books, and what a feed would tell of them."""

    def __init__(self, *symbols: str) -> None:
        self.books = {symbol: FakeBook() for symbol in symbols}
        self.void: set[str] = set()
        self.trade_ids = dict.fromkeys(symbols, 0)
        self.bests: dict[str, BestPrices] = {}
        self.market: Market | None = None

    def knows(self, symbol: str) -> bool:
        return symbol in self.books

    def symbols(self) -> list[str]:
        return list(self.books)

    def book(self, symbol: str) -> FakeBook | None:
        return None if symbol in self.void else self.books[symbol]

    def trades(self, symbol: str, limit: int) -> list[MarketTrade]:
        return []

    def best(self, symbol: str) -> BestPrices | None:
        return self.bests.get(symbol)

    def ticker(self, symbol: str) -> Ticker | None:
        return None

    def stale(self, symbol: str) -> bool:
        return False

    def tell(self, symbol: str, event: FeedEvent) -> None:
        assert self.market is not None
        self.market.hear(symbol, event)

    def trade(self, symbol: str, price: str = "100", quantity: str = "1") -> None:
        self.trade_ids[symbol] += 1
        trade_id = self.trade_ids[symbol]
        trade = MarketTrade(symbol, trade_id, Decimal(price), Decimal(quantity), False, AT)
        self.tell(symbol, Traded(trade))

    def quote(self, symbol: str, bid: str) -> None:
        """New best prices."""
        count = self.bests[symbol].update_id + 1 if symbol in self.bests else 1
        one = Decimal(1)
        best = BestPrices(symbol, count, Decimal(bid), one, Decimal(bid) + 1, one)
        self.bests[symbol] = best
        self.tell(symbol, BestChanged(best))

    def change(self, symbol: str, side: str, price: str, quantity: str) -> None:
        """Set one level; zero deletes it."""
        book = self.books[symbol]
        book.update_id += 1
        levels = book.bids if side == "bid" else book.asks
        level = Level(Decimal(price), Decimal(quantity))
        if level.quantity:
            levels[level.price] = level.quantity
        else:
            levels.pop(level.price, None)
        if symbol not in self.void:
            number = book.update_id
            bids, asks = ([level], []) if side == "bid" else ([], [level])
            self.tell(symbol, BookChanged(number - 1, number, number, bids, asks, AT))

    def lose(self, symbol: str) -> None:
        """The venue's stream broke."""
        self.void.add(symbol)
        self.tell(symbol, Missed("venue_disconnected"))

    def rebuild(self, symbol: str) -> None:
        """The book is in sync again."""
        self.void.discard(symbol)
        number = self.books[symbol].update_id
        self.tell(symbol, BookReset(number, number))


class FakeOutput:
    """Collects what it is handed; a test says when it is ready."""

    def __init__(self) -> None:
        self.on_ready: Callable[[], None] = lambda: None
        self.open = True
        self.received: list[dict[str, Any]] = []
        self.batches: list[int] = []
        self.closed: tuple[int, str] | None = None
        self.heard: float | None = None
        self.pings = 0

    @property
    def ready(self) -> bool:
        return self.open and self.closed is None

    @property
    def heard_at(self) -> float | None:
        return self.heard

    def write(self, frames: Batch) -> None:
        assert self.open, "written to while it was not ready"
        self.received.extend(json.loads(frame.text) for frame in frames)
        self.batches.append(sum(len(frame.payload) for frame in frames))

    def ping(self) -> bool:
        if self.ready:
            self.pings += 1
        return self.ready

    def close(self, code: int, reason: str) -> None:
        self.closed = (code, reason)

    def stall(self) -> None:
        """Take nothing any more."""
        self.open = False

    def resume(self) -> None:
        """Take again, as a transport whose buffer drained."""
        self.open = True
        self.on_ready()


class Desk:
    """A hub with a feed and clients; times are the test's to set."""

    def __init__(self, **limits: Any) -> None:
        self.hub = Hub(StreamSettings(flush_interval_ms=0, **limits))
        self.feed = FakeFeed(SYMBOL, "ETH-USDT")
        self.market = self.feed.market = Market(self.hub, self.feed)
        self.hub.start(self.market.retire)

    def client(self) -> tuple[Subscriber, FakeOutput]:
        output = FakeOutput()
        subscriber = Subscriber(self.hub, output, lambda: None)
        self.hub.add(subscriber)
        return subscriber, output

    def sub(self, subscriber: Subscriber, channel: str, **parameters: Any) -> int:
        wish = wanted(CHANNELS[channel], {"channel": channel, "symbol": SYMBOL} | parameters)
        assert isinstance(wish, Wanted)
        topic = self.market.topic(wish)
        assert not isinstance(topic, Denied)
        self.hub.subscribe(subscriber, [(topic, None)])
        return topic.number

    async def settle(self) -> None:
        """Let every scheduled flush run."""
        for _ in range(6):
            await asyncio.sleep(0)


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


async def flood_with_pings(raw: socket.socket, transport: asyncio.WriteTransport) -> int:
    """Send pings and take no pong, until the server cuts the connection.

    Returns:
        The most bytes that its end had waiting to be sent.
    """
    flood = masked(9, b"x" * 125) * 500
    largest = 0
    for _ in range(2000):
        try:
            await asyncio.get_running_loop().sock_sendall(raw, flood)
        except ConnectionError:
            return largest
        largest = max(largest, transport.get_write_buffer_size())
        await asyncio.sleep(0)
    raise AssertionError("the server took a million pings")
