"""Transfers from a file: checked as a whole first, then made, each of them once.

Entry points: `check_file` (reads and judges every line, changes nothing), `import_file`.

Each line is one transfer between two existing accounts: `source_account_id`, `target_account_id`,
`asset`, `amount`, optionally `key`, and in NDJSON optionally `metadata`. An opening balance is a
transfer out of an account that may be overdrawn by it.

The id of a line's transfer follows from the file's digest, the time of its first import and the
line. So an import that was interrupted goes on where it stopped, and one that is repeated changes
nothing, for ever. But a changed file is another file. A line with a key is a file of its own: its
id follows from the key and the time of its first import, whatever file it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Final
from uuid import UUID

import asyncpg

from tbot.core import clock, money
from tbot.core.errors import ConfigurationError, Unavailable
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.journal.commands import Actor
from tbot.journal.committer import Committer
from tbot.ledger.assets import Assets
from tbot.ledger.import_lines import Wanted, read_chunks
from tbot.ledger.transfers import NewTransfer, create_transfers

REPORTED_MAX: Final = 1000
"""Refused lines that a report lists; the rest are counted."""

_OTHER: Final = "its key made another transfer before: give it a key of its own"
_LOCK_CLASS: Final = 0x7B17
_KEYED_LOCK: Final = hashlib.sha256(b"import of keys").digest()

type Pool = asyncpg.Pool[asyncpg.Record]
type Progress = Callable[[int, int], None]
"""Called with bytes of the file done and bytes in all."""
type Tell = Callable[[int, str, bytes], None]
"""Called with a refused line's number, the reason, and the line."""


@dataclass(slots=True)
class Report:
    """What became of a file.

    Attributes:
        lines: That hold a transfer.
        made: Transfers that this import made.
        known: Transfers that an earlier import of the same file had made.
        refused: `(line, why)` of the first `REPORTED_MAX` that were not made.
        refused_more: How many more.
        sums: What was made, by asset.
        keyed: Lines that have a key.
        tell: Hears of every refused line.
    """

    digest: bytes = b""
    size_bytes: int = 0
    lines: int = 0
    made: int = 0
    known: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    refused_more: int = 0
    sums: dict[str, Decimal] = field(default_factory=dict)
    keyed: int = 0
    tell: Tell | None = None

    def refuse(self, line: int, why: str, raw: bytes) -> None:
        """Note a line that is not made."""
        if self.tell is not None:
            self.tell(line, why, raw)
        if len(self.refused) < REPORTED_MAX:
            self.refused.append((line, why))
        else:
            self.refused_more += 1

    @property
    def sound(self) -> bool:
        """Whether nothing was refused."""
        return not self.refused


async def check_file(
    pool: Pool, path: Path, progress: Progress | None = None, tell: Tell | None = None
) -> Report:
    """Judge every line without changing anything: its shape, its accounts, its asset and its key.

    Whether the money is there shows only when the transfers are made.

    Raises:
        ConfigurationError: The file is neither CSV with the right header nor NDJSON, or empty.
        OSError, asyncpg.PostgresError: It, or the database, cannot be read.
    """
    report = Report(size_bytes=path.stat().st_size, tell=tell)
    assets = Assets(pool)
    digest = hashlib.sha256()
    lines_of: dict[bytes, int] = {}
    for chunk in read_chunks(path, digest.update):
        wanted = [one for one in chunk.lines if isinstance(one, Wanted)]
        places = await _places(pool, wanted)
        others = await _others(pool, [one for one in wanted if one.key is not None])
        for one in chunk.lines:
            report.lines += 1
            if not isinstance(one, Wanted):
                report.refuse(one.line, one.why, one.raw)
                continue
            why = await _hindrance(one, places, assets)
            if one.key is not None:
                report.keyed += 1
                first = lines_of.setdefault(_digest_of(one.key), one.line)
                if first != one.line:
                    why = f"line {first} has the same key"
                elif one.line in others:
                    why = _OTHER
            if why is not None:
                report.refuse(one.line, why, one.raw)
        if progress is not None:
            progress(chunk.end_bytes, report.size_bytes)
    report.digest = digest.digest()
    return report


