"""Edits, insertions, deletions, reorderings and foreign entries break a chain where they stand."""

from __future__ import annotations

from uuid import UUID

import pytest

from tbot.core.errors import IntegrityError
from tbot.journal.chain import Entry, check, genesis, seal

ACCOUNT = UUID(int=1)
type Rows = list[tuple[int, bytes, bytes]]


def rows(account: UUID = ACCOUNT, count: int = 5) -> Rows:
    made: Rows = []
    head = genesis(account)
    for seq in range(1, count + 1):
        entry = Entry(
            v=1,
            account=str(account),
            seq=seq,
            at=f"2026-01-01T00:00:00.00000{seq}Z",
            kind="test",
            command="c",
            by={"kind": "system"},
            postings=[("available", "USDT", "1")],
            data={"n": seq},
        )
        body, head = seal(head, entry)
        made.append((seq, body, head))
    return made


def test_a_whole_chain_reads_back() -> None:
    assert [entry.data["n"] for entry in check(ACCOUNT, rows())] == [1, 2, 3, 4, 5]


def test_a_chain_can_be_continued_from_any_entry() -> None:
    made = rows()
    assert [e.seq for e in check(ACCOUNT, made[2:], made[1][2], 2)] == [3, 4, 5]


def edited(made: Rows) -> Rows:
    seq, body, digest = made[2]
    return [*made[:2], (seq, body.replace(b'"n":3', b'"n":9'), digest), *made[3:]]


def deleted(made: Rows) -> Rows:
    return made[:2] + made[3:]


def swapped(made: Rows) -> Rows:
    return [*made[:2], made[3], made[2], made[4]]


def renumbered(made: Rows) -> Rows:
    return [*made[:2], (3, made[3][1], made[3][2]), *made[3:]]


def foreign(made: Rows) -> Rows:
    return [*made[:2], rows(UUID(int=2))[2], *made[3:]]


@pytest.mark.parametrize("damage", [edited, deleted, swapped, renumbered, foreign])
def test_damage_is_found_where_it_is(damage: object) -> None:
    assert callable(damage)
    with pytest.raises(IntegrityError, match="entry 3"):
        list(check(ACCOUNT, damage(rows())))


def test_a_chain_cannot_be_passed_off_as_another_accounts() -> None:
    with pytest.raises(IntegrityError, match="entry 1"):
        list(check(UUID(int=2), rows()))


def test_a_body_that_is_no_entry() -> None:
    with pytest.raises(IntegrityError):
        seq, _, _ = rows()[0]
        import hashlib

        body = b'{"v":1}'
        list(check(ACCOUNT, [(seq, body, hashlib.sha256(genesis(ACCOUNT) + body).digest())]))
