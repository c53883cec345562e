"""A list's page costs as many SQL statements whatever its size.

The lists are found in the application: every GET route with a `limit`. One without a case here
fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from fastapi.routing import APIRoute

from tbot.auth import events
from tbot.auth import store as auth_store
from tbot.auth import users
from tbot.core import clock
from tbot.core.ids import new_id
from tbot.db.pool import transaction
from tbot.gateway import switches
from tbot.journal.commands import SYSTEM
from tbot.ledger import webhooks
from tbot.ledger.entries import Limits, OpenAccount
from tbot.ledger.payments_commands import RequestWithdrawal
from tbot.ledger.transfers import NewTransfer, create_transfers
from tbot.market import candle_store
from tbot.market.candles import Candle, Interval

from .conftest import Recorder

SMALL, LARGE = 2, 50
ITEMS = LARGE + 3

WITHOUT_SQL = {"/v1/instruments/{symbol}/trades"}
"""Lists that are answered from memory."""

ADMINISTRATORS = {
    "/v1/users", "/v1/users/{user_id}/security-events", "/v1/ledger/counters",
    "/v1/payments/approvals", "/v1/switches", "/v1/switches/{name}/turns",
}  # fmt: skip

CACHED = {"auth/store.py:session_lives", "ledger/members_store.py:member_access"}
"""What is asked again whenever a remembered answer's time is over, whatever is listed."""

type Fill = Callable[[Any, Any, str], Awaitable[str]]
"""Makes more items than a page takes; answers the list's address. Told of an account that has
traded."""


async def trading_account(site: Any, client: Any) -> str:
    """An account with orders of which each has a fill."""
    account = await site.account(client, USDT="100000")
    body = {
        "account_id": account["id"], "symbol": "BTC-USDT", "side": "buy", "type": "limit",
        "quantity": "0.1", "limit_price": "98",
    }  # fmt: skip
    answers = await asyncio.gather(*(client.post("/v1/orders", json=body) for _ in range(ITEMS)))
    for number, answer in enumerate(answers):
        await site.report(answer.json(), "filled", (f"t{number}", "98", "0.1"))
    account_id: str = account["id"]
    return account_id


async def cash_accounts(site: Any, amount: str = "1000") -> list[UUID]:
    """Two cash accounts of ann's, of which one has money."""
    owner = await site.pool.fetchval("SELECT id FROM users WHERE username = 'ann'")
    limits: Limits = site.orders.accounts.default_limits
    made = []
    for deposits in ({"USDT": Decimal(amount)}, {}):
        command = OpenAccount(new_id(), SYSTEM, new_id(), owner, "cash", None, limits, deposits)
        made.append((await site.committer.commit(command)).result.id)
    return made


async def accounts(site: Any, client: Any, _: str) -> str:
    await asyncio.gather(*(site.account(client) for _ in range(ITEMS)))
    return "/v1/accounts"


async def candles(site: Any, _client: Any, _account_id: str) -> str:
    made = [
        ("BTC-USDT", Candle(Interval.M1, n * 60_000, *[Decimal(1)] * 6, 1, n, n, True))  # type: ignore[call-arg]
        for n in range(ITEMS)
    ]
    async with site.pool.acquire() as connection:
        await candle_store.save(connection, "paper", made)
    return "/v1/instruments/BTC-USDT/candles"


async def orders(site: Any, client: Any, account_id: str) -> str:
    return f"/v1/orders?account_id={account_id}"


async def fills(site: Any, client: Any, account_id: str) -> str:
    return f"/v1/accounts/{account_id}/fills"


async def journal(site: Any, client: Any, account_id: str) -> str:
    return f"/v1/accounts/{account_id}/journal"


async def statement(site: Any, client: Any, account_id: str) -> str:
    return f"/v1/accounts/{account_id}/statement"


