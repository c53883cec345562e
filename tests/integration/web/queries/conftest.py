"""Records every SQL statement that the program sends, with the function that sent it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import tbot

SOURCES = Path(tbot.__file__).parent
METHODS = ("fetch", "fetchrow", "fetchval", "execute", "executemany")
# What no table is asked by: transactions, locks, listening, and what the pool does to give a
# connection back.
_NO_QUERY = (
    "BEGIN", "COMMIT", "ROLLBACK", "LISTEN", "UNLISTEN", "SET ", "RESET", "SELECT PG_ADVISORY",
    "SELECT PG_TRY_ADVISORY", "SELECT PG_NOTIFY", "LOCK TABLE",
)  # fmt: skip


@dataclass(frozen=True)
class Query:
    """One statement as it was sent."""

    sql: str
    args: tuple[Any, ...]
    function: str


@dataclass
class Recorder:
    """What was sent since `clear`."""

    queries: list[Query] = field(default_factory=list)

    def clear(self) -> None:
        self.queries.clear()

    def note(self, sql: str, args: tuple[Any, ...]) -> None:
        function = _sender()
        plain = sql.lstrip().upper()
        if function is not None and not (plain.startswith(_NO_QUERY) and "RESET ALL" in plain):
            self.queries.append(Query(sql, args, function))

    @property
    def asking(self) -> list[Query]:
        """Those that ask a table."""
        return [q for q in self.queries if not q.sql.lstrip().upper().startswith(_NO_QUERY)]


def _sender() -> str | None:
    """The innermost function of the program on the stack, as `package/module.py:name`."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCES):
            return f"{path.relative_to(SOURCES)}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Records from here on; ask for it before what is to be recorded."""
    made = Recorder()
    for name in METHODS:
        monkeypatch.setattr(asyncpg.Connection, name, _recorded(made, name))
    return made


def _recorded(recorder: Recorder, name: str) -> Any:
    original = getattr(asyncpg.Connection, name)

    async def recorded(self: Any, sql: str, *args: Any, **more: Any) -> Any:
        if name == "executemany":
            rows = list(args[0])
            recorder.note(sql, tuple(rows[0]) if rows else ())
            return await original(self, sql, rows, *args[1:], **more)
        recorder.note(sql, args)
        return await original(self, sql, *args, **more)

    return recorded
