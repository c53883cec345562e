"""Transfers through real committers: resolved once, all or nothing, never beyond the funds."""

from __future__ import annotations

import asyncio
from collections import Counter
from decimal import Decimal
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest

from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import LedgerSettings
from tbot.db.pool import transaction
from tbot.gateway import switches
from tbot.journal.commands import SYSTEM, Accepted, Actor
from tbot.ledger import store as accounts_store
from tbot.ledger import transfers_store as store
from tbot.ledger.entries import Balance, ChangeAccount, Limits
from tbot.ledger.transfers import NewTransfer, Transfer, TransferState, create_transfers
from tbot.ledger.transfers_commands import (
    ExpireTransfer,
    PostTransfer,
    ReverseTransfer,
    VoidTransfer,
)
from tbot.ledger.transfers_flow import Expiry

PLAIN = Limits(max_order_notional=Decimal(1), max_open_orders=1, price_collar=Decimal("0.05"))
OVERDRAFT = msgspec.structs.replace(PLAIN, overdraft={"EUR": Decimal(50)})
ANN = Actor("operator", name="ann@desk")


async def balance(pool: Any, account_id: UUID, asset: str = "EUR") -> Balance:
    """What the tables say that an account has."""
    async with pool.acquire() as connection:
        _, balances = await accounts_store.get_balances(connection, account_id)
    return balances.get(asset, Balance())


async def cash(desk: Any, *amounts: str) -> list[UUID]:
    """Cash accounts with these amounts of EUR."""
    return [
        await desk.open(venue=None, **({"EUR": amount} if amount != "0" else {}))
        for amount in amounts
    ]


async def stored(pool: Any, transfer: Transfer) -> Transfer:
    """A transfer as its row has it."""
    async with pool.acquire() as connection:
        return await store.get_transfer(connection, transfer.id)


async def test_a_transfer_moves_money_and_is_in_both_streams(desk: Any, pool: Any) -> None:
    ann, bob = await cash(desk, "100", "0")
    made = await desk.transfer(ann, bob, "12.50", metadata={"invoice": "7"})
    assert (made.state, made.posted_amount) == (TransferState.POSTED, Decimal("12.50"))
    assert await stored(pool, made) == made
    assert await balance(pool, ann) == Balance(Decimal("87.5"))
    assert await balance(pool, bob) == Balance(Decimal("12.5"))
    kinds = [(e.account_id, e.entry.kind) for e in desk.entries[-2:]]
    assert kinds == [(ann, "transfer.created"), (bob, "transfer.received")]
    assert desk.entries[-1].entry.command == desk.entries[-2].entry.command
    await desk.verified()


async def test_a_pending_transfer_is_posted_in_part_and_the_rest_is_released(
    desk: Any, pool: Any
) -> None:
    ann, bob = await cash(desk, "100", "0")
    made = await desk.transfer(ann, bob, "60", pending=True)
    assert await balance(pool, ann) == Balance(Decimal(40), Decimal(60))
    posted = await desk.resolve(PostTransfer, made, Decimal(25))
    assert (posted.state, posted.posted_amount) == (TransferState.POSTED, Decimal(25))
    assert await stored(pool, made) == posted
    assert await balance(pool, ann) == Balance(Decimal(75))
    assert await balance(pool, bob) == Balance(Decimal(25))
    await desk.verified()


@pytest.mark.parametrize("rounds", range(3))
async def test_two_committers_resolve_a_pending_transfer_once(
    new_desk: Any, pool: Any, rounds: int
) -> None:
    first, second = await new_desk(), await new_desk()
    ann, bob = await cash(first, "100", "0")
    made = await first.transfer(ann, bob, "60", pending=True)
    outcomes = await asyncio.gather(
        *(
            desk.resolve(kind, made)
            for desk in (first, second)
            for kind in (PostTransfer, VoidTransfer, PostTransfer, VoidTransfer)
        )
    )
    done = [one for one in outcomes if isinstance(one, Transfer)]
    refused = [one.reason for one in outcomes if isinstance(one, Refused)]
    assert len(done) == 1
    assert refused == [Reason.TRANSFER_NOT_PENDING] * 7
    assert await stored(pool, made) == done[0]
    paid = done[0].posted_amount
    assert await balance(pool, ann) == Balance(100 - paid)
    assert await balance(pool, bob) == Balance(paid)
    await first.verified()


