"""The venue's clock as seen from here: boot time plus an estimated offset.

Boot time runs on while the process is stopped or the machine sleeps, and no administrator sets
it: a request stamped from a reading that was taken before a pause is stale after it, and the
venue refuses it by its receive window.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from tbot.core.clock import boot_ns, wall_ms
from tbot.core.errors import VenueError
from tbot.venues.base import ClockOffset

_log = structlog.get_logger(__name__)
SAMPLE_INTERVAL_S: Final = 30.0
_SAMPLES_AT_ONCE: Final = 4


class VenueClock:
    """Keeps the offset estimate.

    Args:
        ask: Asks the venue for its time in milliseconds.
    """

    def __init__(self, ask: Callable[[], Awaitable[int]]) -> None:
        self._ask = ask
        self._offset = ClockOffset()
        self._guess_ms = float(wall_ms()) - boot_ns() / 1e6
        self._doubted = asyncio.Event()

    def at_ms(self, boot: int) -> int:
        """The venue's time at a boot clock reading (nanoseconds), in milliseconds."""
        known = self._offset.error_ms != float("inf")
        return int(boot / 1e6 + (self._offset.offset_ms if known else self._guess_ms))

    def now_ms(self) -> int:
        """The venue's time now."""
        return self.at_ms(boot_ns())

    def now_s(self) -> float:
        """The venue's time now, in seconds."""
        return self.now_ms() / 1e3

    @property
    def error_ms(self) -> float:
        """Bound of the estimate's error; infinite before the first sample."""
        return self._offset.error_ms

    def doubt(self) -> None:
        """The venue refused a timestamp: measure again from nothing."""
        self._doubted.set()

    async def measure(self) -> None:
        """Take a few samples.

        Raises:
            VenueError: The venue did not answer.
        """
        for _ in range(_SAMPLES_AT_ONCE):
            sent = boot_ns()
            venue_ms = await self._ask()
            self._offset.add(sent / 1e6, venue_ms, boot_ns() / 1e6)

    async def keep(self) -> None:
        """Measure for ever, every half minute or when the clock is doubted."""
        while True:
            try:
                async with asyncio.timeout(SAMPLE_INTERVAL_S):
                    await self._doubted.wait()
                self._doubted.clear()
                _log.warning("venue_clock_doubted", offset_ms=round(self._offset.offset_ms, 3))
                self._offset = ClockOffset(self._offset.offset_ms)
            except TimeoutError:
                pass
            try:
                await self.measure()
            except VenueError as error:
                _log.info("venue_clock_not_measured", error=str(error))
