"""The Python SDK, run through every scenario of the nasty server.

    python tests/conformance/sdk_python.py [NUMBER …] [--seed 1] [--rounds 1] [--together 24]

Prints a line for each number, then a line of JSON. A failure is repeated with its number and seed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent.parent / "src"))

import httpx  # noqa: E402
from sdk_scenarios import SCENARIOS  # noqa: E402
from sdk_server import serving  # noqa: E402

from tbot.client import (  # noqa: E402
    AccountSnapshot,
    AuthError,
    Book,
    Entry,
    EventStream,
    Gap,
    OutcomeUnknown,
    Refused,
    Stream,
    StreamClosed,
    TBotClient,
    TBotError,
    Timing,
    Unavailable,
)

TIMING = Timing(connect_s=3.0, answer_s=2.0, base_s=0.1, cap_s=1.0, drain_s=1.5)
"""The SDK's own delays, made short: nobody wants to wait for twenty seconds of jitter."""
PATIENCE_S = 20.0


@dataclass
class Result:
    """What came of one scenario."""

    number: int
    seed: int
    faults: list[str]
    took_s: float


@dataclass
class Report:
    """What the client was told; as docs/sdk-conformance.md has it."""

    items: dict[str, list[Any]] = field(default_factory=dict)
    gaps: dict[str, int] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    orders: dict[str, str] = field(default_factory=dict)

    def gap(self, gap: Gap) -> None:
        """A gap was told."""
        self.gaps[gap.channel] = self.gaps.get(gap.channel, 0) + 1


async def carry_out(http: httpx.AsyncClient, number: int, seed: int) -> Result:
    """One scenario, from its start to its verdict."""
    begun_s = time.monotonic()
    task = (await http.post(f"/scenarios/{number}", json={"seed": seed})).json()
    report = Report()
    patience_s = PATIENCE_S + SCENARIOS[number].seconds
    faults = []
    try:
        async with asyncio.timeout(patience_s):
            await follow(task, report)
    except TimeoutError:
        faults.append(f"not over within {patience_s:g} s")
    told = {"items": report.items, "gaps": report.gaps, "ended": report.ended}
    verdict = (await http.post(task["report"], json={**told, "orders": report.orders})).json()
    return Result(number, seed, faults + verdict["faults"], time.monotonic() - begun_s)


async def follow(task: Mapping[str, Any], report: Report) -> None:
    """Do what a scenario wants."""
    http = httpx.AsyncClient(base_url=task["url"], verify=False, timeout=5)
    async with TBotClient(task["url"], **task["credentials"], http=http) as client:
        try:
            open_stream: Any = client.events if task["transport"] == "events" else client.stream
            async with open_stream(report.gap, timing=TIMING) as stream:
                works = [take(stream, wish, task["expect"], report) for wish in task["subscribe"]]
                if isinstance(stream, Stream):
                    works += [place(stream, order, report) for order in task["orders"]]
                async with asyncio.TaskGroup() as tasks:
                    for work in works:
                        tasks.create_task(work)
        except* (StreamClosed, AuthError, Refused) as errors:
            error = errors.exceptions[0]
            report.ended = {"code": getattr(error, "code", None), "error": type(error).__name__}


