"""The embedded Postgres: started, adopted, supervised and stopped by T-Bot itself.

The server is a direct child in a session of its own, so a terminal's Ctrl-C does not reach it, and
it outlives a `kill -9` of T-Bot: the next start adopts it. What tells a survivor from a stale file
is a lock that every process of the server inherits (`postgres.alive`), never a process id.

Invariants:

1. One T-Bot at a time runs the server of a data directory (`postgres.lock`).
2. A server is started only while nothing of an earlier one lives (`postgres.alive`), so a stale or
   torn `postmaster.pid` can be removed safely.
3. A survivor is adopted only after it has shown that it knows our password (SCRAM is mutual), that
   it serves this directory and that it is the cluster of our marker.
4. It is never used with fsync, full_page_writes or synchronous_commit off.
5. `stop` leaves no server behind, whoever started it.

Entry point: `EmbeddedPostgres`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import asyncpg
import structlog

from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.db import cluster
from tbot.db.access import DATABASE, database_dsn, prepare_roles, require_durable
from tbot.db.cluster import FileLock, RoleName, make_private
from tbot.db.placement import SOCKET_NAME, Runner, binaries_for, runner_for, socket_directory
from tbot.db.process import Process, bound_log, last_words, listener_pid

_CONNECT_TIMEOUT_S: Final = 5.0
_AUTHENTICATION: Final = "scram-sha-256"
_POLL_INTERVAL_S: Final = 0.02
_PROGRESS_AFTER_S: Final = 1.5
_ORPHANS_TIMEOUT_S: Final = 60.0
_RESTART_DELAY_S: Final = (0.1, 0.5, 2.0, 5.0)

_log = structlog.get_logger(__name__)


class EmbeddedPostgres:
    """The database server of one data directory.

    Args:
        data_dir: Created where missing; relative paths are made absolute at once.
        start_timeout_s: How long it may take to be ready, recovery included.
        stop_timeout_s: How long a clean stop may take; then it stops without a checkpoint and
            recovers at the next start.
        options: Server settings for the command line, on top of ours.
        throw_away: For tests alone: durability is not demanded.
        die_with_parent: For tests: the server ends when the thread that started it does.
        progress: Called with a sentence now and then while a start takes long.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        start_timeout_s: float = 600.0,
        stop_timeout_s: float = 20.0,
        options: Mapping[str, str] | None = None,
        throw_away: bool = False,
        die_with_parent: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self.data_dir = data_dir.absolute()
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._options = dict(options or {})
        self._throw_away = throw_away
        self._death_signal = signal.SIGQUIT if die_with_parent else None
        self._progress = progress or (lambda _text: None)
        self._lock = FileLock(self.data_dir / "postgres.lock")
        self._alive = FileLock(self.data_dir / "postgres.alive")
        self._process: Process | None = None
        self._runner: Runner | None = None
        self._programs: Path | None = None
        self._socket_dir: Path | None = None
        self._stopping = False
        self.adopted = False

    async def __aenter__(self) -> Self:
        """Start the server."""
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop the server."""
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id while it is known to run."""
        return self._process.pid if self._process is not None else None

    @property
    def programs(self) -> Path:
        """Where `pg_dump` and its like are; only after `start`."""
        if self._programs is None:
            raise RuntimeError("the server has not been started")
        return self._programs

    def dsn(self, role: RoleName = "app", database: str = DATABASE) -> str:
        """A URL for asyncpg and for Postgres' own tools; it contains the role's password."""
        if self._socket_dir is None:
            raise RuntimeError("the server has not been started")
        return database_dsn(self.data_dir, self._socket_dir, role, database)

    def claim(self) -> None:
        """Make the data directory ours; `start` does it too, `stop` gives it back.

        Raises:
            DataDirectoryError: It is in use, or cannot be used.
        """
        make_private(self.data_dir)
        if not self._lock.acquire():
            raise DataDirectoryError(
                f"the data directory {self.data_dir} is in use by the T-Bot with process id "
                f"{self._lock.holder()}: stop that one, or choose another with TBOT_DATA_DIR"
            )
        self._lock.note_holder()

    async def start(self) -> None:
        """Bring the server up: adopt a survivor, or make the cluster where there is none, and run.

        Raises:
            DataDirectoryError: The data directory is in use, lost, or of another version.
            ConfigurationError: The machine does not allow a start. Either message says what to do.
        """
        self.claim()
        try:
            await self._start()
        except BaseException:
            await self._end_process(signal.SIGQUIT)
            self._release()
            raise

    async def _start(self) -> None:
        self._stopping = False
        entry = self.data_dir / "postgres"
        self._runner = runner_for(entry)
        self._programs = binaries_for(self._runner)
        async with asyncio.timeout(self._start_timeout_s) as limit:
            try:
                if not cluster.check_cluster(self.data_dir):
                    await self._wait_for_orphans()
                    self._progress("Making the database…")
                    await cluster.make_cluster(
                        self.data_dir, self._runner, self._programs, self._alive
                    )
                    self._alive.release()
                await self._bring_up()
            except TimeoutError:
                if not limit.expired():
                    raise
                raise ConfigurationError(
                    f"Postgres was not ready within {self._start_timeout_s:g} s: look at "
                    f"{self._log_file()}, or allow more with TBOT_DATABASE__START_TIMEOUT_S"
                ) from None

    async def _bring_up(self) -> None:
        """Adopt or launch, wait until it answers, and check what answers."""
        while True:
            if self._alive.acquire() or not await self._adopt():
                self._launch()
            connection = await self._ready()
            if connection is not None:
                break
            self._forget()  # a survivor that was on its way out
        try:
            await self._check(connection)
            await prepare_roles(connection, self.data_dir)
        finally:
            await connection.close()

    async def _adopt(self) -> bool:
        """Wait for a survivor to answer, or for the last of it to be gone (False)."""
        recorded = cluster.read_json(self.data_dir / "postgres.socket.json") or {}
        self._socket_dir = Path(recorded["directory"]) if "directory" in recorded else None
        deadline = asyncio.get_running_loop().time() + _ORPHANS_TIMEOUT_S
        while True:
            if self._alive.acquire():
                return False
            pid = self._listener()
            if pid is not None:
                self._process = Process.adopt(pid)
                self.adopted = True
                _log.info("postgres_adopted", pid=pid)
                return True
            if asyncio.get_running_loop().time() > deadline:
                raise DataDirectoryError(
                    f"an earlier Postgres of {self.data_dir} still runs but cannot be reached "
                    f"(process id {self._pid_on_file()}): end it with `kill -INT`, then start again"
                )
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _wait_for_orphans(self) -> None:
        """Take the life lock; what an interrupted start left behind ends by itself."""
        deadline = asyncio.get_running_loop().time() + _ORPHANS_TIMEOUT_S
        while not self._alive.acquire():
            if asyncio.get_running_loop().time() > deadline:
                raise DataDirectoryError(
                    f"processes of an earlier start still work in {self.data_dir}: "
                    "wait for them or end them, then start again"
                )
            await asyncio.sleep(_POLL_INTERVAL_S)

    def _launch(self) -> None:
        """Start the server; the life lock is held and passes to it."""
        assert self._runner is not None and self._programs is not None
        directory = (self.data_dir / "postgres").resolve()
        self._refuse_foreign_server(directory)
        (directory / "postmaster.pid").unlink(missing_ok=True)
        recorded = cluster.read_json(self.data_dir / "postgres.socket.json") or {}
        last = Path(recorded["directory"]) if "directory" in recorded else None
        self._socket_dir = socket_directory(self.data_dir, last, self._runner)
        # The socket has a lock file with a process id of its own, just as easily taken for alive.
        for name in (SOCKET_NAME, f"{SOCKET_NAME}.lock"):
            (self._socket_dir / name).unlink(missing_ok=True)
        cluster.write_durably(
            self.data_dir / "postgres.socket.json",
            json.dumps({"directory": str(self._socket_dir)}) + "\n",
        )
        log = os.open(
            self._log_file(), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        try:
            self._process = Process.spawn(
                self._arguments(directory),
                environment=cluster.environment(),
                cwd=Path("/"),
                output=log,
                user=self._runner.user,
                inherit=(self._alive.descriptor,),
                death_signal=self._death_signal,
            )
        finally:
            os.close(log)
            self._alive.release()
        self.adopted = False

    def _arguments(self, directory: Path) -> list[str]:
        settings = {
            "listen_addresses": "",
            "port": "5432",
            "unix_socket_directories": str(self._socket_dir),
            "unix_socket_permissions": "0700",
            "password_encryption": _AUTHENTICATION,
            "timezone": "UTC",
            "log_timezone": "UTC",
            "logging_collector": "off",
            "log_destination": "stderr",
            **self._options,
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        assert self._programs is not None
        return [str(self._programs / "postgres"), "-D", str(directory), *options]

    def _refuse_foreign_server(self, directory: Path) -> None:
        # A server that somebody started by hand does not hold our lock, but works in the directory.
        pid = self._pid_on_file()
        with contextlib.suppress(OSError):
            if pid.isdigit() and Path(f"/proc/{pid}/cwd").samefile(directory):
                raise DataDirectoryError(
                    f"a Postgres that T-Bot did not start (process id {pid}) runs on {directory}: "
                    "stop it first"
                )

    def _pid_on_file(self) -> str:
        try:
            lines = (self.data_dir / "postgres" / "postmaster.pid").read_text().splitlines()
        except (OSError, ValueError):
            return "unknown"
        return lines[0].strip() if lines and lines[0].strip().isdigit() else "unknown"

    async def _ready(self) -> asyncpg.Connection[Any] | None:
        """Connect as superuser as soon as the server lets us; None when an adopted one ended.

        Raises:
            ConfigurationError: It ended instead.
            DataDirectoryError: It does not know our password.
        """
        assert self._process is not None
        loop = asyncio.get_running_loop()
        begun = told = loop.time()
        while True:
            try:
                return await asyncpg.connect(
                    self.dsn("superuser", "postgres"), timeout=_CONNECT_TIMEOUT_S
                )
            except asyncpg.InvalidPasswordError:
                raise DataDirectoryError(
                    f"Postgres refuses the password in {self.data_dir / 'credentials'}: put the "
                    "credentials that belong to this database back from a backup"
                ) from None
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError):
                pass
            except asyncpg.ConnectionDoesNotExistError:
                pass  # it ended while we said hello; the next line notices
            if not self._process.running:
                if self.adopted:
                    return None
                raise ConfigurationError(
                    f"Postgres ended instead of starting: {self._last_words()}"
                )
            now = loop.time()
            if now - begun > _PROGRESS_AFTER_S and now - told > 1.0:
                told = now
                self._progress(
                    f"Postgres recovers, {now - begun:.0f} s so far: {self._last_words()}"
                )
            await asyncio.sleep(_POLL_INTERVAL_S)

    async def _check(self, connection: asyncpg.Connection[Any]) -> None:
        """Make sure that this is our cluster, and a durable one."""
        directory = await connection.fetchval("select current_setting('data_directory')")
        if not Path(directory).samefile(self.data_dir / "postgres"):
            raise DataDirectoryError(
                f"the Postgres on {self._socket_dir} serves {directory}, not "
                f"{self.data_dir}: stop it"
            )
        identifier = await connection.fetchval(
            "select system_identifier::text from pg_control_system()"
        )
        if not self._throw_away:
            await require_durable(connection)
        cluster.check_marker(self.data_dir, identifier)

    def _log_file(self) -> Path:
        return self.data_dir / "postgres.log"

    def _last_words(self) -> str:
        path = self._log_file()
        return f"{last_words(path)} (see {path})"

    def _listener(self) -> int | None:
        if self._socket_dir is None:
            return None
        pid = listener_pid(self._socket_dir / SOCKET_NAME)
        on_file = self._pid_on_file()
        return int(on_file) if pid == 0 and on_file.isdigit() else pid

    async def supervise(self) -> NoReturn:
        """Bring the server up again whenever it ends; run it as a task and cancel it before `stop`.

        Clients reconnect by themselves; each failure to restart is logged and tried again.
        """
        failures = 0
        while True:
            while self._process is not None and not await self._process.wait(60.0):
                bound_log(self._log_file())
                failures = 0
            status = self._process.returncode if self._process is not None else None
            _log.error("postgres_died", status=status, said=self._last_words())
            delay_s = _RESTART_DELAY_S[min(failures, len(_RESTART_DELAY_S) - 1)]
            failures += 1
            await asyncio.sleep(delay_s)
            try:
                async with asyncio.timeout(self._start_timeout_s):
                    self._forget()
                    await self._bring_up()
                _log.info("postgres_restarted", pid=self.pid)
            except (ConfigurationError, TimeoutError, OSError, asyncpg.PostgresError) as error:
                _log.error("postgres_restart_failed", error=str(error))

    async def stop(self) -> None:
        """Stop the server and let the data directory go; safe to call twice.

        A clean stop that takes longer than `stop_timeout_s` is cut short: nothing is lost, but the
        next start recovers.
        """
        self._stopping = True
        try:
            await self._end_process(signal.SIGINT)
            if self._socket_dir is not None and not self._socket_dir.is_relative_to(self.data_dir):
                with contextlib.suppress(OSError):
                    self._socket_dir.rmdir()
        finally:
            self._release()

    async def _end_process(self, first: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        for number, patience_s in (
            (first, self._stop_timeout_s),
            (signal.SIGQUIT, 5.0),
            (signal.SIGKILL, 5.0),
        ):
            process.signal(number)
            if await process.wait(patience_s):
                break
            _log.warning("postgres_stops_slowly", signal=number.name)
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.close()
            self._process = None

    def _release(self) -> None:
        self._alive.release()
        self._lock.release()
