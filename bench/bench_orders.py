"""Durable orders over HTTP, beside an endpoint that does nothing and a transaction per request.

    make bench-orders            ARGS="--seconds 4 --rounds 3"

API processes run on core 0; Postgres and the load generator on core 1. The compared servers take
turns within each round, and the figures are medians over the rounds. Prints a table and ends with
one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from writepath import place
from writepath.firing import NUMBER, WARM_S, Shots, fire, post
from writepath.place import Server

from tbot.db.embedded import EmbeddedPostgres

PATH = "/v1/orders"
MANY = 128


class Orders:
    """Limit orders that rest far below the market, each under a client id of its own."""

    def __init__(self, server: Server, accounts: list[str], time_in_force: str = "gtc") -> None:
        self._server = server
        self._next = 0
        self._parts = [self._split(account, time_in_force) for account in accounts]

    def _split(self, account: str, time_in_force: str) -> tuple[bytes, bytes]:
        body = {
            "account_id": account,
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.00125",
            "limit_price": "30000.01",
            "time_in_force": time_in_force,
            "client_order_id": "bench-" + (NUMBER % 0).decode(),
        }
        whole = post(
            self._server.port,
            PATH,
            self._server.token,
            json.dumps(body).encode(),
            "Accept: */*\r\n",
        )
        before, after = whole.split(b"bench-" + NUMBER % 0)
        return before + b"bench-", after

    def request(self, number: int) -> bytes:
        """The bytes of order number n; accounts take turns."""
        before, after = self._parts[number % len(self._parts)]
        return before + NUMBER % number + after

    def fire(self, connections: int, seconds: float) -> Shots:
        """One stretch of load."""
        shots, self._next = fire(self._server.port, connections, seconds, self.request, self._next)
        return shots


class Watch:
    """Processor time of a server and of Postgres, from its making on."""

    def __init__(self, server: Server, database: EmbeddedPostgres) -> None:
        self._server, self._database = server, database
        self._server_s = server.processor_s()
        self._database_s = place.database_processor_s(database)

    def spent_s(self) -> tuple[float, float]:
        """The server's and Postgres'."""
        return (
            self._server.processor_s() - self._server_s,
            place.database_processor_s(self._database) - self._database_s,
        )


def told(name: str, shots: Shots, watch: Watch) -> None:
    """One line of the table; the processor columns tell who was the bottleneck."""
    spent_s, database_s = watch.spent_s()
    lasted_s = shots.seconds + WARM_S
    firing = shots.processor_s / shots.seconds
    print(
        f"  {name:34s} {shots.per_s:8.0f}/s   p50 {shots.ms(50):7.2f} ms"
        f"   p99 {shots.ms(99):7.2f} ms"
        f"   server {spent_s / lasted_s:4.0%}, {spent_s / shots.served * 1e6:4.0f} µs each"
        f"   Postgres {database_s / lasted_s:4.0%}, {database_s / shots.served * 1e6:4.0f} µs"
        f"   generator {firing:4.0%}",
        flush=True,
    )


async def compare(
    database: EmbeddedPostgres, runs: dict[str, tuple[Server, Callable[[], Shots]]], rounds: int
) -> dict[str, list[Shots]]:
    """Each run once per round, in turn."""
    found: dict[str, list[Shots]] = {name: [] for name in runs}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}")
        for name, (server, run) in runs.items():
            await place.calm(database.dsn("superuser"))
            watch = Watch(server, database)
            shots = await asyncio.to_thread(run)
            told(name, shots, watch)
            found[name].append(shots)
    return found


def middle(shots: list[Shots], of: Callable[[Shots], float]) -> float:
    """The median of a figure over the rounds."""
    return median(of(each) for each in shots)


async def gateway_off(database: EmbeddedPostgres, options: argparse.Namespace) -> dict[str, Any]:
    """All but the venue: the comparisons."""
    dsns = await place.copies(database, "stock", "uncached", "ours", "one_each")
    with (
        place.serving("stock", dsns[0], path=PATH, cached=True) as stock,
        place.serving("stock", dsns[1], path=PATH, cached=False) as uncached,
        place.serving("ours", dsns[2], accounts=64) as ours,
        place.serving("one_transaction", dsns[3], accounts=8) as each,
    ):
        accounts = ours.facts["accounts"]
        nobody = ["00000000-0000-7000-8000-000000000000"]
        many = Orders(ours, accounts[1:])
        hot = Orders(ours, accounts[:1])
        each_hot = Orders(each, each.facts["accounts"][:1])
        each_many = Orders(each, each.facts["accounts"][1:])
        plain, slow = Orders(stock, nobody), Orders(uncached, nobody)
        many._next = 10**9
        each_many._next = 10**9
        seconds = options.seconds
        runs: dict[str, tuple[Server, Callable[[], Shots]]] = {
            "stock": (stock, lambda: plain.fire(MANY, seconds)),
            "ours": (ours, lambda: many.fire(MANY, seconds)),
            "stock, no token cache": (uncached, lambda: slow.fire(MANY, seconds)),
            "one hot account, ours": (ours, lambda: hot.fire(MANY, seconds)),
            "one hot account, transaction each": (each, lambda: each_hot.fire(MANY, seconds)),
            "one connection, ours": (ours, lambda: many.fire(1, seconds)),
            "one connection, transaction each": (each, lambda: each_many.fire(1, seconds)),
            "transaction each": (each, lambda: each_many.fire(MANY, seconds)),
        }
        if options.only:
            runs = {name: run for name, run in runs.items() if name in options.only.split("+")}
        found = await compare(database, runs, options.rounds)
        if options.only:
            return {}

    def per_s(name: str) -> float:
        return middle(found[name], lambda s: s.per_s)

    def ratio(name: str, to: str, of: Callable[[Shots], float]) -> float:
        # Round by round, and then the median: what disturbs the machine lasts longer than a round.
        pairs = zip(found[name], found[to], strict=True)
        return round(median(of(one) / of(other) for one, other in pairs), 2)

    def speed(shots: Shots) -> float:
        return shots.per_s

    return {
        "orders_per_s": round(per_s("ours")),
        "ratio_stock": ratio("ours", "stock", speed),
        "ratio_stock_uncached": ratio("ours", "stock, no token cache", speed),
        "ratio_hot_account": ratio(
            "one hot account, ours", "one hot account, transaction each", speed
        ),
        "ratio_p50_single": ratio(
            "one connection, ours", "one connection, transaction each", lambda s: s.ms(50)
        ),
        "p50_ms": round(middle(found["ours"], lambda s: s.ms(50)), 2),
        "p99_ms": round(middle(found["ours"], lambda s: s.ms(99)), 2),
        "stock_per_s": round(per_s("stock")),
        "hot_per_s": round(per_s("one hot account, ours")),
        "p50_single_ms": round(middle(found["one connection, ours"], lambda s: s.ms(50)), 3),
        "ratio_one_transaction": ratio("ours", "transaction each", speed),
    }


async def gateway_on(database: EmbeddedPostgres, options: argparse.Namespace) -> dict[str, Any]:
    """The same orders with the gateway in the same process, sending them to the paper exchange.

    Immediate-or-cancel far from the market: the exchange answers each at once, and each order is
    two commands more than without a gateway: its acknowledgement and its end.
    """
    async with place.exchange() as access:
        environment = {"TBOT_GATEWAY__IN_FLIGHT_MAX": 2048}
        with place.serving(
            "ours", database.dsn("app"), accounts=64, exchange=access, environment=environment
        ) as ours:
            orders = Orders(ours, ours.facts["accounts"], "ioc")
            found = []
            for number in range(options.rounds):
                watch = Watch(ours, database)
                shots = await asyncio.to_thread(orders.fire, MANY, options.seconds)
                told(f"gateway on, round {number + 1}", shots, watch)
                found.append(shots)
    return {
        "gateway_on_orders_per_s": round(middle(found, lambda s: s.per_s)),
        "gateway_on_p50_ms": round(middle(found, lambda s: s.ms(50)), 2),
        "gateway_on_p99_ms": round(middle(found, lambda s: s.ms(99)), 2),
    }


async def main(options: argparse.Namespace) -> dict[str, Any]:
    pinned = place.pin(place.LOAD_CORE)
    async with place.database() as server:
        print("Postgres:", await place.durability(server.dsn("app")))
        print("cores:", "API on 0; Postgres and load on 1" if pinned else "not pinned")
        figures = {}
        if options.gateway != "only":
            figures = await gateway_off(server, options)
    if options.gateway != "off":
        # On a database of its own: a gateway would first ask the venue for every order that the
        # other part left unsent.
        async with place.database() as server:
            figures |= await gateway_on(server, options)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of one stretch.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gateway", choices=["both", "off", "only"], default="both")
    parser.add_argument("--only", default="", help="Names of runs, joined by +; no figures then.")
    print(json.dumps(asyncio.run(main(parser.parse_args()))))
