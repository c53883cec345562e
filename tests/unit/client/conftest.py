"""What the tests of the SDK's streams share."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.asyncio.server import serve

from tbot.client import reconnecting

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from nastyserver import Nasty, Quick


@pytest.fixture
async def nasty(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nasty]:
    """A nasty server, and a client that does not wait long."""
    server = Nasty()
    monkeypatch.setattr(reconnecting, "FullJitter", lambda base_s, cap_s: Quick())
    async with serve(server.handle, "127.0.0.1", 0, subprotocols=["tbot.v1.json"]) as listening:  # type: ignore[list-item]
        server.url = f"http://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}"
        yield server
