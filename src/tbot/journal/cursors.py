"""Reading the journal: cursors that deliver every entry once, in order, for ever.

A cursor is a place in one account's stream. A wake-up only ever says "look again"; what there is
to deliver is read from the shared memory of recent entries or else from the table, always exactly
`seq + 1` next, and never by anything like a global id (their order is not commit order). A sweep
over the heads of all watched accounts makes up for wake-ups that were lost.

A place is named by (sequence, first 16 hex digits of the entry's hash). After a restore or a
failover the same sequence may hold another entry: then the prefix does not match, and the cursor
is not resumed at all rather than half.

Entry points: `Journal`, `Cursor`, `Place`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge

from tbot.core.bus import Bus, wait_for_wake
from tbot.core.errors import IntegrityError
from tbot.core.settings import StreamSettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal import chain
from tbot.journal.commands import Committed

_log = structlog.get_logger(__name__)

_WATCHED = Gauge("tbot_cursors", "Open cursors over the journal.")
_READS = Counter("tbot_cursor_reads", "Pages read by cursors.", ["source"])
_LOST = Counter("tbot_cursor_lost_wakeups", "Cursors that only the sweep found behind.")

_PAGE = """SELECT seq, hash, body FROM journal
WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"""
_HASH = "SELECT hash FROM journal WHERE account_id = $1 AND seq = $2"
_HEAD = "SELECT seq, hash FROM streams WHERE account_id = $1"
_HEADS = "SELECT account_id, seq FROM streams WHERE account_id = ANY($1::uuid[])"


class Pool(Protocol):
    """Where connections come from: `asyncpg.Pool`."""

    def acquire(self) -> AbstractAsyncContextManager[Any]:
        """A connection, until the context ends."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in an account's stream: after the entry of this sequence and hash.

    Attributes:
        seq: Sequence of the last entry that was seen; 0 before the first.
        digest: That entry's whole hash; the genesis hash before the first.
    """

    seq: int
    digest: bytes

    @property
    def prefix(self) -> str:
        """The digits that name the place to a client, together with `seq`."""
        return prefix_of(self.digest)


class Recorded:
    """One entry as stored: shared by all who read it, with a memo of its encoded form."""

    __slots__ = ("body", "hash", "memo", "seq")

    def __init__(self, seq: int, digest: bytes, body: bytes) -> None:
        self.seq = seq
        self.hash = digest
        self.body = body
        self.memo: Any = None
        """For the reading end: what it made of the entry, once for all readers."""

    @property
    def prefix(self) -> str:
        """The hash's first digits, as places carry them."""
        return prefix_of(self.hash)


class _Watched:
    """An account that somebody reads: its newest entries and who is to be woken."""

    __slots__ = ("cursors", "lock", "recent")

    def __init__(self, recent_max: int) -> None:
        self.recent: deque[Recorded] = deque(maxlen=recent_max)
        """Consecutive entries, newest last."""
        self.cursors: set[Cursor] = set()
        self.lock = asyncio.Lock()

    def add(self, entry: Recorded) -> None:
        """Keep an entry that follows the newest one; anything newer starts afresh."""
        newest = self.recent[-1].seq if self.recent else None
        if newest is not None and entry.seq <= newest:
            return
        if newest is not None and entry.seq != newest + 1:
            self.recent.clear()
        self.recent.append(entry)

    def after(self, seq: int, limit: int) -> list[Recorded]:
        """Entries `seq + 1` and following, or none when `seq + 1` is not in memory."""
        if not self.recent or not self.recent[0].seq <= seq + 1 <= self.recent[-1].seq:
            return []
        newer: list[Recorded] = []
        for entry in reversed(self.recent):
            if entry.seq <= seq:
                break
            newer.append(entry)
        newer.reverse()
        return newer[:limit]


