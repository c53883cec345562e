"""The quick scenarios of the nasty server, each of which the Python SDK has to come through."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from sdk_python import run
from sdk_scenarios import COME_BACK, FOR_GOOD, SCENARIOS
from sdk_server import rows

SEED = 1
CODES = {70_000 + code for code in (*FOR_GOOD[3:], *COME_BACK[3:])}
QUICK = [one.number for one in SCENARIOS.values() if one.seconds <= 2 and one.number not in CODES]


@pytest.mark.parametrize("hundred", sorted({number // 100 for number in QUICK}))
async def test_the_sdk_comes_through(hundred: int) -> None:
    numbers = [number for number in QUICK if number // 100 == hundred]
    results = await run(numbers, SEED, rounds=1, together=12)
    assert sorted(one.number for one in results) == sorted(numbers)
    assert {one.number: one.faults for one in results if one.faults} == {}


def test_every_scenario_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/sdk-conformance.md").read_text()
    missing = [row for row in rows() if row not in page]
    assert not missing, "the rows of `sdk_server.py --list` are in docs/sdk-conformance.md"
