"""Keys in the write path: kept with the command, forgotten in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.core import clock
from tbot.core.errors import Unavailable
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import IdempotencySettings
from tbot.journal.commands import Accepted
from tbot.journal.once import Cleaner, Kept, Once, beside, claim, contents_of, keep, key_of

from .conftest import Desk

USER = UUID(int=7)


def _once(key: str = "k", content: bytes = b"c") -> Once:
    def render(outcome: Any) -> Kept:
        name = outcome.reason if isinstance(outcome, Refused) else outcome.order.id
        return Kept(201, {"n": "1"}, str(name).encode())

    return Once(key_of(USER, key), contents_of(b"s" * 32)(content), render)


async def test_twins_in_one_batch_share_the_leaders_answer(desk: Desk) -> None:
    account_id = await desk.open(USDT="1000")
    commit, once = desk.committer.commit, _once()
    outcomes = await asyncio.gather(
        *(commit(desk.order(account_id), once) for _ in range(20)),
        commit(desk.order(account_id), _once(content=b"other")),
    )
    accepted = [o for o in outcomes if isinstance(o, Accepted)]
    kept = [o for o in outcomes if isinstance(o, Kept)]
    assert (len(accepted), len(kept)) == (1, 19)
    assert {k.body for k in kept} == {str(accepted[0].result.order.id).encode()}
    assert isinstance(outcomes[-1], Refused)
    assert outcomes[-1].reason is Reason.IDEMPOTENCY_KEY_REUSED


@pytest.mark.parametrize("warm", [False, True])
async def test_one_key_for_two_accounts_in_two_processes_is_for_one_of_them(
    new_desk: Any, warm: bool
) -> None:
    """No lock keeps the two apart: the second meets the unique index, and looks again."""
    one, two = await new_desk(), await new_desk()
    first = await one.open(USDT="100000000")
    second = await two.open(USDT="100000000")
    if warm:  # decided ahead, not the careful way
        for desk, account_id in ((one, first), (two, second)):
            for _ in range(12):
                assert isinstance(await desk.place(account_id, "0.1", "90"), Accepted)
    for number in range(25):
        ours, theirs = _once(f"k{number}"), _once(f"k{number}", b"other")
        beside = [one.committer.commit(one.order(first)), two.committer.commit(two.order(second))]
        outcomes = await asyncio.gather(
            one.committer.commit(one.order(first), ours),
            two.committer.commit(two.order(second), theirs),
            *beside,
        )
        assert sorted(type(o).__name__ for o in outcomes[:2]) == ["Accepted", "Refused"], outcomes
        (refused,) = [o for o in outcomes[:2] if isinstance(o, Refused)]
        assert refused.reason is Reason.IDEMPOTENCY_KEY_REUSED
        assert all(isinstance(o, Accepted) for o in outcomes[2:]), "a batch was poisoned"
        again = await two.committer.commit(two.order(second), theirs)
        kept = isinstance(outcomes[1], Accepted)
        assert isinstance(again, Kept if kept else Refused)
    await one.verified()


async def test_a_key_that_is_taken_between_look_and_write_is_looked_for_again(
    desk: Desk,
) -> None:
    """Somebody else's transaction holds the key until the batch waits for it."""
    account_id = await desk.open(USDT="1000")
    once, other = _once(), await asyncpg.connect(desk.dsn)
    try:
        begun = other.transaction()
        await begun.start()
        assert await claim(other, once.key, b"c" * 16) is None
        asked = asyncio.ensure_future(desk.committer.commit(desk.order(account_id), once))
        waiting = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
        while not await other.fetchval(waiting):
            assert not asked.done()
        await begun.commit()
        outcome = await asked
        assert isinstance(outcome, Refused), outcome
        assert outcome.reason is Reason.IDEMPOTENCY_KEY_REUSED
        assert isinstance(await desk.committer.commit(desk.order(account_id)), Accepted)
    finally:
        await other.close()
    await desk.verified()


async def test_a_claimed_key_is_no_kept_answer(desk: Desk) -> None:
    account_id = await desk.open(USDT="1000")
    once, other = _once(), await asyncpg.connect(desk.dsn)
    try:
        for content, same in ((once.content, True), (b"c" * 16, False), (once.content, True)):
            taken = await claim(other, once.key, content)
            assert (taken is None) is same
        # Not even to a request that had its content, which none has.
        outcome = await desk.committer.commit(desk.order(account_id), once)
        assert isinstance(outcome, Refused)
        assert outcome.reason is Reason.IDEMPOTENCY_KEY_REUSED
        kept = _once("kept")
        await desk.committer.commit(desk.order(account_id), kept)
        assert await claim(other, kept.key, kept.content) is not None
    finally:
        await other.close()


async def test_a_write_beside_whose_key_is_taken_meanwhile_does_nothing(desk: Desk) -> None:
    account_id, once = await desk.open(USDT="1000"), _once()
    other = await asyncpg.connect(desk.dsn)
    try:
        with pytest.raises(Unavailable):
            async with other.transaction():
                assert await beside(other, once) is None
                placed = await desk.committer.commit(desk.order(account_id), _once(content=b"o"))
                await keep(other, once, placed.result)
        async with other.transaction():
            assert isinstance(await beside(other, once), Refused)
    finally:
        await other.close()


async def test_a_batch_of_nothing_but_refusals_keeps_them(desk: Desk) -> None:
    account_id = await desk.open(USDT="1")
    once = _once()
    first = await desk.committer.commit(desk.order(account_id), once)
    second = await desk.committer.commit(desk.order(account_id), once)
    assert isinstance(first, Refused)
    assert second == Kept(201, {"n": "1"}, b"insufficient_funds")


async def test_old_keys_are_forgotten_and_young_ones_are_not(desk: Desk) -> None:
    account_id = await desk.open(USDT="1000")
    for key in ("old", "young"):
        await desk.committer.commit(desk.order(account_id), _once(key))
    pool = await asyncpg.create_pool(desk.dsn, min_size=1, max_size=2)
    try:
        settings = IdempotencySettings(keep_h=1, clean_batch=1)
        old = await asyncpg.connect(desk.dsn)
        # The application may not change a kept answer, so its age is given by a new row.
        await old.execute(
            "WITH gone AS (DELETE FROM idempotency_keys WHERE key = $1 RETURNING *)"
            " INSERT INTO idempotency_keys SELECT key, content, status, headers, body, $2 FROM gone",
            _once("old").key,
            clock.utc_now() - timedelta(hours=2),
        )
        await old.close()
        assert await Cleaner(pool, settings).sweep() == 1
        assert await Cleaner(pool, settings).sweep() == 0
    finally:
        await pool.close()
    again = await desk.committer.commit(desk.order(account_id), _once("old"))
    kept = await desk.committer.commit(desk.order(account_id), _once("young"))
    assert isinstance(again, Accepted)
    assert isinstance(kept, Kept)
