"""Webhooks over real HTTP: every entry, in order, signed, until it is taken or dead."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import REGISTRY

from tbot.ledger.signatures import secret_text
from tbot.ledger.webhooks_target import Forbidden, Sender, check_url
from tbot.web.webhook_forms import (
    DeliveryPage,
    WebhookCreated,
    WebhookPage,
    WebhookRotated,
)

FAST: dict[str, Any] = {
    "allow_private": True,
    "attempts_max": 3,
    "retry_base_s": 0.02,
    "retry_max_s": 0.05,
    "timeout_s": 30.0,
    "scan_interval_s": 0.02,
}


class Receiver:
    """Somebody's HTTP server: keeps what it is sent and answers from a script."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.script: list[Any] = []
        self.status: Any = 204
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii").split("\r\n")
        headers = {}
        for line in head[1:]:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
        body = await reader.readexactly(int(headers["content-length"]))
        self.messages.append((headers, body))
        answer = self.script.pop(0) if self.script else self.status
        if answer == "hang":
            await reader.read()
        elif answer != "drop":
            more = "Location: /elsewhere\r\n" if answer == 302 else ""
            writer.write(f"HTTP/1.1 {answer} X\r\n{more}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    def sequences(self) -> list[int]:
        return [json.loads(body)["data"]["seq"] for _, body in self.messages]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?x=1"
    yield made
    server.close()


@pytest.fixture
async def quick(new_site: Any, site: Any) -> Any:
    """A site that delivers without waiting long, on the users of `site`."""
    return await new_site(webhooks=FAST)


async def subscribe(client: Any, account: Any, url: str, **more: Any) -> dict[str, Any]:
    answer = await client.post(
        "/v1/webhooks", json={"account_id": account["id"], "url": url, **more}
    )
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def genuine(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """The standard's verification, in this test's own words."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    fresh = abs(time.time() - int(headers["webhook-timestamp"])) < 300
    return fresh and f"v1,{mac}" in headers["webhook-signature"].split(" ")


async def deposits(site: Any, client: Any, account: Any, count: int) -> None:
    """Two entries for each."""
    for _ in range(count):
        body = {"account_id": account["id"], "asset": "USDT", "amount": "1"}
        made = (await client.post("/v1/deposits", json=body)).json()
        await client.post(f"/v1/payments/{made['id']}/cancel")


async def test_every_entry_is_delivered_in_order_and_signed(
    quick: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        WebhookCreated.model_validate(hook)
        await deliver(quick, database_url)
        await deposits(quick, client, account, 5)
        await eventually(lambda: len(receiver.messages) >= 11)
        assert receiver.sequences() == list(range(1, 12))
        path = f"/v1/accounts/{account['id']}/journal"
        journal = (await client.get(path)).json()["entries"]
        for (headers, body), recorded in zip(receiver.messages, journal, strict=True):
            assert genuine(hook["secret"], headers, body)
            assert headers["content-type"] == "application/json"
            assert headers["host"] == receiver.url.split("/")[2]
            message = json.loads(body)
            assert message["type"] == recorded["entry"]["kind"]
            assert message["timestamp"] == recorded["entry"]["at"]
            assert message["data"]["entry"] == recorded["entry"]
            assert message["data"]["hash"] == recorded["hash"]
        assert len({headers["webhook-id"] for headers, _ in receiver.messages}) == 11

        async def noted() -> bool:
            page = (await client.get(f"/v1/webhooks/{hook['id']}/deliveries")).json()
            DeliveryPage.model_validate(page)
            return [d["state"] for d in page["items"]] == ["delivered"] * 11

        await eventually(noted)
        now = (await client.get(f"/v1/webhooks/{hook['id']}")).json()
        assert now["sequence"] == 11
        assert "secret" not in now


async def test_only_the_kinds_wanted_come_and_only_from_now_on(
    quick: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        await deposits(quick, client, account, 1)
        hook = await subscribe(client, account, receiver.url, kinds=["payment.canceled"])
        assert hook["sequence"] == 3
        await deliver(quick, database_url)
        await deposits(quick, client, account, 2)
        await eventually(lambda: len(receiver.messages) >= 2)
        assert receiver.sequences() == [5, 7]


async def test_a_failed_attempt_is_repeated_under_the_same_id_before_anything_follows(
    quick: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        receiver.script = [500, "drop", 204, 302, 204]
        await subscribe(client, account, receiver.url, from_sequence=1)
        await deliver(quick, database_url)
        await deposits(quick, client, account, 1)
        await eventually(lambda: len(receiver.messages) >= 6)
        assert receiver.sequences() == [1, 1, 1, 2, 2, 3]
        first = receiver.messages[:3]
        assert len({headers["webhook-id"] for headers, _ in first}) == 1
        assert len({body for _, body in first}) == 1


async def test_what_is_never_taken_is_a_dead_letter_and_can_be_replayed(
    new_site: Any, site: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    quick = await new_site(webhooks={**FAST, "timeout_s": 1.0})
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        receiver.script = [204, 503, 503, "hang"]
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        path = f"/v1/webhooks/{hook['id']}"
        await deposits(quick, client, account, 1)
        await deliver(quick, database_url)
        await eventually(lambda: receiver.sequences() == [1, 2, 2, 2, 3])
        dead = (await client.get(f"{path}/dead-letters")).json()
        DeliveryPage.model_validate(dead)
        (letter,) = dead["items"]
        assert (letter["sequence"], letter["attempts"], letter["state"]) == (2, 3, "dead")
        assert (letter["status"], letter["error"]) == (None, "no answer in time")
        before = [headers["webhook-id"] for headers, _ in receiver.messages]
        answer = await client.post(f"{path}/replay", json={"from_sequence": 2})
        assert (answer.status_code, answer.json()["sequence"]) == (200, 1)
        await eventually(lambda: receiver.sequences()[5:] == [2, 3])
        again = [headers["webhook-id"] for headers, _ in receiver.messages[5:]]
        assert again == [before[1], before[4]]

        async def none_left() -> bool:
            return (await client.get(f"{path}/dead-letters")).json()["items"] == []

        await eventually(none_left)


async def test_while_a_receiver_changes_its_secret_messages_fit_both(
    quick: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any, problem: Any
) -> None:
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        path = f"/v1/webhooks/{hook['id']}"
        assert hook["old_secret_until"] is None
        await deliver(quick, database_url)

        async def signed_with(fits: dict[str, bool]) -> None:
            """Wait until messages are: the deliverer reads of a change in its own time."""

            async def found() -> bool:
                before = len(receiver.messages)
                await deposits(quick, client, account, 1)
                await eventually(lambda: len(receiver.messages) >= before + 2)
                headers, body = receiver.messages[-1]
                return {one: genuine(one, headers, body) for one in fits} == fits

            await eventually(found)

        async def rotated(body: Any = None, **headers: str) -> Any:
            answer = await client.post(f"{path}/rotate-secret", json=body, headers=headers)
            assert answer.status_code == 200, answer.text
            # What comes after the dot is about deliveries, which go on.
            now = (await client.get(path)).headers["etag"]
            assert answer.headers["etag"].partition(".")[0] == now.partition(".")[0]
            WebhookRotated.model_validate(answer.json())
            return answer

        secrets = [hook["secret"]]
        first = await rotated(**{"Idempotency-Key": "r"})
        secrets.append(first.json()["secret"])
        assert first.json()["old_secret_until"] is not None
        await signed_with(dict.fromkeys(secrets, True))
        # Who lost that answer asks again under its key, and gets the same secret.
        again = await rotated(**{"Idempotency-Key": "r"})
        assert again.content == first.content and again.headers["idempotent-replayed"] == "true"
        other = await client.post(
            f"{path}/rotate-secret", json={"overlap_s": 1}, headers={"Idempotency-Key": "r"}
        )
        problem(other, 422, "idempotency_key_reused")
        # Without a key it gets another one, and what the receiver knows is still good.
        more = [await rotated({"overlap_s": 3600}) for _ in range(3)]
        secrets += [one.json()["secret"] for one in more]
        await signed_with({secrets[0]: False, **dict.fromkeys(secrets[1:], True)})
        # One that has leaked signs nothing any more.
        last = (await rotated({"overlap_s": 0})).json()["secret"]
        await signed_with({secrets[-1]: False, secrets[-2]: True, last: True})
        # The time of all old ones is over.
        over = "UPDATE webhooks SET version = version + 1, old_until = ARRAY[now(), now(), now()]"
        await quick.pool.execute(over)
        await signed_with({**dict.fromkeys(secrets, False), last: True})

        async def forgotten() -> bool:
            kept = await quick.pool.fetchval("SELECT old_secrets FROM webhooks")
            return kept == [] and (await client.get(path)).json()["old_secret_until"] is None

        await eventually(forgotten)
        assert "secret" not in (await client.get(path)).json()
        for wrong in ({"overlap_s": 86_401}, {"overlap_s": -1}, {"overlap_s": "1"}):
            answer = await client.post(f"{path}/rotate-secret", json=wrong)
            problem(answer, 422, "validation_failed")


async def test_of_rotations_at_once_no_secret_is_lost(site: Any) -> None:
    async with site.client("ann") as client:
        account = await site.cash(client)
        hook = await subscribe(client, account, "https://example.com/a")
        path = f"/v1/webhooks/{hook['id']}/rotate-secret"
        answers = await asyncio.gather(*(client.post(path) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        made = {answer.json()["secret"] for answer in answers}
        row = await site.pool.fetchrow("SELECT secret, old_secrets FROM webhooks")
        known = {secret_text(one) for one in (row["secret"], *row["old_secrets"])}
        assert known == made | {hook["secret"]}


async def test_too_many_dead_letters_disable_and_their_owner_enables(
    new_site: Any, site: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    strict = await new_site(webhooks={**FAST, "attempts_max": 1, "dead_letters_max": 2})
    async with strict.client("ann") as client:
        account = await strict.cash(client)
        receiver.status = 500
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        path = f"/v1/webhooks/{hook['id']}"
        await deposits(strict, client, account, 2)
        await deliver(strict, database_url)

        async def disabled() -> bool:
            return (await client.get(path)).json()["disabled_reason"] == "dead_letters"

        await eventually(disabled)
        assert receiver.sequences() == [1, 2]
        receiver.status = 200
        changed = await client.patch(path, headers={"If-Match": "*"}, json={"enabled": True})
        assert (changed.json()["enabled"], changed.json()["disabled_reason"]) == (True, None)
        await eventually(lambda: receiver.sequences() == [1, 2, 3, 4, 5])
        receiver.status = 410
        await deposits(strict, client, account, 1)

        async def gone() -> bool:
            return (await client.get(path)).json()["disabled_reason"] == "gone"

        await eventually(gone)
        assert receiver.sequences()[5:] == [6]
        paused = await client.patch(
            path, headers={"If-Match": "*"}, json={"enabled": False, "kinds": ["order.*"]}
        )
        assert paused.json()["kinds"] == ["order.*"]
        assert paused.json()["disabled_reason"] == "gone"


async def test_one_of_several_processes_delivers_and_its_successor_goes_on(
    quick: Any, new_site: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    other = await new_site(webhooks=FAST)
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        first = await deliver(quick, database_url)
        await first.held.wait()
        second = await deliver(other, database_url)
        await deposits(quick, client, account, 3)
        await eventually(lambda: len(receiver.messages) >= 7)

        async def stored() -> bool:
            return (await client.get(f"/v1/webhooks/{hook['id']}")).json()["sequence"] == 7

        await eventually(stored)
        assert not second.held.is_set()
        await first.stop()
        await deposits(quick, client, account, 3)
        await eventually(lambda: len(receiver.messages) >= 13)
        assert receiver.sequences() == list(range(1, 14))


async def test_attempts_survive_their_process(
    quick: Any, new_site: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    slow = await new_site(webhooks={**FAST, "retry_base_s": 3600, "retry_max_s": 3600})
    async with slow.client("ann") as client:
        account = await slow.cash(client)
        receiver.status = 500
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        path = f"/v1/webhooks/{hook['id']}"
        first = await deliver(slow, database_url)

        async def retrying() -> bool:
            items = (await client.get(f"{path}/deliveries")).json()["items"]
            return bool(items) and items[0]["state"] == "retrying"

        await eventually(retrying)
        await first.stop()
        due = "UPDATE webhook_deliveries SET next_at = now(), attempts = 2"
        await slow.pool.execute(due)
        await deliver(slow, database_url)

        async def dead() -> bool:
            items = (await client.get(f"{path}/dead-letters")).json()["items"]
            return bool(items) and items[0]["attempts"] == 3

        await eventually(dead)
        assert receiver.sequences() == [1, 1]


@pytest.mark.parametrize("way", ["replay", "change"])
async def test_what_waits_is_tried_at_once_when_its_owner_comes(
    new_site: Any,
    site: Any,
    deliver: Any,
    database_url: str,
    receiver: Receiver,
    eventually: Any,
    way: str,
) -> None:
    slow = await new_site(webhooks={**FAST, "retry_base_s": 3600, "retry_max_s": 3600})
    async with slow.client("ann") as client:
        account = await slow.cash(client)
        receiver.status = 500
        hook = await subscribe(client, account, receiver.url, from_sequence=1)
        path = f"/v1/webhooks/{hook['id']}"
        waiting = REGISTRY.get_sample_value("tbot_webhooks_retrying") or 0.0
        await deliver(slow, database_url)
        await eventually(lambda: REGISTRY.get_sample_value("tbot_webhooks_retrying") == waiting + 1)
        receiver.status = 204
        if way == "replay":
            answer = await client.post(f"{path}/replay", json={"from_sequence": 1})
        else:
            match = {"If-Match": "*"}
            answer = await client.patch(path, headers=match, json={"enabled": True})
        assert answer.status_code == 200, answer.text

        async def delivered() -> bool:
            items = (await client.get(f"{path}/deliveries")).json()["items"]
            return [(d["state"], d["attempts"]) for d in items] == [("delivered", 1)]

        await eventually(delivered)
        assert receiver.sequences() == [1, 1]


async def test_a_journal_that_is_another_one_is_not_followed(
    quick: Any, deliver: Any, database_url: str, receiver: Receiver, eventually: Any
) -> None:
    async with quick.client("ann") as client:
        account = await quick.cash(client)
        hook = await subscribe(client, account, receiver.url)
        await quick.pool.execute("UPDATE webhooks SET hash = $1", bytes(32))
        await deposits(quick, client, account, 1)
        await deliver(quick, database_url)

        async def disabled() -> bool:
            found = (await client.get(f"/v1/webhooks/{hook['id']}")).json()
            return found["disabled_reason"] == "journal_changed"

        await eventually(disabled)
        assert receiver.messages == []


@pytest.mark.parametrize("kind", ["bogus.*", "order.placed", "order", "order.fil*", "", "orders.*"])
async def test_a_kind_that_nothing_has_is_refused_with_those_there_are(
    site: Any, problem: Any, kind: str
) -> None:
    async with site.client("ann") as client:
        account = await site.cash(client)
        body = {"account_id": account["id"], "url": "https://example.com/a"}
        kinds = ["order.filled", kind]
        answer = await client.post("/v1/webhooks", json={**body, "kinds": kinds})
        (error,) = problem(answer, 422, "validation_failed")["errors"]
        assert error["pointer"] == "/kinds/1"
        assert "payment.*" in error["detail"]
        assert "payment.succeeded" in error["detail"]
        made = (await client.post("/v1/webhooks", json={**body, "kinds": ["*"]})).json()
        path = f"/v1/webhooks/{made['id']}"
        changed = await client.patch(path, headers={"If-Match": "*"}, json={"kinds": kinds})
        problem(changed, 422, "validation_failed")


async def test_webhooks_are_their_owners_alone_and_so_many(
    new_site: Any, site: Any, problem: Any
) -> None:
    few = await new_site(webhooks={"per_user_max": 2})
    async with few.client("ann") as client, few.client("bob") as bob:
        account = await few.cash(client)
        body = {"account_id": account["id"], "url": "https://example.com/a"}
        keyed = {"Idempotency-Key": "one"}
        first = await client.post("/v1/webhooks", json=body, headers=keyed)
        again = await client.post("/v1/webhooks", json=body, headers=keyed)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        path = first.headers["location"]
        await subscribe(client, account, "https://example.com/b")
        problem(await client.post("/v1/webhooks", json=body), 422, "webhooks_max")
        page = (await client.get("/v1/webhooks?limit=1")).json()
        WebhookPage.model_validate(page)
        rest = (await client.get(f"/v1/webhooks?limit=1&cursor={page['next']}")).json()
        assert [p["url"][-1] for p in (*page["items"], *rest["items"])] == ["a", "b"]
        assert (await bob.get("/v1/webhooks")).json()["items"] == []
        problem(await bob.post("/v1/webhooks", json=body), 404, "not_found")
        for method, suffix, content in (
            ("GET", "", None),
            ("PATCH", "", {"enabled": False}),
            ("DELETE", "", None),
            ("POST", "/replay", {"from_sequence": 1}),
            ("POST", "/rotate-secret", None),
            ("GET", "/deliveries", None),
            ("GET", "/dead-letters", None),
        ):
            problem(
                await bob.request(method, path + suffix, json=content, headers={"If-Match": "*"}),
                404,
                "not_found",
            )
        problem(
            await client.post(f"{path}/replay", json={"from_sequence": 99}),
            422,
            "validation_failed",
        )
        assert (await client.delete(path)).status_code == 204
        problem(await client.delete(path), 404, "not_found")
        problem(await client.get(f"/v1/webhooks/{uuid4()}"), 404, "not_found")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/",
        "file:///etc/passwd",
        "//example.com/",
        "https://",
        "https://ann:secret@example.com/",
        "https://example.com/#x",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://169.254.169.254/latest/",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "https://exämple.com/",
        "https://example.com/\r\nX: y",
        "https://example.com/" + "a" * 2048,
        "",
    ],
)
async def test_urls_that_nobody_may_subscribe(site: Any, problem: Any, url: str) -> None:
    if url == "http://127.1/":
        # No literal to Python, but the resolver knows it: refused when it is resolved.
        sender = Sender(False, 1.0, 1)
        assert (await sender.post(url, {}, b"")).status is None
        await sender.close()
        return
    if url:
        with pytest.raises(Forbidden):
            check_url(url, False)
    async with site.client("ann") as client:
        account = await site.cash(client)
        answer = await client.post("/v1/webhooks", json={"account_id": account["id"], "url": url})
        problem(answer, 422, "validation_failed")


async def test_a_name_is_resolved_once_checked_and_used_as_checked(receiver: Receiver) -> None:
    port = int(receiver.url.split("/")[2].split(":")[1])
    asked: list[str] = []

    def resolving(*addresses: str) -> Any:
        async def resolve(host: str, _port: int) -> list[str]:
            asked.append(host)
            return list(addresses)

        return resolve

    url = f"http://rebinding.example:{port}/x"
    for addresses in (["127.0.0.1"], ["8.8.8.8", "10.1.1.1"], ["::ffff:127.0.0.1"], []):
        sender = Sender(False, 30.0, 1, resolving(*addresses))
        outcome = await sender.post(url, {}, b"{}")
        await sender.close()
        assert outcome.status is None
        assert outcome.error is not None and "address" in outcome.error
    assert receiver.messages == []
    # Where it is allowed, the request goes to the very address that was resolved, once.
    asked.clear()
    sender = Sender(True, 30.0, 1, resolving("127.0.0.1"))
    outcome = await sender.post(url, {}, b"{}")
    await sender.close()
    assert (outcome.status, outcome.error) == (204, None)
    assert asked == ["rebinding.example"]
    assert receiver.messages[0][0]["host"] == f"rebinding.example:{port}"
