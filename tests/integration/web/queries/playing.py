"""Puts the program through its paces, so that it sends every statement it has."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import httpx

from authenticator import Phone, unuse
from tbot.auth import factors
from tbot.auth import flow as auth_flow
from tbot.auth import store as auth_store
from tbot.auth import throttle, tickets, users
from tbot.auth.flow import Principal
from tbot.auth.scopes import Role
from tbot.auth.state import touch
from tbot.core import clock
from tbot.core.bus import Bus
from tbot.core.ids import new_id
from tbot.core.refusals import Refused
from tbot.core.settings import AuthSettings, StreamSettings
from tbot.gateway import gateway, switches
from tbot.journal import once, session
from tbot.journal.batch import Batch
from tbot.journal.commands import SYSTEM, Committed
from tbot.journal.cursors import Journal, Place
from tbot.ledger import (
    marks,
    members_store,
    payments_store,
    transfers_flow,
    transfers_store,
    webhooks,
)
from tbot.ledger.assets import save_assets
from tbot.ledger.importing import check_file, import_file
from tbot.ledger.payments_flow import apply_report
from tbot.ledger.provider import Order, Report, Said
from tbot.ledger.transfers import NewTransfer
from tbot.market import candle_store
from tbot.market.candles import Candle, Interval
from tbot.orders import store as orders_store
from tbot.web import ownership, stream_account
from tbot.web.checks import process_checks


async def trade(site: Any, client: Any) -> dict[str, Any]:
    """Everything that HTTP can do to a trading account."""
    account = await site.account(client, USDT="100000", BTC="10")
    url = f"/v1/accounts/{account['id']}"
    orders = []
    for number in range(4):
        answer = await client.post(
            "/v1/orders",
            json={
                "account_id": account["id"],
                "symbol": "BTC-USDT",
                "side": "buy",
                "type": "limit",
                "quantity": "0.1",
                "limit_price": "98",
                "client_order_id": f"mine-{number}",
            },
            headers={"Idempotency-Key": f'"{new_id()}"'},
        )
        assert answer.status_code == 201, answer.text
        orders.append(answer.json())
    await site.report(orders[0], "filled", ("t1", "98", "0.1"))
    # A final order named again: read back from its table with its trades.
    await site.report(orders[0], "filled", ("t1", "98", "0.1"))
    await client.delete(f"/v1/orders/{orders[1]['id']}")
    await client.delete("/v1/orders", params={"account_id": account["id"]})
    for path in (
        "/v1/orders", f"/v1/orders/{orders[0]['id']}",
        f"/v1/orders?account_id={account['id']}&symbol=BTC-USDT&side=buy&limit=1",
        "/v1/orders?open=true&limit=1", "/v1/orders?state=filled", "/v1/accounts?limit=1",
        url, f"{url}/balances", f"{url}/balances?at={account['created_at']}", f"{url}/positions",
        f"{url}/equity", f"{url}/fills", f"{url}/fills?symbol=BTC-USDT", f"{url}/journal",
        f"{url}/statement", f"{url}/statement?from={account['created_at']}&asset=BTC&limit=1",
    ):  # fmt: skip
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        while "next" in answer.links:
            answer = await client.get(answer.links["next"]["url"])
            assert answer.status_code == 200, answer.text
    for path in ("statement", "fills", "journal"):
        answer = await client.get(f"{url}/{path}", headers={"Accept": "text/csv"})
        assert answer.status_code == 200
    return account


async def move_cash(site: Any, client: Any) -> None:
    """Everything that can happen to cash: payments and transfers, named again when they are final."""
    opened = [
        await client.post("/v1/accounts", json={"name": name, "kind": "cash"})
        for name in ("one", "two")
    ]
    one, two = (UUID(answer.json()["id"]) for answer in opened)
    body = {"account_id": str(one), "asset": "USDT", "amount": "1000"}
    deposit = (await client.post("/v1/deposits", json=body)).json()
    for reference in ("its", "another"):
        report = Report(UUID(deposit["id"]), Said.SUCCEEDED, "USDT", Decimal(1000), reference)
        await apply_report(site.payments, report)
    for path in (
        f"/v1/payments/{deposit['id']}", "/v1/payments?kind=deposit&state=succeeded",
        f"/v1/payments?account_id={one}&limit=1", f"/v1/accounts/{one}/statement",
    ):  # fmt: skip
        assert (await client.get(path)).status_code == 200
    body = {"account_id": str(one), "asset": "USDT", "amount": "5", "destination": "there"}
    assert (await client.post("/v1/withdrawals", json=body)).status_code == 201
    with tempfile.NamedTemporaryFile("w", suffix=".csv") as file:
        file.write("source_account_id,target_account_id,asset,amount,key\n")
        file.write(f"{one},{two},USDT,1,\n{one},{two},USDT,1,a key\n")
        file.flush()
        checked = await check_file(site.pool, Path(file.name))
        await import_file(site.pool, site.committer, SYSTEM, Path(file.name), checked)
    desk = site.orders.accounts
    for pending in (False, True, True):
        new = NewTransfer(
            id=new_id(),
            source_id=one,
            target_id=two,
            asset="USDT",
            amount=Decimal(5),
            pending=pending,
            expires_in_s=0.000001,
        )
        assert not isinstance(await transfers_flow.create(desk, SYSTEM, new), Refused)
    small = [
        NewTransfer(id=new_id(), source_id=one, target_id=two, asset="USDT", amount=Decimal(1))
        for _ in range(marks.EVERY)  # so that a mark is written
    ]
    await asyncio.gather(*(transfers_flow.create(desk, SYSTEM, new) for new in small))
    async with site.pool.acquire() as connection:
        *_, first = await transfers_store.list_transfers(connection, [one, two])
        await transfers_store.get_transfer(connection, first.id)
        await transfers_store.list_sent(connection, one)
    assert not isinstance(await transfers_flow.reverse(desk, SYSTEM, first.id), Refused)
    await transfers_flow.Expiry(site.pool, site.committer, site.settings.ledger).sweep()


async def ask_webhooks(site: Any, account_id: UUID) -> None:
    """What subscriptions and their deliveries ask; the deliveries stay, and one subscription."""
    now = clock.utc_now()
    async with site.pool.acquire() as connection:
        owner = await connection.fetchval("SELECT owner_id FROM accounts WHERE id = $1", account_id)
        seq, digest = await webhooks.head(connection, account_id)
        hooks = []
        for _ in range(2):
            new = webhooks.Webhook(
                new_id(), owner, account_id, "https://example.com/", (), bytes(24), True, None,
                0, digest, 0, 1, now, now,
            )  # fmt: skip
            made = await webhooks.create(connection, new, site.settings.webhooks)
            assert isinstance(made, webhooks.Webhook)
            hooks.append(await webhooks.change(connection, made.id, enabled=True))
        hook = await webhooks.get(connection, hooks[0].id, owner)
        assert await webhooks.place(connection, account_id, seq) == digest
        await webhooks.list_of(connection, owner, None, 10)
        await webhooks.forget_old_secrets(connection)
        await webhooks.list_enabled(connection, 10)
        for number, state in ((1, "retrying"), (2, "dead"), (3, "delivered")):
            what = webhooks.Delivery(hook.id, number, "order.filled", state, 1, 500, "no", now, now)
            if state == "retrying":
                await webhooks.postpone(connection, hook, what)
                assert await webhooks.retrying(connection, hook.id, number)
            else:
                await webhooks.settle(connection, hook, what, digest, 1)
        assert await webhooks.advance(connection, hook, seq, digest)
        for dead in (False, True):
            assert await webhooks.list_deliveries(connection, hook.id, dead=dead)
        hook = await webhooks.replay(connection, hook, 0, digest)
        hook = await webhooks.rotate(connection, hook.id, bytes(32), timedelta(hours=1))
        await webhooks.disable(connection, hook, "dead letters")
        await webhooks.delete(connection, hooks[1])


async def play_the_bank(site: Any) -> None:
    """What the simulated provider asks its books, when its callbacks are taken and when not."""
    order = Order(new_id(), "USDT", Decimal(1), "there")
    await site.provider.submit(order)
    assert await site.provider.look_up(order.payment_id)
    for status in (500, 204):
        await site.pool.execute("UPDATE simulated_payments SET due_at = now()")
        deaf = httpx.MockTransport(lambda _, status=status: httpx.Response(status))  # type: ignore[misc]
        async with httpx.AsyncClient(transport=deaf, base_url="http://test") as client:
            assert await site.provider._settle(client) == 0
    assert await site.provider._settle(client) > 0


async def turn_switches(site: Any, root: Any) -> None:
    """What switches ask; nothing is halted afterwards."""
    for name in ("trading", "venue:paper"):
        path, body = f"/v1/switches/{name}", {"reason": "a look"}
        for action in ("halt", "resume"):
            headers = {"If-Match": "*"}
            assert (await root.post(f"{path}/{action}", json=body, headers=headers)).is_success
        for asked in ("/v1/switches?limit=1", path, f"{path}/turns?limit=1"):
            assert (await root.get(asked)).status_code == 200
    assert (await root.get("/v1/switches/transfers")).status_code == 200
    async with site.pool.acquire() as connection:
        assert len(await switches.current(connection)) == 2


async def play(site: Any, new_site: Any) -> dict[str, Any]:
    """Everything that is asked of the database while T-Bot runs; what else is asked directly."""
    async with site.client("ann") as client, site.client("root") as root:
        account = await trade(site, client)
        await move_cash(site, client)
        await play_the_bank(site)
        shown, _kept = [
            (await client.post("/v1/stream/tickets", json={})).json()["ticket"] for _ in range(2)
        ]
        await tickets.redeem(site.auth, shown)
        await root.get("/v1/users?limit=1")
        await root.get("/v1/ledger/counters")
        await root.get(f"/v1/users/{account['id']}")
        listed = (await root.get("/v1/users")).json()["items"]
        admin = next(one["id"] for one in listed if one["role"] == "admin")
        assert (await root.get(f"/v1/users/{admin}/security-events")).status_code == 200
        last = await root.patch(
            f"/v1/users/{admin}", json={"role": "viewer"}, headers={"If-Match": "*"}
        )
        assert last.json()["code"] == "last_administrator"
        await root.post(
            "/v1/users",
            json={"username": "carl", "password": "correct horse battery staple", "role": "trader"},
            headers={"Idempotency-Key": '"a-new-user"'},
        )
        await turn_switches(site, root)
        await show_who_one_is(site, client, account)
    account_id = UUID(account["id"])
    grant = await auth_flow.login(site.auth, "bob", "correct horse battery staple")
    grant = await auth_flow.refresh(site.auth, grant.refresh_token)
    await auth_flow.revoke(site.auth, grant.refresh_token)
    await users.set_password(site.pool, site.auth.passwords, "bob", "another battery staple")
    await users.set_active(site.pool, "bob", False)
    await users.set_role(site.pool, "bob", Role.VIEWER)
    await users.reset_factor(site.pool, "bob")
    await users.log_out(site.pool, "bob")
    async with site.pool.acquire() as connection:
        await ask_stores(connection, account_id)
    ready = process_checks(site.pool, site.committer, None, None, lambda: True)
    assert await ready["database"]() is None
    await save_assets(site.pool, {"USDT": 8})
    await ask_after_a_lost_commit(site)
    await look_for_unsettled(site)
    await ask_webhooks(site, account_id)
    await ask_streams(site, account_id)
    # Another process knows nothing yet: its committer loads what this one has in memory.
    other = await new_site()
    async with other.client("ann") as client:
        assert (await client.get(f"/v1/accounts/{account_id}")).status_code == 200
        answer = await client.post(
            "/v1/orders",
            json={
                "account_id": str(account_id), "symbol": "BTC-USDT", "side": "sell",
                "type": "limit", "quantity": "0.1", "limit_price": "101",
                "client_order_id": "mine-0",
            },
        )  # fmt: skip
        assert answer.status_code == 422, "the id names another order"
    return account


async def show_who_one_is(site: Any, client: Any, account: dict[str, Any]) -> None:
    """Sessions, keys, second factors and sharing: what users do about themselves."""
    made = [
        await client.post("/v1/api-keys", json={"name": name, "scopes": ["account:read"]})
        for name in ("one", "two")
    ]
    bob = await site.pool.fetchval("SELECT id FROM users WHERE username = 'bob'")
    members = f"/v1/accounts/{account['id']}/members"
    for role in ("viewer", "trader"):
        assert (await client.put(f"{members}/{bob}", json={"role": role})).is_success
    async with site.client("bob") as other:
        for path in (f"/v1/accounts/{account['id']}", "/v1/accounts?shared=true", members):
            assert (await other.get(path)).status_code == 200
        assert (await other.delete(f"{members}/{bob}")).status_code == 204
    assert (await client.put(f"{members}/{bob}", json={"role": "owner"})).is_success
    async with site.client() as program:
        program.headers["X-API-Key"] = made[0].json()["key"]
        assert (await program.get("/v1/me")).status_code == 200
    proof = {"password": "correct horse battery staple"}
    assert (await client.post("/v1/token/step-up", json=proof)).status_code == 200
    path = f"/v1/api-keys/{made[1].json()['id']}"
    assert (await client.get(path)).status_code == 200
    assert (await client.delete(path)).status_code == 204
    await site.user("fay")
    async with site.client("fay") as fay:
        await show_a_second_factor(site, fay)
    # Somebody's factor goes, so that the table keeps another's.
    async with site.client("root") as root:
        begun = (await root.post("/v1/me/totp")).json()
        code = Phone(begun["secret"]).code()
        assert (await root.post("/v1/me/totp/confirm", json={"code": code})).status_code == 200
        assert (await root.delete("/v1/me/totp")).status_code == 204
        await root.post("/v1/api-keys", json={"name": "k", "scopes": ["admin"]})
        body = {"new_password": "another staple battery", "revoke_keys": True}
        body["current_password"] = "correct horse battery staple"
        assert (await root.post("/v1/me/password", json=body)).status_code == 200


async def show_a_second_factor(site: Any, client: Any) -> None:
    """Logins in two steps, steps up, and the sessions of it all."""
    phone = Phone((await client.post("/v1/me/totp")).json()["secret"])
    first = await client.post("/v1/me/totp/confirm", json={"code": phone.code()})
    await unuse(site.pool)
    recovery = first.json()["recovery_codes"]
    form = {"username": "fay", "password": "correct horse battery staple"}
    for code in (phone.code(), *phone.wrong(1), recovery[0]):
        waiting = (await client.post("/v1/token", data=form)).json()["mfa_token"]
        await client.post("/v1/token/mfa", json={"mfa_token": waiting, "code": code})
    await client.post("/v1/token", data={**form, "password": "wrong"})
    await unuse(site.pool)
    proof = {"code": phone.code()}
    assert (await client.post("/v1/token/step-up", json=proof)).status_code == 200
    assert (await client.post("/v1/me/totp/recovery-codes")).status_code == 200
    for path in ("/v1/sessions?limit=1", "/v1/me/totp", "/v1/api-keys", "/v1/me/security-events"):
        assert (await client.get(path)).status_code == 200
    listed = (await client.get("/v1/sessions")).json()["items"]
    ended = next(one["id"] for one in listed if not one["current"])
    for path in (f"/v1/sessions/{ended}", "/v1/sessions?keep_current=true"):
        assert (await client.delete(path)).status_code == 204
    await touch(site.auth)
    await client.post("/v1/token", data=form)  # one that waits
    assert (await client.post("/v1/token/step-up", json={"code": recovery[1]})).status_code == 401


async def ask_stores(connection: Any, account_id: UUID) -> None:
    """What no request asks: the gateway's, the sweepers' and the dispatchers' questions."""
    now = clock.utc_now()
    for order in await orders_store.list_venue_open(connection, "paper"):
        await orders_store.placed_under(connection, order)
    await orders_store.find_external(connection, account_id)
    await orders_store.load_instruments(connection, "paper")
    await marks.balances_after(connection, account_id, 3)
    await auth_store.sweep_sessions(connection, 60)
    await factors.sweep_challenges(connection)
    await throttle.sweep(connection, AuthSettings())
    await auth_store.living_sessions(connection, [account_id])
    await auth_store.delete_retired_keys(connection)
    await once.claim(connection, new_id(), bytes(16))
    await once.clean(connection, now - timedelta(days=3), 100)
    await transfers_store.list_overdue(connection, now, 100)
    await payments_store.list_approvals(connection)
    await payments_store.list_due(connection, [], 100)
    await payments_store.list_silent(connection, now, [], 100)
    await payments_store.list_expired(connection, now, 100)
    await ask_candles(connection)


