"""Transfers from a file: checked as a whole first, then made, each of them once.

Entry points: `check_file` (reads and judges every line, changes nothing), `import_file`.

A file is CSV with a header or NDJSON, told apart by its first character. Each line is one transfer
between two existing accounts: `source_account_id`, `target_account_id`, `asset`, `amount`, and in
NDJSON optionally `metadata`. An opening balance is a transfer out of an account that may be
overdrawn by it.

The id of a line's transfer follows from the file's digest, the time of its first import and the
line. So an import that was interrupted goes on where it stopped, and one that is repeated changes
nothing, for ever.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import UUID

import asyncpg
import msgspec

from tbot.core import clock, money
from tbot.core.errors import ConfigurationError, InvalidAmount, Unavailable
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.journal.commands import Actor
from tbot.journal.committer import Committer
from tbot.ledger.assets import Assets
from tbot.ledger.transfers import NewTransfer, create_transfers

LINE_BYTES_MAX: Final = 65_536
CHUNK_LINES: Final = 250
"""Lines under way at once: about a batch of the committer."""
REPORTED_MAX: Final = 1000
"""Refused lines that a report lists; the rest are counted."""

_LOCK_CLASS: Final = 0x7B17
_COLUMNS: Final = ("source_account_id", "target_account_id", "asset", "amount")
_METADATA_KEYS_MAX: Final = 18  # two more are ours
_KEY_LENGTH_MAX: Final = 40
_VALUE_LENGTH_MAX: Final = 500

type Pool = asyncpg.Pool[asyncpg.Record]
type Progress = Callable[[int, int], None]
"""Called with bytes of the file done and bytes in all."""


class BadLine(Exception):
    """A line is no transfer; the text says why."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    source_account_id: UUID
    target_account_id: UUID
    asset: str
    amount: str
    metadata: dict[str, str] = {}


_read_json: Final = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True, slots=True)
class Wanted:
    """One line's transfer."""

    line: int
    source_id: UUID
    target_id: UUID
    asset: str
    amount: Decimal
    metadata: Mapping[str, str]


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
    """

    digest: bytes = b""
    size_bytes: int = 0
    lines: int = 0
    made: int = 0
    known: int = 0
    refused: list[tuple[int, str]] = field(default_factory=list)
    refused_more: int = 0
    sums: dict[str, Decimal] = field(default_factory=dict)

    def refuse(self, line: int, why: str) -> None:
        """Note a line that is not made."""
        if len(self.refused) < REPORTED_MAX:
            self.refused.append((line, why))
        else:
            self.refused_more += 1

    @property
    def sound(self) -> bool:
        """Whether nothing was refused."""
        return not self.refused


async def check_file(pool: Pool, path: Path, progress: Progress | None = None) -> Report:
    """Judge every line without changing anything: its shape, its accounts and its asset.

    Whether the money is there shows only when the transfers are made.

    Raises:
        ConfigurationError: The file is neither CSV with the right header nor NDJSON, or empty.
        OSError, asyncpg.PostgresError: It, or the database, cannot be read.
    """
    report = Report(size_bytes=path.stat().st_size)
    assets = Assets(pool)
    digest = hashlib.sha256()
    for chunk in _chunks(path, digest.update):
        wanted = [one for one in chunk.lines if isinstance(one, Wanted)]
        known = await _places(pool, wanted)
        for one in chunk.lines:
            report.lines += 1
            if isinstance(one, Wanted):
                why = await _hindrance(one, known, assets)
                if why is not None:
                    report.refuse(one.line, why)
            else:
                report.refuse(*one)
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
) -> Report:
    """Make the transfers of a file that was checked, in the order of its lines.

    Args:
        checked: From `check_file`; the file must not have changed since. A file with a refused
            line is not imported at all.

    Returns:
        What was made; a line may still be refused here, for want of money above all.

    Raises:
        ConfigurationError: The file has refused lines, or was changed.
        Unavailable: Another process imports this file.
        OutcomeUnknown, JournalUnavailable: Stopped amid the file. Call again: it goes on from
            there.
    """
    if not checked.sound:
        raise ConfigurationError("the file has lines that cannot be imported; nothing was done")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").digest() != checked.digest:
            raise ConfigurationError(f"{path} was changed since it was checked")
    report = Report(checked.digest, checked.size_bytes, checked.lines)
    digest = hashlib.sha256()
    async with _alone(pool, checked.digest):
        began_at = await _begun(pool, checked.digest, path.name)
        for chunk in _chunks(path, digest.update):
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
    ids = {transfer_id(report.digest, began_at, one.line): one for one in wanted}
    rows = await pool.fetch("SELECT id FROM transfers WHERE id = ANY($1::uuid[])", list(ids))
    known = {row["id"] for row in rows}
    report.known += len(known)
    missing = {made_id: one for made_id, one in ids.items() if made_id not in known}
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
            report.refuse(one.line, f"{outcome.reason.value}: {outcome.detail}")
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


async def _begun(pool: Pool, digest: bytes, name: str) -> datetime:
    """When the file's first import began: now, if this is it."""
    async with pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO imports (digest, name, began_at) VALUES ($1, $2, now())"
            " ON CONFLICT DO NOTHING",
            digest,
            name[:255],
        )
        began_at: datetime = await connection.fetchval(
            "SELECT began_at FROM imports WHERE digest = $1", digest
        )
    return began_at


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


