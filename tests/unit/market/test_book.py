"""The local book: equal to a naive rebuild under random changes, and on recordings update by update."""

from __future__ import annotations

import gzip
import json
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbot.market.book import Book, BookSync, Step
from tbot.venues.base import BestPrices, DepthDiff, DepthSnapshot, Level
from tbot.venues.binance.market_wire import depth_snapshot, market_event

AT = datetime(2024, 8, 9, tzinfo=UTC)
levels = st.lists(
    st.builds(
        Level,
        st.integers(1, 30).map(Decimal),
        st.integers(0, 3).map(lambda n: Decimal(n) / 2),
    ),
    max_size=6,
)


def above(side: list[Level]) -> list[Level]:
    return [Level(level.price + 100, level.quantity) for level in side]


def unique(side: list[Level]) -> list[Level]:
    return list({level.price: level for level in side}.values())


def diff(first: int, last: int, bids: list[Level], asks: list[Level]) -> DepthDiff:
    return DepthDiff("X", first, last, bids, asks, AT)


class Naive:
    """Two dictionaries, changed one level after the other, sorted when asked."""

    def __init__(self) -> None:
        self.bids: dict[Decimal, Decimal] = {}
        self.asks: dict[Decimal, Decimal] = {}

    def change(self, bids: Any, asks: Any) -> None:
        for side, changed in ((self.bids, bids), (self.asks, asks)):
            for price, quantity in changed:
                if quantity == 0:
                    side.pop(price, None)
                else:
                    side[price] = quantity

    def equals(self, book: Book) -> bool:
        bids, asks = book.levels()
        return [(level.price, level.quantity) for level in bids] == sorted(
            self.bids.items(), reverse=True
        ) and [(level.price, level.quantity) for level in asks] == sorted(self.asks.items())


def pairs(side: list[Level]) -> list[tuple[Decimal, Decimal]]:
    return [(level.price, level.quantity) for level in side]


@given(levels, levels, st.lists(st.tuples(levels, levels), max_size=20), st.integers(1, 5))
def test_equal_to_a_naive_rebuild(
    bids: list[Level],
    asks: list[Level],
    changes: list[tuple[list[Level], list[Level]]],
    depth: int,
) -> None:
    book, naive = Book(), Naive()
    bids, asks = unique(bids), unique(asks)
    book.replace(DepthSnapshot("X", 1, bids, above(asks)))
    naive.change(pairs(bids), pairs(above(asks)))
    for number, (bid_changes, ask_changes) in enumerate(changes, 2):
        book.apply(diff(number, number, bid_changes, above(ask_changes)))
        naive.change(pairs(bid_changes), pairs(above(ask_changes)))
        assert naive.equals(book)
        top = book.levels(depth)
        everything = book.levels()
        assert top == (everything[0][:depth], everything[1][:depth])
        assert book.bid == (everything[0][0].price if everything[0] else None)
        assert book.ask == (everything[1][0].price if everything[1] else None)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(levels, st.integers(1, 3)), min_size=1, max_size=25),
    st.data(),
)
def test_whatever_is_lost_a_live_book_is_the_venues(
    script: list[tuple[list[Level], int]], data: st.DataObject
) -> None:
    """Changes get lost, repeated; snapshots lag. A live book always equals the venue's."""
    venue: list[tuple[int, dict[Decimal, Decimal]]] = [(0, {})]
    sync = BookSync()
    last = 0
    for bids, width in script:
        state = dict(venue[-1][1])
        for level in bids:
            if level.quantity:
                state[level.price] = level.quantity
            else:
                state.pop(level.price, None)
        change = diff(last + 1, last + width, bids, [])
        last += width
        venue.append((last, state))
        fate = data.draw(st.sampled_from(["ok", "ok", "ok", "lost", "twice"]))
        for _ in range({"ok": 1, "lost": 0, "twice": 2}[fate]):
            sync.take(change)
        if not sync.live and data.draw(st.booleans()):
            update_id, old = data.draw(st.sampled_from(venue))
            sync.join(DepthSnapshot("X", update_id, [Level(*each) for each in old.items()], []))
        if sync.live:
            expected = next(state for at, state in venue if at == sync.book.update_id)
            assert dict(pairs(sync.book.levels()[0])) == expected


