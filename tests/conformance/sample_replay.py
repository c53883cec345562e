"""A recorded market, played through the whole of T-Bot, arrives at a client unchanged.

    python tests/conformance/sample_replay.py [--seconds 60]

Starts `tbot up` on the recorded BTCUSDT and ETHUSDT spot market, subscribes to every channel with
conflation off, and holds what arrives against a rebuild of the recording that shares no code with
the server: every trade one for one, every best-price change one for one, and the whole book equal
after every update. Then, at the end of the recording, buys at market and expects the recorded asks.
A run too short for all of it holds against the recording what it has heard. Ends with a line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import os
import sys
import time
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "bench"))

import websockets  # noqa: E402
from chaos import world  # noqa: E402
from chaos.session import Session  # noqa: E402

SYMBOLS = {"BTC-USDT": "btcusdt", "ETH-USDT": "ethusdt"}
RECORDED_S = 651.0
SPEED_MAX = 25.0
"""Faster than this, a venue would cut us off as a slow reader: a shorter run hears a part of it."""
# The replay waits for this stream, which T-Bot itself never listens to: it starts when we ask.
STARTER = "btcusdt@miniTicker"
SILENCE_S = 60.0
"""Nothing new for so long: nothing will come any more, however busy the machine is."""

type Side = dict[Decimal, Decimal]


def events(path: Path) -> Any:
    """The recording's frames in order; the snapshot comes as a dict without `stream`."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            yield json.loads(line.split(" ", 1)[1])


@dataclass
class Recording:
    """One instrument as it was recorded, and how far the client has come in it."""

    files: list[Path]
    trades: list[tuple[int, Decimal, Decimal]] = field(default_factory=list)
    best: list[tuple[int, Decimal, Decimal, Decimal, Decimal]] = field(default_factory=list)
    diffs: list[tuple[int, Side, Side]] = field(default_factory=list)
    bids: Side = field(default_factory=dict)
    asks: Side = field(default_factory=dict)
    update_id: int = 0
    next_diff: int = 0

    def read(self) -> None:
        """Read the files."""
        for path in self.files:
            for event in events(path):
                if "stream" not in event:
                    self.update_id = event["lastUpdateId"]
                    self.bids = {Decimal(p): Decimal(q) for p, q in event["bids"]}
                    self.asks = {Decimal(p): Decimal(q) for p, q in event["asks"]}
                    continue
                kind, data = event["stream"].split("@")[1], event["data"]
                if kind == "trade":
                    self.trades.append((data["t"], Decimal(data["p"]), Decimal(data["q"])))
                elif kind == "bookTicker":
                    self.best.append(
                        (data["u"], *(Decimal(data[name]) for name in ("b", "B", "a", "A")))
                    )
                elif kind == "depth":
                    self.diffs.append(
                        (
                            data["u"],
                            {Decimal(p): Decimal(q) for p, q in data["b"]},
                            {Decimal(p): Decimal(q) for p, q in data["a"]},
                        )
                    )
        self.diffs = [diff for diff in self.diffs if diff[0] > self.update_id]

    def advance(self, update_id: int) -> int:
        """Rebuild up to `update_id`; how many diffs that took."""
        taken = 0
        while self.next_diff < len(self.diffs) and self.diffs[self.next_diff][0] <= update_id:
            number, bids, asks = self.diffs[self.next_diff]
            for side, changes in ((self.bids, bids), (self.asks, asks)):
                for price, quantity in changes.items():
                    if quantity:
                        side[price] = quantity
                    else:
                        side.pop(price, None)
            self.update_id = number
            self.next_diff += 1
            taken += 1
        return taken


@dataclass
class Seen:
    """What one instrument's channels delivered."""

    trades: list[tuple[int, Decimal, Decimal]] = field(default_factory=list)
    best: list[tuple[int, Decimal, Decimal, Decimal, Decimal]] = field(default_factory=list)
    bids: Side = field(default_factory=dict)
    asks: Side = field(default_factory=dict)
    snapshots: int = 0
    books_equal: int = 0
    faults: list[str] = field(default_factory=list)

    def book(self, message: dict[str, Any], recording: Recording) -> None:
        """Apply a book message and compare with the rebuild at the same update."""
        data = message["data"]
        if message["op"] == "snap":
            self.bids, self.asks = {}, {}
            self.snapshots += 1
        for side, name in ((self.bids, "bids"), (self.asks, "asks")):
            for price, quantity in data[name]:
                if Decimal(quantity):
                    side[Decimal(price)] = Decimal(quantity)
                else:
                    side.pop(Decimal(price), None)
        taken = recording.advance(data["update_id"])
        where = f"update {data['update_id']}"
        if recording.update_id != data["update_id"]:
            self.faults.append(f"{where}: the recording is at {recording.update_id}")
        if message["op"] == "delta" and taken != 1:
            self.faults.append(f"{where}: one message for {taken} recorded updates")
        if self.bids == recording.bids and self.asks == recording.asks:
            self.books_equal += 1
        else:
            self.faults.append(f"{where}: the book differs from the rebuild")


