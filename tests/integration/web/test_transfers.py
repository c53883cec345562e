"""Transfers over HTTP: made, resolved, reversed, listed; refused; in bulk; once."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tbot.core.ids import new_id
from tbot.web.account_forms import AccountOut
from tbot.web.transfer_bulk import Bulk
from tbot.web.transfer_forms import BulkOut, LinkedOut, TransferOut, TransferPage

NOBODY = "00000000-0000-7000-8000-000000000000"

ANY = {"If-Match": "*"}
"""A change of whatever version there is."""


def body(source: str, target: str, amount: str = "10", **more: Any) -> dict[str, Any]:
    """A request to transfer USDT."""
    return {
        "source_account_id": source,
        "target_account_id": target,
        "asset": "USDT",
        "amount": amount,
        **more,
    }


async def made(client: httpx.AsyncClient, *args: str, **more: Any) -> dict[str, Any]:
    """A transfer that is accepted."""
    answer = await client.post("/v1/transfers", json=body(*args, **more))
    assert answer.status_code == 201, answer.text
    transfer: dict[str, Any] = answer.json()
    TransferOut.model_validate(transfer)
    assert answer.headers["location"] == f"/v1/transfers/{transfer['id']}"
    assert (await client.get(answer.headers["location"])).json() == transfer
    return transfer


async def available(client: httpx.AsyncClient, account: str) -> dict[str, tuple[str, str]]:
    """What is available and held of each asset."""
    answer = await client.get(f"/v1/accounts/{account}/balances")
    return {b["asset"]: (b["available"], b["held"]) for b in answer.json()["balances"]}


async def test_money_moves_to_somebody_else(site: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as a, site.client("bob") as b:
        transfer = await made(a, ann, bob, "12.50", metadata={"invoice": "7 ü"})
        assert (transfer["state"], transfer["posted_amount"]) == ("posted", "12.5")
        assert transfer["metadata"] == {"invoice": "7 ü"}
        assert await available(a, ann) == {"USDT": ("87.5", "0")}
        assert await available(b, bob) == {"USDT": ("12.5", "0")}
        assert (await b.get(f"/v1/transfers/{transfer['id']}")).json() == transfer
        journal = (await b.get(f"/v1/accounts/{bob}/journal")).json()["entries"]
        assert journal[-1]["entry"]["kind"] == "transfer.received"
        assert journal[-1]["entry"]["data"]["transfer"] == transfer["id"]


async def test_two_phases(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as a, site.client("bob") as b:
        first, second, third = [
            await made(a, ann, bob, "30", pending=True, expires_in_s=60) for _ in range(3)
        ]
        assert first["expires_at"] > first["created_at"]
        assert await available(a, ann) == {"USDT": ("10", "90")}
        # Only who pays can post; who would be paid may decline.
        problem(await b.post(f"/v1/transfers/{first['id']}/post"), 403, "transfer_not_allowed")
        posted = await a.post(f"/v1/transfers/{first['id']}/post")
        assert (posted.status_code, posted.json()["posted_amount"]) == (200, "30")
        too_much = await a.post(f"/v1/transfers/{second['id']}/post", json={"amount": "30.01"})
        problem(too_much, 422, "transfer_amount_exceeded")
        part = await a.post(f"/v1/transfers/{second['id']}/post", json={"amount": "1.5"})
        assert (part.json()["state"], part.json()["posted_amount"]) == ("posted", "1.5")
        voided = await b.post(f"/v1/transfers/{third['id']}/void")
        assert (voided.status_code, voided.json()["state"]) == (200, "voided")
        for what, client in (("post", a), ("void", b)):
            again = await client.post(f"/v1/transfers/{third['id']}/{what}")
            document = problem(again, 409, "transfer_not_pending")
            assert document["facts"] == {"state": "voided"}
        assert await available(a, ann) == {"USDT": ("68.5", "0")}
        assert await available(b, bob) == {"USDT": ("31.5", "0")}


async def test_a_reversal_is_for_who_was_paid_and_happens_once(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as a, site.client("bob") as b, site.client("root") as root:
        transfer = await made(a, ann, bob, "40")
        url = f"/v1/transfers/{transfer['id']}/reverse"
        problem(await a.post(url), 403, "transfer_not_allowed")
        answer = await b.post(url, json={"metadata": {"why": "wrong"}})
        assert answer.status_code == 201, answer.text
        reversal = answer.json()
        assert reversal["reverses"] == transfer["id"]
        assert reversal["source_account_id"] == bob
        assert reversal["metadata"] == {"why": "wrong"}
        old = (await a.get(f"/v1/transfers/{transfer['id']}")).json()
        assert old["reversed_by"] == reversal["id"]
        assert await available(a, ann) == {"USDT": ("100", "0")}
        document = problem(await b.post(url), 409, "transfer_reversed")
        assert document["facts"] == {"reversed_by": reversal["id"]}
        of_reversal = await a.post(f"/v1/transfers/{reversal['id']}/reverse")
        problem(of_reversal, 409, "transfer_is_reversal")
        pending = await made(a, ann, bob, "1", pending=True)
        early = await root.post(f"/v1/transfers/{pending['id']}/reverse")
        problem(early, 409, "transfer_not_posted")
        spent = await made(a, ann, bob, "5")
        eve = await site.cash_of("bob")
        await made(b, bob, eve, "5")
        # An administrator may take it back as far as the money is still there.
        gone = await root.post(f"/v1/transfers/{spent['id']}/reverse")
        problem(gone, 422, "insufficient_funds")
        await made(b, eve, bob, "5")
        assert (await root.post(f"/v1/transfers/{spent['id']}/reverse")).status_code == 201


async def test_every_refusal_of_a_new_transfer(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as a, site.client("root") as root:
        trading = (await site.account(a))["id"]
        frozen, closed = await site.cash_of("ann", USDT="1"), await site.cash_of("bob")
        for account, status in ((frozen, "frozen"), (closed, "closed")):
            changed = await root.patch(
                f"/v1/accounts/{account}", headers=ANY, json={"status": status}
            )
            assert changed.json()["status"] == status, changed.text
        before = await site.journal_size()
        for wanted, code in (
            (body(ann, bob, "100.01"), "insufficient_funds"),
            (body(ann, ann), "transfer_same_account"),
            (body(ann, trading), "transfer_crosses_venues"),
            (body(trading, ann), "transfer_crosses_venues"),
            (body(ann, closed), "account_closed"),
            (body(frozen, bob, "1"), "account_frozen"),
            (body(ann, NOBODY), "target_not_found"),
            (body(ann, bob, "0.000000001"), "amount_too_precise"),
            (body(ann, bob) | {"asset": "XYZ"}, "asset_unknown"),
        ):
            document = problem(await a.post("/v1/transfers", json=wanted), 422, code)
            assert document["detail"]
        assert await site.journal_size() == before
        # Money may come into a frozen account.
        await made(a, ann, frozen, "1")


async def test_pending_transfers_of_one_account_are_bounded(new_site: Any, problem: Any) -> None:
    site = await new_site(ledger={"transfers_pending_max": 2})
    await site.user("ann")
    ann, eve = await site.cash_of("ann", USDT="100"), await site.cash_of("ann")
    async with site.client("ann") as client:
        pending = [await made(client, ann, eve, "1", pending=True) for _ in range(2)]
        more = await client.post("/v1/transfers", json=body(ann, eve, "1", pending=True))
        assert problem(more, 422, "transfers_pending_max")["facts"] == {"limit": 2}
        await client.post(f"/v1/transfers/{pending[0]['id']}/void")
        await made(client, ann, eve, "1", pending=True)


async def test_somebody_elses_accounts_and_transfers_are_not_there(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob", USDT="100")
    await site.user("eve")
    async with site.client("ann") as a, site.client("eve") as eve:
        problem(await a.post("/v1/transfers", json=body(bob, ann)), 404, "not_found")
        problem(await a.post("/v1/transfers", json=body(NOBODY, ann)), 404, "not_found")
        linked = {"transfers": [body(ann, bob), body(bob, ann)]}
        problem(await a.post("/v1/transfers/linked", json=linked), 404, "not_found")
        transfer = await made(a, ann, bob, pending=True)
        url = f"/v1/transfers/{transfer['id']}"
        problem(await eve.get(url), 404, "not_found")
        for what in ("post", "void", "reverse"):
            problem(await eve.post(f"{url}/{what}"), 404, "not_found")
        problem(await eve.get(f"/v1/transfers?account_id={ann}"), 404, "not_found")
        assert (await eve.get("/v1/transfers")).json() == {"items": [], "next": None}
        for path in (NOBODY, "x"):
            problem(await a.get(f"/v1/transfers/{path}"), 404, "not_found")
            problem(await a.post(f"/v1/transfers/{path}/void"), 404, "not_found")
    assert await available_of(site, "ann", ann) == {"USDT": ("90", "10")}


async def available_of(site: Any, username: str, account: str) -> dict[str, tuple[str, str]]:
    """As `available`, logged in for it."""
    async with site.client(username) as client:
        return await available(client, account)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"amount": "0"}, "/amount"),
        ({"amount": "-1"}, "/amount"),
        ({"amount": 1}, "/amount"),
        ({"amount": "1e2"}, "/amount"),
        ({"asset": "usdt"}, "/asset"),
        ({"source_account_id": "mine"}, "/source_account_id"),
        ({"pending": "yes"}, "/pending"),
        ({"expires_in_s": 5}, "/expires_in_s"),
        ({"pending": True, "expires_in_s": 0}, "/expires_in_s"),
        ({"pending": True, "expires_in_s": 1.5}, "/expires_in_s"),
        ({"pending": True, "expires_in_s": 10**9}, "/expires_in_s"),
        ({"metadata": {"": "x"}}, "/metadata/"),
        ({"metadata": {"k": "v" * 501}}, "/metadata/k"),
        ({"metadata": {"k": 1}}, "/metadata/k"),
        ({"metadata": {str(n): "" for n in range(21)}}, "/metadata"),
        ({"memo": "x"}, "/memo"),
    ],
)
async def test_bad_input(site: Any, problem: Any, change: dict[str, Any], pointer: str) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as client:
        wanted = body(ann, bob) | change
        before = await site.journal_size()
        document = problem(
            await client.post("/v1/transfers", json=wanted), 422, "validation_failed"
        )
        assert document["errors"][0]["pointer"].startswith(pointer)
        linked = await client.post(
            "/v1/transfers/linked", json={"transfers": [body(ann, bob), wanted]}
        )
        document = problem(linked, 422, "validation_failed")
        assert document["errors"][0]["pointer"].startswith(f"/transfers/1{pointer}")
        bulk = await client.post("/v1/transfers/bulk", json={"transfers": [wanted]})
        (result,) = bulk.json()["results"]
        assert result["problem"]["errors"][0]["pointer"].startswith(pointer)
        assert await site.journal_size() == before


async def test_linked_transfers_pass_through_an_account_or_do_nothing(
    site: Any, problem: Any
) -> None:
    ann, mid, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("ann"), None
    bob = await site.cash_of("bob")
    async with site.client("ann") as client:
        wanted = {"transfers": [body(ann, mid, "60"), body(mid, bob, "60", pending=True)]}
        answer = await client.post("/v1/transfers/linked", json=wanted)
        assert answer.status_code == 201, answer.text
        LinkedOut.model_validate(answer.json())
        group = answer.json()["group_id"]
        assert {one["group_id"] for one in answer.json()["transfers"]} == {group}
        assert await available(client, mid) == {"USDT": ("0", "60")}
        before = await site.journal_size()
        refused = await client.post("/v1/transfers/linked", json=wanted)
        document = problem(refused, 422, "insufficient_funds")
        assert document["facts"]["transfer"] == 0
        later = {"transfers": [body(ann, mid, "40"), body(mid, bob, "40.01")]}
        document = problem(
            await client.post("/v1/transfers/linked", json=later), 422, "insufficient_funds"
        )
        assert (document["facts"]["transfer"], document["facts"]["available"]) == (1, "40")
        unknown = {"transfers": [body(ann, mid, "40"), body(mid, NOBODY, "1")]}
        document = problem(
            await client.post("/v1/transfers/linked", json=unknown), 422, "target_not_found"
        )
        assert document["facts"] == {"transfer": 1}
        for number in (0, 1, 101):
            few = {"transfers": [body(ann, mid, "0.01")] * number}
            problem(await client.post("/v1/transfers/linked", json=few), 422, "validation_failed")
        assert await site.journal_size() == before


async def test_a_bulk_request_has_a_result_for_each(site: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob", USDT="5")
    async with site.client("ann") as client:
        items = [
            body(ann, bob, "60"),
            body(ann, bob, "60"),
            body(bob, ann, "1"),
            body(ann, bob, "nothing"),
            "no object",
            body(ann, bob, "40", pending=True),
            None,
        ]
        answer = await client.post("/v1/transfers/bulk", json={"transfers": items})
        assert answer.status_code == 200, answer.text
        BulkOut.model_validate(answer.json())
        results = answer.json()["results"]
        assert [r["status"] for r in results] == [201, 422, 404, 422, 422, 201, 422]
        codes = [r.get("problem", {}).get("code") for r in results]
        assert codes == [
            None,
            "insufficient_funds",
            "not_found",
            "validation_failed",
            "validation_failed",
            None,
            "validation_failed",
        ]
        assert await available(client, ann) == {"USDT": ("0", "40")}
        listed = (await client.get(f"/v1/transfers?account_id={ann}")).json()["items"]
        assert [one["amount"] for one in listed] == ["40", "60"]


async def test_bulk_items_happen_once_each_under_their_keys(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann") as client:
        items = [body(ann, bob, "10"), body(ann, bob, "95"), body(ann, bob, "20", key="mine")]
        headers = {"Idempotency-Key": "run-1"}
        first = await client.post("/v1/transfers/bulk", json={"transfers": items}, headers=headers)
        assert [r["status"] for r in first.json()["results"]] == [201, 422, 201]
        size = await site.journal_size()
        again = await client.post("/v1/transfers/bulk", json={"transfers": items}, headers=headers)
        for old, new in zip(first.json()["results"], again.json()["results"], strict=True):
            assert new.pop("replayed") is True
            assert {k: v for k, v in new.items() if k != "problem"} == {
                k: v for k, v in old.items() if k != "problem"
            }
        BulkOut.model_validate(again.json())
        assert await site.journal_size() == size
        other = {"transfers": [body(ann, bob, "21", key="mine")]}
        (result,) = (await client.post("/v1/transfers/bulk", json=other)).json()["results"]
        assert (result["status"], result["problem"]["code"]) == (422, "idempotency_key_reused")
        twice = await client.post(
            "/v1/transfers/bulk",
            json=other,
            headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "b")],
        )
        problem(twice, 400, "malformed_header")


async def test_a_quick_look_at_an_item_answers_as_a_careful_one(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await site.cash_of("ann", USDT="1000"), await site.cash_of("bob", USDT="5")
    plain = body(ann, bob, "1")
    items = [
        plain,
        *({**plain, "amount": text} for text in ("0", "0.0", "-1", "01", "1.", "1e2", "1,5", "١")),
        *({**plain, "amount": text} for text in ("1" + "0" * 18, "9" * 19, "0." + "1" * 19, " 1")),
        *({**plain, "amount": text} for text in ("0.00000001", "0.000000001", "1.50\n", "2.500")),
        *({**plain, "amount": value} for value in (1, 1.5, None, True, ["1"], {"1": "1"})),
        *({**plain, "asset": text} for text in ("usdt", "USDT\n", "", "X" * 21, "NONE", 7, None)),
        *({**plain, "source_account_id": text} for text in (ann.upper(), ann + "\n", "", 1, bob)),
        *({**plain, "target_account_id": text} for text in ("{" + bob + "}", str(new_id()), ann)),
        *({**plain, "key": text} for text in ("", "a b", 'a"', "k" * 129, 1, None, "k\n")),
        {**plain, "pending": False},
        {**plain, "pending": "yes"},
        {**plain, "metadata": {"a": "b"}},
        {**plain, "expires_in_s": 5},
        {**plain, "more": "b"},
        {name: value for name, value in plain.items() if name != "asset"},
        {**{n: v for n, v in plain.items() if n != "asset"}, "more": "b"},
        {},
        [],
    ]

    def seen(result: dict[str, Any]) -> dict[str, Any]:
        told = {**result.get("problem", {}), **result.get("transfer", {})}
        drop = {"request_id", "id", "created_at", "updated_at"}
        return {"status": result["status"]} | {n: v for n, v in told.items() if n not in drop}

    answers = []
    async with site.client("ann") as client:
        for _ in range(2):
            answer = await client.post("/v1/transfers/bulk", json={"transfers": items})
            answers.append([seen(result) for result in answer.json()["results"]])
            monkeypatch.setattr(Bulk, "_plain", lambda *_: None)
    assert answers[0] == answers[1]
    assert {one["status"] for one in answers[0]} == {201, 404, 422}


async def test_a_key_knows_its_item_however_it_was_read(
    site: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    items = [body(ann, bob, "10"), body(ann, bob, "1", key="mine"), body(ann, bob, "1000")]
    url, headers = "/v1/transfers/bulk", {"Idempotency-Key": "run-2"}
    async with site.client("ann") as client:
        await client.post(url, json={"transfers": [body(ann, bob, "1")]})
        first = await client.post(url, json={"transfers": items}, headers=headers)
        monkeypatch.setattr(Bulk, "_plain", lambda *_: None)
        again = await client.post(url, json={"transfers": items}, headers=headers)
        told = [one | {"replayed": True} for one in first.json()["results"]]
        assert [one["status"] for one in told] == [201, 201, 422]
        assert again.json()["results"] == told


async def test_a_bulk_request_is_bounded(new_site: Any, problem: Any) -> None:
    site = await new_site(ledger={"bulk_transfers_max": 3})
    await site.user("ann")
    ann, eve = await site.cash_of("ann", USDT="100"), await site.cash_of("ann")
    async with site.client("ann") as client:
        for number, status in ((3, 200), (4, 422), (0, 422)):
            wanted = {"transfers": [body(ann, eve, "1")] * number}
            answer = await client.post("/v1/transfers/bulk", json=wanted)
            assert answer.status_code == status
        problem(answer, 422, "validation_failed")
        assert await available(client, eve) == {"USDT": ("3", "0")}


async def test_every_write_happens_once_under_its_key(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("ann")
    async with site.client("ann") as client, site.client("root") as root:

        async def twice(who: httpx.AsyncClient, method: str, url: str, **more: Any) -> Any:
            headers = {"Idempotency-Key": f"{method} {url}".replace(" ", "_")[:128], **ANY}
            first = await who.request(method, url, headers=headers, **more)
            assert first.status_code < 300, first.text
            size = await site.journal_size()
            second = await who.request(method, url, headers=headers, **more)
            assert second.content == first.content
            assert second.status_code == first.status_code
            assert second.headers["idempotent-replayed"] == "true"
            assert second.headers.get("location") == first.headers.get("location")
            assert await site.journal_size() == size
            return first.json()

        held = await twice(client, "POST", "/v1/transfers", json=body(ann, bob, "30", pending=True))
        posted = f"/v1/transfers/{held['id']}/post"
        await twice(client, "POST", posted, json={"amount": "20"})
        await twice(client, "POST", f"/v1/transfers/{held['id']}/reverse")
        other = await made(client, ann, bob, "1", pending=True)
        await twice(client, "POST", f"/v1/transfers/{other['id']}/void")
        linked = {"transfers": [body(ann, bob, "1"), body(bob, ann, "1")]}
        await twice(client, "POST", "/v1/transfers/linked", json=linked)
        await twice(client, "PATCH", f"/v1/accounts/{ann}", json={"name": "mine"})
        await twice(root, "PATCH", f"/v1/accounts/{ann}", json={"status": "frozen"})
        headers = {"Idempotency-Key": f"POST_{posted}"}
        changed = await client.post(posted, headers=headers, json={"amount": "21"})
        problem(changed, 422, "idempotency_key_reused")
        assert await available(client, ann) == {"USDT": ("100", "0")}


async def test_pages_of_transfers(site: Any, problem: Any) -> None:
    ann, eve, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("ann"), None
    bob = await site.cash_of("bob", USDT="100")
    async with site.client("ann") as a, site.client("bob") as b:
        ids = [
            (await made(a, ann, eve, "1"))["id"],
            (await made(a, ann, bob, "1", pending=True))["id"],
            (await made(b, bob, ann, "1"))["id"],
            (await made(b, bob, eve, "1"))["id"],
        ]
        first = await a.get("/v1/transfers?limit=3")
        TransferPage.model_validate(first.json())
        second = await a.get(first.links["next"]["url"])
        listed = first.json()["items"] + second.json()["items"]
        assert [one["id"] for one in listed] == ids[::-1]
        assert second.json()["next"] is None
        of_eve = (await a.get(f"/v1/transfers?account_id={eve}")).json()["items"]
        assert [one["id"] for one in of_eve] == [ids[3], ids[0]]
        pending = (await b.get("/v1/transfers?state=pending")).json()["items"]
        assert [one["id"] for one in pending] == [ids[1]]
        cursor = first.json()["next"]
        problem(await b.get(f"/v1/transfers?cursor={cursor}"), 400, "invalid_cursor")
        problem(await a.get("/v1/transfers?state=lost"), 422, "validation_failed")


async def test_scopes(site: Any, problem: Any) -> None:
    ann, bob = await site.cash_of("ann", USDT="100"), await site.cash_of("bob")
    async with site.client("ann", "account:read") as reader:
        problem(await reader.post("/v1/transfers", json=body(ann, bob)), 403, "insufficient_scope")
        assert (await reader.get("/v1/transfers")).status_code == 200
    async with site.client("ann", "transfers:write") as writer:
        problem(await writer.get("/v1/transfers"), 403, "insufficient_scope")
        problem(
            await writer.patch(f"/v1/accounts/{ann}", headers=ANY, json={}),
            403,
            "insufficient_scope",
        )
        answer = await writer.post("/v1/transfers", json=body(ann, bob))
        assert answer.status_code == 201


async def test_an_owner_changes_name_and_limits_but_neither_status_nor_overdraft(
    site: Any, problem: Any
) -> None:
    ann = await site.cash_of("ann")
    url = f"/v1/accounts/{ann}"
    async with site.client("ann") as client, site.client("bob") as bob:
        answer = await client.patch(
            url,
            headers=ANY,
            json={"name": "pocket", "limits": {"max_open_orders": 3, "price_collar": "0.1"}},
        )
        AccountOut.model_validate(answer.json())
        assert answer.json()["name"] == "pocket"
        assert answer.json()["limits"]["max_open_orders"] == 3
        assert (await client.get(url)).json() == answer.json()
        # A merge patch: what is not named stays, null is the server's own again.
        again = await client.patch(url, headers=ANY, json={"limits": {"price_collar": None}})
        assert again.json()["limits"]["max_open_orders"] == 3
        assert again.json()["limits"]["price_collar"] == "0.05"
        same = await client.patch(url, headers=ANY, json={"name": "pocket"})
        assert same.json()["sequence"] == again.json()["sequence"]
        for change in ({"status": "frozen"}, {"limits": {"overdraft": {"USDT": "5"}}}):
            problem(await client.patch(url, headers=ANY, json=change), 403, "insufficient_scope")
        for change in ({"name": None}, {"status": None}, {"limits": None}, {"venue": "x"}):
            problem(await client.patch(url, headers=ANY, json=change), 422, "validation_failed")
        problem(await bob.patch(url, headers=ANY, json={"name": "x"}), 404, "not_found")


async def test_an_administrator_freezes_closes_and_gives_overdrafts(
    site: Any, problem: Any
) -> None:
    ann, bob = await site.cash_of("ann", USDT="10"), await site.cash_of("bob")
    async with site.client("ann") as client, site.client("root") as root:
        url = f"/v1/accounts/{ann}"
        held = await made(client, ann, bob, "4", pending=True)
        kept = await made(client, ann, bob, "1", pending=True)
        assert (await root.patch(url, headers=ANY, json={"status": "frozen"})).json()[
            "status"
        ] == "frozen"
        frozen = await client.post(f"/v1/transfers/{held['id']}/post")
        problem(frozen, 422, "account_frozen")
        assert (await client.post(f"/v1/transfers/{kept['id']}/void")).status_code == 200
        assert (await root.patch(url, headers=ANY, json={"status": "open"})).json()[
            "status"
        ] == "open"
        assert (await client.post(f"/v1/transfers/{held['id']}/post")).status_code == 200
        document = problem(
            await root.patch(url, headers=ANY, json={"status": "closed"}), 409, "account_not_empty"
        )
        assert document["facts"] == {"balances": {"USDT": "6"}}
        lent = await root.patch(
            url, headers=ANY, json={"limits": {"overdraft": {"USDT": "20", "BTC": "1"}}}
        )
        assert lent.json()["limits"]["overdraft"] == {"USDT": "20", "BTC": "1"}
        await made(client, ann, bob, "26")
        more = await client.post("/v1/transfers", json=body(ann, bob, "0.01"))
        problem(more, 422, "insufficient_funds")
        less = await root.patch(url, headers=ANY, json={"limits": {"overdraft": {"BTC": None}}})
        assert less.json()["limits"]["overdraft"] == {"USDT": "20"}
        bad = {"limits": {"overdraft": {"XYZ": "1"}}}
        problem(await root.patch(url, headers=ANY, json=bad), 422, "asset_unknown")
        trading = (await site.account(client))["id"]
        problem(
            await root.patch(
                f"/v1/accounts/{trading}",
                headers=ANY,
                json={"limits": {"overdraft": {"USDT": "1"}}},
            ),
            422,
            "overdraft_not_allowed",
        )
        empty = await site.cash_of("ann")
        await root.patch(f"/v1/accounts/{empty}", headers=ANY, json={"status": "closed"})
        for change in ({"status": "open"}, {"name": "x"}):
            answer = await root.patch(f"/v1/accounts/{empty}", headers=ANY, json=change)
            problem(answer, 422, "account_closed")


async def test_trading_accounts_of_one_venue_move_money_and_orders_keep_theirs(
    site: Any, problem: Any
) -> None:
    async with site.client("ann") as client:
        one = (await site.account(client, USDT="100"))["id"]
        two = (await site.account(client, USDT="1"))["id"]
        order = {"account_id": one, "symbol": "BTC-USDT", "side": "buy", "type": "limit"}
        order |= {"quantity": "0.5", "limit_price": "98"}
        assert (await client.post("/v1/orders", json=order)).status_code == 201
        refused = await client.post("/v1/transfers", json=body(one, two, "60"))
        assert problem(refused, 422, "insufficient_funds")["facts"]["available"] == "51"
        await made(client, one, two, "51")
        assert await available(client, one) == {"USDT": ("0", "49")}
        assert await available(client, two) == {"USDT": ("52", "0")}


async def test_broken_rules_are_told_with_their_place_and_in_plain_words(
    site: Any, problem: Any
) -> None:
    async with site.client("ann") as client:
        source, target = await site.cash(client), await site.cash(client)
        body = {
            "source_account_id": source["id"],
            "target_account_id": target["id"],
            "asset": "USDT",
            "amount": "1",
        }
        longer = {**body, "pending": True, "expires_in_s": 9_999_999}
        answer = problem(await client.post("/v1/transfers", json=longer), 422, "validation_failed")
        assert answer["detail"] == "/expires_in_s: is at most 2592000"
        alone = await client.post("/v1/transfers/linked", json={"transfers": [body]})
        answer = problem(alone, 422, "validation_failed")
        assert answer["detail"] == "/transfers: has to have at least 2 items"
