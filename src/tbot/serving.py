"""The HTTP server of a process: its address, taken early, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import resource
import socket
from collections.abc import Iterator
from typing import Final

import structlog
import uvicorn

from tbot.boot import Parts
from tbot.core.errors import ConfigurationError, TBotError
from tbot.core.settings import Settings
from tbot.web.server import server_options

_FILES_BESIDE: Final = 512
"""Open files besides clients' connections: database, venues, logs."""

_log = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers: who called decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(settings: Settings) -> socket.socket:
    """Take the API's address.

    Raises:
        ConfigurationError: It is in use, or not ours; the message says what to do.
    """
    http = settings.http
    try:
        family = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(
            f"{http.host!r} is no address to listen on ({error}): set TBOT_HTTP__HOST"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((http.host, http.port))
        # Whoever else tries now fails at once; who connects already is served as soon as we can.
        listener.listen(2048)
    except OSError as error:
        listener.close()
        why = (
            "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        )
        raise ConfigurationError(
            f"the address {http.host}:{http.port} {why}: stop what uses it, or choose another port "
            "with TBOT_HTTP__PORT"
        ) from None
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL that a person or program on this machine reaches the API at."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 -- compared  # nosec B104
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104 # nosec B104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def settle_collector() -> None:
    """Spare the garbage collector what lasts, and have it look less often.

    With Python's own thresholds it takes a sixth of the time of a busy server: orders that stay in
    memory make it look through everything again and again. Hardly anything here is a cycle.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)


def allow_connections(settings: Settings) -> None:
    """Raise this process' limit of open files to what its clients take, if it may.

    Many systems give a process 1,024 of them unless it asks for more. Where it may not have as many
    as `stream.clients_max` and `overload.connections_max` promise, a warning says so.
    """
    wanted = settings.stream.clients_max + settings.overload.connections_max + _FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (OSError, ValueError):  # some systems have a limit below the one that they tell
        allowed = soft
    if allowed < wanted:
        _log.warning("open_files_limited", limit=allowed, wanted=wanted)


async def serve_http(parts: Parts, listener: socket.socket, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then send streams away, let requests end, and return.

    Raises:
        TBotError: The server ended by itself.
    """
    settle_collector()
    allow_connections(parts.settings)
    server = _Server(uvicorn.Config(**server_options(parts.app, parts.settings)))
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="http")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
            raise TBotError("the HTTP server ended by itself")
        await parts.streams.drain()
    finally:
        stopping.cancel()
        server.should_exit = True
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({serving}, timeout=parts.settings.http.shutdown_timeout_s + 2.0)
        serving.cancel()
