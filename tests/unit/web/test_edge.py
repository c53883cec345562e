"""What the outermost layer does when an application fails."""

from __future__ import annotations

from typing import Any

import structlog
from starlette.requests import ClientDisconnect

from tbot.core.settings import HttpSettings
from tbot.web.edge import Edge

SCOPE: dict[str, Any] = {
    "type": "http",
    "method": "DELETE",
    "path": "/v1/orders/1",
    "raw_path": b"/v1/orders/1",
    "query_string": b"",
    "headers": [],
    "client": ("127.0.0.1", 1),
}


async def _serve(error: Exception) -> tuple[list[Any], list[Any]]:
    sent: list[Any] = []

    async def application(_scope: Any, _receive: Any, _send: Any) -> None:
        raise error

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    with structlog.testing.capture_logs() as logs:
        await Edge(application, HttpSettings())(dict(SCOPE), receive, send)
    return sent, logs


async def test_a_client_that_hangs_up_is_no_failure_of_ours() -> None:
    sent, logs = await _serve(ClientDisconnect())
    assert not sent
    assert [log["log_level"] for log in logs if log["event"] == "client_gone"] == ["info"]
    assert not [log for log in logs if log["log_level"] == "error"]


async def test_a_bug_answers_500_and_is_logged() -> None:
    sent, logs = await _serve(ValueError("x"))
    assert sent[0]["status"] == 500
    assert [log["log_level"] for log in logs if log["event"] == "request_failed"] == ["error"]
