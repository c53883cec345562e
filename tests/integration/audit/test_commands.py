"""`tbot audit` at the command line, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


async def test_from_anchor_to_offline_proof(tbot: Any, evidence: Any, tmp_path: Path) -> None:
    code, said, _ = await tbot("audit", "anchor", "--json")
    assert code == 0
    anchor = json.loads(said)
    assert (anchor["index"], anchor["entries"]) == (0, 24)
    assert (await tbot("audit", "anchor"))[:2] == (0, "Nothing moved since the last anchor.\n")

    export = tmp_path / "journal.ndjson"
    code, _, said = await tbot("audit", "export", str(export))
    assert code == 0
    assert "3 accounts, 24 entries, signed" in said
    assert export.stat().st_mode & 0o777 == 0o600

    code, pem, _ = await tbot("audit", "key")
    public_key = tmp_path / "public.pem"
    public_key.write_text(pem)
    anchors = str(tmp_path / "data.audit" / "anchors.ndjson")
    prove = ("audit", "verify", str(export), "--anchors", anchors)
    prove += ("--public-key", str(public_key), "--includes", anchor["id"])
    code, said, _ = await tbot(*prove)
    assert (code, said) == (
        0,
        "Everything holds: 3 accounts, 24 entries, 24 of them under 1 anchors.\n",
    )

    content = export.read_bytes()
    export.write_bytes(content.replace(b'"amount":"1000"', b'"amount":"9000"', 1))
    code, said, _ = await tbot(*prove, "--json")
    assert code == 1
    faults = json.loads(said)["faults"]
    assert [(f["kind"], f["account"], f["first"]) for f in faults] == [
        ("changed", str(evidence.accounts[0]), 2),
        ("file", None, None),
    ]


async def test_the_database_is_proved_where_it_is(tbot: Any, evidence: Any) -> None:
    code, said, _ = await tbot("audit", "verify", "--database")
    assert code == 0
    assert "No anchors were given" in said
    await tbot("audit", "anchor")
    code, said, _ = await tbot("audit", "verify", "--database")
    assert (code, "under 1 anchors" in said) == (0, True)
    await evidence.owner.execute("DELETE FROM journal WHERE seq = 8")
    code, said, _ = await tbot("audit", "verify", "--database")
    assert code == 1
    assert f"cut: account {evidence.accounts[0]}: its head is entry 8" in said


async def test_an_export_goes_down_a_pipe(tbot: Any, evidence: Any, tmp_path: Path) -> None:
    account = str(evidence.accounts[1])
    code, said, told = await tbot("audit", "export", "-", "--account", account)
    assert code == 0
    assert "1 accounts, 8 entries, not signed" in told
    path = tmp_path / "piped"
    path.write_text(said)
    assert (await tbot("audit", "verify", str(path)))[0] == 1
    assert (await tbot("audit", "verify", str(path), "--partial"))[0] == 0


async def test_entries_are_shown_with_who_did_them(tbot: Any, evidence: Any) -> None:
    account = str(evidence.accounts[0])
    code, said, _ = await tbot("audit", "show", account, "3")
    assert code == 0
    assert "3  order.accepted" in said
    assert "by       system" in said
    assert "posting  available -10 USDT" in said
    code, said, _ = await tbot("audit", "show", account, "--last", "2", "--json")
    assert [json.loads(line)["seq"] for line in said.splitlines()] == [7, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "me"], "'me' is no account id"),
        (["show", "00000000-0000-0000-0000-000000000001"], "no journal of account"),
        (["verify"], "name an export file or say --database"),
        (["verify", "nowhere"], "nowhere: No such file"),
        (["verify", "nowhere", "--anchors", "nothing"], "no anchor file nothing"),
        (["verify", "nowhere", "--anchors", "/dev/null"], "no anchor file /dev/null"),
        (["verify", "nowhere", "--public-key", "/dev/null"], "no public key in PEM form"),
        (["verify", "nowhere", "--includes", "x"], "8 to 64 hex digits"),
        (["export", "/nowhere/x"], "there is no directory /nowhere"),
        (["export", "-", "--account", "me"], "'me' is no account id"),
        (
            ["export", "-", "--account", "00000000-0000-0000-0000-000000000001"],
            "no journal of account 00000000-0000-0000-0000-000000000001",
        ),
        (["key"], "there is no audit key yet"),
        (["anchor", "--restart", " "], "--restart needs a reason"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else None,
)
def test_bad_input_is_one_clear_line(tbot_here: Any, arguments: list[str], words: str) -> None:
    code, said, told = tbot_here("audit", *arguments)
    assert code in (1, 2)
    assert words in told
    assert told.count("\n") == 1
    assert "Traceback" not in said + told
