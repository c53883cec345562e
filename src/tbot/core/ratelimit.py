"""How much may be asked for: GCRA, several quotas at once, all or nothing.

A quota is an amount per window, such as `100/10s`. All of it may be used at once; it comes back
evenly, one unit every `step_s`. What is remembered of a subject (an address, a user) is one
number: when its quota will be whole again. Asking for `cost` units moves that moment by
`cost * step_s`, and is refused when it would be further away than the window is long.

Pure but for the memory in `Cells`; the clock is the caller's. `SCRIPT` is the same arithmetic for
many processes at once, in Valkey.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

_TEXT: Final = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,5})s")
_ROUNDING_S: Final = 1e-6
"""What sums of steps may be off by without a refusal."""
_TIDIED: Final = 2
"""Subjects looked at for every new one: what is over goes faster than it comes."""


@dataclass(frozen=True, slots=True)
class Quota:
    """So much per window.

    Attributes:
        step_s: How long one unit takes to come back.
    """

    amount: int
    window_s: int
    step_s: float = field(init=False)

    def __post_init__(self) -> None:
        """Work out the step."""
        object.__setattr__(self, "step_s", self.window_s / self.amount)

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.amount}/{self.window_s}s"

    @staticmethod
    def parse(text: str) -> Quota:
        """A quota as settings have it.

        Raises:
            ValueError: It is none; the message says how one looks.

        Example:
            >>> Quota.parse("100/10s")
            Quota(amount=100, window_s=10, step_s=0.1)
        """
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError("a quota is an amount per seconds, such as 100/10s")
        return Quota(int(found[1]), int(found[2]))


@dataclass(frozen=True, slots=True)
class Standing:
    """How one quota stands after a request.

    Attributes:
        policy: Its name.
        remaining: Units that may be used at once.
        wait_s: Until the refused request would pass, or else until there is one unit more.
        refused: This quota was not enough.
    """

    policy: str
    quota: Quota
    remaining: int
    wait_s: float
    refused: bool = False

    @property
    def reset_s(self) -> int:
        """`wait_s` in whole seconds, as the `t` of a RateLimit field: never too early."""
        return max(1, math.ceil(self.wait_s - _ROUNDING_S))


def standing(policy: str, quota: Quota, debt_s: float, cost: int, charged: bool) -> Standing:
    """How a quota stands.

    Args:
        debt_s: How far away the moment is when it is whole again: with the request's cost if it
            was charged, without it if it was refused.
        cost: What the request asked for.

    Example:
        >>> one = Quota(10, 10)
        >>> told = standing("x", one, 3.0, 1, charged=True)
        >>> told.remaining, told.wait_s, told.refused
        (7, 1.0, False)
        >>> told = standing("x", one, 9.5, 1, charged=False)
        >>> told.remaining, told.wait_s, told.refused
        (0, 0.5, True)
    """
    step_s = quota.step_s
    remaining = max(0, int((quota.window_s - debt_s + _ROUNDING_S) / step_s))
    if not charged:
        over_s = debt_s + cost * step_s - quota.window_s
        if over_s > _ROUNDING_S:
            return Standing(policy, quota, remaining, over_s, True)
    wait_s = debt_s - (quota.window_s - (remaining + 1) * step_s)
    return Standing(policy, quota, remaining, max(0.0, wait_s))


class Cells:
    """What one process remembers of one policy's subjects.

    Bounded: beyond `subjects_max` one whose quota is whole is forgotten, or else the oldest, which
    gives it its quota back. Policies have memories of their own, so strangers push no users out.

    Args:
        policy: Name, as callers are told.
        subjects_max: Most subjects remembered (some 150 bytes each).
    """

    __slots__ = ("_subjects_max", "policy", "quota", "step_s", "wholes", "window_s")

    def __init__(self, policy: str, quota: Quota, subjects_max: int) -> None:
        self.policy = policy
        self.quota = quota
        self.step_s = quota.step_s
        self.window_s = quota.window_s + _ROUNDING_S
        self._subjects_max = subjects_max
        self.wholes: OrderedDict[Subject, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self.wholes)

    def debt_s(self, subject: Subject, now_s: float) -> float:
        """How far away the moment is when a subject's quota is whole."""
        return max(0.0, self.wholes.get(subject, 0.0) - now_s)

    def exhausted_s(self, subject: Subject, now_s: float) -> float:
        """How long until there is one unit; 0 when there is."""
        over_s = self.debt_s(subject, now_s) + self.step_s - self.window_s
        return max(0.0, over_s)

    def set(self, subject: Subject, whole_s: float, now_s: float) -> None:
        """Remember when a subject's quota is whole again."""
        wholes = self.wholes
        known = subject in wholes
        wholes[subject] = whole_s
        if known:
            return
        for _ in range(_TIDIED):
            oldest = next(iter(wholes))
            if wholes[oldest] <= now_s:
                del wholes[oldest]
            else:
                wholes.move_to_end(oldest)
        if len(wholes) > self._subjects_max:
            wholes.popitem(last=False)


