"""When to try again: exponential with full jitter, so that clients do not all come back at once."""

from __future__ import annotations

import random


class FullJitter:
    """Delays drawn evenly from zero to a bound that doubles.

    Args:
        base_s: First bound.
        cap_s: Largest bound.
    """

    __slots__ = ("_base_s", "_cap_s", "attempts")

    def __init__(self, base_s: float, cap_s: float) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self.attempts = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The next delay; at least what the server asked for, then jittered on top."""
        bound_s = min(self._cap_s, self._base_s * 2 ** min(self.attempts, 16))
        self.attempts += 1
        return at_least_s + random.uniform(0, bound_s)

    def reset(self) -> None:
        """Begin anew after a success."""
        self.attempts = 0
