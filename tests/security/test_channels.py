"""Every channel and every order message against everybody, over real sockets.

Routes have their matrix in `tests/integration/web/test_matrix.py`. A channel that declares no scope,
or that this does not know how to wish for, fails.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import pytest_asyncio

from streamclient import dial
from tbot.auth.scopes import Role, Scope
from tbot.market.channels import CHANNELS

in_session = pytest.mark.asyncio(loop_scope="session")
OK = None
WHO = ("wrong scope", "stranger to it", "viewer", "trader", "co-owner", "owner", "admin", "auditor")
MARKET: dict[str, str | None] = {**dict.fromkeys(WHO, OK), "wrong scope": "insufficient_scope"}
PRIVATE = {**MARKET, "stranger to it": "not_found", "admin": "not_found"}
ORDERS = {
    "wrong scope": "insufficient_scope",
    "stranger to it": "not_found",
    "viewer": "insufficient_access",
    "trader": OK,
    "co-owner": OK,
    "owner": OK,
    "admin": "not_found",
    "auditor": "insufficient_scope",
}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def people(world: Any) -> dict[str, Any]:
    """One of each, and an account that is shared with those who may."""
    made = {
        "owner": await world.person(),
        "wrong scope": await world.person(scope="security:read"),
        "stranger to it": await world.person(),
        "viewer": await world.person(),
        "trader": await world.person(),
        "co-owner": await world.person(),
        "admin": await world.person(Role.ADMIN),
        "auditor": await world.person(Role.AUDITOR),
    }
    account = (await world.site.account(made["owner"].http, USDT="100000"))["id"]
    for name, role in (("viewer", "viewer"), ("trader", "trader"), ("co-owner", "owner")):
        path = f"/v1/accounts/{account}/members/{made[name].id}"
        answer = await made["owner"].http.put(path, json={"role": role})
        assert answer.is_success, answer.text
    made["account"] = account
    assert set(WHO) == set(made) - {"account"}
    return made


def test_every_channel_declares_a_scope() -> None:
    for channel in CHANNELS.values():
        assert channel.scope in set(Scope), f"{channel.name} declares no scope"


@in_session
async def test_channels(people: dict[str, Any]) -> None:
    wrong = []
    for who in WHO:
        stream = await people[who].stream()
        for number, channel in enumerate(CHANNELS.values()):
            wish = {"channel": channel.name}
            wish |= {"account_id": people["account"]} if channel.private else {"symbol": "BTC-USDT"}
            (answer,) = await stream.sub(wish, id=number)
            found = answer.get("error", {}).get("code")
            if found == "unavailable":
                found = OK  # let in: this server just has no candles
            wanted = (PRIVATE if channel.private else MARKET)[who]
            if found != wanted:
                wrong.append((channel.name, who, found, wanted))
        await stream.socket.close()
    assert not wrong


@in_session
async def test_orders_on_the_stream(people: dict[str, Any]) -> None:
    order = {
        "account_id": people["account"],
        "symbol": "BTC-USDT",
        "side": "buy",
        "type": "limit",
        "quantity": "0.1",
        "limit_price": "99",
    }
    placed = await people["owner"].http.post("/v1/orders", json=order)
    order_id = placed.json()["id"]
    wrong = []
    for who in WHO:
        stream = await people[who].stream()
        for number, message in enumerate(
            (
                {"op": "place", "order": order},
                {"op": "cancel", "order_id": order_id},
                {"op": "cancel_all", "account_id": people["account"]},
            )
        ):
            await stream.say(**message, id=number)
            answer = await stream.hear_answer(number)
            if answer.get("code") != ORDERS[who]:
                wrong.append((message["op"], who, answer, ORDERS[who]))
        await stream.socket.close()
    assert not wrong


@in_session
async def test_nobody_gets_anything_without_a_token(world: Any, people: dict[str, Any]) -> None:
    wishes = [{"channel": name, "symbol": "BTC-USDT"} for name in CHANNELS]
    for message in (
        {"op": "sub", "channels": wishes},
        {"op": "cancel_all", "account_id": people["account"]},
        {"op": "ping"},
    ):
        async with dial(world.url) as socket:
            await socket.recv()
            await socket.send(json.dumps(message))
            assert json.loads(await socket.recv())["code"] == "unauthenticated"
            await socket.wait_closed()
            assert socket.close_code == 4001
    client = world.client()
    answer = await client.get("/v1/events", params={"channels": "trades:BTC-USDT"})
    assert answer.status_code == 401
