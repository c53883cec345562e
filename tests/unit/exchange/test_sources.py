"""Both market sources: lines are read as recorded; the synthetic market is deterministic and sane."""

from __future__ import annotations

import gzip
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from tbot.core.errors import ConfigurationError
from tbot.core.money import is_multiple
from tbot.exchange.book import MarketBook
from tbot.exchange.events import Best, Depth, Snapshot, Trade
from tbot.exchange.instruments import KNOWN, infer
from tbot.exchange.replay import Replay, parse_line
from tbot.exchange.synthetic import CHARACTERS, Synthetic

DEPTH = (
    b'1000 {"stream":"abcusdt@depth@100ms","data":{"e":"depthUpdate","E":9,"s":"ABCUSDT","U":6,'
    b'"u":8,"b":[["1.20000000","0.00000000"]],"a":[["1.30000000","5.00000000"]]}}\n'
)
BEST = (
    b'1001 {"stream":"abcusdt@bookTicker","data":{"u":9,"s":"ABCUSDT","b":"1.10000000",'
    b'"B":"2.00000000","a":"1.30000000","A":"5.00000000"}}\n'
)
TRADE = (
    b'1002 {"stream":"abcusdt@trade","data":{"e":"trade","E":11,"s":"ABCUSDT","t":77,'
    b'"p":"1.30000000","q":"1.00000000","T":10,"m":false,"M":true}}\n'
)
SNAPSHOT = b'1000 {"lastUpdateId":5,"bids":[["1.20000000","3.00000000"]],"asks":[["1.40","1.5"]]}\n'


def record(path: Path, *lines: bytes) -> Path:
    path.write_bytes(gzip.compress(b"".join(lines)) if path.suffix == ".gz" else b"".join(lines))
    return path


def test_lines_are_read_and_keep_their_bytes() -> None:
    at_ns, diff = parse_line(DEPTH, "ABCUSDT")
    assert at_ns == 1000
    assert isinstance(diff, Depth)
    assert (diff.first_id, diff.last_id, diff.event_ms) == (6, 8, 9)
    assert diff.frame == DEPTH.split(b" ", 1)[1].rstrip()
    assert isinstance(parse_line(BEST, "ABCUSDT")[1], Best)
    trade = parse_line(TRADE, "ABCUSDT")[1]
    assert isinstance(trade, Trade) and (trade.id, trade.time_ms, trade.event_ms) == (77, 10, 11)
    assert isinstance(parse_line(SNAPSHOT, "ABCUSDT")[1], Snapshot)


def test_insurance_fund_trades_are_dropped_and_futures_are_refused() -> None:
    assert parse_line(TRADE.replace(b'"M":true', b'"X":"INSURANCE_FUND"'), "X")[1] is None
    with pytest.raises(ValueError, match="only spot"):
        parse_line(DEPTH.replace(b"depth@100ms", b"depth@0ms"), "X")


def test_files_are_chained_merged_and_opened_with_their_snapshot(tmp_path: Path) -> None:
    first = record(tmp_path / "a.raw.gz", DEPTH, SNAPSHOT, BEST)
    second = record(tmp_path / "b.raw", TRADE)
    other = record(
        tmp_path / "c.raw",
        SNAPSHOT,
        BEST.replace(b"abc", b"xyz").replace(b"ABC", b"XYZ").replace(b"1001", b"1002"),
    )
    replay = Replay([second, other, first])
    assert {s.symbol for s in replay.openings()} == {"ABCUSDT", "XYZUSDT"}
    events = list(replay.events())
    assert [timed.at_ns for timed in events] == [1000, 1000, 1000, 1001, 1002, 1002]
    assert [timed.index for timed in events] == list(range(6))
    rules = {i.symbol: i for i in replay.instruments()}["ABCUSDT"]
    assert (str(rules.tick), str(rules.step), rules.base) == ("0.1", "0.1", "ABC")


def test_bad_recordings_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="does not exist"):
        Replay([tmp_path / "none.raw"])
    with pytest.raises(ConfigurationError, match="no depth snapshot"):
        Replay([record(tmp_path / "a.raw", DEPTH, BEST)])
    with pytest.raises(ConfigurationError, match="line 2"):
        Replay([record(tmp_path / "b.raw", DEPTH, b"1001 {broken\n", SNAPSHOT)])
    with pytest.raises(ConfigurationError, match="cannot infer"):
        infer(Snapshot("ABCXYZ", 1, [], []))


def test_synthetic_market_is_deterministic() -> None:
    def frames(seed: int) -> list[bytes]:
        return [timed.event.frame for timed in islice(Synthetic(seed, 1_000).events(), 3000)]  # type: ignore[union-attr]

    assert frames(1) == frames(1)
    assert frames(1) != frames(2)


def test_synthetic_market_obeys_its_own_rules() -> None:
    source = Synthetic(7, 1_000_000)
    books = {symbol: MarketBook() for symbol in CHARACTERS}
    for snapshot in source.openings():
        assert len(snapshot.bids) >= 200 and len(snapshot.asks) >= 200
        books[snapshot.symbol].apply_snapshot(snapshot)
    last_trade: dict[str, int] = {}
    seen = {Depth: 0, Best: 0, Trade: 0}
    at_ns = 0
    for timed in islice(source.events(), 20_000):
        event = timed.event
        assert not isinstance(event, Snapshot)
        assert timed.at_ns >= at_ns
        at_ns = timed.at_ns
        seen[type(event)] += 1
        book, rules = books[event.symbol], KNOWN[event.symbol]
        data = msgspec.json.decode(event.frame)["data"]
        if isinstance(event, Trade):
            assert event.id == last_trade.get(event.symbol, event.id - 1) + 1
            last_trade[event.symbol] = event.id
            assert is_multiple(event.price, rules.tick) and is_multiple(event.quantity, rules.step)
            assert (data["t"], data["p"]) == (event.id, str(event.price))
            continue
        if isinstance(event, Depth):
            assert event.first_id == book.last_id + 1
            book.apply_depth(event)
            assert not book.gapped
        else:
            book.apply_best(event)
            assert event.bid < event.ask
        bid, ask = book.bids.live.best(), book.asks.live.best()
        assert bid is not None and ask is not None and bid < ask
        assert len(book.bids.live.prices) > 100 and len(book.asks.live.prices) > 100
    assert all(count > 1000 for count in seen.values())


def test_synthetic_market_goes_on_where_it_was() -> None:
    first = Synthetic(3, 0)
    for timed in islice(first.events(), 5000):
        newest = timed.event
    again = Synthetic(3, 0, first.resume())
    mark = first.resume()[newest.symbol]
    snapshot = next(s for s in again.openings() if s.symbol == newest.symbol)
    assert snapshot.last_id >= mark[2]
