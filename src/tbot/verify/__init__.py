"""Proof that the tables say what the journal says.

For every account: recompute its hash chain, compare each entry's columns with its hashed body,
replay the entries through the projections' `apply`, and compare the outcome with the tables
(`replay`, `tables`). Over all accounts: every command's postings sum to zero per asset, the
counter-accounts equal what was posted to them, every asset sums to zero, and no row belongs to no
stream. Nothing is changed, and everything is read in one snapshot, so a running server is no
hindrance. Whatever is found is noted and the verification goes on.

`tbot audit verify` is the second opinion: it shares no code with what wrote the journal, and knows
the anchors, but not the tables.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

import asyncpg

from tbot.core import money
from tbot.journal.projections import Projections
from tbot.ledger import store as ledger_store
from tbot.verify.replay import Sums, replay
from tbot.verify.tables import OWNERS, compare_account
from tbot.verify.verdict import Verdict

__all__ = ["Progress", "Verdict", "verify"]

_PROGRESS_ENTRIES: Final = 500

type Progress = Callable[[int, int], None]
"""Called with entries done and entries in all."""


async def verify(dsn: str, projections: Projections, progress: Progress | None = None) -> Verdict:
    """Verify a database.

    Args:
        dsn: Its URL, for any role that may read the tables.
        projections: As the server registers them.

    Returns:
        The verdict; the caller looks at `sound`.

    Raises:
        OSError, asyncpg.PostgresError: The database cannot be read.
    """
    connection: asyncpg.Connection[Any] = await asyncpg.connect(dsn)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _verify(connection, projections, progress)
    finally:
        await connection.close()


async def _verify(
    connection: asyncpg.Connection[Any],
    projections: Projections,
    progress: Progress | None,
) -> Verdict:
    verdict, sums = Verdict(), Sums()
    total = await connection.fetchval("SELECT coalesce(sum(seq), 0)::bigint FROM streams")

    def counted() -> None:
        if progress is not None and verdict.entries % _PROGRESS_ENTRIES == 0:
            progress(verdict.entries, total)

    streams = await connection.fetch("SELECT account_id, seq, hash, at FROM streams ORDER BY 1")
    for stream in streams:
        verdict.accounts += 1
        state = await replay(connection, stream, projections, sums, verdict, counted)
        if state is not None:
            await compare_account(connection, state, verdict)
    for command, missing in sums.commands.items():
        for asset, amount in missing.items():
            verdict.fault(f"command {command}: postings of {asset} miss zero by {amount}")
    await _compare_counters(connection, sums.counters, verdict)
    await _check_strays(connection, verdict)
    if progress is not None:
        progress(verdict.entries, total)
    return verdict


async def _compare_counters(
    connection: asyncpg.Connection[Any],
    replayed: dict[tuple[str, str], Decimal],
    verdict: Verdict,
) -> None:
    rows = await connection.fetch(
        "SELECT name, asset, sum(amount) AS s FROM counters GROUP BY 1, 2"
    )
    stored = {(row["name"], row["asset"]): row["s"] for row in rows}
    for key in sorted(stored.keys() | replayed.keys()):
        verdict.compare(
            f"counter-account {key[0]}, {key[1]}",
            replayed.get(key, money.ZERO),
            stored.get(key, money.ZERO),
        )
    sums = await ledger_store.sums_by_asset(connection)
    verdict.assets = len(sums)
    for asset, amount in sums.items():
        if amount:
            verdict.fault(f"{asset} sums to {money.text(amount)} over all accounts, not to zero")


async def _check_strays(connection: asyncpg.Connection[Any], verdict: Verdict) -> None:
    """Rows of accounts that have no stream would never be compared."""
    for table, column in OWNERS.items():
        strays = await connection.fetchval(
            f"SELECT count(*) FROM {table} t"
            f" WHERE NOT EXISTS (SELECT FROM streams s WHERE s.account_id = t.{column})"
        )
        if strays:
            verdict.fault(f"{strays} rows of {table} belong to no stream")
