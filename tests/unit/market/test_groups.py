"""Readers in step: joined once, one write each; whoever falls out of step finds back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfakes import SYMBOL, Desk, FakeOutput
from tbot.market import groups
from tbot.market.topics import Batch, Frame, Run

OTHER = "ETH-USDT"


async def test_who_reads_the_same_is_handed_the_same_bytes_in_one_write(monkeypatch: Any) -> None:
    desk = Desk()
    written: list[Batch] = []
    both = [desk.client()[0] for _ in range(5)]
    for subscriber in both:
        desk.sub(subscriber, "trades")
        desk.sub(subscriber, "bbo")
    await desk.settle()
    assert all(subscriber.cursors is None for subscriber in both), "all are in step"
    monkeypatch.setattr(FakeOutput, "write", lambda self, batch: written.append(batch))
    for number in range(3):
        desk.feed.trade(SYMBOL)
        desk.feed.quote(SYMBOL, str(number))
    await desk.settle()
    assert len(written) == 5 and len({id(batch) for batch in written}) == 1
    assert written[0].count == 6
    await desk.hub.stop()


async def test_a_large_crowd_is_served_in_parts_and_every_part_gets_the_newest() -> None:
    desk = Desk()
    clients = [desk.client() for _ in range(2 * groups.MEMBERS_MAX + 10)]
    for subscriber, _ in clients:
        desk.sub(subscriber, "trades")
    await desk.settle()
    (interest,) = {subscriber.interest for subscriber, _ in clients}
    assert sorted(len(group.members) for group in interest.groups) == [10, 250, 250]
    desk.feed.trade(SYMBOL)
    await desk.settle()
    assert all([m["seq"] for m in output.received] == [0, 1] for _, output in clients)
    for subscriber, _ in clients:
        subscriber.gone()
    assert not interest.groups and interest.subscribers == 0
    await desk.hub.stop()


async def test_a_member_that_cannot_be_written_to_leaves_and_comes_back() -> None:
    desk = Desk()
    (one, output), (other, _) = desk.client(), desk.client()
    desk.sub(one, "trades")
    desk.sub(other, "trades")
    await desk.settle()
    output.stall()
    desk.feed.trade(SYMBOL)
    await desk.settle()
    assert one.cursors is not None and other.cursors is None
    output.resume()
    await desk.settle()
    assert one.cursors is None
    assert [m["seq"] for m in output.received] == [0, 1]
    await desk.hub.stop()


def test_a_batch_is_cut_where_frames_end() -> None:
    frames = [Frame(number, b"x" * size) for number, size in enumerate((10, 50, 200, 10, 10))]
    whole = Batch([Run(frames[:2]), Run(frames[2:])])
    parts = whole.cut(100)
    assert [[frame.seq for frame in part] for part in parts] == [[0, 1], [2], [3, 4]]
    assert b"".join(part.data for part in parts) == whole.data
    assert whole.cut(1000) == [whole]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("trade"), st.integers(1, 30)),
        st.tuples(st.just("other"), st.integers(1, 30)),
        st.tuples(st.just("quote"), st.integers(1, 5)),
        st.tuples(st.sampled_from(["stall", "resume", "sub", "unsub", "tell"]), st.integers(0, 5)),
        st.tuples(st.just("settle"), st.just(0)),
    ),
    max_size=50,
)


@pytest.mark.parametrize("members_max", [2, 250])
@settings(max_examples=40)
@given(actions=ACTIONS)
def test_whoever_comes_goes_stalls_or_changes_their_mind_nothing_is_lost_or_repeated(
    members_max: int, actions: list[tuple[str, int]]
) -> None:
    """The model: each reader of trades is told every number after its snapshot, once, in order."""

    async def run() -> None:
        desk = Desk(queue_bytes_max=4096)
        clients = [desk.client() for _ in range(6)]
        numbers: dict[int, str] = {}
        for subscriber, _ in clients[:3]:
            numbers[desk.sub(subscriber, "trades")] = SYMBOL
        quotes = 0
        for action, amount in actions:
            subscriber, output = clients[amount % len(clients)]
            if action in ("trade", "other"):
                for _ in range(amount):
                    desk.feed.trade(SYMBOL if action == "trade" else OTHER)
            elif action == "quote":
                quotes += 1
                desk.feed.quote(SYMBOL, str(quotes))
            elif action == "stall":
                output.stall()
            elif action == "resume":
                output.resume()
            elif action == "sub":
                numbers[desk.sub(subscriber, "trades", symbol=OTHER)] = OTHER
                desk.sub(subscriber, "bbo")
                numbers[desk.sub(subscriber, "trades")] = SYMBOL
            elif action == "unsub":
                desk.hub.unsubscribe(subscriber, list(subscriber.subscriptions.values())[:1])
            elif action == "tell":
                subscriber.tell({"op": "pong"})
            else:
                await desk.settle()
        for _, output in clients:
            output.resume()
        for _ in range(3):
            await desk.settle()
        for subscriber, output in clients:
            place: dict[int, int] = {}
            for message in output.received:
                if message["op"] == "pong" or message["ch"] not in numbers:
                    continue
                channel = message["ch"]
                if message["op"] != "snap":
                    first = message["from"] if message["op"] == "gap" else message["seq"]
                    assert first == place[channel] + 1
                place[channel] = message["seq"]
            for number, topic in subscriber.subscriptions.items():
                if number in numbers:
                    assert place[number] == topic.seq
            assert subscriber.cursors is None or not subscriber.subscriptions, "in step at the end"
        await desk.hub.stop()

    limit, groups.MEMBERS_MAX = groups.MEMBERS_MAX, members_max  # type: ignore[misc]
    try:
        asyncio.run(run())
    finally:
        groups.MEMBERS_MAX = limit  # type: ignore[misc]
