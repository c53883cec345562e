"""Break the parts of a running T-Bot while money moves, then check that nothing was harmed.

    make chaos KILLS=200 SEED=1

Processes are killed and paused, database sessions terminated, connections dropped, delayed and
silenced, above all around COMMIT (`docs/chaos.md` lists the kinds). Prints a table and ends with
one line of JSON; the exit code is 0 only when nothing was lost, doubled or invented.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent))

from chaos import run
from chaos.faults import FAULTS


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=None, help="how many faults; else by time")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the whole run takes")
    parser.add_argument("--kinds", default=",".join(FAULTS), help="which faults, in turn")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=48)
    parser.add_argument(
        "--commands", type=int, default=1000, help="acknowledged between two faults, with --kills"
    )
    parser.add_argument("--keep", action="store_true", help="leave the data directory behind")
    arguments = parser.parse_args()
    plan = run.Plan(
        kinds=[kind for kind in arguments.kinds.split(",") if kind],
        seed=arguments.seed,
        clients=arguments.clients,
        kills=arguments.kills,
        seconds=arguments.seconds,
        commands_between=arguments.commands,
        keep=arguments.keep,
    )
    figures = uvloop.run(run.run(plan))
    print(json.dumps(figures))
    return 0 if run.sound(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
