"""Payments over HTTP: asked for once, held, approved, paid once whatever the provider does."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest

from tbot.boot import projections
from tbot.core import clock
from tbot.core.errors import ProviderAmbiguous, ProviderNotSent, ProviderRefused
from tbot.core.ids import new_id
from tbot.db.pool import transaction
from tbot.gateway import switches
from tbot.journal.commands import SYSTEM, AccountState
from tbot.ledger import store as ledger_store
from tbot.ledger.payments import Kind, Payments
from tbot.ledger.payments_reports import SubmitWithdrawal
from tbot.ledger.payments_store import PaymentsProjection
from tbot.ledger.provider import Order, Report, Said
from tbot.verify import verify
from tbot.web.payments import PaymentOut, PaymentPage

FAST: dict[str, Any] = {
    "scan_interval_s": 0.02,
    "ask_after_s": 0.05,
    "ask_interval_s_max": 0.2,
    "call_timeout_s": 2.0,
    "breaker_failures": 50,
    "breaker_open_s": 0.05,
}


async def ask(client: Any, kind: str, account: Any, amount: str, **more: Any) -> Any:
    """Ask for a payment of USDT; the answer."""
    body = {"account_id": account["id"], "asset": "USDT", "amount": amount}
    if kind == "withdrawal":
        body["destination"] = "DE89370400440532013000"
    headers = {"Idempotency-Key": more.pop("key")} if "key" in more else {}
    return await client.post(f"/v1/{kind}s", json=body | more, headers=headers)


async def paid(client: Any, account: Any, amount: str) -> Any:
    """A withdrawal that was accepted."""
    answer = await ask(client, "withdrawal", account, amount)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def usdt(client: Any, account: Any) -> tuple[str, str]:
    found = (await client.get(f"/v1/accounts/{account['id']}/balances")).json()["balances"]
    return next(((b["available"], b["held"]) for b in found if b["asset"] == "USDT"), ("0", "0"))


async def settled(client: Any, account: Any, eventually: Any) -> list[dict[str, Any]]:
    """All payments of an account, once none of them is open."""
    found: list[dict[str, Any]] = []

    async def over() -> bool:
        params = {"account_id": account["id"], "limit": 200}
        answer = await client.get("/v1/payments", params=params)
        found[:] = answer.json()["items"]
        return all(p["state"] not in ("pending", "approved", "submitted") for p in found)

    await eventually(over, timeout_s=30)
    return found


async def books_agree(site: Any, dsn: str) -> None:
    """The journal, the tables, and what the provider itself says it moved."""
    verdict = await verify(dsn, projections())
    assert verdict.sound, verdict.faults
    async with site.pool.acquire() as connection:
        moved = await ledger_store.counter_balance(connection, "outside:simulated")
        rows = await connection.fetch(
            "SELECT asset, sum(CASE kind WHEN 'deposit' THEN -amount ELSE amount END) AS moved"
            " FROM simulated_payments WHERE outcome = 'succeeded' GROUP BY asset"
        )
        assert {a: v for a, v in moved.items() if v} == {r["asset"]: r["moved"] for r in rows}


async def test_deposit_and_withdrawal_from_request_to_settlement(
    new_site: Any, site: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    await dispatch(site, database_url)
    async with site.client("ann") as client:
        account = await site.cash(client)
        answer = await ask(client, "deposit", account, "100", metadata={"invoice": "7"})
        assert answer.status_code == 201, answer.text
        PaymentOut.model_validate(answer.json())
        assert answer.headers["location"] == f"/v1/payments/{answer.json()['id']}"
        assert (answer.json()["state"], answer.json()["metadata"]) == ("pending", {"invoice": "7"})
        (deposit,) = await settled(client, account, eventually)
        assert (deposit["state"], deposit["settled"]) == ("succeeded", "100")
        assert "by itself" in deposit["instructions"]
        assert await usdt(client, account) == ("100", "0")
        await paid(client, account, "30")
        withdrawal, _ = await settled(client, account, eventually)
        PaymentOut.model_validate(withdrawal)
        assert (withdrawal["state"], withdrawal["held"]) == ("succeeded", "0")
        assert await usdt(client, account) == ("70", "0")
        journal = (await client.get(f"/v1/accounts/{account['id']}/journal")).json()["entries"]
        by = {e["entry"]["kind"]: e["entry"]["by"] for e in journal}
        assert by["payment.requested"]["kind"] == "user"
        assert {"user", "session", "address", "request"} <= set(by["payment.requested"])
        assert by["payment.submitted"] == {"kind": "system", "name": "payments"}
        assert by["payment.succeeded"]["kind"] == "provider"
        assert {"name", "address", "request"} <= set(by["payment.succeeded"])
    await books_agree(site, database_url)


async def test_a_nasty_provider_pays_everything_once(
    new_site: Any, site: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    """Silence, refusals, failures, returns, duplicates and disorder, all at once."""
    nasty = {
        "seed": 5,
        "delay_s": 0.05,
        "timeout_share": 0.3,
        "failure_share": 0.2,
        "return_share": 0.2,
        "duplicate_share": 0.5,
        "shuffle_share": 0.5,
    }
    site = await new_site(payments=FAST, simulated_provider=nasty)
    async with site.client("ann") as client:
        account = await site.cash(client)
        # What the account starts with is a deposit that the provider knows nothing of.
        await dispatch(site, database_url)
        for _ in range(60):
            answer = await ask(client, "deposit", account, "100")
            assert answer.status_code == 201, answer.text
        deposits = await settled(client, account, eventually)
        assert {d["state"] for d in deposits} == {"succeeded", "failed"}
        come = sum(Decimal(d["settled"]) for d in deposits)

        async def told() -> bool:
            return not await site.pool.fetchval(
                "SELECT count(*) FROM simulated_payments WHERE NOT told"
            )

        # A payment's fate follows from its id: a few more of them where one fate is yet to be had.
        out: list[Any] = []
        while {p["state"] for p in out} != {"succeeded", "failed", "returned"}:
            assert len(out) < 100, "a hundred withdrawals, and not one of each fate"
            for _ in range(20):
                await paid(client, account, "7")
            await settled(client, account, eventually)
            await eventually(told, timeout_s=30)  # a return comes after the success
            found = await settled(client, account, eventually)
            out = [p for p in found if p["kind"] == "withdrawal"]
        left = come - sum(Decimal(p["settled"]) for p in out)
        assert await usdt(client, account) == (f"{left:f}", "0")
        repeated = await site.pool.fetchval("SELECT max(requests) FROM simulated_payments")
        assert repeated > 1, "the provider was never asked twice: the test shows nothing"
    await books_agree(site, database_url)


class Scripted:
    """A provider that answers from a script, and keeps its own list of what it paid."""

    name = "simulated"
    repeatable_s = 3600.0

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.announcements: list[Any] = []
        self.paid: dict[UUID, Order] = {}
        self.calls: list[str] = []

    async def submit(self, order: Order) -> Report:
        self.calls.append("submit")
        answer = self.answers.pop(0) if self.answers else "paid"
        if answer == "lost":  # carried out, and the answer lost
            self.paid[order.payment_id] = order
            raise ProviderAmbiguous("no answer")
        if isinstance(answer, Exception):
            raise answer
        self.paid[order.payment_id] = order
        return self._report(order.payment_id)

    async def look_up(self, payment_id: UUID) -> Report | None:
        self.calls.append("look_up")
        return self._report(payment_id) if payment_id in self.paid else None

    async def announce(self, order: Order) -> str:
        self.calls.append("announce")
        answer = self.announcements.pop(0) if self.announcements else "pay here"
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    def _report(self, payment_id: UUID) -> Report:
        order = self.paid[payment_id]
        return Report(payment_id, Said.SUCCEEDED, order.asset, order.amount, f"s{payment_id}")


@pytest.fixture
async def fast(new_site: Any, site: Any) -> Any:
    """A site whose dispatcher does not wait long, on the users of `site`."""
    return await new_site(payments=FAST)


@pytest.mark.parametrize(
    ("answers", "submits"),
    [
        (["lost"], 1),  # asked, and found
        ([ProviderAmbiguous("?"), ProviderNotSent("?"), "paid"], 3),  # never got there, sent again
        ([ProviderAmbiguous("?"), ProviderRefused("?"), "paid"], 3),  # a no that proves nothing
    ],
)
async def test_an_unclear_submission_is_asked_about_and_paid_once(
    fast: Any, dispatch: Any, database_url: str, eventually: Any, answers: Any, submits: int
) -> None:
    provider = Scripted(*answers)
    await dispatch(fast, database_url, provider)
    async with fast.client("ann") as client:
        account = await fast.cash(client, USDT="100")
        withdrawal = await paid(client, account, "30")
        found = await settled(client, account, eventually)
        assert found[0]["id"] == withdrawal["id"]
        assert found[0]["state"] == "succeeded"
        assert list(provider.paid) == [UUID(withdrawal["id"])]
        assert provider.calls.count("submit") == submits
        assert await usdt(client, account) == ("70", "0")


async def test_a_definite_no_to_the_only_attempt_fails_it(
    fast: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    provider = Scripted(ProviderRefused("no such bank"))
    await dispatch(fast, database_url, provider)
    async with fast.client("ann") as client:
        account = await fast.cash(client, USDT="100")
        await paid(client, account, "30")
        found = await settled(client, account, eventually)
        assert (found[0]["state"], found[0]["reason"]) == ("failed", "no such bank")
        assert await usdt(client, account) == ("100", "0")
        provider.announcements.append(ProviderRefused("closed"))
        await ask(client, "deposit", account, "5")
        found = await settled(client, account, eventually)
        assert (found[0]["state"], found[0]["reason"]) == ("failed", "closed")


async def test_absence_and_refusal_are_believed_only_after_a_long_time(
    new_site: Any, site: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    patient = await new_site(payments={**FAST, "absence_s": 3600})
    provider = Scripted(ProviderAmbiguous("?"), *[ProviderRefused("no")] * 1000)
    await dispatch(patient, database_url, provider)
    async with patient.client("ann") as client:
        account = await patient.cash(client, USDT="100")
        payment = await paid(client, account, "30")
        await eventually(lambda: provider.calls.count("submit") > 2)
        now = (await client.get(f"/v1/payments/{payment['id']}")).json()
        assert (now["state"], now["held"]) == ("submitted", "30")
        patient.settings.payments.absence_s = 0.0  # as if that long had passed
        found = await settled(client, account, eventually)
        assert (found[0]["state"], found[0]["reason"]) == ("failed", "never_landed: no")
        assert await usdt(client, account) == ("100", "0")


async def test_after_a_crash_what_was_held_is_submitted_and_what_was_submitted_asked_about(
    fast: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    provider = Scripted()
    async with fast.client("ann") as client:
        account = await fast.cash(client, USDT="100")
        held = await paid(client, account, "10")  # killed between hold and submit
        unsent, sent = await paid(client, account, "20"), await paid(client, account, "30")
        for one in (unsent, sent):  # killed before, and after, the request left
            payment_id = UUID(one["id"])
            await fast.committer.commit(
                SubmitWithdrawal(new_id(), SYSTEM, UUID(account["id"]), payment_id)
            )
        provider.paid[UUID(sent["id"])] = Order(UUID(sent["id"]), "USDT", Decimal(30), "x")
        assert await usdt(client, account) == ("40", "60")
        await dispatch(fast, database_url, provider)
        await settled(client, account, eventually)
        assert await usdt(client, account) == ("40", "0")
        assert set(provider.paid) == {UUID(p["id"]) for p in (held, unsent, sent)}
        assert provider.calls.count("submit") == 2


async def test_while_withdrawals_are_halted_nothing_leaves_and_afterwards_it_goes_on(
    fast: Any, dispatch: Any, database_url: str, eventually: Any, problem: Any
) -> None:
    provider = Scripted()
    async with fast.client("ann") as ann, fast.client("root") as root:
        account = await fast.cash(ann, USDT="50000")
        approved, unsent = await paid(ann, account, "10"), await paid(ann, account, "20")
        gone, waiting = await paid(ann, account, "30"), await paid(ann, account, "10001")
        await fast.committer.commit(
            SubmitWithdrawal(new_id(), SYSTEM, UUID(account["id"]), UUID(unsent["id"]))
        )  # killed before the request left
        async with transaction(fast.pool) as connection:
            await switches.halt(connection, "withdrawals", "a thief", SYSTEM)
        refused = await ask(ann, "withdrawal", account, "1", key="later")
        assert problem(refused, 422, "withdrawals_halted")["detail"] == "a thief"
        path = f"/v1/payments/{waiting['id']}"
        problem(await root.post(f"{path}/approve"), 422, "withdrawals_halted")
        await dispatch(fast, database_url, provider)
        # What it never had is looked up again and again; a deposit is announced meanwhile.
        deposit = (await ask(ann, "deposit", account, "5")).json()
        await eventually(lambda: provider.calls.count("look_up") > 2)

        async def announced() -> bool:
            found = (await ann.get(f"/v1/payments/{deposit['id']}")).json()
            return found["instructions"] is not None

        await eventually(announced)
        assert (await ann.post(f"/v1/payments/{gone['id']}/cancel")).json()["state"] == "canceled"
        assert provider.calls.count("submit") == 0
        async with transaction(fast.pool) as connection:
            await switches.release(connection, "withdrawals", "caught", SYSTEM)
        await eventually(lambda: len(provider.paid) == 2, timeout_s=30)
        assert set(provider.paid) == {UUID(approved["id"]), UUID(unsent["id"])}
        assert (await root.post(f"{path}/approve")).json()["state"] == "approved"
        again = await ask(ann, "withdrawal", account, "1", key="later")
        assert again.status_code == 201, "a refusal of the moment is not kept"


async def test_of_a_frozen_account_what_the_provider_never_got_is_not_sent_again(
    fast: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    provider = Scripted(ProviderAmbiguous("?"))
    async with fast.client("ann") as ann, fast.client("root") as root:
        account = await fast.cash(ann, USDT="100")
        payment = await paid(ann, account, "30")
        await fast.committer.commit(
            SubmitWithdrawal(new_id(), SYSTEM, UUID(account["id"]), UUID(payment["id"]))
        )  # killed before the request left

        async def becomes(status: str) -> None:
            answer = await root.patch(
                f"/v1/accounts/{account['id']}",
                json={"status": status},
                headers={"If-Match": "*"},
            )
            assert answer.status_code == 200, answer.text

        await becomes("frozen")
        await dispatch(fast, database_url, provider)
        await eventually(lambda: provider.calls.count("look_up") > 2)
        assert provider.calls.count("submit") == 0
        now = (await ann.get(f"/v1/payments/{payment['id']}")).json()
        assert (now["state"], now["held"]) == ("submitted", "30")
        await becomes("open")
        await eventually(lambda: list(provider.paid) == [UUID(payment["id"])], timeout_s=30)


async def test_only_one_process_dispatches(
    fast: Any, new_site: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    provider = Scripted()
    other = await new_site(payments=FAST)
    await dispatch(fast, database_url, provider)
    await dispatch(other, database_url, provider)
    async with fast.client("ann") as client:
        account = await fast.cash(client, USDT="100")
        await asyncio.gather(*(paid(client, account, "1") for _ in range(20)))
        await settled(client, account, eventually)
        assert provider.calls.count("submit") == 20
        assert await usdt(client, account) == ("80", "0")


async def test_an_open_breaker_leaves_withdrawals_cancelable(
    new_site: Any, site: Any, dispatch: Any, database_url: str, eventually: Any
) -> None:
    careful = await new_site(payments={**FAST, "breaker_failures": 1, "breaker_open_s": 3600})
    provider = Scripted(ProviderNotSent("down"))
    dispatcher = await dispatch(careful, database_url, provider)
    async with careful.client("ann") as client:
        account = await careful.cash(client, USDT="100")
        first = await paid(client, account, "10")
        await eventually(lambda: dispatcher.breaker.rest_s > 0)
        second = await paid(client, account, "20")
        answer = await client.post(f"/v1/payments/{second['id']}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (200, "canceled")
        assert provider.paid == {}
        state = (await client.get(f"/v1/payments/{first['id']}")).json()["state"]
        assert state in ("submitted", "approved")


async def test_a_key_asks_once(site: Any, problem: Any) -> None:
    async with site.client("ann") as client:
        account = await site.cash(client, USDT="100")
        first = await ask(client, "withdrawal", account, "10", key="w-1")
        again = await ask(client, "withdrawal", account, "10", key="w-1")
        assert (first.status_code, again.status_code) == (201, 201)
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        other = await ask(client, "withdrawal", account, "11", key="w-1")
        problem(other, 422, "idempotency_key_reused")
        assert await usdt(client, account) == ("90", "10")
        deposits = [await ask(client, "deposit", account, "5", key="d") for _ in range(3)]
        assert len({d.json()["id"] for d in deposits}) == 1


async def test_a_large_withdrawal_needs_a_second_person(site: Any, problem: Any) -> None:
    async with site.client("ann") as ann, site.client("root") as root, site.client("bob") as bob:
        account = await site.cash(ann, USDT="50000")
        withdrawal = await paid(ann, account, "10000.01")
        assert withdrawal["state"] == "awaiting_approval"
        path = f"/v1/payments/{withdrawal['id']}"
        problem(await ann.post(f"{path}/approve"), 403, "insufficient_scope")
        problem(await bob.get(path), 404, "not_found")
        problem(await bob.post(f"{path}/cancel"), 404, "not_found")
        page = (await root.get("/v1/payments/approvals")).json()
        PaymentPage.model_validate(page)
        assert [p["id"] for p in page["items"]] == [withdrawal["id"]]
        approved = (await root.post(f"{path}/approve")).json()
        assert approved["state"] == "approved"
        assert approved["decided_by"] == (await root.get("/v1/me")).json()["id"]
        own = await site.cash(root, USDT="50000")
        mine = await paid(root, own, "20000")
        answer = await root.post(f"/v1/payments/{mine['id']}/approve")
        problem(answer, 403, "approver_is_requester")
        reject = await root.post(f"/v1/payments/{mine['id']}/reject", json={"reason": "mistake"})
        assert (reject.json()["state"], reject.json()["reason"]) == ("rejected", "mistake")
        assert await usdt(root, own) == ("50000", "0")
        problem(await root.post(f"/v1/payments/{uuid4()}/approve"), 404, "not_found")
        problem(await root.post(f"/v1/payments/{mine['id']}/approve"), 409, "payment_state")


async def test_fifty_small_withdrawals_at_once_do_not_go_around_the_approval(
    new_site: Any, site: Any, dsn: str
) -> None:
    strict = await new_site(payments={"approval_day_above": {"USDT": "100"}})
    async with strict.client("ann") as ann, strict.client("root") as root:
        account = await strict.cash(ann, USDT="10000")
        made = await asyncio.gather(*(paid(ann, account, "10") for _ in range(50)))
        waiting = [one for one in made if one["state"] == "awaiting_approval"]
        assert (len(made) - len(waiting), len(waiting)) == (10, 40)
        approved = await root.post(f"/v1/payments/{waiting[0]['id']}/approve")
        assert approved.json()["state"] == "approved"
        # What the tables say, for whoever reads the account next, is what was decided by.
        state = AccountState(UUID(account["id"]), 0, b"", clock.utc_now())
        async with strict.pool.acquire() as connection:
            await PaymentsProjection().load(connection, [state])
        read = state.part(Payments)
        assert read.unapproved_total(clock.utc_now(), "USDT") == 100
        today = clock.utc_now().date()
        assert read.day_total(today, Kind.WITHDRAWAL, "USDT") == 500
        assert (await paid(ann, account, "0.01"))["state"] == "awaiting_approval"
    verdict = await verify(dsn, projections())
    assert verdict.sound, verdict.faults


async def test_fifty_withdrawals_at_once_against_the_days_limit(
    new_site: Any, site: Any, problem: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.utc_now()
    monkeypatch.setattr(clock, "utc_now", lambda: now)  # the day does not end meanwhile
    strict = await new_site(payments={"withdrawal_day_max": {"USDT": "100"}})
    async with strict.client("ann") as client:
        account = await strict.cash(client, USDT="10000")
        answers = await asyncio.gather(
            *(ask(client, "withdrawal", account, "10") for _ in range(50))
        )
        assert sorted(a.status_code for a in answers) == [201] * 10 + [422] * 40
        document = problem(
            next(a for a in answers if a.status_code == 422), 422, "payment_day_limit"
        )
        assert document["facts"] == {"max": "100", "taken": "100"}
    # Another process, with nothing in memory, counts the same from the table.
    other = await new_site(payments={"withdrawal_day_max": {"USDT": "100"}})
    async with other.client("ann") as client:
        problem(await ask(client, "withdrawal", account, "0.01"), 422, "payment_day_limit")
        first = (await client.get("/v1/payments?kind=withdrawal&limit=1")).json()["items"][0]
        assert (await client.post(f"/v1/payments/{first['id']}/cancel")).status_code == 200
        assert (await ask(client, "withdrawal", account, "10")).status_code == 201


async def test_bad_requests_change_nothing(site: Any, problem: Any) -> None:
    async with site.client("ann") as client, site.client("bob") as bob:
        account = await site.cash(client, USDT="100")
        trading = await site.account(client)
        before = await site.journal_size()
        for amount in ("0", "-1", "NaN", "1e3", "1" * 40, 5, ""):
            answer = await ask(client, "withdrawal", account, amount)
            problem(answer, 422, "validation_failed")
        answer = await ask(client, "deposit", account, "0.000000001")
        problem(answer, 422, "amount_too_precise")
        problem(await ask(client, "deposit", account, "1", asset="XYZ"), 422, "asset_unknown")
        problem(await ask(client, "deposit", trading, "1"), 422, "account_kind")
        problem(await ask(client, "withdrawal", account, "101"), 422, "insufficient_funds")
        problem(await ask(bob, "withdrawal", account, "1"), 404, "not_found")
        for more in (
            {"state": "succeeded"},
            {"fee": "0"},
            {"destination": "a\x00b"},
            {"destination": ""},
            {"metadata": {str(n): "" for n in range(21)}},
            {"metadata": {"k": "v" * 501}},
            {"metadata": {"": "v"}},
            {"metadata": {"k": 1}},
        ):
            answer = await ask(client, "withdrawal", account, "1", **more)
            problem(answer, 422, "validation_failed")
        assert await site.journal_size() == before


async def test_lists_are_pages_of_ones_own(site: Any, problem: Any) -> None:
    async with site.client("ann") as client, site.client("bob") as bob:
        account = await site.cash(client, USDT="100")
        made = [(await paid(client, account, "1"))["id"] for _ in range(5)]
        seen: list[str] = []
        url: str | None = "/v1/payments?kind=withdrawal&limit=2"
        while url is not None:
            answer = await client.get(url)
            PaymentPage.model_validate(answer.json())
            seen += [p["id"] for p in answer.json()["items"]]
            link = answer.headers.get("link")
            url = link[1 : link.index(">")] if link else None
        assert seen == made[::-1]
        assert (await bob.get("/v1/payments")).json()["items"] == []
        query = {"account_id": account["id"]}
        problem(await bob.get("/v1/payments", params=query), 404, "not_found")
        deposits = (await client.get("/v1/payments?state=succeeded")).json()["items"]
        assert [d["kind"] for d in deposits] == ["deposit"]
