"""Plays recordings: lines of `<receive time, ns> <Binance combined-stream JSON>`.

Several files of one symbol are chained in the order of their first lines; symbols are merged by
receive time. A line whose JSON has no `stream` key is a REST depth snapshot of the file's symbol.
Exchange times (`E`, `T`) are passed on as recorded. `docs/paper-exchange.md` describes the format.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
from collections import defaultdict
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO, Final, cast

import msgspec
import structlog

from tbot.core.errors import ConfigurationError
from tbot.exchange.events import Best, Depth, MarketEvent, Snapshot, Timed, Trade
from tbot.exchange.instruments import KNOWN, Instrument, infer

_log = structlog.get_logger(__name__)

_SNAPSHOT_WITHIN_LINES: Final = 100_000
"""How far into a symbol's recording its first snapshot is looked for."""


class _Depth(msgspec.Struct, gc=False):
    E: int
    s: str
    U: int
    u: int
    b: list[tuple[Decimal, Decimal]]
    a: list[tuple[Decimal, Decimal]]


class _Best(msgspec.Struct, gc=False):
    u: int
    s: str
    b: Decimal
    B: Decimal
    a: Decimal
    A: Decimal


class _Trade(msgspec.Struct, gc=False):
    E: int
    s: str
    t: int
    p: Decimal
    q: Decimal
    T: int
    m: bool
    X: str = "MARKET"


class _Snapshot(msgspec.Struct, gc=False, rename="camel"):
    last_update_id: int
    bids: list[tuple[Decimal, Decimal]]
    asks: list[tuple[Decimal, Decimal]]


_depth = msgspec.json.Decoder(_Depth)
_best = msgspec.json.Decoder(_Best)
_trade = msgspec.json.Decoder(_Trade)
_snapshot = msgspec.json.Decoder(_Snapshot)
_STREAM: Final = b'{"stream":"'
_DATA: Final = b'","data":'


def parse_line(text: bytes, symbol: str) -> tuple[int, MarketEvent | None]:
    """Read one line.

    Args:
        text: The line, with or without its end.
        symbol: Of the file, for snapshots, which do not name theirs.

    Returns:
        The receive time and the event, None for a stream that is not played.

    Raises:
        ValueError: The line has another form (`msgspec.DecodeError` is one).
    """
    text = text.rstrip()
    space = text.index(b" ")
    at_ns, frame = int(text[:space]), text[space + 1 :]
    if not frame.startswith(_STREAM):
        found = _snapshot.decode(frame)
        return at_ns, Snapshot(symbol, found.last_update_id, found.bids, found.asks)
    data_at = frame.index(_DATA)
    name = frame[len(_STREAM) : data_at]
    data = frame[data_at + len(_DATA) : -1]
    kind = name[name.index(b"@") + 1 :]
    if kind == b"bookTicker":
        best = _best.decode(data)
        return at_ns, Best(best.s, best.u, best.b, best.B, best.a, best.A, frame)
    if kind == b"trade":
        trade = _trade.decode(data)
        if trade.X != "MARKET":
            return at_ns, None
        return at_ns, Trade(trade.s, trade.t, trade.p, trade.q, trade.m, trade.T, trade.E, frame)
    if kind == b"depth@100ms":
        diff = _depth.decode(data)
        return at_ns, Depth(diff.s, diff.U, diff.u, diff.b, diff.a, diff.E, frame)
    if kind == b"depth@0ms":
        raise ValueError("a futures recording (depth@0ms); only spot recordings can be played")
    return at_ns, None


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast("BinaryIO", gzip.open(path, "rb"))
    return path.open("rb")


def _symbol_of(path: Path) -> str:
    """The symbol that a file's streams name."""
    with _open(path) as file:
        for text in file:
            found = text.find(_STREAM)
            if found >= 0:
                start = found + len(_STREAM)
                return text[start : text.index(b"@", start)].decode().upper()
    raise ConfigurationError(f"{path} holds no market stream")


def _lines(path: Path, symbol: str) -> Iterator[tuple[int, MarketEvent]]:
    with _open(path) as file:
        for number, text in enumerate(file, 1):
            try:
                at_ns, event = parse_line(text, symbol)
            except ValueError as error:
                raise ConfigurationError(f"{path}, line {number}: {error}") from None
            if event is not None:
                yield at_ns, event


class Replay:
    """A recording of one or more symbols.

    Args:
        paths: The files, in any order, plain or gzip.

    Raises:
        ConfigurationError: A file is missing, not a spot recording, or a symbol has no snapshot.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if not paths:
            raise ConfigurationError("a replay needs at least one recording (replay_files)")
        self._files: dict[str, list[Path]] = defaultdict(list)
        firsts: dict[Path, int] = {}
        for path in paths:
            if not path.is_file():
                raise ConfigurationError(f"recording {path} does not exist")
            symbol = _symbol_of(path)
            firsts[path] = next(at_ns for at_ns, _ in _lines(path, symbol))
            self._files[symbol].append(path)
        for files in self._files.values():
            files.sort(key=lambda path: firsts[path])
        self.first_ns = min(firsts.values())
        self.snapshots = {symbol: self._first_snapshot(symbol) for symbol in self._files}
        self.start_ms = min(self._first_ms(symbol) for symbol in self._files)

    def _chain(self, symbol: str) -> Iterator[tuple[int, MarketEvent]]:
        for path in self._files[symbol]:
            yield from _lines(path, symbol)

    def trade_ids(self) -> dict[str, int]:
        """By symbol, the trade id before its first event; 0 where nothing is traded."""
        return {symbol: self._first_trade_id(symbol) - 1 for symbol in self._files}

    def _first_trade_id(self, symbol: str) -> int:
        ids = (event.id for _, event in self._chain(symbol) if isinstance(event, Trade))
        return next(ids, 1)

    def _first_ms(self, symbol: str) -> int:
        """The exchange time of a symbol's first event that carries one."""
        timed = (
            event.event_ms for _, event in self._chain(symbol) if isinstance(event, Depth | Trade)
        )
        return next(timed, 0)

    def _first_snapshot(self, symbol: str) -> Snapshot:
        for seen, (_, event) in enumerate(self._chain(symbol)):
            if isinstance(event, Snapshot):
                return event
            if seen > _SNAPSHOT_WITHIN_LINES:
                break
        raise ConfigurationError(
            f"the recording of {symbol} holds no depth snapshot near its start; give the file that "
            "comes before it, too"
        )

    @property
    def identity(self) -> str:
        """Names the recordings by file name and size."""
        files = [path for paths in self._files.values() for path in paths]
        parts = sorted(f"{path.name}:{path.stat().st_size}" for path in files)
        return "replay:" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def instruments(self) -> list[Instrument]:
        """The rules of every recorded symbol."""
        return [KNOWN.get(symbol) or infer(snapshot) for symbol, snapshot in self.snapshots.items()]

    def openings(self) -> list[Snapshot]:
        """Each symbol's first snapshot: the book before the first event, by the book rule."""
        return list(self.snapshots.values())

    def events(self) -> Iterator[Timed]:
        """Every event in the order of receive times, from the first."""
        merged = heapq.merge(
            *(self._chain(symbol) for symbol in self._files), key=lambda item: item[0]
        )
        for index, (at_ns, event) in enumerate(merged):
            yield Timed(at_ns, index, event)

    def resume(self) -> dict[str, list[int]]:
        """Nothing beyond the position is needed to go on."""
        return {}
