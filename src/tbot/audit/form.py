"""The lines of exports and of anchor files: pure. docs/audit.md describes both for others.

Entry points: `Head`; `header`, `stream`, `entry`, `manifest`, `seal` write an export's lines,
`read_line` reads them; `leaf`, `anchor` and `read_anchor_line` are for anchor files.

Invariant: a line has exactly one form. The readers accept what the writers write, byte for byte,
so that nothing in a file can be changed without being seen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any, Final

EXPORT_FORM: Final = 1
ANCHOR_FORM: Final = 1
LINE_BYTES_MAX: Final = 16 << 20
EXPORT_CONTEXT: Final = b"tbot:export:1\n"
"""Before what is signed, so that no signature of one thing can pass for another's."""
ANCHOR_CONTEXT: Final = b"tbot:anchor:1\n"
NO_ANCHOR: Final = "0" * 64

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_NUMBER = r"(?:0|[1-9][0-9]{0,18})"
_STREAM: Final = re.compile(
    rf'\{{"stream":"({_UUID})","entries":({_NUMBER}|null),"head":(?:"([0-9a-f]{{64}})"|null)\}}\n'
)
_ENTRY: Final = re.compile(
    rb'\{"entry":([1-9][0-9]{0,18}),"hash":"([0-9a-f]{64})","(body|body64)":(.*)\}\n', re.DOTALL
)
_SEAL: Final = re.compile(
    rb'\{"sha256":"([0-9a-f]{64})"(?:,"key":"([0-9a-f]{64})","signature":"([0-9a-f]{128})")?\}\n'
)
_LEAF: Final = re.compile(
    rf'\{{"account":"({_UUID})","seq":([1-9][0-9]{{0,18}}),"hash":"([0-9a-f]{{64}})"\}}\n'.encode()
)
_ANCHOR: Final = re.compile(
    rb'\{"anchor":(\{.*\}),"key":"([0-9a-f]{64})","signature":"([0-9a-f]{128})"\}\n'
)


class Malformed(Exception):
    """A line that no writer of these files writes."""


@dataclass(frozen=True, slots=True)
class Head:
    """Where an account's stream ends.

    Attributes:
        seq: None in an export: the database has entries of the account, but no head.
        hash: Of entry `seq`, 64 hex digits.
    """

    account: str
    seq: int | None
    hash: str | None

    def leaf(self) -> bytes:
        """What the Merkle tree is made of."""
        return f"{self.account} {self.seq} {self.hash}".encode()


@dataclass(frozen=True, slots=True)
class Header:
    """An export's first line.

    Attributes:
        scope: `all` accounts, or `some`.
    """

    version: str
    made_at: str
    scope: str


@dataclass(frozen=True, slots=True)
class EntryLine:
    """One journal entry, as stored."""

    seq: int
    hash: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Manifest:
    """An export's last line but one.

    Attributes:
        root: Of the Merkle tree over the heads.
        anchor_index: Of the newest anchor when the export was made; None when there was none.
    """

    accounts: int
    entries: int
    root: str
    anchor_index: int | None
    anchor_id: str | None


@dataclass(frozen=True, slots=True)
class Seal:
    """An export's last line.

    Attributes:
        sha256: Over every byte before the line.
        key: Fingerprint of the key that signed `sha256`.
    """

    sha256: str
    key: str | None
    signature: bytes | None


type Line = Header | Head | EntryLine | Manifest | Seal


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def header(line: Header) -> bytes:
    """Write a header."""
    return _json(_header_dict(line)) + b"\n"


def _header_dict(line: Header) -> dict[str, Any]:
    return {
        "tbot_export": EXPORT_FORM,
        "version": line.version,
        "made_at": line.made_at,
        "scope": line.scope,
    }


def stream(head: Head) -> bytes:
    """Write the line that begins an account's entries."""
    return _json({"stream": head.account, "entries": head.seq, "head": head.hash}) + b"\n"


def entry(line: EntryLine) -> bytes:
    """Write an entry: its body verbatim, or in base 64 when it cannot stand in a line."""
    body = line.body
    if body[:1] == b"{" and body[-1:] == b"}" and b"\n" not in body:
        name, text = b"body", body
    else:
        name, text = b"body64", b'"' + base64.b64encode(body) + b'"'
    return b'{"entry":%d,"hash":"%s","%s":%s}\n' % (
        line.seq,
        line.hash.hex().encode(),
        name,
        text,
    )


def manifest(line: Manifest) -> bytes:
    """Write a manifest."""
    return _json(_manifest_dict(line)) + b"\n"


def _manifest_dict(line: Manifest) -> dict[str, Any]:
    anchored = None
    if line.anchor_index is not None:
        anchored = {"index": line.anchor_index, "id": line.anchor_id}
    return {
        "manifest": {
            "accounts": line.accounts,
            "entries": line.entries,
            "root": line.root,
            "anchor": anchored,
        }
    }


