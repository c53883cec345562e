"""The simulator: a seed is one run and the same run, and the write path survives what it brings."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from . import world
from .faults import FATES
from .loop import Stuck, VirtualLoop

SEEDS = 160
OTHERS = {"refused", "crash", "terminated", "killed", "stopped", "intruder", "switch", "clock_step"}


@pytest.fixture(autouse=True, scope="module")
def _still() -> Iterator[None]:
    with world.hushed():
        yield


def test_seeds_are_clean_and_every_fault_strikes() -> None:
    struck: Counter[str] = Counter()
    for seed in range(1, SEEDS + 1):
        outcome = world.simulate(seed)
        assert not outcome.faults, f"seed {seed}: {outcome.faults}"
        struck.update(outcome.struck)
    assert set(struck) == {fate.name for fate in FATES} | OTHERS


@pytest.mark.parametrize("seed", [5, 6, 7, 8])
def test_a_seed_is_the_same_run_every_time(seed: int) -> None:
    runs: list[list[str]] = [[], []]
    for lines in runs:
        world.simulate(seed, trace=lines.append)
    assert runs[0] == runs[1]
    assert len(runs[0]) > 50


def test_waiting_takes_no_time_and_waiting_for_ever_is_noticed() -> None:
    loop = VirtualLoop(random.Random(1), shuffled=False)
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append((name, loop.now_s))

    async def main() -> None:
        await asyncio.gather(sleeper("late", 3600.0), sleeper("early", 60.0))

    loop.run(main(), steps_max=1000, time_s_max=10_000)
    assert woken == [("early", 60.0), ("late", 3600.0)]

    async def hang() -> None:
        await loop.create_future()

    with pytest.raises(Stuck, match="no timer"):
        loop.run(hang(), steps_max=1000, time_s_max=10_000)
    loop.abandon()


def test_the_order_of_what_is_ready_depends_on_the_seed_alone() -> None:
    def order(seed: int) -> list[int]:
        loop = VirtualLoop(random.Random(seed), shuffled=True)
        ran: list[int] = []

        async def main() -> None:
            for number in range(8):
                loop.call_soon(ran.append, number)
            await asyncio.sleep(1)

        loop.run(main(), steps_max=1000, time_s_max=10)
        return ran

    assert order(1) == order(1) != order(2)
    assert sorted(order(2)) == list(range(8))