# Reading

type _Read = Wanted | tuple[int, str]
type Parse = Callable[[bytes], Wanted | None]
"""Reads a line; None for an empty one."""


@dataclass(slots=True)
class _Chunk:
    """Some consecutive lines, and how far into the file they reach."""

    lines: list[_Read]
    end_bytes: int


def _chunks(path: Path, digest: Callable[[bytes], None]) -> Iterator[_Chunk]:
    """A file's lines, some at a time; `digest` is given every byte.

    Raises:
        ConfigurationError: It does not begin like CSV with our header, or like NDJSON.
    """
    with path.open("rb") as file:
        parse: Parse | None = None
        chunk = _Chunk([], 0)
        for number, raw in enumerate(_lines(file), 1):
            digest(raw)
            chunk.end_bytes += len(raw)
            if parse is None:
                text = raw.removeprefix(b"\xef\xbb\xbf").strip()
                if not text.startswith(b"{"):
                    parse = _csv_parser(text)
                    continue
                parse = _json_line
            try:
                found = parse(raw.removeprefix(b"\xef\xbb\xbf"))
            except BadLine as error:
                chunk.lines.append((number, str(error)))
            else:
                if found is not None:
                    chunk.lines.append(replace(found, line=number))
            if len(chunk.lines) >= CHUNK_LINES:
                yield chunk
                chunk = _Chunk([], chunk.end_bytes)
        if parse is None:
            raise ConfigurationError(f"{path} is empty")
        yield chunk


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while raw := file.readline(LINE_BYTES_MAX + 1):
        if len(raw) > LINE_BYTES_MAX:
            raise ConfigurationError(f"a line has more than {LINE_BYTES_MAX} bytes")
        yield raw


def _json_line(raw: bytes) -> Wanted | None:
    if not raw.strip():
        return None
    try:
        line = _read_json(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadLine(str(error)) from error
    return _wanted(line)


def _csv_parser(header: bytes) -> Parse:
    names = next(csv.reader([header.decode("utf-8", "replace")]), [])
    if sorted(names) != sorted(_COLUMNS):
        raise ConfigurationError(
            f"the file begins neither with {{ nor with the header {','.join(_COLUMNS)}"
        )

    def parse(raw: bytes) -> Wanted | None:
        if not raw.strip():
            return None
        try:
            cells = next(csv.reader([raw.decode()], strict=True))
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadLine(f"not CSV in UTF-8: {error}") from error
        if len(cells) != len(names):
            raise BadLine(f"has {len(cells)} cells instead of {len(names)}")
        row: dict[str, Any] = dict(zip(names, cells, strict=True))
        try:
            return _wanted(msgspec.convert(row, _Line))
        except msgspec.ValidationError as error:
            raise BadLine(str(error)) from error

    return parse


def _wanted(line: _Line) -> Wanted:
    try:
        amount = money.parse(line.amount)
    except InvalidAmount as error:
        raise BadLine(str(error)) from error
    if not 0 < amount < 10**18:
        raise BadLine("the amount has to be above zero, and below any limit of the tables")
    metadata = line.metadata
    if len(metadata) > _METADATA_KEYS_MAX:
        raise BadLine(f"metadata has more than {_METADATA_KEYS_MAX} members")
    for name, value in metadata.items():
        if not 0 < len(name) <= _KEY_LENGTH_MAX or len(value) > _VALUE_LENGTH_MAX:
            raise BadLine("a member of metadata is too long, or has no name")
        if not (name + value).isprintable():
            raise BadLine("metadata has a character that cannot be printed")
        if name in ("import", "line"):
            raise BadLine(f"metadata has {name}, which an import sets itself")
    return Wanted(0, line.source_account_id, line.target_account_id, line.asset, amount, metadata)
