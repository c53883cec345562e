"""A connection that does not take its last answer is not kept for it."""

from __future__ import annotations

from typing import Any


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("nothing is asked")


async def test_who_does_not_read_the_last_answer_is_cut(connected: Any) -> None:
    connection, transport = connected(app)
    connection.data_received(b"this is no request\r\n\r\n")
    assert transport.written.startswith(b"HTTP/1.1 400 ")
    assert transport.closing
    since_s, patience_s = connection.watch.now_s, connection.watch.settings.write_timeout_s
    connection.look(since_s + patience_s)
    assert not transport.aborted
    connection.look(since_s + patience_s + 0.1)
    assert transport.aborted
    connection.connection_lost(None)
