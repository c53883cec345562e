"""Orders over the stream beside the same orders over HTTP, in the same server.

    make bench-stream_orders     ARGS="--seconds 4 --rounds 3"

API on core 0; Postgres and the load on core 1; the gateway is off. The ways take turns within each
round, and the figures are medians over the rounds. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from bench_orders import MANY, Orders, compare, middle
from writepath import place
from writepath.firing import Shots
from writepath.place import Server
from writepath.talking import encoded, frame, talk

IN_BATCH = 16
LIMITS = {
    "TBOT_STREAM__ORDERS_PER_S_MAX": 10**9,
    "TBOT_STREAM__ORDERS_IN_FLIGHT_MAX": 10**6,
}
"""The limits are not what is measured."""


class Talk:
    """The same orders as `Orders`, as messages."""

    def __init__(self, server: Server, accounts: list[str], packed: bool = False) -> None:
        self._server = server
        self._accounts = accounts
        self._packed = packed
        self._next = 10**10

    def _order(self, number: int) -> dict[str, Any]:
        return {
            "account_id": self._accounts[number % len(self._accounts)],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.00125",
            "limit_price": "30000.01",
            "time_in_force": "gtc",
            "client_order_id": f"talk-{self._packed:d}-{number:014d}",
        }

    def one(self, number: int) -> bytes:
        """A message with one order."""
        return self._frame({"op": "place", "id": number, "order": self._order(number)})

    def many(self, number: int) -> bytes:
        """A message with several."""
        first = number * IN_BATCH
        orders = [self._order(first + n) for n in range(IN_BATCH)]
        return self._frame({"op": "place", "id": number, "orders": orders})

    def _frame(self, message: dict[str, Any]) -> bytes:
        return frame(encoded(message, self._packed), self._packed)

    def talk(self, connections: int, depth: int, seconds: float, each: int = 1) -> Shots:
        """One stretch of load."""
        shots, self._next = talk(
            self._server.port,
            self._server.token,
            connections,
            depth,
            seconds,
            self.one if each == 1 else self.many,
            self._next,
            each,
            self._packed,
        )
        return shots


async def main(options: argparse.Namespace) -> dict[str, Any]:
    pinned = place.pin(place.LOAD_CORE)
    async with place.database() as server:
        dsn = server.dsn("app")
        print("Postgres:", await place.durability(dsn))
        print("cores:", "API on 0; Postgres and load on 1" if pinned else "not pinned")
        with place.serving("ours", dsn, accounts=64, environment=LIMITS) as ours:
            accounts, seconds = ours.facts["accounts"], options.seconds
            http = Orders(ours, accounts)
            text, batches = Talk(ours, accounts), Talk(ours, accounts)
            packed = Talk(ours, accounts, packed=True)
            batches._next = 10**11
            runs: dict[str, tuple[Server, Callable[[], Shots]]] = {
                f"HTTP, {MANY} connections": (ours, lambda: http.fire(MANY, seconds)),
                f"stream, {MANY} connections": (ours, lambda: text.talk(MANY, 1, seconds)),
                "stream, 4 connections, 32 deep": (ours, lambda: text.talk(4, 32, seconds)),
                "msgpack, 4 connections, 32 deep": (ours, lambda: packed.talk(4, 32, seconds)),
                f"stream, 8 messages of {IN_BATCH}": (
                    ours,
                    lambda: batches.talk(4, 2, seconds, IN_BATCH),
                ),
                "HTTP, one at a time": (ours, lambda: http.fire(1, seconds)),
                "stream, one at a time": (ours, lambda: text.talk(1, 1, seconds)),
            }
            found = list((await compare(server.dsn("superuser"), runs, options.rounds)).values())
    per_s = [round(middle(shots, lambda s: s.per_s)) for shots in found]
    return {
        "http_orders_per_s": per_s[0],
        "stream_orders_per_s": per_s[1],
        "ratio_http": round(per_s[1] / per_s[0], 2),
        "deep_orders_per_s": per_s[2],
        "msgpack_orders_per_s": per_s[3],
        "batch_orders_per_s": per_s[4],
        "http_p50_single_ms": round(middle(found[5], lambda s: s.ms(50)), 3),
        "stream_p50_single_ms": round(middle(found[6], lambda s: s.ms(50)), 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of one stretch.")
    parser.add_argument("--rounds", type=int, default=3)
    print(json.dumps(asyncio.run(main(parser.parse_args()))))
