"""Requests that happen once: answers kept under their callers' idempotency keys.

A key belongs to its caller. In the transaction that carries a command out, its answer is kept under
its key; a repetition, whenever it comes and whichever process it reaches, waits for the lock of the
same account, finds the key and gets the same answer. Refusals are kept too, unless they are about
the moment (`tbot.core.refusals.PASSING`): those are decided anew. A key with other content is
refused and changes nothing: if it concerns other accounts, and so waits for no lock of the first,
it meets the unique index, which is a conflict (`tbot.journal.faults`): run again, it finds the key.

A request of many commands claims its own key beforehand, with `claim`; they have keys of their own.

Keys are forgotten after `idempotency.keep_h`; a `client_order_id` never is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import asyncpg
import msgspec
import structlog
from prometheus_client import Counter

from tbot.core import clock
from tbot.core.errors import Unavailable
from tbot.core.ids import read_id
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import IdempotencySettings
from tbot.core.tasks import Tasks
from tbot.db.pool import DATABASE_FAULTS
from tbot.journal.commands import Accepted
from tbot.journal.projections import Write

type Connection = asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]

_log = structlog.get_logger(__name__)
_REPLAYED = Counter("tbot_idempotent_replays_total", "Answers given from a kept one.")
_CLEANED = Counter("tbot_idempotency_keys_cleaned_total", "Keys forgotten after their time.")

_COLUMNS: Final = "key, content, status, headers, body"
_FIND: Final = f"SELECT {_COLUMNS} FROM idempotency_keys WHERE key = ANY($1::uuid[])"
_KEEP: Final = """INSERT INTO idempotency_keys (key, content, status, headers, body, at)
SELECT * FROM unnest({0}::uuid[], {1}::bytea[], {2}::smallint[], {3}::bytea[], {4}::bytea[],
                     {5}::timestamptz[])"""
# Waits for who is claiming it at this moment; the row of that one is in the next look's snapshot.
_CLAIM: Final = """WITH claimed AS (
 INSERT INTO idempotency_keys (key, content, status, headers, body, at)
 VALUES ($1, $2, 0, '{}', '', $3) ON CONFLICT DO NOTHING RETURNING content, status)
SELECT content, status FROM claimed
UNION ALL SELECT content, status FROM idempotency_keys WHERE key = $1"""
_CLAIMED: Final = 0
"""In the place of a status: the row says what its key is for, and is no answer."""
_CLAIM_LOOKS: Final = 5
# An array, not IN: a planner that does not know the limit would join with the whole table.
_CLEAN: Final = """DELETE FROM idempotency_keys WHERE key = ANY(ARRAY(
 SELECT key FROM idempotency_keys WHERE at < $1 ORDER BY at LIMIT $2))"""

# Copied for each key: that takes a third of what it takes to begin anew.
_KEY: Final = hashlib.blake2b(digest_size=16, person=b"tbot:once")

_encode_headers = msgspec.json.Encoder().encode
_decode_headers = msgspec.json.Decoder(dict[str, str]).decode


class Kept(msgspec.Struct, frozen=True):
    """An answer as its caller got it the first time.

    Attributes:
        status, headers, body: Opaque here: the edge's business.
    """

    status: int
    headers: dict[str, str]
    body: bytes


class Once(msgspec.Struct, frozen=True):
    """What makes a repetition recognisable, and how the answer to keep is made.

    Attributes:
        key: From `key_of`.
        content: From `contents_of`; a repetition has the same.
        render: Makes the answer from the command's result or refusal; None keeps nothing. Runs
            inside the batch: pure and quick.
    """

    key: UUID
    content: bytes
    render: Callable[[Any], Kept | None]


class Record(msgspec.Struct, frozen=True):
    """A key's row."""

    content: bytes
    answer: Kept


def key_of(user_id: UUID, key: str) -> UUID:
    """A caller's key as 128 bits; another caller makes it another key, nothing else does.

    Example:
        >>> key_of(UUID(int=1), "k") == key_of(UUID(int=2), "k")
        False
    """
    digest = _KEY.copy()
    digest.update(user_id.bytes + key.encode())
    return read_id(digest.digest())


@lru_cache(1024)  # nearly all requests begin with one of a few targets
def contents_of(secret: bytes, *parts: bytes) -> Callable[[bytes], bytes]:
    """What makes fingerprints of what is asked; keyed, because a body may hold a password.

    Args:
        secret: Shared by all processes; at least 16 bytes, of which 64 are used.
        parts: What many requests begin with: method, path … The last part is given for each.

    Example:
        >>> whole = contents_of(b"s" * 16, b"POST /x")
        >>> whole(b"{}") == whole(b"{}"), whole(b"{}") == contents_of(b"s" * 16, b"POST /")(b"x{}")
        (True, False)
    """
    begun = hashlib.blake2b(digest_size=16, key=secret[:64])
    for part in parts:
        begun.update(len(part).to_bytes(4, "big") + part)

    def content(last: bytes) -> bytes:
        digest = begun.copy()
        digest.update(len(last).to_bytes(4, "big") + last)
        return digest.digest()

    return content


