"""The SDK with API keys, second factors, and calls that need a fresh proof."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from authenticator import Phone
from tbot.client import AuthError, TBotClient

PASSWORD = "correct horse battery staple"


def sdk(site: Any, **more: Any) -> TBotClient:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(site.app), base_url="http://test")
    return TBotClient("http://test", http=http, retry_s=2, **more)


async def test_an_api_key_is_enough(site: Any) -> None:
    async with site.client("ann") as ann:
        body = {"name": "k", "scopes": ["account:read"]}
        key = (await ann.post("/v1/api-keys", json=body)).json()["key"]
        await site.account(ann)
    async with sdk(site, api_key=key) as client:
        assert [account.name async for account in client.accounts()] == ["main"]
    async with sdk(site, api_key="tbk_" + "A" * 43) as client:
        with pytest.raises(AuthError):
            await client.me()


async def test_the_second_factor_is_asked_for_when_it_is_needed(site: Any) -> None:
    async with site.client("ann") as ann:
        cash = await site.cash(ann, USDT="10")
        phone = Phone((await ann.post("/v1/me/totp")).json()["secret"])
        confirmed = await ann.post("/v1/me/totp/confirm", json={"code": phone.code()})
        codes = confirmed.json()["recovery_codes"]
    asked = []

    async def second_factor() -> str:
        asked.append(1)
        return str(codes.pop())

    async with sdk(site, username="ann", password=PASSWORD, second_factor=second_factor) as client:
        assert (await client.me())["username"] == "ann"
        assert len(asked) == 1
        await site.pool.execute("UPDATE sessions SET factor_at = now() - interval '1 day'")
        payment = await client.payments.withdraw(cash["id"], "USDT", "1", "DE89")
        assert payment.amount == 1
        assert len(asked) == 2
    async with sdk(site, username="ann", password=PASSWORD) as client:
        with pytest.raises(AuthError) as raised:
            await client.me()
        assert raised.value.code == "mfa_required"
    async with sdk(
        site, username="ann", password=PASSWORD, second_factor=lambda: phone.wrong(1)[0]
    ) as client:
        with pytest.raises(AuthError) as raised:
            await client.me()
        assert raised.value.code == "invalid_code"


async def test_a_password_at_hand_is_shown_again(site: Any) -> None:
    async with sdk(site, username="ann", password=PASSWORD) as client:
        async with site.client("ann") as ann:
            cash = await site.cash(ann, USDT="10")
        await client.me()
        await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
        payment = await client.payments.withdraw(cash["id"], "USDT", "1", "DE89")
        assert payment.amount == 1
    token = await site.token("ann")
    await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
    async with sdk(site, token=token) as client:
        with pytest.raises(AuthError) as raised:
            await client.payments.withdraw(cash["id"], "USDT", "1", "DE89")
        assert raised.value.code == "step_up_required"
