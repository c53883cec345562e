"""The SDK's kill switches against an application."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tbot.client import AuthError, NotFound, Refused, TBotClient

PASSWORD = "correct horse battery staple"


def sdk(site: Any, **more: Any) -> TBotClient:
    """An SDK client into the application."""
    http = httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://test")
    return TBotClient("http://test", http=http, retry_s=0.0, **more)


async def test_a_halt_and_its_end(site: Any) -> None:
    async with (
        sdk(site, username="root", password=PASSWORD) as root,
        sdk(site, token=await site.token("ann")) as ann,
    ):
        account = await ann.create_account("main", {"USDT": "1000"})
        seen = await root.switches.get("trading")
        assert (seen.halted, seen.since, seen.who) == (False, None, None)
        halted = await root.switches.halt("trading", "prices look wrong")
        assert (halted.halted, halted.reason, halted.who) == (
            True,
            "prices look wrong",
            "user root",
        )
        assert [one.name async for one in root.switches.list(halted=True)] == ["trading"]
        with pytest.raises(Refused) as refused:
            await ann.place(account.id, "BTC-USDT", "buy", quantity="0.1", limit_price="99")
        assert str(refused.value) == "venue_halted: prices look wrong"
        with pytest.raises(Refused) as refused:
            await root.switches.resume("trading", "fixed", if_match=seen.etag)
        assert refused.value.code == "precondition_failed"
        # The password is shown again by the client itself.
        await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
        resumed = await root.switches.resume("trading", "fixed", if_match=halted.etag)
        assert (resumed.halted, resumed.reason) == (False, "fixed")
        await ann.place(account.id, "BTC-USDT", "buy", quantity="0.1", limit_price="99")
        turns = [(turn.halted, turn.reason) async for turn in root.switches.turns("trading")]
        assert turns == [(False, "fixed"), (True, "prices look wrong")]
        with pytest.raises(Refused) as refused:
            await root.switches.resume("trading", "again")
        assert refused.value.code == "not_halted"
        with pytest.raises(AuthError):
            await ann.switches.halt("trading", "no")


async def test_names_that_are_not_known(site: Any) -> None:
    name = "instrument:paper:NEW-USDT"
    async with sdk(site, token=await site.token("root")) as root:
        with pytest.raises(NotFound):
            await root.switches.get(name)
        with pytest.raises(Refused) as refused:
            await root.switches.halt(name, "wait")
        assert refused.value.code == "switch_unknown"
        assert (await root.switches.halt(name, "wait", to_come=True)).halted
        assert not (await root.switches.resume(name, "go")).halted
