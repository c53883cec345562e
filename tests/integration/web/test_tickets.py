"""Tickets: good once, soon, for what the token was good for, in whichever process."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx

from tbot.auth import flow, tickets
from tbot.core.errors import InvalidToken

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from streamclient import Client, dial

PASSWORD = "correct horse battery staple"


async def entered(url: str, ticket: Any) -> dict[str, Any]:
    """What the stream answers to a ticket."""
    async with dial(url) as socket:
        client = Client(socket)
        await client.hear()
        await client.say(op="auth", id=1, ticket=ticket)
        return await client.hear()


async def issued(site: Any, name: str = "ann", scope: str = "", **wish: Any) -> dict[str, Any]:
    async with site.client(name, scope) as client:
        answer = await client.post("/v1/stream/tickets", json=wish)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def test_a_ticket_logs_in_once_and_is_no_token(site: Any, serve: Any) -> None:
    url = await serve(site)
    made = await issued(site)
    text = made["ticket"]
    authed = await entered(url, text)
    assert authed["op"] == "authed" and authed["id"] == 1
    assert made["scope"].split() and set(authed["scopes"]) == set(made["scope"].split())
    assert (await entered(url, text))["code"] == "invalid_token"
    async with site.client() as client:
        headers = {"Authorization": f"Bearer {(await issued(site))['ticket']}"}
        assert (await client.get("/v1/orders", headers=headers)).status_code == 401
    assert await site.pool.fetchval("SELECT count(*) FROM stream_tickets") == 1
    stored = await site.pool.fetchval("SELECT hash FROM stream_tickets")
    assert text.encode() not in stored


async def test_only_one_of_many_processes_takes_a_ticket(site: Any, new_site: Any) -> None:
    other = await new_site()
    text = (await issued(site))["ticket"]
    auths = [site.auth, other.auth] * 4
    results = await asyncio.gather(
        *(tickets.redeem(auth, text) for auth in auths), return_exceptions=True
    )
    taken = [one for one in results if isinstance(one, flow.Principal)]
    assert len(taken) == 1
    assert all(isinstance(one, InvalidToken) for one in results if one is not taken[0])


async def test_a_ticket_covers_no_more_than_its_token(site: Any, serve: Any, problem: Any) -> None:
    url = await serve(site)
    narrow = await issued(site, scope="market:read account:read")
    assert narrow["scope"] == "market:read account:read"
    async with site.client("ann", "market:read") as client:
        answer = await client.post("/v1/stream/tickets", json={"scope": "orders:write"})
        problem(answer, 403, "insufficient_scope")
        answer = await client.post("/v1/stream/tickets", json={"scope": "nonsense"})
        problem(answer, 403, "insufficient_scope")
    async with site.client("ann") as client:
        made = (await client.post("/v1/stream/tickets", json={"scope": "market:read"})).json()
    assert (await entered(url, made["ticket"]))["scopes"] == ["market:read"]


async def test_tickets_end_with_their_time_session_and_token(
    site: Any, serve: Any, monkeypatch: Any
) -> None:
    url = await serve(site)
    settings = site.settings.stream
    monkeypatch.setattr(settings, "ticket_ttl_s", 1e-6)
    old = (await issued(site))["ticket"]
    monkeypatch.undo()
    assert (await entered(url, old))["code"] == "invalid_token"
    grant = await flow.login(site.auth, "ann", PASSWORD)
    principal = await flow.authenticate(site.auth, grant.access_token)
    loose = await tickets.issue(site.auth, principal, "", 30.0, 10)
    await flow.revoke(site.auth, grant.refresh_token)
    assert (await entered(url, loose.text))["code"] == "invalid_token"
    late = (await issued(site))["ticket"]
    monkeypatch.setattr(site.auth, "clock", lambda: principal.expires_at_s + 5.0)
    assert (await entered(url, late))["code"] == "invalid_token"


async def test_what_is_no_ticket_is_refused(site: Any, serve: Any) -> None:
    url = await serve(site)
    for ticket in ("", "x", "tbt_", 5, ["x"], "tbt_" + "a" * 43, "a" * 5000):
        assert (await entered(url, ticket))["code"] == "invalid_token", ticket


async def test_unused_tickets_are_bounded_and_swept(site: Any, problem: Any) -> None:
    settings = site.settings.stream
    settings.tickets_max, settings.ticket_ttl_s = 3, 1e-6
    for _ in range(5):
        await issued(site)  # each sweeps the one before, which has ended
    assert await site.pool.fetchval("SELECT count(*) FROM stream_tickets") == 1
    settings.ticket_ttl_s = 30.0
    for _ in range(3):
        await issued(site)
    async with site.client("ann") as client:
        answer = await client.post("/v1/stream/tickets", json={})
        problem(answer, 503, "overloaded")
    await issued(site, "bob")


async def test_a_connection_goes_on_with_a_fresh_ticket(site: Any, serve: Any) -> None:
    async with dial(await serve(site)) as socket:
        client = Client(socket)
        await client.hear()
        await client.say(op="auth", ticket=(await issued(site))["ticket"])
        first = await client.hear()
        await client.say(op="auth", id=2, ticket=(await issued(site, "bob"))["ticket"])
        assert (await client.hear())["code"] == "user_mismatch"
        await client.say(op="auth", id=3, ticket="used")
        assert (await client.hear())["code"] == "invalid_token"
        await client.say(op="auth", id=4, token="both", ticket="x")
        assert (await client.hear())["code"] == "invalid_token"
        await client.say(op="auth", id=5, ticket=(await issued(site))["ticket"])
        again = await client.hear()
        assert again["op"] == "authed" and again["expires_at"] >= first["expires_at"]


async def test_nothing_secret_is_logged(site: Any, serve: Any, capsys: Any) -> None:
    url = await serve(site)
    text = (await issued(site))["ticket"]
    await entered(url, text)
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/v1/events", params={"channels": "bbo:X-Y", "ticket": text})
    assert answer.status_code == 401
    said = capsys.readouterr()
    assert text not in said.out + said.err + json.dumps(answer.json())
