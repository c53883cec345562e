"""A broker to compare with: nats-server's WebSocket, where it is installed. Never a dependency."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fanout import world
from fanout.reader import open_reader
from fanout.trades import FIRST, Trades, symbol_of
from writepath.place import LOAD_CORE, SERVER_CORE, pin

_WORDS = b'CONNECT {"verbose":false,"protocol":1}\r\n'


class Nats:
    """A running nats-server, with what `world.Crowd` needs of a server."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, broker_port: int) -> None:
        self.process = process
        self.port = port
        self._broker_port = broker_port
        self.facts: dict[str, Any] = {}

    processor_s = world.Server.processor_s

    def order(self, do: str, rate: float, seconds: float) -> None:
        """Publish, from a thread beside the client."""
        assert do == "publish"
        threading.Thread(target=self._publish, args=(rate, seconds), daemon=True).start()

    def _publish(self, rate: float, seconds: float) -> None:
        trades = Trades(symbol_of(0), FIRST)
        with socket.create_connection(("127.0.0.1", self._broker_port)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(_WORDS)
            started_s, wall_s, done = time.monotonic(), time.time(), 0
            while (passed_s := time.monotonic() - started_s) < seconds:
                words = []
                while done < int(passed_s * rate):
                    at = datetime.fromtimestamp(wall_s + done / rate, UTC)
                    message = trades.message(1, trades.next(at))
                    words.append(b"PUB bench %d\r\n%b\r\n" % (len(message), message))
                    done += 1
                if words:
                    connection.sendall(b"".join(words))
                time.sleep(0.001)


def program() -> str | None:
    """The installed nats-server, if any."""
    return shutil.which("nats-server", path=os.environ.get("PATH", "") + ":/usr/sbin")


@contextlib.contextmanager
def broker(path: str) -> Iterator[Nats]:
    """A nats-server on the servers' core."""
    ports = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            ports.append(probe.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="tbot-bench-") as directory:
        config = Path(directory) / "nats.conf"
        config.write_text(
            f"listen: 127.0.0.1:{ports[0]}\n"
            f"websocket {{ listen: 127.0.0.1:{ports[1]}, no_tls: true, compression: false }}\n"
        )
        pin(SERVER_CORE)  # a process is born on its parent's core
        process = subprocess.Popen(
            [path, "-c", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        pin(LOAD_CORE)
        try:
            for _ in range(200):
                with (
                    contextlib.suppress(OSError),
                    socket.create_connection(("127.0.0.1", ports[1])),
                ):
                    break
                time.sleep(0.05)
            yield Nats(process, ports[1], ports[0])
        finally:
            process.terminate()
            process.wait()


def gather(server: Nats, count: int) -> world.Crowd:
    """Clients that subscribe to what is published."""
    crowd = world.Crowd(server, open_reader(count, broker=True))  # type: ignore[arg-type]
    for number in range(count):
        connection = world.connect(server.port, number)
        rest = world.upgraded(connection, world.handshake(server.port, path="/"))
        connection.sendall(world.frame(_WORDS + b"SUB bench 1\r\nPING\r\n", opcode=2))
        crowd.indexes.append(crowd.reader.add(connection, rest, crowd.stats))
    crowd.reader.run(60.0, crowd.stats, count)
    if crowd.stats.subscribed < count:
        raise SystemExit(f"{crowd.stats.subscribed} of {count} clients subscribed to the broker")
    return crowd
