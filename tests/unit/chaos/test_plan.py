"""Which faults come, in what order, and how far apart."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
from chaos import run
from chaos.faults import FAULTS, Fault, schedule

KINDS = list(FAULTS)


@pytest.mark.parametrize("seed", range(20))
def test_a_short_run_kills_and_a_long_one_has_every_kind_as_often(seed: int) -> None:
    kinds = list(islice(schedule(KINDS, seed), 200))
    assert kinds[:2] == ["kill_api", "kill_postgres"]
    assert Counter(kinds) == dict.fromkeys(KINDS, 10)
    assert kinds == list(islice(schedule(KINDS, seed), 200))


def test_rounds_differ_and_seeds_do() -> None:
    first, second = (list(islice(schedule(KINDS, seed), 60)) for seed in (1, 2))
    assert first != second
    assert first[20:40] != first[40:60]
    assert first[20:22] != ["kill_api", "kill_postgres"]


def test_kinds_that_were_not_asked_for_do_not_come() -> None:
    assert list(islice(schedule(["drop", "kill_postgres"], 1), 2)) == ["kill_postgres", "drop"]


async def test_faults_keep_their_distance_however_much_is_done_during_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulse = SimpleNamespace(acknowledged=0)
    begun: list[int] = []
    ended = [0]

    async def sleep(_delay_s: float) -> None:
        pulse.acknowledged += 7

    async def one(self: Any, fault: Fault) -> bool:
        begun.append(pulse.acknowledged)
        pulse.acknowledged += 5000
        ended.append(pulse.acknowledged)
        self._done += 1
        self.recoveries[fault.kind].append(1.0)
        return True

    monkeypatch.setattr(run, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(run.Trouble, "_one", one)
    plan = run.Plan(KINDS, 3, 48, 5, 60.0, 1000, False)
    floor: Any = SimpleNamespace(pulse=pulse)
    here: Any = None
    await run.Trouble(here, floor, plan).run()
    apart = [start - end for start, end in zip(begun, ended, strict=False)]
    assert len(apart) == 5
    assert all(1000 <= gap < 1050 for gap in apart), apart
