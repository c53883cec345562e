"""The clients' log: every intent before it is sent, every answer after it came, on disk.

Lines are JSON. Many clients share one fsync: whoever writes while one is under way waits for the
next. The number of a line is a moment: a request whose `ask` has a higher number than another's
`end` began after that one was over.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Log:
    """An append-only list of facts on disk.

    Args:
        path: Of the file; it is created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._waiting: list[bytes] = []
        self._flushing: asyncio.Task[None] | None = None
        self.syncs = 0

    def note(self, kind: str, /, **fields: Any) -> None:
        """Append a line; it is on disk with the next fsync."""
        self._waiting.append(json.dumps({"t": kind, **fields}, separators=(",", ":")).encode())

    async def write(self, kind: str, /, **fields: Any) -> None:
        """Append a line and return once it is on disk."""
        self.note(kind, **fields)
        await self.flush()

    async def flush(self) -> None:
        """Return once every line so far is on disk."""
        last = self._flushing
        if last is not None and not last.done():
            await asyncio.shield(last)  # that one does not carry our line
        if self._flushing is last or self._flushing is None or self._flushing.done():
            if not self._waiting:
                return
            self._flushing = asyncio.create_task(self._sync())
        await asyncio.shield(self._flushing)

    async def _sync(self) -> None:
        lines, self._waiting = self._waiting, []
        data = b"\n".join(lines) + b"\n"
        await asyncio.get_running_loop().run_in_executor(None, self._put, data)
        self.syncs += 1

    def _put(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view) :]
        os.fdatasync(self._file)

    async def close(self) -> None:
        """Write what is left."""
        await self.flush()
        os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, in order."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)