async def all_users(site: Any, client: Any, _: str) -> str:
    row = await site.pool.fetchrow("SELECT * FROM users WHERE username = 'ann'")
    await site.pool.executemany(
        "INSERT INTO users VALUES ($1, $2, $3, $4, $5, $6, $7)",
        [(new_id(), f"user{number}", *list(row)[2:]) for number in range(ITEMS)],
    )
    assert await users.admin_exists(site.pool)
    return "/v1/users"


async def counters(site: Any, client: Any, _: str) -> str:
    await site.pool.executemany(
        "INSERT INTO counters (name, asset, lane, amount) VALUES ($1, 'USDT', 0, 1)",
        [(f"outside:{number:03}",) for number in range(ITEMS)],
    )
    return "/v1/ledger/counters"


async def transfers(site: Any, client: Any, _: str) -> str:
    one, two = await cash_accounts(site)
    await asyncio.gather(
        *(
            site.committer.commit(
                create_transfers(
                    new_id(),
                    SYSTEM,
                    (NewTransfer(id=new_id(), source_id=one, target_id=two, asset="USDT",
                                 amount=Decimal(1)),),
                )
            )
            for _ in range(ITEMS)
        )
    )  # fmt: skip
    return "/v1/transfers"


async def withdrawals(site: Any) -> None:
    """Withdrawals of ann's; all of them need an approval."""
    one, _ = await cash_accounts(site)
    desk = site.payments
    rules = replace(
        desk.rules, approval_above={"*": Decimal(0)}, open_max=ITEMS, withdrawal_day_max={}
    )
    outcomes = await asyncio.gather(
        *(
            site.committer.commit(
                RequestWithdrawal(
                    id=new_id(), actor=SYSTEM, account_id=one, payment_id=new_id(), asset="USDT",
                    amount=Decimal(1), provider=desk.provider.name, rules=rules, destination="there",
                )
            )
            for _ in range(ITEMS)
        )
    )  # fmt: skip
    assert {outcome.result.state for outcome in outcomes} == {"awaiting_approval"}


async def payments(site: Any, client: Any, _: str) -> str:
    await withdrawals(site)
    return "/v1/payments"


async def approvals(site: Any, client: Any, _: str) -> str:
    await withdrawals(site)
    return "/v1/payments/approvals"


async def hooks(site: Any, client: Any) -> list[webhooks.Webhook]:
    account_id = UUID((await site.account(client))["id"])
    now = clock.utc_now()
    settings = site.settings.webhooks.model_copy(
        update={"per_user_max": 10 * ITEMS, "subscriptions_max": 10 * ITEMS}
    )
    made = []
    async with site.pool.acquire() as connection:
        owner = await connection.fetchval("SELECT owner_id FROM accounts WHERE id = $1", account_id)
        for _ in range(ITEMS):
            new = webhooks.Webhook(
                new_id(), owner, account_id, "https://example.com/", (), bytes(24), True, None,
                0, bytes(32), 0, 1, now, now,
            )  # fmt: skip
            hook = await webhooks.create(connection, new, settings)
            assert isinstance(hook, webhooks.Webhook)
            made.append(hook)
    return made


async def all_webhooks(site: Any, client: Any, _: str) -> str:
    await hooks(site, client)
    return "/v1/webhooks"


async def deliveries_of(site: Any, client: Any, state: str) -> str:
    hook, *_ = await hooks(site, client)
    at = clock.utc_now() - timedelta(seconds=1)
    async with site.pool.acquire() as connection:
        for seq in range(1, ITEMS + 1):
            what = webhooks.Delivery(hook.id, seq, "order.filled", state, 1, 500, None, at)
            await webhooks.settle(connection, hook, what, bytes(32), ITEMS)
    return f"/v1/webhooks/{hook.id}"


async def deliveries(site: Any, client: Any, _: str) -> str:
    return await deliveries_of(site, client, "delivered") + "/deliveries"


async def dead_letters(site: Any, client: Any, _: str) -> str:
    return await deliveries_of(site, client, "dead") + "/dead-letters"


