"""The exchange as a process: restore, listen, play, stop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any, Final

import structlog

from tbot.core.clock import wall_ms
from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.core.ids import new_id
from tbot.core.settings import ExchangeSettings
from tbot.core.tasks import Tasks
from tbot.exchange import credentials
from tbot.exchange.commandlog import CommandLog, restore, write_state
from tbot.exchange.compaction import compact_apart
from tbot.exchange.connection import Connection
from tbot.exchange.floor import Floor
from tbot.exchange.gate import Gate
from tbot.exchange.hub import Hub, Outbox
from tbot.exchange.player import Player, Source
from tbot.exchange.replay import Replay
from tbot.exchange.rest import Rest
from tbot.exchange.state import State
from tbot.exchange.synthetic import Synthetic

_log = structlog.get_logger(__name__)

_STOP_TIMEOUT_S: Final = 2.0
_SECOND_S: Final = 1.0


def _lock(data_dir: Path) -> int:
    """Hold the data directory for this process."""
    handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise DataDirectoryError(
            f"another paper exchange uses {data_dir}; stop it or choose another directory"
        ) from None
    return handle


def open_source(settings: ExchangeSettings, state: State) -> tuple[Source, int]:
    """The market source, and the position to continue from."""
    mark = state.mark
    source: Source
    if settings.source == "replay":
        source = Replay(settings.replay_files)
        same = mark is not None and mark.source == source.identity
        return source, max(state.position, mark.position if mark else 0) if same else 0
    identity = Synthetic.identity_of(settings.seed)
    resume = mark.resume if mark is not None and mark.source == identity else {}
    return Synthetic(settings.seed, wall_ms(), resume), 0


def _end_at_once() -> None:
    """End the process without another word to anyone: the log is right, memory is not."""
    os._exit(1)


class Server:
    """Everything of one running exchange.

    Args:
        settings: Of the exchange.
        data_dir: Its data directory; created when missing.

    Raises:
        ConfigurationError: A recording cannot be played.
        DataDirectoryError: The directory is in use or damaged.
    """

    def __init__(self, settings: ExchangeSettings, data_dir: Path) -> None:
        self.settings = settings
        self._data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = _lock(data_dir)
        state = State(settings.orders_kept, settings.executions_kept)
        session, number = restore(data_dir, state)
        self.session_id = session or str(new_id())
        self._credentials = credentials.load(data_dir) or credentials.create()
        source, position = open_source(settings, state)
        self._source = source
        if self._logged_bytes() > settings.log_bytes_max:
            write_state(data_dir, self.session_id, number, state)
        self.log = CommandLog(data_dir, self.session_id, number, settings.fsync)
        self.log.open()
        loop = asyncio.get_running_loop()
        self.outbox = Outbox(self._flush, loop.call_soon)
        self.hub = Hub(self.outbox)
        self.floor = Floor(
            settings,
            state,
            source.instruments(),
            source.start_ms,
            self.log,
            self.outbox,
            self.hub,
        )
        self.floor.open_books(source.openings(), source.trade_ids())
        self.gate = Gate(self.floor, self._credentials.keys(), _end_at_once)
        self.rest = Rest(self.gate, self.session, self.drop_user_streams)
        self.connections: set[Connection] = set()
        self._tasks = Tasks("exchange", self._failed)
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._compaction: asyncio.Task[None] | None = None
        self._blocked: asyncio.Future[None] | None = None
        self.player = Player(
            source, self.floor, self._speed, position, settings.replay_wait_for, self._clear
        )
        self.floor.settle_open_orders()
        self._mark()
        self.log.flush()
        _log.info(
            "exchange_restored",
            session=self.session_id,
            records=number,
            orders=len(state.orders),
            position=self.floor.position,
        )

    @property
    def _speed(self) -> float:
        return self.settings.replay_speed if self.settings.source == "replay" else 1.0

    def _logged_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._data_dir.glob("log-*.jsonl"))

    # What connections need

    def joined(self, connection: Connection) -> bool:
        """Register a connection unless there are too many."""
        if len(self.connections) >= self.settings.connections_max:
            return False
        self.connections.add(connection)
        return True

    def left(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        self.woken()

    def woken(self) -> None:
        """A slow client caught up or left."""
        if self._blocked is not None and not self._blocked.done() and not self._any_stalled():
            self._blocked.set_result(None)

    def _any_stalled(self) -> bool:
        return any(c.is_stalled and c.listener is not None for c in self.connections)

    def _clear(self) -> asyncio.Future[None] | None:
        """None when every market client keeps up, else a future that is done once they do."""
        if not self._any_stalled():
            return None
        self._blocked = asyncio.get_running_loop().create_future()
        return self._blocked

    def drop_user_streams(self) -> int:
        """Fault knob: disconnect every private stream."""
        private = [c for c in self.connections if c.session and c.session.has_private_stream]
        for connection in private:
            connection.drop("fault")
        return len(private)

    def session(self) -> dict[str, Any]:
        """What `/paper/v1/session` answers."""
        return {
            "sessionId": self.session_id,
            "source": self.settings.source,
            "symbols": list(self.floor.engine.markets),
            "speed": self._speed,
            "started": self.player.started,
            "finished": self.player.finished,
            "position": self.floor.position,
            "eventsPlayed": self.floor.events_played,
            "marketTime": max(tape.market_ms for tape in self.floor.tapes.values()),
            "serverTime": wall_ms(),
            "records": self.log.number,
        }

    # Running

    def _flush(self) -> None:
        try:
            self.log.flush()
        except OSError as error:
            # Memory is ahead of the disk now. Saying anything more would be a lie.
            _log.error("log_write_failed", error=str(error))
            _end_at_once()

    def _failed(self, _name: str, error: BaseException) -> None:
        self._failure = error
        self.stop()

    def stop(self) -> None:
        """Ask the exchange to end; safe at any time."""
        self._stopped.set()

    async def _every_second(self) -> None:
        marked_s = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(_SECOND_S)
            now_s = asyncio.get_running_loop().time()
            self.floor.refresh_averages()
            for connection in list(self.connections):
                connection.keep_alive(now_s)
            if now_s - marked_s >= self.settings.mark_interval_s:
                marked_s = now_s
                self._mark()
                self._compact_if_large()

    def _mark(self) -> None:
        marked = self.player.marked()
        if self.floor.state.mark is None or marked != self.floor.state.mark:
            self.floor.mark(marked)

    def _compact_if_large(self) -> None:
        running = self._compaction is not None and not self._compaction.done()
        if running or self.log.size_bytes < self.settings.log_bytes_max:
            return
        through = self.log.rotate()
        self._compaction = self._tasks.start(
            compact_apart(
                self._data_dir,
                through,
                self.settings.orders_kept,
                self.settings.executions_kept,
            ),
            "compaction",
        )

    async def run(self) -> None:
        """Serve until `stop`.

        Raises:
            ConfigurationError: The address cannot be listened on.
        """
        loop = asyncio.get_running_loop()
        host, port = self.settings.host, self.settings.port
        try:
            listener = await loop.create_server(lambda: Connection(self), host, port)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); stop what uses "
                "the port, or set another one (TBOT_EXCHANGE__PORT)"
            ) from None
        port = listener.sockets[0].getsockname()[1]
        url = f"http://{host}:{port}"
        kept = self._credentials
        kept.url, kept.host, kept.port = url, host, port
        kept.session_id = self.session_id
        credentials.save(self._data_dir, kept)
        self._tasks.start(self._every_second(), "every_second")
        self._tasks.start(self.player.play(self.hub), "player")
        print(f"READY {url}", flush=True)
        _log.info("exchange_ready", url=url, source=self.settings.source)
        try:
            await self._stopped.wait()
        finally:
            listener.close()
            await self._tasks.stop()
            self.outbox.release()
            for connection in list(self.connections):
                connection.close()
            await self._goodbye()
            self._close()
        if self._failure is not None:
            raise self._failure

    async def _goodbye(self) -> None:
        """Let close frames leave, for a bounded time."""
        deadline_s = asyncio.get_running_loop().time() + _STOP_TIMEOUT_S
        while self.connections and asyncio.get_running_loop().time() < deadline_s:
            await asyncio.sleep(0.01)
        for connection in list(self.connections):
            connection.drop("stopped")

    def _close(self) -> None:
        self._mark()
        self.log.close()
        os.close(self._lock)
        _log.info("exchange_stopped", records=self.log.number)


async def run(settings: ExchangeSettings, data_dir: Path, die_with_parent: bool = False) -> None:
    """Run the exchange until SIGTERM or SIGINT, or until stdin ends.

    Args:
        settings: Of the exchange.
        data_dir: Its own directory: log, state files, `exchange.json`.
        die_with_parent: Stop when stdin reaches its end, as it does when the parent dies.

    Raises:
        ConfigurationError: It cannot start; the message says what to do.
    """
    server = Server(settings, data_dir)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stop)
    if die_with_parent:
        threading.Thread(
            target=_watch_stdin, args=(loop, server), name="stdin", daemon=True
        ).start()
    await server.run()


def _watch_stdin(loop: asyncio.AbstractEventLoop, server: Server) -> None:
    while True:
        try:
            if not os.read(sys.stdin.fileno(), 4096):
                break
        except OSError:
            break
    loop.call_soon_threadsafe(server.stop)
