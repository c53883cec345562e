"""Callbacks over real HTTP: believed only with a good signature, and each only once."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

SECRET = b"c" * 32  # as the site's provider has it


def headers(body: bytes, message_id: str = "m1", at: int | None = None, **more: str) -> Any:
    """Signed as the standard says, by this test's own reading of it."""
    stamp = str(int(time.time()) if at is None else at)
    mac = hmac.new(SECRET, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    signed = {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": stamp,
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }
    return signed | {name.replace("_", "-"): value for name, value in more.items()}


def said(payment: Any, status: str = "succeeded", **changes: Any) -> bytes:
    message = {
        "payment_id": payment["id"],
        "status": status,
        "asset": payment["asset"],
        "amount": payment["amount"],
        "reference": f"bank-{payment['id']}",
    }
    return json.dumps(message | changes).encode()


@pytest.fixture
async def deposit(site: Any) -> Any:
    async with site.client("ann") as client:
        account = await site.cash(client)
        body = {"account_id": account["id"], "asset": "USDT", "amount": "25"}
        yield client, (await client.post("/v1/deposits", json=body)).json()


async def available(client: Any, payment: Any) -> str:
    path = f"/v1/accounts/{payment['account_id']}/balances"
    found = (await client.get(path)).json()["balances"]
    return found[0]["available"] if found else "0"


async def test_a_signed_callback_is_booked_once_however_often_it_comes(
    site: Any, serve: Any, deposit: Any
) -> None:
    client, payment = deposit
    url = await serve(site) + "/v1/callbacks/simulated"
    body = said(payment)
    async with httpx.AsyncClient() as outside:
        for message_id in ("m1", "m1", "m2"):
            answer = await outside.post(url, content=body, headers=headers(body, message_id))
            assert (answer.status_code, answer.content) == (204, b"")
        late = said(payment, "processing")
        assert (await outside.post(url, content=late, headers=headers(late))).status_code == 204
    assert await available(client, payment) == "25"
    journal = (await client.get(f"/v1/accounts/{payment['account_id']}/journal")).json()
    booked = [e["entry"] for e in journal["entries"] if e["entry"]["kind"] == "payment.succeeded"]
    assert len(booked) == 1
    assert booked[0]["data"]["said"]["callback"] == "m1"
    assert booked[0]["by"]["name"] == "simulated"


async def test_forged_expired_and_malformed_callbacks_are_refused(
    site: Any, serve: Any, deposit: Any, problem: Any
) -> None:
    client, payment = deposit
    url = await serve(site) + "/v1/callbacks/simulated"
    body, now = said(payment), int(time.time())
    good = headers(body)
    before = await site.journal_size()
    swapped = base64.b64encode(bytes(32)).decode()
    forged = [
        (said(payment, amount="2500"), good),  # another body
        (body, good | {"webhook-id": "m2"}),
        (body, good | {"webhook-timestamp": str(now - 1)}),
        (body, good | {"webhook-signature": "v1," + swapped}),
        (body, good | {"webhook-signature": good["webhook-signature"].replace("v1", "v0")}),
        (body, good | {"webhook-signature": "v1,"}),
        (body, good | {"webhook-signature": "v1,§"}),
        (body, good | {"webhook-signature": ""}),
        (body, headers(body, at=now - 360)),
        (body, headers(body, at=now + 360)),
        (body, good | {"webhook-timestamp": "now"}),
        (body, {n: v for n, v in good.items() if n != "webhook-id"}),
        (body, {n: v for n, v in good.items() if n != "webhook-signature"}),
        (body, {"content-type": "application/json"}),
    ]
    async with httpx.AsyncClient() as outside:
        for content, signed in forged:
            raw = {name: value.encode("latin-1", "replace") for name, value in signed.items()}
            answer = await outside.post(url, content=content, headers=raw)
            problem(answer, 401, "invalid_signature")
            assert answer.headers["www-authenticate"] == 'Signature realm="tbot"'
        twice = [*headers(body).items(), ("webhook-signature", good["webhook-signature"])]
        problem(await outside.post(url, content=body, headers=twice), 401, "invalid_signature")
        for nonsense in (
            b"",
            b"{}",
            b"[]",
            b"\xff",
            said(payment, "paid"),
            said(payment, amount="1e3"),
            said(payment, amount=25),
            said(payment, payment_id="x"),
        ):
            answer = await outside.post(url, content=nonsense, headers=headers(nonsense))
            problem(answer, 400, "bad_request")
        stranger = said(payment, payment_id=str(uuid4()))
        answer = await outside.post(url, content=stranger, headers=headers(stranger))
        problem(answer, 404, "not_found")
        elsewhere = url.replace("simulated", "other")
        problem(await outside.post(elsewhere, content=body, headers=good), 404, "not_found")
        large = b" " * (site.settings.http.body_bytes_max + 1)
        problem(
            await outside.post(url, content=large, headers=headers(large)), 413, "body_too_large"
        )
    assert await site.journal_size() == before
    assert await available(client, payment) == "0"


async def test_one_movement_of_money_is_credited_to_one_payment_only(
    site: Any, serve: Any, deposit: Any, problem: Any
) -> None:
    """Also when the provider names it for two of them, on two accounts."""
    client, payment = deposit
    url = await serve(site) + "/v1/callbacks/simulated"
    account = await site.cash(client)
    body = {"account_id": account["id"], "asset": "USDT", "amount": "25"}
    other = (await client.post("/v1/deposits", json=body)).json()
    first, second = (said(one, reference="same") for one in (payment, other))
    async with httpx.AsyncClient() as outside:
        assert (await outside.post(url, content=first, headers=headers(first))).status_code == 204
        answer = await outside.post(url, content=second, headers=headers(second))
        problem(answer, 409, "payment_contradicted")
    assert await available(client, payment) == "25"
    assert await available(client, other) == "0"
