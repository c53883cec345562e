"""Keys in the write path: kept with the command, forgotten in time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg

from tbot.core import clock
from tbot.core.refusals import Reason, Refused
from tbot.core.settings import IdempotencySettings
from tbot.journal.commands import Accepted
from tbot.journal.once import Cleaner, Kept, Once, contents_of, key_of

from .conftest import Desk

USER = UUID(int=7)


def _once(account_id: UUID, key: str = "k", content: bytes = b"c") -> Once:
    def render(outcome: Any) -> Kept:
        name = outcome.reason if isinstance(outcome, Refused) else outcome.order.id
        return Kept(201, {"n": "1"}, str(name).encode())

    return Once(key_of(USER, account_id, key), contents_of(b"s" * 32)(content), render)


async def test_twins_in_one_batch_share_the_leaders_answer(desk: Desk) -> None:
    account_id = await desk.open(USDT="1000")
    commit, once = desk.committer.commit, _once(account_id)
    outcomes = await asyncio.gather(
        *(commit(desk.order(account_id), once) for _ in range(20)),
        commit(desk.order(account_id), _once(account_id, content=b"other")),
    )
    accepted = [o for o in outcomes if isinstance(o, Accepted)]
    kept = [o for o in outcomes if isinstance(o, Kept)]
    assert (len(accepted), len(kept)) == (1, 19)
    assert {k.body for k in kept} == {str(accepted[0].result.order.id).encode()}
    assert isinstance(outcomes[-1], Refused)
    assert outcomes[-1].reason is Reason.IDEMPOTENCY_KEY_REUSED


async def test_a_batch_of_nothing_but_refusals_keeps_them(desk: Desk) -> None:
    account_id = await desk.open(USDT="1")
    once = _once(account_id)
    first = await desk.committer.commit(desk.order(account_id), once)
    second = await desk.committer.commit(desk.order(account_id), once)
    assert isinstance(first, Refused)
    assert second == Kept(201, {"n": "1"}, b"insufficient_funds")


async def test_old_keys_are_forgotten_and_young_ones_are_not(desk: Desk) -> None:
    account_id = await desk.open(USDT="1000")
    for key in ("old", "young"):
        await desk.committer.commit(desk.order(account_id), _once(account_id, key))
    pool = await asyncpg.create_pool(desk.dsn, min_size=1, max_size=2)
    try:
        settings = IdempotencySettings(keep_h=1, clean_batch=1)
        old = await asyncpg.connect(desk.dsn)
        # The application may not change a kept answer, so its age is given by a new row.
        await old.execute(
            "WITH gone AS (DELETE FROM idempotency_keys WHERE key = $1 RETURNING *)"
            " INSERT INTO idempotency_keys SELECT key, content, status, headers, body, $2 FROM gone",
            _once(account_id, "old").key,
            clock.utc_now() - timedelta(hours=2),
        )
        await old.close()
        assert await Cleaner(pool, settings).sweep() == 1
        assert await Cleaner(pool, settings).sweep() == 0
    finally:
        await pool.close()
    again = await desk.committer.commit(desk.order(account_id), _once(account_id, "old"))
    kept = await desk.committer.commit(desk.order(account_id), _once(account_id, "young"))
    assert isinstance(again, Accepted)
    assert isinstance(kept, Kept)
