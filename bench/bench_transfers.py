"""Transfers: into the committer beside a SQL function call each, over HTTP, and in bulk.

    make bench-transfers         ARGS="--seconds 4 --rounds 3"

Whatever calls or serves runs on core 0, Postgres on core 1; over HTTP, the load generator too runs
on core 1. What is compared takes turns within each round, and the figures are medians over the
rounds. Prints a table and ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import uvloop
from writepath import place, sqlfunction
from writepath.firing import NUMBER, WARM_S, Shots, fire, post
from writepath.place import Server

from tbot.boot import projections
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.settings import CommitterSettings
from tbot.db.embedded import EmbeddedPostgres
from tbot.db.pool import connect_committer
from tbot.journal.commands import SYSTEM, Accepted
from tbot.journal.committer import Committer
from tbot.ledger.entries import Limits, OpenAccount
from tbot.ledger.transfers import CreateTransfers, NewTransfer, create_transfers
from tbot.serving import settle_collector

PATH = "/v1/transfers"
ACCOUNTS = 100
PAIRS = 10_007
"""Of accounts, chosen before anything is timed."""
CALLERS = 512
"""Transfers under way at once in the process; the function has its 20 connections."""
MANY = 128
BULK = 100
BULK_CONNECTIONS = 8
ASSET = "USD"
LIMITS = Limits(
    max_order_notional=Decimal(1),
    max_open_orders=0,
    price_collar=Decimal(0),
    overdraft={ASSET: Decimal(10) ** 15},
)


async def open_accounts(committer: Committer, count: int) -> list[UUID]:
    """Cash accounts that may owe much: nothing is refused for want of money."""
    ids = [new_id() for _ in range(count)]
    for account_id in ids:
        command = OpenAccount(new_id(), SYSTEM, account_id, UUID(int=7), "bench", None, LIMITS, {})
        await committer.commit(command)
    return ids


async def in_process(
    committer: Committer,
    pairs: Sequence[tuple[UUID, UUID]],
    seconds: float,
    *,
    at_once: bool = False,
) -> float:
    """Transfers a second into the committer, between pairs of accounts in turn.

    Args:
        at_once: Callers hand over `BULK` at a time, as a bulk request does; else one.
    """
    turns = itertools.cycle(pairs)
    amount = Decimal("1.25")
    rate = 0.0

    def command() -> CreateTransfers:
        source, target = next(turns)
        new = NewTransfer(
            id=new_id(), source_id=source, target_id=target, asset=ASSET, amount=amount
        )
        return create_transfers(new_id(), SYSTEM, (new,))

    async def one_each(until_s: float) -> int:
        count = 0
        while time.perf_counter() < until_s:
            outcome = await committer.commit(command())
            assert isinstance(outcome, Accepted), outcome
            count += 1
        return count

    async def many_each(until_s: float) -> int:
        count = 0
        while time.perf_counter() < until_s:
            for outcome in await committer.commit_all([(command(), None) for _ in range(BULK)]):
                assert isinstance(outcome, Accepted), outcome
            count += BULK
        return count

    caller, callers = (many_each, BULK_CONNECTIONS) if at_once else (one_each, CALLERS)
    for stretch_s in (WARM_S, seconds):
        begun_s = time.perf_counter()
        counts = await asyncio.gather(*(caller(begun_s + stretch_s) for _ in range(callers)))
        rate = sum(counts) / (time.perf_counter() - begun_s)
    return rate


async def compare_in_process(
    server: EmbeddedPostgres, options: argparse.Namespace
) -> dict[str, list[float]]:
    """The committer, spread and on one hot account, beside the SQL function."""
    dsn, owner = server.dsn("app"), server.dsn("superuser")
    settings = CommitterSettings.model_construct()
    committer = Committer(lambda: connect_committer(dsn, settings), projections(), settings, Bus())
    plain = await sqlfunction.prepare(owner, ACCOUNTS)
    await committer.start()
    found: dict[str, list[float]] = {}
    try:
        ids = await open_accounts(committer, ACCOUNTS)
        settle_collector()

        rng = random.Random(1)
        uniform = [(*rng.sample(ids, 2),) for _ in range(PAIRS)]
        hot = [(*rng.sample((ids[0], rng.choice(ids[1:])), 2),) for _ in range(PAIRS)]
        runs: dict[str, Callable[[], Awaitable[float]]] = {
            "SQL function": lambda: sqlfunction.run(dsn, plain, options.seconds, WARM_S),
            "committer": lambda: in_process(committer, uniform, options.seconds),
            "committer, one hot account": lambda: in_process(committer, hot, options.seconds),
            "committer, a hundred at once": lambda: in_process(
                committer, uniform, options.seconds, at_once=True
            ),
        }
        for number in range(options.rounds):
            print(f"in process, round {number + 1} of {options.rounds}")
            for name, run in runs.items():
                await place.calm(owner)
                before_s, database_s = time.process_time(), place.database_processor_s(server)
                begun_s = time.perf_counter()
                rate = await run()
                lasted_s = time.perf_counter() - begun_s
                busy = (time.process_time() - before_s) / lasted_s
                theirs = (place.database_processor_s(server) - database_s) / lasted_s
                found.setdefault(name, []).append(rate)
                print(
                    f"  {name:34s} {rate:8.0f}/s   process {busy:4.0%},"
                    f" {busy / rate * 1e6:4.0f} µs each   Postgres {theirs:4.0%},"
                    f" {theirs / rate * 1e6:4.0f} µs each",
                    flush=True,
                )
    finally:
        await committer.stop()
    return found


class Requests:
    """POSTs of one transfer or of a hundred, between accounts in turn, each with a number."""

    def __init__(
        self, server: Server, accounts: list[str], each: int = 1, keyed: bool = True
    ) -> None:
        self._server = server
        self._next = 0
        self._status = b"201" if each == 1 else b"200"
        self._each = each
        self._name = "Idempotency-Key" if keyed else "X-Request-Id"
        rng = random.Random(2)
        self._parts = [self._split(accounts, rng, each) for _ in range(64)]

    def _split(self, accounts: list[str], rng: random.Random, each: int) -> tuple[bytes, bytes]:
        mark = "number-" + (NUMBER % 0).decode()
        bodies: list[dict[str, Any]] = []
        for _ in range(each):
            source, target = rng.sample(accounts, 2)
            bodies.append(
                {
                    "source_account_id": source,
                    "target_account_id": target,
                    "asset": ASSET,
                    "amount": "1.25",
                }
            )
        body: Any = bodies[0] if each == 1 else {"transfers": bodies}
        path = PATH if each == 1 else f"{PATH}/bulk"
        headers = f"Accept: */*\r\n{self._name}: {mark}\r\n"
        whole = post(
            self._server.port, path, self._server.token, json.dumps(body).encode(), headers
        )
        before, after = whole.split(mark.encode())
        return before + b"number-", after

    def _request(self, number: int) -> bytes:
        before, after = self._parts[number % len(self._parts)]
        return before + NUMBER % number + after

    def fire(self, connections: int, seconds: float) -> Shots:
        """One stretch of load."""
        shots, self._next = fire(
            self._server.port,
            connections,
            seconds,
            self._request,
            self._next,
            self._status,
            holds=(b'"status":201', self._each) if self._each > 1 else None,
        )
        return shots


async def compare_over_http(
    database: EmbeddedPostgres, options: argparse.Namespace
) -> dict[str, list[float]]:
    """One transfer a request beside the stock endpoint, and a hundred a request."""
    owner = database.dsn("superuser")
    dsns = await place.copies(database, "stock", "ours")
    with (
        place.serving("stock", dsns[0], path=PATH, cached=True) as stock,
        place.serving("ours", dsns[1], cash_accounts=ACCOUNTS) as ours,
    ):
        accounts = ours.facts["accounts"]
        nobody = [f"00000000-0000-7000-8000-{n:012d}" for n in (1, 2)]
        plain, single = Requests(stock, nobody), Requests(ours, accounts)
        unkeyed = Requests(ours, accounts, keyed=False)
        bulk = Requests(ours, accounts, BULK, keyed=False)
        bulk_keyed = Requests(ours, accounts, BULK)
        bulk_keyed._next = 10**9
        runs: dict[str, tuple[Server, int, Callable[[], Shots]]] = {
            "stock": (stock, 1, lambda: plain.fire(MANY, options.seconds)),
            "transfers": (ours, 1, lambda: single.fire(MANY, options.seconds)),
            "transfers without keys": (ours, 1, lambda: unkeyed.fire(MANY, options.seconds)),
            "bulk of 100": (ours, BULK, lambda: bulk.fire(BULK_CONNECTIONS, options.seconds)),
            "bulk of 100, a key each": (
                ours,
                BULK,
                lambda: bulk_keyed.fire(BULK_CONNECTIONS, options.seconds),
            ),
        }
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(options.rounds):
            print(f"over HTTP, round {number + 1} of {options.rounds}")
            for name, (server, each, run) in runs.items():
                await place.calm(owner)
                before_s = server.processor_s()
                shots = await asyncio.to_thread(run)
                spent_s = server.processor_s() - before_s
                found[name].append(shots.per_s * each)
                print(
                    f"  {name:34s} {shots.per_s * each:8.0f}/s   p50 {shots.ms(50):7.2f} ms"
                    f"   p99 {shots.ms(99):7.2f} ms   server"
                    f" {spent_s / (shots.seconds + WARM_S):4.0%},"
                    f" {spent_s / shots.served / each * 1e6:4.0f} µs each   generator"
                    f" {shots.processor_s / shots.seconds:4.0%}",
                    flush=True,
                )
    return found


def ratio(found: dict[str, list[float]], one: str, other: str) -> float:
    """Round by round, and then the median: what disturbs the machine lasts longer than a round."""
    return round(median(a / b for a, b in zip(found[one], found[other], strict=True)), 2)


async def main(options: argparse.Namespace) -> dict[str, Any]:
    pinned = place.pin(place.LOAD_CORE)
    figures: dict[str, Any] = {}
    async with place.database() as server:
        print("Postgres:", await place.durability(server.dsn("app")))
        print("cores:", "ours on 0; Postgres and load on 1" if pinned else "not pinned")
        if options.part != "http":
            if pinned:
                os.sched_setaffinity(0, {place.SERVER_CORE})
            found = await compare_in_process(server, options)
            if pinned:
                os.sched_setaffinity(0, {place.LOAD_CORE})
            figures |= {
                "transfers_per_s": round(median(found["committer"])),
                "ratio_sql_function": ratio(found, "committer", "SQL function"),
                "hot_over_uniform": ratio(found, "committer, one hot account", "committer"),
                "sql_function_per_s": round(median(found["SQL function"])),
                "at_once_per_s": round(median(found["committer, a hundred at once"])),
                "ratio_at_once": ratio(found, "committer, a hundred at once", "SQL function"),
            }
        if options.part != "process":
            found = await compare_over_http(server, options)
            figures |= {
                "ratio_stock_http": ratio(found, "transfers", "stock"),
                "bulk_per_s": round(median(found["bulk of 100"])),
                "http_per_s": round(median(found["transfers"])),
                "http_unkeyed_per_s": round(median(found["transfers without keys"])),
                "bulk_keyed_per_s": round(median(found["bulk of 100, a key each"])),
                "stock_per_s": round(median(found["stock"])),
            }
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="Length of one stretch.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--part", choices=["both", "process", "http"], default="both")
    print(json.dumps(uvloop.run(main(parser.parse_args()))))
