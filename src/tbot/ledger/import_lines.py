"""The lines of a file of transfers: read from it, and written back when they were refused.

Entry points: `read_chunks`, `Refusals`.

A file is CSV with a header or NDJSON, told apart by its first character. `line` and `reason`, which
`Refusals` writes behind what was in the file, are ignored when it is read: it can be corrected and
imported.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self
from uuid import UUID

import msgspec

from tbot.core import money
from tbot.core.errors import ConfigurationError, InvalidAmount

LINE_BYTES_MAX: Final = 65_536
CHUNK_LINES: Final = 250
"""Lines under way at once: about a batch of the committer."""

_BOM: Final = b"\xef\xbb\xbf"
_COLUMNS: Final = ("source_account_id", "target_account_id", "asset", "amount")
_KEY: Final = "key"
_REPORTED: Final = ("line", "reason")
_METADATA_KEYS_MAX: Final = 18  # two more are ours
_NAME_LENGTH_MAX: Final = 40
_VALUE_LENGTH_MAX: Final = 500
_KEY_LENGTH_MAX: Final = 255
_PLACE: Final = re.compile(r"(?P<what>.*) - at `\$\.?(?P<where>[^`]*)`", re.DOTALL)

type Parse = Callable[[bytes], Wanted | None]
"""Reads a line; None for an empty one."""


class BadLine(Exception):
    """A line is no transfer; the text says why."""


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    source_account_id: UUID
    target_account_id: UUID
    asset: str
    amount: str
    key: str | None = None
    metadata: dict[str, str] = {}
    line: Any = None
    reason: Any = None


_read_json: Final = msgspec.json.Decoder(_Line).decode


@dataclass(frozen=True, slots=True)
class Wanted:
    """One line's transfer.

    Attributes:
        key: What makes it the same transfer in another file, too.
        raw: As it stands in the file.
    """

    line: int
    source_id: UUID
    target_id: UUID
    asset: str
    amount: Decimal
    metadata: Mapping[str, str]
    key: str | None = None
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that holds no transfer, and why not."""

    line: int
    why: str
    raw: bytes


@dataclass(slots=True)
class Chunk:
    """Some consecutive lines, and how far into the file they reach."""

    lines: list[Wanted | Bad]
    end_bytes: int


def read_chunks(path: Path, digest: Callable[[bytes], None]) -> Iterator[Chunk]:
    """A file's lines, some at a time; `digest` is given every byte.

    Raises:
        ConfigurationError: It does not begin like CSV with our header, or like NDJSON.
    """
    with path.open("rb") as file:
        parse: Parse | None = None
        chunk = Chunk([], 0)
        for number, raw in enumerate(_lines(file), 1):
            digest(raw)
            chunk.end_bytes += len(raw)
            if parse is None:
                text = raw.removeprefix(_BOM).strip()
                if not text.startswith(b"{"):
                    parse = _csv_parser(text)
                    continue
                parse = _json_line
            line = raw.removeprefix(_BOM)
            try:
                found = parse(line)
            except BadLine as error:
                chunk.lines.append(Bad(number, str(error), line))
            else:
                if found is not None:
                    chunk.lines.append(replace(found, line=number, raw=line))
            if len(chunk.lines) >= CHUNK_LINES:
                yield chunk
                chunk = Chunk([], chunk.end_bytes)
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
    except msgspec.ValidationError as error:
        raise BadLine(_plain(error)) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadLine(f"not JSON in UTF-8: {error}") from error
    return _wanted(line)


def _plain(error: msgspec.ValidationError) -> str:
    """What is wrong with which member, in words of ours."""
    found = _PLACE.fullmatch(str(error))
    if found is None:
        text = str(error).replace("`", "")
        text = text.replace("Object missing required field", "the line has no")
        return text.replace(
            "Object contains unknown field", "the line has a member that is not known:"
        )
    what, where = found["what"], found["where"]
    if what == "Invalid UUID":
        return f"{where} is no account id (a UUID)"
    if what.startswith("Expected `str`"):
        hint = ', as in "12.50"' if where == "amount" else ""
        return f"{where} has to be a text in quotes{hint}"
    return f"{where}: {what[:1].lower()}{what[1:]}".replace("`", "")


