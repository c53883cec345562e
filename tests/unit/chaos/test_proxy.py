"""The proxy before Postgres breaks connections exactly where it says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chaos.proxy import COMMITTER, AtCommit, Proxy

BEGIN, COMMIT = b"Q\0\0\0\x0aBEGIN\0", b"Q\0\0\0\x0bCOMMIT\0"
BEGUN, COMMITTED = b"C\0\0\0\x0aBEGIN\0", b"C\0\0\0\x0bCOMMIT\0"
BIND, READY = b"B\0\0\0\x0b\0one\0\0\0", b"Z\0\0\0\x05I"
_STATEMENT = b"one\0SELECT certify($1)\0"
PREPARE = b"P" + (len(_STATEMENT) + 4).to_bytes(4) + _STATEMENT


class Postgres:
    """Answers BEGIN and COMMIT with their tags, and remembers what it was sent."""

    def __init__(self) -> None:
        self.heard = b""
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = await reader.readexactly(4)
        await reader.readexactly(int.from_bytes(hello) - 4)
        while data := await reader.read(1000):
            self.heard += data
            for asked, answer in ((BEGIN, BEGUN), (COMMIT, COMMITTED), (BIND, READY)):
                if data == asked:
                    writer.write(answer)
        self.gone.set()
        writer.close()


@pytest.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[Postgres]:
    postgres = Postgres()
    async with await asyncio.start_unix_server(postgres.serve, tmp_path / "socket"):
        yield postgres


@pytest.fixture
async def proxy(tmp_path: Path, postgres: Postgres) -> AsyncIterator[Proxy]:
    proxy = Proxy(lambda: str(tmp_path / "socket"))
    await proxy.start()
    yield proxy
    await proxy.stop()


async def _begun(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    hello = b"\0\3\0\0user\0tbot_app\0" + COMMITTER + b"\0"
    writer.write((len(hello) + 4).to_bytes(4) + hello + BEGIN)
    assert await reader.readexactly(len(BEGUN)) == BEGUN
    return reader, writer


async def _rest(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


async def test_without_trouble_everything_passes(proxy: Proxy, postgres: Postgres) -> None:
    reader, writer = await _begun(proxy)
    writer.write(COMMIT)
    assert await reader.readexactly(len(COMMITTED)) == COMMITTED
    writer.close()
    await postgres.gone.wait()


@pytest.mark.parametrize(
    ("what", "heard"),
    [
        (AtCommit.CUT_BEFORE, BEGIN),
        (AtCommit.CUT_WITHIN, BEGIN + COMMIT[: len(COMMIT) // 2]),
        (AtCommit.CUT_AFTER, BEGIN + COMMIT),
    ],
)
async def test_a_connection_is_cut_at_its_commit(
    proxy: Proxy, postgres: Postgres, what: AtCommit, heard: bytes
) -> None:
    reader, writer = await _begun(proxy)
    done = proxy.arm(what)
    writer.write(COMMIT)
    assert await _rest(reader) == b""
    await done
    if what is not AtCommit.CUT_WITHIN:  # half a message may be reset away before it is read
        assert postgres.heard == heard
    assert heard.startswith(postgres.heard)


@pytest.mark.parametrize(
    ("what", "heard"),
    [(AtCommit.SILENT_BEFORE, BEGIN), (AtCommit.SILENT_AFTER, BEGIN + COMMIT)],
)
async def test_a_connection_falls_silent_at_its_commit(
    proxy: Proxy, postgres: Postgres, what: AtCommit, heard: bytes
) -> None:
    reader, writer = await _begun(proxy)
    done = proxy.arm(what)
    writer.write(COMMIT)
    answer = asyncio.create_task(reader.readexactly(len(COMMITTED)))
    await done
    if what is AtCommit.SILENT_BEFORE:
        assert postgres.heard == heard
    proxy.resume()
    if what is AtCommit.SILENT_AFTER:
        # The answer may come after the resumption: silence falls when it does.
        while not answer.done():
            proxy.resume()
            await asyncio.sleep(0)
    assert await answer == COMMITTED
    writer.close()


async def test_a_statement_that_commits_by_itself_is_a_commit(
    proxy: Proxy, postgres: Postgres
) -> None:
    reader, writer = await _begun(proxy)
    done = proxy.arm(AtCommit.CUT_AFTER)
    writer.write(PREPARE)
    while not postgres.heard.endswith(PREPARE):
        await asyncio.sleep(0)
    assert not done.done()
    writer.write(BIND)
    assert await _rest(reader) == b""
    await done
    assert postgres.heard == BEGIN + PREPARE + BIND


async def test_dropped_connections_end_on_both_sides(proxy: Proxy, postgres: Postgres) -> None:
    reader, _ = await _begun(proxy)
    assert proxy.drop() == 1
    assert await _rest(reader) == b""
    await postgres.gone.wait()
