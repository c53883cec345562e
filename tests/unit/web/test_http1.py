"""The shorter way through uvicorn: bodies in parts, and applications that do not end well."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import Any

import pytest

from tbot.web.connections import GuardedProtocol
from tbot.web.http1 import _known_target, _plain_target, written


async def ended(connection: GuardedProtocol) -> None:
    """Wait for the requests under way."""
    await asyncio.gather(*connection.tasks)
    assert not connection.tasks


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the target and the body that came."""
    body = b""
    more = True
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    body = scope["path"].encode() + b"?" + scope["query_string"] + b" " + body
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


HEAD = b"POST /a?b=c HTTP/1.1\r\nHost: t\r\nContent-Length: 6\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [HEAD + b"abcdef"],
        [HEAD, b"abcdef"],
        [HEAD, b"abc", b"def"],
        [HEAD[:20], HEAD[20:] + b"abcde", b"f"],
    ],
)
async def test_a_body_comes_in_any_parts(connected: Any, parts: list[bytes]) -> None:
    connection, transport = connected(echo)
    for part in parts:
        connection.data_received(part)
        await asyncio.sleep(0)
    await ended(connection)
    assert transport.written.endswith(b"\r\n\r\n/a?b=c abcdef")
    connection.connection_lost(None)


async def test_requests_at_once_are_answered_in_order(connected: Any) -> None:
    connection, transport = connected(echo)
    connection.data_received(HEAD + b"abcdef" + HEAD + b"ghijkl")
    while connection.tasks:
        await asyncio.gather(*connection.tasks)
    first, second = transport.written.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"abcdef")
    assert second.endswith(b"ghijkl")
    connection.connection_lost(None)


@pytest.mark.parametrize("how", ["raised", "silent"])
async def test_an_application_without_an_answer_is_a_500(
    connected: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if how == "raised":
            raise RuntimeError("lost")

    connection, transport = connected(app)
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        connection.data_received(HEAD + b"abcdef")
        await ended(connection)
    assert transport.written.startswith(b"HTTP/1.1 500 ")
    assert transport.closing
    assert [record.name for record in caplog.records] == ["uvicorn.error"]
    connection.connection_lost(None)


async def test_half_an_answer_ends_the_connection(
    connected: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

    connection, transport = connected(app)
    with caplog.at_level(logging.ERROR, "uvicorn.error"):
        connection.data_received(HEAD + b"abcdef")
        await ended(connection)
    assert transport.closing
    assert "without completing" in caplog.text
    connection.connection_lost(None)


@pytest.mark.parametrize(
    "later",
    [
        b"GET /b HTTP/1.1\r\nX-Long: " + b"x" * 200_000,
        b"\x00\x01 junk\r\n\r\n",
        b"POST /b HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
    ],
    ids=["long", "junk", "body"],
)
async def test_what_is_wrong_with_a_later_request_is_no_answer_to_this_one(
    connected: Any, later: bytes
) -> None:
    done: list[str] = []
    going = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await going.wait()
        done.append(scope["path"])

    connection, transport = connected(app)
    connection.data_received(HEAD + b"abcdef")
    await asyncio.sleep(0)
    connection.data_received(later)
    assert transport.closing
    assert transport.written == b"", "the outcome is not known: nobody is told that it failed"
    going.set()
    await ended(connection)
    assert done == ["/a"]
    connection.connection_lost(None)


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_a_request_that_failed_leaves_nothing_behind(
    connected: Any, error: type[BaseException]
) -> None:
    class Kept:
        """What an application had in its hands."""

    left: weakref.WeakSet[Kept] = weakref.WeakSet()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        kept = Kept()
        left.add(kept)
        raise error

    connection, _ = connected(app)
    logging.getLogger("uvicorn.error").addFilter(_swallow)
    gc.disable()
    try:
        connection.data_received(HEAD + b"abcdef")
        (task,) = connection.tasks
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        del task
        await asyncio.sleep(0)
        assert not left
    finally:
        gc.enable()
        logging.getLogger("uvicorn.error").removeFilter(_swallow)
        connection.connection_lost(None)


def _swallow(record: logging.LogRecord) -> bool:
    """A record that is captured would hold the error, too."""
    return False


def test_a_target_that_asks_for_something_is_not_remembered() -> None:
    size = _known_target.cache_info().currsize
    assert _plain_target(b"/v1/events?ticket=short") == (
        "/v1/events",
        b"/v1/events",
        b"ticket=short",
    )
    assert _known_target.cache_info().currsize == size


async def test_an_answer_that_is_written_at_once_goes_out_at_once(connected: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert written(send, 200, [(b"content-length", b"2")], b"ok")

    connection, transport = connected(app)
    connection.data_received(HEAD + b"abcdef")
    await ended(connection)
    assert transport.written.endswith(b"\r\n\r\nok")
    assert transport.limits == [0], "nothing is kept back"
    transport.write(b"later")
    assert transport.limits == [0, None], "and what else is written is collected as before"
    connection.connection_lost(None)
