"""When to come back after a connection ended, and when not: pure decisions.

`ending_of` reads a close code as docs/streaming.md has it; `Patience` counts losses and says how
long to stay away.

1. 40xx (and 1007, 1009 from the server) are for good.
2. 42xx, and whatever ends a connection after `drain`, is followed at once, but not for ever:
   `AT_ONCE_MAX` times in a row.
3. Everything else waits with full jitter, at least as long as the server asks for.
"""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Final

from tbot.client.backoff import FullJitter

AT_ONCE_MAX: Final = 3
"""How often in a row it comes back without delay; a server in a loop is not helped by more."""
STABLE_AFTER_S: Final = 10.0
"""A connection that lasted this long makes the next delay short again."""
RETRY_AFTER_S_MAX: Final = 300.0
"""Longest time that a server can send us away for."""

CLOSE_AUTH_EXPIRED: Final = 4103
CLOSE_WRONG_TEXT: Final = 1007
CLOSE_TOO_LARGE: Final = 1009


class Ending(Enum):
    """What the end of a connection asks for."""

    FOR_GOOD = "for_good"
    AT_ONCE = "at_once"
    RENEW = "renew"
    """Come back with a fresh token."""
    LATER = "later"


def ending_of(code: int) -> Ending:
    """What a close code from the server asks for.

    Example:
        >>> ending_of(4001), ending_of(4201), ending_of(1006)
        (<Ending.FOR_GOOD: 'for_good'>, <Ending.AT_ONCE: 'at_once'>, <Ending.LATER: 'later'>)
    """
    if 4000 <= code < 4100 or code in (CLOSE_WRONG_TEXT, CLOSE_TOO_LARGE):
        return Ending.FOR_GOOD
    if 4200 <= code < 4300:
        return Ending.AT_ONCE
    return Ending.RENEW if code == CLOSE_AUTH_EXPIRED else Ending.LATER


class Lost(Exception):
    """A connection ended, and coming back may help.

    Args:
        code: The close code, or the HTTP status that answered instead of a connection; 1006 where
            there was neither.
        at_least_s: How long the server wants us to stay away.
    """

    def __init__(self, code: int, reason: str, at_least_s: float = 0.0) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason
        self.at_least_s = at_least_s


class Patience:
    """How long to stay away after each loss.

    Args:
        base_s, cap_s: First and largest bound of the jittered delay.
    """

    def __init__(self, base_s: float, cap_s: float) -> None:
        self.backoff = FullJitter(base_s, cap_s)
        self.drain_s: float | None = None
        """What a server that goes away asked for; None while it did not."""
        self._at_once = 0

    def after(self, ending: Ending, lasted_s: float, at_least_s: float) -> float:
        """The delay after a connection that lasted so long."""
        if lasted_s > STABLE_AFTER_S:
            self.backoff.reset()
            self._at_once = 0
        drain_s, self.drain_s = self.drain_s, None
        if (ending is Ending.AT_ONCE or drain_s is not None) and self._at_once < AT_ONCE_MAX:
            self._at_once += 1
            return max(drain_s or 0.0, at_least_s)
        return self.backoff.next_s(max(drain_s or 0.0, at_least_s))


def retry_after_of(text: str | None, now_s: float) -> float:
    """Seconds in a `Retry-After`: a number of them, or a date; 0.0 for none or nonsense.

    Args:
        now_s: The wall clock.

    Example:
        >>> retry_after_of("7", 0.0), retry_after_of("soon", 0.0)
        (7.0, 0.0)
        >>> retry_after_of("Thu, 01 Jan 1970 00:01:00 GMT", 45.0)
        15.0
    """
    text = (text or "").strip()
    if text.isdecimal():
        return min(RETRY_AFTER_S_MAX, float(text[:9]))
    try:
        at_s = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return 0.0
    return min(RETRY_AFTER_S_MAX, max(0.0, at_s - now_s))
