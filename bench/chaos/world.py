"""A T-Bot in a temporary directory, as a user starts it, and the means to kill its parts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

START_TIMEOUT_S = 120.0
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class World:
    """One `tbot up` and its children.

    Args:
        directory: Its data directory's parent.
        settings: More environment for it, as `{"TBOT_EXCHANGE__SEED": "3"}`.
    """

    def __init__(self, directory: Path, settings: dict[str, str] | None = None) -> None:
        self.data_dir = directory / "data"
        self.port = free_port()
        self.exchange_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = directory / "tbot.log"
        self.faults: dict[str, int] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TBOT_")},
            "PYTHONPATH": str(REPOSITORY / "src"),
            "TBOT_DATA_DIR": str(self.data_dir),
            "TBOT_HTTP__PORT": str(self.port),
            "TBOT_EXCHANGE__PORT": str(self.exchange_port),
            "TBOT_LOG_FORM": "json",
            **(settings or {}),
        }

    async def start(self) -> None:
        """Start `tbot up` and return once it is ready.

        Raises:
            RuntimeError: It ended, or is not ready in time; its last log lines are in the message.
        """
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "tbot",
                "up",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        async with httpx.AsyncClient() as client:
            deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(f"{self.url}/health/ready")
                    if answer.status_code == 200:
                        return
                if self._process.returncode is not None:
                    raise RuntimeError(f"tbot up ended\n{self._last_words()}")
                if asyncio.get_running_loop().time() > deadline_s:
                    raise RuntimeError(f"tbot up is not ready\n{self._last_words()}")
                await asyncio.sleep(0.05)

    def _last_words(self) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-30:])

    async def kill(self, part: str) -> None:
        """`kill -9` one part: `api`, `postgres` or `exchange`. A killed API is started again."""
        self.faults[part] = self.faults.get(part, 0) + 1
        if part == "api":
            assert self._process is not None
            self._process.kill()
            await self._process.wait()
            await self.start()
            return
        pid = self._pid_of(part)
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pid_of(self, part: str) -> int | None:
        """Find a child by its data directory: the pid files may be stale."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            text = b" ".join(command).decode(errors="replace")
            if str(self.data_dir) not in text:
                continue
            if part == "postgres" and command[0].endswith(b"/postgres"):
                return int(entry.name)
            if part == "exchange" and "tbot" in text and "exchange" in text and parent != 1:
                return int(entry.name)
        return None

    async def stop(self) -> int:
        """Ctrl-C; the exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
            try:
                await asyncio.wait_for(self._process.wait(), 60)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        return self._process.returncode or 0

    @property
    def credentials(self) -> dict[str, Any]:
        """What `tbot up` wrote for the first administrator."""
        found: dict[str, Any] = json.loads((self.data_dir / "admin.json").read_text())
        return found

    @property
    def exchange_key(self) -> dict[str, Any]:
        """The paper exchange's API key."""
        path = self.data_dir / "exchange" / "exchange.json"
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    @property
    def database_url(self) -> str:
        """URL of the embedded database, for the role that may only do what the server may."""
        recorded = json.loads((self.data_dir / "postgres.socket.json").read_text())
        password = (self.data_dir / "credentials" / "postgres-app").read_text().strip()
        host = quote(recorded["directory"], safe="/")
        return f"postgresql://tbot_app:{quote(password, safe='')}@/tbot?host={host}&sslmode=disable"

    async def run(self, *arguments: str) -> tuple[int, str]:
        """Run a `tbot` command against this data directory; exit code and output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tbot",
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode(errors="replace")


@contextlib.asynccontextmanager
async def running(
    settings: dict[str, str] | None = None, keep: bool = False
) -> AsyncIterator[World]:
    """A started world in a temporary directory that Postgres' own user can reach."""
    directory = Path(tempfile.mkdtemp(prefix="tbot-chaos-"))
    directory.chmod(0o711)
    world = World(directory, settings)
    try:
        await world.start()
        yield world
    finally:
        if world._process is not None:
            await world.stop()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
