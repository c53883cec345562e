"""A recorded market at the speed at which it was recorded, to 2,000 clients.

    make bench-recorded          ARGS="--seconds 60"

The paper exchange plays the recorded BTCUSDT and ETHUSDT spot market; T-Bot reads it as it reads a
venue, on core 0, and serves trades, best prices and books; exchange, clients and Postgres are on
core 1. Most clients are read by the compiled reader, which checks every number; the others
(`--books`) keep the whole books with the SDK's, check every checksum, and compare with a rebuild of
the recording at checkpoints and at the end. Latency counts from the moment at which the exchange
was due to tell a trade or an update. Ends with one line of JSON; exit code 1 when anything was
missing, repeated or different.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from fanout import recording, world
from fanout.keepers import Keepers
from fanout.reader import CompiledReader, Stats, open_reader
from fanout.recording import BOOK, TRADE, VALUE, Player, Recording
from writepath.place import LOAD_CORE, database, pin

WHOLE_S = 660.0
LATE_S_MAX = 30.0
"""How long after the recording's end everything must have arrived."""
DEPTH = 20
"""Levels of the books that are read and not kept."""


def wishes(_number: int) -> list[dict[str, Any]]:
    """What somebody who watches both markets subscribes to: everything, without conflation."""
    return [
        {"channel": channel, "symbol": symbol} | more
        for symbol in recording.SYMBOLS
        for channel, more in (("trades", {}), ("bbo", {}), ("book", {"depth": DEPTH}))
    ]


async def until(there: Callable[[], bool], timeout_s: float) -> bool:
    """Wait for something; False when it did not come in time."""
    until_s = time.monotonic() + timeout_s
    while not there():
        if time.monotonic() > until_s:
            return False
        await asyncio.sleep(0.05)
    return True


class Run:
    """One playing of it, to everybody."""

    def __init__(self, played: Recording, player: Player, dsn: str, options: Any) -> None:
        self.played = played
        self.player = player
        self.dsn = dsn
        self.options = options
        self.faults: list[str] = []

    async def go(self) -> dict[str, Any]:
        """Serve, play, read, compare."""
        options = self.options
        count = options.clients - options.books
        reader = open_reader(count)
        if not isinstance(reader, CompiledReader):
            raise SystemExit("checking so many clients needs a C compiler")
        serving = world.serving(
            "played", self.dsn, clients=options.clients, exchange=self.player.access
        )
        with serving as server:
            crowd = world.gather(server, count, wishes, reader=reader)
            keepers = Keepers(server, options.books, count, self.played)
            keepers.start()
            if not await until(lambda: keepers.subscribed == options.books, 60.0):
                raise SystemExit(
                    f"only {keepers.subscribed} of {options.books} subscribed to books"
                )
            crowd.fresh()
            used_s, begun_s = server.processor_s(), time.monotonic()
            started_at_s = await self.player.start()
            for kind in (TRADE, VALUE, BOOK):
                reader.due(kind, *self.played.due(kind, started_at_s))
            late_s = await self._play(crowd, reader)
            used_s = server.processor_s() - used_s
            taken_s = time.monotonic() - begun_s
            await until(keepers.arrived, LATE_S_MAX)  # their thread may be behind the other
            keepers.finish()
            heard = server.heard()
            stats = crowd.stats
            self._judge(crowd, stats, keepers, heard)
            reader.close()
        return {
            "seconds": round(taken_s, 1),
            "clients": options.clients,
            "books_kept": options.books,
            "deliveries": stats.deliveries + keepers.updates + keepers.trades,
            "deliveries_per_s": round((stats.deliveries + keepers.updates) / taken_s),
            "p50_ms": stats.percentile_ms(0.5),
            "p99_ms": stats.percentile_ms(0.99),
            **self._before_us(heard, started_at_s + late_s),
            "market_late_s": round(late_s, 3),
            "conflated": stats.conflated,
            "gaps": stats.gaps,
            "told_gaps": stats.told_gaps + keepers.told_gaps,
            "malformed": stats.malformed,
            "closed": stats.closed,
            "book_updates": keepers.updates,
            "checkpoints": keepers.checkpoints,
            "server_busy": round(used_s / taken_s, 2),
            "faults": len(self.faults),
        }

    async def _play(self, crowd: world.Crowd, reader: CompiledReader) -> float:
        """Read until everything has arrived; how far the player fell behind."""
        until_s = time.monotonic() + self.played.seconds + LATE_S_MAX
        quiet = late_s = 0.0
        while time.monotonic() < until_s and quiet < 2.0:
            before = crowd.stats.deliveries
            await asyncio.to_thread(reader.run, 0.5, crowd.stats)
            if (now_s := self.player.late_s()) != late_s:
                late_s = now_s
                reader.shift(round(late_s * 1e6))
            still = self.player.finished and crowd.stats.deliveries == before
            quiet = quiet + 0.5 if still else 0.0
        return late_s

    def _judge(
        self, crowd: world.Crowd, stats: Stats, keepers: Keepers, heard: list[tuple[int, float]]
    ) -> None:
        """What is not as it must be."""
        faults, markets = self.faults, self.played.markets.values()
        faults += keepers.faults
        if stats.gaps or stats.malformed:
            faults.append(f"{stats.gaps} gaps, {stats.malformed} malformed, first: {stats.note!r}")
        if stats.closed:
            faults.append(f"{stats.closed} connections were closed: {stats.close_code}")
        recorded = sorted(number for market in markets for number, _ in market.trades)
        if sorted(number for number, _ in heard) != recorded:
            faults.append(f"the server heard {len(heard)} trades of {len(recorded)}")
        if not stats.told_gaps and not keepers.told_gaps:
            trades = len(recorded) * self.options.books
            if keepers.trades != trades:
                faults.append(f"the books' clients were told {keepers.trades} trades of {trades}")
            # Each told value counts itself and what it stands for; the first of each client does
            # not. A book's window may be unchanged by an update: those are not told.
            least = sum(len(market.trades) + len(market.values) - 1 for market in markets)
            if stats.deliveries + stats.conflated < least * len(crowd.indexes):
                faults.append(f"{stats.deliveries} deliveries are less than was recorded")

    def _before_us(self, heard: list[tuple[int, float]], started_at_s: float) -> dict[str, float]:
        """How late trades already were when the server heard of them."""
        at_ns = dict(trade for market in self.played.markets.values() for trade in market.trades)
        late_ms = [
            1000 * (at_s - started_at_s - (at_ns[number] - self.played.begun_ns) / 1e9)
            for number, at_s in heard
            if number in at_ns
        ]
        if len(late_ms) < 2:
            return {}
        shares = quantiles(late_ms, n=100)
        return {"heard_p50_ms": round(shares[49], 1), "heard_p99_ms": round(shares[98], 1)}


async def run(options: Any) -> int:
    why = recording.missing()
    if why is not None:
        print(f"skipped: {why}")
        print(json.dumps({"skipped": why}))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="tbot-bench-"))
    try:
        played = Recording(recording.cut(directory, options.seconds))
        played.read()
        async with database() as postgres, recording.player(played) as player:
            one = Run(played, player, postgres.dsn("app"), options)
            line = await one.go()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for name, value in line.items():
        print(f"{name:>18}  {value}")
    for fault in one.faults[:20]:
        print(f"FOUND {fault}")
    print(json.dumps(line))
    return 1 if one.faults else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help=f"of the recording; {WHOLE_S:g} is all of it"
    )
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--books", type=int, default=100, help="of them, who keep the books")
    options = parser.parse_args()
    world.raise_files_limit()
    pin(LOAD_CORE)
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