class Journal:
    """The reading end of the journal, one per process.

    Args:
        pool: Connections for pages and sweeps.
        bus: Carries `head:<account>` wake-ups.
        settings: Page size, memory and sweep interval.
    """

    def __init__(self, pool: Pool, bus: Bus, settings: StreamSettings) -> None:
        self._pool = pool
        self._bus = bus
        self._settings = settings
        self._watched: dict[UUID, _Watched] = {}
        self._tasks = Tasks("cursors")

    def start(self) -> None:
        """Begin to sweep."""
        self._tasks.start(self._sweep(), "sweep")

    async def stop(self) -> None:
        """End every cursor's wait and the sweep; safe to call twice."""
        for watched in list(self._watched.values()):
            for cursor in list(watched.cursors):
                cursor.close()
        await self._tasks.stop()

    def remember(self, entries: Iterable[Committed]) -> None:
        """Take entries that this process just committed: saves their readers a query.

        Register it with `Committer.listen`.
        """
        told: set[Cursor] = set()
        for entry in entries:
            watched = self._watched.get(entry.account_id)
            if watched is not None:
                watched.add(Recorded(entry.seq, entry.hash, entry.body))
                told |= watched.cursors
        for cursor in told:
            cursor.news.explain()

    async def head(self, account_id: UUID) -> Place | None:
        """Where the account's stream ends now; None when there is no such stream."""
        async with self._pool.acquire() as connection:
            row = await connection.fetchrow(_HEAD, account_id)
        return None if row is None else Place(row["seq"], row["hash"])

    async def find(self, account_id: UUID, seq: int, prefix: str) -> Place | None:
        """The place that a client names, if the stream has it.

        Returns:
            None when the entry does not exist (also: not yet) or has another hash: nothing can
            be resumed, the client needs a snapshot.
        """
        if not 0 <= seq < 1 << 63:
            return None
        if seq == 0:
            digest: bytes | None = chain.genesis(account_id)
        else:
            async with self._pool.acquire() as connection:
                digest = await connection.fetchval(_HASH, account_id, seq)
        if digest is None or prefix_of(digest) != prefix:
            return None
        return Place(seq, digest)

    def open(self, account_id: UUID, after: Place) -> Cursor:
        """A cursor that delivers from entry `after.seq + 1` on; close it when done."""
        watched = self._watched.get(account_id)
        if watched is None:
            watched = self._watched[account_id] = _Watched(self._settings.recent_entries)
        cursor = Cursor(self, account_id, after, self._close)
        watched.cursors.add(cursor)
        cursor.listening = self._bus.listening(f"head:{account_id}", event=cursor.news)
        cursor.listening.__enter__()
        _WATCHED.inc()
        return cursor

    def _close(self, cursor: Cursor) -> None:
        watched = self._watched.get(cursor.account_id)
        if watched is None or cursor not in watched.cursors:
            return
        watched.cursors.discard(cursor)
        if cursor.listening is not None:
            cursor.listening.__exit__(None, None, None)
        _WATCHED.dec()
        if not watched.cursors:
            del self._watched[cursor.account_id]

    def newest(self, account_id: UUID) -> int | None:
        """Sequence of the newest entry in memory."""
        watched = self._watched.get(account_id)
        return watched.recent[-1].seq if watched is not None and watched.recent else None

    def remembered(self, account_id: UUID, after: Place) -> list[Recorded]:
        """Entries after a place that are in memory; none when the next one is not."""
        watched = self._watched.get(account_id)
        found = watched.after(after.seq, self._settings.page_entries) if watched else []
        if found:
            _READS.labels("memory").inc()
        return found

    async def page(self, account_id: UUID, after: Place) -> tuple[list[Recorded], bool]:
        """Entries after a place (empty at the head), and whether they were all there were.

        Raises:
            IntegrityError: The table does not continue this place with the next sequence.
        """
        watched = self._watched.get(account_id)
        if watched is None:  # closed meanwhile
            return [], True
        # One reader asks the table, the others find the answer in memory.
        async with watched.lock:
            found = self.remembered(account_id, after)
            if found:
                return found, False
            found = await self._read(account_id, after)
            complete = len(found) < self._settings.page_entries
            if complete:
                for entry in found:
                    watched.add(entry)
        return found, complete

    async def _read(self, account_id: UUID, after: Place) -> list[Recorded]:
        _READS.labels("table").inc()
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(_PAGE, account_id, after.seq, self._settings.page_entries)
        entries = [Recorded(row["seq"], row["hash"], row["body"]) for row in rows]
        for expected, entry in enumerate(entries, after.seq + 1):
            if entry.seq != expected:
                raise IntegrityError(
                    f"account {account_id}: entry {expected} is missing; the next is {entry.seq}"
                )
        return entries

    async def _sweep(self) -> None:
        """Wake whoever is behind although nobody said so."""
        never = asyncio.Event()
        while True:
            await wait_for_wake(never, self._settings.sweep_interval_s)
            if self._watched:
                try:
                    await self.sweep()
                except DATABASE_FAULTS as error:
                    _log.warning("sweep_failed", error=repr(error))

    async def sweep(self) -> None:
        """One look at the heads of all watched accounts."""
        async with self._pool.acquire() as connection:
            rows = await connection.fetch(_HEADS, list(self._watched))
        for row in rows:
            watched = self._watched.get(row["account_id"])
            for cursor in watched.cursors if watched is not None else ():
                # A head below the cursor means that the stream went back: a restore.
                if cursor.place.seq != row["seq"] and not cursor.news.is_set():
                    _LOST.inc()
                    cursor.news.set()


