"""Clients come, stall, and go in every way: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamfakes import deaf_client

REPOSITORY = Path(__file__).resolve().parents[3]
BTC, ETH = "BTC-USDT", "ETH-USDT"


def held(stack: Any) -> dict[str, int]:
    """What the server and this process hold for clients."""
    hub, streams = stack.streams.hub, stack.streams
    return {
        "subscribers": len(hub.subscribers),
        "interests": len(hub._interests) - 1,
        "private": len(hub._private),
        "watched": len(streams.journal._watched),
        "visits": len(hub._visits),
        "turn": len(hub._turn),
        "in_the_wheel": sum(map(len, hub._wheel._slots)),
        "readers": sum(topic.readers for topic in hub._interested),
        "sessions": len(streams._sessions),
        "users": sum(streams.admission.users.values()),
        "addresses": len(streams.admission.addresses),
        "connections": len(stack.server.server_state.connections),
        "tasks": len(asyncio.all_tasks()),
        # Without the database's: how many the pool has open follows the load, up to its bound.
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()) - stack.pool.get_size(),
    }


async def generation(stack: Any, account_id: str) -> None:
    """Some who leave politely, some who vanish, some who stall, some who never log in."""
    trades = {"channel": "trades", "symbol": BTC}
    book = {"channel": "book", "symbol": ETH, "depth": 0}
    account = {"channel": "account", "account_id": account_id}
    # Without bounds: a client that does not read its messages would not read the close either.
    clients = [await stack.client(max_queue=None) for _ in range(6)]
    for number, client in enumerate(clients):
        await client.sub(*[[trades, book], [trades, account], [book]][number % 3])  # type: ignore[misc]
    stalled = [
        await deaf_client(
            stack, {"op": "auth", "token": stack.tokens["alice"]}, {"op": "sub", "channels": [book]}
        )
        for _ in range(2)
    ]
    silent = [await stack.dial() for _ in range(2)]
    for price in range(300):
        stack.feed.trade(BTC)
        stack.feed.change(ETH, "bid", str(price + 1), "1")
        if price % 20 == 0:
            await asyncio.sleep(0)
    for number, client in enumerate(clients):
        if number % 2:
            client.socket.transport.abort()
        else:
            await client.socket.close()
    for raw in stalled:
        raw.close()
    for socket in silent:
        socket.transport.abort()


async def test_nothing_stays_behind(new_stack: Any, eventually: Any) -> None:
    stack = await new_stack(linger_s=0)
    await stack.user()
    account_id = str(await stack.account())
    await generation(stack, account_id)  # what is made once and kept
    await eventually(lambda: held(stack)["connections"] == 0 and not held(stack)["interests"])
    await eventually(lambda: held(stack)["watched"] == 0 and not held(stack)["addresses"])
    before = held(stack)
    assert before["subscribers"] == before["sessions"] == before["users"] == 0
    for _ in range(3):
        await generation(stack, account_id)
        await eventually(lambda: all(held(stack)[name] <= before[name] for name in before), 15)


def bench(name: str, timeout_s: float, *arguments: str) -> None:
    """Run a benchmark whose exit code says whether all was well."""
    program = REPOSITORY / "bench" / f"bench_{name}.py"
    subprocess.run([sys.executable, program, *arguments], check=True, timeout=timeout_s)


@pytest.mark.long
def test_half_an_hour_of_churn() -> None:
    bench("soak", 2400, "--seconds", "1800")


@pytest.mark.long
def test_a_hundred_clients_resume_after_each_kill() -> None:
    bench("resume", 600, "--clients", "100", "--kills", "2", "--rate", "20")