async def import_file(
    pool: Pool,
    committer: Committer,
    actor: Actor,
    path: Path,
    checked: Report,
    progress: Progress | None = None,
    tell: Tell | None = None,
) -> Report:
    """Make the transfers of a file that was checked, in the order of its lines.

    Args:
        checked: From `check_file`; the file must not have changed since. A file with a refused
            line is not imported at all.

    Returns:
        What was made; a line may still be refused here, for want of money above all.

    Raises:
        ConfigurationError: The file has refused lines, or was changed.
        Unavailable: Another process imports this file, or another one with keys.
        OutcomeUnknown, JournalUnavailable: Stopped amid the file. Call again: it goes on from
            there.
    """
    if not checked.sound:
        raise ConfigurationError("the file has lines that cannot be imported; nothing was done")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != checked.digest:
            raise ConfigurationError(f"{path} was changed since it was checked")
    report = Report(
        checked.digest, checked.size_bytes, checked.lines, keyed=checked.keyed, tell=tell
    )
    digest = hashlib.sha256()
    # Other files may have the same keys.
    async with _alone(pool, _KEYED_LOCK if checked.keyed else checked.digest):
        began_at = (await _begun(pool, {checked.digest: path.name}))[checked.digest]
        for chunk in read_chunks(path, digest.update):
            wanted = [one for one in chunk.lines if isinstance(one, Wanted)]
            if len(wanted) != len(chunk.lines):
                raise ConfigurationError(f"{path} was changed since it was checked")
            await _make(pool, committer, actor, wanted, began_at, report)
            if progress is not None:
                progress(chunk.end_bytes, report.size_bytes)
    if digest.digest() != checked.digest:
        raise ConfigurationError(f"{path} was changed while it was imported: check what was made")
    return report


def transfer_id(digest: bytes, began_at: datetime, line: int) -> UUID:
    """The id of a line's transfer: the same for the same file, whenever it is asked for.

    Ids sort by time, and within a file by line: 48 bits of milliseconds, 32 of the line, the rest
    a hash (with the version and variant of RFC 9562, UUID version 7).
    """
    hashed = hashlib.blake2b(digest + line.to_bytes(8, "big"), digest_size=16).digest()
    low = int.from_bytes(hashed, "big") & ((1 << 42) - 1)
    value = clock.to_ms(began_at) << 80 | 7 << 76 | (line >> 20 & 0xFFF) << 64
    return UUID(int=value | 2 << 62 | (line & 0xFFFFF) << 42 | low)


async def _make(
    pool: Pool,
    committer: Committer,
    actor: Actor,
    wanted: list[Wanted],
    began_at: datetime,
    report: Report,
) -> None:
    """Make a chunk's transfers, but for those that are there."""
    keys = {_digest_of(one.key): one.key for one in wanted if one.key is not None}
    begun = await _begun(pool, keys) if keys else {}
    ids = {}
    for one in wanted:  # in the file's order: a line may spend what the one before it brought
        if one.key is None:
            made_id = transfer_id(report.digest, began_at, one.line)
        else:
            digest = _digest_of(one.key)
            made_id = transfer_id(digest, begun[digest], 0)
        ids[made_id] = one
    known = await _made(pool, ids)
    missing = {}
    for made_id, one in ids.items():
        if made_id not in known:
            missing[made_id] = one
        elif known[made_id]:
            report.known += 1
        else:
            report.refuse(one.line, _OTHER, one.raw)
    outcomes = await committer.commit_all(
        [
            (create_transfers(new_id(), actor, (_transfer(made_id, one, report),)), None)
            for made_id, one in missing.items()
        ]
    )
    for one, outcome in zip(missing.values(), outcomes, strict=True):
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, Refused):
            report.refuse(one.line, f"{outcome.reason.value}: {outcome.detail}", one.raw)
        else:
            report.made += 1
            report.sums[one.asset] = report.sums.get(one.asset, money.ZERO) + one.amount


def _transfer(made_id: UUID, one: Wanted, report: Report) -> NewTransfer:
    ours = {"import": report.digest.hex()[:16], "line": str(one.line)}
    return NewTransfer(
        id=made_id,
        source_id=one.source_id,
        target_id=one.target_id,
        asset=one.asset,
        amount=one.amount,
        metadata={**one.metadata, **ours},
    )


