"""10,000 payment requests a minute beside 64 busy order clients: does anybody notice?

    make bench-payments          ARGS="--seconds 30"

A real `tbot up` with everything on. Payments (deposits, withdrawals and transfers between users in
turn, each with an `Idempotency-Key`) are sent when their time has come, whether or not earlier ones
are answered, and are timed from that moment. The order clients send the next order as soon as the
last is answered. Afterwards every payment has to be settled, and `tbot verify` to find the books in
order. Prints a table and ends with one line of JSON; the exit code is 0 only when no request timed
out or was answered 5xx and the books are sound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import httpx
import uvloop
from chaos import world

TIMEOUT_S = 10.0
CASH_ACCOUNTS = 32
TRADING_ACCOUNTS = 16
PASSWORD = "ten thousand a minute"
SETTLE_S_MAX = 120.0


@dataclass
class Figures:
    """What became of the requests of one kind."""

    latencies_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    timeouts: int = 0

    @property
    def errors_5xx(self) -> int:
        return sum(count for status, count in self.statuses.items() if status >= 500)

    @property
    def refused(self) -> int:
        return sum(count for status, count in self.statuses.items() if 300 <= status < 500)

    def ms(self, percent: int) -> float:
        """A percentile of the latency, in milliseconds."""
        if len(self.latencies_s) < 2:
            return float("nan")
        points = quantiles(self.latencies_s, n=100, method="inclusive")
        return round(points[percent - 1] * 1000, 1)


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    @property
    def closed(self) -> bool:
        """Whether the server has let go of it."""
        return self._transport is None or self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0 or self._answer is None:
            return
        head = self._received[:end].lower()
        at = head.find(b"content-length:")
        stop = head.find(b"\r\n", at)
        length = int(head[at + 15 : stop if stop >= 0 else end]) if at >= 0 else 0
        if len(self._received) >= end + 4 + length:
            body = self._received[end + 4 : end + 4 + length]
            status = int(self._received[9:12])
            self._received = b""
            if not self._answer.done():
                self._answer.set_result((status, body))

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionResetError("closed"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; status and body of its answer."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


class Wire:
    """Requests to one server, over as many connections as are needed at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []

    async def send(self, request: bytes, since_s: float, figures: Figures) -> None:
        """Send one request and book what became of it."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = await self.take()
                status, body = await connection.ask(request)
        except TimeoutError:
            figures.timeouts += 1
            return
        except OSError:
            figures.statuses[599] += 1
            return
        self._idle.append(connection)
        figures.latencies_s.append(time.perf_counter() - since_s)
        figures.statuses[status] += 1
        if status >= 300:
            with contextlib.suppress(ValueError, KeyError):
                figures.codes[json.loads(body)["code"]] += 1

    async def take(self) -> Connection:
        """A connection that nobody uses."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:  # the server closes what was idle for long
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self._port)
        return connection


def post(path: str, token: str, body: dict[str, Any], key: str | None = None) -> bytes:
    """The bytes of one request."""
    content = json.dumps(body, separators=(",", ":")).encode()
    keyed = f'Idempotency-Key: "{key}"\r\n' if key else ""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/json\r\n{keyed}Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class Customers:
    """Two users with cash accounts, and what they trade on."""

    tokens: list[str]
    cash: list[list[str]]
    trading: list[str]

    def payment(self, number: int) -> bytes:
        """Payment request number n: a deposit, a withdrawal or a transfer to the other user."""
        kind, turn = number % 3, number // 3
        who, where = turn % 2, turn // 2 % CASH_ACCOUNTS
        account = self.cash[who][where]
        body: dict[str, Any] = {"asset": "USDT", "amount": "0.01"}
        if kind == 0:
            path, body["account_id"] = "/v1/deposits", account
        elif kind == 1:
            path, body["account_id"] = "/v1/withdrawals", account
            body["destination"] = "DE89370400440532013000"
        else:
            path, body["source_account_id"] = "/v1/transfers", account
            body["target_account_id"] = self.cash[1 - who][where]
        return post(path, self.tokens[who], body, f"bench-{number}")

    def order(self, client: int, number: int) -> bytes:
        """An order that finds nobody to trade with, and ends at once."""
        body = {
            "account_id": self.trading[client % len(self.trading)],
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.00125",
            "limit_price": "30000.01",
            "time_in_force": "ioc",
            "client_order_id": f"bench-{client}-{number}",
        }
        return post("/v1/orders", self.tokens[0], body)


