"""Every entry names who did it: over every route that writes to the journal."""

from __future__ import annotations

import ast
import base64
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

import tbot
from tbot.auth import totp
from tbot.auth.flow import login
from tbot.auth.scopes import Role
from tbot.web.routes import StrictRoute

PASSWORD = "correct horse battery staple"

# Routes whose effects are in tables of their own, or that nobody is logged in for.
BESIDE_THE_JOURNAL = {
    ("POST", "/v1/callbacks/{provider}"),  # entries by the provider: see test_callbacks
    ("POST", "/v1/stream/tickets"),
    ("POST", "/v1/me/totp"),  # nothing is in force yet
    ("POST", "/v1/token"),
    ("POST", "/v1/token/mfa"),
    ("POST", "/v1/token/step-up"),
    ("POST", "/v1/token/refresh"),
    ("POST", "/v1/token/revoke"),
    ("POST", "/v1/switches/{name}/halt"),  # rows of their own: see test_switches
    ("POST", "/v1/switches/{name}/resume"),
    ("POST", "/v1/webhooks"),
    ("PATCH", "/v1/webhooks/{webhook_id}"),
    ("DELETE", "/v1/webhooks/{webhook_id}"),
    ("POST", "/v1/webhooks/{webhook_id}/replay"),
    ("POST", "/v1/webhooks/{webhook_id}/rotate-secret"),
}


Send = Callable[..., Awaitable[Any]]
"""Takes method, path and body of a request that has to succeed; gives its JSON."""


