"""Settings of caches; `tbot.core.settings` includes them. Sessions have theirs with `auth`."""

from __future__ import annotations

from pydantic import BaseModel, Field


class CacheSettings(BaseModel):
    """What is read on every request, kept in memory and in Valkey; see docs/caches.md."""

    permissions_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="How long a role on a shared account that was taken away may still work in "
        "another process that missed the news; 0 asks the database each time.",
    )
    permissions_max: int = Field(
        10_000, ge=1, description="Roles on shared accounts remembered, also that there is none."
    )
    instruments_s: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="How often a process looks for instruments that another one changed.",
    )
    tickers_interval_s: float = Field(
        1.0,
        gt=0,
        le=10,
        description="How often a process in the market role shares its tickers through Valkey.",
    )
