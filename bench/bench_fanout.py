"""Every tick to every client: the stream beside a naive broadcast and, where there is one, NATS.

    make bench-fanout            ARGS="--seconds 5 --rounds 3"

The server runs on core 0; the client, and Postgres, on core 1. Every frame is parsed and every
sequence checked: a gap fails the run. The compared servers take turns, and figures are medians over
the rounds. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from fanout import nats, world
from fanout.reader import Stats, open_reader
from fanout.world import Crowd
from writepath.place import LOAD_CORE, database, pin

WARM_UP_S = 1.0


def measured(crowd: Crowd, rate: float, seconds: float, clients: int) -> dict[str, Any]:
    """Publish for a while and read; what came in the middle of it."""
    server = crowd.server
    server.order(do="publish", rate=rate, seconds=WARM_UP_S + seconds + 0.5)
    crowd.run(WARM_UP_S).require_sound("warming up")
    used_s, started_s = server.processor_s(), time.monotonic()
    stats = crowd.run(seconds)
    taken_s = time.monotonic() - started_s
    used_s = server.processor_s() - used_s
    rest = crowd.run(1.5)
    for part in (stats, rest):
        part.require_sound("measuring")
    return figures(stats, rate * clients, taken_s) | {
        "server_busy": round(used_s / taken_s, 2),
        "deliveries_per_core_s": round(stats.deliveries / max(used_s, 0.01)),
        "closed": stats.closed + rest.closed,
    }


def figures(stats: Stats, offered_per_s: float, seconds: float) -> dict[str, Any]:
    """What a stretch of reading amounts to."""
    per_s = stats.deliveries / seconds
    return {
        "deliveries_per_s": round(per_s),
        "delivered_share": round(min(1.0, per_s / offered_per_s), 4),
        "p50_ms": stats.percentile_ms(0.5),
        "p99_ms": stats.percentile_ms(0.99),
        "bytes_per_read": round(stats.bytes / max(1, stats.reads)),
        "private_per_s": round(stats.private_deliveries / seconds),
        "told_gaps": stats.told_gaps,
    }


def fan_out(kind: str, dsn: str, clients: int, rate: float, options: Any) -> dict[str, Any]:
    """One channel, everybody reads it."""
    with world.serving(kind, dsn, clients=clients) as server:
        wishes = world.one_trade_channel if kind == "ours" else None
        crowd = world.gather(server, clients, wishes, plain=options.plain)
        return measured(crowd, rate, options.seconds, clients)


def of_nats(options: Any) -> dict[str, Any] | None:
    """The same through nats-server, where there is one."""
    path = nats.program()
    if path is None:
        return None
    with nats.broker(path) as server:
        crowd = nats.gather(server, options.clients)
        return measured(crowd, options.rate, options.seconds, options.clients)


def mixed(dsn: str, options: Any) -> dict[str, Any]:
    """Random 20 of 200 channels each, and private events among them."""
    clients, symbols, each = options.mixed, 200, 20
    with world.serving("ours", dsn, clients=clients, symbols=symbols, accounts=clients) as server:
        wishes = world.random_channels(symbols, each, server.facts["accounts"], options.seed)
        crowd = world.gather(server, clients, wishes, plain=options.plain)
        rate = options.mixed_rate
        server.order(do="private", rate=options.private_rate, seconds=WARM_UP_S + options.seconds)
        return measured(crowd, rate, options.seconds, clients * each / symbols)


def idle(dsn: str, options: Any) -> dict[str, Any]:
    """Memory of connections that only keep their heartbeats, and that none is lost."""
    clients = options.idle
    with world.serving("ours", dsn, clients=clients) as server:
        # What the first clients make the process load is not a client's.
        reader = open_reader(clients + 64, plain=options.plain)
        world.gather(server, 64, world.one_trade_channel, reader=reader)
        server.answer()
        before_kib = server.pss_kib()
        crowd = world.gather(server, clients, world.one_trade_channel, reader=reader, first=64)
        stats = crowd.run(options.hold)
        server.answer()
        grown_kib = server.pss_kib() - before_kib
        answer = server.answer()
        return {
            "clients": clients,
            "held_s": options.hold,
            "kib_per_idle_client": round(grown_kib / clients, 2),
            "dropped": stats.closed,
            "pings": stats.pings,
            "tasks": answer["tasks"],
        }


def stalled(dsn: str, options: Any) -> dict[str, Any]:
    """One in a hundred stops reading: what the others notice, and what it costs.

    In each pair the same clients are measured twice, the second time with some of them stalled;
    these then read again, and have to go on correctly: a gap that is told, or none at all. Their
    own receive buffers are small, so that the server is what they stall.
    """
    clients = options.clients
    few = list(range(0, clients, 100))
    pairs: list[dict[str, Any]] = []
    with world.serving("ours", dsn, clients=clients) as server:
        crowd = world.gather(
            server, clients, world.one_trade_channel, plain=options.plain, small=frozenset(few)
        )
        idle_kib, told = server.pss_kib(), 0
        for _ in range(options.pairs):
            plain = measured(crowd, options.rate, options.seconds, clients)
            server.order(do="publish", rate=options.rate, seconds=options.seconds + 3.0)
            for index in few:
                crowd.reader.pause(index, True)
            crowd.run(1.0).require_sound("stalling")
            with_few = crowd.run(options.seconds)
            answer = server.answer(collect=False)
            grown_kib = server.pss_kib() - idle_kib
            for index in few:
                crowd.reader.pause(index, False)
            after = crowd.run(4.0)
            for part in (with_few, after):
                part.require_sound("stalled")
            told += after.told_gaps
            numbers = {crowd.reader.newest(index) for index in crowd.indexes}
            pairs.append(
                {
                    "p99_ms": plain["p99_ms"],
                    "p99_ms_beside_stalled": with_few.percentile_ms(0.99),
                    "ratio": round((with_few.percentile_ms(0.99) or 0) / plain["p99_ms"], 2),
                    "buffered_bytes_max": answer["hub"]["buffered_bytes_max"],
                    "grown_kib": grown_kib,
                    "closed": with_few.closed + after.closed,
                    "told_gaps": after.told_gaps,
                    "at_the_end_together": len(numbers) == 1,
                }
            )
            show("stalled, a pair", pairs[-1])
    if not all(pair["at_the_end_together"] for pair in pairs):
        raise SystemExit("some who had stalled did not arrive where the others are")
    return {"stalled": len(few), "pairs": len(pairs)} | medians(
        [{k: v for k, v in pair.items() if k != "at_the_end_together"} for pair in pairs]
    )


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure over the rounds."""
    return {
        name: median(run[name] for run in runs) if runs[0][name] is not None else None
        for name in runs[0]
    }


