"""The paper exchange as a supervised child.

It runs in a session of its own, so that a terminal's Ctrl-C reaches only us and we stop it in
order. It holds the end of a pipe as its standard input: when we die, however, the pipe ends and
the exchange stops by itself. Its words go to `exchange.log`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Final, NoReturn

import structlog

from tbot.core.errors import ConfigurationError
from tbot.core.settings import ExchangeSettings
from tbot.db.process import Process, bound_log
from tbot.exchange import credentials

_POLL_INTERVAL_S: Final = 0.02
_PATIENCE_S: Final = 10.0
_RESTART_DELAY_S: Final = (0.2, 0.5, 2.0, 5.0)
_HEALTHY_AFTER_S: Final = 60.0

_log = structlog.get_logger(__name__)


class ExchangeChild:
    """The paper exchange of a data directory.

    Args:
        settings: Where it listens; the rest it reads from the environment, as we did.
        data_dir: Its own directory.
        log: File for what it says.
    """

    def __init__(self, settings: ExchangeSettings, data_dir: Path, log: Path) -> None:
        self._settings = settings
        self._port = settings.port
        self._data_dir = data_dir
        self._log_file = log
        self._process: Process | None = None
        self._pipe = -1
        self._log_from = 0
        self._written_ns = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it is known to run."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it and return; `ready` waits until it listens.

        Raises:
            ConfigurationError: It could not be started at all.
        """
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._written_ns = self._written()
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        output = os.open(self._log_file, flags, 0o600)
        theirs, ours = os.pipe()
        try:
            self._log_from = os.fstat(output).st_size
            self._process = Process.spawn(
                [sys.executable, "-m", "tbot.exchange", *self._options()],
                environment=os.environ,
                cwd=Path.cwd(),
                output=output,
                stdin=theirs,
            )
            self._pipe = ours
        except OSError as error:
            os.close(ours)
            raise ConfigurationError(f"the paper exchange does not start: {error}") from None
        finally:
            os.close(theirs)
            os.close(output)

    def _options(self) -> list[str]:
        return [
            f"--data-dir={self._data_dir}",
            f"--host={self._settings.host}",
            f"--port={self._port}",
            "--die-with-parent",
        ]

    def _written(self) -> int:
        try:
            return (self._data_dir / credentials.FILE).stat().st_mtime_ns
        except OSError:
            return 0

    async def ready(self) -> None:
        """Wait until it listens; one of an earlier run that still stops is waited for.

        Raises:
            ConfigurationError: It ended instead; the message is its own.
        """
        deadline_s = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            assert self._process is not None
            if not self._process.running:
                if asyncio.get_running_loop().time() > deadline_s or not self._crowded():
                    raise ConfigurationError(self._last_words())
                await asyncio.sleep(10 * _POLL_INTERVAL_S)
                self._forget()
                self.start()
            elif self._written() != self._written_ns and await self._listens():
                return
            await asyncio.sleep(_POLL_INTERVAL_S)

    def _crowded(self) -> bool:
        """Whether the last attempt failed because the one before has not quite gone."""
        return "another paper exchange uses" in self._said()

    async def _listens(self) -> bool:
        found = credentials.load(self._data_dir)
        if found is None or not found.port:
            return False
        try:
            _, writer = await asyncio.open_connection(found.host, found.port)
        except OSError:
            return False
        writer.close()
        self._port = found.port  # after a restart it is found where it was
        return True

    def _said(self) -> str:
        try:
            with self._log_file.open("rb") as file:
                file.seek(self._log_from)
                return file.read(65_536).decode(errors="replace")
        except OSError:
            return ""

    def _last_words(self) -> str:
        lines = self._said().strip().splitlines()
        for line in reversed(lines):
            if line.startswith("tbot exchange: "):
                return f"the paper exchange: {line.removeprefix('tbot exchange: ')}"
        last = lines[-1] if lines else "it said nothing"
        return f"the paper exchange ended at once: {last} (see {self._log_file})"

    async def supervise(self) -> NoReturn:
        """Start it again whenever it ends; run this as a task and cancel it before `stop`."""
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            begun_s = loop.time()
            while self._process is not None and not await self._process.wait(60.0):
                bound_log(self._log_file)
            status = None if self._process is None else self._process.returncode
            if loop.time() - begun_s > _HEALTHY_AFTER_S:
                failures = 0
            _log.error("exchange_died", status=status)
            await asyncio.sleep(_RESTART_DELAY_S[min(failures, len(_RESTART_DELAY_S) - 1)])
            failures += 1
            self._forget()
            try:
                self.start()
                await self.ready()
                _log.info("exchange_restarted", pid=self.pid)
            except ConfigurationError as error:
                _log.error("exchange_restart_failed", error=str(error))

    async def stop(self) -> None:
        """End it: asked first, then killed; safe to call twice."""
        process = self._process
        if process is not None:
            process.signal(signal.SIGTERM)
            if not await process.wait(_PATIENCE_S):
                _log.warning("exchange_stops_slowly")
                process.kill_session()
                await process.wait(2.0)
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
