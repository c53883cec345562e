"""The exchange's own log: effects on disk before anyone is told of them, and the restore.

Files in the data directory:

    log-<first record number, 12 digits>.jsonl   one record a line: `<CRC-32, 8 hex> <JSON>`
    state-<number of the last record in it>.json  everything up to there, written at compaction

The first line of every log file is a header with the session id. A record that a crash tore (the
last line of the newest file: no line end, or a wrong checksum) was never acknowledged and is cut. A
damaged line anywhere else means lost data: the exchange refuses to start.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import msgspec
import structlog

from tbot.core.errors import DataDirectoryError
from tbot.exchange.model import Deposited, Execution, Marked, Order, Record
from tbot.exchange.state import State

_log = structlog.get_logger(__name__)

FORMAT: Final = 1


class Header(msgspec.Struct):
    """First line of a log file."""

    session: str
    format: int = FORMAT


class AccountImage(msgspec.Struct):
    """An account inside a state file."""

    name: str
    balances: dict[str, tuple[str, str]]
    executions: list[Execution]
    closed: list[int]
    updated_ms: int


class StateImage(msgspec.Struct):
    """A whole state file, itself guarded by a checksum line."""

    session: str
    number: int
    accounts: list[AccountImage]
    orders: list[Order]
    deposits: list[Deposited]
    fees: dict[str, str]
    market: dict[str, str]
    next_order_id: int
    printed: dict[str, int]
    newest_trade: dict[str, int]
    mark: Marked | None


_record_decoder = msgspec.json.Decoder(Record)
_header_decoder = msgspec.json.Decoder(Header)
_image_decoder = msgspec.json.Decoder(StateImage)
_encoder = msgspec.json.Encoder()


def line(body: bytes) -> bytes:
    """A line of the log: checksum, space, body, line end."""
    return b"%08x %s\n" % (zlib.crc32(body), body)


def body_of(text: bytes) -> bytes | None:
    """The body of a line, or None when the line is torn or damaged."""
    if len(text) < 10 or not text.endswith(b"\n") or text[8:9] != b" ":
        return None
    body = text[9:-1]
    return body if b"%08x" % zlib.crc32(body) == text[:8] else None


class CommandLog:
    """Appends records. `append` buffers; nothing may be acknowledged before `flush` returned.

    Args:
        directory: The data directory; must exist.
        session: Session id for new files' headers.
        number: Number of the last record that exists.
        fsync: Whether `flush` waits for the disk. Without it a record survives `kill -9` of the
            process but not a power cut.
    """

    def __init__(self, directory: Path, session: str, number: int, fsync: bool) -> None:
        self._directory = directory
        self._session = session
        self._fsync = fsync
        self._pending: list[bytes] = []
        self._file: int | None = None
        self.number = number
        self.size_bytes = 0

    def open(self) -> None:
        """Start a new file after the last record, or continue one that holds only a header."""
        path = self._directory / f"log-{self.number + 1:012d}.jsonl"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.size_bytes = os.fstat(self._file).st_size
        if not self.size_bytes:
            self._pending.insert(0, line(_encoder.encode(Header(self._session))))
            self.flush()

    def append(self, record: Record) -> None:
        """Number a record and put it into the next flush."""
        self.number += 1
        record.number = self.number
        self._pending.append(line(_encoder.encode(record)))

    @property
    def is_dirty(self) -> bool:
        """Whether records wait for a flush."""
        return bool(self._pending)

    def flush(self) -> None:
        """Write everything pending in one call.

        Raises:
            OSError: Disk full or broken. What is in memory is then ahead of the log: stop without
                acknowledging anything; the next start cuts the torn record.
        """
        if not self._pending:
            return
        assert self._file is not None, "open() comes first"
        block = b"".join(self._pending)
        self._pending.clear()
        view = memoryview(block)
        while view:
            view = view[os.write(self._file, view) :]
        if self._fsync:
            os.fdatasync(self._file)
        self.size_bytes += len(block)

    def rotate(self) -> int:
        """Begin a new file; returns the number of the last record in the closed ones."""
        self.close()
        self.open()
        return self.number

    def close(self) -> None:
        """Flush and close; safe to call twice."""
        if self._file is not None:
            self.flush()
            os.close(self._file)
            self._file = None


def write_state(directory: Path, session: str, number: int, state: State) -> Path:
    """Write a state file for everything up to record `number`, then drop what it replaces.

    The file appears whole or not at all (temporary name, fsync, rename).
    """
    image = StateImage(
        session=session,
        number=number,
        accounts=[
            AccountImage(
                name=account.name,
                balances={
                    asset: (str(held.free), str(held.locked))
                    for asset, held in account.balances.items()
                },
                executions=list(account.executions),
                closed=list(account.closed),
                updated_ms=account.updated_ms,
            )
            for account in state.accounts.values()
        ],
        orders=list(state.orders.values()),
        deposits=list(state.deposits.values()),
        fees={asset: str(amount) for asset, amount in state.fees.items()},
        market={asset: str(amount) for asset, amount in state.market.items()},
        next_order_id=state.next_order_id,
        printed=state.printed,
        newest_trade=state.newest_trade,
        mark=state.mark,
    )
    path = directory / f"state-{number:012d}.json"
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb", opener=_private) as file:
        file.write(line(_encoder.encode(image)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync_directory(directory)
    for old in directory.glob("state-*.json"):
        if _number_in(old) < number:
            old.unlink()
    for old in directory.glob("log-*.jsonl"):
        if _number_in(old) <= number:
            old.unlink()
    return path


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _number_in(path: Path) -> int:
    return int(path.stem.split("-")[1])


def _load_image(path: Path, state: State) -> StateImage:
    body = body_of(path.read_bytes())
    if body is None:
        raise DataDirectoryError(
            f"{path} is damaged; restore it from a backup, or remove the exchange's data directory "
            "to start an empty session"
        )
    image = _image_decoder.decode(body)
    for order in image.orders:
        state.restore_order(order)
    for saved in image.accounts:
        account = state.account(saved.name)
        for asset, (free, locked) in saved.balances.items():
            held = account.balance(asset)
            held.free, held.locked = Decimal(free), Decimal(locked)
        for execution in saved.executions:
            account.remember(execution)
        account.closed.extend(saved.closed)
        account.updated_ms = saved.updated_ms
    state.deposits = {deposit.deposit_id: deposit for deposit in image.deposits}
    state.fees = {asset: Decimal(amount) for asset, amount in image.fees.items()}
    state.market = {asset: Decimal(amount) for asset, amount in image.market.items()}
    state.next_order_id = image.next_order_id
    state.printed = image.printed
    state.newest_trade = image.newest_trade
    state.mark = image.mark
    state.position = image.mark.position if image.mark is not None else 0
    return image


def restore(directory: Path, state: State, through: int | None = None) -> tuple[str | None, int]:
    """Rebuild the state from the newest state file and the logs after it.

    Args:
        directory: The data directory.
        state: Empty; filled in place.
        through: Only files whose records end at this number: those that are closed while the
            exchange goes on writing. None reads everything and cuts a torn end.

    Returns:
        The session id (None when the directory holds no session) and the last record's number.

    Raises:
        DataDirectoryError: A file is damaged in the middle, or records are missing.
        IntegrityError: A record does not fit the state.
    """
    session: str | None = None
    number = 0
    images = sorted(directory.glob("state-*.json"), key=_number_in)
    if images:
        image = _load_image(images[-1], state)
        session, number = image.session, image.number
    logs = sorted(directory.glob("log-*.jsonl"), key=_number_in)
    if through is not None:
        logs = [path for path in logs if _number_in(path) <= through]
    for path in logs:
        may_cut = through is None and path == logs[-1]
        for body in _bodies(path, may_cut):
            if body.startswith(b'{"session"'):
                header = _header_decoder.decode(body)
                if header.format != FORMAT or session not in (None, header.session):
                    raise DataDirectoryError(f"{path} is not a log of this session and version")
                session = header.session
                continue
            record = _record_decoder.decode(body)
            if record.number <= number:
                continue
            if record.number != number + 1:
                raise DataDirectoryError(
                    f"{path}: record {number + 1} is missing (found {record.number})"
                )
            for effect in record.effects:
                state.apply(effect, record.at_ms)
            state.position = max(state.position, int(record.met.get("position", 0)))
            number = record.number
    return session, number


def _bodies(path: Path, may_cut: bool) -> Iterator[bytes]:
    """The bodies of a file's lines; cuts a torn last line where that is allowed."""
    good_bytes = 0
    with path.open("rb") as file:
        for text in file:
            body = body_of(text)
            if body is None:
                if not may_cut or file.read(1):
                    raise DataDirectoryError(
                        f"{path} is damaged at byte {good_bytes}; restore it from a backup, or "
                        "remove the exchange's data directory to start an empty session"
                    )
                _log.warning(
                    "torn_record_cut", file=path.name, at_byte=good_bytes, cut_bytes=len(text)
                )
                os.truncate(path, good_bytes)
                return
            good_bytes += len(text)
            yield body