async def test_linked_transfers_are_made_all_or_none(desk: Any, pool: Any) -> None:
    ann, bob, eve = await cash(desk, "100", "0", "0")

    def chain(*steps: tuple[UUID, UUID, str]) -> Any:
        new = tuple(
            NewTransfer(id=new_id(), source_id=s, target_id=t, asset="EUR", amount=Decimal(amount))
            for s, t, amount in steps
        )
        return create_transfers(new_id(), SYSTEM, new, group_id=new_id())

    # The second step spends what the first one brings.
    good = await desk.committer.commit(chain((ann, bob, "80"), (bob, eve, "80")))
    assert isinstance(good, Accepted)
    assert len({t.group_id for t in good.result}) == 1
    assert [await balance(pool, a) for a in (ann, bob, eve)] == [
        Balance(Decimal(20)),
        Balance(),
        Balance(Decimal(80)),
    ]
    before = len(desk.entries)
    bad = await desk.committer.commit(
        chain((eve, ann, "80"), (ann, bob, "100"), (bob, eve, "100.01"))
    )
    assert isinstance(bad, Refused)
    assert bad.reason is Reason.INSUFFICIENT_FUNDS
    assert bad.facts == {
        "asset": "EUR",
        "needed": "100.01",
        "available": "100",
        "transfer": 2,
    }
    assert len(desk.entries) == before
    assert await pool.fetchval("SELECT count(*) FROM transfers") == 2
    await desk.verified()


async def test_transfers_in_opposite_directions_do_not_deadlock(new_desk: Any, pool: Any) -> None:
    desks = [await new_desk(batch_max=8, queue_age_s_max=120) for _ in range(3)]
    ann, bob, eve = await cash(desks[0], "1000", "1000", "1000")
    ways = [(ann, bob), (bob, ann), (bob, eve), (eve, bob), (eve, ann), (ann, eve)]
    outcomes = await asyncio.gather(
        *(
            desk.transfer(source, target, "1")
            for _ in range(20)
            for desk in desks
            for source, target in ways
        )
    )
    assert all(isinstance(one, Transfer) for one in outcomes)
    assert [await balance(pool, a) for a in (ann, bob, eve)] == [Balance(Decimal(1000))] * 3
    deadlocks = await pool.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    assert deadlocks == 0
    await desks[0].verified()


async def test_twenty_transfers_against_funds_for_one(new_desk: Any, pool: Any) -> None:
    desks = [await new_desk() for _ in range(2)]
    ann, bob = await cash(desks[0], "10", "0")
    outcomes = await asyncio.gather(
        *(desk.transfer(ann, bob, "10", pending=bool(n % 2)) for n in range(10) for desk in desks)
    )
    assert Counter(type(one) for one in outcomes) == {Transfer: 1, Refused: 19}
    assert {one.reason for one in outcomes if isinstance(one, Refused)} == {
        Reason.INSUFFICIENT_FUNDS
    }
    left = await balance(pool, ann)
    assert left.available == 0
    await desks[0].verified()


async def test_an_overdraft_is_used_up_to_its_limit(desk: Any, pool: Any) -> None:
    ann = await desk.open(venue=None, limits=OVERDRAFT, EUR="10")
    (bob,) = await cash(desk, "0")
    assert isinstance(await desk.transfer(ann, bob, "60"), Transfer)
    assert await balance(pool, ann) == Balance(Decimal(-50))
    more = await desk.transfer(ann, bob, "0.01")
    assert more.reason is Reason.INSUFFICIENT_FUNDS
    assert more.facts["available"] == "0"
    await desk.verified()


