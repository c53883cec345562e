"""`kill -9` of the server while 2,000 clients follow their accounts and orders flow.

    make bench-resume            ARGS="--clients 2000 --kills 3"

`tbot up` runs as on any machine, with its own Postgres and paper exchange, and is started again
whenever it ends, as an init system would. A user has ten accounts (strategies), and each account is
followed twice: by the program that trades it and by a screen; every user has an address of its own.
Nothing is set wider than the defaults for that. Orders are placed and, unanswered, placed again
under the same key. After each kill everybody has to come back and resume by (sequence, hash
prefix); at the end every entry that each client was told is compared with the journal. Ends with
one line of JSON; exit code 1 when anything was missing, repeated or different.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import httpx
from chaos import world
from chaos.session import Session
from chaos.wire import Line, Unanswered, Unsent
from fanout.returning import PREFIX_BYTES, Crowd, Watcher
from fanout.world import raise_files_limit

ACCOUNTS_PER_USER: Final = 10
WATCHERS_PER_ACCOUNT: Final = 2
WORKERS: Final = 16
"""Orders under way at a time, at most."""
BACK_TIMEOUT_S: Final = 300.0
QUIET_TIMEOUT_S: Final = 120.0
SETTINGS: Final = {
    **world.SETTINGS,
    "TBOT_AUTH__ACCESS_TTL_S": "7200",
    "TBOT_HTTP__ACCESS_LOG": "errors",
}
FINAL: Final = ("filled", "canceled", "rejected", "expired")


class Orders:
    """Orders at a rate, each insisted on until it is answered.

    Attributes:
        acknowledged: Ids of orders that the server said it has.
        beats: When the last one was (monotonic).
    """

    def __init__(self, port: int, accounts: list[tuple[str, str]], rate: float, seed: int) -> None:
        self._port = port
        self._accounts = accounts
        self._rate = rate
        self._random = random.Random(seed)
        self._over = asyncio.Event()
        self._number = 0
        self.acknowledged: list[str] = []
        self.refused = 0
        self.again = 0
        self.beat_s = 0.0

    async def run(self) -> None:
        """Until `stop`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(self._work())

    def stop(self) -> None:
        """Let what is under way come to its end."""
        self._over.set()

    async def _work(self) -> None:
        line = Line("127.0.0.1", self._port)
        pause_s = WORKERS / self._rate
        while not self._over.is_set():
            due_s = time.monotonic() + pause_s
            await self._one(line)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                    await self._over.wait()
        line.close()

    async def _one(self, line: Line) -> None:
        self._number += 1
        key = f"resume-{self._number}"
        account, token = self._random.choice(self._accounts)
        order = {
            "account_id": account,
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "market",
            "quote_amount": "20",
            "client_order_id": key,
        }
        body = json.dumps(order).encode()
        until_s = time.monotonic() + BACK_TIMEOUT_S
        while time.monotonic() < until_s:
            sent_s = time.monotonic()
            with contextlib.suppress(Unsent, Unanswered, OSError, TimeoutError):
                answer = await line.request("POST", "/v1/orders", token, body, key)
                if answer.status in (200, 201, 202):
                    self.acknowledged.append(answer.json()["id"])
                    self.beat_s = max(self.beat_s, sent_s)
                    return
                if answer.status not in (429, 503):
                    self.refused += 1  # the market is not known yet, for one: a new order comes
                    return
            self.again += 1
            await asyncio.sleep(self._random.uniform(0.05, 0.3))


