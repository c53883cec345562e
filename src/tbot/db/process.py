"""A process of ours, or one that an earlier run left behind, waited for without blocking.

The event loops' own subprocess support cannot run a child as another user (uvloop) nor wait for a
process that is not a child; a pidfd can. Where there are no pidfds the wait polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

_POLL_INTERVAL_S: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1


class Process:
    """One process, by pid. Start it with `spawn` or take it over with `adopt`."""

    __slots__ = ("_child", "_pidfd", "pid")

    def __init__(self, pid: int, child: subprocess.Popen[bytes] | None) -> None:
        self.pid = pid
        self._child = child
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(pid)

    @classmethod
    def spawn(
        cls,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        output: int,
        user: tuple[int, int] | None = None,
        inherit: Sequence[int] = (),
        stdin: int = subprocess.DEVNULL,
        umask: int = 0o077,
        death_signal: signal.Signals | None = None,
    ) -> Self:
        """Start a program in a session of its own, so that a terminal's Ctrl-C does not reach it.

        Args:
            arguments: Program and arguments; no shell is involved.
            environment: The whole environment.
            cwd: Working directory.
            output: Descriptor for its standard output and error.
            user: User and group id to run as; None keeps ours.
            inherit: Descriptors it keeps open.
            stdin: Descriptor of its standard input.
            umask: File mode creation mask.
            death_signal: What the kernel sends it when the calling thread ends (Linux only).

        Raises:
            OSError: It could not be started: not found, not allowed, no memory.
        """
        uid, gid = user if user is not None else (None, None)
        child = subprocess.Popen(
            list(arguments),
            stdin=stdin,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=dict(environment),
            pass_fds=tuple(inherit),
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=[] if user is not None else None,
            umask=umask,
            preexec_fn=_dies_with_us(death_signal),  # noqa: PLW1509 -- tests only, one call
        )
        return cls(child.pid, child)

    @classmethod
    def adopt(cls, pid: int) -> Self:
        """Watch a process that is not our child."""
        return cls(pid, None)

    @property
    def returncode(self) -> int | None:
        """Exit status of a child that has ended; None while it runs or when it is not ours."""
        return self._child.poll() if self._child is not None else None

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        if self._child is not None:
            return self._child.poll() is None
        if self._pidfd >= 0:
            # Readable once it has ended, even while nobody has collected its status.
            return not select.select([self._pidfd], [], [], 0)[0]
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens when the process has ended."""
        with contextlib.suppress(ProcessLookupError):
            if self._child is not None:
                self._child.send_signal(number)
            elif self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            else:
                os.kill(self.pid, number)

    def kill_session(self) -> None:
        """Kill it and the children it started in its session; only for what `spawn` started."""
        if self._child is not None and self._child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it ends; False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.running:
                    if self._pidfd >= 0:
                        await _readable(self._pidfd)
                    else:
                        await asyncio.sleep(_POLL_INTERVAL_S)
        except TimeoutError:
            return not self.running
        return True

    def close(self) -> None:
        """Forget it; it is not signalled."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _dies_with_us(number: signal.Signals | None) -> Callable[[], None] | None:
    if number is None or not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork, where only simple calls are safe
    return lambda: prctl(_PR_SET_PDEATHSIG, int(number))


def _done(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def bound_log(path: Path, size_bytes_max: int = 16 * 1024 * 1024) -> None:
    """Move the log of a running process aside when it has grown; it goes on appending to it.

    Args:
        path: A file that the process appends to.
        size_bytes_max: What it may have; as much again stays in the file with `.1` added.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size > size_bytes_max:
            shutil.copyfile(path, path.with_name(path.name + ".1"))
            os.truncate(path, 0)


def last_words(log: Path) -> str:
    """The last line of a server's log that says why it ended, or else its last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "it said nothing"
    fatal = [line for line in lines if "FATAL" in line or "PANIC" in line]
    return (fatal or lines or ["it said nothing"])[-1].split("] ", 1)[-1].strip()


def listener_pid(path: Path) -> int | None:
    """Process id of whoever listens on a Unix socket.

    Returns:
        None when nobody does; 0 where the system does not tell who.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            if not hasattr(socket, "SO_PEERCRED"):
                return 0
            raw = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid, _, _ = struct.unpack("3i", raw)
    return int(pid)


async def _readable(descriptor: int) -> None:
    # Several tasks may wait for one process, but a loop keeps one reader per descriptor: each
    # waits on a duplicate.
    loop = asyncio.get_running_loop()
    mine = os.dup(descriptor)
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(mine, _done, ended)
    try:
        await ended
    finally:
        loop.remove_reader(mine)
        os.close(mine)