def show(name: str, found: dict[str, Any]) -> None:
    words = "  ".join(f"{key} {value}" for key, value in found.items())
    print(f"{name:<28} {words}", flush=True)


async def run(options: Any) -> None:
    async with database() as postgres:
        dsn = postgres.dsn("app")
        await asyncio.to_thread(measure, dsn, options)


def measure(dsn: str, options: Any) -> None:
    print(f"client: {open_reader(1, plain=options.plain).kind}")
    parts = options.only.split(",") if options.only else ["many", "8000", "mixed", "idle"]
    line: dict[str, Any] = dict.fromkeys(
        (
            "deliveries_per_s", "delivered_share", "p50_ms", "p99_ms", "ratio_naive",
            "deliveries_per_s_8000", "p99_ms_8000", "kib_per_idle_client", "nats_p99_ms",
        )
    )  # fmt: skip
    if "many" in parts:
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(options.rounds):
            for kind in ("ours",) if options.alone else ("ours", "naive", "nats"):
                if kind == "nats":
                    found = of_nats(options)
                else:
                    found = fan_out(kind, dsn, options.clients, options.rate, options)
                if found is not None:
                    show(f"{kind}, {options.clients} × {options.rate:g}", found)
                    runs.setdefault(kind, []).append(found)
        ours = medians(runs["ours"])
        for name in ("deliveries_per_s", "delivered_share", "p50_ms", "p99_ms"):
            line[name] = ours[name]
        if "naive" in runs:
            naive = medians(runs["naive"])["deliveries_per_s"]
            line["ratio_naive"] = round(ours["deliveries_per_s"] / naive, 1)
        if "nats" in runs:
            line["nats_p99_ms"] = medians(runs["nats"])["p99_ms"]
    if "stalled" in parts:
        found = stalled(dsn, options)
        show("ours, stalled", found)
        line = found if options.stalled else line
    if "8000" in parts:
        crowd = fan_out("ours", dsn, options.crowd, options.crowd_rate, options)
        show(f"ours, {options.crowd} × {options.crowd_rate:g}", crowd)
        line["deliveries_per_s_8000"] = crowd["deliveries_per_s"]
        line["p99_ms_8000"] = crowd["p99_ms"]
    if "mixed" in parts:
        show("ours, mixed", mixed(dsn, options))
    if "idle" in parts:
        found = idle(dsn, options)
        show("ours, idle", found)
        line["kib_per_idle_client"] = found["kib_per_idle_client"]
    print(json.dumps(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured in each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=1050.0, help="messages a second")
    parser.add_argument("--crowd", type=int, default=8000)
    parser.add_argument("--crowd-rate", type=float, default=100.0)
    parser.add_argument("--mixed", type=int, default=2000)
    parser.add_argument("--mixed-rate", type=float, default=2000.0)
    parser.add_argument("--private-rate", type=float, default=200.0)
    parser.add_argument("--idle", type=int, default=8000)
    parser.add_argument("--hold", type=float, default=10.0, help="seconds that idle ones are held")
    parser.add_argument("--only", default="", help="of many,stalled,8000,mixed,idle")
    parser.add_argument("--stalled", action="store_true", help="only what slow readers cost others")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--alone", action="store_true", help="without what it is compared to")
    parser.add_argument("--plain", action="store_true", help="the client in Python")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.stalled:
        options.only = "stalled"
    world.raise_files_limit()
    pin(LOAD_CORE)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
