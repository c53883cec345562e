"""`tbot watch` and the SDK against everything that runs: exchange, boot, candles, streams."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tbot.auth.scopes import Role
from tbot.auth.users import create_user
from tbot.boot import Parts, running
from tbot.client import TBotClient
from tbot.core.settings import Settings
from tbot.serving import address_of, bind, serve_http

PASSWORD = "correct horse battery staple"
SYMBOL = "BTC-USDT"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}


@dataclass
class Live:
    parts: Parts
    url: str
    data_dir: Path

    def client(self) -> TBotClient:
        return TBotClient(self.url, username="ann", password=PASSWORD)

    @property
    def environment(self) -> dict[str, str]:
        return {**ENVIRONMENT, "TBOT_DATA_DIR": str(self.data_dir)}


@pytest.fixture
async def live(
    database_url: str, tmp_path: Path, eventually: Any, start_exchange: Any, undurable: None
) -> AsyncIterator[Live]:
    """A server on a synthetic market, its candles being built, and the user ann."""
    access = await start_exchange("--seed", "7", "--speed", "20")
    settings = Settings(data_dir=tmp_path, http={"port": 0})
    listener = bind(settings)
    url = address_of(listener)
    async with running(settings, database_url, access) as parts:
        await create_user(parts.pool, parts.auth.passwords, "ann", PASSWORD, Role.TRADER)
        stop = asyncio.Event()
        serving = asyncio.create_task(serve_http(parts, listener, stop))
        (tmp_path / "api.json").write_text(json.dumps({"url": url}))
        login = {"username": "ann", "password": PASSWORD}
        (tmp_path / "admin.json").write_text(json.dumps(login))

        async def ready() -> bool:
            return not await parts.unready()

        await eventually(ready, 60)
        try:
            yield Live(parts, url, tmp_path)
        finally:
            stop.set()
            await serving


class Terminal:
    """The other end of a pseudo-terminal in which `tbot watch` runs."""

    def __init__(self, environment: dict[str, str], *arguments: str) -> None:
        self.master, slave = pty.openpty()
        os.set_blocking(self.master, False)
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.resize(100, 30)
        self.output = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tbot", "watch", *arguments],
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        asyncio.get_running_loop().add_reader(self.master, self._read)

    def _read(self) -> None:
        with suppress(OSError):
            self.output += os.read(self.master, 65_536)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def modes(self) -> Any:
        return termios.tcgetattr(self._slave)

    async def end(self) -> int:
        status = await asyncio.to_thread(self.process.wait, 20)
        self._read()
        return status

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self._slave)


async def test_it_draws_resizes_and_leaves_the_terminal_as_it_was(
    live: Live, eventually: Any
) -> None:
    async with live.client() as client:
        account = await client.create_account("main", {"USDT": "10000"})
        bid = (await client.book(SYMBOL)).bids[0][0]
        price = str(int(bid) * 97 // 100)
        order = await client.place(account.id, SYMBOL, "buy", quantity="0.001", limit_price=price)
        resting, canceled = (f"at {price}: {state}".encode() for state in ("new", "canceled"))
        terminal = Terminal(live.environment, SYMBOL, "--interval", "1s")
        try:
            for words in (b"BTC-USDT", b"spread", "│".encode(), resting, b"q quits"):
                await eventually(lambda words=words: words in terminal.output, 30)
            seen = len(terminal.output)
            terminal.resize(60, 12)
            os.kill(terminal.process.pid, signal.SIGWINCH)
            await eventually(lambda: b"\x1b[2J" in terminal.output[seen:], 20)
            await client.cancel(order.id, wait_s=10)
            terminal.resize(100, 30)
            os.kill(terminal.process.pid, signal.SIGWINCH)
            await eventually(lambda: canceled in terminal.output, 20)
            streams = live.parts.streams
            streams.admission.draining = True
            for subscriber in list(streams.hub.subscribers):
                subscriber.close(4101, "test")
            await eventually(lambda: b"connection lost" in terminal.output, 20)
            streams.admission.draining = False
            await eventually(lambda: streams.hub.subscribers, 30)
            terminal.type(b"q")
            assert await terminal.end() == 0
            assert terminal.output.rstrip().endswith(b"\x1b[?25h\x1b[?1049l")
            assert terminal.modes() == terminal.before
        finally:
            terminal.close()


async def test_ctrl_c_is_an_ordinary_end(live: Live, eventually: Any) -> None:
    terminal = Terminal(live.environment, "ETH-USDT")
    try:
        await eventually(lambda: b"ETH-USDT" in terminal.output, 30)
        terminal.type(b"\x03")
        assert await terminal.end() == 0
        assert b"Traceback" not in terminal.output
        assert terminal.modes() == terminal.before
    finally:
        terminal.close()


async def test_without_a_terminal_it_prints_lines(live: Live) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tbot", "watch", SYMBOL, "--interval", "1s", "--lines", "6"),
        env=live.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors
    lines = output.decode().splitlines()
    assert len(lines) == 6 and "\x1b" not in output.decode()
    assert any(" candle " in line for line in lines)
    assert any(f" {SYMBOL} " in line for line in lines)


async def test_what_cannot_be_watched_is_said_in_a_line(live: Live) -> None:
    for arguments, code in ((["--interval", "2m"], 2), (["NO-USDT"], 1)):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tbot", "watch", *arguments),
            env=live.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, errors
        assert errors.startswith(b"tbot: ") and errors.count(b"\n") == 1


async def test_the_stream_and_the_pages_tell_the_same_candles(live: Live, eventually: Any) -> None:
    async with live.client() as client, client.stream() as stream:
        closed = {}
        async for candle in stream.candles(SYMBOL, "1s", interval_ms=0):
            if candle.closed:
                closed[candle.start] = candle
            if len(closed) >= 8:
                break
        status = await client.candles.status(SYMBOL)
        assert (status.venue, status.book, status.orders) == ("paper", "live", "sent")
        assert not status.stale and not status.halts
        async with stream.status(SYMBOL) as statuses:
            assert (await anext(statuses)) == status

        async def stored() -> bool:
            count = await live.parts.pool.fetchval(
                "SELECT count(*) FROM candles WHERE symbol = $1 AND interval_s = 1"
                " AND start_at = ANY ($2)",
                SYMBOL,
                list(closed),
            )
            return bool(count == len(closed))

        await eventually(stored, 30)
        first, last = min(closed), max(closed)
        paged = {}
        async for candle in client.candles.newest(SYMBOL, "1s", begin=first, page=3):
            if candle.start <= last:
                paged[candle.start] = candle
        assert paged == closed
        target = live.data_dir / "candles.csv"
        await client.candles.download(SYMBOL, "1s", target, begin=first)
        lines = target.read_text().splitlines()
        assert lines[0].startswith("start,open,high,low,close")
        assert len(lines) > len(closed)
