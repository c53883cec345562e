"""A customer's orders while the server is flooded.

    make bench-flood             ARGS="--seconds 20 --rounds 2"

The API runs on core 0 with every limit as it is by default; Postgres, the customer and the flood on
core 1. The customer places orders at a steady pace over one connection, first in peace, then under
a thousand connections of slow heads, slow bodies, junk, failing logins, oversized bodies, bad
tokens and paths that are none, from sixteen addresses (`bench/flood/attack.py`: bounded in rate and
time, ends by itself). An order's time counts from when it was due, so waiting is not hidden.

The database lies in memory unless `--disk` is given: what a disk takes for a commit is the same
with and without a flood, and on a machine that shares one it hides everything else. Prints a table
and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from writepath import place
from writepath.firing import NUMBER, WrongAnswer, post
from writepath.place import HERE, REPOSITORY, Server

from tbot.core.limit_settings import LimitSettings

PATH = "/v1/orders"
BAR_MS = 25.0
MEMORY_MIB_MAX = 128.0
"""What a flood may add: 4,096 connections with a full buffer each would be more."""


@dataclass
class Stretch:
    """A while of a customer's orders."""

    latencies_ms: list[float] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)
    memory_mib: float = 0.0

    def ms(self, percent: int) -> float:
        """A percentile."""
        return quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]


