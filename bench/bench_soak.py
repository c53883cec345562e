"""Churn: clients connect, subscribe, stall and drop, for as long as one likes; nothing may grow.

    make bench-soak              ARGS="--seconds 1800"

After each generation everybody leaves: then memory, tasks and file descriptors of the server are
read. The first third of the time is for warming up. Memory is flat when the median of the last
readings is not above that of the first ones by more than it may be: single readings scatter with
what the allocator has given back at that moment. Ends with one line of JSON; exit code 1 when
memory grew, or anything was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from fanout import world
from fanout.reader import Stats, open_reader
from writepath.place import LOAD_CORE, database, pin

CLIENTS = 400
SYMBOLS = 20
CHANNELS = 5
RING_BYTES = 32_768
"""Small, so that the rings are full when the clock starts."""
RATE = 2000.0
CHANGING = 4
"""Who subscribe to something else, four times a second."""
GROWTH_MAX = 0.03
"""Of the memory after warming up."""
POINTS_MIN = 4
FILES_KEPT = 8
"""Connections to the database that a pool opened in between, and may keep for a while."""


class Churn:
    """A crowd whose members come and go."""

    def __init__(self, server: world.Server, seed: int) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.seen = Stats()
        self.left = 0
        self.joined = 0
        self.changed = 0
        self.closed = 0
        answer = server.answer()
        self.tasks: int = answer["tasks"]
        """Before anybody came."""
        self.files: int = answer["files"]

    def round(self, seconds: float) -> None:
        """One generation: all connect, some stall, some drop without a word, then all leave."""
        reader = open_reader(CLIENTS)
        wishes = world.random_channels(
            SYMBOLS, CHANNELS, self.server.facts["accounts"], self.random.randrange(1 << 30)
        )
        small = frozenset(self.random.sample(range(CLIENTS), CLIENTS // 20))
        self.server.order(do="publish", rate=RATE, seconds=seconds + 10.0)
        self.server.order(do="private", rate=20.0, seconds=seconds)
        crowd = world.gather(self.server, CLIENTS, wishes, reader=reader, small=small)
        self.joined += CLIENTS
        for index in small:
            reader.pause(index, True)
        gone: set[int] = set()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            crowd.reader.run(0.25, crowd.stats)
            leaving = self.random.randrange(CLIENTS)
            reader.drop(leaving)
            gone.add(leaving)
            self.left += 1
            for index in self.random.sample(range(CLIENTS), CHANGING):
                if index not in gone | small and reader.is_open(index):
                    crowd.say(index, {"op": "unsub", "chs": "*"})
                    other = index + world.USERS * self.random.randrange(CLIENTS)
                    crowd.say(index, {"op": "sub", "channels": wishes(other % CLIENTS)})
                    self.changed += 1
        for index in small:
            reader.pause(index, False)
        crowd.reader.run(1.0, crowd.stats)
        crowd.stats.require_sound("churning")
        self.seen.deliveries += crowd.stats.deliveries
        self.seen.private_deliveries += crowd.stats.private_deliveries
        self.seen.told_gaps += crowd.stats.told_gaps
        self.closed += crowd.stats.closed
        reader.close()

    def calm(self) -> dict[str, Any]:
        """What the server holds when nobody is there, and the last of them have been seen off."""
        end = time.monotonic() + 60
        while (answer := self.server.answer())["hub"]["clients"] or answer["publishing"]:
            if time.monotonic() > end:
                raise SystemExit(f"not everything ended: {answer}")
            time.sleep(0.25)
        end = time.monotonic() + 10
        while self.left_behind(answer := self.server.answer()) and time.monotonic() < end:
            time.sleep(0.25)
        return {
            "pss_kib": self.server.pss_kib(),
            "tasks": answer["tasks"],
            "files": answer["files"],
        }

    def left_behind(self, answer: dict[str, Any]) -> bool:
        """Whether the server holds more than before anybody came, and what its pools keep."""
        return answer["tasks"] > self.tasks or answer["files"] > self.files + FILES_KEPT


def ends(values: list[int]) -> tuple[float, float]:
    """Medians of the first and of the last fifth, of three values at least."""
    count = max(3, len(values) // 5)
    return median(values[:count]), median(values[-count:])


def measure(dsn: str, options: Any) -> int:
    with world.serving(
        "ours",
        dsn,
        clients=CLIENTS,
        symbols=SYMBOLS,
        accounts=CLIENTS,
        stream={"queue_bytes_max": RING_BYTES},
    ) as server:
        churn = Churn(server, options.seed)
        started_s, rounds = time.monotonic(), 0
        points: list[dict[str, Any]] = []
        while time.monotonic() - started_s < options.seconds or len(points) < POINTS_MIN:
            passed_s = time.monotonic() - started_s
            churn.round(options.round)
            rounds += 1
            if passed_s >= options.seconds / 3:
                points.append(churn.calm())
                print(f"{time.monotonic() - started_s:8.0f} s  {points[-1]}", flush=True)
        warm_kib, end_kib = ends([point["pss_kib"] for point in points])
        growth = end_kib / warm_kib - 1
        sound = growth <= GROWTH_MAX and not churn.left_behind(points[-1])
        line = {
            "seconds": round(time.monotonic() - started_s),
            "rounds": rounds,
            "connected": churn.joined,
            "changed_subscriptions": churn.changed,
            "dropped_by_client": churn.left,
            "closed_by_server": churn.closed,
            "deliveries": churn.seen.deliveries,
            "private_deliveries": churn.seen.private_deliveries,
            "told_gaps": churn.seen.told_gaps,
            "warm_kib": round(warm_kib),
            "end_kib": round(end_kib),
            "growth_share": round(growth, 4),
            "tasks": [churn.tasks, points[-1]["tasks"]],
            "files": [churn.files, points[-1]["files"]],
            "sound": sound,
        }
        print(json.dumps(line))
        return 0 if sound else 1


async def run(options: Any) -> int:
    async with database() as postgres:
        return await asyncio.to_thread(measure, postgres.dsn("app"), options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--round", type=float, default=8.0, help="seconds that a generation lives")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    world.raise_files_limit()
    pin(LOAD_CORE)
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