def seal(line: Seal) -> bytes:
    """Write a seal."""
    parts: dict[str, Any] = {"sha256": line.sha256}
    if line.key is not None and line.signature is not None:
        parts |= {"key": line.key, "signature": line.signature.hex()}
    return _json(parts) + b"\n"


def read_line(line: bytes) -> Line:
    """Read any line of an export.

    Raises:
        Malformed: It has none of the forms.
    """
    if found := _ENTRY.fullmatch(line):
        return EntryLine(int(found[1]), bytes.fromhex(found[2].decode()), _body(found[3], found[4]))
    text = line.decode("ascii", errors="replace")
    if head := _STREAM.fullmatch(text):
        seq = None if head[2] == "null" else int(head[2])
        return Head(head[1], seq, head[3])
    if sealed := _SEAL.fullmatch(line):
        key = sealed[2].decode() if sealed[2] else None
        signature = bytes.fromhex(sealed[3].decode()) if sealed[3] else None
        return Seal(sealed[1].decode(), key, signature)
    try:
        return _described(line)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Malformed("no line of an export has this form") from None


def _body(name: bytes, text: bytes) -> bytes:
    if name == b"body":
        return text
    try:
        body = base64.b64decode(text[1:-1], validate=True)
    except binascii.Error:
        raise Malformed("the body is not base 64") from None
    if b'"' + base64.b64encode(body) + b'"' != text:
        raise Malformed("the body is not base 64")
    return body


def _described(line: bytes) -> Header | Manifest:
    data = json.loads(line)
    result: Header | Manifest
    if "manifest" in data:
        inner = data["manifest"]
        anchored = inner["anchor"] or {"index": None, "id": None}
        result = Manifest(
            int(inner["accounts"]),
            int(inner["entries"]),
            str(inner["root"]),
            anchored["index"],
            anchored["id"],
        )
        written = manifest(result)
    else:
        result = Header(str(data["version"]), str(data["made_at"]), str(data["scope"]))
        written = header(result)
    if written != line:
        raise ValueError("another form")
    return result


# Anchors


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """A signed statement about heads.

    Attributes:
        index: 0, 1, 2 … within its file.
        at: When, RFC 3339.
        full: Whether its leaves are the heads of all streams, or only of those that moved since
            the anchor before.
        previous: Id of the anchor before; zeros for the first.
        leaves: Lines before it that it signs.
        root: Of the Merkle tree over them.
        accounts: Streams with entries at that time.
        entries: Entries of all of them.
        restart: Why heads may have gone back here, as after a restored backup; otherwise None.
    """

    index: int
    at: str
    full: bool
    previous: str
    leaves: int
    root: str
    accounts: int
    entries: int
    restart: str | None = None

    def statement(self) -> bytes:
        """The bytes that are signed, and hashed for the id."""
        return _json(
            {
                "v": ANCHOR_FORM,
                "index": self.index,
                "at": self.at,
                "full": self.full,
                "previous": self.previous,
                "leaves": self.leaves,
                "root": self.root,
                "accounts": self.accounts,
                "entries": self.entries,
                "restart": self.restart,
            }
        )

    @property
    def id(self) -> str:
        """SHA-256 of the statement: worth noting down elsewhere."""
        return hashlib.sha256(self.statement()).hexdigest()


@dataclass(frozen=True, slots=True)
class SignedAnchor:
    """An anchor, the fingerprint of the key, and the signature."""

    anchor: Anchor
    key: str
    signature: bytes


def leaf(head: Head) -> bytes:
    """Write a head into an anchor file."""
    return _json({"account": head.account, "seq": head.seq, "hash": head.hash}) + b"\n"


def anchor(line: SignedAnchor) -> bytes:
    """Write an anchor."""
    return b'{"anchor":%s,"key":"%s","signature":"%s"}\n' % (
        line.anchor.statement(),
        line.key.encode(),
        line.signature.hex().encode(),
    )


def read_anchor_line(line: bytes) -> Head | SignedAnchor:
    """Read any line of an anchor file.

    Raises:
        Malformed: It has neither form.
    """
    if found := _LEAF.fullmatch(line):
        return Head(found[1].decode(), int(found[2]), found[3].decode())
    signed = _ANCHOR.fullmatch(line)
    if signed is None:
        raise Malformed("no line of an anchor file has this form")
    try:
        data = json.loads(signed[1])
        if data.pop("v") != ANCHOR_FORM:
            raise Malformed("the anchor is of another version")
        read = Anchor(**data)
        if read.statement() != signed[1]:
            raise ValueError("another form")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Malformed("the anchor's statement has another form") from None
    return SignedAnchor(read, signed[2].decode(), bytes.fromhex(signed[3].decode()))
