"""The application on uvicorn's own HTTP/2, where the package for it is installed."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from typing import Any

import pytest
import uvicorn

from tbot.web.server import server_options

pytest.importorskip("zttp", reason="uvicorn's HTTP/2 needs the package zttp")
CURL = shutil.which("curl")


def _speaks_http2() -> bool:
    if CURL is None:
        return False
    told = subprocess.run([CURL, "--version"], capture_output=True, text=True, check=False)
    return "HTTP2" in told.stdout


@pytest.mark.skipif(not _speaks_http2(), reason="no curl with HTTP/2")
async def test_orders_over_uvicorns_own_http2(site: Any) -> None:
    options = server_options(site.app, site.settings)
    options |= {"port": 0, "http": "zttp", "http2": True}
    server = uvicorn.Server(uvicorn.Config(**options))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        assert not serving.done(), serving.exception()
        await asyncio.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    token = await site.token("ann")

    async def ask(path: str, body: Any = None) -> tuple[str, Any]:
        assert CURL is not None
        given = ["-H", f"Authorization: Bearer {token}", "-H", "Content-Type: application/json"]
        if body is not None:
            given += ["-d", json.dumps(body)]
        process = await asyncio.create_subprocess_exec(
            CURL, "-sS", "--http2-prior-knowledge", "--noproxy", "*", "--max-time", "60",
            "-w", "\n%{http_version} %{http_code}", *given, f"http://127.0.0.1:{port}{path}",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, _ = await process.communicate()
        content, _, line = told.decode().rpartition("\n")
        return line, json.loads(content)

    try:
        line, account = await ask(
            "/v1/accounts", {"name": "a", "starting_balance": {"USDT": "1000"}}
        )
        assert line == "2 201"
        order = {"symbol": "BTC-USDT", "side": "buy", "type": "limit", "quantity": "0.1"}
        line, placed = await ask(
            "/v1/orders", {**order, "limit_price": "99", "account_id": account["id"]}
        )
        assert line == "2 201"
        assert await ask(f"/v1/orders/{placed['id']}") == ("2 200", placed)
        line, problem = await ask("/v1/nothing")
        assert (line, problem["code"]) == ("2 404", "not_found")
    finally:
        await site.streams.drain()
        server.should_exit = True
        await serving
