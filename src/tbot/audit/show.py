"""Entries for human eyes: what happened, when, and who did it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from tbot.audit import bodies
from tbot.audit.export import Connection
from tbot.core.errors import NotFound

_PAGE: Final = (
    "SELECT seq, body, hash FROM journal WHERE account_id = $1 AND seq >= $2 AND seq <= $3"
    " ORDER BY seq LIMIT $4"
)
_PAGE_ENTRIES: Final = 500
_WHO: Final = ("user", "session", "address", "request", "name")


@dataclass(frozen=True, slots=True)
class Shown:
    """One entry, taken apart.

    Attributes:
        by: Who did it, in the words of the entry; a user with the name that it has today.
        body: The whole entry.
    """

    seq: int
    hash: str
    at: str
    kind: str
    command: str
    by: Mapping[str, str]
    postings: tuple[tuple[str, str, str], ...]
    data: Any
    body: Mapping[str, Any]

    def actor(self) -> str:
        """Who did it, in one line."""
        known = [name for name in _WHO if name in self.by]
        parts = [self.by[n] if n == "name" else f"{n} {self.by[n]}" for n in known]
        return ", ".join([self.by.get("kind", "nobody"), *parts])


async def entries(
    connection: Connection, account_id: UUID, first: int, last: int
) -> AsyncIterator[Shown]:
    """An account's entries from `first` to `last`.

    Raises:
        NotFound: The account has no journal, or no such entry.
    """
    users: dict[str, str] = {}
    after = first
    found = False
    while after <= last:
        rows = await connection.fetch(_PAGE, account_id, after, last, _PAGE_ENTRIES)
        for row in rows:
            found = True
            body = bodies.decode(row["body"]) or {}
            by = dict(body.get("by") or {})
            if "user" in by:
                by["user"] = await _with_name(connection, users, by["user"])
            yield Shown(
                row["seq"],
                row["hash"].hex(),
                str(body.get("at", "")),
                str(body.get("kind", "unreadable")),
                str(body.get("command", "")),
                by,
                tuple((str(h), str(a), str(n)) for h, a, n in body.get("postings") or ()),
                body.get("data"),
                body,
            )
        if len(rows) < _PAGE_ENTRIES:
            break
        after = rows[-1]["seq"] + 1
    if not found:
        head = await connection.fetchval(
            "SELECT seq FROM streams WHERE account_id = $1", account_id
        )
        if head is None:
            raise NotFound(f"no journal of account {account_id}")
        raise NotFound(f"account {account_id} has the entries 1 to {head}")


async def _with_name(connection: Connection, users: dict[str, str], user_id: str) -> str:
    if user_id not in users:
        try:
            name = await connection.fetchval(
                "SELECT username FROM users WHERE id = $1", UUID(user_id)
            )
        except ValueError:
            name = None
        users[user_id] = user_id if name is None else f"{name} ({user_id})"
    return users[user_id]
