"""The market's book: a reference that equals a plain rebuild, a live view that is never stale."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from tbot.exchange.book import MarketBook
from tbot.exchange.events import Best, Depth, Snapshot

D = Decimal
PRICES = st.integers(1, 12).map(D)
QUANTITIES = st.integers(0, 5).map(D)
LEVELS = st.lists(st.tuples(PRICES, QUANTITIES), max_size=4, unique_by=lambda level: level[0])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("depth"), LEVELS, LEVELS),
        st.tuples(st.just("best"), PRICES, QUANTITIES, QUANTITIES),
        st.tuples(st.just("take"), st.booleans(), QUANTITIES),
    ),
    max_size=25,
)


@given(LEVELS, LEVELS, STEPS)
def test_reference_equals_a_plain_rebuild(bids, asks, steps) -> None:  # type: ignore[no-untyped-def]
    book = MarketBook()
    book.apply_snapshot(Snapshot("X", 10, bids, asks))
    plain = {True: dict(bids), False: dict(asks)}
    last = newest = 10
    for step in steps:
        if step[0] == "depth":
            first, last = last + 1, max(last, newest) + 2
            newest = last
            book.apply_depth(Depth("X", first, last, step[1], step[2], 0))
            plain[True].update(step[1])
            plain[False].update(step[2])
        elif step[0] == "best":
            newest += 1
            bid, size, other = step[1], step[2] + 1, step[3] + 1
            book.apply_best(Best("X", newest, bid, size, bid + 1, other))
            # Nothing is better than what was shown; it is there unless users took it.
            for side, shown in ((book.bids, bid), (book.asks, bid + 1)):
                assert not side.live.better(shown)
                assert side.live.best() == shown or shown in side.taken
        else:
            side = book.bids if step[1] else book.asks
            best = side.live.best()
            if best is not None and step[2]:
                side.take(best, min(step[2], side.live.get(best)))
        for is_bid, side in ((True, book.bids), (False, book.asks)):
            wanted = {p: q for p, q in plain[is_bid].items() if q}
            assert {p: q for p, q in side.reference_levels().items() if q} == wanted
            assert all(side.reference(p) == plain[is_bid].get(p, 0) for p in plain[is_bid])
            assert side.live.prices == sorted(side.live.quantities)
            assert all(q > 0 for q in side.live.quantities.values())


def test_a_diff_older_than_the_snapshot_is_dropped_and_a_gap_is_remembered() -> None:
    book = MarketBook()
    assert not book.apply_depth(Depth("X", 1, 5, [(D(1), D(1))], [], 0))
    assert book.apply_snapshot(Snapshot("X", 10, [(D(1), D(1))], [(D(3), D(1))]))
    assert not book.apply_depth(Depth("X", 6, 10, [(D(1), D(9))], [], 0))
    assert book.apply_depth(Depth("X", 8, 12, [(D(1), D(2))], [], 0))
    assert not book.gapped
    assert not book.apply_snapshot(Snapshot("X", 99, [], []))
    book.apply_depth(Depth("X", 20, 21, [], [], 0))
    assert book.gapped
    assert book.apply_snapshot(Snapshot("X", 30, [(D(2), D(1))], []))
    assert book.bids.live.prices == [D(2)]