class KeptAnswers:
    """The keys of one batch: those found in the table, and those that it adds.

    A twin inside the batch gets its leader's answer, as a later one does.
    """

    __slots__ = ("_added", "_known")

    def __init__(self) -> None:
        self._known: dict[UUID, Record] = {}
        self._added: list[UUID] = []

    async def fetch(self, connection: Connection, onces: Sequence[Once]) -> None:
        """Read what is kept under these keys; after their accounts were locked."""
        self._known = await find(connection, [once.key for once in onces])

    def replay(self, once: Once) -> Kept | Refused | None:
        """The answer that is due to a repetition; None for a first time."""
        record = self._known.get(once.key)
        if record is None:
            return None
        if record.content != once.content or record.answer.status == _CLAIMED:
            return reused()
        _REPLAYED.inc()
        return record.answer

    def keep(self, once: Once, outcome: Accepted[Any] | Refused) -> None:
        """Remember a first time's answer."""
        answer = once.render(outcome.result if isinstance(outcome, Accepted) else outcome)
        if answer is not None:
            self._known[once.key] = Record(once.content, answer)
            self._added.append(once.key)

    @property
    def count(self) -> int:
        """How many answers are to be written; `cut` back to it what is decided from now on."""
        return len(self._added)

    def cut(self, count: int) -> None:
        """Forget the newest answers, all but so many: they were decided too early."""
        for key in self._added[count:]:
            del self._known[key]
        del self._added[count:]

    @property
    def added(self) -> bool:
        """Whether there is something to write."""
        return bool(self._added)

    def write(self, now: datetime) -> Write:
        """What the batch writes for the keys that it added.

        In the order of the keys, so that two batches with the same ones do not deadlock.
        """
        keys = sorted(self._added)
        return Write(_KEEP, _rows(keys, [self._known[key] for key in keys], now))


def _rows(keys: Sequence[UUID], records: Sequence[Record], now: datetime) -> list[list[Any]]:
    answers = [record.answer for record in records]
    return [
        list(keys),
        [record.content for record in records],
        [answer.status for answer in answers],
        [_encode_headers(answer.headers) for answer in answers],
        [answer.body for answer in answers],
        [now] * len(records),
    ]


def reused() -> Refused:
    """What a request is answered whose key was used for another one."""
    return Refused(
        Reason.IDEMPOTENCY_KEY_REUSED, "this key was used for a request of other content"
    )


async def claim(connection: Connection, key: UUID, content: bytes) -> Refused | None:
    """Let a key stand for a request of this content from now on; a statement of its own.

    For a request of many commands that have keys of their own: no answer is kept under this one,
    so whoever has the content goes on each time.

    Args:
        key: From `key_of`.
        content: From `contents_of`, of the request as a whole.

    Returns:
        A refusal, if it was used for something else; then nothing may be done.

    Raises:
        Unavailable: Nothing was done: the key came and went while it was looked at.
    """
    for _ in range(_CLAIM_LOOKS):
        row = await connection.fetchrow(_CLAIM, key, content, clock.utc_now())
        if row is not None:
            same = row["content"] == content and row["status"] == _CLAIMED
            return None if same else reused()
    raise Unavailable("the idempotency key is being used by another request")


async def find(connection: Connection, keys: Sequence[UUID]) -> dict[UUID, Record]:
    """The records of these keys, of those that have one."""
    rows = await connection.fetch(_FIND, list(keys))
    return {
        row["key"]: Record(
            row["content"], Kept(row["status"], _decode_headers(row["headers"]), row["body"])
        )
        for row in rows
    }


async def replayed(connection: Connection, once: Once) -> Kept | Refused | None:
    """The answer that is due to a repetition, as far as one can tell without a lock."""
    answers = KeptAnswers()
    await answers.fetch(connection, [once])
    return answers.replay(once)


async def beside(connection: Connection, once: Once) -> Kept | Refused | None:
    """For writes that are no commands: claim a key within the open transaction.

    The transaction keeps everybody else with this key waiting until it ends; `keep` the answer in
    it. None means a first time.
    """
    lock = int.from_bytes(once.key.bytes[:8], "big", signed=True)
    await connection.execute("SELECT pg_advisory_xact_lock($1)", lock)
    return await replayed(connection, once)


async def keep(connection: Connection, once: Once, outcome: Any) -> None:
    """Keep the answer to a result or refusal, in the transaction that `beside` was called in.

    Raises:
        Unavailable: A command of other content took the key meanwhile; who asks again finds it.
            Let it end the transaction: nothing was done.
    """
    answer = once.render(outcome)
    if answer is not None:
        write = Write(_KEEP, _rows([once.key], [Record(once.content, answer)], clock.utc_now()))
        places = [f"${n + 1}" for n in range(len(write.columns))]
        try:
            await connection.execute(write.sql.format(*places), *write.columns)
        except asyncpg.UniqueViolationError as taken:
            raise Unavailable("the idempotency key is being used by another request") from taken


async def clean(connection: Connection, before: datetime, most: int) -> int:
    """Forget keys older than `before`, at most so many; how many went."""
    tag: str = await connection.execute(_CLEAN, before, most)
    return int(tag.rpartition(" ")[2])


class Cleaner:
    """Forgets keys when their time is over, in small bites."""

    def __init__(self, pool: asyncpg.Pool[asyncpg.Record], settings: IdempotencySettings) -> None:
        self._pool = pool
        self._settings = settings
        self._tasks = Tasks("idempotency")

    def start(self) -> None:
        """Begin; the first round comes after one interval."""
        self._tasks.start(self._run(), "clean")

    async def stop(self) -> None:
        """End; safe to call twice."""
        await self._tasks.stop(1.0)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._settings.clean_interval_s)
            try:
                await self.sweep()
            except DATABASE_FAULTS as error:
                _log.warning("idempotency_keys_not_cleaned", error=repr(error))

    async def sweep(self) -> int:
        """One round: everything that is due; how many keys went."""
        before = clock.utc_now() - timedelta(hours=self._settings.keep_h)
        total = 0
        while True:
            async with self._pool.acquire() as connection:
                gone = await clean(connection, before, self._settings.clean_batch)
            total += gone
            _CLEANED.inc(gone)
            if gone < self._settings.clean_batch:
                return total