async def populate(here: world.World, clients: int) -> list[tuple[str, str, str]]:
    """Users and their accounts: (account, token, address) of each account."""
    accounts = -(-clients // WATCHERS_PER_ACCOUNT)
    users = -(-accounts // ACCOUNTS_PER_USER)
    admin = Session(here.url, here.credentials)
    await admin.login()
    found: list[tuple[str, str, str]] = []
    several = asyncio.Semaphore(8)

    async def one(number: int) -> None:
        credentials = {"username": f"user{number}", "password": f"a long password of {number}"}
        async with several, httpx.AsyncClient(base_url=here.url, timeout=60) as client:
            new = credentials | {"role": "trader"}
            answer = await admin.call("POST", "/v1/users", json=new)
            answer.raise_for_status()
            token = await Session(here.url, credentials).login()
            for account in range(min(ACCOUNTS_PER_USER, accounts - number * ACCOUNTS_PER_USER)):
                body = {"name": f"{number}.{account}", "starting_balance": {"USDT": "100000"}}
                headers = {
                    "Authorization": f"Bearer {token}",
                    "Idempotency-Key": f"{number}.{account}",
                }
                for _ in range(20):
                    answer = await client.post("/v1/accounts", json=body, headers=headers)
                    if answer.status_code not in (429, 503):
                        break
                    await asyncio.sleep(0.5)
                answer.raise_for_status()
                address = f"127.0.{1 + number // 250}.{2 + number % 250}"
                found.append((answer.json()["id"], token, address))

    await asyncio.gather(*(one(number) for number in range(users)))
    return found


class Run:
    """Everybody comes, the server is killed, everybody comes back."""

    def __init__(self, here: world.World, options: Any) -> None:
        self.here = here
        self.options = options
        self.crowd = Crowd(here.ports[0])
        self.watchers: list[Watcher] = []
        self.faults = self.crowd.faults
        self.kills: list[dict[str, float]] = []

    async def go(self) -> dict[str, Any]:
        options, crowd = self.options, self.crowd
        accounts = await populate(self.here, options.clients)
        for number in range(options.clients):
            account, token, address = accounts[number % len(accounts)]
            self.watchers.append(Watcher(crowd, address, token, account))
        print(f"{len(accounts)} accounts, {options.clients} clients", flush=True)
        running = []
        for watcher in self.watchers:
            running.append(asyncio.create_task(watcher.run()))
            await asyncio.sleep(0.001)
        await self._until(lambda: crowd.begun == options.clients, "everybody to begin")
        owners = [(account, token) for account, token, _ in accounts]
        orders = Orders(self.here.ports[0], owners, options.rate, options.seed)
        ordering = asyncio.create_task(orders.run())
        await asyncio.sleep(options.between)
        for _ in range(options.kills):
            await self._kill(orders)
            await asyncio.sleep(options.between)
        orders.stop()
        await ordering
        told = await self._compare(orders)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        resumed = sum(watcher.resumed for watcher in self.watchers)
        return {
            "clients": options.clients,
            "accounts": len(accounts),
            "kills": self.kills,
            "resumed": resumed,
            "orders_acknowledged": len(orders.acknowledged),
            "orders_asked_again": orders.again,
            "orders_refused": orders.refused,
            "told_to_come_back_later": crowd.refused,
            "entries_told": crowd.deltas,
            **told,
            "faults": len(self.faults),
        }

    async def _kill(self, orders: Orders) -> None:
        """Kill it, and wait for everybody."""
        crowd, program = self.crowd, self.here.programs[0]
        before = sum(watcher.resumed for watcher in self.watchers)
        crowd.lost_all()
        killed_s = time.monotonic()
        program.signal(signal.SIGKILL)
        wanted = before + len(self.watchers)
        await self._until(
            lambda: sum(watcher.resumed for watcher in self.watchers) >= wanted
            and all(watcher.live for watcher in self.watchers),
            "everybody to resume",
        )
        await self._until(lambda: orders.beat_s > killed_s, "an order after the kill")
        back = sorted(at_s - killed_s for at_s in crowd.back)
        found = {
            "there_s": round(crowd.first_there_s - killed_s, 2),
            "half_s": round(back[len(back) // 2], 2),
            "p99_s": round(back[int(len(back) * 0.99)], 2),
            "all_s": round(back[-1], 2),
        }
        self.kills.append(found)
        print(f"killed: {found}", flush=True)

    async def _until(self, there: Any, what: str) -> None:
        until_s = time.monotonic() + BACK_TIMEOUT_S
        while not there():
            if time.monotonic() > until_s:
                live = sum(watcher.live for watcher in self.watchers)
                words = self.here.programs[0].last_words()
                raise SystemExit(f"waited in vain for {what}; {live} are subscribed\n{words}")
            await asyncio.sleep(0.05)

    async def _compare(self, orders: Orders) -> dict[str, int]:
        """Hold what everybody was told against the journal."""
        connection = await self.here.connect()
        try:
            until_s = time.monotonic() + QUIET_TIMEOUT_S
            while time.monotonic() < until_s:
                open_orders = await connection.fetchval(
                    "SELECT count(*) FROM orders WHERE NOT state = ANY($1)", list(FINAL)
                )
                rows = await connection.fetch("SELECT account_id, seq FROM streams")
                heads = {str(row["account_id"]): row["seq"] for row in rows}
                if not open_orders and all(w.seq == heads[w.account] for w in self.watchers):
                    break
                await asyncio.sleep(0.2)
            gone = await connection.fetchval(
                "SELECT count(*) FROM unnest($1::uuid[]) AS told (id)"
                " WHERE NOT EXISTS (SELECT FROM orders WHERE orders.id = told.id)",
                orders.acknowledged,
            )
            if gone:
                self.faults.append(f"{gone} acknowledged orders are not there")
            twice = len(orders.acknowledged) - len(set(orders.acknowledged))
            if twice:
                self.faults.append(f"{twice} orders were acknowledged under two keys")
            entries = 0
            for watcher in self.watchers:
                entries += await self._one(connection, watcher, heads[watcher.account])
        finally:
            await connection.close()
        return {"entries_equal": entries}

    async def _one(self, connection: Any, watcher: Watcher, head: int) -> int:
        """How many entries one client was told that are the journal's."""
        if watcher.seq != head:
            self.faults.append(f"{watcher.account}: at {watcher.seq}, the journal at {head}")
        rows = await connection.fetch(
            "SELECT hash FROM journal WHERE account_id = $1 AND seq > $2 AND seq <= $3"
            " ORDER BY seq",
            watcher.account,
            watcher.first,
            watcher.seq,
        )
        expected = b"".join([row["hash"][:PREFIX_BYTES] for row in rows])
        if bytes(watcher.prefixes) != expected:
            self.faults.append(
                f"{watcher.account}: told {len(watcher.prefixes) // PREFIX_BYTES} entries, "
                f"not the {len(rows)} of the journal"
            )
            return 0
        return len(rows)


async def run(options: Any) -> int:
    task = asyncio.current_task()
    assert task is not None
    # Else what was started would go on without us.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with world.running(SETTINGS) as here:
        one = Run(here, options)
        line = await one.go()
    for fault in one.faults[:20]:
        print(f"FOUND {fault}")
    print(json.dumps(line))
    return 1 if one.faults else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--rate", type=float, default=50.0, help="orders a second")
    parser.add_argument("--between", type=float, default=5.0, help="seconds of load around kills")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    raise_files_limit()
    sys.exit(uvloop.run(run(options)))


if __name__ == "__main__":
    main()
