"""The stream's protocol on a real server: who may speak, what is answered, what is delivered."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import asyncpg
import msgspec
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tbot.auth import flow
from tbot.core.ids import new_id
from tbot.journal.cursors import Journal
from tbot.market.booktopic import checksum
from tbot.web.orders import order_json

BTC = "BTC-USDT"


async def test_hello_tells_the_limits_and_the_first_message_logs_in(stack: Any) -> None:
    async with stack.dial() as socket:
        assert socket.subprotocol == "tbot.v1.json"
        hello = json.loads(await socket.recv())
        assert hello["op"] == "hello" and hello["limits"]["subscriptions"] == 256
        await socket.send(json.dumps({"op": "auth", "id": 1, "token": stack.tokens["alice"]}))
        authed = json.loads(await socket.recv())
        assert authed["op"] == "authed" and authed["id"] == 1
        assert authed["user"] == str(stack.users["alice"])
        await socket.send(json.dumps({"op": "ping", "id": 7}))
        assert json.loads(await socket.recv()) == {"op": "pong", "id": 7}


@pytest.mark.parametrize(
    ("first", "code", "close"),
    [
        ({"op": "sub", "id": 1, "channels": []}, "unauthenticated", 4001),
        ({"op": "auth", "token": "no-token"}, "invalid_token", 4001),
        ({"op": "auth"}, "invalid_token", 4001),
        ("not json", "malformed", 4000),
        ("[1]", "malformed", 4000),
        ("[" * 50_000, "malformed", 4000),
    ],
)
async def test_a_wrong_first_message_is_answered_and_ends_it(
    stack: Any, first: Any, code: str, close: int
) -> None:
    async with stack.dial() as socket:
        await socket.recv()
        await socket.send(first if isinstance(first, str) else json.dumps(first))
        error = json.loads(await socket.recv())
        assert error["op"] == "error" and error["code"] == code
        await socket.wait_closed()
        assert socket.close_code == close


async def test_who_says_nothing_is_closed_and_binary_is_refused(new_stack: Any) -> None:
    stack = await new_stack(auth_timeout_s=0.1)
    async with stack.dial() as silent:
        await silent.wait_closed()
        assert silent.close_code == 4002
    stack = await new_stack()
    async with stack.dial() as binary:
        await binary.send(b"\x00")
        await binary.wait_closed()
        assert binary.close_code == 4000


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"additional_headers": {"Origin": "https://evil.example"}}, 403),
        ({"additional_headers": {"Origin": "null"}}, 403),
        ({"subprotocols": ["other.v1"]}, 400),
    ],
)
async def test_foreign_pages_and_other_protocols_are_not_accepted(
    stack: Any, options: dict[str, Any], status: int
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await stack.dial(**options)
    assert refused.value.response.status_code == status
    problem = json.loads(refused.value.response.body)
    assert problem["status"] == status and problem["code"]


async def test_own_pages_listed_pages_and_programs_are_accepted(new_stack: Any) -> None:
    stack = await new_stack(origins=["https://desk.example"])
    host = stack.url.removeprefix("http://")
    for headers in ({}, {"Origin": f"http://{host}"}, {"Origin": "https://desk.example"}):
        async with stack.dial(additional_headers=headers) as socket:
            assert json.loads(await socket.recv())["op"] == "hello"
    with pytest.raises(InvalidStatus):  # a suffix is not a match
        await stack.dial(additional_headers={"Origin": "https://desk.example.evil"})


async def test_a_token_in_the_address_is_refused(stack: Any) -> None:
    from websockets.asyncio.client import connect

    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws{stack.url[4:]}/v1/stream?token=abc")
    assert refused.value.response.status_code == 400


async def test_connections_are_limited_per_server_and_user(new_stack: Any, eventually: Any) -> None:
    stack = await new_stack(clients_max=3, clients_per_user_max=2)
    await stack.user()
    clients = [await stack.client() for _ in range(2)]
    async with stack.dial() as third:
        await third.recv()
        await third.send(json.dumps({"op": "auth", "token": stack.tokens["alice"]}))
        assert json.loads(await third.recv())["code"] == "too_many_clients"
        await third.wait_closed()
        assert third.close_code == 4105
    await eventually(lambda: len(stack.streams.hub.subscribers) == 2)
    async with stack.dial():
        with pytest.raises(InvalidStatus) as refused:
            await stack.dial()
    assert refused.value.response.status_code == 503
    assert "retry-after" in refused.value.response.headers
    for client in clients:
        await client.socket.close()
    await eventually(
        lambda: not stack.streams.admission.users and not stack.streams.admission.addresses
    )


async def test_trades_and_books_and_best_prices_arrive(stack: Any) -> None:
    client = await stack.client()
    subs = await client.sub(
        {"channel": "trades", "symbol": BTC},
        {"channel": "book", "symbol": BTC, "depth": 5},
        {"channel": "bbo", "symbol": BTC},
        {"channel": "trades", "symbol": "NO-SUCH"},
        {"channel": "nonsense"},
    )
    trades, book, bbo = (sub["ch"] for sub in subs[:3])
    assert subs[3]["error"]["code"] == "unknown_symbol"
    assert subs[4]["error"]["code"] == "unknown_channel"
    snapshots = {(await client.hear_op("snap"))["ch"] for _ in range(2)}
    assert snapshots == {trades, book}
    stack.feed.trade(BTC, "61685.99", "0.5")
    stack.feed.change(BTC, "bid", "100.10", "2")
    stack.feed.quote(BTC, "100.10")
    got = {message["ch"]: message for message in [await client.hear() for _ in range(3)]}
    assert got[trades]["data"]["price"] == "61685.99" and got[trades]["prev"] == 0
    assert got[book]["data"]["bids"] == [["100.1", "2"]]
    assert got[book]["data"]["checksum"] == checksum([("100.1", "2")], [])
    assert got[bbo]["data"]["bid"] == "100.1"
    await client.say(op="unsub", id=2, chs=[trades, 12345, "x"])
    assert (await client.hear())["chs"] == [trades]
    stack.feed.trade(BTC)
    stack.feed.quote(BTC, "101")
    assert (await client.hear())["ch"] == bbo


async def test_two_clients_share_numbers_and_subscribing_again_asks_for_a_snapshot(
    stack: Any,
) -> None:
    one, two = await stack.client(), await stack.client()
    wish = {"channel": "book", "symbol": BTC, "depth": 0}
    (first,), (second,) = await one.sub(wish), await two.sub(wish)
    assert first["ch"] == second["ch"]
    assert (await one.hear())["op"] == "snap"
    stack.feed.change(BTC, "ask", "105", "1")
    assert (await one.hear())["op"] == "delta"
    await one.sub(wish)
    again = await one.hear()
    assert again["op"] == "snap" and again["data"]["asks"] == [["105", "1"]]


async def test_trades_resume_within_a_run_of_the_server(stack: Any) -> None:
    client = await stack.client()
    (sub,) = await client.sub({"channel": "trades", "symbol": BTC})
    stack.feed.trade(BTC)
    seq = (await client.hear_op("delta"))["seq"]
    await client.socket.close()
    for _ in range(3):
        stack.feed.trade(BTC)
    client = await stack.client()
    resume = {"epoch": stack.streams.epoch, "ch": sub["ch"], "seq": seq}
    (again,) = await client.sub({"channel": "trades", "symbol": BTC, "resume": resume})
    assert again["recovered"] is True
    assert [(await client.hear())["seq"] for _ in range(3)] == [2, 3, 4]
    resume["epoch"] = "another run"
    (again,) = await client.sub({"channel": "trades", "symbol": BTC, "resume": resume})
    assert again["recovered"] is False and (await client.hear())["op"] == "snap"


async def test_an_account_is_its_snapshot_and_then_every_entry(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    client = await stack.client()
    (sub,) = await client.sub({"channel": "account", "account_id": str(account_id)})
    snap = await client.hear()
    assert snap["ch"] == sub["ch"] and len(snap["hash"]) == 16
    assert snap["data"]["balances"] == [
        {"asset": "USDT", "total": "1000", "available": "1000", "held": "0"}
    ]
    order = (await stack.desk.place(account_id)).result.order
    delta = await client.hear()
    assert delta["seq"] == snap["seq"] + 1 and delta["prev"] == snap["seq"]
    # A snapshot shows open orders exactly as REST does.
    later = await stack.client()
    await later.sub({"channel": "account", "account_id": str(account_id)})
    shown = (await later.hear())["data"]["orders"]
    assert shown == [json.loads(msgspec.json.encode(order_json(order)))]
    assert delta["data"]["kind"] == "order.accepted"
    assert delta["data"]["data"]["accepted"]["id"] == str(order.id)
    # Another client resumes from the snapshot's place and gets the same entry.
    other = await stack.client()
    resume = {"seq": snap["seq"], "hash": snap["hash"]}
    (again,) = await other.sub(
        {"channel": "account", "account_id": str(account_id), "resume": resume}
    )
    assert again["recovered"] is True and again["ch"] == sub["ch"]
    assert await other.hear() == delta


async def test_a_place_that_is_not_in_the_journal_recovers_nothing(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    client = await stack.client()
    for resume in (
        {"seq": 1, "hash": "0" * 16},
        {"seq": 99, "hash": "0" * 16},
    ):
        (sub,) = await client.sub(
            {"channel": "account", "account_id": str(account_id), "resume": resume}
        )
        assert sub["recovered"] is False
        assert (await client.hear())["op"] == "snap"
    for resume in ({"seq": -1, "hash": "0" * 16}, {"seq": 1}, 5, {"seq": 1, "hash": 3}):
        (sub,) = await client.sub(
            {"channel": "account", "account_id": str(account_id), "resume": resume}
        )
        assert sub["error"]["code"] == "bad_parameter"


async def test_a_database_that_is_away_delays_a_private_stream_and_a_bug_closes_it(
    stack: Any, monkeypatch: Any
) -> None:
    account_id = await stack.account(USDT="1000")
    client = await stack.client()
    faults: list[Exception] = []
    looked = asyncio.Event()
    read = Journal._read

    async def faulty(self: Journal, *args: Any) -> Any:
        if faults:
            raise faults.pop(0)
        found = await read(self, *args)
        looked.set()
        return found

    monkeypatch.setattr(Journal, "_read", faulty)
    monkeypatch.setattr(Journal, "remember", lambda self, entries: None)
    monkeypatch.setattr(Journal, "remembered", lambda self, *args: [])
    await client.sub({"channel": "account", "account_id": str(account_id)})
    snap = await client.hear()
    # A new stream looks once by itself: were it still looking, it would find what comes now.
    await asyncio.wait_for(looked.wait(), 10)
    faults += [
        asyncpg.InternalClientError("another operation is in progress"),
        asyncpg.ConnectionDoesNotExistError("gone"),
        ConnectionRefusedError("down"),
    ]
    await stack.desk.place(account_id)
    stack.desk.bus.wake([f"head:{account_id}"])
    assert (await client.hear())["seq"] == snap["seq"] + 1
    assert not faults
    faults.append(RuntimeError("a bug"))
    stack.desk.bus.wake([f"head:{account_id}"])
    assert await client.closed() == 4104


async def test_anothers_account_looks_like_a_missing_one(stack: Any) -> None:
    await stack.user("mallory")
    account_id = await stack.account(USDT="1000")
    client = await stack.client("mallory")
    (foreign,) = await client.sub({"channel": "account", "account_id": str(account_id)})
    (missing,) = await client.sub({"channel": "account", "account_id": str(new_id())})
    assert foreign == missing and foreign["error"]["code"] == "not_found"
    await stack.desk.place(account_id)
    await client.say(op="ping", id=1)
    assert (await client.hear())["op"] == "pong"
    for bad in ("x", str(account_id).upper(), 5, None):
        (sub,) = await client.sub({"channel": "account", "account_id": bad})
        assert sub == missing


async def test_a_token_without_the_scope_gets_no_account(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    stack.tokens["alice"] = await stack.login(scope="market:read")
    client = await stack.client()
    (sub,) = await client.sub({"channel": "account", "account_id": str(account_id)})
    assert sub["error"]["code"] == "insufficient_scope"
    (sub,) = await client.sub({"channel": "trades", "symbol": BTC})
    assert "ch" in sub


async def test_an_expired_token_closes_and_a_fresh_one_in_time_does_not(new_stack: Any) -> None:
    stack = await new_stack(access_ttl_s=30)
    await stack.user()
    await stack.user("bob")
    fresh = await stack.login()
    stack.auth.settings.access_ttl_s = 3
    stack.tokens["alice"] = await stack.login()
    ends, stays = await stack.client(), await stack.client()
    await stays.say(op="auth", id=2, token=stack.tokens["bob"])
    assert (await stays.hear())["code"] == "user_mismatch"
    await stays.say(op="auth", id=3, token=fresh)
    assert (await stays.hear())["op"] == "authed"
    assert (await ends.hear())["code"] == "token_expired"
    assert await ends.closed() == 4103
    await stays.say(op="ping", id=4)
    assert (await stays.hear())["op"] == "pong"


async def test_logging_out_closes_the_connections_of_the_session(stack: Any) -> None:
    grant = await flow.login(stack.auth, "alice", "correct horse battery staple")
    other = await stack.client()
    stack.tokens["alice"] = grant.access_token
    client = await stack.client()
    await flow.revoke(stack.auth, grant.refresh_token)
    assert (await client.hear())["code"] == "session_over"
    assert await client.closed() == 4003
    await other.say(op="ping", id=1)
    assert (await other.hear())["op"] == "pong"


async def test_limits_on_messages_and_subscriptions(new_stack: Any) -> None:
    stack = await new_stack(messages_per_s_max=5, subscriptions_max=2, message_bytes_max=2048)
    await stack.user()
    client = await stack.client()
    depths = (5, 10, 20)
    wishes = [{"channel": "book", "symbol": BTC, "depth": depth} for depth in depths]
    subs = await client.sub(*wishes[:2])
    assert all("ch" in sub for sub in subs)
    (full,) = await client.sub(wishes[2])
    assert full["error"]["code"] == "too_many_subscriptions"
    await client.say(op="sub", id=9, channels=wishes)
    assert (await client.hear_op("error"))["code"] == "too_many_subscriptions"
    codes = set()
    with pytest.raises(ConnectionClosed):
        for _ in range(200):
            await client.say(op="ping", id=1)
            await asyncio.sleep(0)
        while True:
            codes.add((await client.hear()).get("code"))
    assert client.socket.close_code == 4102 and "rate_limited" in codes
    client = await stack.client()
    with pytest.raises(ConnectionClosed):
        await client.say(op="ping", pad="x" * 3000)
        await client.hear()
    assert client.socket.close_code == 1009
    client = await stack.client()
    await client.say(op="dance", id=3)
    error = await client.hear()
    assert error["code"] == "unknown_op" and error["id"] == 3


async def test_draining_sends_everybody_away_to_come_back_at_once(stack: Any) -> None:
    clients = [await stack.client() for _ in range(30)]
    draining = asyncio.create_task(stack.streams.drain())
    for client in clients:
        drain = await client.hear()
        assert drain["op"] == "drain" and drain["reconnect_after_ms"] >= 0
        assert await client.closed() == 4201
    await draining
    for _ in range(8):  # the drain is over: who comes back is not kept away for longer
        with pytest.raises(InvalidStatus) as refused:
            await stack.dial()
        answer = refused.value.response
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")


async def test_a_server_that_ends_without_draining_says_come_back_too(stack: Any) -> None:
    client = await stack.client()
    stack.server.should_exit = True
    assert await client.closed() == 4201
    await asyncio.wait_for(asyncio.shield(stack.task), 10)


async def test_the_private_stream_survives_a_restart_without_gap_or_repeat(
    new_stack: Any,
) -> None:
    first = await new_stack()
    await first.user()
    account_id = await first.account(USDT="100000")
    client = await first.client()
    wish = {"channel": "account", "account_id": str(account_id)}
    await client.sub(wish)
    snap = await client.hear()
    seqs: list[int] = []
    place = {"seq": snap["seq"], "hash": snap["hash"]}
    trading = asyncio.create_task(trade(first.desk, account_id, 40))
    while len(seqs) < 15:
        delta = await client.hear()
        seqs.append(delta["seq"])
        place = {"seq": delta["seq"], "hash": delta["hash"]}
    await first.stop()
    second = await new_stack()
    second.users, second.tokens = first.users, {"alice": await second.login()}
    await trading  # the journal grew while nobody was connected
    trading = asyncio.create_task(trade(second.desk, account_id, 10))
    client = await second.client()
    (sub,) = await client.sub({**wish, "resume": place})
    assert sub["recovered"] is True
    last = snap["seq"] + 50
    while seqs[-1] < last:
        seqs.append((await client.hear())["seq"])
    await trading
    assert seqs == list(range(snap["seq"] + 1, last + 1))


async def trade(desk: Any, account_id: Any, orders: int) -> None:
    """One entry an order."""
    for _ in range(orders):
        await desk.place(account_id)
