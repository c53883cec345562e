"""The test of the test: every planted bug is found, and soon."""

from __future__ import annotations

import pytest

from . import world
from .planted import PLANTED, Planted

SEEDS_MAX = 400


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_planted_bug_is_found(bug: Planted) -> None:
    with world.hushed():
        outcome = bug.find(range(1, SEEDS_MAX + 1))
        assert outcome is not None, f"{SEEDS_MAX} seeds do not show it: {bug.what}"
        # And it is the bug that shows: without it the seed is clean.
        assert world.simulate(outcome.seed).faults == []