async def test_an_overdue_transfer_is_released_once_and_no_longer_posted(
    new_desk: Any, pool: Any
) -> None:
    first, second = await new_desk(), await new_desk()
    ann, bob = await cash(first, "100", "0")
    settings = LedgerSettings(expiry_batch=2)
    due = [await first.transfer(ann, bob, "10", pending=True, expires_in_s=-1.0) for _ in range(5)]
    kept = await first.transfer(ann, bob, "10", pending=True, expires_in_s=3600.0)
    assert (await first.resolve(PostTransfer, due[0])).reason is Reason.TRANSFER_EXPIRED
    assert (await first.resolve(ExpireTransfer, kept)).pending
    sweepers = [Expiry(pool, desk.committer, settings) for desk in (first, second)]
    assert sum(await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))) == 5
    assert {(await stored(pool, one)).state for one in due} == {TransferState.EXPIRED}
    assert (await stored(pool, kept)).pending
    assert await balance(pool, ann) == Balance(Decimal(90), Decimal(10))
    await first.verified()


async def test_the_sweeper_survives_a_journal_that_is_away(new_desk: Any, pool: Any) -> None:
    desk = await new_desk()
    ann, bob = await cash(desk, "100", "0")
    due = await desk.transfer(ann, bob, "10", pending=True, expires_in_s=-1.0)
    await desk.committer.stop()
    other = await new_desk()
    stopped = Expiry(pool, desk.committer, LedgerSettings(expiry_interval_s=0.001))
    stopped.start()
    running = Expiry(pool, other.committer, LedgerSettings(expiry_interval_s=0.001))
    released = asyncio.Event()
    other.committer.listen(lambda entries: released.set())
    running.start()
    await asyncio.wait_for(released.wait(), 10)
    for sweeper in (stopped, running):
        await sweeper.stop()
    assert (await stored(pool, due)).state is TransferState.EXPIRED


async def test_a_transfer_is_reversed_at_most_once(new_desk: Any, pool: Any) -> None:
    first, second = await new_desk(), await new_desk()
    ann, bob = await cash(first, "100", "0")
    made = await first.transfer(ann, bob, "60", pending=True)
    early = await first.resolve(ReverseTransfer, made, new_id(), {})
    assert early.reason is Reason.TRANSFER_NOT_POSTED
    await first.resolve(PostTransfer, made, Decimal(40))
    outcomes = await asyncio.gather(
        *(
            desk.resolve(ReverseTransfer, made, new_id(), {"why": "mistake"})
            for desk in (first, second) * 3
        )
    )
    (reversal,) = [one for one in outcomes if isinstance(one, Transfer)]
    assert [one.reason for one in outcomes if isinstance(one, Refused)] == [
        Reason.TRANSFER_REVERSED
    ] * 5
    assert (reversal.source_id, reversal.target_id) == (bob, ann)
    assert (reversal.amount, reversal.reverses) == (Decimal(40), made.id)
    assert (await stored(pool, made)).reversed_by == reversal.id
    assert await stored(pool, reversal) == reversal
    assert await balance(pool, ann) == Balance(Decimal(100))
    again = await first.resolve(ReverseTransfer, reversal, new_id(), {})
    assert again.reason is Reason.TRANSFER_IS_REVERSAL
    await first.verified()


async def test_while_transfers_are_halted_no_money_moves_and_holds_are_released(
    desk: Any, pool: Any
) -> None:
    ann, bob = await cash(desk, "100", "0")
    posted = await desk.transfer(ann, bob, "10")
    kept, voided = [await desk.transfer(ann, bob, "20", pending=True) for _ in range(2)]
    async with transaction(pool) as connection:
        await switches.halt(connection, "transfers", "a thief", ANN)
    refusals = [
        await desk.transfer(ann, bob, "1"),
        await desk.transfer(ann, bob, "1", pending=True),
        await desk.resolve(PostTransfer, kept),
        await desk.resolve(ReverseTransfer, posted, new_id(), {}),
    ]
    assert [(one.reason, one.detail) for one in refusals] == [
        (Reason.TRANSFERS_HALTED, "a thief")
    ] * 4
    assert (await desk.resolve(VoidTransfer, voided)).state is TransferState.VOIDED
    assert await balance(pool, ann) == Balance(Decimal(70), Decimal(20))
    async with transaction(pool) as connection:
        await switches.release(connection, "transfers", "caught", ANN)
        # One does not imply the other.
        await switches.halt(connection, "trading", "a look", ANN)
        await switches.halt(connection, "withdrawals", "a look", ANN)
    assert (await desk.resolve(PostTransfer, kept)).state is TransferState.POSTED
    assert (await desk.transfer(ann, bob, "1")).state is TransferState.POSTED
    await desk.verified()


