"""The benchmark's client: reads thousands of sockets and checks every frame.

`reader.c` does it where there is a C compiler, else the slower Python below; both know nothing of
the server but the protocol. `open_reader` says which it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol

HISTOGRAM: Final = 40_000
"""Buckets of 0.1 ms."""

_COUNTS: Final = (
    "deliveries", "private_deliveries", "bytes", "gaps", "told_gaps", "malformed", "closed",
    "subscribed", "pings", "snapshots", "reads", "others", "close_code", "values", "conflated",
)  # fmt: skip


class Stats(ctypes.Structure):
    """What was read; `reader.c` has the same."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("histogram", ctypes.c_int64 * HISTOGRAM),
        ("note", ctypes.c_char * 256),
    ]

    deliveries: int
    private_deliveries: int
    gaps: int
    told_gaps: int
    malformed: int
    closed: int
    subscribed: int
    pings: int
    close_code: int
    values: int
    conflated: int
    bytes: int
    reads: int
    note: Any
    histogram: Any

    def percentile_ms(self, share: float) -> float | None:
        """The latency that this share of the deliveries did not exceed; None without any."""
        total = sum(self.histogram)
        if not total:
            return None
        left = total * share
        for bucket, count in enumerate(self.histogram):
            left -= count
            if left <= 0:
                return (bucket + 1) / 10
        return HISTOGRAM / 10

    def require_sound(self, what: str) -> None:
        """A gap or a message that cannot be read fails the run.

        Raises:
            SystemExit: With the first such message.
        """
        if self.gaps or self.malformed:
            raise SystemExit(
                f"{what}: {self.gaps} gaps, {self.malformed} malformed; first: {self.note!r}"
            )


class Reader(Protocol):
    """Reads the sockets that it was given."""

    kind: str

    def add(self, connection: socket.socket, first: bytes, stats: Stats) -> int:
        """Take a socket after its handshake; `first` is what came behind it."""

    def pause(self, index: int, paused: bool) -> None:
        """Stop reading a socket, or go on."""

    def is_open(self, index: int) -> bool:
        """Whether the server has not ended this connection."""

    def send(self, index: int, data: bytes) -> None:
        """Send a client's frame; one that the server has just cut hears nothing more."""

    def drop(self, index: int) -> None:
        """End a connection without a word."""

    def close(self) -> None:
        """End all connections."""

    def newest(self, index: int) -> int:
        """The newest number of the first channel that a connection heard of; -1 without any."""

    def run(self, seconds: float, stats: Stats, subscribed: int = 0) -> None:
        """Read for so long, or until so many subscriptions were answered."""


