"""A connection that does not take its last answer is not kept for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from tbot.core.settings import Settings
from tbot.web.connections import GuardedProtocol, guarded


class Transport:
    """Of a peer whose window is shut: what is written stays, and a close waits for it."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = self.aborted = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5000), "sockname": ("192.0.2.2", 80)}.get(name, default)

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is asked")


async def test_who_does_not_read_the_last_answer_is_cut(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    config = uvicorn.Config(app, http=guarded(app, settings), lifespan="off", log_config=None)
    config.load()
    kind: Any = config.http_protocol_class
    loop = asyncio.get_running_loop()
    connection: GuardedProtocol = kind(config, ServerState(), {}, loop)
    transport: Any = Transport()
    connection.connection_made(transport)
    connection.data_received(b"this is no request\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert transport.closing
    since_s, patience_s = connection.watch.now_s, settings.overload.write_timeout_s
    connection.look(since_s + patience_s)
    assert not transport.aborted
    connection.look(since_s + patience_s + 0.1)
    assert transport.aborted
    connection.connection_lost(None)