async def test_a_restarted_committer_knows_what_is_pending(new_desk: Any, pool: Any) -> None:
    desk = await new_desk()
    ann, bob = await cash(desk, "100", "0")
    kept = await desk.transfer(ann, bob, "10", pending=True, metadata={"a": "ü\"'{}"})
    gone = await desk.transfer(ann, bob, "10", pending=True)
    await desk.resolve(VoidTransfer, gone)
    await desk.committer.stop()
    desk = await new_desk()
    posted = await desk.resolve(PostTransfer, kept)
    assert posted.metadata == {"a": "ü\"'{}"}
    refused = await desk.resolve(PostTransfer, gone)
    assert refused.reason is Reason.TRANSFER_NOT_PENDING
    assert refused.facts == {"state": "voided"}
    await desk.verified()


async def test_an_account_closes_only_when_nothing_is_left_on_it(desk: Any, pool: Any) -> None:
    ann, bob = await cash(desk, "10", "0")

    async def close(account_id: UUID) -> Any:
        command = ChangeAccount(new_id(), SYSTEM, account_id, status="closed")
        return await desk.committer.commit(command)

    refused = await close(ann)
    assert refused.reason is Reason.ACCOUNT_NOT_EMPTY
    assert refused.facts == {"balances": {"EUR": "10"}}
    pending = await desk.transfer(ann, bob, "10", pending=True)
    assert (await close(ann)).reason is Reason.ACCOUNT_NOT_EMPTY
    # The target has no stake in a pending transfer; once it is closed, nothing reaches it.
    assert (await close(bob)).result.account.status == "closed"
    assert (await desk.resolve(PostTransfer, pending)).reason is Reason.ACCOUNT_CLOSED
    await desk.resolve(VoidTransfer, pending)
    (eve,) = await cash(desk, "0")
    await desk.transfer(ann, eve, "10")
    assert (await close(ann)).result.account.status == "closed"
    assert (await desk.transfer(eve, ann, "1")).reason is Reason.ACCOUNT_CLOSED
    await desk.verified()


async def test_an_open_order_keeps_its_account_from_being_closed(desk: Any) -> None:
    account_id = await desk.open(USDT="10")
    placed = (await desk.place(account_id)).result
    # A market order may have spent its whole hold and still be open: no balance shows it.
    refused = await desk.committer.commit(
        ChangeAccount(new_id(), SYSTEM, account_id, status="closed")
    )
    assert refused.reason is Reason.ACCOUNT_NOT_EMPTY
    assert not placed.order.final


async def test_lists_have_what_goes_out_and_what_comes_in(desk: Any, pool: Any) -> None:
    ann, bob, eve = await cash(desk, "100", "100", "0")
    made = [
        await desk.transfer(ann, bob, "1"),
        await desk.transfer(bob, ann, "2", pending=True),
        await desk.transfer(bob, eve, "3"),
        await desk.transfer(eve, ann, "1"),
    ]
    async with pool.acquire() as connection:

        async def listed(*accounts: UUID, **more: Any) -> list[int]:
            found = await store.list_transfers(connection, accounts, **more)
            return [made.index(one) for one in found]

        assert await listed(ann) == [3, 1, 0]
        assert await listed(ann, bob) == [3, 2, 1, 0]
        assert await listed(ann, bob, limit=2) == [3, 2]
        assert await listed(ann, bob, before=made[2].id) == [1, 0]
        assert await listed(ann, state=TransferState.PENDING) == [1]
        assert await store.list_sent(connection, bob) == made[1:3]
        assert await store.list_sent(connection, bob, after=made[1].id) == made[2:3]


async def test_the_table_refuses_what_no_transfer_can_be(desk: Any, pool: Any) -> None:
    ann, bob = await cash(desk, "100", "0")
    made = await desk.transfer(ann, bob, "10")
    for change in ("posted_amount = 11", "state = 'voided'", "amount = 'NaN'", "state = 'lost'"):
        with pytest.raises(asyncpg.CheckViolationError):
            await pool.execute(f"UPDATE transfers SET {change} WHERE id = $1", made.id)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute("DELETE FROM transfers")
