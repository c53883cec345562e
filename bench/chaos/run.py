"""One run: start, load, break, settle, check, tell."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx

from . import check, data, story, venue, world
from .clients import Floor, Prices, Token
from .faults import FAULTS, Fault, Missed, schedule
from .load import SYMBOLS, Client, open_accounts
from .log import Log
from .model import Findings
from .watch import Watcher

TRADING_ACCOUNTS = 6
CASH_ACCOUNTS = 4
RECOVERY_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 90.0
OVERHEAD_S = 35.0
"""What a run takes besides the faults: the start, settling what is open, and the check."""
MISSES_MAX = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do.

    Attributes:
        kinds: Of faults, in turn.
        kills: How many faults; None goes by time.
        seconds: How long the whole run may take, without `kills`.
        commands_between: Acknowledged before the first fault, and between the end of each and
            the next, with `kills`.
    """

    kinds: list[str]
    seed: int
    clients: int
    kills: int | None
    seconds: float
    commands_between: int
    keep: bool


class Trouble:
    """Inflicts faults in turn and measures how long each keeps the clients waiting."""

    def __init__(self, here: world.World, floor: Floor, plan: Plan) -> None:
        self._here = here
        self._floor = floor
        self._plan = plan
        self._random = random.Random(f"trouble:{plan.seed}")
        self._done = 0
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.missed: Counter[str] = Counter()
        self.stuck: list[str] = []

    async def run(self) -> None:
        """Until the plan is fulfilled."""
        plan, until_s = self._plan, time.monotonic() + self._plan.seconds - OVERHEAD_S
        await asyncio.sleep(1.0)
        if not plan.kinds:
            await asyncio.sleep(until_s - time.monotonic())
            return
        await self._distance()
        for kind in schedule(plan.kinds, plan.seed):
            if plan.kills is None and time.monotonic() > until_s:
                return
            if plan.kills is not None and self._done >= plan.kills:
                # Whatever kind found nothing to break in its turn gets another one.
                if not (owing := self._owing(plan.kills)):
                    return
                if kind not in owing:
                    continue
            for _ in range(MISSES_MAX):
                if await self._one(FAULTS[kind]):
                    break
                await asyncio.sleep(0.5)
            await asyncio.sleep(self._random.uniform(0.2, 1.2))
            await self._distance()

    async def _distance(self) -> None:
        """Leave the clients alone until they did as much as lies between two faults."""
        if self._plan.kills is None:
            return
        due = self._floor.pulse.acknowledged + self._plan.commands_between
        while self._floor.pulse.acknowledged < due:
            await asyncio.sleep(0.05)

    def _owing(self, kills: int) -> set[str]:
        """The kinds that did not come as often as all of them should have."""
        least = kills // len(self._plan.kinds)
        return {k for k in self._plan.kinds if len(self.recoveries.get(k, ())) < least}

    async def _one(self, fault: Fault) -> bool:
        pulse, begun_s = self._floor.pulse, time.monotonic()
        apis = (0,) if fault.trading else fault.hits
        beats = [pulse.next(api, begun_s, trading=fault.trading) for api in apis]
        try:
            await fault.inflict(self._here, self._random)
        except Missed:
            self.missed[fault.kind] += 1
            return False
        except TimeoutError:
            self.stuck.append(f"{fault.kind} did not come to its end")
        over_s = time.monotonic() - begun_s
        if fault.lingers:
            beats = [pulse.next(api, begun_s + over_s, trading=fault.trading) for api in apis]
        self._done += 1
        print(f"{self._done:4d}  {fault.kind:<22}", end="", flush=True)
        try:
            async with asyncio.timeout(RECOVERY_TIMEOUT_S):
                took_s = max(await asyncio.gather(*beats)) - begun_s
        except TimeoutError:
            took_s = RECOVERY_TIMEOUT_S
            self.stuck.append(f"nothing was acknowledged for {took_s:g} s after {fault.kind}")
        print(
            f" {over_s:5.1f} s, next after {took_s:5.1f} s, {pulse.acknowledged} acknowledged",
            flush=True,
        )
        self.recoveries[fault.kind].append(took_s)
        return True


async def run(plan: Plan) -> dict[str, Any]:
    """One whole run; the figures."""
    begun_s = time.monotonic()
    async with world.running(world.SETTINGS, second=True, keep=plan.keep) as here:
        if plan.keep:
            print(f"data directory: {here.directory}")
        log = Log(here.directory / "clients.jsonl")
        token = Token(here.urls, here.credentials)
        await token.renew("")
        prices = Prices(f"http://127.0.0.1:{here.exchange_port}", SYMBOLS)
        pricing = asyncio.create_task(prices.run())
        floor = Floor(here.ports, token, log, prices)
        floor.transfers = await _has_transfers(here, token)
        await open_accounts(floor, TRADING_ACCOUNTS, CASH_ACCOUNTS)
        watchers = [
            Watcher(token, here.urls, account, floor.pulse)
            for account in floor.trading + floor.cash
        ]
        watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
        stop = asyncio.Event()
        clients = [Client(number, floor, plan.seed) for number in range(plan.clients)]
        working = [asyncio.create_task(client.run(stop)) for client in clients]
        trouble = Trouble(here, floor, plan)
        loaded_s = time.monotonic()
        disturbing = asyncio.create_task(trouble.run())
        await asyncio.wait([disturbing, *working], return_when=asyncio.FIRST_COMPLETED)
        if not disturbing.done():  # a client failed: say so at once
            disturbing.cancel()
        stop.set()
        loaded_s = time.monotonic() - loaded_s
        await asyncio.gather(*working)
        await asyncio.gather(disturbing)
        pricing.cancel()
        await log.close()
        checking_s = time.monotonic()
        findings, examined = await _check(here, floor, watchers)
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, pricing, return_exceptions=True)
        findings.stuck += trouble.stuck
        verified, output = await here.run("verify")
        if verified != 0:
            findings.chain.append(f"tbot verify: {output}")
        log_bytes = log.path.stat().st_size
    left = here.pids()
    findings.processes += [f"{pid} is left: {command}" for pid, command in left.items()]
    figures = {
        **examined,
        "faults": sum(map(len, trouble.recoveries.values())),
        "faults_by_kind": {kind: len(trouble.recoveries.get(kind, ())) for kind in plan.kinds},
        "recovery_s": {
            kind: [round(statistics.median(times), 2), round(max(times), 2)]
            for kind, times in trouble.recoveries.items()
        },
        **findings.counts(),
        "stream_reconnects": sum(watcher.reconnects for watcher in watchers),
        "answer_ms": _spread(floor.answered_s),
        "log_ms": _spread(floor.logged_s),
        "disconnects": floor.disconnects,
        "attempts": dict(sorted(floor.statuses.items())),
        "acknowledged_per_s": round(examined["acknowledged"] / loaded_s, 1),
        "load_s": round(loaded_s, 1),
        "check_s": round(time.monotonic() - checking_s, 1),
        "total_s": round(time.monotonic() - begun_s, 1),
        "log_bytes": log_bytes,
        "seed": plan.seed,
    }
    _tell(figures, findings, trouble)
    return figures


