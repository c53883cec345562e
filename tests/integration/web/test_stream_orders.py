"""Orders on the stream: the same checks, answers and idempotency as REST, on a real socket."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tbot.auth import flow as auth_flow
from tbot.core.errors import OutcomeUnknown, Overloaded
from tbot.core.ids import new_id
from tbot.orders import flow

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streamclient import PROTOCOLS, Client, dial

PASSWORD = "correct horse battery staple"


class Trader:
    """Ann, with an account, on REST and on the stream."""

    def __init__(self, site: Any, url: str, http: Any, account_id: str, exits: Any) -> None:
        self.site = site
        self.url = url
        self.http = http
        self.account_id = account_id
        self._exits = exits

    async def stream(
        self, protocol: str = PROTOCOLS[0], name: str = "ann", scope: str = ""
    ) -> Client:
        """A connection that is logged in."""
        client = Client(await dial(self.url, subprotocols=[protocol]))
        self._exits.push_async_callback(client.socket.close)
        assert (await client.hear())["op"] == "hello"
        await client.say(op="auth", token=await self.site.token(name, scope))
        assert (await client.hear())["op"] == "authed"
        return client

    def order(self, **changes: Any) -> dict[str, Any]:
        """A good order."""
        return {
            "account_id": self.account_id,
            "symbol": "BTC-USDT",
            "side": "buy",
            "type": "limit",
            "quantity": "0.1",
            "limit_price": "90.00",
            **changes,
        }


@pytest.fixture
async def trading(site: Any, serve: Any) -> AsyncIterator[Trader]:
    async with AsyncExitStack() as exits:
        http = await exits.enter_async_context(site.client("ann"))
        account = await site.account(http, USDT="100000")
        yield Trader(site, await serve(site), http, account["id"], exits)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_an_order_is_placed_followed_and_canceled(trading: Trader, protocol: str) -> None:
    client = await trading.stream(protocol)
    await client.sub({"channel": "account", "account_id": trading.account_id})
    await client.hear_op("snap")
    await client.say(op="place", id=5, order=trading.order(client_order_id="a-1"))
    placed = await client.hear_answer(5)
    assert placed["op"] == "placed" and placed["status"] == 201 and "replayed" not in placed
    order = placed["order"]
    assert order["state"] == "pending_new" and order["held"]["amount"] == "9"
    assert (await trading.http.get(f"/v1/orders/{order['id']}")).json() == order
    await client.say(op="place", id=6, order=trading.order(client_order_id="a-1"))
    again = await client.hear_answer(6)
    assert again["status"] == 200 and again["replayed"] and again["order"]["id"] == order["id"]
    await client.say(op="cancel", id=7, order_id=order["id"])
    canceling = await client.hear_answer(7)
    assert canceling["op"] == "cancel_requested" and canceling["status"] == 202
    assert canceling["order"]["cancel_requested"] is True
    journal = (await trading.http.get(f"/v1/accounts/{trading.account_id}/journal")).json()
    entries = [one["entry"] for one in journal["entries"]]
    (accepted,) = [one for one in entries if one["kind"] == "order.accepted"]
    actor = accepted["by"]
    assert actor["kind"] == "user" and actor["address"] == "127.0.0.1"
    assert actor["session"] and actor["request"]


async def test_orders_come_and_go_many_at_once(trading: Trader) -> None:
    client = await trading.stream()
    orders = [trading.order(client_order_id=f"b-{n}") for n in range(4)]
    orders.insert(2, trading.order(quantity="0"))
    orders.append(trading.order(account_id=str(new_id())))
    await client.say(op="place", id=1, orders=orders)
    results = (await client.hear_answer(1))["results"]
    assert [one["status"] for one in results] == [201, 201, 422, 201, 201, 404]
    assert results[2]["problem"]["errors"][0]["pointer"] == "/quantity"
    ids = [one["order"]["id"] for one in results if "order" in one]
    await client.say(op="cancel", id=2, order_ids=[*ids[:2], "x", str(new_id())])
    results = (await client.hear_answer(2))["results"]
    assert [one["status"] for one in results] == [202, 202, 422, 404]
    await client.say(op="cancel_all", id=3, account_id=trading.account_id, symbol="BTC-USDT")
    answer = await client.hear_answer(3)
    assert answer["status"] == 202 and answer["requested"] == 4
    assert set(answer["orders"]) == set(ids)


async def test_a_key_means_the_same_here_and_on_rest(trading: Trader) -> None:
    client = await trading.stream()
    order = trading.order()
    await client.say(op="place", id=1, key="k-1", order=order)
    first = await client.hear_answer(1)
    rest = await trading.http.post("/v1/orders", json=order, headers={"Idempotency-Key": "k-1"})
    assert rest.json() == first["order"] and rest.headers["idempotent-replayed"] == "true"
    await client.say(op="place", id=2, key="k-1", order=order)
    again = await client.hear_answer(2)
    assert again["order"] == first["order"] and again["replayed"] is True
    await client.say(op="place", id=3, key="k-1", order=trading.order(quantity="0.2"))
    refused = await client.hear_answer(3)
    assert refused["op"] == "error" and refused["code"] == "idempotency_key_reused"
    for number in (4, 5):
        await client.say(op="place", id=number, key="k-2", orders=[order, order])
    results = [(await client.hear_answer(number))["results"] for number in (4, 5)]
    assert [one["order"]["id"] for one in results[0]] == [one["order"]["id"] for one in results[1]]
    await client.say(op="place", id=6, key="k-3", order=trading.order(quantity="9000"))
    poor = await client.hear_answer(6)
    assert poor["code"] in ("insufficient_funds", "max_order_notional")
    await client.say(op="place", id=7, key="k-3", order=trading.order(quantity="9000"))
    assert (await client.hear_answer(7))["problem"] == poor["problem"]


BAD_MESSAGES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"op": "place"}, 422, "validation_failed"),
    ({"op": "place", "order": {}}, 422, "validation_failed"),
    ({"op": "place", "order": 5}, 422, "validation_failed"),
    ({"op": "place", "order": {}, "orders": []}, 422, "validation_failed"),
    ({"op": "place", "orders": []}, 422, "validation_failed"),
    ({"op": "place", "orders": {}}, 422, "validation_failed"),
    ({"op": "place", "orders": [{}] * 51}, 422, "validation_failed"),
    ({"op": "place", "order": {}, "typo": 1}, 422, "validation_failed"),
    ({"op": "place", "order": {}, "key": 5}, 422, "validation_failed"),
    ({"op": "place", "order": {}, "key": "a b"}, 400, "malformed_header"),
    ({"op": "cancel"}, 422, "validation_failed"),
    ({"op": "cancel", "order_id": 7}, 422, "validation_failed"),
    ({"op": "cancel", "order_id": str(new_id())}, 404, "not_found"),
    ({"op": "cancel_all"}, 422, "validation_failed"),
    ({"op": "cancel_all", "account_id": str(new_id())}, 404, "not_found"),
    ({"op": "cancel_all", "account_id": str(new_id()), "symbol": ["x"]}, 422, None),
    ({"op": "place", "order": {}, "wait_s": "5"}, 422, "validation_failed"),
    ({"op": "place", "order": {}, "wait_s": True}, 422, "validation_failed"),
    ({"op": "cancel", "order_id": str(new_id()), "wait_s": -1}, 422, "validation_failed"),
    ({"op": "cancel_all", "account_id": str(new_id()), "wait_s": 1}, 422, "validation_failed"),
    ({"op": "amend"}, 422, "validation_failed"),
    ({"op": "amend", "order_id": str(new_id()), "quantity": 1}, 422, "validation_failed"),
    ({"op": "amend", "order_id": str(new_id()), "limit_price": "0"}, 422, "validation_failed"),
    ({"op": "amend", "order_id": str(new_id()), "side": "buy"}, 422, "validation_failed"),
    ({"op": "amend", "order_id": str(new_id())}, 404, "not_found"),
]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_bad_messages_get_problem_documents(trading: Trader, protocol: str) -> None:
    client = await trading.stream(protocol)
    before = await trading.site.journal_size()
    for number, (message, status, code) in enumerate(BAD_MESSAGES):
        await client.say(id=number, **message)
        error = await client.hear_answer(number)
        assert error["op"] == "error" and error["temporary"] is False, message
        assert error["problem"]["status"] == status, message
        assert error["code"] == error["problem"]["code"] == (code or error["code"]), message
    assert await trading.site.journal_size() == before


BAD_ORDERS: list[dict[str, Any]] = [
    {"quantity": 0.1},
    {"quantity": "NaN"},
    {"quantity": "1e3"},
    {"quantity": "-1"},
    {"limit_price": None},
    {"owner_id": "x"},
    {"client_order_id": "a b"},
    {"symbol": "NO-SUCH"},
    {"limit_price": "90.001"},
    {"type": "market"},
]


async def test_bad_orders_are_refused_as_on_rest(trading: Trader) -> None:
    client = await trading.stream()
    for number, changes in enumerate(BAD_ORDERS):
        order = trading.order(**changes)
        rest = await trading.http.post("/v1/orders", json=order)
        await client.say(op="place", id=number, order=order)
        error = await client.hear_answer(number)
        document, ours = rest.json(), error["problem"]
        assert rest.status_code >= 400 and ours.pop("request_id") != document.pop("request_id")
        assert ours == document and error["msg"] == document["detail"]


async def test_amending_says_that_it_cannot(trading: Trader) -> None:
    client = await trading.stream()
    await client.say(op="place", id=1, order=trading.order())
    order = (await client.hear_answer(1))["order"]
    await client.say(op="amend", id=2, order_id=order["id"], quantity="0.2")
    error = await client.hear_answer(2)
    assert error["code"] == "amend_unsupported" and "paper" in error["msg"]


async def test_who_may_not_trade_does_not(trading: Trader) -> None:
    client = await trading.stream(scope="orders:read market:read")
    await client.say(op="place", id=1, order=trading.order())
    assert (await client.hear_answer(1))["problem"]["scope"] == "orders:write"
    bob = await trading.stream(name="bob")
    await bob.say(op="place", id=1, order=trading.order())
    foreign = (await bob.hear_answer(1))["problem"]
    await bob.say(op="place", id=2, order=trading.order(account_id=str(new_id())))
    missing = (await bob.hear_answer(2))["problem"]
    assert foreign.pop("request_id") != missing.pop("request_id") and foreign == missing
    ann = await trading.stream()
    await ann.say(op="place", id=1, order=trading.order())
    order_id = (await ann.hear_answer(1))["order"]["id"]
    for message in (
        {"op": "cancel", "order_id": order_id},
        {"op": "amend", "order_id": order_id},
        {"op": "cancel_all", "account_id": trading.account_id},
    ):
        await bob.say(id=9, **message)
        assert (await bob.hear_answer(9))["code"] == "not_found"


async def test_a_session_that_is_over_places_nothing(trading: Trader, monkeypatch: Any) -> None:
    grant = await auth_flow.login(trading.site.auth, "ann", PASSWORD)
    client = Client(await dial(trading.url))
    await client.hear()
    await client.say(op="auth", token=grant.access_token)
    await client.hear_op("authed")
    # Nobody tells the stream, and its own round has not come.
    monkeypatch.setattr(type(trading.site.streams), "_check_sessions", _nothing)
    await auth_flow.revoke(trading.site.auth, grant.refresh_token)
    before = await trading.site.journal_size()
    await client.say(op="place", id=1, order=trading.order())
    assert (await client.hear_op("error"))["code"] == "session_over"
    assert await client.closed() == 4003
    assert await trading.site.journal_size() == before


async def _nothing(self: Any) -> None:
    return None


async def test_an_order_before_login_is_refused(trading: Trader) -> None:
    client = Client(await dial(trading.url))
    await client.hear()
    await client.say(op="place", id=1, order=trading.order())
    assert (await client.hear())["code"] == "unauthenticated"
    assert await client.closed() == 4001


async def test_an_order_right_behind_the_login_waits_for_it(trading: Trader) -> None:
    client = Client(await dial(trading.url))
    await client.say(op="auth", id=1, token=await trading.site.token("ann"))
    await client.say(op="place", id=2, order=trading.order())
    assert (await client.hear_answer(2))["status"] == 201
    await client.socket.close()


async def test_how_many_may_be_under_way_is_bounded(trading: Trader, monkeypatch: Any) -> None:
    settings = trading.site.settings.stream
    monkeypatch.setattr(settings, "orders_in_flight_max", 2)
    held = asyncio.Event()
    place = flow.place

    async def slow(*args: Any) -> Any:
        await held.wait()
        return await place(*args)

    monkeypatch.setattr(flow, "place", slow)
    client = await trading.stream()
    for number in (1, 2, 3):
        await client.say(op="place", id=number, order=trading.order())
    error = await client.hear()
    assert error["id"] == 3 and error["code"] == "too_many_in_flight"
    assert error["temporary"] and error["retry_after_ms"] > 0
    held.set()
    answers = [await client.hear(), await client.hear()]
    assert {one["id"] for one in answers} == {1, 2}
    assert all(one["status"] == 201 for one in answers)
    await client.say(op="place", id=4, order=trading.order())
    assert (await client.hear_answer(4))["status"] == 201
    assert trading.site.streams.orders.in_flight == 0


async def test_a_flood_of_orders_is_told_and_then_closed(trading: Trader) -> None:
    trading.site.settings.stream.orders_per_s_max = 5.0
    client = await trading.stream()
    for number in range(60):
        await client.say(op="cancel", id=number, order_id=str(new_id()))
    heard = []
    with pytest.raises(ConnectionClosed):
        while True:
            heard.append(await client.hear())
    limited = [one for one in heard if one["code"] == "rate_limited"]
    assert len(limited) > 20 and all(one["retry_after_ms"] > 0 for one in limited)
    assert client.socket.close_code == 4102


async def test_what_the_write_path_says_is_told_as_on_rest(
    trading: Trader, monkeypatch: Any
) -> None:
    faults: list[Exception] = [
        Overloaded("the queue is full", retry_after_s=2.0),
        OutcomeUnknown("no answer"),
        RuntimeError("a bug"),
    ]

    async def faulty(*args: Any) -> Any:
        raise faults.pop(0)

    monkeypatch.setattr(flow, "place", faulty)
    client = await trading.stream()
    told = []
    for number in range(3):
        await client.say(op="place", id=number, order=trading.order())
        told.append(await client.hear_answer(number))
    codes = [(one["code"], one["temporary"], one["retry_after_ms"]) for one in told]
    assert codes == [
        ("overloaded", True, 2000),
        ("outcome_unknown", True, None),
        ("internal_error", False, None),
    ]
    assert "bug" not in json.dumps(told)


async def test_orders_under_way_are_answered_before_the_server_drains(
    trading: Trader, monkeypatch: Any
) -> None:
    held, begun = asyncio.Event(), asyncio.Event()
    place = flow.place

    async def slow(*args: Any) -> Any:
        begun.set()
        await held.wait()
        return await place(*args)

    monkeypatch.setattr(flow, "place", slow)
    client = await trading.stream()
    await client.say(op="place", id=1, order=trading.order())
    await begun.wait()
    draining = asyncio.create_task(trading.site.streams.drain())
    await asyncio.sleep(0)
    held.set()
    assert (await client.hear())["status"] == 201
    assert (await client.hear())["op"] == "drain"
    assert await client.closed() == 4201
    await draining


async def test_an_answer_waits_for_the_venue_as_on_rest(trading: Trader) -> None:
    client = await trading.stream()
    await client.sub({"channel": "account", "account_id": trading.account_id})
    await client.hear_op("snap")
    orders = [trading.order(client_order_id="w-1"), trading.order(client_order_id="w-2")]
    await client.say(op="place", id=1, orders=orders, wait_s=30)
    ids = []
    while len(ids) < 2:
        entry = (await client.hear_op("delta"))["data"]
        if entry["kind"] == "order.accepted":
            ids.append(entry["data"]["accepted"]["id"])
    for order_id in ids:
        await trading.site.report({"id": order_id}, "new")
    results = (await client.hear_answer(1))["results"]
    assert [(one["status"], one["order"]["state"]) for one in results] == [(201, "new")] * 2
    await client.say(op="place", id=2, order=orders[0], wait_s=30)
    again = await client.hear_answer(2)
    assert again["status"] == 200 and again["replayed"] and again["order"]["state"] == "new"
    await client.say(op="cancel", id=3, order_id=ids[0], wait_s=30)
    while (await client.hear_op("delta"))["data"]["kind"] != "order.cancel_requested":
        pass
    await trading.site.report({"id": ids[0]}, "canceled")
    answer = await client.hear_answer(3)
    assert answer["status"] == 200 and answer["order"]["state"] == "canceled"
    await client.say(op="place", id=4, order=trading.order(), wait_s=0)
    assert (await client.hear_answer(4))["order"]["state"] == "pending_new"


async def test_who_waits_for_the_venue_is_answered_before_a_drain_and_forgotten_after_a_loss(
    trading: Trader, eventually: Any
) -> None:
    desk = trading.site.streams.orders
    lost = await trading.stream()
    await lost.say(op="place", id=1, order=trading.order(), wait_s=30)
    await eventually(lambda: len(desk.waits) == 1)
    lost.socket.transport.abort()
    await eventually(lambda: not desk.waits and not desk.in_flight)
    client = await trading.stream()
    await client.say(op="place", id=1, order=trading.order(), wait_s=30)
    await eventually(lambda: len(desk.waits) == 1)
    draining = asyncio.create_task(trading.site.streams.drain())
    answer = await client.hear()
    assert answer["status"] == 201 and answer["order"]["state"] == "pending_new"
    assert (await client.hear())["op"] == "drain"
    await draining
