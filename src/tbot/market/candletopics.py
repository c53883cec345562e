"""Candles as a topic: closed ones all, the open one conflated. Pure.

Every message has its own number, without gaps. An open candle is told as a whole and replaces what
was told of the same start before, as does a closed one that is completed later.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tbot.market.candles import Candle, Interval, candle_json
from tbot.market.topics import Slow, Topic


class CandlesTopic(Topic):
    """A market's candles of one interval.

    Args:
        view: The open candle.
        recent: The newest closed ones, for the snapshot.
    """

    __slots__ = ("_recent", "_view", "interval")

    def __init__(
        self,
        number: int,
        channel: str,
        parameters: dict[str, Any],
        slow: Slow,
        ring_bytes_max: int,
        view: Callable[[], Candle | None],
        recent: Callable[[], Sequence[Candle]],
    ) -> None:
        super().__init__(number, channel, parameters, slow, ring_bytes_max)
        self.interval = Interval(parameters["interval"])
        self._view = view
        self._recent = recent

    def closed(self, candle: Candle) -> None:
        """Publish a candle that has ended, or was completed."""
        self._tell(candle, closed=True)
        # With nothing pending the hub sends it at once, and not at the end of an interval.
        self.flush()

    def moved(self) -> None:
        """The open candle changed."""
        self.pending = True
        if self.interval_ms == 0:
            self.flush()

    def flush(self) -> bool:
        """Publish the open candle, if it changed."""
        if not self.pending:
            return False
        self.pending = False
        candle = self._view()
        if candle is None:
            return False
        self._tell(candle, closed=False)
        return True

    def _tell(self, candle: Candle, *, closed: bool) -> None:
        self.seq += 1
        self.push("delta", prev=self.seq - 1, data=candle_json(candle, closed))

    def state(self) -> Any:
        """The newest candles, oldest first; the last one is open, if there is an open one."""
        candles = [candle_json(candle, closed=True) for candle in self._recent()]
        candle = self._view()
        if candle is not None:
            candles.append(candle_json(candle, closed=False))
        return {"candles": candles}