async def ask_candles(connection: Any) -> None:
    """What pages of candles and their recorder ask."""
    candles = [
        Candle(Interval.M1, start_ms, *[Decimal(1)] * 6, 1, None, None, True)  # type: ignore[call-arg]
        for start_ms in range(0, 6_000_000, 60_000)
    ]
    await candle_store.save(connection, "paper", [("BTC-USDT", one) for one in candles])
    now, where = clock.utc_now(), ("paper", "BTC-USDT", Interval.M1)
    for begin, end, newest_first in ((None, None, True), (clock.from_ms(0), now, False)):
        await candle_store.page(connection, *where, begin, end, 10, newest_first=newest_first)
    await candle_store.newest(connection, "paper", "BTC-USDT")
    await candle_store.prune(connection, *where, clock.from_ms(120_000), 1)
    wanted = candle_store.Gap("BTC-USDT", Interval.M1, 0, 60_000)
    await candle_store.save_gaps(connection, "paper", [wanted])
    (gap,) = await candle_store.gaps(connection, "paper")
    for begin in (None, clock.from_ms(0)):
        until = clock.from_ms(60_000)
        assert not await candle_store.is_settled(connection, *where, begin, until)
    await candle_store.close_gap(connection, gap)


async def ask_after_a_lost_commit(site: Any) -> None:
    """What a committer asks that does not know whether its COMMIT landed."""
    durable: list[Committed] = []
    site.committer.listen(durable.extend)
    async with site.client("ann") as client:
        await site.account(client)
    batch = Batch([])
    batch.entries += durable[-1:]
    async with site.pool.acquire() as connection:
        await session.end_session(connection, "0 0", 0.1)
        assert await batch.landed(connection)


