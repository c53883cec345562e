"""The journal as a file: every entry's bytes, account by account, and a manifest.

The heads of all accounts are read in one statement, which makes them one consistent cut: no
command is half in it. Everything up to a head never changes any more, so the entries follow in
short statements, page by page, and a running server is no hindrance. Memory does not grow with
the journal: the heads wait in a temporary file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Final, cast
from uuid import UUID

import asyncpg

from tbot import __version__
from tbot.audit import form
from tbot.audit.form import EntryLine, Head, Header, Manifest, Seal
from tbot.audit.keys import SigningKey
from tbot.audit.merkle import Tree
from tbot.core.clock import stamp, utc_now
from tbot.core.errors import NotFound

PAGE_ENTRIES: Final = 2000
_HEADS: Final = (
    "SELECT account_id, seq, encode(hash, 'hex') FROM streams WHERE seq >= {least}{these}"
    " ORDER BY account_id"
)
_PAGE: Final = (
    "SELECT account_id, seq, body, hash FROM journal"
    " WHERE (account_id, seq) > ($1, $2) ORDER BY account_id, seq LIMIT $3"
)
_PAGE_OF_ONE: Final = (
    "SELECT account_id, seq, body, hash FROM journal"
    " WHERE account_id = $1 AND seq > $2 ORDER BY seq LIMIT $3"
)
_NONE: Final = UUID(int=0)

type Connection = asyncpg.Connection[Any]


@dataclass(slots=True)
class Progress:
    """How far an export is.

    Attributes:
        total: Entries that the heads promise.
    """

    accounts: int = 0
    entries: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Anchored:
    """The newest anchor when the export was made."""

    index: int
    id: str


class Heads:
    """The heads of one moment, in account order, in a temporary file."""

    def __init__(self, spool: IO[bytes]) -> None:
        self._spool = spool
        self.accounts = 0
        self.entries = 0
        for head in self:
            self.accounts += 1
            self.entries += head.seq or 0

    def __iter__(self) -> Iterator[Head]:
        """Each head, from the first; one iteration at a time."""
        self._spool.seek(0)
        for line in self._spool:
            account, seq, digest = line.decode().rstrip("\n").split("\t")
            yield Head(account, int(seq), digest)


async def read_heads(
    connection: Connection,
    spool: IO[bytes],
    accounts: Sequence[UUID] = (),
    *,
    least: int = 0,
) -> Heads:
    """Read the heads of all accounts, or of these, at one moment.

    Args:
        spool: An empty file, opened for writing and reading.
        least: Streams with fewer entries are left out.
    """
    these = ""
    if accounts:
        quoted = ", ".join(f"'{account}'" for account in accounts)
        these = f" AND account_id IN ({quoted})"
    query = _HEADS.format(least=least, these=these)
    await connection.copy_from_query(query, output=cast("BinaryIO", spool), format="text")
    spool.flush()
    return Heads(spool)


async def lines(
    connection: Connection,
    *,
    accounts: Sequence[UUID] = (),
    anchored: Anchored | None = None,
    key: SigningKey | None = None,
    progress: Progress | None = None,
) -> AsyncIterator[bytes]:
    """Every line of an export, from the header to the seal.

    Args:
        connection: For any role that may read the tables; no transaction open on it.
        accounts: Export only these.
        anchored: Named in the manifest.
        key: Signs the seal; None leaves it unsigned.
        progress: Kept up to date.

    Raises:
        NotFound: One of `accounts` has no journal.
    """
    progress = progress or Progress()
    digest = hashlib.sha256()
    made_at = stamp(utc_now())
    begun = form.header(Header(__version__, made_at, "some" if accounts else "all"))
    digest.update(begun)
    yield begun
    with tempfile.TemporaryFile() as spool:
        heads = await read_heads(connection, spool, accounts)
        if accounts and heads.accounts != len(set(accounts)):
            known = {head.account for head in heads}
            missing = sorted(str(account) for account in set(accounts) if str(account) not in known)
            raise NotFound(f"no journal of account {', '.join(missing)}")
        progress.total = heads.entries
        tree = Tree()
        exporting = _selected(connection, heads) if accounts else _everything(connection, heads)
        async for item in exporting:
            if isinstance(item, Head):
                progress.accounts += 1
                line = form.stream(item)
                if item.seq is not None:
                    tree.add(item.leaf())
            else:
                progress.entries += 1
                line = form.entry(item)
            digest.update(line)
            yield line
    index, name = (None, None) if anchored is None else (anchored.index, anchored.id)
    ended = form.manifest(Manifest(heads.accounts, heads.entries, tree.root().hex(), index, name))
    digest.update(ended)
    yield ended
    total = digest.hexdigest()
    if key is None:
        yield form.seal(Seal(total, None, None))
    else:
        signature = key.sign(form.EXPORT_CONTEXT + total.encode())
        yield form.seal(Seal(total, key.public.fingerprint, signature))


async def _selected(connection: Connection, heads: Heads) -> AsyncIterator[Head | EntryLine]:
    """The chosen accounts, each up to its head."""
    for head in heads:
        yield head
        after, account_id = 0, UUID(head.account)
        while after < (head.seq or 0):
            rows = await connection.fetch(_PAGE_OF_ONE, account_id, after, PAGE_ENTRIES)
            for row in rows:
                if head.seq is not None and row["seq"] <= head.seq:
                    yield EntryLine(row["seq"], row["hash"], row["body"])
            if len(rows) < PAGE_ENTRIES:
                break
            after = rows[-1]["seq"]


async def _everything(connection: Connection, heads: Heads) -> AsyncIterator[Head | EntryLine]:
    """The whole journal in one pass along its key, beside the heads in the same order.

    What came after the cut is passed over. Entries that no head knows, not even now, are exported
    all the same: somebody put them there, or took the head away.
    """
    expected = iter(heads)
    head = next(expected, None)
    begun = False  # whether `head` was given out
    looked, known = "", 0  # the last account whose head was looked up, and what it was
    stray = ""
    async for row in _rows(connection):
        account, seq = str(row["account_id"]), row["seq"]
        while head is not None and head.account < account:
            if not begun:
                yield head
            head, begun = next(expected, None), False
        mine = head is not None and head.account == account
        if head is not None and mine and not begun:
            yield head
            begun = True
        if not mine or head is None or head.seq is None or seq > head.seq:
            if looked != account or seq > known:
                looked, known = account, await _head_now(connection, row["account_id"])
            if seq <= known:
                continue
            if not mine and stray != account:
                stray = account
                yield Head(account, None, None)
        yield EntryLine(seq, row["hash"], row["body"])
    while head is not None:
        if not begun:
            yield head
        head, begun = next(expected, None), False


async def _rows(connection: Connection) -> AsyncIterator[asyncpg.Record]:
    account_id, seq = _NONE, 0
    while True:
        rows = await connection.fetch(_PAGE, account_id, seq, PAGE_ENTRIES)
        for row in rows:
            yield row
        if len(rows) < PAGE_ENTRIES:
            return
        account_id, seq = rows[-1]["account_id"], rows[-1]["seq"]


async def _head_now(connection: Connection, account_id: UUID) -> int:
    seq: int | None = await connection.fetchval(
        "SELECT seq FROM streams WHERE account_id = $1", account_id
    )
    return seq or 0
