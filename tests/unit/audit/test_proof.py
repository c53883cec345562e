"""The proof of files: whatever is changed in one is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbot.audit import form
from tbot.audit.form import EntryLine
from tbot.audit.keys import make_signing
from tbot.audit.merkle import EMPTY, Tree
from tbot.audit.offline import verify_file
from tbot.audit.report import Kind, Report

FIXED = settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def verify(tmp_path: Path, content: bytes, **options: Any) -> Report:
    path = tmp_path / "export.ndjson"
    path.write_bytes(content)
    return verify_file(path, **options)


def resealed(content: bytes) -> bytes:
    """The file with a seal that fits: what a forger without the key can make."""
    whole = content[: content.rstrip(b"\n").rfind(b"\n") + 1]
    return whole + b'{"sha256":"%s"}\n' % hashlib.sha256(whole).hexdigest().encode()


def test_a_good_export_is_sound(book: Any, tmp_path: Path) -> None:
    report = verify(tmp_path, book.export(), key=book.key.public)
    assert report.faults == []
    assert (report.accounts, report.entries, report.commands) == (3, 7, 1)


@FIXED
@given(data=st.data())
def test_any_changed_byte_is_found(book: Any, tmp_path: Path, data: Any) -> None:
    content = bytearray(book.export())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    assert not verify(tmp_path, bytes(content), key=book.key.public).sound


@FIXED
@given(data=st.data())
def test_any_changed_byte_of_an_entry_is_found_under_a_new_seal_and_located(
    book: Any, tmp_path: Path, data: Any
) -> None:
    content = bytearray(book.export())
    lines = bytes(content).splitlines(keepends=True)
    number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if b'{"entry"' in line]))
    offset = sum(map(len, lines[:number]))
    # Not the newline: without it two lines become one, which is found, but in another line.
    place = offset + data.draw(st.integers(0, len(lines[number]) - 2))
    content[place] ^= data.draw(st.integers(1, 255))
    report = verify(tmp_path, resealed(bytes(content)))
    assert any(fault.line in (number + 1, number + 2) for fault in report.faults), report.faults


@FIXED
@given(data=st.data())
def test_any_cut_is_found(book: Any, tmp_path: Path, data: Any) -> None:
    content = book.export()
    end = data.draw(st.integers(0, len(content) - 1))
    assert not verify(tmp_path, content[:end]).sound


@FIXED
@given(data=st.data())
def test_any_lines_moved_or_repeated_are_found_under_a_new_seal(
    book: Any, tmp_path: Path, data: Any
) -> None:
    lines = book.export().splitlines(keepends=True)
    last = len(lines) - 3  # neither manifest nor seal
    source = data.draw(st.integers(0, last))
    target = data.draw(st.integers(0, last).filter(lambda n: n != source))
    line = lines[source]
    if data.draw(st.booleans()):
        del lines[source]
    lines.insert(target, line)
    if b"".join(lines) == book.export():
        return
    assert not verify(tmp_path, resealed(b"".join(lines))).sound


def test_what_cannot_stand_in_a_line_travels_in_base_64() -> None:
    for body in (b"", b"{\n}", b"no JSON", b"\xff\x00", b'{"a":1}'):
        line = form.entry(EntryLine(1, bytes(32), body))
        assert line.count(b"\n") == 1
        assert form.read_line(line) == EntryLine(1, bytes(32), body)


def test_a_partial_export_must_be_meant(book: Any, tmp_path: Path) -> None:
    del book.journals["00000003-0000-7000-8000-000000000000"]
    content = book.export(scope="some")
    assert [fault.kind for fault in verify(tmp_path, content).faults] == [Kind.FILE]
    report = verify(tmp_path, content, partial=True)
    assert report.sound
    assert report.notes == ["1 commands reach into accounts that this export leaves out"]
    whole = verify(tmp_path, book.export())
    assert [fault.kind for fault in whole.faults] == [Kind.UNBALANCED]


def test_a_signature_by_another_key_is_found(book: Any, tmp_path: Path) -> None:
    other = make_signing(tmp_path / "other.pem").public
    report = verify(tmp_path, book.export(), key=other)
    assert [fault.text for fault in report.faults] == [
        "the seal's signature is not by the given key"
    ]


def test_a_signature_that_was_taken_off_is_missed(book: Any, tmp_path: Path) -> None:
    stripped, key = resealed(book.export()), book.key.public
    report = verify(tmp_path, stripped, key=key)
    assert [fault.text for fault in report.faults] == [
        "the export is not signed, though a key was named"
    ]
    assert report.signed is False
    meant = verify(tmp_path, stripped, key=key, unsigned=True)
    assert (meant.sound, meant.signed, meant.notes) == (True, False, ["the export is not signed"])
    assert verify(tmp_path, book.export(), key=key).signed is True
    assert verify(tmp_path, stripped).signed is None


# Anchor files


def anchored(tmp_path: Path, book: Any, content: bytes, **options: Any) -> Report:
    path = tmp_path / "anchors.ndjson"
    path.write_bytes(content)
    options = {"anchor_file": path, "key": book.key.public, **options}
    return verify(tmp_path, book.export(), **options)


def test_anchors_hold_what_came_before_and_leave_what_came_after(book: Any, tmp_path: Path) -> None:
    first, signed = book.anchor()
    book.write("00000001-0000-7000-8000-000000000000")
    second, newest = book.anchor(signed)
    book.write("00000002-0000-7000-8000-000000000000")
    report = anchored(tmp_path, book, first + second, includes=newest.anchor.id[:12])
    assert report.faults == []
    assert (report.anchors, report.anchored, report.entries) == (2, 8, 9)
    cut = anchored(tmp_path, book, first, includes=newest.anchor.id)
    assert [fault.kind for fault in cut.faults] == [Kind.ANCHOR]


@FIXED
@given(data=st.data())
def test_any_changed_byte_of_an_anchor_file_is_found(book: Any, tmp_path: Path, data: Any) -> None:
    first, signed = book.anchor()
    second, _ = book.anchor(signed)
    content = bytearray(first + second)
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    assert not anchored(tmp_path, book, bytes(content)).sound


def test_anchors_removed_moved_or_of_another_key_are_found(book: Any, tmp_path: Path) -> None:
    first, signed = book.anchor()
    second, again = book.anchor(signed)
    third, _ = book.anchor(again)
    for content in (second + third, first + third, second + first + third, first + first):
        assert not anchored(tmp_path, book, content).sound
    other = make_signing(tmp_path / "other.pem").public
    faults = anchored(tmp_path, book, first, key=other).faults
    assert "signed by another key" in faults[0].text


def test_an_anchor_that_was_cut_while_being_written_is_only_noted(
    book: Any, tmp_path: Path
) -> None:
    first, signed = book.anchor()
    second, _ = book.anchor(signed)
    lines = second.splitlines(keepends=True)
    report = anchored(tmp_path, book, first + b"".join(lines[:2]))
    assert report.sound
    assert "2 lines that nothing signs" in report.notes[0]


def test_merkle_roots_are_those_of_the_standard() -> None:
    # RFC 9162, 2.1: leaves and nodes are hashed with different prefixes; n splits at a power of 2.
    def root(leaves: list[bytes]) -> bytes:
        if not leaves:
            return EMPTY
        if len(leaves) == 1:
            return hashlib.sha256(b"\0" + leaves[0]).digest()
        k = 1
        while k * 2 < len(leaves):
            k *= 2
        return hashlib.sha256(b"\1" + root(leaves[:k]) + root(leaves[k:])).digest()

    tree, leaves = Tree(), list[bytes]()
    for number in range(70):
        assert tree.root() == root(leaves)
        leaves.append(str(number).encode())
        tree.add(leaves[-1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": 2}, "its format 2"),
        ({"at": "yesterday"}, "its time"),
        ({"at": "2025-01-01T00:00:00.000000Z"}, "earlier time"),
        ({"by": {}}, "who did it"),
        ({"by": {"kind": "user", "user": "u"}}, "in which session"),
        ({"command": 5}, "names no command"),
        ({"postings": [["available", "EUR", "NaN"]]}, "is no number"),
        ({"postings": [["available", "EUR", 5]]}, "a posting is none"),
        ({"postings": [["available", "EUR", "5"]]}, "miss zero by 5"),
        ({"account": "00000002-0000-7000-8000-000000000000"}, "says that it is of account"),
        ({"seq": 9}, "says that it is entry 9"),
    ],
)
def test_a_well_hashed_entry_that_says_nonsense_is_found(
    book: Any, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    journal = book.journals["00000001-0000-7000-8000-000000000000"]
    body = json.loads(journal[-1][0]) | {"postings": [], "command": "other"} | change
    raw = json.dumps(body).encode()
    digest = hashlib.sha256(journal[-2][1] + raw).digest()
    journal[-1] = raw, digest
    del book.journals["00000003-0000-7000-8000-000000000000"]
    faults = verify(tmp_path, book.export()).faults
    assert [fault.first for fault in faults] == [3]
    assert words in faults[0].text