class CompiledReader:
    """`reader.c`."""

    kind = "compiled C, one epoll loop"

    def __init__(self, library: ctypes.CDLL, room: int, broker: bool) -> None:
        self._library = library
        library.reader_new.restype = ctypes.c_void_p
        library.reader_newest.restype = ctypes.c_int64
        self._reader = ctypes.c_void_p(library.reader_new(room, int(broker)))
        self._sockets: list[socket.socket] = []

    def add(self, connection: socket.socket, first: bytes, stats: Stats) -> int:
        connection.setblocking(False)
        self._sockets.append(connection)
        index: int = self._library.reader_add(
            self._reader, connection.fileno(), first, len(first), ctypes.byref(stats)
        )
        return index

    def pause(self, index: int, paused: bool) -> None:
        self._library.reader_pause(self._reader, index, int(paused))

    def is_open(self, index: int) -> bool:
        return bool(self._library.reader_open(self._reader, index))

    def send(self, index: int, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._sockets[index].send(data)

    def drop(self, index: int) -> None:
        self._library.reader_drop(self._reader, index)
        self._sockets[index].close()

    def close(self) -> None:
        for connection in self._sockets:
            connection.close()
        self._library.reader_free(self._reader)

    def newest(self, index: int) -> int:
        number: int = self._library.reader_newest(self._reader, index)
        return number

    def due(self, kind: int, numbers: Sequence[int], at_us: Sequence[int]) -> None:
        """When what a recording holds is due: then latency counts from there.

        Args:
            kind: 0 trades, 1 best prices, 2 books.
            numbers: Trade or update ids, ascending.
            at_us: Microseconds of the day (UTC), one for each.
        """
        many = ctypes.c_int64 * len(numbers)
        self._library.reader_due(
            self._reader, kind, ctypes.c_int64(len(numbers)), many(*numbers), many(*at_us)
        )

    def shift(self, late_us: int) -> None:
        """All of it is due later by this much."""
        self._library.reader_shift(self._reader, ctypes.c_int64(late_us))

    def run(self, seconds: float, stats: Stats, subscribed: int = 0) -> None:
        self._library.reader_run(
            self._reader, ctypes.c_double(seconds), ctypes.c_int64(subscribed), ctypes.byref(stats)
        )


_MESSAGE: Final = re.compile(
    rb'\{"op":"(?:delta","ch":(\d+),"seq":(\d+),"prev":(\d+)|snap","ch":(\d+),"seq":(\d+)'
    rb'|gap","ch":(\d+),"seq":(\d+),"from":(\d+))'
)


class PlainReader:
    """The same in Python, for machines without a compiler: then the client may be the limit."""

    kind = "Python, one epoll loop (no C compiler here)"

    def __init__(self, room: int) -> None:
        self._epoll = select.epoll()
        self._sockets: list[socket.socket] = []
        self._index: dict[int, int] = {}
        self._rest: list[bytes] = []
        self._seqs: list[dict[int, int]] = []
        self._open: list[bool] = []

    def add(self, connection: socket.socket, first: bytes, stats: Stats) -> int:
        connection.setblocking(False)
        index = len(self._sockets)
        self._sockets.append(connection)
        self._index[connection.fileno()] = index
        self._seqs.append({})
        self._rest.append(b"")
        self._open.append(True)
        self._walk(index, first, stats)
        self._epoll.register(connection.fileno(), select.EPOLLIN)
        return index

    def pause(self, index: int, paused: bool) -> None:
        if self._open[index]:
            fd = self._sockets[index].fileno()
            self._epoll.modify(fd, 0 if paused else select.EPOLLIN)

    def is_open(self, index: int) -> bool:
        return self._open[index]

    def send(self, index: int, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self._sockets[index].send(data)

    def drop(self, index: int) -> None:
        if self._open[index]:
            self._open[index] = False
            self._epoll.unregister(self._sockets[index].fileno())
        self._sockets[index].close()

    def close(self) -> None:
        for index in range(len(self._sockets)):
            self.drop(index)
        self._epoll.close()

    def newest(self, index: int) -> int:
        return next(iter(self._seqs[index].values()), -1)

    def run(self, seconds: float, stats: Stats, subscribed: int = 0) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not 0 < subscribed <= stats.subscribed:
            for fd, _ in self._epoll.poll(min(left, 0.05), 512):
                index = self._index[fd]
                try:
                    data = self._sockets[index].recv(1 << 17)
                except (BlockingIOError, InterruptedError):
                    continue
                except OSError:
                    data = b""
                stats.reads += 1
                if data:
                    stats.bytes += len(data)
                    self._walk(index, data, stats)
                else:
                    self._gone(index, stats)

    def _gone(self, index: int, stats: Stats) -> None:
        if self._open[index]:
            self._open[index] = False
            self._epoll.unregister(self._sockets[index].fileno())
            stats.closed += 1

    def _walk(self, index: int, data: bytes, stats: Stats) -> None:
        data = self._rest[index] + data
        now_us = time.time_ns() // 1000 % 86_400_000_000
        at, size = 0, len(data)
        while size - at >= 2:
            length, head = data[at + 1], 2
            if length == 126:
                length, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            elif length == 127:
                length, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if size - at < head + length:
                break
            payload = data[at + head : at + head + length]
            if data[at] == 0x81:
                self._message(index, payload, stats, now_us)
            elif data[at] == 0x89:
                self._sockets[index].send(bytes((0x8A, 0x80 | length, 0, 0, 0, 0)) + payload)
                stats.pings += 1
            elif data[at] == 0x88:
                stats.close_code = int.from_bytes(payload[:2], "big")
                self._gone(index, stats)
                return
            at += head + length
        self._rest[index] = data[at:]

    def _message(self, index: int, payload: bytes, stats: Stats, now_us: int) -> None:
        found = _MESSAGE.match(payload)
        if found is None:
            stats.subscribed += payload.startswith(b'{"op":"subbed"')
            if payload.startswith(b'{"op":"error"') or b'"error":' in payload:
                stats.malformed += 1
                stats.note = stats.note or payload[:255]
            return
        seqs = self._seqs[index]
        channel, seq, prev, snap_channel, snap_seq, gap_channel, gap_seq, gap_from = found.groups()
        if snap_channel:
            seqs[int(snap_channel)] = int(snap_seq)
            stats.snapshots += 1
            return
        if gap_channel:
            stats.told_gaps += 1
            stats.malformed += seqs.get(int(gap_channel), int(gap_from) - 1) != int(gap_from) - 1
            seqs[int(gap_channel)] = int(gap_seq)
            return
        number = int(seq)
        before = seqs.get(int(channel), int(prev))
        if before != int(prev) or number != before + 1:
            stats.gaps += 1
            stats.note = stats.note or payload[:255]
        seqs[int(channel)] = number
        if b',"hash":' in payload[:90]:
            stats.private_deliveries += 1
            return
        stats.deliveries += 1
        clock = payload[-19:-4]
        age_us = now_us - (
            (int(clock[:2]) * 3600 + int(clock[3:5]) * 60 + int(clock[6:8])) * 1_000_000
            + int(clock[9:])
        )
        stats.histogram[max(0, min(HISTOGRAM - 1, age_us // 100))] += 1


def compiled() -> ctypes.CDLL | None:
    """`reader.c` as a library, built once per version of its text; None without a compiler."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        return None
    source = Path(__file__).with_name("reader.c")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    directory = Path(tempfile.gettempdir()) / f"tbot-bench-reader-{digest}"
    directory.mkdir(mode=0o700, exist_ok=True)
    library = directory / "reader.so"
    if not library.exists():
        made = directory / "making.so"
        done = subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", made, source], check=False
        )
        if done.returncode:
            return None
        made.rename(library)
    return ctypes.CDLL(str(library))


def open_reader(room: int, broker: bool = False, plain: bool = False) -> Reader:
    """The fastest client that this machine can have.

    Args:
        room: Most sockets that will be added.
        broker: Messages are a broker's records instead of frames of our own.
        plain: Python even where there is a compiler.
    """
    library = None if plain else compiled()
    if library is not None:
        return CompiledReader(library, room, broker)
    if broker:
        raise SystemExit("reading a broker's records needs a C compiler")
    return PlainReader(room)
