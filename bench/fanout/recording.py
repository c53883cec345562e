"""A recorded market: where it lies, a stretch of it to play, and what has to arrive of it.

The reference is rebuilt from the recording alone, by a reader that shares no code with the server:
every trade and update with the moment at which it is due, and the book after every update.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from websockets.asyncio.client import connect

from tbot.child import ExchangeChild
from tbot.core.settings import ExchangeSettings
from tbot.exchange import credentials

SYMBOLS: Final = {"BTC-USDT": "BTCUSDT", "ETH-USDT": "ETHUSDT"}
DAYS: Final = ("20240808", "20240809")
TRADE, VALUE, BOOK = range(3)
STARTER: Final = "btcusdt@miniTicker"
"""The player waits for this stream, which T-Bot never listens to: it starts when we ask."""
SCALE: Final = 8

type Side = dict[int, int]


def folder() -> Path:
    """Where recordings lie: `TBOT_SHARED`, or `shared` beside the repository."""
    beside = Path(__file__).resolve().parent.parent.parent.parent / "shared"
    return Path(os.environ.get("TBOT_SHARED", beside)) / "market-data" / "l2"


def missing() -> str | None:
    """Why there is nothing to play; None when there is."""
    for path in (folder() / f"binance-spot_{n}_{d}.raw.gz" for n in SYMBOLS.values() for d in DAYS):
        if not path.is_file():
            return f"there is no recording {path} (TBOT_SHARED says where recordings lie)"
    return None


def cut(target: Path, seconds: float) -> list[Path]:
    """Copy the recordings' first stretch, so that it has an end that everybody can arrive at."""
    begun_ns = 0
    paths = []
    for name in SYMBOLS.values():
        for day in DAYS:
            paths.append(target / f"binance-spot_{name}_{day}.raw")
            with (
                gzip.open(folder() / f"{paths[-1].name}.gz", "rb") as source,
                paths[-1].open("wb") as kept,
            ):
                for line in source:
                    at_ns = int(line[: line.index(b" ")])
                    begun_ns = begun_ns or at_ns
                    if at_ns > begun_ns + seconds * 1e9:
                        break
                    kept.write(line)
            if paths[-1].stat().st_size == 0:
                paths.pop().unlink()
    return paths


def units(text: str | Decimal) -> int:
    """A price or a quantity as a whole number."""
    return int(Decimal(text).scaleb(SCALE))


def fingerprint(side: str, levels: Side) -> int:
    """Of one side of a book, whatever the order of its levels."""
    return sum(hash((side, price, quantity)) for price, quantity in levels.items())


@dataclass
class Market:
    """What was recorded of one market.

    Attributes:
        trades: Numbers of the trades and nanoseconds at which they were received; `values` the
            same of best prices, `updates` of the book.
        prints: update id → fingerprint of the book after it.
        bids, asks: The book at the end.
    """

    trades: list[tuple[int, int]] = field(default_factory=list)
    values: list[tuple[int, int]] = field(default_factory=list)
    updates: list[tuple[int, int]] = field(default_factory=list)
    prints: dict[int, int] = field(default_factory=dict)
    bids: Side = field(default_factory=dict)
    asks: Side = field(default_factory=dict)
    update_id: int = 0

    def read(self, events: list[tuple[int, dict[str, Any]]]) -> None:
        """Read everything; the snapshot comes first, wherever it stands."""
        (snapshot,) = [event for _, event in events if "stream" not in event]
        self.update_id = snapshot["lastUpdateId"]
        self.bids = {units(price): units(size) for price, size in snapshot["bids"]}
        self.asks = {units(price): units(size) for price, size in snapshot["asks"]}
        now = fingerprint("bids", self.bids) + fingerprint("asks", self.asks)
        self.prints[self.update_id] = now
        for at_ns, event in events:
            kind, data = event.get("stream", "@").split("@")[1], event.get("data", {})
            if kind == "trade" and data.get("X", "MARKET") == "MARKET":
                self.trades.append((data["t"], at_ns))
            elif kind == "bookTicker":
                self.values.append((data["u"], at_ns))
            elif kind == "depth" and data["u"] > self.update_id:
                now += self._change("bids", self.bids, data["b"])
                now += self._change("asks", self.asks, data["a"])
                self.update_id = data["u"]
                self.prints[self.update_id] = now
                self.updates.append((self.update_id, at_ns))

    @staticmethod
    def _change(name: str, side: Side, levels: list[list[str]]) -> int:
        """Change levels; by how much that changes the fingerprint."""
        change = 0
        for price_text, size_text in levels:
            price, size = units(price_text), units(size_text)
            if (old := side.pop(price, None)) is not None:
                change -= hash((name, price, old))
            if size:
                side[price] = size
                change += hash((name, price, size))
        return change


