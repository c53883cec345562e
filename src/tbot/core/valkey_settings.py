"""Settings of the shared Valkey; `tbot.core.settings` includes them."""

from __future__ import annotations

from pydantic import BaseModel, Field, SecretStr


class ValkeySettings(BaseModel):
    """Valkey (or Redis), which processes share for speed and for rate limits."""

    url: SecretStr | None = Field(
        None,
        description="URL of a Valkey, as `redis://user:password@host:6379/0`, `rediss://…` (TLS) "
        "or `unix://…`. Without one every process keeps to itself. What it holds is believed for "
        "seconds: let nobody else write to it.",
    )
    prefix: str = Field(
        "tbot:",
        pattern=r"^[A-Za-z0-9:._-]{1,64}$",
        description="Beginning of every key: another one for each installation that shares it.",
    )
    timeout_s: float = Field(
        0.25,
        gt=0,
        le=5,
        description="How long one question to it may take, waiting for a connection and connecting "
        "included; then the caller does without.",
    )
    connections_max: int = Field(16, ge=1, description="Connections of one process.")
    waiting_max: int = Field(
        1024, ge=1, description="Questions waiting for a connection; then the caller does without."
    )
    failures_max: int = Field(
        3, ge=1, description="Failures in a row after which it is left alone for a while."
    )
    open_s: float = Field(2.0, gt=0, description="How long, before one question tries it again.")
