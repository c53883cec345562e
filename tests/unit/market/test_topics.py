"""Topics: rings, snapshots, deltas and their numbers."""

from __future__ import annotations

import json
import zlib
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from streamfakes import AT, FakeBook
from tbot.market.booktopic import BookTopic, checksum
from tbot.market.topics import Frame, LatestTopic, Slow, TradesTopic, control
from tbot.venues.base import Level


def trades(ring_bytes_max: int = 10_000) -> TradesTopic:
    return TradesTopic(1, "trades", {"symbol": "BTC-USDT"}, Slow.GAP, ring_bytes_max)


def book_topic(book: FakeBook, depth: int, interval_ms: int = 0) -> BookTopic:
    parameters = {"symbol": "BTC-USDT", "depth": depth, "interval_ms": interval_ms}
    return BookTopic(7, "book", parameters, Slow.SNAPSHOT, 1 << 20, lambda: book)


def test_a_ring_keeps_the_newest_frames_within_its_bound() -> None:
    topic = trades(ring_bytes_max=500)
    for number in range(100):
        topic.update({"n": number})
    assert topic.size_bytes <= 500
    assert topic.frames[-1].seq == 100
    assert topic.lost_through == topic.frames[0].seq - 1
    assert topic.holds_after(topic.lost_through) and not topic.holds_after(topic.lost_through - 1)
    assert not topic.holds_after(101)


def test_a_frame_larger_than_the_ring_is_kept_alone() -> None:
    topic = trades(ring_bytes_max=50)
    topic.update({"text": "x" * 500})
    assert [frame.seq for frame in topic.frames] == [1]
    topic.update({"text": "y" * 500})
    assert [frame.seq for frame in topic.frames] == [2] and topic.lost_through == 1


def test_after_gives_exactly_what_is_newer() -> None:
    topic = trades()
    for number in range(5):
        topic.update({"n": number})
    assert [frame.seq for frame in topic.after(2)] == [3, 4, 5]
    assert topic.after(5) == []


def test_latest_values_count_updates_so_that_conflation_shows() -> None:
    topic = LatestTopic(2, "bbo", {"symbol": "X", "interval_ms": 100}, Slow.LATEST, 1000)
    assert topic.snapshot() is None
    for number in range(3):
        topic.update({"n": number})
    assert not topic.frames  # the interval is not over
    snapshot = topic.snapshot()
    assert snapshot is not None and json.loads(snapshot.payload)["data"] == {"n": 2}
    assert topic.flush() and [frame.seq for frame in topic.frames] == [3]
    assert not topic.flush()


def test_a_snapshot_is_encoded_once_per_state() -> None:
    book = FakeBook()
    book.bids[Decimal(100)] = Decimal(1)
    topic = book_topic(book, depth=0)
    topic.reset(AT)
    first = topic.snapshot()
    assert first is topic.snapshot()
    book.bids[Decimal(99)] = Decimal(1)
    topic.update([Level(Decimal(99), Decimal(1))], [], AT)
    assert topic.snapshot() is not first


def test_a_book_without_a_view_has_no_snapshot_until_it_is_rebuilt() -> None:
    book = FakeBook()
    topic = book_topic(book, depth=0)
    topic.reset(AT)
    topic.invalidate("venue_disconnected")
    assert topic.snapshot() is None
    assert json.loads(topic.frames[-1].payload)["op"] == "gap"
    topic.update([Level(Decimal(1), Decimal(1))], [], AT)  # the first news rebuilds it
    assert json.loads(topic.frames[-1].payload)["op"] == "snap"


def test_framing_follows_the_lengths_of_rfc_6455() -> None:
    for size, header in ((5, b"\x81\x05"), (300, b"\x81\x7e\x01\x2c"), (70_000, b"\x81\x7f")):
        framed = Frame(1, b"x" * size).framed
        assert framed.startswith(header) and framed.endswith(b"x" * 5)
    assert control({"op": "pong"}).text == '{"op":"pong"}'


def test_the_checksum_covers_ten_levels_of_each_side_as_sent() -> None:
    bids = [(str(price), "1") for price in range(100, 80, -1)]
    asks = [(str(price), "2") for price in range(101, 121)]
    text = "|".join(f"{price}:{quantity}" for price, quantity in bids[:10] + asks[:10])
    assert checksum(bids, asks) == zlib.crc32(text.encode())


CHANGES = st.lists(
    st.tuples(st.sampled_from(["bid", "ask"]), st.integers(1, 12), st.integers(0, 3)), max_size=60
)


@given(
    changes=CHANGES,
    depth=st.sampled_from([0, 2, 5]),
    conflated=st.booleans(),
    flushes=st.sets(st.integers(0, 60)),
    joins=st.sets(st.integers(0, 60), max_size=4),
)
def test_deltas_turn_any_snapshot_into_every_later_book(
    changes: list[tuple[str, int, int]],
    depth: int,
    conflated: bool,
    flushes: set[int],
    joins: set[int],
) -> None:
    book = FakeBook()
    topic = book_topic(book, depth, interval_ms=100 if conflated else 0)
    topic.reset(AT)
    readers: list[tuple[int, list[dict[Decimal, str]]]] = []
    for step, (side, price, quantity) in enumerate(changes):
        if step in joins:
            snapshot = topic.snapshot()
            assert snapshot is not None
            data = json.loads(snapshot.payload)["data"]
            sides = [{Decimal(p): q for p, q in data[name]} for name in ("bids", "asks")]
            readers.append((snapshot.seq, sides))
        # Asks live above bids, so that the book never crosses.
        level = Level(Decimal(price if side == "bid" else price + 20), Decimal(quantity))
        levels = book.bids if side == "bid" else book.asks
        if quantity:
            levels[level.price] = level.quantity
        else:
            levels.pop(level.price, None)
        book.update_id += 1
        topic.update([level] if side == "bid" else [], [level] if side == "ask" else [], AT)
        if step in flushes:
            topic.flush()
    topic.flush()
    for seq, sides in readers:
        check = None
        for frame in topic.after(seq):
            message = json.loads(frame.payload)
            assert message["prev"] == seq, "a number is missing"
            seq = message["seq"]
            for mine, name in zip(sides, ("bids", "asks"), strict=True):
                for price_text, quantity_text in message["data"][name]:
                    if quantity_text == "0":
                        mine.pop(Decimal(price_text), None)
                    else:
                        mine[Decimal(price_text)] = quantity_text
            check = message["data"]["checksum"]
        bids = [(f"{p:f}", sides[0][p]) for p in sorted(sides[0], reverse=True)]
        asks = [(f"{p:f}", sides[1][p]) for p in sorted(sides[1])]
        expected = book.levels(depth)
        assert [(Decimal(p), Decimal(q)) for p, q in bids] == [
            (level.price, level.quantity) for level in expected[0]
        ]
        assert [(Decimal(p), Decimal(q)) for p, q in asks] == [
            (level.price, level.quantity) for level in expected[1]
        ]
        if check is not None:
            assert check == checksum(bids, asks)