async def look_for_unsettled(site: Any) -> None:
    """What a gateway asks when it is told of orders."""
    parts = SimpleNamespace(pool=site.pool, venue=SimpleNamespace(name="paper"))
    taken: list[Any] = []

    def take(order: Any, **_: Any) -> None:
        taken.append(order)

    epoch = SimpleNamespace(_parts=parts, orders={}, _take=take)
    await gateway._Epoch._look(epoch)  # type: ignore[arg-type]
    assert taken


async def ask_streams(site: Any, account_id: UUID) -> None:
    """What private streams ask."""
    owner = await site.pool.fetchval("SELECT owner_id FROM accounts WHERE id = $1", account_id)
    principal = Principal(owner, owner, frozenset(), 0)
    assert await ownership.may_listen(site.streams.permissions, principal, account_id)
    async with site.pool.acquire() as connection:
        assert await members_store.still_members(connection, [(account_id, owner)])
    place, _ = await stream_account.read_snapshot(site.pool, account_id)
    journal = Journal(site.pool, Bus(), StreamSettings())
    assert await journal.find(account_id, place.seq, place.prefix)
    cursor = journal.open(account_id, Place(0, b""))
    try:
        await journal.page(account_id, cursor.place)
        await journal.head(account_id)
        await journal.sweep()
    finally:
        cursor.close()
        await journal.stop()