def test_the_resync_rule() -> None:
    sync = BookSync()
    one = Level(Decimal(1), Decimal(1))
    assert sync.take(diff(10, 12, [one], [])) is Step.BUFFERED
    assert not sync.join(DepthSnapshot("X", 8, [], []))  # older than the first change
    assert sync.take(diff(13, 13, [Level(Decimal(2), Decimal(5))], [])) is Step.BUFFERED
    assert sync.join(DepthSnapshot("X", 11, [Level(Decimal(3), Decimal(1))], []))
    assert [level.price for level in sync.book.levels()[0]] == [3, 2, 1]
    assert sync.book.update_id == 13
    assert sync.take(diff(12, 13, [], [])) is Step.OLD
    assert sync.take(diff(14, 14, [], [])) is Step.APPLIED
    assert sync.take(diff(16, 16, [], [])) is Step.GAP
    assert not sync.live
    assert sync.join(DepthSnapshot("X", 15, [], []))


def test_a_crossed_book_is_void() -> None:
    sync = BookSync()
    sync.join(
        DepthSnapshot("X", 1, [Level(Decimal(1), Decimal(1))], [Level(Decimal(2), Decimal(1))])
    )
    assert sync.take(diff(2, 2, [Level(Decimal(2), Decimal(1))], [])) is Step.GAP


def recording(shared: Path, symbol: str) -> Iterator[dict[str, Any]]:
    for day in ("20240808", "20240809"):
        path = shared / "market-data" / "l2" / f"binance-spot_{symbol}_{day}.raw.gz"
        with gzip.open(path, "rt") as file:
            for line in file:
                yield json.loads(line.partition(" ")[2])


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_recorded_market_update_by_update(shared_dir: Path, symbol: str) -> None:
    """Equal to a naive rebuild at every update, never crossed, within 5 bp of the best prices."""
    sync, naive = BookSync(), Naive()
    compared = best_compared = best_equal = 0
    bests: deque[BestPrices] = deque()
    buffered: list[dict[str, Any]] = []
    for frame in recording(shared_dir, symbol):
        if "stream" not in frame:
            assert sync.join(depth_snapshot(symbol, frame))
            naive.change(
                [(Decimal(p), Decimal(q)) for p, q in frame["bids"]],
                [(Decimal(p), Decimal(q)) for p, q in frame["asks"]],
            )
            late = [data for data in buffered if data["u"] > frame["lastUpdateId"]]
        elif frame["stream"].partition("@")[2].startswith("depth"):
            event = market_event(frame)
            assert isinstance(event, DepthDiff)
            step = sync.take(event)
            buffered.append(frame["data"])
            late = [frame["data"]] if sync.live else []
            assert step in (Step.BUFFERED, Step.APPLIED)
        else:
            event = market_event(frame)
            if isinstance(event, BestPrices):
                bests.append(event)
            continue
        for data in late:
            naive.change(
                [(Decimal(p), Decimal(q)) for p, q in data["b"]],
                [(Decimal(p), Decimal(q)) for p, q in data["a"]],
            )
        if sync.live:
            assert sync.book._bids == naive.bids
            assert sync.book._asks == naive.asks
            assert not sync.book.crossed
            assert sync.book.bid == max(naive.bids)
            assert sync.book.ask == min(naive.asks)
            compared += 1
            if compared % 500 == 0:
                assert naive.equals(sync.book)
            best = None
            while bests and bests[0].update_id <= sync.book.update_id:
                best = bests.popleft()
            if best is not None:  # the best prices as of the very update that the book is at
                assert abs(sync.book.bid - best.bid) * 2000 <= best.bid
                assert abs(sync.book.ask - best.ask) * 2000 <= best.ask
                best_equal += (sync.book.bid, sync.book.ask) == (best.bid, best.ask)
                best_compared += 1
    assert compared > 6000
    assert best_compared > 5000
    assert best_equal >= best_compared - 2
