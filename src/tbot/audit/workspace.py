"""Room for a verification of any size: what must be remembered goes to a temporary file.

An SQLite database without a name lives in a file that the system removes with the process, and
keeps only a few megabytes of it in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from tbot.audit.form import Head, SignedAnchor

_TABLES = """
CREATE TABLE leaf (account TEXT, seq INTEGER, hash TEXT, anchor INTEGER,
                   PRIMARY KEY (account, seq, anchor)) WITHOUT ROWID;
CREATE TABLE anchor (number INTEGER PRIMARY KEY, at TEXT);
CREATE TABLE leg (command TEXT, asset TEXT, amount TEXT, account TEXT, seq INTEGER);
"""


@dataclass(frozen=True, slots=True)
class Leaf:
    """An anchored head of one account."""

    seq: int
    hash: str
    anchor: int
    at: str


class Workspace:
    """Anchored heads, and postings that wait for the rest of their command."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
        self._database.executescript(_TABLES)
        self._database.execute("BEGIN")  # one for all: nothing here has to survive

    def close(self) -> None:
        """Give the room back."""
        self._database.close()

    def expect(self, head: Head, index: int) -> None:
        """See `anchors.Leaves`."""
        self._database.execute(
            "INSERT OR REPLACE INTO leaf VALUES (?, ?, ?, ?)",
            (head.account, head.seq, head.hash, index),
        )

    def confirm(self, signed: SignedAnchor) -> None:
        """See `anchors.Leaves`."""
        self._database.execute(
            "INSERT OR REPLACE INTO anchor VALUES (?, ?)", (signed.anchor.index, signed.anchor.at)
        )

    def retract(self, index: int) -> None:
        """See `anchors.Leaves`."""
        self._database.execute("DELETE FROM leaf WHERE anchor = ?", (index,))

    def forget(self) -> int:
        """See `anchors.Leaves`."""
        done = "anchor IN (SELECT number FROM anchor)"
        return self._database.execute(f"DELETE FROM leaf WHERE {done}").rowcount

    def take(self, account: str) -> list[Leaf]:
        """An account's anchored heads in order; they are not among `left` any more."""
        rows = self._database.execute(
            "SELECT l.seq, l.hash, l.anchor, a.at FROM leaf l JOIN anchor a ON a.number = l.anchor"
            " WHERE l.account = ? ORDER BY l.seq, l.anchor",
            (account,),
        ).fetchall()
        self._database.execute("DELETE FROM leaf WHERE account = ?", (account,))
        return [Leaf(*row) for row in rows]

    def left(self) -> Iterator[tuple[str, Leaf]]:
        """The furthest anchored head of each account that was not taken."""
        for account, *leaf in self._database.execute(
            "SELECT l.account, max(l.seq), l.hash, l.anchor, a.at FROM leaf l"
            " JOIN anchor a ON a.number = l.anchor GROUP BY l.account ORDER BY l.account"
        ):
            yield account, Leaf(*leaf)

    def wait(self, command: str, asset: str, amount: str, account: str, seq: int) -> None:
        """An entry's postings of an asset sum to `amount`; other entries must make up for it."""
        self._database.execute(
            "INSERT INTO leg VALUES (?, ?, ?, ?, ?)", (command, asset, amount, account, seq)
        )

    def legs(self) -> Iterator[tuple[str, str, str, str, int]]:
        """Everything that waits, by command and asset."""
        yield from self._database.execute(
            "SELECT command, asset, amount, account, seq FROM leg ORDER BY command, asset"
        )