async def sessions(site: Any, client: Any, _: str) -> str:
    user_id = UUID((await client.get("/v1/me")).json()["id"])
    async with site.pool.acquire() as connection:
        for _ in range(ITEMS):
            await auth_store.insert_session(connection, new_id(), user_id, "", 3600)
    return "/v1/sessions"


async def security_events(site: Any, client: Any, _: str) -> str:
    user_id = UUID((await client.get("/v1/me")).json()["id"])
    async with transaction(site.pool) as connection:
        for _ in range(ITEMS):
            await events.record(connection, user_id, events.LOGIN, SYSTEM)
    return "/v1/me/security-events"


async def users_security_events(site: Any, client: Any, _: str) -> str:
    await security_events(site, client, _)
    return f"/v1/users/{(await client.get('/v1/me')).json()['id']}/security-events"


async def all_switches(site: Any, client: Any, _: str) -> str:
    async with transaction(site.pool) as connection:
        for number in range(ITEMS):
            await switches.halt(connection, f"venue:v{number}", "a look", SYSTEM)
    return "/v1/switches"


async def turns(site: Any, client: Any, _: str) -> str:
    async with transaction(site.pool) as connection:
        for number in range(ITEMS):
            await switches.halt(connection, "withdrawals", f"look {number}", SYSTEM)
        await switches.release(connection, "withdrawals", "done", SYSTEM)
    return "/v1/switches/withdrawals/turns"


CASES: dict[str, Fill] = {
    "/v1/instruments/{symbol}/candles": candles,
    "/v1/accounts": accounts,
    "/v1/accounts/{account_id}/fills": fills,
    "/v1/accounts/{account_id}/journal": journal,
    "/v1/accounts/{account_id}/statement": statement,
    "/v1/ledger/counters": counters,
    "/v1/me/security-events": security_events,
    "/v1/orders": orders,
    "/v1/payments": payments,
    "/v1/payments/approvals": approvals,
    "/v1/sessions": sessions,
    "/v1/switches": all_switches,
    "/v1/switches/{name}/turns": turns,
    "/v1/transfers": transfers,
    "/v1/users": all_users,
    "/v1/users/{user_id}/security-events": users_security_events,
    "/v1/webhooks": all_webhooks,
    "/v1/webhooks/{webhook_id}/dead-letters": dead_letters,
    "/v1/webhooks/{webhook_id}/deliveries": deliveries,
}


def lists(app: Any) -> set[str]:
    """The paths of every list: a GET route with a limit."""
    return {
        route.path
        for route in app.routes
        if isinstance(route, APIRoute)
        and "GET" in (route.methods or ())
        and any(field.alias == "limit" for field in route.dependant.query_params)
    }


def test_every_list_has_a_case(site: Any) -> None:
    found = lists(site.app)
    assert len(found) > 8
    assert found == CASES.keys() | WITHOUT_SQL


async def test_a_larger_page_costs_no_more_statements(recorder: Recorder, site: Any) -> None:
    async with site.client("ann") as ann, site.client("root") as root:
        account_id = await trading_account(site, ann)
        for path, fill in CASES.items():
            url = await fill(site, ann, account_id)
            client = root if path in ADMINISTRATORS else ann
            counts = []
            for size in (SMALL, SMALL, LARGE):  # the first fills the caches
                recorder.clear()
                answer = await client.get(f"{url}{'&' if '?' in url else '?'}limit={size}")
                assert answer.status_code == 200, (path, answer.text)
                page = answer.json()
                assert len(page.get("items", page.get("entries"))) == size, path
                asked = [one.function for one in recorder.asking if one.function not in CACHED]
                counts.append(len(asked))
            assert counts[1] == counts[2] > 0, (path, counts, asked)


async def test_lists_from_memory_ask_nothing(recorder: Recorder, site: Any) -> None:
    async with site.client("ann") as client:
        await client.get("/v1/instruments/BTC-USDT/trades")
        recorder.clear()
        answer = await client.get("/v1/instruments/BTC-USDT/trades", params={"limit": LARGE})
        assert answer.status_code == 200
    assert not recorder.asking
