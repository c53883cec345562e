"""A T-Bot in a temporary directory, and the means to get at its parts.

Two API processes share one database: `tbot up`, which runs Postgres and the paper exchange and
reaches the database through its private socket, and `tbot serve`, which reaches it by TCP through
our proxy. Both are started again whenever they end, as an init system would.
"""

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

import asyncpg
import httpx

from .proxy import Proxy

START_TIMEOUT_S = 120.0
RESTART_DELAY_S = 0.1
REPOSITORY = Path(__file__).resolve().parent.parent.parent

# What makes recoveries quick enough to have many of them; none of it changes what must hold.
SETTINGS = {
    "TBOT_LOG_LEVEL": "warning",
    "TBOT_HTTP__ACCESS_LOG": "errors",
    "TBOT_GATEWAY__ABSENCE_MARGIN_S": "1",
    "TBOT_GATEWAY__SEND_BY_S": "3",
    "TBOT_COMMITTER__TRANSACTION_TIMEOUT_S": "3",
    "TBOT_DATABASE__STATEMENT_TIMEOUT_S": "3",
    "TBOT_EXCHANGE__ORDERS_KEPT": "5000000",
    "TBOT_EXCHANGE__EXECUTIONS_KEPT": "5000000",
    "TBOT_EXCHANGE__ORDERS_10S_MAX": "1000000",
    "TBOT_EXCHANGE__WEIGHT_1M_MAX": "10000000",
    # Quotas would bound the load before anything else does.
    **{
        f"TBOT_LIMITS__{policy}": "100000000/1s"
        for policy in ("ADDRESS", "USER", "KEY", "READS", "WRITES", "ORDERS", "CANCELS")
    },
}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Program:
    """A `tbot` command that is started again whenever it ends.

    Args:
        arguments: Of `tbot`.
        environment: Whole.
        log: What it says goes there.
    """

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._arguments = arguments
        self._environment = environment
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Start it and keep it running."""
        self._keeping = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while True:
            with self._log.open("ab") as log:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "tbot",
                    *self._arguments,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    start_new_session=True,
                )
            self.starts += 1
            await self._process.wait()
            await asyncio.sleep(RESTART_DELAY_S)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self) -> None:
        """Ctrl-C, then patience, then force; it is not started again."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._process is None or self._process.returncode is not None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self._process.wait(), 60)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self._process.wait()

    def last_words(self) -> str:
        """The end of what it said."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:])


class World:
    """One or two API processes, their children, and the proxy.

    Args:
        directory: The data directory's parent.
        settings: More environment for them, as `{"TBOT_EXCHANGE__SEED": "3"}`.
        second: Whether there is a second API process, behind the proxy.
    """

    def __init__(self, directory: Path, settings: dict[str, str], *, second: bool) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.ports = (free_port(), free_port())
        self.urls = tuple(f"http://127.0.0.1:{port}" for port in self.ports)
        self.url = self.urls[0]
        self.exchange_port = free_port()
        self._second = second
        self.proxy = Proxy(self._socket)
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("TBOT_")},
            "TBOT_LOG_FORM": "json",
            "PYTHONPATH": str(REPOSITORY / "src"),
            "TBOT_DATA_DIR": str(self.data_dir),
            "TBOT_EXCHANGE__PORT": str(self.exchange_port),
            **settings,
        }
        first = self._environment | {"TBOT_HTTP__PORT": str(self.ports[0])}
        self.programs = [Program(["up"], first, directory / "up.log")]

    async def start(self) -> None:
        """Start everything and return once every API process is ready.

        Raises:
            RuntimeError: One is not ready in time; its last log lines are in the message.
        """
        await self.proxy.start()
        self.programs[0].start()
        await self.ready(0)
        if not self._second:
            return
        second = self._environment | {
            "TBOT_HTTP__PORT": str(self.ports[1]),
            "TBOT_DATABASE__URL": self._url(f"127.0.0.1:{self.proxy.port}"),
        }
        self.programs.append(Program(["serve"], second, self.directory / "serve.log"))
        self.programs[1].start()
        await self.ready(1)

    async def ready(self, number: int) -> None:
        """Return once an API process says that it is ready.

        Raises:
            RuntimeError: It does not in time.
        """
        deadline_s = asyncio.get_running_loop().time() + START_TIMEOUT_S
        async with httpx.AsyncClient(timeout=5) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(f"{self.urls[number]}/health/ready")
                    if answer.status_code == 200:
                        return
                if asyncio.get_running_loop().time() > deadline_s:
                    words = self.programs[number].last_words()
                    raise RuntimeError(f"{self.urls[number]} is not ready\n{words}")
                await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop everything in order."""
        for program in reversed(self.programs):
            await program.stop()
        await self.proxy.stop()

    def pids(self) -> dict[int, str]:
        """Every process that belongs to this data directory, except us: its id and its command."""
        here = str(self.directory)
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                place = str((entry / "cwd").readlink())
                if state != "Z" and (here in command or here in environment or here in place):
                    found[int(entry.name)] = command.strip()
        return found

    def postgres(self) -> list[int]:
        """Process ids of the database server: the postmaster first, then its children."""
        found = [
            (not command.split(" ")[0].endswith("/postgres"), pid)
            for pid, command in self.pids().items()
            if command.split(" ")[0].endswith("/postgres") or command.startswith("postgres: ")
        ]
        return [pid for _, pid in sorted(found)]

    def exchange(self) -> int | None:
        """Process id of the paper exchange."""
        return next((p for p, c in self.pids().items() if "-m tbot.exchange" in c), None)

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

    def _socket_directory(self) -> str:
        recorded = json.loads((self.data_dir / "postgres.socket.json").read_text())
        return str(recorded["directory"])

    def _socket(self) -> str:
        try:
            return f"{self._socket_directory()}/.s.PGSQL.5432"
        except ValueError:
            return "/nonexistent"

    def _url(self, host: str) -> str:
        password = (self.data_dir / "credentials" / "postgres-app").read_text().strip()
        return f"postgresql://tbot_app:{quote(password, safe='')}@{host}/tbot?sslmode=disable"

    async def connect(self) -> asyncpg.Connection[Any]:
        """A connection of our own to the database, past the proxy."""
        host = quote(self._socket_directory(), safe="/")
        return await asyncpg.connect(f"{self._url('')}&host={host}", timeout=10)

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
    settings: dict[str, str] | None = None, *, second: bool = False, keep: bool = False
) -> AsyncIterator[World]:
    """A started world in a temporary directory that Postgres' own user can reach.

    Args:
        settings, second: See `World`.
        keep: Leave the directory behind, for a look.
    """
    directory = Path(tempfile.mkdtemp(prefix="tbot-chaos-"))
    directory.chmod(0o711)
    world = World(directory, settings or {}, second=second)
    try:
        await world.start()
        yield world
    finally:
        await world.stop()
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)
