"""Small journals, exported and anchored without any database."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tbot.audit import form
from tbot.audit.form import Anchor, EntryLine, Head, Header, Manifest, Seal, SignedAnchor
from tbot.audit.keys import SigningKey, make_signing
from tbot.audit.merkle import Tree

ACCOUNTS = [f"{n:08x}-0000-7000-8000-000000000000" for n in (1, 2, 3)]


@dataclass
class Book:
    """Journals in memory: account → bodies with their hashes."""

    key: SigningKey
    journals: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    commands: int = 0

    def write(self, account: str, *postings: list[str], command: str | None = None) -> None:
        """Append an entry."""
        journal = self.journals.setdefault(account, [])
        self.commands += 1
        body = {
            "v": 1,
            "account": account,
            "seq": len(journal) + 1,
            "at": f"2026-01-01T00:00:00.{self.commands:06}Z",
            "kind": "tested",
            "command": command or f"c{self.commands}",
            "by": {"kind": "system", "name": "test"},
            "postings": list(postings),
            "data": {"text": "ü"},
        }
        raw = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        before = (
            journal[-1][1] if journal else hashlib.sha256(f"tbot:1:{account}".encode()).digest()
        )
        journal.append((raw, hashlib.sha256(before + raw).digest()))

    def heads(self) -> list[Head]:
        """Of all accounts, in order."""
        return [
            Head(account, len(journal), journal[-1][1].hex())
            for account, journal in sorted(self.journals.items())
        ]

    def export(self, **header: Any) -> bytes:
        """As `tbot audit export` writes it, signed."""
        parts = {"version": "0", "made_at": "now", "scope": "all", **header}
        lines = [form.header(Header(**parts))]
        tree = Tree()
        for head in self.heads():
            tree.add(head.leaf())
            lines.append(form.stream(head))
            for seq, (body, digest) in enumerate(self.journals[head.account], 1):
                lines.append(form.entry(EntryLine(seq, digest, body)))
        entries = sum(head.seq or 0 for head in self.heads())
        root = tree.root().hex()
        lines.append(form.manifest(Manifest(tree.size, entries, root, None, None)))
        whole = b"".join(lines)
        total = hashlib.sha256(whole).hexdigest()
        signature = self.key.sign(form.EXPORT_CONTEXT + total.encode())
        return whole + form.seal(Seal(total, self.key.public.fingerprint, signature))

    def anchor(self, previous: SignedAnchor | None = None) -> tuple[bytes, SignedAnchor]:
        """A full anchor's lines, and the anchor."""
        tree = Tree()
        for head in self.heads():
            tree.add(head.leaf())
        statement = Anchor(
            index=0 if previous is None else previous.anchor.index + 1,
            at="2026-01-01T00:00:00.000000Z",
            full=True,
            previous=form.NO_ANCHOR if previous is None else previous.anchor.id,
            leaves=tree.size,
            root=tree.root().hex(),
            accounts=tree.size,
            entries=sum(head.seq or 0 for head in self.heads()),
        )
        signature = self.key.sign(form.ANCHOR_CONTEXT + statement.statement())
        signed = SignedAnchor(statement, self.key.public.fingerprint, signature)
        return b"".join(map(form.leaf, self.heads())) + form.anchor(signed), signed


@pytest.fixture
def book(tmp_path: Path) -> Book:
    """Two accounts that trade and transfer, and one that only received."""
    made = Book(make_signing(tmp_path / "key.pem"))
    first, second, third = ACCOUNTS
    for account in (first, second):
        made.write(account, ["outside:bank", "EUR", "-5.00"], ["available", "EUR", "5.00"])
        made.write(account, ["available", "EUR", "-1"], ["held", "EUR", "1"])
    made.write(first, ["available", "EUR", "-2.5"], command="transfer")
    made.write(third, ["available", "EUR", "2.5"], command="transfer")
    made.write(second)
    return made
