"""Turns closed log files into a state file, in a process of its own.

The exchange starts this as a child once its log has grown beyond `log_bytes_max`, so that neither
reading nor writing a large state delays an order. It only reads files that are closed, and removes
them after the state file that replaces them is on disk; interrupted, it leaves all as it was.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import structlog

from tbot.core.errors import TBotError
from tbot.exchange.commandlog import restore, write_state
from tbot.exchange.state import State

_log = structlog.get_logger(__name__)


def compact(directory: Path, through: int, orders_kept: int, executions_kept: int) -> None:
    """Write the state as of record `through` and remove the files that it replaces.

    Raises:
        DataDirectoryError: The logs cannot be read; nothing was removed.
    """
    state = State(orders_kept, executions_kept)
    session, number = restore(directory, state, through)
    if session is not None and number == through:
        write_state(directory, session, number, state)


async def compact_apart(
    directory: Path, through: int, orders_kept: int, executions_kept: int
) -> None:
    """Run `compact` in a child process and wait for it; a failure is logged, nothing is lost."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tbot.exchange.compaction",
        str(directory),
        str(through),
        str(orders_kept),
        str(executions_kept),
        stdin=asyncio.subprocess.DEVNULL,
    )
    try:
        code = await child.wait()
    except asyncio.CancelledError:
        child.kill()
        await child.wait()
        raise
    if code:
        _log.error("compaction_failed", through=through, code=code)
    else:
        _log.info("log_compacted", through=through)


if __name__ == "__main__":
    try:
        compact(Path(sys.argv[1]), *(int(value) for value in sys.argv[2:5]))
    except (TBotError, OSError) as error:
        sys.exit(f"compaction: {error}")
