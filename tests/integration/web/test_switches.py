"""Kill switches over HTTP: the big red button, and starting again."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import httpx

from tbot.auth.scopes import Role
from tbot.db.pool import transaction
from tbot.gateway import switches
from tbot.journal.commands import GATEWAY, Actor
from tbot.web.ratelimit import is_stop

ORDER = {"symbol": "BTC-USDT", "side": "buy", "type": "limit", "quantity": "0.1"}
ORDER |= {"limit_price": "99"}
ANY = {"If-Match": "*"}
TRADING = "/v1/switches/trading"
WHY = {"reason": "prices look wrong"}


async def turns(client: httpx.AsyncClient, path: str = TRADING) -> list[tuple[bool, str]]:
    answer = await client.get(f"{path}/turns")
    assert answer.status_code == 200, answer.text
    return [(turn["halted"], turn["reason"]) for turn in answer.json()["items"]]


async def test_what_is_halted_is_refused_with_the_reason_until_it_is_resumed(
    site: Any, problem: Any
) -> None:
    async with site.client("root") as root, site.client("ann") as ann:
        account = await site.account(ann)
        order = {**ORDER, "account_id": account["id"]}
        placed = await ann.post("/v1/orders", json=order)
        assert placed.status_code == 201
        answer = await root.post(f"{TRADING}/halt", json=WHY)
        halted = answer.json()
        assert (answer.status_code, halted["name"], halted["halted"]) == (200, "trading", True)
        assert (halted["reason"], halted["who"]) == (WHY["reason"], "user root")
        refused = await ann.post("/v1/orders", json=order, headers={"Idempotency-Key": "k"})
        assert problem(refused, 422, "venue_halted")["detail"] == WHY["reason"]
        assert (await ann.delete(f"/v1/orders/{placed.json()['id']}")).is_success
        read = await root.get(TRADING)
        assert (read.json(), read.headers["etag"]) == (halted, answer.headers["etag"])

        tag = {"If-Match": answer.headers["etag"]}
        resumed = await root.post(f"{TRADING}/resume", json={"reason": "fixed"}, headers=tag)
        assert (resumed.status_code, resumed.json()["halted"]) == (200, False)
        again = await ann.post("/v1/orders", json=order, headers={"Idempotency-Key": "k"})
        assert again.status_code == 201, "the refusal was of that moment"
        assert await turns(root) == [(False, "fixed"), (True, WHY["reason"])]


async def test_who_turned_it_is_kept_with_session_address_and_request(site: Any) -> None:
    async with site.client("root") as root, site.client() as phone:
        user = (await root.get("/v1/me")).json()["id"]
        scopes = ["switches:operate", "switches:read"]
        key = (await root.post("/v1/api-keys", json={"name": "phone", "scopes": scopes})).json()
        phone.headers["X-API-Key"] = key["key"]
        by_key = await phone.post(f"{TRADING}/halt", json=WHY)
        by_login = await root.post(f"{TRADING}/resume", json=WHY, headers=ANY)
        session = (await root.get("/v1/sessions")).json()["items"][0]["id"]
        told = (await root.get(f"{TRADING}/turns")).json()["items"]
        sessions = [session, key["id"]]
        words = ["user root", "user root by key phone"]
        for turn, answer, shown, who in zip(told, (by_login, by_key), sessions, words, strict=True):
            expected = {"kind": "user", "user": user, "session": shown, "address": "127.0.0.1"}
            expected["request"] = answer.headers["x-request-id"]
            if "key" in who:
                expected["name"] = "phone"
            assert (turn["by"], turn["who"]) == (expected, who)
            assert answer.json()["since"] == turn["at"]
        rows = await site.pool.fetch("SELECT actor FROM switch_changes ORDER BY id DESC")
        assert [json.loads(row["actor"]) for row in rows] == [turn["by"] for turn in told]


async def test_halting_again_for_the_same_reason_changes_nothing(site: Any) -> None:
    async with site.client("root") as root:
        first = await root.post(f"{TRADING}/halt", json=WHY, headers={"Idempotency-Key": "k"})
        for headers in ({}, {"Idempotency-Key": "k"}, {"Idempotency-Key": "other"}):
            again = await root.post(f"{TRADING}/halt", json=WHY, headers=headers)
            assert (again.json(), again.headers["etag"]) == (first.json(), first.headers["etag"])
            replayed = headers.get("Idempotency-Key") == "k"
            assert ("idempotent-replayed" in again.headers) == replayed
        both = [root.post("/v1/switches/transfers/halt", json=WHY) for _ in range(4)]
        assert len({answer.text for answer in await asyncio.gather(*both)}) == 1
        assert await turns(root) == [(True, WHY["reason"])]
        worse = await root.post(f"{TRADING}/halt", json={"reason": "worse"})
        assert worse.json()["reason"] == "worse"
        assert await turns(root) == [(True, "worse"), (True, WHY["reason"])]


async def test_halting_takes_no_fresh_proof_and_resuming_does(site: Any, problem: Any) -> None:
    async with site.client("root") as root, site.client() as phone:
        body = {"name": "phone", "scopes": ["switches:operate"]}
        phone.headers["X-API-Key"] = (await root.post("/v1/api-keys", json=body)).json()["key"]
        await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
        assert (await root.post(f"{TRADING}/halt", json=WHY)).status_code == 200
        answer = await root.post(f"{TRADING}/resume", json=WHY, headers=ANY)
        document = problem(answer, 403, "step_up_required")
        assert document["method"] == "password"
        assert 'error="insufficient_user_authentication"' in answer.headers["www-authenticate"]
        halted = await phone.post("/v1/switches/withdrawals/halt", json=WHY)
        assert halted.status_code == 200, halted.text
        for path in (TRADING, "/v1/switches/withdrawals"):
            refused = await phone.post(f"{path}/resume", json=WHY, headers=ANY)
            problem(refused, 403, "key_not_allowed")
        problem(await phone.get(TRADING), 403, "insufficient_scope")
        proof = {"password": "correct horse battery staple"}
        assert (await root.post("/v1/token/step-up", json=proof)).status_code == 200
        assert (await root.post(f"{TRADING}/resume", json=WHY, headers=ANY)).status_code == 200


async def test_only_the_halt_that_was_seen_is_resumed(site: Any, problem: Any) -> None:
    async with site.client("root") as root:
        never = (await root.get(TRADING)).headers["etag"]
        seen = await root.post(f"{TRADING}/halt", json=WHY)
        await root.post(f"{TRADING}/halt", json={"reason": "a thief"})
        path, body = f"{TRADING}/resume", {"reason": "prices are fine"}
        problem(await root.post(path, json=body), 428, "precondition_required")
        for tag in (seen.headers["etag"], never, f"W/{seen.headers['etag']}"):
            stale = await root.post(path, json=body, headers={"If-Match": tag})
            problem(stale, 412, "precondition_failed")
        now = (await root.get(TRADING)).headers["etag"]
        assert (await root.post(path, json=body, headers={"If-Match": now})).is_success
        problem(await root.post(path, json=body, headers=ANY), 409, "not_halted")
        problem(
            await root.post("/v1/switches/transfers/resume", json=body, headers=ANY),
            409,
            "not_halted",
        )
        assert len(await turns(root)) == 3


async def test_what_would_halt_nothing_is_refused_unless_it_is_to_come(
    site: Any, problem: Any
) -> None:
    async with site.client("root") as root:
        for name, words in (
            ("instrument:paper:BTCUSDT", "known is BTC-USDT"),
            ("venue:papper", "no venue papper is known here"),
            ("instrument:papper:BTC-USDT", "known is paper"),
        ):
            path = f"/v1/switches/{name}"
            refused = await root.post(f"{path}/halt", json=WHY)
            detail = problem(refused, 422, "switch_unknown")["detail"]
            assert words in detail and "`to_come`" in detail
            for answer in (
                await root.get(path),
                await root.get(f"{path}/turns"),
                await root.post(f"{path}/resume", json=WHY, headers=ANY),
            ):
                problem(answer, 404, "not_found")
        for name in ("venues", "Trading", "venue:", "instrument:paper", "venue:a%20b", "%00"):
            refused = await root.post(f"/v1/switches/{name}/halt", json={**WHY, "to_come": True})
            problem(refused, 404, "not_found")
        new = f"/v1/switches/{quote('instrument:paper:NEW-USDT', safe='')}"
        halted = await root.post(f"{new}/halt", json={**WHY, "to_come": True})
        assert halted.json()["name"] == "instrument:paper:NEW-USDT"
        assert (await root.get(new)).json()["halted"] is True
        assert (await root.post(f"{new}/resume", json=WHY, headers=ANY)).is_success
        assert await turns(root, new) == [(False, WHY["reason"]), (True, WHY["reason"])]
        for body in ({}, {"reason": ""}, {"reason": " x"}, {"reason": "x" * 501}, {"reason": 1}):
            problem(await root.post(f"{TRADING}/halt", json=body), 422, "validation_failed")
        problem(
            await root.post(f"{TRADING}/halt", json={**WHY, "to_come": "yes"}),
            422,
            "validation_failed",
        )


async def test_a_venue_that_lost_its_memory_is_resumed_where_t_bot_runs(
    site: Any, problem: Any
) -> None:
    async with transaction(site.pool) as connection:
        await connection.execute(
            "INSERT INTO venue_sessions (venue, session_id, since, found_id)"
            " VALUES ('paper', 'one', now(), 'two')"
        )
        await switches.halt(connection, "venue:paper", "paper lost its memory", GATEWAY)
    async with site.client("root") as root:
        paper = "/v1/switches/venue:paper"
        # Nor does another reason hide it.
        for reason in ("paper lost its memory", "an inspection"):
            await root.post(f"{paper}/halt", json={"reason": reason})
            refused = await root.post(f"{paper}/resume", json={"reason": "go"}, headers=ANY)
            detail = problem(refused, 409, "venue_reset")["detail"]
            assert "`tbot switches resume venue:paper`" in detail
        now = (await root.get(paper)).json()
        assert (now["halted"], now["reason"]) == (True, "an inspection")
        assert await turns(root, paper) == [
            (True, "an inspection"),
            (True, "paper lost its memory"),
        ]
        first = (await root.get(f"{paper}/turns")).json()["items"][-1]
        assert (first["who"], first["by"]) == ("gateway", {"kind": "gateway"})


async def test_the_list_has_what_can_be_halted_and_what_was_turned(site: Any, problem: Any) -> None:
    async with site.client("root") as root:
        never = (await root.get("/v1/switches")).json()
        names = ["trading", "transfers", "venue:paper", "withdrawals"]
        assert [one["name"] for one in never["items"]] == names
        told = ("reason", "since", "who", "by")
        for one in never["items"]:
            assert one == {"name": one["name"], "halted": False, **dict.fromkeys(told)}
            path = f"/v1/switches/{one['name']}"
            assert (await root.get(path)).json() == one
            assert await turns(root, path) == []
        eth = "instrument:paper:ETH-USDT"
        for name in (eth, "transfers"):
            assert (await root.post(f"/v1/switches/{name}/halt", json=WHY)).is_success
        seen = []
        path = "/v1/switches?limit=2"
        while path:
            answer = await root.get(path)
            seen += [one["name"] for one in answer.json()["items"]]
            path = answer.links.get("next", {}).get("url")
        assert seen == [eth, *names]
        for halted, expected in (("true", [eth, "transfers"]), ("false", [names[0], *names[2:]])):
            page = (await root.get(f"/v1/switches?halted={halted}")).json()
            assert [one["name"] for one in page["items"]] == expected
            first = (await root.get(f"/v1/switches?halted={halted}&limit=1")).json()
            cursor = first["next"]
            problem(await root.get(f"/v1/switches?cursor={cursor}"), 400, "invalid_cursor")
            path = f"/v1/switches?halted={halted}&cursor={cursor}"
            assert (await root.get(path)).json()["items"][0]["name"] == expected[1]


async def test_turns_come_in_pages(site: Any, problem: Any) -> None:
    ann = Actor("operator", name="ann@desk")
    for reason in "abcde":
        async with transaction(site.pool) as connection:
            await switches.halt(connection, "trading", reason, ann)
    async with site.client("root") as root:
        path, seen = f"{TRADING}/turns?limit=2", ""
        while path:
            answer = await root.get(path)
            seen += "".join(turn["reason"] for turn in answer.json()["items"])
            path = answer.links.get("next", {}).get("url")
        assert seen == "edcba"
        cursor = (await root.get(f"{TRADING}/turns?limit=2")).json()["next"]
        other = await root.get(f"/v1/switches/transfers/turns?cursor={cursor}")
        problem(other, 400, "invalid_cursor")


async def test_after_the_answer_no_process_accepts_an_order(new_site: Any) -> None:
    """The very first halt, too, while another process takes orders as fast as it can."""
    here, other = await new_site(), await new_site()
    await here.user("ann")
    await here.user("root", Role.ADMIN)
    answers: list[tuple[bool, str]] = []
    begun, answered = asyncio.Event(), False

    async def place_on(client: httpx.AsyncClient, order: dict[str, str]) -> None:
        late = 0
        while late < 5:
            after = answered
            told = (await client.post("/v1/orders", json=order)).json()
            answers.append((after, told.get("code", "taken")))
            begun.set()
            late += after

    async with AsyncExitStack() as stack:
        root, *anns = [
            await stack.enter_async_context(one.client(name))
            for one, name in ((here, "root"), (here, "ann"), (other, "ann"))
        ]
        accounts = [await here.account(anns[0], USDT="100000") for _ in anns]
        async with asyncio.TaskGroup() as group:
            for client, account in zip(anns, accounts, strict=True):
                for _ in range(4):
                    group.create_task(place_on(client, {**ORDER, "account_id": account["id"]}))
            await begun.wait()
            halted = await root.post(f"{TRADING}/halt", json=WHY)
            assert halted.status_code == 200
            answered = True
    late = [code for after, code in answers if after]
    assert len(late) == 40
    assert set(late) == {"venue_halted"}
    assert (False, "taken") in answers


async def test_who_used_up_everything_can_still_halt(new_site: Any) -> None:
    site = await new_site(limits={"writes": "1/9000s", "user": "2/9000s"})
    await site.user("root", Role.ADMIN)
    async with site.client("root") as root:
        while (await root.get("/v1/switches")).status_code != 429:
            pass
        answer = await root.post(f"{TRADING}/halt", json=WHY)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"].startswith('"cancels"')
        refused = await root.post(f"{TRADING}/resume", json=WHY, headers=ANY)
        assert refused.json()["code"] == "quota_exceeded"


def test_halts_are_known_before_their_routes_are() -> None:
    assert is_stop("POST", "/v1/switches/venue:paper/halt")
    assert not is_stop("POST", "/v1/switches/venue:paper/resume")
    assert not is_stop("GET", "/v1/switches/venue:paper/halt")
    assert not is_stop("POST", "/v1/accounts/halt")
