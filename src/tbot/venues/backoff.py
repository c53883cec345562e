"""Delays between attempts to reach a venue."""

from __future__ import annotations

import random


class FullJitter:
    """Exponential backoff with full jitter: uniform between zero and a doubling bound.

    Many clients that lost one server come back spread out instead of together.

    Args:
        base_s: Bound of the first delay.
        cap_s: Largest bound.
    """

    __slots__ = ("_attempt", "_base_s", "_cap_s")

    def __init__(self, base_s: float = 0.2, cap_s: float = 15.0) -> None:
        self._base_s = base_s
        self._cap_s = cap_s
        self._attempt = 0

    def next_s(self) -> float:
        """The delay before the next attempt."""
        bound_s = min(self._cap_s, self._base_s * 2 ** min(self._attempt, 16))
        self._attempt += 1
        return random.uniform(0, bound_s)

    def reset(self) -> None:
        """The attempt succeeded: begin again with the first bound."""
        self._attempt = 0
