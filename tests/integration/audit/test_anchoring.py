"""Anchors of a real journal: what they cost, what they refuse, and what a crash leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import asyncpg
import pytest

from tbot.audit import anchoring
from tbot.audit.anchorer import Anchorer
from tbot.audit.anchoring import WentBack, newest, place_of
from tbot.audit.keys import load_signing
from tbot.core.errors import ConfigurationError
from tbot.core.settings import Settings
from tbot.db.cluster import FileLock


async def test_only_what_moved_is_anchored_again(evidence: Any) -> None:
    first = await evidence.anchor()
    assert (first.anchor.index, first.anchor.full, first.anchor.leaves) == (0, True, 3)
    assert await evidence.anchor() is None, "nothing moved"
    await evidence.trade(evidence.accounts[2])
    second = await evidence.anchor()
    assert (second.anchor.full, second.anchor.leaves) == (False, 1)
    assert (second.anchor.accounts, second.anchor.entries) == (3, 26)
    assert second.anchor.previous == first.anchor.id
    third = await evidence.anchor(full=True)
    assert (third.anchor.full, third.anchor.leaves) == (True, 3)
    report = await evidence.verify_database(anchored=True)
    assert report.faults == []
    assert (report.anchors, report.anchored) == (3, 26)
    assert newest(evidence.place) == third


async def test_the_key_and_the_anchors_are_their_owners_alone(evidence: Any) -> None:
    await evidence.anchor()
    place = evidence.place
    assert place.directory.stat().st_mode & 0o777 == 0o700
    for path in (place.key, place.anchors, place.heads):
        assert path.stat().st_mode & 0o777 == 0o600
    place.key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        await evidence.anchor()
    place.key.unlink()
    with pytest.raises(ConfigurationError, match="put it back"):
        await evidence.anchor()


def test_anchors_are_beside_the_data_and_not_in_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    assert place_of(settings).directory == tmp_path / "data.audit"
    elsewhere = Settings(data_dir=tmp_path, audit={"directory": tmp_path / "far"})
    assert place_of(elsewhere).directory == tmp_path / "far"


async def test_history_that_went_back_is_not_anchored_unless_it_is_said_why(
    evidence: Any,
) -> None:
    account = evidence.accounts[0]
    await evidence.anchor()
    old = await evidence.owner.fetchval(
        "SELECT hash FROM journal WHERE account_id = $1 AND seq = 6", account
    )
    await evidence.owner.execute("DELETE FROM journal WHERE account_id = $1 AND seq > 6", account)
    await evidence.owner.execute(
        "UPDATE streams SET seq = 6, hash = $2 WHERE account_id = $1", account, old
    )
    with pytest.raises(WentBack, match=f"{account} ends at entry 6; entry 8 was anchored"):
        await evidence.anchor()
    restarted = await evidence.anchor(restart="restored the backup of Monday")
    assert restarted.anchor.full
    report = await evidence.verify_database(anchored=True)
    assert report.faults == []
    assert "restored the backup of Monday" in report.notes[0]


async def test_an_account_that_vanished_is_not_anchored(evidence: Any) -> None:
    await evidence.anchor()
    await evidence.owner.execute("DELETE FROM streams WHERE account_id = $1", evidence.accounts[1])
    with pytest.raises(WentBack, match=f"{evidence.accounts[1]} is gone"):
        await evidence.anchor()


async def test_a_torn_anchor_is_removed_by_the_next(evidence: Any) -> None:
    await evidence.anchor()
    whole = evidence.place.anchors.read_bytes()
    await evidence.trade(evidence.accounts[0])
    await evidence.anchor()
    both = evidence.place.anchors.read_bytes()
    for end in (len(whole) + 10, len(both) - 1):
        evidence.place.anchors.write_bytes(both[:end])
        again = await evidence.anchor()
        assert again.anchor.index == 1
        # What was kept of the heads is of the lost anchor: the next one signs them all.
        assert again.anchor.full
        report = await evidence.verify_database(anchored=True)
        assert (report.faults, report.notes, report.anchors) == ([], [], 2)


async def test_two_writers_do_not_meet(evidence: Any) -> None:
    evidence.place.prepare()
    lock = FileLock(evidence.place.directory / "lock")
    assert lock.acquire()
    with pytest.raises(ConfigurationError, match="another process"):
        await evidence.anchor()
    lock.release()
    assert await evidence.anchor() is not None


async def test_an_export_goes_on_while_orders_come(evidence: Any, monkeypatch: Any) -> None:
    # What comes during the export is not in it, and does not disturb it.
    from tbot.audit import export

    monkeypatch.setattr(export, "PAGE_ENTRIES", 5)
    await evidence.anchor()
    key = load_signing(evidence.place.key)
    lines = []
    async for line in export.lines(evidence.reader, key=key):
        lines.append(line)
        if len(lines) in (3, 12):
            for account in evidence.accounts:
                await evidence.trade(account)
            await evidence.trade(await evidence.desk.open(USDT="1000"))
    path = evidence.directory / "busy.ndjson"
    path.write_bytes(b"".join(lines))
    report = evidence.verify(path, anchored=True)
    assert report.faults == []
    assert (report.accounts, report.entries) == (3, 24)
    later = evidence.verify(await evidence.export(), anchored=True)
    assert (later.accounts, later.entries) == (5, 24 + 12 + 8)


async def test_some_accounts_can_be_exported(evidence: Any) -> None:
    chosen = evidence.accounts[1:]
    path = await evidence.export(chosen)
    report = evidence.verify(path, partial=True)
    assert report.faults == []
    assert (report.accounts, report.entries) == (2, 16)
    await evidence.anchor()
    assert evidence.verify(path, partial=True, anchored=True).sound


async def test_an_export_knows_the_newest_anchor(evidence: Any) -> None:
    await evidence.anchor()
    first = evidence.place.anchors.read_bytes()
    await evidence.trade(evidence.accounts[0])
    await evidence.anchor()
    path = await evidence.export(anchored=anchoring.newest_named(evidence.place))
    assert evidence.verify(path, anchored=True).sound
    evidence.place.anchors.write_bytes(first)
    faults = evidence.verify(path, anchored=True).faults
    assert [fault.text for fault in faults] == [
        "the export knows anchor 1, the anchor file ends with 0: its end is missing"
    ]


async def test_the_server_anchors_on_its_own(
    evidence: Any, database_url: str, eventually: Any
) -> None:
    anchorer = Anchorer(lambda: asyncpg.connect(database_url), evidence.place, 3600.0)
    anchorer.start()
    await eventually(lambda: newest(evidence.place) is not None)
    await evidence.trade(evidence.accounts[0])
    # Another one starts, but the last anchor is not an hour old.
    again = Anchorer(lambda: asyncpg.connect(database_url), evidence.place, 3600.0)
    assert 3500 < again._due_s() <= 3600
    await anchorer.stop()
    assert await again.once()
    assert newest(evidence.place).anchor.index == 1
    await evidence.owner.execute("DELETE FROM streams")
    assert not await again.once(), "it is logged, and nothing is signed"
    assert newest(evidence.place).anchor.index == 1
    evidence.place.key.chmod(0o644)
    assert not await again.once()
