"""Accounts shared with other users: the journal, what members see, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from tbot.boot import projections
from tbot.verify import verify


async def who(client: Any) -> str:
    return str((await client.get("/v1/me")).json()["id"])


async def test_sharing_is_told_in_three_journals_at_once(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob:
        account = (await site.account(ann))["id"]
        members, bobs = f"/v1/accounts/{account}/members", await who(bob)
        problem(await bob.get(members), 404, "not_found")
        for _ in range(2):  # the second changes nothing
            answer = await ann.put(f"{members}/{bobs}", json={"role": "viewer"})
            assert answer.json()["role"] == "viewer", answer.text
        assert (await ann.put(f"{members}/{bobs}", json={"role": "trader"})).status_code == 200
        items = (await bob.get(members)).json()["items"]
        assert [(one["user_id"], one["role"]) for one in items] == [
            (await who(ann), "owner"),
            (bobs, "trader"),
        ]
        assert items[0]["since"] is None
        shared = (await bob.get("/v1/accounts", params={"shared": "true"})).json()["items"]
        assert [one["id"] for one in shared] == [account]
        assert (await bob.get("/v1/accounts")).json()["items"] == []
        journal = (await ann.get(f"/v1/accounts/{account}/journal")).json()["entries"]
        assert str(journal).count("account.shared") == 2
        for client in (ann, bob):
            events = (await client.get("/v1/me/security-events")).json()["items"]
            told = [one["data"] for one in events if one["kind"] == "security.sharing_changed"]
            assert [one["role"] for one in told] == ["trader", "viewer"]
            assert {one["account"] for one in told} == {account}
        assert (await bob.delete(f"{members}/{bobs}")).status_code == 204, "members may leave"
        problem(await bob.get(members), 404, "not_found")
        problem(await ann.delete(f"{members}/{bobs}"), 404, "not_found")
    verdict = await verify(site.pool._connect_args[0], projections())
    assert verdict.sound, verdict.faults
    await site.pool.execute(
        "INSERT INTO account_members VALUES ($1::uuid, $2::uuid, 'owner', now())", account, bobs
    )
    verdict = await verify(site.pool._connect_args[0], projections())
    assert not verdict.sound, "a member that the journal knows nothing of is found"


async def test_what_cannot_be_shared(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob:
        account = (await site.account(ann))["id"]
        members = f"/v1/accounts/{account}/members"
        body = {"role": "viewer"}
        mine = await ann.put(f"{members}/{await who(ann)}", json=body)
        problem(mine, 422, "validation_failed")
        nobody = await ann.put(f"{members}/{account}", json=body)
        problem(nobody, 404, "not_found")
        answer = await ann.put(f"{members}/{await who(bob)}", json={"role": "admin"})
        problem(answer, 422, "validation_failed")
        await site.pool.execute("UPDATE sessions SET password_at = now() - interval '1 day'")
        stale = await ann.put(f"{members}/{await who(bob)}", json=body)
        problem(stale, 403, "step_up_required")


async def test_parallel_changes_of_one_member_leave_one_of_them(site: Any) -> None:
    async with site.client("ann") as ann, site.client("bob") as bob:
        account = (await site.account(ann))["id"]
        path = f"/v1/accounts/{account}/members/{await who(bob)}"
        for _ in range(5):
            answers = await asyncio.gather(
                *(ann.put(path, json={"role": role}) for role in ("viewer", "trader", "owner") * 2)
            )
            assert {answer.status_code for answer in answers} <= {200, 201}
        items = (await ann.get(f"/v1/accounts/{account}/members")).json()["items"]
        assert len(items) == 2
    verdict = await verify(site.pool._connect_args[0], projections())
    assert verdict.sound, verdict.faults