async def customers(url: str, credentials: dict[str, Any]) -> Customers:
    """Users and accounts, with money on them that came by deposits."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:

        async def login(username: str, password: str) -> str:
            answer = await client.post(
                "/v1/token", data={"username": username, "password": password}
            )
            token: str = answer.raise_for_status().json()["access_token"]
            return token

        async def call(token: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
            headers = {"Authorization": f"Bearer {token}"}
            answer = await client.post(path, json=body, headers=headers)
            if answer.is_error:
                raise RuntimeError(f"{path}: {answer.text}")
            made: dict[str, Any] = answer.json()
            return made

        admin = await login(credentials["username"], credentials["password"])
        await call(
            admin,
            "/v1/users",
            {"username": "bench", "password": PASSWORD, "role": "trader"},
        )
        tokens = [admin, await login("bench", PASSWORD)]
        trading = [
            (
                await call(
                    admin,
                    "/v1/accounts",
                    {"name": f"trading {n}", "starting_balance": {"USDT": "100000000"}},
                )
            )["id"]
            for n in range(TRADING_ACCOUNTS)
        ]
        cash: list[list[str]] = []
        for token in tokens:
            made = [
                (await call(token, "/v1/accounts", {"name": f"cash {n}", "kind": "cash"}))["id"]
                for n in range(CASH_ACCOUNTS)
            ]
            for account in made:
                deposit = {"account_id": account, "asset": "USDT", "amount": "100000"}
                await call(token, "/v1/deposits", deposit)
            cash.append(made)
        for token in tokens:
            await settled(client, token)
        return Customers(tokens, cash, trading)


async def settled(client: httpx.AsyncClient, token: str) -> float:
    """Wait until a user has no open payment; how long that took."""
    begun_s = time.monotonic()
    headers = {"Authorization": f"Bearer {token}"}
    while True:
        left = 0
        for state in ("pending", "approved", "submitted"):
            query = {"state": state, "limit": "1"}
            answer = await client.get("/v1/payments", params=query, headers=headers)
            left += len(answer.raise_for_status().json()["items"])
        if not left:
            return time.monotonic() - begun_s
        if time.monotonic() - begun_s > SETTLE_S_MAX:
            raise RuntimeError("payments are not settled")
        await asyncio.sleep(0.2)


async def pay(
    wire: Wire, request: Callable[[int], bytes], per_min: float, seconds: float, figures: Figures
) -> None:
    """Send payments at their times, whatever became of the ones before."""
    under_way: set[asyncio.Task[None]] = set()
    begun_s = time.perf_counter()
    for number in range(int(per_min / 60 * seconds)):
        due_s = begun_s + number * 60 / per_min
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(wire.send(request(number), due_s, figures))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)


async def trade(
    wire: Wire, request: Callable[[int, int], bytes], client: int, until_s: float, figures: Figures
) -> None:
    """Send orders one after the other."""
    number = 0
    while time.perf_counter() < until_s:
        number += 1
        await wire.send(request(client, number), time.perf_counter(), figures)


def pin(here: world.World) -> bool:
    """The API on one core; Postgres, the exchange and ourselves on another."""
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        return False
    api = here.programs[0].pid
    for pid in here.pids():
        with contextlib.suppress(OSError):
            os.sched_setaffinity(pid, {0 if pid == api else 1})
    os.sched_setaffinity(0, {1})
    return True


def processor_time_s(here: world.World) -> float:
    """Processor time that the API process has taken so far."""
    words = Path(f"/proc/{here.programs[0].pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def run(seconds: float, per_min: float, clients: int) -> dict[str, Any]:
    """One whole run; the figures."""
    settings = {
        **world.SETTINGS,
        "TBOT_PAYMENTS__ASK_AFTER_S": "30",
        "TBOT_COMMITTER__TRANSACTION_TIMEOUT_S": "10",
        "TBOT_DATABASE__STATEMENT_TIMEOUT_S": "10",
        "TBOT_AUTH__STEP_UP_S": "3600",
    }
    async with world.running(settings) as here:
        url = here.urls[0]
        many = await customers(url, here.credentials)
        pinned = pin(here)
        payments, orders = Figures(), Figures()
        wire = Wire(int(url.rpartition(":")[2]))
        begun_s, processor_s = time.perf_counter(), processor_time_s(here)
        await asyncio.gather(
            pay(wire, many.payment, per_min, seconds, payments),
            *(
                trade(wire, many.order, client, begun_s + seconds, orders)
                for client in range(clients)
            ),
        )
        taken_s = time.perf_counter() - begun_s
        processor_s = processor_time_s(here) - processor_s
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            settled_s = max([await settled(client, token) for token in many.tokens])
        starts = here.programs[0].starts
        verified, output = await here.run("verify")
        if verified:
            print(output)
    print_table(payments, orders, taken_s)
    return {
        "seconds": round(taken_s, 1),
        "payments_per_min": round(len(payments.latencies_s) / taken_s * 60),
        "payments": len(payments.latencies_s),
        "payments_accepted": payments.statuses[201],
        "payments_refused": payments.refused,
        "payments_5xx": payments.errors_5xx,
        "payments_timeouts": payments.timeouts,
        "payments_p50_ms": payments.ms(50),
        "payments_p99_ms": payments.ms(99),
        "order_clients": clients,
        "orders_per_s": round(len(orders.latencies_s) / taken_s),
        "orders_refused": orders.refused,
        "orders_5xx": orders.errors_5xx,
        "orders_timeouts": orders.timeouts,
        "orders_p50_ms": orders.ms(50),
        "orders_p99_ms": orders.ms(99),
        "api_processor": round(processor_s / taken_s, 2),
        "settled_after_s": round(settled_s, 1),
        "restarts": starts - 1,
        "pinned": pinned,
        "verified": verified == 0,
    }


def print_table(payments: Figures, orders: Figures, taken_s: float) -> None:
    """For people."""
    print(f"{'':>10} {'a second':>9} {'p50 ms':>8} {'p99 ms':>8} {'5xx':>5} {'timeouts':>9}  codes")
    for name, one in (("payments", payments), ("orders", orders)):
        per_s = len(one.latencies_s) / taken_s
        codes = ", ".join(f"{code}: {count}" for code, count in one.codes.most_common(5))
        print(
            f"{name:>10} {per_s:>9.0f} {one.ms(50):>8} {one.ms(99):>8} {one.errors_5xx:>5}"
            f" {one.timeouts:>9}  {codes}"
        )


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to pay")
    parser.add_argument("--per-min", type=float, default=10_000.0, help="payment requests")
    parser.add_argument("--clients", type=int, default=64, help="order clients")
    arguments = parser.parse_args()
    figures = uvloop.run(run(arguments.seconds, arguments.per_min, arguments.clients))
    print(json.dumps(figures))
    bad = ("payments_5xx", "payments_timeouts", "orders_5xx", "orders_timeouts", "restarts")
    return 0 if figures["verified"] and not any(figures[name] for name in bad) else 1


if __name__ == "__main__":
    sys.exit(main())
