"""Every way to change a journal behind T-Bot's back is found, and where it was done is told."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest

from tbot.audit.report import Kind, Report


def places(report: Report) -> set[tuple[Kind, str | None, int | None, int | None]]:
    return {(fault.kind, fault.account, fault.first, fault.last) for fault in report.faults}


async def rewrite(owner: Any, account: UUID, first: int, *, end: int | None = None) -> None:
    """Do what somebody with all the database's rights can do: hash everything anew, head and all."""
    previous = hashlib.sha256(f"tbot:1:{account}".encode()).digest()
    if first > 1:
        previous = await owner.fetchval(
            "SELECT hash FROM journal WHERE account_id = $1 AND seq = $2", account, first - 1
        )
    rows = await owner.fetch(
        "SELECT seq, body FROM journal WHERE account_id = $1 AND seq >= $2 ORDER BY seq",
        account,
        first,
    )
    seq = first - 1
    for row in rows:
        seq = row["seq"]
        previous = hashlib.sha256(previous + row["body"]).digest()
        await owner.execute(
            "UPDATE journal SET hash = $3 WHERE account_id = $1 AND seq = $2",
            account,
            seq,
            previous,
        )
        if seq == end:
            return
    await owner.execute(
        "UPDATE streams SET seq = $2, hash = $3 WHERE account_id = $1", account, seq, previous
    )


EDIT = """UPDATE journal SET body = convert_to(replace(convert_from(body, 'UTF8'),
 '"limit_price":"100"', '"limit_price":"900"'), 'UTF8') WHERE account_id = $1 AND seq = $2"""


async def edit(evidence: Any) -> Any:
    """An entry's bytes."""
    account = evidence.accounts[1]
    assert await evidence.owner.execute(EDIT, account, 5) == "UPDATE 1"
    return (Kind.CHANGED, str(account), 5, 5)


async def edit_and_hash(evidence: Any) -> Any:
    """An entry's bytes and its own hash: the next one no longer follows."""
    account = evidence.accounts[1]
    await evidence.owner.execute(EDIT, account, 5)
    await rewrite(evidence.owner, account, 5, end=5)
    return (Kind.CHANGED, str(account), 6, 6)


async def delete(evidence: Any) -> Any:
    """An entry in the middle."""
    account = evidence.accounts[0]
    await evidence.owner.execute("DELETE FROM journal WHERE account_id = $1 AND seq = 4", account)
    return (Kind.MISSING, str(account), 4, 4)


async def insert(evidence: Any) -> Any:
    """One more entry in the middle; those after it move up."""
    account = evidence.accounts[2]
    await evidence.owner.execute(
        "UPDATE journal SET seq = -seq WHERE account_id = $1 AND seq >= 4".replace(
            "-seq", "seq + 1000"
        ),
        account,
    )
    await evidence.owner.execute(
        "INSERT INTO journal SELECT account_id, 4, command_id, kind, at, body, hash FROM journal"
        " WHERE account_id = $1 AND seq = 3",
        account,
    )
    await evidence.owner.execute(
        "UPDATE journal SET seq = seq - 999 WHERE account_id = $1 AND seq > 1000", account
    )
    return (Kind.MISPLACED, str(account), 4, 9)  # told once


async def reorder(evidence: Any) -> Any:
    """Two entries change places, hashes and all."""
    account = evidence.accounts[1]
    for old, new in ((3, 1003), (6, 3), (1003, 6)):
        await evidence.owner.execute(
            "UPDATE journal SET seq = $3 WHERE account_id = $1 AND seq = $2", account, old, new
        )
    return (Kind.MISPLACED, str(account), 3, 3)


async def cut(evidence: Any) -> Any:
    """The last entries; the head still knows them."""
    account = evidence.accounts[0]
    await evidence.owner.execute("DELETE FROM journal WHERE account_id = $1 AND seq > 5", account)
    return (Kind.CUT, str(account), 6, 8)


async def splice(evidence: Any) -> Any:
    """Another account's entry takes the place of an entry."""
    account, other = evidence.accounts[:2]
    await evidence.owner.execute(
        "UPDATE journal t SET body = s.body, hash = s.hash FROM journal s"
        " WHERE t.account_id = $1 AND t.seq = 6 AND s.account_id = $2 AND s.seq = 6",
        account,
        other,
    )
    return (Kind.FOREIGN, str(account), 6, 6)


async def lose_head(evidence: Any) -> Any:
    """The head's row."""
    account = evidence.accounts[1]
    await evidence.owner.execute("DELETE FROM streams WHERE account_id = $1", account)
    return (Kind.ADDED, str(account), None, None)


