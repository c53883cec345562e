"""What the edge is built from; `boot` makes one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tbot.auth.flow import Auth
from tbot.auth.store import Pool
from tbot.core.settings import Settings

type Check = Callable[[], Awaitable[str | None]]
"""Answers None when its part is ready, else a few words on why not."""


@dataclass(frozen=True, slots=True)
class Deps:
    """The parts of the program that the edge talks to.

    Attributes:
        pool: For reads; short transactions only.
        checks: By name, what has to be ready for `/health/ready`.
    """

    settings: Settings
    pool: Pool
    auth: Auth
    checks: Mapping[str, Check] = field(default_factory=dict)