class Customer:
    """One who behaves: orders at a steady pace over one connection."""

    def __init__(self, server: Server, per_s: float) -> None:
        self._server = server
        self._every_s = 1.0 / per_s
        self._number = 0
        body = {
            "account_id": server.facts["accounts"][0],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.00125",
            "limit_price": "30000.01",
            "client_order_id": "flood-" + (NUMBER % 0).decode(),
        }
        whole = post(server.port, PATH, server.token, json.dumps(body).encode())
        self._before, self._after = whole.split(NUMBER % 0)
        self._socket = socket.create_connection(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(30.0)

    def order(self, seconds: float, into: Stretch) -> None:
        """Place orders for a while."""
        begun_s = time.perf_counter()
        for turn in range(int(seconds / self._every_s)):
            due_s = begun_s + turn * self._every_s
            early_s = due_s - time.perf_counter()
            if early_s > 0:
                time.sleep(early_s)
            self._number += 1
            self._socket.sendall(self._before + NUMBER % self._number + self._after)
            status = self._answer()
            into.latencies_ms.append((time.perf_counter() - due_s) * 1000)
            if status != "201":
                into.refused[status] = into.refused.get(status, 0) + 1

    def _answer(self) -> str:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._more()
        end = received.index(b"\r\n\r\n") + 4
        at = received.lower().index(b"content-length:") + 15
        length = int(received[at : received.index(b"\r\n", at)])
        while len(received) < end + length:
            received += self._more()
        return received[9:12].decode("ascii")

    def _more(self) -> bytes:
        received = self._socket.recv(65_536)
        if not received:
            raise WrongAnswer("the server closed the customer's connection")
        return received


def memory_mib(server: Server) -> float:
    """Resident memory of the server."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def watched(server: Server, customer: Customer, seconds: float) -> Stretch:
    """A stretch of orders, with the most memory that the server had meanwhile."""
    stretch = Stretch()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            stretch.memory_mib = max(stretch.memory_mib, memory_mib(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        customer.order(seconds, stretch)
    finally:
        done.set()
        watcher.join()
    return stretch


def flooded(
    server: Server, customer: Customer, seconds: float, connections: int
) -> tuple[Stretch, dict[str, int]]:
    """A stretch under a flood, and what the flood was told."""
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY / 'src'}:{HERE.parent}"}
    flood = subprocess.Popen(
        [
            sys.executable, "-m", "flood.attack",
            str(server.port), str(seconds + 3.0), str(connections),
        ],
        stdout=subprocess.PIPE,
        env=environment,
    )  # fmt: skip
    try:
        time.sleep(3.0)  # until they are all there
        stretch = watched(server, customer, seconds)
        out, _ = flood.communicate(timeout=60)
    finally:
        flood.kill()
        flood.wait()
    return stretch, json.loads(out)


def told(name: str, stretch: Stretch) -> None:
    """One line of the table."""
    print(
        f"  {name:8s} {len(stretch.latencies_ms):6d} orders   p50 {stretch.ms(50):7.2f} ms"
        f"   p99 {stretch.ms(99):7.2f} ms   most {max(stretch.latencies_ms):7.2f} ms"
        f"   refused {sum(stretch.refused.values())}   memory {stretch.memory_mib:6.1f} MiB",
        flush=True,
    )


def together(stretches: list[Stretch]) -> Stretch:
    """All of them as one."""
    whole = Stretch()
    for each in stretches:
        whole.latencies_ms += each.latencies_ms
        whole.memory_mib = max(whole.memory_mib, each.memory_mib)
        for status, count in each.refused.items():
            whole.refused[status] = whole.refused.get(status, 0) + count
    return whole


def defaults() -> dict[str, str]:
    """The rate limits as they are for everybody."""
    settings = LimitSettings()
    names = ("address", "user", "key", "orders", "cancels", "writes")
    return {f"TBOT_LIMITS__{name.upper()}": getattr(settings, name) for name in names}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--seconds", type=float, default=20.0, help="of one stretch")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--per-s", type=float, default=100.0, help="orders of the customer")
    parser.add_argument("--connections", type=int, default=1000, help="of the flood")
    parser.add_argument("--disk", action="store_true", help="the database on disk, not in memory")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 16_384), most))
    place.pin(place.LOAD_CORE)
    async with place.database(memory=not options.disk) as database:
        dsn = database.dsn("app")
        durability = await place.durability(dsn)
        quiet: list[Stretch] = []
        loud: list[Stretch] = []
        attack: dict[str, int] = {}
        with place.serving("ours", dsn, accounts=1, environment=defaults()) as server:
            customer = Customer(server, options.per_s)
            await asyncio.to_thread(customer.order, 2.0, Stretch())
            for number in range(options.rounds):
                print(f"round {number + 1} of {options.rounds}")
                quiet.append(await asyncio.to_thread(watched, server, customer, options.seconds))
                told("quiet", quiet[-1])
                before_s = server.processor_s()
                stretch, said = await asyncio.to_thread(
                    flooded, server, customer, options.seconds, options.connections
                )
                loud.append(stretch)
                told("flooded", stretch)
                spent = (server.processor_s() - before_s) / (options.seconds + 3.0)
                print(f"  the server was {spent:.0%} of its core busy")
                for name, count in said.items():
                    attack[name] = attack.get(name, 0) + count
    for name, count in sorted(attack.items()):
        print(f"    {name:28s} {count:8d}")
    print(json.dumps(result(together(quiet), together(loud), durability, options.connections)))


def result(
    quiet: Stretch, loud: Stretch, durability: dict[str, str], connections: int
) -> dict[str, Any]:
    """The line of JSON."""
    bar_ms = max(2 * quiet.ms(99), BAR_MS)
    grown_mib = loud.memory_mib - quiet.memory_mib
    return {
        "bench": "flood",
        "quiet_p99_ms": round(quiet.ms(99), 2),
        "flood_p99_ms": round(loud.ms(99), 2),
        "flood_p50_ms": round(loud.ms(50), 2),
        "bar_ms": round(bar_ms, 2),
        "within": loud.ms(99) <= bar_ms,
        "orders": len(loud.latencies_ms),
        "orders_refused": loud.refused,
        "connections": connections,
        "memory_quiet_mib": round(quiet.memory_mib, 1),
        "memory_flood_mib": round(loud.memory_mib, 1),
        "memory_bounded": grown_mib <= MEMORY_MIB_MAX,
        "durability": durability,
    }


if __name__ == "__main__":
    asyncio.run(main())
