"""The SDK's transfers against the application itself."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import httpx
import pytest

from tbot.client import NewTransfer, NotFound, Refused, TBotClient


def sdk(site: Any, token: str) -> TBotClient:
    """An SDK client into the application."""
    transport = httpx.ASGITransport(site.app)
    http = httpx.AsyncClient(base_url="http://test", transport=transport)
    return TBotClient("http://test", token=token, http=http, retry_s=0.0)


async def test_the_whole_life_of_transfers(site: Any) -> None:
    ann, eve = await site.cash_of("ann", USDT="100"), await site.cash_of("ann")
    async with sdk(site, await site.token("ann")) as client:
        done = await client.transfers.create(
            ann, eve, "USDT", Decimal("1E+1"), metadata={"invoice": "7"}, key="once"
        )
        assert (done.state, done.amount, done.metadata) == (
            "posted",
            Decimal(10),
            {"invoice": "7"},
        )
        again = await client.transfers.create(
            ann, eve, "USDT", 10, metadata={"invoice": "7"}, key="once"
        )
        assert again == done
        held = await client.transfers.create(
            ann, eve, "USDT", "20.5", pending=True, expires_in_s=60
        )
        assert held.pending
        assert held.expires_at is not None
        posted = await client.transfers.post(held.id, "20")
        assert posted.posted_amount == 20
        back = await client.transfers.reverse(posted.id, metadata={"why": "x"})
        assert back.reverses == posted.id
        assert (await client.transfers.get(posted.id)).reversed_by == back.id
        with pytest.raises(Refused) as refused:
            await client.transfers.reverse(posted.id)
        assert refused.value.code == "transfer_reversed"
        other = await client.transfers.create(ann, eve, "USDT", 1, pending=True)
        assert [one.id async for one in client.transfers.list(ann, state="pending")] == [other.id]
        assert (await client.transfers.void(other.id)).state == "voided"
        linked = await client.transfers.create_linked(
            [NewTransfer(ann, eve, "USDT", 5), NewTransfer(eve, ann, "USDT", 15)]
        )
        assert len({one.group_id for one in linked}) == 1
        results = await client.transfers.create_bulk(
            [NewTransfer(ann, eve, "USDT", 5, key="mine"), NewTransfer(ann, eve, "USDT", 500)]
        )
        assert [result.status for result in results] == [201, 422]
        assert results[1].problem is not None
        assert results[1].problem["code"] == "insufficient_funds"
        listed = [one async for one in client.transfers.list()]
        assert listed[-1] == done
        assert (await client.balances(ann)).available("USDT") == 95
        with pytest.raises(NotFound):
            await client.transfers.get(ann)
        with pytest.raises(TypeError, match="not exact"):
            await client.transfers.create(ann, eve, "USDT", 0.1)  # type: ignore[arg-type]


async def test_cash_accounts_and_their_changes(site: Any) -> None:
    async with (
        sdk(site, await site.token("ann")) as client,
        sdk(site, await site.token("root")) as root,
    ):
        account = await client.create_cash_account("pocket")
        assert (account.kind, account.venue) == ("cash", None)
        changed = await client.change_account(account.id, name="purse", if_match=account.etag)
        with pytest.raises(Refused) as stale:
            await client.change_account(account.id, name="bag", if_match=account.etag)
        assert stale.value.code == "precondition_failed"
        assert (await client.account(account.id)).etag == changed.etag
        assert changed.name == "purse"
        lent = await root.change_account(account.id, limits={"overdraft": {"USDT": "5"}})
        assert lent.limits.overdraft == {"USDT": Decimal(5)}
        assert (await root.change_account(account.id, status="frozen")).status == "frozen"
