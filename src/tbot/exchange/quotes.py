"""One side of a synthetic book: sizes at ticks, with the best tick always at hand. Pure."""

from __future__ import annotations

from collections.abc import Callable


class Quotes:
    """Levels in whole ticks and steps.

    Args:
        way: 1 for asks, whose best tick is the lowest; -1 for bids.

    Attributes:
        best: The best tick. Only `clear_better`, `fill_from` and `drop` move it.
        changed: Ticks that differ from what was last published.
    """

    __slots__ = ("best", "changed", "levels", "way")

    def __init__(self, way: int) -> None:
        self.way = way
        self.levels: dict[int, int] = {}
        self.changed: set[int] = set()
        self.best = 0

    @property
    def best_size(self) -> int:
        """The size at the best tick."""
        return self.levels[self.best]

    def set(self, tick: int, size: int) -> None:
        """Set a level no better than the best."""
        self.levels[tick] = size
        self.changed.add(tick)

    def drop(self, tick: int) -> None:
        """Remove a level; another must remain."""
        del self.levels[tick]
        self.changed.add(tick)
        if tick == self.best:
            self._find_best()

    def _find_best(self) -> None:
        self.best = min(self.levels) if self.way > 0 else max(self.levels)

    def clear_better(self, edge: int) -> None:
        """Remove every level better than `edge`; the side may become empty."""
        if not self.levels or (self.best - edge) * self.way >= 0:
            return
        for tick in [tick for tick in self.levels if (tick - edge) * self.way < 0]:
            del self.levels[tick]
            self.changed.add(tick)
        if self.levels:
            self._find_best()

    def fill_from(
        self, edge: int, gap: Callable[[int], int], size: Callable[[float], int], most: int
    ) -> None:
        """Add levels from `edge` up to the present best; `most` of them on an empty side."""
        tick, count, was_empty = edge, 0, not self.levels
        stop = self.best
        while tick > 0 and (count < most if was_empty else (stop - tick) * self.way > 0):
            self.set(tick, size(count))
            count += 1
            tick += self.way * gap(count)
        if count:
            self.best = edge

    def extend(self, count: int, gap: Callable[[int], int], size: Callable[[float], int]) -> None:
        """Add levels at the far end until there are `count`."""
        tick = max(self.levels) if self.way > 0 else min(self.levels)
        while len(self.levels) < count:
            tick += self.way * gap(len(self.levels))
            if tick <= 0:
                return
            self.set(tick, size(len(self.levels)))

    def prune(self, count: int) -> None:
        """Remove the farthest levels until there are `count`."""
        farthest = sorted(self.levels, reverse=self.way > 0)
        for tick in farthest[: len(farthest) - count]:
            del self.levels[tick]
            self.changed.add(tick)

    def take_changed(self) -> list[tuple[int, int]]:
        """Changed ticks with their sizes (0 where the level is gone), in order; starts over."""
        found = [(tick, self.levels.get(tick, 0)) for tick in sorted(self.changed)]
        self.changed.clear()
        return found
