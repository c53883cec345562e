"""A connection to an application, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from tbot.core.settings import Settings
from tbot.web.connections import GuardedProtocol, guarded


class Transport:
    """Keeps what is written, and for each piece the limit of the buffer that it was written into.

    As of a peer whose window is shut: a close waits for it.
    """

    def __init__(self) -> None:
        self.written = b""
        self.limits: list[int | None] = []
        self.closing = self.aborted = False
        self._high: int | None = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5000), "sockname": ("192.0.2.2", 80)}.get(name, default)

    def write(self, data: bytes) -> None:
        self.written += data
        self.limits.append(self._high)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = high

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.fixture
def connected(tmp_path: Path) -> Callable[[Any], tuple[GuardedProtocol, Transport]]:
    """Connects to an application."""

    def connect(app: Any) -> tuple[GuardedProtocol, Transport]:
        settings = Settings(data_dir=tmp_path)
        options: dict[str, Any] = {"lifespan": "off", "log_config": None, "access_log": False}
        config = uvicorn.Config(app, http=guarded(app, settings), **options)
        config.load()
        kind: Any = config.http_protocol_class
        connection: GuardedProtocol = kind(config, ServerState(), {}, asyncio.get_running_loop())
        transport: Any = Transport()
        connection.connection_made(transport)
        return connection, transport

    return connect
