"""The Python SDK against the nasty server: every scenario once, then again with other seeds.

    python tests/conformance/sample_sdk.py [--seconds 60] [--seed N]

A round of all scenarios takes half a minute; what time is left goes to further seeds. A failure is
repeated by `sdk_python.py NUMBER --seed SEED`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time

from sdk_python import run, tell
from sdk_scenarios import SCENARIOS

SHORT_S = 35.0
"""What a sample of a minute takes at most, beside its first round: other samples follow."""
ROUNDS_MAX = 1000


def main() -> int:
    """Parse arguments, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}")
    seconds = min(SHORT_S, arguments.seconds) if arguments.seconds <= 60 else arguments.seconds
    until_s = time.monotonic() + seconds
    rounds = max(1, min(ROUNDS_MAX, round(arguments.seconds / 15)))
    return tell(asyncio.run(run(list(SCENARIOS), arguments.seed, rounds, 24, until_s)))


if __name__ == "__main__":
    sys.exit(main())