def _names(header: bytes) -> list[str]:
    return next(csv.reader([header.decode("utf-8", "replace")]), [])


def _csv_parser(header: bytes) -> Parse:
    names = _names(header)
    optional = {_KEY, *_REPORTED}
    if sorted(set(names) - optional) != sorted(_COLUMNS) or len(set(names)) != len(names):
        hint = ""
        if b";" in header and b"," not in header:
            hint = ": it has semicolons where commas belong"
        raise ConfigurationError(
            f"the file begins neither with {{ nor with the header {','.join(_COLUMNS)}"
            f" (and, if you like, {_KEY}){hint}"
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
        row[_KEY] = row.get(_KEY) or None
        try:
            return _wanted(msgspec.convert(row, _Line))
        except msgspec.ValidationError as error:
            raise BadLine(_plain(error)) from error

    return parse


def _wanted(line: _Line) -> Wanted:
    try:
        amount = money.parse(line.amount)
    except InvalidAmount as error:
        raise BadLine(str(error)) from error
    if not 0 < amount < 10**18:
        raise BadLine("the amount has to be above zero, and below any limit of the tables")
    metadata, key = line.metadata, line.key
    if len(metadata) > _METADATA_KEYS_MAX:
        raise BadLine(f"metadata has more than {_METADATA_KEYS_MAX} members")
    for name, value in metadata.items():
        if not 0 < len(name) <= _NAME_LENGTH_MAX or len(value) > _VALUE_LENGTH_MAX:
            raise BadLine("a member of metadata is too long, or has no name")
        if not (name + value).isprintable():
            raise BadLine("metadata has a character that cannot be printed")
        if name in ("import", "line"):
            raise BadLine(f"metadata has {name}, which an import sets itself")
    if key is not None and not (0 < len(key) <= _KEY_LENGTH_MAX and key.isprintable()):
        raise BadLine(f"a key has 1 to {_KEY_LENGTH_MAX} characters that can be printed")
    source_id, target_id = line.source_account_id, line.target_account_id
    return Wanted(0, source_id, target_id, line.asset, amount, metadata, key)


class Refusals:
    """A file of refused lines, whole and in the form of the file that they come from.

    What was written is in place once the `with` ends well; so it may even replace its source.

    Args:
        source: The file that is imported.
        target: Where the refused lines go, with their number and the reason.
    """

    def __init__(self, source: Path, target: Path) -> None:
        self._target = target
        self._draft = target.with_name(f".{target.name}.{os.getpid()}")
        with source.open("rb") as file:
            first = file.readline(LINE_BYTES_MAX).removeprefix(_BOM).strip()
        self._columns = None if first.startswith(b"{") else _names(first)

    def __enter__(self) -> Self:
        self._file = self._draft.open("w", newline="", encoding="utf-8")
        if self._columns is not None:
            kept = [name for name in self._columns if name not in _REPORTED]
            csv.writer(self._file).writerow([*kept, *_REPORTED])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._file.close()
        if kind is None:
            self._draft.replace(self._target)
        else:
            self._draft.unlink()

    def tell(self, line: int, why: str, raw: bytes) -> None:
        """Write a refused line; one that cannot be read as what it should be stays one text."""
        text = raw.decode("utf-8", "replace").rstrip("\r\n")
        if self._columns is None:
            self._file.write(_json_report(text, line, why) + "\n")
        else:
            csv.writer(self._file).writerow(_csv_report(text, self._columns, line, why))


def _json_report(text: str, line: int, why: str) -> str:
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        found = None
    if not isinstance(found, dict):
        found = {"text": text}
    return msgspec.json.encode({**found, "line": line, "reason": why}).decode()


def _csv_report(text: str, names: list[str], line: int, why: str) -> list[str]:
    try:
        cells = next(csv.reader(io.StringIO(text, newline=""), strict=True), [])
    except csv.Error:
        cells = []
    kept = [name for name in names if name not in _REPORTED]
    if len(cells) != len(names):
        return [text, *[""] * (len(kept) - 1), str(line), why]
    row = dict(zip(names, cells, strict=True))
    return [*(row[name] for name in kept), str(line), why]
