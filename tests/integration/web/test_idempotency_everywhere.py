"""`Idempotency-Key` on every route that writes: honoured, or documented as needless."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from tbot.auth.scopes import Role
from tbot.web.routes import StrictRoute

from .test_actors import drive, drive_identity

PAGE = Path(__file__).parents[3] / "docs" / "idempotency.md"
_ROW = re.compile(r"\| `(POST|PUT|PATCH|DELETE) (/v1/\S+)` \| (\S.*\S) \|")
_NUMBERS = count(1)
ALONE = "/v1/transfers/bulk"
"""Answers for each item, and keeps an answer for each."""


REPEATED = {
    ("DELETE", "/v1/orders"): 202,
    ("PUT", "/v1/accounts/{account_id}/members/{user_id}"): 200,
    ("DELETE", "/v1/accounts/{account_id}/members/{user_id}"): 404,
    ("DELETE", "/v1/webhooks/{webhook_id}"): 404,
    ("DELETE", "/v1/sessions/{session_id}"): 404,
    ("DELETE", "/v1/sessions"): 204,
    ("DELETE", "/v1/api-keys/{key_id}"): 404,
    ("DELETE", "/v1/users/{user_id}/api-keys/{key_id}"): 404,
    ("DELETE", "/v1/me/totp"): 204,
    ("POST", "/v1/api-keys"): 409,
    ("POST", "/v1/users/{user_id}/api-keys"): 409,
    ("POST", "/v1/me/totp"): 200,
    ("POST", "/v1/me/totp/confirm"): 409,
    ("POST", "/v1/me/totp/recovery-codes"): 200,
    ("POST", "/v1/me/password"): 401,
}
"""What a repetition of what takes no key is answered, as the page has it."""


def writes(site: Any) -> dict[tuple[str, str], bool]:
    """Every operation of the document that writes, and whether it takes a key."""
    return {
        (method.upper(), path): any(
            (one["in"], one["name"]) == ("header", "Idempotency-Key")
            for one in operation.get("parameters", ())
        )
        for path, methods in site.app.openapi()["paths"].items()
        for method, operation in methods.items()
        if method not in ("get", "head", "options")
    }


def test_what_takes_no_key_is_listed_with_its_reason(site: Any) -> None:
    section = PAGE.read_text().partition("## What takes no key")[2].partition("\n## ")[0]
    listed = {(found[1], found[2]) for found in map(_ROW.fullmatch, section.splitlines()) if found}
    keyless = {operation for operation, keyed in writes(site).items() if not keyed}
    assert keyless - listed == set(), f"let it take a key, or say in {PAGE.name} why not"
    assert listed - keyless == set(), "these are gone, or take a key"
    hidden = {
        (method, route.path_format)
        for route in site.app.router.routes
        if isinstance(route, StrictRoute)
        for method in route.methods or ()
        if method not in ("GET", "HEAD")
    }
    assert hidden <= set(writes(site)), "a write that the document does not have"


class Twice:
    """A user's client that repeats each request, under a key where that takes one.

    Args:
        owner: Connections that may change what T-Bot's own may not: a key's content.
    """

    def __init__(
        self, site: Any, client: httpx.AsyncClient, owner: Any, repeated: set[Any]
    ) -> None:
        self._site = site
        self._owner = owner
        self._client = client
        self._repeated = repeated
        self._routes = [r for r in site.app.router.routes if isinstance(r, StrictRoute)]
        self._writes = writes(site)

    async def __call__(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that has to succeed, and its repetitions; its JSON."""
        (route,) = [
            r
            for r in self._routes
            if method in (r.methods or ()) and r.path_regex.fullmatch(path.partition("?")[0])
        ]
        headers = {"If-Match": "*"}
        operation = method, route.path_format
        keyed = self._writes[operation]
        if keyed:
            headers["Idempotency-Key"] = f'"{next(_NUMBERS)} {method}"'

        async def ask() -> httpx.Response:
            return await self._client.request(method, path, json=body, headers=headers)

        first = await ask()
        assert first.is_success, first.text
        assert "idempotent-replayed" not in first.headers
        size = await self._site.journal_size()
        if keyed:
            self._check_repeated(path, first, await ask())
            # As if it had been used for something else.
            await self._owner.execute(
                "UPDATE idempotency_keys SET content = substr(sha256(content), 1, 16)"
            )
            self._check_refused(path, await ask())
        else:
            again = await ask()
            assert again.status_code == REPEATED[operation], (operation, again.text)
            first = again if again.is_success else first
        assert await self._site.journal_size() == size
        self._repeated.add(operation)
        return first.json() if first.content else None

    @staticmethod
    def _check_repeated(path: str, first: httpx.Response, again: httpx.Response) -> None:
        assert again.status_code == first.status_code, again.text
        if path == ALONE:
            told = again.json()
            assert all(one.pop("replayed") is True for one in told["results"])
            assert told == first.json()
            return
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        for name in ("content-type", "location", "etag"):
            assert again.headers.get(name) == first.headers.get(name), (path, name)

    @staticmethod
    def _check_refused(path: str, answer: httpx.Response) -> None:
        assert answer.status_code == 422, (path, answer.text)
        assert answer.json()["code"] == "idempotency_key_reused"


async def drive_webhooks(send: Twice, site: Any) -> None:
    """The writes that no entry of the journal tells of."""
    account = await site.cash_of("ann")
    body = {"account_id": account, "url": "https://example.com/"}
    path = f"/v1/webhooks/{(await send('POST', '/v1/webhooks', body))['id']}"
    await send("PATCH", path, {"kinds": ["payment.*"]})
    await send("POST", f"{path}/replay", {"from_sequence": 1})
    await send("POST", f"{path}/rotate-secret", {"overlap_s": 60})
    await send("DELETE", path)


async def drive_switches(send: Twice) -> None:
    """The same of switches."""
    for action in ("halt", "resume"):
        await send("POST", f"/v1/switches/withdrawals/{action}", {"reason": "an inspection"})


async def test_every_write_is_done_once_under_its_key_or_repeated_as_documented(
    new_site: Any, owner_url: str
) -> None:
    site = await new_site(payments={"approval_above": {"USDT": "1000"}})
    await site.user("ann")
    await site.user("root", Role.ADMIN)
    repeated: set[Any] = set()
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(asyncpg.create_pool(owner_url, min_size=1))
        ann, root = [
            Twice(site, await stack.enter_async_context(site.client(name)), owner, repeated)
            for name in ("ann", "root")
        ]
        await drive_webhooks(ann, site)
        await drive_switches(root)
        await drive(ann, root, site)
        await drive_identity(ann, root, site)
    keyed = {operation for operation, takes in writes(site).items() if takes}
    assert keyed | set(REPEATED) == repeated, "drive these here or in test_actors"
    elsewhere = ("/v1/token", "/v1/stream/tickets", "/v1/callbacks")
    rest = [path for _, path in set(writes(site)) - repeated]
    assert all(path.startswith(elsewhere) for path in rest), rest