class News(asyncio.Event):
    """A wake-up flag that knows whether memory can answer it.

    A commit of this process fills the memory and then wakes: one explanation, one wake-up. A
    wake-up more than that comes from elsewhere, and only the table can tell what it means.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unexplained = 0

    def set(self) -> None:
        """Somebody says: look again."""
        self._unexplained += 1
        super().set()

    def explain(self) -> None:
        """The next wake-up is about entries that are in memory already."""
        self._unexplained -= 1
        super().set()

    def again(self) -> None:
        """Look once more in memory; says nothing about the table."""
        super().set()

    def take(self) -> bool:
        """Clear the flag; whether the table must be asked."""
        unexplained, self._unexplained = self._unexplained > 0, 0
        self.clear()
        return unexplained


class Cursor:
    """A place that moves: one reader's, over one account's stream.

    Attributes:
        place: The last entry that was delivered.
        news: Set when it is worth to look again.
    """

    __slots__ = ("_journal", "_on_close", "account_id", "closed", "listening", "news", "place")

    def __init__(
        self, journal: Journal, account_id: UUID, after: Place, on_close: Callable[[Cursor], None]
    ) -> None:
        self._journal = journal
        self._on_close = on_close
        self.account_id = account_id
        self.place = after
        self.news = News()
        self.news.set()  # there may be entries already
        self.listening: Any = None
        self.closed = False

    async def next(self) -> Sequence[Recorded]:
        """The entries that follow, in order, at least one; waits until there are any.

        Returns:
            A page that continues exactly where the last one ended; empty only after `close`.

        Raises:
            IntegrityError: The stream does not continue this place (a restore, a lost row): tell
                the client that its state is lost; it starts from a snapshot.
        """
        while not self.closed:
            await self.news.wait()
            if self.closed:
                break
            ask_table = self.news.take()  # before looking: what comes later sets it again
            page = self._journal.remembered(self.account_id, self.place)
            if page and ask_table:
                self.news.set()  # after what memory has, there may be more
            elif page:
                self.news.again()  # costs no query when memory has no more
            elif ask_table or not self._at_head():
                page = await self._look()
            if page and not self.closed:
                self._advance(page)
                return page
        return ()

    def _at_head(self) -> bool:
        newest = self._journal.newest(self.account_id)
        return newest is not None and newest <= self.place.seq

    async def _look(self) -> list[Recorded]:
        """Ask the table; keep the wake-up if it cannot answer."""
        try:
            page, complete = await self._journal.page(self.account_id, self.place)
            if not complete:
                self.news.set()
            elif not page:
                await self._still_there()
        except BaseException:
            self.news.set()
            raise
        return page

    async def _still_there(self) -> None:
        """Nothing follows: make sure that the stream still ends with the entry we know."""
        if self.closed:
            return
        head = await self._journal.head(self.account_id)
        if head is None or head.seq < self.place.seq:
            raise IntegrityError(
                f"account {self.account_id}: the stream ends before entry {self.place.seq}"
            )
        if head.seq == self.place.seq and head.digest != self.place.digest:
            raise IntegrityError(
                f"account {self.account_id}: entry {self.place.seq} is not the one delivered"
            )

    def _advance(self, page: Sequence[Recorded]) -> None:
        first = page[0]
        if hashlib.sha256(self.place.digest + first.body).digest() != first.hash:
            raise IntegrityError(
                f"account {self.account_id}: entry {first.seq} does not follow the one delivered"
            )
        self.place = Place(page[-1].seq, page[-1].hash)

    def close(self) -> None:
        """Stop waiting; safe to call twice."""
        if not self.closed:
            self.closed = True
            self.news.set()
            self._on_close(self)


def prefix_of(digest: bytes) -> str:
    """A hash's first 16 hex digits.

    Example:
        >>> prefix_of(bytes(range(32)))
        '0001020304050607'
    """
    return digest.hex()[: chain.HASH_PREFIX_DIGITS]