def _spread(times_s: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    times_s.sort()
    last = len(times_s) - 1
    return {
        name: round(1000 * times_s[int(last * share)], 1)
        for name, share in (("p50", 0.5), ("p99", 0.99))
        if times_s
    }


async def _has_transfers(here: world.World, token: Token) -> bool:
    async with httpx.AsyncClient(base_url=here.urls[0]) as client:
        answer = await client.get(
            "/v1/transfers", headers={"Authorization": f"Bearer {token.text}"}
        )
    return answer.status_code == 200


async def _check(
    here: world.World, floor: Floor, watchers: list[Watcher]
) -> tuple[Findings, dict[str, Any]]:
    """Wait until nothing is open any more, and hold everything against everything."""
    await here.ready(0)
    connection = await here.connect()
    try:
        unsettled = await _settled(connection, here, floor)
        await _caught_up(connection, watchers)
        told = story.read(floor.log.path)
        there = await venue.look(f"http://127.0.0.1:{here.exchange_port}", here.exchange_key)
        source = await data.Database.read(connection)
        findings, figures = await check.examine(told, source, there)
        findings.lost += unsettled
        for watcher in watchers:
            findings.stream += watcher.faults
            findings.stream += await check.watched(watcher, source)
    finally:
        await connection.close()
    return findings, figures


async def _settled(
    connection: asyncpg.Connection[Any], here: world.World, floor: Floor
) -> list[str]:
    """Cancel what is open and wait until nothing moves any more; what does when patience ends."""
    questions = ["SELECT 'order' AS what, id, state FROM orders WHERE NOT state = ANY($1)"]
    if await connection.fetchval("SELECT to_regclass('transfers') IS NOT NULL"):
        questions.append(
            "SELECT 'transfer', id, state FROM transfers"
            " WHERE state = 'pending' AND expires_at < now() + interval '10 s'"
        )
    until_s = time.monotonic() + SETTLE_TIMEOUT_S
    async with httpx.AsyncClient(base_url=here.urls[0], timeout=30) as client:
        while True:
            rows = await connection.fetch(" UNION ALL ".join(questions), list(check.FINAL))
            if not rows or time.monotonic() > until_s:
                return [f"{row['what']} {row['id']} is still {row['state']}" for row in rows]
            await floor.token.renew(floor.token.text)
            for account in floor.trading:
                with contextlib.suppress(httpx.TransportError):
                    await client.delete(
                        f"/v1/orders?account_id={account}",
                        headers={"Authorization": f"Bearer {floor.token.text}"},
                    )
            await asyncio.sleep(1.0)


async def _caught_up(connection: asyncpg.Connection[Any], watchers: list[Watcher]) -> None:
    """Wait, a bounded time, until every watcher is at its journal's head."""
    until_s = time.monotonic() + SETTLE_TIMEOUT_S
    while time.monotonic() < until_s:
        heads = {
            str(row["account_id"]): row["seq"]
            for row in await connection.fetch("SELECT account_id, seq FROM streams")
        }
        if all(watcher.seq == heads.get(watcher.account) for watcher in watchers):
            return
        await asyncio.sleep(0.1)


def _tell(figures: dict[str, Any], findings: Findings, trouble: Trouble) -> None:
    """The table."""
    print(f"\n{'fault':<24}{'times':>6}{'next acknowledged after, s':>30}")
    print(f"{'':<24}{'':>6}{'median':>20}{'most':>10}")
    for kind, times in sorted(trouble.recoveries.items()):
        print(f"{kind:<24}{len(times):>6}{statistics.median(times):>20.2f}{max(times):>10.2f}")
    print("  (after kill_exchange and pause_exchange: until a new order executed)\n")
    if trouble.missed:
        print(f"tried when there was nothing to break: {dict(trouble.missed)}")
    for name, value in figures.items():
        if name not in ("faults_by_kind", "recovery_s"):
            print(f"{name:>20}  {value}")
    for sentence in findings.all[:40]:
        print(f"FOUND {sentence}")


def sound(figures: dict[str, Any]) -> bool:
    """Whether nothing at all was found."""
    return not any(figures[name] for name in check.COUNTED) and all(
        figures[name] for name in ("chain_ok", "sums_zero")
    )
