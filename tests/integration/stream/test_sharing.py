"""The private channel of a shared account, and the stream with an API key."""

from __future__ import annotations

from typing import Any

from tbot.auth import self_service, session_store
from tbot.auth.flow import Peer, authenticate
from tbot.auth.scopes import Role, Scope
from tbot.auth.users import create_user
from tbot.core.ids import new_id
from tbot.db.pool import transaction
from tbot.journal.commands import Actor
from tbot.ledger.members import MemberRole, ShareAccount

PASSWORD = "correct horse battery staple"


async def share(stack: Any, account_id: Any, role: MemberRole | None, name: str = "bob") -> None:
    by = Actor("user", stack.users["alice"], "a session")
    command = ShareAccount(new_id(), by, account_id, stack.users[name], role)
    await stack.desk.committer.commit(command)


async def test_attack_48_a_member_listens_as_long_as_they_are_one(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    await stack.user("bob")
    wish = {"channel": "account", "account_id": str(account_id)}
    client = await stack.client("bob")
    (refused,) = await client.sub(wish)
    assert refused["error"]["code"] == "not_found"
    await share(stack, account_id, MemberRole.VIEWER)
    trades, mine = await client.sub({"channel": "trades", "symbol": "BTC-USDT"}, wish)
    assert (await client.hear_op("snap"))["ch"] in (mine["ch"], trades["ch"])
    owner = await stack.client("alice")
    await owner.sub(wish)
    await share(stack, account_id, None)
    ended = await client.hear_op("error")
    assert (ended["code"], ended["ch"]) == ("access_ended", mine["ch"])
    (refused,) = await client.sub(wish, id=2)
    assert refused["error"]["code"] == "not_found"
    await owner.say(op="ping", id=9)
    assert (await owner.hear_op("pong"))["id"] == 9
    assert stack.streams.hub.subscribers, "the connections live on"
    await stack.desk.verified()


async def test_an_auditor_listens_to_everything(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    made = await create_user(stack.pool, stack.auth.passwords, "audrey", PASSWORD, Role.AUDITOR)
    stack.users["audrey"] = made.id
    stack.tokens["audrey"] = await stack.login("audrey")
    client = await stack.client("audrey")
    (mine,) = await client.sub({"channel": "account", "account_id": str(account_id)})
    assert "error" not in mine
    await stack.streams._check_sharing()
    await client.say(op="ping", id=9)
    assert (await client.hear_op("pong", "error"))["op"] == "pong"


async def test_a_key_opens_the_stream_and_its_end_closes_it(stack: Any) -> None:
    account_id = await stack.account(USDT="1000")
    principal = await authenticate(stack.auth, stack.tokens["alice"])
    keys = {}
    for name, networks in (("good", ("127.0.0.0/8",)), ("away", ("192.0.2.0/24",))):
        keys[name] = await self_service.create_key(
            stack.auth,
            principal,
            Peer("127.0.0.1"),
            name,
            frozenset({Scope.ACCOUNT_READ}),
            networks,
            3600,
        )
    stack.tokens["good"] = keys["good"][1]
    client = await stack.client("good")
    (mine,) = await client.sub({"channel": "account", "account_id": str(account_id)})
    assert "error" not in mine
    (refused,) = await client.sub({"channel": "trades", "symbol": "BTC-USDT"})
    assert refused["error"]["code"] == "insufficient_scope"
    away = stack.dial()
    async with away as socket:
        await socket.recv()
        await socket.send('{"op":"auth","token":"' + keys["away"][1] + '"}')
        assert "invalid_token" in await socket.recv()
    await self_service.revoke_key(stack.auth, principal, Peer(), keys["good"][0].id)
    assert await client.closed() == 4003


async def test_attack_17_ending_a_session_closes_its_streams(stack: Any) -> None:
    client = await stack.client("alice")
    principal = await authenticate(stack.auth, stack.tokens["alice"])
    await self_service.end_session(stack.auth, principal, Peer(), principal.session_id)
    assert await client.closed() == 4003
    async with transaction(stack.pool) as connection:
        assert await session_store.listed(connection, principal.user_id, None, 10) == []
