"""No parameters, however odd, make a call fail in any way but a refusal."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbot.core.errors import ExchangeRefusal
from tbot.core.settings import ExchangeSettings
from tbot.exchange.api import CALLS
from tbot.exchange.commandlog import CommandLog
from tbot.exchange.floor import Floor
from tbot.exchange.gate import Gate
from tbot.exchange.hub import Hub, Outbox
from tbot.exchange.rest import Answer
from tbot.exchange.state import State
from tbot.exchange.streams import Listener
from tbot.exchange.synthetic import Synthetic
from tbot.exchange.wsapi import Session

NAMES = (
    "symbol", "symbols", "side", "type", "timeInForce", "price", "quantity", "quoteOrderQty",
    "newClientOrderId", "origClientOrderId", "orderId", "limit", "fromId", "startTime", "endTime",
    "interval", "newOrderRespType", "id", "asset", "amount", "cancelRestrictions", "recvWindow",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([
        "BTCUSDT", "ETHUSDT", "BUY", "SELL", "LIMIT", "MARKET", "LIMIT_MAKER", "GTC", "IOC", "FOK",
        "FULL", "ACK", "1m", "1d", "0", "1", "0.01", "100", "61800", "50000.5", "1e5", "NaN", "-1",
        "Infinity", "", "x", '["BTCUSDT"]', "[1]", "[]", "9" * 40, "0." + "1" * 30, "ONLY_NEW",
    ]),
    st.text(max_size=12),
    st.integers(-(10**20), 10**20).map(str),
)  # fmt: skip
PARAMS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=10)


class Deaf:
    """A connection that swallows everything."""

    def write(self, data: bytes) -> None:
        """Nothing."""

    def say(self, data: bytes) -> None:
        """Nothing."""


def broken() -> None:
    pytest.fail("a call broke the exchange")


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Gate:
    """A floor with a running market and a rich account, without sockets."""
    log = CommandLog(tmp_path_factory.mktemp("log"), "s", 0, fsync=False)
    log.open()
    outbox = Outbox(log.flush, lambda release: release())
    hub = Hub(outbox)
    source = Synthetic(1, 0)
    settings_ = ExchangeSettings(weight_1m_max=10**9, orders_10s_max=10**9, orders_1d_max=10**9)
    floor = Floor(settings_, State(500, 500), source.instruments(), 0, log, outbox, hub)
    floor.open_books(source.openings(), source.trade_ids())
    for timed in islice(source.events(), 2000):
        floor.play(timed)
    made = Gate(floor, {}, broken)
    for asset in ("USDT", "BTC", "ETH"):
        made.run(
            "paper.deposit", {"id": asset, "asset": asset, "amount": "1000000"}, "main", "x", None
        )
    return made


@settings(max_examples=400)
@given(name=st.sampled_from(sorted(CALLS)), params=PARAMS, likely=st.booleans())
def test_calls_answer_or_refuse(
    gate: Gate, name: str, params: dict[str, str], likely: bool
) -> None:
    if likely:
        params = {
            "symbol": "BTCUSDT",
            "side": "BUY",
            "type": "LIMIT",
            "timeInForce": "GTC",
        } | params
    code = 0
    try:
        msgspec.json.encode(gate.run(name, params, "main", "x", None))
    except ExchangeRefusal as refusal:
        code = refusal.code
    assert code != -1000, "only refusals that the call itself made"
    assert gate.floor.state.imbalance() == {}


@settings(max_examples=300)
@given(
    text=st.one_of(
        st.binary(max_size=40),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["id", "method", "params", "symbol", "apiKey", "timestamp"]),
                inner,
                max_size=5,
            ),
            max_leaves=12,
        ).map(lambda value: msgspec.json.encode(value)),
        st.tuples(
            st.sampled_from([
                *sorted(CALLS), "session.logon", "userDataStream.subscribe", "SUBSCRIBE",
                "UNSUBSCRIBE", "SET_PROPERTY", "GET_PROPERTY", "LIST_SUBSCRIPTIONS",
            ]),
            PARAMS | st.lists(VALUES, max_size=3),
        ).map(lambda made: msgspec.json.encode({"id": 1, "method": made[0], "params": made[1]})),
    )
)  # fmt: skip
def test_sockets_answer_any_text(gate: Gate, text: bytes) -> None:
    hub = gate.floor.hub
    session = Session(gate, hub, Deaf(), "x", limits_told=True)
    call: Any = session.parse(text)
    answer = call if isinstance(call, Answer) else session.handle(call)
    assert b'"status":' in answer.data
    session.close()
    listener = Listener(hub, Deaf(), [], False, 1000)
    assert listener.handle(text)[:1] == b"\x81"
    listener.close()
    assert hub.is_silent


async def test_nothing_leaves_before_the_flush() -> None:
    order: list[str] = []

    class Ear(Deaf):
        def write(self, data: bytes) -> None:
            order.append(data.decode())

    loop = asyncio.get_running_loop()
    outbox = Outbox(lambda: order.append("flush"), loop.call_soon)
    ear = Ear()
    outbox.send(ear, b"before")
    outbox.hold()
    outbox.send(ear, b"one,")
    outbox.hold()
    outbox.send(ear, b"two")
    assert order == ["before"]
    await asyncio.sleep(0)
    assert order == ["before", "flush", "one,two"]
    outbox.send(ear, b"after")
    assert order[-1] == "after"