async def append(evidence: Any) -> Any:
    """An entry beyond the head."""
    account = evidence.accounts[1]
    await evidence.owner.execute(
        "INSERT INTO journal SELECT account_id, 9, command_id, kind, at, body, hash FROM journal"
        " WHERE account_id = $1 AND seq = 8",
        account,
    )
    return (Kind.ADDED, str(account), 9, 9)


async def no_actor(evidence: Any) -> Any:
    """Who did it, with everything hashed anew."""
    account = evidence.accounts[1]
    await evidence.owner.execute(
        "UPDATE journal SET body = convert_to(replace(convert_from(body, 'UTF8'),"
        ' \'"by":{"kind":"system"}\', \'"by":{}\'), \'UTF8\') WHERE account_id = $1 AND seq = 5',
        account,
    )
    await rewrite(evidence.owner, account, 5)
    return (Kind.UNREADABLE, str(account), 5, 5)


async def unbalance(evidence: Any) -> Any:
    """A posting's amount, with everything hashed anew."""
    account = evidence.accounts[1]
    await evidence.owner.execute(
        "UPDATE journal SET body = convert_to(replace(convert_from(body, 'UTF8'),"
        ' \'["held","USDT","10"]\', \'["held","USDT","11"]\'), \'UTF8\')'
        " WHERE account_id = $1 AND seq = 5",
        account,
    )
    await rewrite(evidence.owner, account, 5)
    return (Kind.UNBALANCED, str(account), 5, 5)


type Tampering = Callable[[Any], Awaitable[Any]]

SEEN_WITHOUT_ANCHORS: list[Tampering] = [
    edit, edit_and_hash, delete, insert, reorder, cut, splice, lose_head, append, no_actor,
    unbalance,
]  # fmt: skip


@pytest.mark.parametrize("tamper", SEEN_WITHOUT_ANCHORS, ids=lambda f: f.__name__)
async def test_tampering_is_found_and_located(evidence: Any, tamper: Tampering) -> None:
    assert (await evidence.verify_database()).sound
    expected = await tamper(evidence)
    report = await evidence.verify_database()
    assert expected in places(report), report.faults
    assert evidence.verify(await evidence.export()).faults == report.faults
    # Whatever is wrong with one account, the others are not blamed.
    assert {fault.account for fault in report.faults if fault.account} == {expected[1]}


async def rewrite_the_past(evidence: Any) -> Any:
    """An old entry, and everything after it hashed anew: a chain that is whole, and false."""
    account = evidence.accounts[1]
    await evidence.owner.execute(EDIT, account, 5)
    await rewrite(evidence.owner, account, 5)
    return (Kind.CHANGED, str(account), 1, 8)


async def cut_with_head(evidence: Any) -> Any:
    """The end, and the head set back to what is left."""
    account = evidence.accounts[0]
    await evidence.owner.execute("DELETE FROM journal WHERE account_id = $1 AND seq > 5", account)
    await rewrite(evidence.owner, account, 5)
    return (Kind.CUT, str(account), 6, 8)


async def remove_account(evidence: Any) -> Any:
    """Everything about an account."""
    account = evidence.accounts[1]
    for table in ("journal", "streams", "balances", "orders"):
        await evidence.owner.execute(f"DELETE FROM {table} WHERE account_id = $1", account)
    return (Kind.ACCOUNT_MISSING, str(account), 1, 8)


@pytest.mark.parametrize(
    "tamper", [rewrite_the_past, cut_with_head, remove_account], ids=lambda f: f.__name__
)
async def test_what_a_chain_cannot_show_the_anchors_do(evidence: Any, tamper: Tampering) -> None:
    await evidence.anchor()
    assert (await evidence.verify_database(anchored=True)).sound
    expected = await tamper(evidence)
    assert (await evidence.verify_database()).sound, "a chain alone cannot know"
    report = await evidence.verify_database(anchored=True)
    assert places(report) == {expected}
    path = await evidence.export()
    assert evidence.verify(path, anchored=True).faults == report.faults


async def test_two_anchors_tell_between_which_of_them_it_changed(evidence: Any) -> None:
    account = evidence.accounts[1]
    await evidence.anchor()
    await evidence.trade(account, 2)
    await evidence.anchor()
    await evidence.trade(account, 1)
    await evidence.owner.execute(EDIT, account, 9)
    await rewrite(evidence.owner, account, 9)
    report = await evidence.verify_database(anchored=True)
    assert places(report) == {(Kind.CHANGED, str(account), 9, 12)}