@dataclass
class Recording:
    """What is played, of all markets."""

    paths: list[Path]
    markets: dict[str, Market] = field(default_factory=dict)
    begun_ns: int = 0
    seconds: float = 0.0

    def read(self) -> None:
        """Read the files."""
        first, last = [], []
        for symbol, name in SYMBOLS.items():
            events = [event for path in self.paths if name in path.name for event in _events(path)]
            self.markets[symbol] = market = Market()
            market.read(events)
            first.append(events[0][0])
            last.append(events[-1][0])
        self.begun_ns = min(first)
        self.seconds = (max(last) - self.begun_ns) / 1e9

    def due(self, kind: int, started_at_s: float) -> tuple[list[int], list[int]]:
        """Numbers of a kind, ascending, and when each is due, in microseconds of the day."""
        found: list[tuple[int, int]] = []
        for market in self.markets.values():
            found += (market.trades, market.values, market.updates)[kind]
        found.sort()
        started_us = round(started_at_s % 86_400 * 1e6)
        return (
            [number for number, _ in found],
            [started_us + (at_ns - self.begun_ns) // 1000 for _, at_ns in found],
        )


def _events(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as lines:
        for line in lines:
            at_ns, _, text = line.partition(b" ")
            yield int(at_ns), json.loads(text)


class Player:
    """The paper exchange, which plays the recording at its own pace when told to."""

    def __init__(self, access: dict[str, str], log: Path) -> None:
        self.access = access
        self._log = log
        self._socket: Any = None

    async def start(self) -> float:
        """Begin to play; returns the wall clock's time at which the first event was due."""
        url = f"{self.access['url'].replace('http', 'ws')}/ws/{STARTER}"
        self._socket = await connect(url)
        for _ in range(400):
            for said in self._said("market_started"):
                return datetime.fromisoformat(said["timestamp"]).timestamp()
            await asyncio.sleep(0.05)
        raise SystemExit(f"the recording was not played:\n{self._log.read_text()[-2000:]}")

    def late_s(self) -> float:
        """How far its time line was moved, because it was too late for it."""
        return sum(said["late_s"] for said in self._said("market_behind"))

    @property
    def finished(self) -> bool:
        """Whether all of it was played."""
        return any(self._said("replay_finished"))

    def _said(self, event: str) -> Iterator[dict[str, Any]]:
        for line in self._log.read_text().splitlines():
            if f'"{event}"' in line:
                yield json.loads(line)


@contextlib.asynccontextmanager
async def player(recording: Recording) -> AsyncIterator[Player]:
    """A paper exchange with this market at the recorded speed; it waits for T-Bot, and for us."""
    streams = [
        f"{name.lower()}@{kind}"
        for name in SYMBOLS.values()
        for kind in ("trade", "bookTicker", "depth@100ms")
    ]
    settings = {
        "TBOT_EXCHANGE__SOURCE": "replay",
        "TBOT_EXCHANGE__REPLAY_FILES": json.dumps([str(path) for path in recording.paths]),
        "TBOT_EXCHANGE__REPLAY_SPEED": "1",
        "TBOT_EXCHANGE__REPLAY_WAIT_FOR": json.dumps([STARTER, *streams]),
        "TBOT_LOG_LEVEL": "info",
        "TBOT_LOG_FORM": "json",
    }
    os.environ.update(settings)
    directory = Path(tempfile.mkdtemp(prefix="tbot-bench-"))
    child = ExchangeChild(ExchangeSettings(port=0), directory, directory / "exchange.log")
    try:
        child.start()
        await child.ready()
        found = credentials.load(directory)
        assert found is not None
        access = {"url": found.url, "api_key": found.api_key, "api_secret": found.api_secret}
        yield Player(access, directory / "exchange.log")
    finally:
        await child.stop()
        for name in settings:
            os.environ.pop(name, None)
        shutil.rmtree(directory, ignore_errors=True)