@asynccontextmanager
async def _alone(pool: Pool, digest: bytes) -> AsyncIterator[None]:
    """Keep other processes from importing the same file meanwhile."""
    number = int.from_bytes(digest[:4], "big", signed=True)
    async with pool.acquire() as connection:
        lock = "SELECT pg_try_advisory_lock($1, $2)"
        if not await connection.fetchval(lock, _LOCK_CLASS, number):
            raise Unavailable("another process is importing this file")
        try:
            yield
        finally:
            await connection.fetchval("SELECT pg_advisory_unlock($1, $2)", _LOCK_CLASS, number)


async def _begun(pool: Pool, names: Mapping[bytes, str]) -> dict[bytes, datetime]:
    """When the first import of each began: now, for those that are new.

    Args:
        names: Digest of a file, or of a key → its name.
    """
    async with pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO imports (digest, name, began_at)"
            " SELECT digest, name, now() FROM unnest($1::bytea[], $2::text[]) AS u (digest, name)"
            " ON CONFLICT DO NOTHING",
            list(names),
            [name[:255] for name in names.values()],
        )
    return await _known(pool, list(names))


async def _known(pool: Pool, digests: list[bytes]) -> dict[bytes, datetime]:
    """When the first import of each began, of those that were."""
    rows = await pool.fetch(
        "SELECT digest, began_at FROM imports WHERE digest = ANY($1::bytea[])", digests
    )
    return {row["digest"]: row["began_at"] for row in rows}


async def _made(pool: Pool, ids: Mapping[UUID, Wanted]) -> dict[UUID, bool]:
    """Of these transfers, those that are there: whether they are what is wanted."""
    rows = await pool.fetch(
        "SELECT id, source_id, target_id, asset, amount FROM transfers WHERE id = ANY($1::uuid[])",
        list(ids),
    )
    return {row["id"]: _fits(ids[row["id"]], row) for row in rows}


def _fits(one: Wanted, row: asyncpg.Record) -> bool:
    there = row["source_id"], row["target_id"], row["asset"], row["amount"]
    return there == (one.source_id, one.target_id, one.asset, one.amount)


async def _others(pool: Pool, keyed: list[Wanted]) -> set[int]:
    """Of these lines, those whose key made another transfer."""
    if not keyed:
        return set()
    by_digest = {_digest_of(one.key or ""): one for one in keyed}
    begun = await _known(pool, list(by_digest))
    ids = {transfer_id(digest, at, 0): by_digest[digest] for digest, at in begun.items()}
    return {ids[made_id].line for made_id, fits in (await _made(pool, ids)).items() if not fits}


def _digest_of(key: str) -> bytes:
    """What stands for a key where a file has its digest."""
    return hashlib.sha256(b"key:" + key.encode()).digest()


async def _places(pool: Pool, wanted: list[Wanted]) -> dict[UUID, tuple[str | None, str]]:
    """Of the accounts that are named, those that exist: their venue and status."""
    ids = {account_id for one in wanted for account_id in (one.source_id, one.target_id)}
    rows = await pool.fetch(
        "SELECT id, venue, status FROM accounts WHERE id = ANY($1::uuid[])", list(ids)
    )
    return {row["id"]: (row["venue"], row["status"]) for row in rows}


async def _hindrance(
    one: Wanted, known: Mapping[UUID, tuple[str | None, str]], assets: Assets
) -> str | None:
    source, target = known.get(one.source_id), known.get(one.target_id)
    if source is None or target is None:
        return f"there is no account {one.source_id if source is None else one.target_id}"
    if one.source_id == one.target_id:
        return "source and target are the same account"
    if source[0] != target[0]:
        return "the accounts' money is not at the same place"
    if source[1] != "open":
        return f"the source account is {source[1]}"
    if target[1] == "closed":
        return "the target account is closed"
    refusal = await assets.check([(one.asset, one.amount)])
    return None if refusal is None else f"{refusal.reason.value}: {refusal.detail}"