async def take(
    stream: Stream | EventStream, wish: Mapping[str, Any], expect: Mapping[str, Any], report: Report
) -> None:
    """Take from a channel until its last item, or its end."""
    name, symbol = wish["channel"], wish.get("symbol", "")
    items = report.items.setdefault(name, [])
    last = expect["last"][name]
    over = asyncio.Event()

    def keep(item: Any) -> None:
        items.append(item)
        reached = item[:2] if name == "book" else item[1] if name == "account" else item
        if reached == last:
            over.set()

    subscription: Any
    if name == "book":
        # Every state counts, not only the newest.
        subscription = stream.book(symbol, wish["depth"], on_update=lambda one: keep(shown(one)))
    elif name == "account":
        subscription = stream.account(wish["account_id"])
    elif name == "trades":
        subscription = stream.trades(symbol)
    else:
        subscription = stream.best_prices(symbol)
    reading = asyncio.ensure_future(read(subscription, keep if name != "book" else ignore))
    waiting = asyncio.ensure_future(over.wait())
    try:
        await asyncio.wait((reading, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for one in (reading, waiting):
            one.cancel()
        await asyncio.gather(reading, waiting, return_exceptions=True)
    if not reading.cancelled():
        reading.result()


async def read(subscription: Any, keep: Callable[[Any], None]) -> None:
    """Take everything."""
    async for item in subscription:
        match item:
            case AccountSnapshot():
                keep(["snap", item.seq])
            case Entry():
                keep(["entry", item.seq])
            case _:
                keep(getattr(item, "trade_id", None) or getattr(item, "update_id", None))


def ignore(item: Any) -> None:
    """It was kept already."""


def shown(book: Book) -> list[Any]:
    """A state of the book, as reports have it."""
    sides = [
        [[f"{price:f}", f"{quantity:f}"] for price, quantity in side]
        for side in (book.bids(), book.asks())
    ]
    return [book.update_id, book.checksum(), *sides]


async def place(stream: Stream, order: Mapping[str, Any], report: Report) -> None:
    """Place an order; what is told of it."""
    key = order["client_order_id"]
    try:
        await stream.place(
            order["account_id"],
            order["symbol"],
            order["side"],
            quantity=order["quantity"],
            limit_price=order["limit_price"],
            client_order_id=key,
        )
        report.orders[key] = "placed"
    except Refused as refused:
        report.orders[key] = f"refused:{refused.code}"
    except OutcomeUnknown:
        report.orders[key] = "unknown"
    except Unavailable:
        report.orders[key] = "unavailable"
    except TBotError as error:
        report.orders[key] = type(error).__name__


async def run(
    numbers: Iterable[int], seed: int, rounds: int, together: int, until_s: float = float("inf")
) -> list[Result]:
    """Some scenarios, several side by side; rounds after the first end at `until_s`."""
    results: list[Result] = []
    slots = asyncio.Semaphore(together)
    async with serving() as nasty, httpx.AsyncClient(base_url=nasty.url, timeout=30) as http:

        async def one(number: int, its_seed: int) -> None:
            async with slots:
                if its_seed == seed or time.monotonic() + SCENARIOS[number].seconds < until_s:
                    results.append(await carry_out(http, number, its_seed))

        longest_first = sorted(numbers, key=lambda number: -SCENARIOS[number].seconds)
        async with asyncio.TaskGroup() as tasks:
            for its_seed in range(seed, seed + rounds):
                for number in longest_first:
                    tasks.create_task(one(number, its_seed))
    return results


def tell(results: list[Result]) -> int:
    """Show what came of it; the exit code."""
    by_number: dict[int, list[Result]] = {}
    for result in results:
        by_number.setdefault(result.number, []).append(result)
    for number, those in sorted(by_number.items()):
        failed = [one for one in those if one.faults]
        word = "FAIL" if failed else "pass"
        took_s = max(one.took_s for one in those)
        print(f"{number:6} {word} {len(those):4}x {took_s:6.1f} s  {SCENARIOS[number].about}")
        for one in failed[:3]:
            print(f"             seed {one.seed}: {'; '.join(one.faults[:4])}")
    failures = sorted(number for number, those in by_number.items() if any(o.faults for o in those))
    figures = {"scenarios": len(by_number), "runs": len(results), "failed": failures}
    print(json.dumps(figures))
    return 1 if failures else 0


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("numbers", nargs="*", type=int, help="all of them when absent")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1, help="seeds after it")
    parser.add_argument("--together", type=int, default=24)
    arguments = parser.parse_args()
    numbers = arguments.numbers or list(SCENARIOS)
    return tell(asyncio.run(run(numbers, arguments.seed, arguments.rounds, arguments.together)))


if __name__ == "__main__":
    sys.exit(main())
