"""Kill the parts of a running T-Bot while orders flow, then check that nothing was harmed.

    make chaos KILLS=20 SEED=1

The API process, Postgres and the paper exchange are killed in turn with `kill -9`. Prints a table
and ends with one line of JSON; the exit code is 0 only when nothing was lost, doubled or invented.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import asyncpg
from chaos import check, load, world

PARTS = ("api", "postgres", "exchange")


async def open_accounts(session: load.Session, count: int) -> list[str]:
    """Accounts with enough for the whole run."""
    ids = []
    for number in range(count):
        answer = await session.call(
            "POST",
            "/v1/accounts",
            json={
                "name": f"chaos {number}",
                "venue": "paper",
                "starting_balance": {"USDT": "1000000", "BTC": "10", "ETH": "200", "SOL": "5000"},
            },
        )
        answer.raise_for_status()
        ids.append(answer.json()["id"])
    return ids


async def run(
    parts: Sequence[str], kills: int | None, seconds: float, seed: int, clients: int
) -> dict[str, Any]:
    """One whole run; the figures."""
    settings = {"TBOT_GATEWAY__ABSENCE_MARGIN_S": "1", "TBOT_GATEWAY__SEND_BY_S": "3"}
    rng = random.Random(seed)
    findings = check.Findings()
    async with world.running(settings) as here:
        log = load.Log(here.data_dir.parent / "clients.jsonl")
        session = load.Session(here.url, here.credentials)
        await session.login()
        accounts = await open_accounts(session, 4)
        watchers = [load.Watcher(session, here.url, account, log) for account in accounts]
        watching = [asyncio.create_task(watcher.run()) for watcher in watchers]
        stop = asyncio.Event()
        trading = [
            asyncio.create_task(
                load.Trader(n, session, accounts[n % len(accounts)], log, seed).run(stop)
            )
            for n in range(clients)
        ]
        await disturb(here, parts, kills, seconds, rng)
        stop.set()
        await asyncio.gather(*trading)
        connection = await asyncpg.connect(here.database_url)
        try:
            findings.lost += await check.settle(connection)
            await caught_up(connection, watchers)
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            acknowledged = await check.check_orders(connection, log, accounts, findings)
            await check.check_fills(connection, findings)
            await check.check_sums(connection, findings)
            entries = await check.check_chain(connection, findings)
            await check.check_streams(connection, log, findings)
            outcomes = await check.outcomes(connection)
            venue_orders = await check.check_venue(
                connection, f"http://127.0.0.1:{here.exchange_port}", here.exchange_key, findings
            )
        finally:
            await connection.close()
        verified, output = await here.run("verify")
        if verified != 0:
            findings.chain.append(f"tbot verify: {output}")
        states = {r["t"] for r in log.lines}
        faults = dict(here.faults)
    return {
        "commands": len(log.of("ask")) + len(log.of("cancel_ack")),
        "acknowledged": acknowledged,
        "refused": len(log.of("refusal")),
        "unclear": len(log.of("unclear")),
        "faults": sum(faults.values()),
        "faults_by_kind": faults,
        "lost": len(findings.lost),
        "duplicated": len(findings.duplicated),
        "invented": len(findings.invented),
        "stream_faults": len(findings.stream),
        "stream_reconnects": sum(watcher.reconnects for watcher in watchers),
        "venue_faults": len(findings.venue) + len(findings.answers),
        "venue_orders": venue_orders,
        "outcomes": outcomes,
        "entries": entries,
        "chain_ok": not findings.chain,
        "sums_zero": not findings.sums,
        "seed": seed,
        "findings": findings.all[:20],
        "log_kinds": sorted(states),
    }


async def disturb(
    here: world.World, parts: Sequence[str], kills: int | None, seconds: float, rng: random.Random
) -> None:
    """Kill the parts in turn, with a random breather in between."""
    until_s = time.monotonic() + seconds
    done = 0
    await asyncio.sleep(2)
    while (kills is not None and done < kills) or (kills is None and time.monotonic() < until_s):
        part = parts[done % len(parts)]
        print(f"kill -9 {part}", flush=True)
        await here.kill(part)
        done += 1
        await asyncio.sleep(rng.uniform(1.5, 4.0))


async def caught_up(connection: asyncpg.Connection[Any], watchers: list[load.Watcher]) -> None:
    """Wait, a bounded time, until every watcher is at its journal's head."""
    until_s = time.monotonic() + 15
    while time.monotonic() < until_s:
        heads = {
            str(row["account_id"]): row["seq"]
            for row in await connection.fetch("SELECT account_id, seq FROM streams")
        }
        if all(watcher.seq == heads.get(watcher._account) for watcher in watchers):
            return
        await asyncio.sleep(0.1)


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=None, help="how many kills; else by time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to disturb")
    parser.add_argument("--parts", default=",".join(PARTS), help="which are killed, in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    # The whole of it has to fit: start, recoveries and the final check take about half a minute.
    seconds = max(10.0, arguments.seconds - 30.0)
    figures = asyncio.run(
        run(arguments.parts.split(","), arguments.kills, seconds, arguments.seed, arguments.clients)
    )
    for sentence in figures.pop("findings"):
        print(sentence)
    figures.pop("log_kinds")
    for name, value in figures.items():
        print(f"{name:>20}  {value}")
    print(json.dumps(figures))
    bad = ("lost", "duplicated", "invented", "stream_faults", "venue_faults", "unclear")
    sound = not any(figures[name] for name in bad)
    return 0 if sound and figures["chain_ok"] and figures["sums_zero"] else 1


if __name__ == "__main__":
    sys.exit(main())