class Client:
    """Everything on one connection, conflation off."""

    def __init__(self, url: str, token: str, recordings: dict[str, Recording]) -> None:
        self._url = url.replace("http", "ws") + "/v1/stream"
        self._token = token
        self._recordings = recordings
        self.seen = {symbol: Seen() for symbol in recordings}
        self.subscribed = asyncio.Event()
        self.gaps = 0

    async def run(self) -> None:
        """Until cancelled."""
        topics: dict[int, tuple[str, str]] = {}
        async with websockets.connect(
            self._url,
            max_size=None,
            max_queue=None,
            ping_interval=None,
            subprotocols=["tbot.v1.json"],  # type: ignore[list-item]
        ) as socket:
            await socket.send(json.dumps({"op": "auth", "token": self._token}))
            channels = [
                {"channel": channel, "symbol": symbol} | more
                for symbol in self._recordings
                for channel, more in (
                    ("trades", {}),
                    ("bbo", {"interval_ms": 0}),
                    ("book", {"depth": 0, "interval_ms": 0}),
                )
            ]
            await socket.send(json.dumps({"op": "sub", "id": 1, "channels": channels}))
            async for raw in socket:
                message = json.loads(raw)
                if message["op"] == "subbed":
                    for sub in message["subs"]:
                        topics[sub["ch"]] = (sub["channel"], sub["symbol"])
                    self.subscribed.set()
                elif message["op"] == "gap":
                    self.gaps += bool(self.seen[topics[message["ch"]][1]].trades)
                elif message["op"] in ("snap", "delta"):
                    channel, symbol = topics[message["ch"]]
                    self._take(channel, symbol, message)

    def _take(self, channel: str, symbol: str, message: dict[str, Any]) -> None:
        seen, data = self.seen[symbol], message["data"]
        if channel == "book":
            if data is not None:
                seen.book(message, self._recordings[symbol])
            return
        if channel == "trades":
            items = data if isinstance(data, list) else (data or {}).get("trades", [data])
            for item in items:
                if item is not None:
                    seen.trades.append(
                        (item["trade_id"], Decimal(item["price"]), Decimal(item["quantity"]))
                    )
        elif data is not None:
            prices = ("bid", "bid_quantity", "ask", "ask_quantity")
            row = (data["update_id"], *(Decimal(data[name]) for name in prices))
            if not seen.best or seen.best[-1] != row:
                seen.best.append(row)  # type: ignore[arg-type]


async def start_replay(port: int) -> Any:
    """Subscribe to the stream that the replay waits for."""
    socket = await websockets.connect(f"ws://127.0.0.1:{port}/ws/{STARTER}")

    async def drain() -> None:
        async for _ in socket:
            pass

    return socket, asyncio.create_task(drain())


async def buy(session: Session, seen: Seen) -> str | None:
    """A market buy fills at the recorded asks, best first; what is wrong, if anything."""
    accounts = (await session.call("GET", "/v1/accounts")).json()["items"]
    levels = sorted(seen.asks.items())
    wanted = levels[0][1] + min(levels[1][1], Decimal("0.05"))
    step = Decimal("0.00001")
    wanted = min(wanted, Decimal("1.2")) // step * step
    answer = await session.call(
        "POST",
        "/v1/orders",
        json={
            "account_id": accounts[0]["id"],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "market",
            "quantity": f"{wanted:f}",
        },
        headers={"Prefer": "wait=10"},
    )
    order = answer.json()
    if order.get("state") != "filled":
        return f"the market buy is not filled: {order}"
    fills = (
        await session.call("GET", f"/v1/accounts/{accounts[0]['id']}/fills?order_id={order['id']}")
    ).json()["items"]
    got = sorted((Decimal(f["price"]), Decimal(f["quantity"])) for f in fills)
    expected, left = [], wanted
    for price, quantity in levels:
        if left <= 0:
            break
        expected.append((price, min(left, quantity)))
        left -= quantity
    return None if got == expected else f"filled at {got}, the asks were {expected}"


