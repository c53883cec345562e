"""Balances as of a moment against the plainest replay, for any stream and any distance of marks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from unittest.mock import patch
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st

from tbot.core import clock
from tbot.journal import chain
from tbot.journal.chain import Entry
from tbot.journal.commands import AccountState
from tbot.ledger import entries, marks
from tbot.ledger.entries import Balance
from tbot.ledger.marks import MarksProjection, balances_after, balances_at

ACCOUNT = UUID(int=7)
START = datetime(2026, 1, 1, tzinfo=UTC)

amounts = st.decimals(
    min_value=-1000, max_value=1000, places=8, allow_nan=False, allow_infinity=False
)
postings = st.lists(
    st.tuples(
        st.sampled_from(["available", "held", "venue:paper", "outside:bank"]),
        st.sampled_from(["USDT", "BTC"]),
        amounts,
    ),
    max_size=4,
)
# Many entries share a time: the gaps are mostly nothing.
gaps = st.sampled_from([0, 0, 0, 1, 2, 1_000_000])
streams = st.lists(st.tuples(gaps, postings), min_size=1, max_size=40)


class Tables:
    """The tables that the functions ask, filled by the projection; answers like Postgres."""

    def __init__(self, stream: list[tuple[int, list[tuple[str, str, Decimal]]]]) -> None:
        self.journal: list[dict[str, Any]] = []
        self.marks: list[dict[str, Any]] = []
        projection = MarksProjection()
        state = AccountState(ACCOUNT, 0, b"", START)
        at = START
        for seq, (gap_us, moved) in enumerate(stream, 1):
            at += timedelta(microseconds=gap_us)
            entry = Entry(
                v=1,
                account=str(ACCOUNT),
                seq=seq,
                at=clock.stamp(at),
                kind="test",
                command=str(UUID(int=seq)),
                by={"kind": "system"},
                postings=[(holder, asset, f"{amount:f}") for holder, asset, amount in moved],
                data={},
            )
            body, _ = chain.seal(b"", entry)
            self.journal.append({"seq": seq, "at": at, "body": body})
            entries.apply(state, entry)
            projection.apply(state, entry)
            if seq % 3 == 0:  # a batch ends anywhere
                self._write(projection, state)
        self._write(projection, state)

    def _write(self, projection: MarksProjection, state: AccountState) -> None:
        for write in projection.writes([state]):
            for _, seq, at, balances in zip(*write.columns, strict=True):
                self.marks.append({"seq": seq, "at": at, "balances": balances})

    async def fetchrow(self, sql: str, _account: UUID, limit: Any) -> dict[str, Any] | None:
        column = "at" if "at <= $2" in sql else "seq"
        found = [mark for mark in self.marks if mark[column] <= limit]
        return found[-1] if found else None

    async def fetch(self, _sql: str, _account: UUID, seq: int, most: int) -> list[dict[str, Any]]:
        return self.journal[seq : seq + most]


def replay(tables: Tables, last: int) -> dict[str, Balance]:
    balances: dict[str, Balance] = {}
    for row in tables.journal[:last]:
        for holder, asset, text in chain.read(row["body"]).postings:
            if holder in ("available", "held"):
                known = balances.get(asset, Balance())
                balances[asset] = (
                    Balance(known.available + Decimal(text), known.held)
                    if holder == "available"
                    else Balance(known.available, known.held + Decimal(text))
                )
    return balances


@given(stream=streams, every=st.integers(1, 9), keep=st.integers(0, 2**40))
@settings(max_examples=150)
async def test_any_moment_equals_a_replay(stream: Any, every: int, keep: int) -> None:
    with patch.object(marks, "EVERY", every):
        tables = Tables(stream)
        assert [mark["seq"] for mark in tables.marks] == list(range(every, len(stream) + 1, every))
        # Whichever marks are missing: the answer stays.
        tables.marks = [mark for n, mark in enumerate(tables.marks) if not keep >> n & 1]
        for row in tables.journal:
            for moment in (row["at"], row["at"] - timedelta(microseconds=1)):
                last = sum(one["at"] <= moment for one in tables.journal)
                found = await balances_at(tables, ACCOUNT, moment)  # type: ignore[arg-type]
                assert (found.seq, found.balances) == (last, replay(tables, last))
            after = await balances_after(tables, ACCOUNT, row["seq"])  # type: ignore[arg-type]
            assert (after.seq, after.balances) == (row["seq"], replay(tables, row["seq"]))
