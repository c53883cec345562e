"""What must hold after any course of events: sums, locks, priority, no crossing, exact replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from decimal import Decimal
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tbot.core.money import ZERO
from tbot.exchange.model import Filled, Opened, OrderType, Record, Side
from tbot.exchange.outcome import Outcome
from tbot.exchange.state import State
from tbot.exchange.tape import Tape

D = Decimal
TICKS = st.integers(9_980, 10_020)
SIZES = st.integers(1, 400)


def price(tick: int) -> str:
    return f"{tick / 100:.2f}"


def size(steps: int) -> str:
    return f"{steps / 100:.2f}"


levels = st.lists(
    st.tuples(TICKS.map(price), st.integers(0, 400).map(size)), max_size=4, unique_by=lambda x: x[0]
)
actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("limit"),
            st.sampled_from(["BUY", "SELL"]),
            SIZES.map(size),
            TICKS.map(price),
            st.sampled_from(["GTC", "GTC", "GTC", "IOC", "FOK"]),
            st.sampled_from(["main", "other"]),
        ),
        st.tuples(st.just("market"), st.sampled_from(["BUY", "SELL"]), SIZES.map(size)),
        st.tuples(
            st.just("quote"), st.sampled_from(["BUY", "SELL"]), st.integers(500, 90_000).map(size)
        ),
        st.tuples(st.just("cancel"), st.integers(1, 30)),
        st.tuples(st.just("depth"), levels, levels),
        st.tuples(st.just("best"), TICKS, st.integers(1, 4), SIZES.map(size), SIZES.map(size)),
        st.tuples(st.just("trade"), TICKS.map(price), SIZES.map(size), st.booleans()),
    ),
    max_size=40,
)


class Watch:
    """A client that follows the published depth, and a log of everything that was decided."""

    def __init__(self, pit: Any) -> None:
        self.pit = pit
        self.tape = Tape(
            pit.market,
            pit.state.side("BTCUSDT", Side.BUY),
            pit.state.side("BTCUSDT", Side.SELL),
        )
        self.records: list[bytes] = []
        self.books: dict[str, dict[str, str]] = {"b": {}, "a": {}}
        self.last_id = self.tape.last_id
        for key, side in (("b", Side.BUY), ("a", Side.SELL)):
            for at, quantity in self.tape.levels(side, 5000):
                self.books[key][f"{at:.8f}"] = f"{quantity:.8f}"

    def log(self, outcome: Outcome) -> None:
        if outcome.effects:
            self.records.append(msgspec.json.encode(Record(1, self.pit.now_ms, outcome.effects)))

    def hear(self, messages: Iterable[Any]) -> None:
        for message in messages:
            if message.kind != "depth@100ms":
                continue
            diff = msgspec.json.decode(message.data)
            assert diff["U"] == self.last_id + 1, "ids are contiguous"
            self.last_id = diff["u"]
            for key in ("b", "a"):
                for at, quantity in diff[key]:
                    if D(quantity):
                        self.books[key][at] = quantity
                    else:
                        self.books[key].pop(at, None)


def act(watch: Watch, action: tuple[Any, ...]) -> None:
    pit, kind = watch.pit, action[0]
    if kind in ("depth", "best", "trade"):
        event_outcome = play(watch, action)
        if event_outcome is not None:
            watch.log(event_outcome)
            watch.hear(watch.tape.on_outcome(event_outcome))
        return
    if kind == "limit":
        outcome = pit.order(action[1], action[2], action[3], tif=action[4], account=action[5])
    elif kind == "market":
        outcome = pit.order(action[1], action[2])
    elif kind == "quote":
        outcome = pit.order(action[1], quote=action[2])
    else:
        order = pit.state.orders.get(action[1])
        if order is None:
            return
        outcome = pit.engine.cancel(order.account, order, "k", pit.now_ms)
    if isinstance(outcome, Outcome):
        watch.log(outcome)
        check_priority(pit, outcome)
        watch.hear(watch.tape.on_outcome(outcome))
        check_told(watch)


def play(watch: Watch, action: tuple[Any, ...]) -> Outcome | None:
    pit, kind = watch.pit, action[0]
    seen: list[Any] = []
    original = pit.engine.on_event

    def spy(event: Any, now_ms: int) -> Outcome | None:
        seen.append(event)
        outcome: Outcome | None = original(event, now_ms)
        return outcome

    pit.engine.on_event = spy
    try:
        if kind == "depth":
            # A source's own book is never crossed: keep its bids below its asks.
            outcome: Outcome | None = pit.depth(
                [(p, q) for p, q in action[1] if D(p) < D("100.00")],
                [(p, q) for p, q in action[2] if D(p) >= D("100.00")],
            )
        elif kind == "best":
            bid = action[1]
            outcome = pit.best(price(bid), action[3], price(bid + action[2]), action[4])
        else:
            outcome = pit.trade(action[1], action[2], action[3])
    finally:
        pit.engine.on_event = original
    for event in seen:
        framed = msgspec.structs.replace(event, frame=frame_of(event))
        watch.hear(watch.tape.on_event(framed))
    return outcome


def frame_of(event: Any) -> bytes:
    """The source's own message, as a source would have framed it."""
    if type(event).__name__ != "Depth":
        return b'{"stream":"x","data":{}}'
    data = {
        "U": event.first_id,
        "u": event.last_id,
        "b": [(f"{p:.8f}", f"{q:.8f}") for p, q in event.bids],
        "a": [(f"{p:.8f}", f"{q:.8f}") for p, q in event.asks],
    }
    return b'{"stream":"x","data":' + msgspec.json.encode(data) + b"}"