class Traced:
    """A user's client that notes which route took a request, and under which request id."""

    def __init__(self, site: Any, client: httpx.AsyncClient, taken: dict[str, Any]) -> None:
        self._client = client
        self._taken = taken
        self._routes = [r for r in site.app.router.routes if isinstance(r, StrictRoute)]

    async def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that has to succeed; its JSON."""
        answer = await self._client.request(method, path, json=body, headers={"If-Match": "*"})
        assert answer.is_success, answer.text
        (route,) = [
            r
            for r in self._routes
            if method in (r.methods or ()) and r.path_regex.fullmatch(path.partition("?")[0])
        ]
        self._taken[answer.headers["x-request-id"]] = (method, route.path)
        return answer.json() if answer.content else None


async def drive(send: Send, approve: Send, site: Any) -> None:
    """One successful request to every route that writes to the journal."""
    trading = await send("POST", "/v1/accounts", {"name": "a", "starting_balance": {"USDT": "900"}})
    account = trading["id"]
    await approve("PATCH", f"/v1/accounts/{account}", {"limits": {"max_open_orders": 9}})
    order = {"account_id": account, "symbol": "BTC-USDT", "side": "buy", "type": "limit"}
    order |= {"limit_price": "99", "quantity": "0.1"}
    placed = await send("POST", "/v1/orders", order)
    await site.report(placed, "new")
    await send("DELETE", f"/v1/orders/{placed['id']}")
    await site.report(await send("POST", "/v1/orders", order), "new")
    await send("DELETE", f"/v1/orders?account_id={account}")

    first = await site.cash_of("ann", USDT="100000")
    second = (await send("POST", "/v1/accounts", {"name": "c", "kind": "cash"}))["id"]
    transfer = {"source_account_id": first, "target_account_id": second}
    transfer |= {"asset": "USDT", "amount": "5"}
    made = await send("POST", "/v1/transfers", transfer)
    await send("POST", f"/v1/transfers/{made['id']}/reverse")
    await send("POST", "/v1/transfers/linked", {"transfers": [transfer, transfer]})
    await send("POST", "/v1/transfers/bulk", {"transfers": [transfer, transfer]})
    for action in ("post", "void"):
        held = await send("POST", "/v1/transfers", {**transfer, "pending": True})
        await send("POST", f"/v1/transfers/{held['id']}/{action}")

    payment = {"account_id": first, "asset": "USDT", "amount": "5"}
    deposit = await send("POST", "/v1/deposits", payment)
    await send("POST", f"/v1/payments/{deposit['id']}/cancel")
    for action in ("approve", "reject"):
        large = {**payment, "amount": "2000", "destination": "DE00"}
        withdrawal = await send("POST", "/v1/withdrawals", large)
        reason = {"reason": "no"} if action == "reject" else None
        await approve("POST", f"/v1/payments/{withdrawal['id']}/{action}", reason)


async def drive_identity(send: Send, root: Send, site: Any) -> None:
    """The same of routes that write to users' own streams; the session ends with it."""
    await site.user("robot", Role.SERVICE)
    robot = await site.pool.fetchval("SELECT id FROM users WHERE username = 'robot'")
    account = (await send("POST", "/v1/accounts", {"name": "s", "kind": "cash"}))["id"]
    member = f"/v1/accounts/{account}/members/{robot}"
    await send("PUT", member, {"role": "viewer"})
    await send("DELETE", member)
    for one, path in ((send, "/v1/api-keys"), (root, f"/v1/users/{robot}/api-keys")):
        made = await one("POST", path, {"name": "k", "scopes": ["account:read"]})
        await one("DELETE", f"{path}/{made['id']}")
    body = {"username": "carl", "password": PASSWORD, "role": "viewer"}
    await root("POST", "/v1/users", body)
    await root("PATCH", f"/v1/users/{robot}", {"status": "disabled"})
    secret = base64.b32decode((await send("POST", "/v1/me/totp"))["secret"])
    code = totp.code_at(secret, int(time.time()) // 30)
    await send("POST", "/v1/me/totp/confirm", {"code": code})
    await send("POST", "/v1/me/totp/recovery-codes")
    await send("DELETE", "/v1/me/totp")
    other = await login(site.auth, "ann", PASSWORD)
    await send("DELETE", f"/v1/sessions/{other.session_id}")
    await send("DELETE", "/v1/sessions?keep_current=true")
    body = {"current_password": PASSWORD, "new_password": "another battery staple"}
    await send("POST", "/v1/me/password", body)


async def test_every_entry_names_user_session_address_and_request(new_site: Any, pool: Any) -> None:
    site = await new_site(payments={"approval_above": {"USDT": "1000"}})
    await site.user("ann")
    await site.user("root", Role.ADMIN)
    taken: dict[str, tuple[str, str]] = {}
    async with AsyncExitStack() as stack:
        ann = await stack.enter_async_context(site.client("ann"))
        root = await stack.enter_async_context(site.client("root"))
        await drive(Traced(site, ann, taken), Traced(site, root, taken), site)
        await drive_identity(Traced(site, ann, taken), Traced(site, root, taken), site)

    written = {
        (method, route.path)
        for route in site.app.router.routes
        if isinstance(route, StrictRoute)
        for method in (route.methods or set()) - {"GET", "HEAD"}
    }
    missing = written - BESIDE_THE_JOURNAL - set(taken.values())
    assert not missing, f"drive these here, so that their entries are looked at: {missing}"

    users = {
        str(row["id"]): row["username"]
        for row in await pool.fetch("SELECT id, username FROM users")
    }
    sessions = {
        str(row["id"]): str(row["user_id"])
        for row in await pool.fetch("SELECT id, user_id FROM sessions")
    }
    traced: set[tuple[str, str]] = set()
    for row in await pool.fetch("SELECT body FROM journal"):
        entry = json.loads(row["body"])
        by = entry["by"]
        if entry["kind"] == "security.login" and "request" not in by:
            continue  # the test logged in without a request
        if by["kind"] != "user":
            # Here: what the test itself did in the gateway's and the system's name.
            assert by["kind"] in ("gateway", "system"), entry
            continue
        assert set(by) == {"kind", "user", "session", "address", "request"}, entry
        assert users[by["user"]] in ("ann", "root")
        assert sessions[by["session"]] == by["user"]
        assert by["address"] == "127.0.0.1"
        traced.add(taken[by["request"]])
    due = set(taken.values()) - BESIDE_THE_JOURNAL
    assert traced == due, "a route left no entry, or one without its request"


def test_who_is_no_user_is_named() -> None:
    """The program's own actors, wherever they are made."""
    nameless = set()
    for path in Path(tbot.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id == "SYSTEM" and path.name != "commands.py":
                nameless.add(f"{path.name}: SYSTEM; say which task: system(…)")
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Actor":
                names = {keyword.arg for keyword in node.keywords}
                if not names & {"name", "user_id"}:
                    nameless.add(path.name)
    # The gateway and a provider are one of their kind, strangers (events.py) have not said who they
    # are; SYSTEM is for tests.
    assert nameless <= {"commands.py", "events.py", "payments_flow.py"}