type Subject = str | int
type Claim = tuple[Cells, Subject]
"""A policy, and whom the request counts for under it."""


def charge(claims: Sequence[Claim], cost: int, now_s: float) -> list[float] | None:
    """Take `cost` units from every quota, or from none.

    This runs for every request, so it is written for speed.

    Args:
        cost: At least 1. One that is above a quota's amount takes all of it: it could never pass
            otherwise.
        now_s: A clock that never goes back.

    Returns:
        Every quota's debt in seconds; None when one refused, and nothing was taken.

    Example:
        >>> cells = Cells("x", Quota(2, 10), 10)
        >>> [charge([(cells, "ann")], 1, 100.0) is None for _ in range(3)]
        [False, False, True]
    """
    debts = []
    for cells, subject in claims:
        whole_s = cells.wholes.get(subject, 0.0)
        debt_s = cells.step_s if cost == 1 else min(cost, cells.quota.amount) * cells.step_s
        if whole_s > now_s:
            debt_s += whole_s - now_s
        if debt_s > cells.window_s:
            return None
        debts.append(debt_s)
    for (cells, subject), debt_s in zip(claims, debts):  # noqa: B905 - one for each
        if subject in cells.wholes:
            cells.wholes[subject] = now_s + debt_s
        else:
            cells.set(subject, now_s + debt_s, now_s)
    return debts


def standings(claims: Sequence[Claim], cost: int, now_s: float, *, charged: bool) -> list[Standing]:
    """How every quota of a request stands after `charge`."""
    found = []
    for cells, subject in claims:
        debt_s = cells.debt_s(subject, now_s)
        bounded = min(cost, cells.quota.amount)
        found.append(standing(cells.policy, cells.quota, debt_s, bounded, charged))
    return found


# As callers are told (IETF draft-ietf-httpapi-ratelimit-headers)


def policy_field(standings: Sequence[Standing]) -> str:
    """The value of `RateLimit-Policy`.

    Example:
        >>> policy_field([Standing("orders", Quota(100, 10), 5, 1.0)])
        '"orders";q=100;w=10'
    """
    return ", ".join(f'"{s.policy}";q={s.quota.amount};w={s.quota.window_s}' for s in standings)


def limit_field(standings: Sequence[Standing]) -> str:
    """The value of `RateLimit`: what is left now, and in how many seconds there is more.

    Example:
        >>> limit_field([Standing("orders", Quota(100, 10), 5, 0.1)])
        '"orders";r=5;t=1'
    """
    return ", ".join(f'"{s.policy}";r={s.remaining};t={s.reset_s}' for s in standings)


SCRIPT: Final = """
-- Charges many requests, each all or nothing, in order.
-- KEYS: of each request's quotas, one after the other.
-- ARGV: for each request its cost and number of quotas, then of each quota its amount and its
-- window in seconds.
-- Returns for each request 1 or 0 (refused), then each quota's debt in microseconds: with the cost
-- where it was charged, without it where it was refused.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local out, key, arg = {}, 0, 1
while arg <= #ARGV do
    local cost, count = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1])
    arg = arg + 2
    local olds, news, allowed = {}, {}, 1
    for i = 1, count do
        local amount, window = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]) * 1000000
        arg = arg + 2
        local whole = tonumber(redis.call('GET', KEYS[key + i]) or '0')
        -- A clock that was set back must not refuse for longer than a window.
        local old = math.min(math.max(whole - now, 0), window)
        local new = old + math.min(cost, amount) * window / amount
        if new > window + 1 then
            allowed = 0
        end
        olds[i], news[i] = old, new
    end
    out[#out + 1] = allowed
    for i = 1, count do
        local debt = olds[i]
        if allowed == 1 then
            debt = news[i]
            redis.call('SET', KEYS[key + i], string.format('%.0f', now + debt),
                'PX', math.ceil(debt / 1000) + 1000)
        end
        out[#out + 1] = math.floor(debt)
    end
    key = key + count
end
return out
"""
"""One round trip for all quotas of a request, and of those that wait beside it."""
