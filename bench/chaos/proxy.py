"""A TCP proxy before Postgres that breaks connections in every way a network can.

It reads enough of the wire protocol to know a COMMIT when it sees one: messages are forwarded one
by one, so a connection can be cut, or fall silent, just before the COMMIT goes to Postgres, in the
middle of it, or after Postgres has carried it out and before its answer goes back. A statement that
commits by itself, as most batches are written, counts as one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

COMMITTER = b"application_name\0tbot committer\0"
_COMMIT = b"COMMIT\0"
_COMMITS_BY_ITSELF = b"certify("


class AtCommit(StrEnum):
    """What to do to the next connection on which a COMMIT comes along."""

    CUT_BEFORE = "cut_before"
    CUT_WITHIN = "cut_within"
    CUT_AFTER = "cut_after"
    SILENT_BEFORE = "silent_before"
    SILENT_AFTER = "silent_after"


@dataclass(eq=False)
class _Link:
    """One connection through the proxy.

    Attributes:
        up, down: While cleared, nothing is forwarded in that direction.
        lost: It never speaks again.
        spoke_s: When something was last forwarded: what comes in one burst is delayed once.
        doomed: What happens to it once Postgres has answered its COMMIT.
        prepared: Names of its statements that commit by themselves.
    """

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    committer: bool = False
    up: asyncio.Event = field(default_factory=asyncio.Event)
    down: asyncio.Event = field(default_factory=asyncio.Event)
    spoke_s: float = 0.0
    lost: bool = False
    doomed: AtCommit | None = None
    prepared: set[bytes] = field(default_factory=set)

    def cut(self) -> None:
        """Reset both sides."""
        for writer in (self.client, self.server):
            with contextlib.suppress(OSError, RuntimeError):
                writer.transport.abort()


def is_commit(message: bytes, prepared: set[bytes]) -> bool:
    """Whether a message of the client's carries a COMMIT, or runs what commits by itself.

    Args:
        prepared: Names of statements that do; a message that prepares one adds its name.

    Example:
        >>> is_commit(b"Q....COMMIT\\0", set()), is_commit(b"Q....BEGIN\\0", set())
        (True, False)
        >>> known = set()
        >>> is_commit(b"P....one\\0SELECT certify($1)\\0..", known), known
        (False, {b'one'})
        >>> is_commit(b"B....\\0one\\0..", known)
        True
    """
    kind, body = message[:1], message[5:]
    if kind == b"B":
        return body.split(b"\0", 2)[1] in prepared
    if kind == b"P" and _COMMITS_BY_ITSELF in body:
        prepared.add(body.split(b"\0", 1)[0])
        return False
    return kind in (b"Q", b"P") and _COMMIT in body.upper()


def _is_done(message: bytes) -> bool:
    """Whether Postgres says with it that a COMMIT has taken effect: by its tag, or being ready."""
    return message[:1] == b"Z" or (message[:1] == b"C" and _COMMIT in message)


class Proxy:
    """Listens on a loopback port and forwards to Postgres' unix socket.

    Args:
        target: Path of the socket; asked at every connection.
    """

    def __init__(self, target: Callable[[], str]) -> None:
        self._target = target
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._armed: tuple[AtCommit, asyncio.Future[None]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.delay_s = 0.0
        self.port = 0

    async def start(self) -> None:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut everything and stop listening."""
        if self._server is not None:
            self._server.close()
        self.drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def drop(self) -> int:
        """Reset every connection; how many there were."""
        links = list(self._links)
        for link in links:
            link.cut()
        return len(links)

    def silence(self, up: bool, down: bool, for_good_s: float | None = None) -> Callable[[], None]:
        """Stop forwarding on all present connections, without closing any; call to go on.

        Args:
            for_good_s: They stay silent, and are reset after this time.
        """
        links = list(self._links)
        if for_good_s is not None:
            for link in links:
                link.lost = True
                asyncio.get_running_loop().call_later(for_good_s, link.cut)
        for link in links:
            if up:
                link.up.clear()
            if down:
                link.down.clear()

        def resume() -> None:
            for link in links:
                link.up.set()
                link.down.set()

        return resume

    def arm(self, what: AtCommit) -> asyncio.Future[None]:
        """Do this at the next COMMIT of a committer; the future tells when it was done."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._armed = what, done
        return done

    def disarm(self) -> None:
        """Forget what was armed and did not happen."""
        self._armed = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            server_reader, server_writer = await asyncio.open_unix_connection(self._target())
        except OSError:
            writer.transport.abort()
            self._tasks.discard(task)
            return
        link = _Link(writer, server_writer)
        link.up.set()
        link.down.set()
        self._links.add(link)
        pumps = (
            asyncio.create_task(self._upward(link, reader)),
            asyncio.create_task(self._downward(link, server_reader)),
        )
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            # One side is gone. What the silent other one still holds back goes out first: bytes
            # that were on their way arrive even when their sender has died.
            await asyncio.wait(pumps, timeout=10.0)
        finally:
            for pump in pumps:
                pump.cancel()
            self._links.discard(link)
            link.cut()
            self._tasks.discard(task)

    async def _upward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            head = await reader.readexactly(4)
            hello = head + await reader.readexactly(int.from_bytes(head) - 4)
            link.committer = COMMITTER in hello
            await self._forward(link, hello, True)
            while True:
                message = await _message(reader)
                commits = link.committer and is_commit(message, link.prepared)
                if self._armed is not None and commits:
                    what, done = self._armed
                    self._armed = None
                    await self._at_commit(link, message, what, done)
                else:
                    await self._forward(link, message, True)
        with contextlib.suppress(OSError, RuntimeError):
            link.server.write_eof()

    async def _at_commit(
        self, link: _Link, message: bytes, what: AtCommit, done: asyncio.Future[None]
    ) -> None:
        if what in (AtCommit.CUT_AFTER, AtCommit.SILENT_AFTER):
            link.doomed = what
            await self._forward(link, message, True)
        elif what is AtCommit.CUT_BEFORE:
            link.cut()
        elif what is AtCommit.CUT_WITHIN:
            link.server.write(message[: len(message) // 2])
            await link.server.drain()
            link.cut()
        else:
            link.up.clear()
        if not done.done():
            done.set_result(None)
        if what is AtCommit.SILENT_BEFORE:
            await self._forward(link, message, True)

    async def _downward(self, link: _Link, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            while True:
                if not link.committer:
                    data = await reader.read(65_536)
                    if not data:
                        break
                    await self._forward(link, data, False)
                    continue
                message = await _message(reader)
                if link.doomed is not None and _is_done(message):
                    if link.doomed is AtCommit.CUT_AFTER:
                        link.cut()
                        return
                    link.down.clear()
                await self._forward(link, message, False)
        with contextlib.suppress(OSError, RuntimeError):
            link.client.write_eof()

    async def _forward(self, link: _Link, data: bytes, upward: bool) -> None:
        if self.delay_s:
            clock = asyncio.get_running_loop().time
            if clock() - link.spoke_s > self.delay_s / 4:
                await asyncio.sleep(self.delay_s)
            link.spoke_s = clock()
        await (link.up if upward else link.down).wait()
        writer = link.server if upward else link.client
        writer.write(data)
        await writer.drain()

    def resume(self) -> None:
        """Let every silent connection speak again."""
        for link in self._links:
            if not link.lost:
                link.up.set()
                link.down.set()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """One whole message of the protocol: a type byte, a length, and what it counts."""
    head = await reader.readexactly(5)
    return head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
