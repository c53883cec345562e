"""The SDK's payments and webhooks against a served application and its dispatcher."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tbot.client import NotFound, Refused, TBotClient


def sdk(site: Any, token: str) -> TBotClient:
    """An SDK client into the application."""
    transport = httpx.ASGITransport(site.app)
    http = httpx.AsyncClient(base_url="http://test", transport=transport)
    return TBotClient("http://test", token=token, http=http, retry_s=0.0)


async def test_money_in_and_out(new_site: Any, site: Any, dispatch: Any, database_url: str) -> None:
    quick = await new_site(simulated_provider={"delay_s": 0.01})
    await dispatch(quick, database_url)
    async with sdk(quick, await quick.token("ann")) as client:
        account = await quick.cash_of("ann")
        deposit = await client.payments.deposit(
            account, "USDT", 250, metadata={"invoice": "7"}, key="d"
        )
        assert (deposit.kind, deposit.state, deposit.open) == ("deposit", "pending", True)
        assert (
            await client.payments.deposit(account, "USDT", 250, metadata={"invoice": "7"}, key="d")
        ).id == deposit.id
        come = await client.payments.wait(deposit.id)
        assert (come.state, come.settled, come.metadata) == ("succeeded", 250, {"invoice": "7"})
        assert come.instructions is not None
        withdrawal = await client.payments.withdraw(account, "USDT", "99.9", "DE89")
        gone = await client.payments.wait(withdrawal.id)
        assert (gone.state, gone.destination, gone.held) == ("succeeded", "DE89", 0)
        listed = [p.id async for p in client.payments.list(account, kind="withdrawal")]
        assert listed == [withdrawal.id]
        with pytest.raises(Refused) as refused:
            await client.payments.cancel(withdrawal.id)
        assert refused.value.code == "payment_state"


async def test_a_second_person_decides(site: Any) -> None:
    account = await site.cash_of("ann", USDT="50000")
    async with (
        sdk(site, await site.token("ann")) as ann,
        sdk(site, await site.token("root")) as root,
    ):
        first = await ann.payments.withdraw(account, "USDT", 20000, "DE89")
        second = await ann.payments.withdraw(account, "USDT", 15000, "DE89")
        with pytest.raises(NotFound):
            await root.payments.get(first.id)
        assert [p.id async for p in root.payments.approvals()] == [first.id, second.id]
        assert (await root.payments.approve(first.id)).state == "approved"
        rejected = await root.payments.reject(second.id, "too much")
        assert (rejected.state, rejected.reason) == ("rejected", "too much")
        with pytest.raises(TimeoutError):
            await ann.payments.wait(first.id, timeout_s=0.0)


async def test_webhooks(site: Any) -> None:
    account = await site.cash_of("ann")
    async with sdk(site, await site.token("ann")) as client:
        hook = await client.webhooks.create(
            account, "https://example.com/a", ["payment.*"], from_sequence=1, key="w"
        )
        assert hook.secret is not None and hook.secret.startswith("whsec_")
        assert hook.secret not in repr(hook)
        changed = await client.webhooks.change(hook.id, enabled=False)
        assert (changed.enabled, changed.disabled_reason) == (False, "owner")
        with pytest.raises(Refused) as refused:
            await client.webhooks.change(hook.id, kinds=["order.*"], if_match=hook.etag)
        assert refused.value.code == "precondition_failed"
        again = await client.webhooks.change(hook.id, kinds=["*"], if_match=changed.etag)
        assert again.etag == (await client.webhooks.get(hook.id)).etag != changed.etag
        await client.webhooks.change(hook.id, kinds=["payment.*"])
        assert (await client.webhooks.replay(hook.id, 2)).sequence == 1
        rotated = await client.webhooks.rotate_secret(hook.id, overlap_s=60, key="r")
        assert rotated.secret not in (None, hook.secret) and rotated.old_secret_until is not None
        assert await client.webhooks.rotate_secret(hook.id, overlap_s=60, key="r") == rotated
        assert [h.secret async for h in client.webhooks.list()] == [None]
        assert [d async for d in client.webhooks.deliveries(hook.id, dead=True)] == []
        assert (await client.webhooks.get(hook.id)).kinds == ["payment.*"]