def check_told(watch: Watch) -> None:
    """After users acted, clients see exactly what matching sees, and it is not crossed."""
    pit = watch.pit
    for key, side in (("b", Side.BUY), ("a", Side.SELL)):
        live, users = pit.market.side(side).live, pit.state.side("BTCUSDT", side).totals
        prices = {*live.quantities, *users.quantities}
        wanted = {f"{p:.8f}": f"{live.get(p) + users.get(p):.8f}" for p in prices}
        assert watch.books[key] == wanted
    bids, asks = map(D, watch.books["b"]), map(D, watch.books["a"])
    assert max(bids, default=D(0)) < min(asks, default=D(1000))


def check_priority(pit: Any, outcome: Outcome) -> None:
    """No better price, and no better or older resting order, was passed over."""
    taken = [e for e in outcome.effects if isinstance(e, Filled) and not e.maker]
    for earlier_fill, later_fill in pairwise(taken):
        side = pit.state.orders[later_fill.order_id].side
        worse = later_fill.price >= earlier_fill.price
        assert worse if side is Side.BUY else later_fill.price <= earlier_fill.price
    if taken:
        taker = pit.state.orders[taken[-1].order_id]
        for ladder in (
            pit.market.side(taker.side.opposite).live,
            pit.state.side("BTCUSDT", taker.side.opposite).totals,
        ):
            assert not ladder.better(taken[-1].price)
    served = [e for e in outcome.effects if isinstance(e, Filled) and e.maker]
    orders = [pit.state.orders[fill.order_id] for fill in served]
    for earlier, later in pairwise(orders):
        better = (
            earlier.price >= later.price if later.side is Side.BUY else earlier.price <= later.price
        )
        assert better
        if earlier.price == later.price and earlier.id != later.id:
            assert earlier.id < later.id
            assert not earlier.is_open


def check(watch: Watch) -> None:
    pit = watch.pit
    state: State = pit.state
    assert state.imbalance() == {}
    for account in state.accounts.values():
        for asset, held in account.balances.items():
            locked = sum((o.locked for o in account.open.values() if o.gives == asset), ZERO)
            assert held.locked == locked
            assert held.free >= 0
    for side in (Side.BUY, Side.SELL):
        resting, other = state.side("BTCUSDT", side), pit.market.side(side.opposite).live.best()
        best = resting.totals.best()
        if best is not None and other is not None:
            assert best < other if side is Side.BUY else best > other
        for at, queue in resting.orders.items():
            assert resting.totals.get(at) == sum((o.remaining for o in queue.values()), ZERO)
            assert all(o.is_open and o.type is not OrderType.MARKET for o in queue.values())
        key = "b" if side is Side.BUY else "a"
        told = {f"{at:.8f}": f"{quantity:.8f}" for at, quantity in watch.tape.levels(side, 5000)}
        assert watch.books[key] == told, "a client's book equals the snapshot"
    assert watch.last_id == watch.tape.last_id


@settings(max_examples=150)
@given(acts=actions)
def test_any_course_of_events_keeps_the_books(
    new_pit: Callable[[], Any], acts: list[tuple[Any, ...]]
) -> None:
    pit = new_pit()
    pit.give("USDT", "5000", "other")
    pit.give("BTC", "50", "other")
    pit.book(
        [(price(t), size(100 + t % 7)) for t in range(9_985, 10_000, 3)],
        [(price(t), size(100 + t % 5)) for t in range(10_001, 10_015, 3)],
    )
    start = deepcopy(pit.state)
    watch = Watch(pit)
    for action in acts:
        pit.now_ms += 1
        act(watch, action)
        check(watch)
    replayed = replay(start, watch.records)
    assert image(replayed) == image(pit.state)


def replay(state: State, records: list[bytes]) -> State:
    """What a restart does with the log."""
    for body in records:
        record = msgspec.json.decode(body, type=Record)
        for effect in record.effects:
            if isinstance(effect, Opened):
                assert effect.order.executed == 0
            state.apply(effect, record.at_ms)
    return state


def image(state: State) -> Any:
    """Everything that must survive, comparable. `ahead` moves with the market and is not logged."""
    orders = [msgspec.structs.replace(o, ahead=ZERO) for o in state.orders.values()]
    accounts = [
        (
            a.name,
            {k: (h.free, h.locked) for k, h in a.balances.items()},
            list(a.executions),
            a.open.keys(),
        )
        for a in state.accounts.values()
    ]
    return orders, accounts, state.fees, state.market, state.next_order_id, state.printed
