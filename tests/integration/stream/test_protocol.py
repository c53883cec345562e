"""Both protocols on a real server: what is said in one means the same in the other."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from typing import Any

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tbot.market.topics import BinaryFrame

BTC, ETH = "BTC-USDT", "ETH-USDT"
JSON, MSGPACK = "tbot.v1.json", "tbot.v1.msgpack"


async def test_every_message_is_the_same_in_msgpack(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    written = await stack.client(subprotocols=[JSON])
    packed = await stack.client(subprotocols=[MSGPACK, JSON])
    assert packed.socket.subprotocol == MSGPACK
    wishes = [
        {"channel": "trades", "symbol": BTC},
        {"channel": "book", "symbol": BTC, "depth": 5},
        {"channel": "bbo", "symbol": BTC},
        {"channel": "account", "account_id": str(account_id)},
        {"channel": "nonsense"},
    ]
    names: list[dict[int, int]] = []
    for client in (written, packed):
        subs = await client.sub(*wishes)
        names.append({sub["ch"]: index for index, sub in enumerate(subs) if "ch" in sub})
    stack.feed.trade(BTC, "61685.99", "0.5")
    stack.feed.change(BTC, "bid", "100.10", "2")
    stack.feed.quote(BTC, "100.10")
    await stack.desk.place(account_id)
    heard: list[list[dict[str, Any]]] = []
    for client, numbers in zip((written, packed), names, strict=True):
        messages = [await client.hear() for _ in range(7)]
        for message in messages:
            message["ch"] = numbers[message["ch"]]
        heard.append(sorted(messages, key=lambda one: (one["ch"], one["seq"])))
    # Each protocol has rings of its own, which began at different times.
    for message in (*heard[0], *heard[1]):
        if message["ch"] != 3:
            message["seq"] = message["prev"] = 0
    assert heard[0] == heard[1]
    await packed.say(op="unsub", id=9, chs="*")
    answer = await packed.hear()
    assert set(answer["chs"]) == set(names[1])


async def test_an_event_is_encoded_once_per_protocol_and_only_where_it_is_read(
    stack: Any, monkeypatch: Any
) -> None:
    encoded: Counter[str] = Counter()
    clients = [await stack.client(subprotocols=[JSON]) for _ in range(3)]
    for client in clients:
        await client.sub({"channel": "trades", "symbol": BTC})
    topics = list(stack.streams.market._topics.values())
    assert [topic.codec.protocol for topic in topics] == [JSON]
    codecs = {topic.codec for topic in topics}
    packed = [await stack.client(subprotocols=[MSGPACK]) for _ in range(3)]
    for client in packed:
        await client.sub({"channel": "trades", "symbol": BTC})
    codecs |= {topic.codec for topic in stack.streams.market._topics.values()}
    assert {codec.protocol for codec in codecs} == {JSON, MSGPACK}
    for codec in codecs:

        def counted(message: Any, codec: Any = codec, encode: Any = codec.encode) -> bytes:
            if message.get("op") == "delta":
                encoded[codec.protocol] += 1
            data: bytes = encode(message)
            return data

        monkeypatch.setattr(codec, "encode", counted)
    for _ in range(5):
        stack.feed.trade(BTC)
    for client in (*clients, *packed):
        for _ in range(5):
            await client.hear_op("delta")
    assert encoded == {JSON: 5, MSGPACK: 5}


async def test_account_entries_are_packed_once_for_all(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    clients = [await stack.client(subprotocols=[name]) for name in (JSON, MSGPACK, MSGPACK)]
    for client in clients:
        await client.sub({"channel": "account", "account_id": str(account_id)})
        await client.hear_op("snap")
    await stack.desk.place(account_id)
    deltas = [await client.hear_op("delta") for client in clients]
    assert deltas[0] == deltas[1] == deltas[2]
    resume = {"seq": deltas[0]["prev"], "hash": "0" * 16}
    (sub,) = await clients[1].sub(
        {"channel": "account", "account_id": str(account_id), "resume": resume}
    )
    assert sub["recovered"] is False
    snap = await clients[1].hear_op("snap")
    assert (snap["seq"], snap["hash"]) == (deltas[0]["seq"], deltas[0]["hash"])


async def test_msgpack_on_a_plain_server(new_stack: Any) -> None:
    stack = await new_stack(plain=True)
    await stack.user()
    client = await stack.client(subprotocols=[MSGPACK])
    await client.sub({"channel": "trades", "symbol": BTC})
    stack.feed.trade(BTC, "7")
    assert (await client.hear_op("delta"))["data"]["price"] == "7"


def packed(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


NOT_MESSAGES = [
    (JSON, "[]"),
    (JSON, '"x"'),
    (JSON, ""),
    (JSON, '{"op":"ping","op":"ping"}'),
    (JSON, '{"op":NaN}'),
    (JSON, '{"a":"\\ud800","op":"ping"}'),
    (JSON, json.dumps({"op": "ping", "x": eval("[" * 40 + "]" * 40)})),
    (JSON, packed({"op": "ping"})),
    (MSGPACK, '{"op":"ping"}'),
    (MSGPACK, b""),
    (MSGPACK, b"\xc1"),
    (MSGPACK, packed([1])),
    (MSGPACK, packed({1: 2})),
    (MSGPACK, packed({"op": "ping"}) + b"\x00"),
    (MSGPACK, packed({"op": "ping", "x": {1: 2}})),
    (MSGPACK, packed({"op": "ping", "x": b"bytes"})),
    (MSGPACK, packed({"op": "ping", "x": float("inf")})),
    (MSGPACK, packed({"op": "ping", "x": msgspec.msgpack.Ext(5, b"ext")})),
    (MSGPACK, b"\x81\xa1x\xd6\xff\x00\x00\x00\x00"),  # a date
    (MSGPACK, b"\x81\xa1x" + b"\x91" * 60_000 + b"\xc0"),
    (MSGPACK, b"\xdf\xff\xff\xff\xff"),
]


async def test_what_is_no_message_ends_the_connection(stack: Any) -> None:
    for protocol, raw in NOT_MESSAGES:
        client = await stack.client(subprotocols=[protocol])
        await client.socket.send(raw)
        error = await client.hear()
        assert error["code"] == "malformed", (protocol, raw)
        assert await client.closed() == 4000


WRONG = [
    ({"op": "sub"}, "bad_parameter"),
    ({"op": "sub", "channels": []}, "bad_parameter"),
    ({"op": "sub", "channels": "trades"}, "bad_parameter"),
    ({"op": "unsub"}, "bad_parameter"),
    ({"op": "unsub", "chs": 7}, "bad_parameter"),
    ({"op": ["ping"]}, "unknown_op"),
    ({"op": {"a": 1}}, "unknown_op"),
    ({"op": None}, "unknown_op"),
    ({}, "unknown_op"),
    ({"op": "place", "order": {}}, "unknown_op"),  # nobody takes orders on this server
    ({"op": "auth", "token": 7}, "invalid_token"),
    ({"op": "auth", "token": "x" * 20_000}, "invalid_token"),
]


@pytest.mark.parametrize("protocol", [JSON, MSGPACK])
async def test_wrong_types_are_told_and_harm_nothing(new_stack: Any, protocol: str) -> None:
    stack = await new_stack(messages_per_s_max=1000)
    await stack.user()
    client = await stack.client(subprotocols=[protocol])
    for number, (message, code) in enumerate(WRONG):
        await client.say(id=number, **message)
        error = await client.hear()
        assert (error["id"], error["code"]) == (number, code), message
    for wish in (5, None, [], {}, {"channel": 5}, {"channel": ["x"]}, {"channel": "*"}):
        (sub,) = await client.sub(wish)
        assert sub["error"]["code"] == "unknown_channel", wish
    for more in ({"symbol": 5}, {"symbol": ""}, {"symbol": "x" * 40}, {"depth": 5}, {"x": 1}):
        (sub,) = await client.sub({"channel": "trades", "symbol": BTC, **more})
        assert sub["error"]["code"] == "bad_parameter", more
    account_id = str(await stack.account())
    resume = {"seq": 1 << 60, "hash": "0" * 16}
    (sub,) = await client.sub({"channel": "account", "account_id": account_id, "resume": resume})
    assert sub["error"]["code"] == "bad_parameter"
    await client.say(op="unsub", chs=[1 << 60, 1.5, "x", 10**6, None, [1]])
    assert (await client.hear())["unknown"] == [None, None, "x", 10**6, None, None]
    for number in ("x", 1.5, True, 1 << 60, [1], None):
        await client.say(op="ping", id=number)
        assert await client.hear() == {"op": "pong"}


async def test_a_star_is_every_market_within_the_limits(new_stack: Any) -> None:
    stack = await new_stack(subscriptions_max=3)
    await stack.user()
    client = await stack.client()
    (one,) = await client.sub({"channel": "trades", "symbol": BTC})
    (every,) = await client.sub({"channel": "trades", "symbol": "*"})
    assert every["symbol"] == "*" and every["channel"] == "trades"
    assert [sub["symbol"] for sub in every["subs"]] == [BTC, ETH]
    assert every["subs"][0]["ch"] == one["ch"]
    stack.feed.trade(ETH, "3")
    assert (await client.hear_op("delta"))["ch"] == every["subs"][1]["ch"]
    wishes: list[dict[str, Any]] = [
        {"channel": "bbo", "symbol": "*"},  # two more are too many
        {"channel": "bbo", "symbol": BTC, "interval_ms": 100},
        {"channel": "bbo", "symbol": ETH},
        {"channel": "trades", "symbol": "*"},
        {"channel": "trades", "symbol": "*", "resume": {"seq": 1}},
        {"channel": "book", "symbol": "*", "depth": 7},
        {"channel": "account", "account_id": "*"},
    ]
    subs = [(await client.sub(wish))[0] for wish in wishes]
    codes = [sub.get("error", {}).get("code") for sub in subs]
    full, bad = "too_many_subscriptions", "bad_parameter"
    assert codes == [full, None, full, None, bad, bad, "not_found"]
    await client.say(op="unsub", id=5, chs=[one["ch"], 999, "x"])
    answer = await client.hear_op("unsubbed")
    assert answer["chs"] == [one["ch"]] and answer["unknown"] == [999, "x"]
    (bad_depth,) = await client.sub({"channel": "book", "symbol": BTC, "depth": 7})
    assert bad_depth["error"]["code"] == bad


async def test_intervals_are_each_subscriptions_own(stack: Any) -> None:
    fast, slow = await stack.client(), await stack.client()
    await fast.sub({"channel": "bbo", "symbol": BTC})
    (sub,) = await slow.sub({"channel": "bbo", "symbol": BTC, "interval_ms": 250})
    assert sub["interval_ms"] == 250
    for number in range(100, 110):
        stack.feed.quote(BTC, str(number))
    assert [(await fast.hear())["data"]["bid"] for _ in range(10)] == [
        str(number) for number in range(100, 110)
    ]
    first = await slow.hear()
    assert first["data"]["bid"] == "109" and first["seq"] == 10


async def test_who_is_too_large_too_fast_or_binary_is_closed_in_msgpack_too(
    new_stack: Any,
) -> None:
    stack = await new_stack(messages_per_s_max=5, message_bytes_max=2048)
    await stack.user()
    client = await stack.client(subprotocols=[MSGPACK])
    with pytest.raises(ConnectionClosed):
        await client.say(op="ping", pad="x" * 3000)
        await client.hear()
    assert client.socket.close_code == 1009
    client = await stack.client(subprotocols=[MSGPACK])
    codes = set()
    with pytest.raises(ConnectionClosed):
        for _ in range(200):
            await client.say(op="ping", id=1)
            await asyncio.sleep(0)
        while True:
            codes.add((await client.hear()).get("code"))
    assert client.socket.close_code == 4102 and "rate_limited" in codes


async def test_newcomers_and_a_late_server_are_told_to_come_back(new_stack: Any) -> None:
    stack = await new_stack(newcomers_max=2)
    await stack.user()
    known = await stack.client()
    async with stack.dial(), stack.dial():
        with pytest.raises(InvalidStatus) as refused:
            await stack.dial()
        assert refused.value.response.status_code == 503
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 5
        assert json.loads(refused.value.response.body)["code"] == "overloaded"
    assert stack.streams.admission.newcomers <= 2
    stack.streams.settings.admission_lag_ms_max = -1.0  # no timer is ever that early
    with pytest.raises(InvalidStatus) as refused:
        await stack.dial()
    assert refused.value.response.status_code == 503
    await known.say(op="ping", id=1)
    assert (await known.hear())["op"] == "pong"


async def test_one_address_has_so_many(new_stack: Any) -> None:
    stack = await new_stack(clients_per_address_max=1)
    async with stack.dial():
        with pytest.raises(InvalidStatus) as refused:
            await stack.dial()
    assert refused.value.response.status_code == 429
    assert int(refused.value.response.headers["retry-after"]) >= 1


async def test_a_refused_handshake_is_no_error_of_the_server(
    stack: Any, eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("uvicorn.error")
    logger.addHandler(caplog.handler)
    stack.streams.settings.admission_lag_ms_max = -1.0  # no timer is ever that early
    try:
        with pytest.raises(InvalidStatus) as refused:
            await stack.dial()
        await eventually(lambda: not stack.server.server_state.tasks)
    finally:
        logger.removeHandler(caplog.handler)
    assert refused.value.response.status_code == 503
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_binary_frames_are_binary() -> None:
    for size, head in ((5, b"\x82\x05"), (200, b"\x82\x7e\x00\xc8"), (70_000, b"\x82\x7f")):
        framed = BinaryFrame(1, b"x" * size).framed
        assert framed.startswith(head) and framed.endswith(b"x" * size)