async def run(seconds: float, l2: Path) -> dict[str, Any]:
    """One whole run; the figures."""
    files = {
        symbol: [l2 / f"binance-spot_{name.upper()}_{day}.raw.gz" for day in (20240808, 20240809)]
        for symbol, name in SYMBOLS.items()
    }
    recordings = {symbol: Recording(paths) for symbol, paths in files.items()}
    for recording in recordings.values():
        recording.read()
    # The start, the reading and the check take some twenty seconds of a short run.
    play_s = max(10.0, seconds - 25.0)
    speed = min(SPEED_MAX, max(1.0, RECORDED_S / play_s))
    streams = [f"{name}@{kind}" for name in SYMBOLS.values() for kind in ("trade", "bookTicker")]
    settings = {
        "TBOT_EXCHANGE__SOURCE": "replay",
        "TBOT_EXCHANGE__REPLAY_FILES": json.dumps([str(p) for ps in files.values() for p in ps]),
        "TBOT_EXCHANGE__REPLAY_SPEED": str(speed),
        "TBOT_EXCHANGE__REPLAY_WAIT_FOR": json.dumps([STARTER, *streams]),
        "TBOT_STREAM__QUEUE_BYTES_MAX": str(64 << 20),
        # We may be slow on a busy machine: what counts here is what comes, not when.
        "TBOT_STREAM__STALL_TIMEOUT_S": "600",
        "TBOT_STREAM__HEARTBEAT_TIMEOUT_S": "600",
        "TBOT_RISK__MAX_ORDER_NOTIONAL": "1000000",
        # The market stands still at the end of the recording; it is still the market.
        "TBOT_RISK__PRICE_AGE_S_MAX": "3600",
    }
    async with world.running(settings) as here:
        session = Session(here.url, here.credentials)
        client = Client(here.url, await session.login(), recordings)
        listening = asyncio.create_task(client.run())
        await asyncio.wait_for(client.subscribed.wait(), 20)
        socket, draining = await start_replay(here.exchange_port)
        started_s = time.monotonic()
        whole = speed * play_s >= RECORDED_S
        await played(client, recordings, None if whole else play_s)
        took_s = time.monotonic() - started_s
        faults = compare(client, recordings, whole)
        if listening.done():
            faults.insert(0, f"the connection ended: {listening.exception()!r}")
        counts = {
            "trades": sum(len(s.trades) for s in client.seen.values()),
            "best_changes": sum(len(s.best) for s in client.seen.values()),
            "books_equal": sum(s.books_equal for s in client.seen.values()),
            "book_snapshots": sum(s.snapshots for s in client.seen.values()),
            "gaps": client.gaps,
        }
        bought = await buy(session, client.seen["BTC-USDT"]) if whole else None
        if bought is not None:
            faults.append(bought)
        listening.cancel()
        draining.cancel()
        await asyncio.gather(listening, draining, return_exceptions=True)
        await socket.close()
    return {
        "speed": round(speed, 2),
        "seconds": round(took_s, 1),
        **counts,
        "whole": whole,
        "buy_at_recorded_asks": bought is None if whole else None,
        "faults": len(faults),
        "first_faults": faults[:10],
    }


async def played(client: Client, recordings: dict[str, Recording], time_s: float | None) -> None:
    """Wait until the last recorded event of every kind has arrived, a bounded time.

    Args:
        time_s: That long; None for as long as something new arrives.
    """
    until_s = time.monotonic() + (SILENCE_S if time_s is None else time_s)
    come = 0
    while time.monotonic() < until_s:
        before, come = come, sum(len(s.trades) + len(s.best) for s in client.seen.values())
        if time_s is None and come > before:
            until_s = time.monotonic() + SILENCE_S
        if all(
            seen.trades
            and seen.trades[-1][0] == recordings[symbol].trades[-1][0]
            and seen.best
            and seen.best[-1][0] == recordings[symbol].best[-1][0]
            and recordings[symbol].next_diff == len(recordings[symbol].diffs)
            for symbol, seen in client.seen.items()
        ):
            return
        await asyncio.sleep(0.2)


def compare(client: Client, recordings: dict[str, Recording], whole: bool) -> list[str]:
    """What differs between what arrived and what was recorded.

    Args:
        whole: All of it should have arrived; else a part, from the beginning on.
    """
    faults = []
    for symbol, seen in client.seen.items():
        recording = recordings[symbol]
        faults += [f"{symbol}: {fault}" for fault in seen.faults]
        trades = recording.trades if whole else recording.trades[: len(seen.trades)]
        if not seen.trades or seen.trades != trades:
            at = next(
                (
                    i
                    for i, (a, b) in enumerate(zip(seen.trades, recording.trades, strict=False))
                    if a != b
                ),
                min(len(seen.trades), len(recording.trades)),
            )
            faults.append(
                f"{symbol}: {len(seen.trades)} trades of {len(recording.trades)}, differing at {at}"
            )
        best = [
            row for i, row in enumerate(recording.best) if not i or recording.best[i - 1] != row
        ]
        if not seen.best or seen.best != (best if whole else best[: len(seen.best)]):
            faults.append(f"{symbol}: {len(seen.best)} best-price changes of {len(best)}")
        if recording.next_diff != len(recording.diffs) and (whole or not recording.next_diff):
            faults.append(f"{symbol}: {recording.next_diff} of {len(recording.diffs)} book updates")
    if client.gaps:
        faults.append(f"{client.gaps} gaps")
    return faults


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    l2 = Path(os.environ.get("TBOT_SHARED", REPOSITORY.parent / "shared")) / "market-data" / "l2"
    if not l2.is_dir():
        print(f"skipped: no recordings at {l2} (set TBOT_SHARED)")
        return 0
    figures = asyncio.run(run(arguments.seconds, l2))
    for fault in figures.pop("first_faults"):
        print(fault)
    for name, value in figures.items():
        print(f"{name:>20}  {value}")
    print(json.dumps(figures))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
