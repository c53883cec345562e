"""What goes wrong between a committer and its database, and how often.

A `Fate` is decided for each statement before it is sent. Every fault that Postgres or a network
can produce around a statement is one of `FATES`; the table says where it may strike.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

COMMIT_WEIGHT = 5
"""How much more often a COMMIT is struck than another statement."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What happens to one statement.

    Attributes:
        sqlstate: It fails with this code instead of running.
        fatal: The session ends with it, as by an administrator's shutdown.
        lost: The client loses the connection: `request` before the server has it, `answer` after
            it ran, `late` before it runs, though it will run.
        silent: The client is told nothing at all when something is lost.
        slow: The statement takes much longer.
        after: The error comes although the statement has run.
        commit_only: Strikes COMMIT alone.
        weight: How common it is among faults.
    """

    name: str
    sqlstate: str = ""
    fatal: bool = False
    lost: str = ""
    silent: bool = False
    slow: bool = False
    after: bool = False
    commit_only: bool = False
    weight: int = 2


NORMAL = Fate("normal")
ROLLED_BACK = Fate("commit_rolled_back", commit_only=True)
FATES = (
    Fate("serialization", "40001"),
    Fate("deadlock", "40P01"),
    Fate("disk_full", "53100", weight=1),
    Fate("lock_timeout", "55P03", weight=1),
    Fate("canceled", "57014", weight=1),
    Fate("internal_error", "XX000", weight=1),
    Fate("shutdown", "57P01", fatal=True),
    Fate("shutdown_after_commit", "57P01", fatal=True, after=True, commit_only=True),
    Fate("lost_request", lost="request"),
    Fate("lost_answer", lost="answer", weight=3),
    Fate("late", lost="late", weight=4),
    Fate("silent_request", lost="request", silent=True, weight=1),
    Fate("silent_answer", lost="answer", silent=True, weight=1),
    Fate("slow", slow=True, weight=3),
    ROLLED_BACK,
)


@dataclass(slots=True)
class Faults:
    """A seed's share of trouble.

    Attributes:
        rate: Chance that a statement is struck.
        left: Faults still to come; afterwards all is well.
        struck: How often each happened.
    """

    rng: random.Random
    rate: float = 0.0
    left: int = 0
    chosen: tuple[Fate, ...] = FATES
    struck: Counter[str] = field(default_factory=Counter)

    @classmethod
    def draw(cls, rng: random.Random, *, most: int = 12) -> Faults:
        """Calm, showery or stormy; of all kinds or of only a few."""
        chosen = FATES
        if rng.random() < 0.5:
            chosen = tuple(rng.sample(FATES, rng.randint(1, 4)))
        rate = rng.choice((0.0, 0.02, 0.05, 0.1, 0.3))
        return cls(rng, rate, rng.randint(1, most), chosen)

    def fate(self, *, commit: bool) -> Fate:
        """What happens to the next statement."""
        rate = self.rate * COMMIT_WEIGHT if commit else self.rate
        if self.left <= 0 or self.rng.random() >= rate:
            return NORMAL
        open_to_it = [fate for fate in self.chosen if commit or not fate.commit_only]
        if not open_to_it:
            return NORMAL
        fate = self.rng.choices(open_to_it, [fate.weight for fate in open_to_it])[0]
        self.left -= 1
        self.struck[fate.name] += 1
        return fate

    def other(self, name: str) -> None:
        """Count trouble that is no statement's."""
        self.struck[name] += 1
