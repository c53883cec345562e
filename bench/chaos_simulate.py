"""Simulate the write path, thousands of seeds a minute, and judge every one.

    make simulate SEEDS=10000 SEED=1
    python bench/chaos_simulate.py --replay 4711

Virtual time, a fake database, faults around every statement; see `tests/simulation/README.md`.
Every seed is a whole run and the same run each time. Prints a table and ends with one line of JSON;
the exit code is 0 only when every seed was clean and every planted bug was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from simulation.planted import PLANTED, Planted
from simulation.world import Outcome, hushed, simulate

PLANTED_SEEDS_MAX = 1000
PLANTED_ROUND = 20
SHOWN_MAX = 20


def replay(seed: int, planted: str | None) -> int:
    """Print everything that happens in one seed, and what was wrong with it."""
    if planted is None:
        outcome = simulate(seed, trace=print)
    else:
        bug = next(p for p in PLANTED if p.name == planted)
        with bug.planted() as program:
            outcome = simulate(seed, program, trace=print)
    print()
    for fault in outcome.faults:
        print(f"WRONG: {fault}")
    print(f"seed {seed}: {'failed' if outcome.faults else 'clean'}")
    return 1 if outcome.faults else 0


def search(seed: int, until_s: float) -> tuple[list[str], list[str]]:
    """Look for every planted bug: which were found, and which were looked for in vain."""
    found: list[str] = []
    missing: list[Planted] = list(PLANTED)
    tried = 0
    # In rounds, so that a short run finds most of them instead of searching for one.
    while missing and tried < PLANTED_SEEDS_MAX and time.monotonic() < until_s:
        for bug in list(missing):
            if time.monotonic() > until_s:
                break
            outcome = bug.find(range(seed + tried, seed + tried + PLANTED_ROUND))
            if outcome is not None:
                missing.remove(bug)
                found.append(bug.name)
                print(f"  {bug.name:28} seed {outcome.seed:<6} {outcome.faults[0][:80]}")
        tried += PLANTED_ROUND
    vain = [bug.name for bug in missing] if tried >= PLANTED_SEEDS_MAX else []
    for name in vain:
        print(f"  {name:28} NOT FOUND in {tried} seeds")
    return found, vain


def main() -> int:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, help="how many; without it, as time allows")
    parser.add_argument("--seed", type=int, default=1, help="the first")
    parser.add_argument("--seconds", type=float, default=60.0, help="of which a third is used")
    parser.add_argument("--replay", type=int, help="print everything that happens in this seed")
    parser.add_argument("--planted", help="replay with this bug planted")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # a killed process leaves coroutines behind
    with hushed():
        if arguments.replay is not None:
            return replay(arguments.replay, arguments.planted)
        return run(arguments)


def run(arguments: argparse.Namespace) -> int:
    """Planted bugs first, then seeds."""
    started_s = time.monotonic()
    limit_s = float("inf") if arguments.seeds else arguments.seconds / 3
    print("planted bugs:")
    found, missed = search(arguments.seed, started_s + limit_s / 3)

    failures: list[Outcome] = []
    struck: Counter[str] = Counter()
    seeds = commands = unknown = 0
    running_s = time.monotonic()
    while seeds < (arguments.seeds or 1 << 60) and time.monotonic() - started_s < limit_s:
        outcome = simulate(arguments.seed + seeds)
        seeds += 1
        commands += outcome.commands
        unknown += outcome.unknown
        struck.update(outcome.struck)
        if outcome.faults:
            failures.append(outcome)
            if len(failures) <= SHOWN_MAX:
                print(f"seed {outcome.seed}: {'; '.join(outcome.faults[:3])}")
    took_s = max(1e-9, time.monotonic() - running_s)

    print("faults:")
    for name, count in struck.most_common():
        print(f"  {name:28} {count:>9}")
    print(
        f"{seeds} seeds in {took_s:.1f} s: {seeds / took_s * 60:,.0f} a minute, {commands} commands"
    )
    if failures:
        print(f"replay with: python bench/chaos_simulate.py --replay {failures[0].seed}")
    figures = {
        "seeds": seeds,
        "failures": len(failures),
        "commands": commands,
        "faults": sum(struck.values()),
        "faults_by_kind": dict(struck.most_common()),
        "planted": len(PLANTED),
        "planted_found": len(found),
        "seeds_per_minute": round(seeds / took_s * 60),
    }
    print(json.dumps(figures))
    return 1 if failures or missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
