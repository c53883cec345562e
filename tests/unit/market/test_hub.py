"""The hub: order, conflation, slow readers, closing."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streamfakes import SYMBOL, Desk, FakeFeed, FakeOutput
from tbot.core.settings import StreamSettings
from tbot.market.channels import CHANNELS, Denied, Market, Wanted, wanted
from tbot.market.feed import StaleChanged
from tbot.market.hub import CLOSE_SILENT, Hub
from tbot.market.subscribers import CLOSE_SLOW
from tbot.market.topics import Frame


async def test_trades_arrive_once_each_in_order() -> None:
    desk = Desk()
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    await desk.settle()
    for _ in range(200):
        desk.feed.trade(SYMBOL)
    await desk.settle()
    snapshot, *deltas = output.received
    assert snapshot["op"] == "snap" and snapshot["seq"] == 0
    assert [m["data"]["trade_id"] for m in deltas] == list(range(1, 201))
    assert [(m["prev"], m["seq"]) for m in deltas] == [(n - 1, n) for n in range(1, 201)]
    await desk.hub.stop()


async def test_a_frame_is_encoded_once_for_all_its_readers(monkeypatch: Any) -> None:
    desk = Desk()
    written: list[Frame] = []
    monkeypatch.setattr(FakeOutput, "write", lambda self, frames: written.extend(frames))
    for _ in range(3):
        desk.sub(desk.client()[0], "trades")
    await desk.settle()
    written.clear()
    desk.feed.trade(SYMBOL)
    await desk.settle()
    assert len(written) == 3 and len({id(frame) for frame in written}) == 1
    await desk.hub.stop()


async def test_a_slow_reader_of_trades_is_told_exactly_what_it_missed() -> None:
    desk = Desk(queue_bytes_max=4096)
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    await desk.settle()
    output.stall()
    for _ in range(500):
        desk.feed.trade(SYMBOL)
    await desk.settle()
    output.resume()
    await desk.settle()
    gap = output.received[1]
    assert gap["op"] == "gap" and gap["why"] == "slow" and gap["from"] == 1
    assert [m["seq"] for m in output.received[2:]] == list(range(gap["to"] + 1, 501))
    await desk.hub.stop()


async def test_a_slow_reader_of_a_book_gets_a_fresh_snapshot() -> None:
    desk = Desk(queue_bytes_max=4096)
    subscriber, output = desk.client()
    desk.sub(subscriber, "book", depth=0)
    await desk.settle()
    output.stall()
    for number in range(200):
        desk.feed.change(SYMBOL, "bid", str(1 + number % 7), str(1 + number))
    await desk.settle()
    output.resume()
    await desk.settle()
    assert [m["op"] for m in output.received] == ["snap", "snap"]
    assert output.received[-1]["seq"] == 201 and len(output.received[-1]["data"]["bids"]) == 7
    desk.feed.change(SYMBOL, "bid", "3", "0")
    await desk.settle()
    assert output.received[-1]["prev"] == 201
    await desk.hub.stop()


async def test_a_slow_reader_of_best_prices_gets_the_newest() -> None:
    desk = Desk(queue_bytes_max=4096)
    subscriber, output = desk.client()
    desk.sub(subscriber, "bbo")
    output.stall()
    for number in range(300):
        desk.feed.quote(SYMBOL, str(number))
    await desk.settle()
    output.resume()
    await desk.settle()
    assert [m["data"]["bid"] for m in output.received] == ["299"]
    await desk.hub.stop()


async def test_without_conflation_every_best_price_arrives_and_with_it_the_last(
    eventually: Any,
) -> None:
    desk = Desk()
    every, every_out = desk.client()
    joined, joined_out = desk.client()
    desk.sub(every, "bbo")
    desk.sub(joined, "bbo", interval_ms=50)
    desk.feed.quote(SYMBOL, "0")
    await desk.settle()
    for number in range(1, 100):
        desk.feed.quote(SYMBOL, str(number))
    await desk.settle()
    assert len(every_out.received) == 100
    await eventually(lambda: joined_out.received)
    # The first message may be the snapshot at subscription or the interval's end: either way
    # the newest value, and the number tells how many there were.
    await eventually(lambda: joined_out.received[-1]["data"]["bid"] == "99")
    assert joined_out.received[-1]["seq"] == 100 and len(joined_out.received) <= 2
    await desk.hub.stop()


async def test_a_lost_venue_stream_is_a_gap_then_a_snapshot_for_books() -> None:
    desk = Desk()
    subscriber, output = desk.client()
    desk.sub(subscriber, "book", depth=5)
    desk.feed.change(SYMBOL, "bid", "100", "1")
    await desk.settle()
    desk.feed.lose(SYMBOL)
    late, late_output = desk.client()
    desk.sub(late, "book", depth=5)
    await desk.settle()
    assert output.received[-1]["op"] == "gap"
    assert late_output.received == []  # nothing to show yet
    desk.feed.rebuild(SYMBOL)
    await desk.settle()
    assert output.received[-1]["op"] == late_output.received[-1]["op"] == "snap"
    numbers = [m["seq"] for m in output.received]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    await desk.hub.stop()


async def test_private_frames_and_answers_go_before_market_data() -> None:
    desk = Desk()
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    await desk.settle()
    output.stall()
    desk.feed.trade(SYMBOL)
    await desk.settle()
    subscriber.push(99, [Frame(1, b'{"op":"delta","ch":99}')])
    subscriber.tell({"op": "pong"})
    output.resume()
    assert [m["op"] for m in output.received[1:]] == ["pong", "delta", "delta"]
    assert output.received[2]["ch"] == 99
    await desk.hub.stop()


async def test_private_frames_make_their_producer_wait_and_are_never_dropped() -> None:
    desk = Desk(queue_bytes_max=4096)
    subscriber, output = desk.client()
    output.stall()
    page = [Frame(0, b'{"n":%d}' % number) for number in range(100)]
    delivered = 0
    waiting = False

    async def produce() -> None:
        nonlocal delivered, waiting
        for start in range(40):
            waiting = True
            assert await subscriber.room()
            waiting = False
            subscriber.push(1, page)
            delivered = start + 1

    producer = asyncio.create_task(produce())
    await desk.settle()
    assert waiting and delivered < 10 and subscriber.waiting_bytes < 8192
    output.resume()
    await producer
    assert [m["n"] for m in output.received] == list(range(100)) * 40
    await desk.hub.stop()


async def test_one_write_is_bounded_and_the_rest_follows_when_the_output_is_ready() -> None:
    desk = Desk(queue_bytes_max=1 << 20)
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    await desk.settle()
    output.stall()
    for _ in range(3000):
        desk.feed.trade(SYMBOL)
    output.resume()
    await desk.settle()
    assert len(output.batches) > 3 and max(output.batches) < 66_000
    assert output.received[-1]["seq"] == 3000
    await desk.hub.stop()


async def test_closing_is_latched_before_anything_else() -> None:
    desk = Desk()
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    await desk.settle()
    desk.feed.trade(SYMBOL)
    subscriber.close(CLOSE_SLOW, "test")
    subscriber.tell({"op": "pong"})
    subscriber.push(1, [Frame(1, b"{}")])
    output.on_ready()
    await desk.settle()
    assert [m["op"] for m in output.received] == ["snap"]
    assert output.closed == (CLOSE_SLOW, "test")
    assert not desk.hub.subscribers and not subscriber.subscriptions
    await desk.hub.stop()


async def test_a_stalled_reader_is_closed_and_so_is_one_that_does_not_read_answers() -> None:
    desk = Desk(stall_timeout_s=5, queue_bytes_max=4096)
    subscriber, output = desk.client()
    deaf, deaf_output = desk.client()
    now = desk.hub.now()
    output.stall()
    deaf_output.stall()
    subscriber.tell({"op": "pong"})
    for _ in range(500):
        deaf.tell({"op": "pong"})
    assert deaf_output.closed is not None and deaf_output.closed[0] == CLOSE_SLOW
    desk.hub.now = lambda: now + 4.9  # type: ignore[method-assign]
    desk.hub.look_around()
    assert output.closed is None
    desk.hub.now = lambda: now + 5.1  # type: ignore[method-assign]
    desk.hub.look_around()
    assert output.closed is not None and output.closed[0] == CLOSE_SLOW
    await desk.hub.stop()


async def test_a_silent_peer_is_pinged_once_and_then_closed() -> None:
    desk = Desk(heartbeat_s=15, heartbeat_timeout_s=8)
    subscriber, output = desk.client()
    output.heard = start = desk.hub.now()
    desk.hub.look_at(subscriber)
    for after, pings, closed in ((14, 0, False), (16, 1, False), (20, 1, False), (25, 1, True)):
        desk.hub.now = lambda after=after: start + after  # type: ignore[method-assign,misc]
        desk.hub.look_around()
        assert (output.pings, output.closed is not None) == (pings, closed), after
    assert output.closed is not None and output.closed[0] == CLOSE_SILENT
    await desk.hub.stop()


async def test_who_could_not_be_pinged_is_pinged_later() -> None:
    desk = Desk(heartbeat_s=15, heartbeat_timeout_s=8, stall_timeout_s=60)
    subscriber, output = desk.client()
    output.heard = start = desk.hub.now()
    desk.hub.look_at(subscriber)
    output.stall()
    steps = ((16, 0, False), (24, 0, False), (30, 1, False), (37, 1, False), (39, 1, True))
    for after, pings, closed in steps:
        desk.hub.now = lambda after=after: start + after  # type: ignore[method-assign,misc]
        if after == 30:
            output.resume()
        desk.hub.look_around()
        assert (output.pings, output.closed is not None) == (pings, closed), after
    await desk.hub.stop()


async def test_a_ping_that_waits_in_a_stalled_connection_is_waited_for() -> None:
    desk = Desk(heartbeat_s=15, heartbeat_timeout_s=8, stall_timeout_s=60)
    subscriber, output = desk.client()
    desk.sub(subscriber, "trades")
    output.heard = start = desk.hub.now()
    desk.hub.look_at(subscriber)
    for after, closed in ((16, False), (25, False), (32, False), (34, True)):
        desk.hub.now = lambda after=after: start + after  # type: ignore[method-assign,misc]
        if after == 16:
            desk.hub.look_around()
            output.stall()
            subscriber.flush()
        elif after == 25:
            desk.hub.look_around()
            output.resume()
        desk.hub.look_around()
        assert (output.pings, output.closed is not None) == (1, closed), after
    await desk.hub.stop()


async def test_a_topic_lingers_for_those_who_come_back_and_then_goes() -> None:
    desk = Desk(linger_s=60)
    subscriber, _ = desk.client()
    number = desk.sub(subscriber, "trades")
    start = desk.hub.now()
    subscriber.gone()
    desk.hub.look_around()
    again, _ = desk.client()
    assert desk.sub(again, "trades") == number
    again.gone()
    desk.hub.now = lambda: start + 100  # type: ignore[method-assign]
    desk.hub.look_around()
    third, _ = desk.client()
    assert desk.sub(third, "trades") != number
    await desk.hub.stop()


def test_parameters_are_checked_and_unknown_ones_refused() -> None:
    book, trades = CHANNELS["book"], CHANNELS["trades"]
    for channel, request in (
        (book, {"symbol": 5}),
        (book, {"symbol": "X", "depth": 7}),
        (book, {"symbol": "X", "depth": True}),
        (book, {"symbol": "X", "interval_ms": "0"}),
        (trades, {"symbol": "X", "interval_ms": 100}),
        (trades, {"symbol": "X", "dept": 5}),
    ):
        assert isinstance(wanted(channel, {"channel": channel.name, **request}), Denied), request
    desk = Desk.__new__(Desk)
    desk.hub = Hub(StreamSettings())
    wish = wanted(trades, {"channel": "trades", "symbol": "NO-SUCH"})
    assert isinstance(wish, Wanted)
    market = Market(desk.hub, FakeFeed(SYMBOL))
    # Before the markets are known, a client that comes back early is to try again.
    denied = market.topic(wish)
    assert isinstance(denied, Denied) and denied.temporary
    market.hear(SYMBOL, StaleChanged(False))
    denied = market.topic(wish)
    assert isinstance(denied, Denied) and denied.code == "unknown_symbol" and not denied.temporary


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(1, 40)),
        st.tuples(st.just("bbo"), st.integers(1, 40)),
        st.tuples(st.just("book"), st.integers(1, 40)),
        st.tuples(st.sampled_from(["stall", "resume", "settle", "lose", "rebuild"]), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(actions=ACTIONS)
def test_any_reader_ends_with_the_truth_and_knows_all_it_missed(
    actions: list[tuple[str, int]],
) -> None:
    """The model: whatever stalls, nothing is missed silently and the end state is right."""

    async def run() -> None:
        desk = Desk(queue_bytes_max=4096)
        subscriber, output = desk.client()
        numbers = {
            desk.sub(subscriber, "trades"): "trades",
            desk.sub(subscriber, "bbo"): "bbo",
            desk.sub(subscriber, "book", depth=0): "book",
        }
        count = 0
        for action, times in actions:
            for _ in range(times):
                count += 1
                if action == "trade":
                    desk.feed.trade(SYMBOL)
                elif action == "bbo":
                    desk.feed.quote(SYMBOL, str(count))
                else:
                    desk.feed.change(SYMBOL, "bid", str(1 + count % 9), str(count % 4))
            if action == "stall":
                output.stall()
            elif action == "resume":
                output.resume()
            elif action == "settle":
                await desk.settle()
            elif action == "lose" and SYMBOL not in desk.feed.void:
                desk.feed.lose(SYMBOL)
            elif action == "rebuild":
                desk.feed.rebuild(SYMBOL)
        desk.feed.rebuild(SYMBOL)
        output.resume()
        await desk.settle()
        check_stream(output.received, numbers, desk)
        await desk.hub.stop()

    asyncio.run(run())


def check_stream(received: list[dict[str, Any]], numbers: dict[int, str], desk: Desk) -> None:
    seq: dict[str, int] = {}
    seen: list[int] = []
    book: dict[str, str] = {}
    bbo = None
    for message in received:
        channel = numbers[message["ch"]]
        if channel == "trades" and message["op"] == "snap":
            seq["trades"] = message["seq"]
        elif channel == "trades":
            first = message["from"] if message["op"] == "gap" else message["seq"]
            assert first == seq["trades"] + 1, "a trade is missing and nobody said so"
            seq["trades"] = message["to"] if message["op"] == "gap" else message["seq"]
            if message["op"] == "delta":
                seen.append(message["data"]["trade_id"])
        elif channel == "bbo":
            assert message["seq"] > seq.get("bbo", 0)
            seq["bbo"], bbo = message["seq"], message["data"]
        elif message["op"] == "snap":
            book = dict(message["data"]["bids"])
            seq["book"] = message["seq"]
        else:
            first = message["from"] if message["op"] == "gap" else message["seq"]
            assert first == seq["book"] + 1
            seq["book"] = message["seq"]
            for price, quantity in message.get("data", {}).get("bids", ()):
                book.pop(price, None)
                if quantity != "0":
                    book[price] = quantity
    assert seen == sorted(set(seen)), "a trade came twice or out of order"
    truth = desk.feed.books[SYMBOL]
    assert book == {f"{p:f}": f"{q:f}" for p, q in truth.bids.items()}
    if bbo is not None:
        assert bbo["bid"] == f"{desk.feed.bests[SYMBOL].bid:f}"
    assert seq["trades"] >= desk.feed.trade_ids[SYMBOL]  # a gap upstream has a number too
