"""The proof of an export, without server or database: pure but for its temporary file.

Entry point: `Proof`, fed with an export's lines one by one.

What is proved, and computed here from the documented format alone, not by the code that wrote it:

1. Each account's entries are numbered 1, 2, 3 … up to its head, and
   `hash(n) = SHA-256(hash(n - 1) || body(n))` from `hash(0) = SHA-256("tbot:1:" + account id)`.
2. Each body says the same account and sequence, never goes back in time, and names who did it.
3. Each command's postings sum to zero per asset, over all accounts.
4. Every anchored head is the hash of that entry, and no anchored account is missing.
5. The file is whole: its manifest's counts and root, and the seal over every byte of it.

A chain alone cannot show that its end was cut or that it was written anew as a whole; anchors can.
"""

from __future__ import annotations

import hashlib
from decimal import Decimal
from itertools import groupby
from typing import Any, Final

from tbot.audit import bodies, form
from tbot.audit.form import EntryLine, Head, Header, Line, Malformed, Manifest, Seal
from tbot.audit.keys import PublicKey
from tbot.audit.merkle import Tree
from tbot.audit.places import Places
from tbot.audit.report import Fault, Kind, Report
from tbot.audit.workspace import Leaf, Workspace

_PLACES_MAX: Final = 10


class _Stream:
    """Where the proof stands within one account's entries."""

    __slots__ = (
        "anchored",
        "at",
        "good",
        "hash",
        "head",
        "known",
        "leaves",
        "places",
        "seq",
        "told",
    )

    def __init__(self, head: Head, leaves: list[Leaf], report: Report) -> None:
        self.head = head
        self.places = Places(report, head.account)
        self.seq = 0
        self.hash = hashlib.sha256(f"tbot:1:{head.account}".encode()).digest()
        self.known = True  # whether `hash` is that of entry `seq`: not after a gap
        self.at = ""
        self.leaves = leaves
        self.anchored = max((leaf.seq for leaf in leaves), default=0)
        self.good = 0
        self.told = False


class Proof:
    """Takes an export's lines in order; `end` gives the verdict.

    Args:
        report: Where faults go.
        workspace: With the anchored heads, if there are any.
        key: Verifies the seal's signature; None leaves it unverified.
        newest_anchor: Index of the newest anchor that was read; None without an anchor file.
        unsigned: Accept an export without a signature although there is a key.
        partial: Accept an export of some accounts: nothing is said about the others, nor about
            commands that reach into them.
    """

    def __init__(
        self,
        report: Report,
        workspace: Workspace,
        *,
        key: PublicKey | None = None,
        newest_anchor: int | None = None,
        partial: bool = False,
        unsigned: bool = False,
    ) -> None:
        self._report = report
        self._workspace = workspace
        self._key = key
        self._newest_anchor = newest_anchor
        self._partial = partial
        self._unsigned = unsigned
        self._tree = Tree()
        self._digest = hashlib.sha256()
        self._line = 0
        self._header: Header | None = None
        self._stream: _Stream | None = None
        self._last_account = ""
        self._heads_total = 0
        self._manifest: Manifest | None = None
        self._sealed = False

    def feed(self, line: bytes) -> None:
        """Take the next line; whatever it is, it raises nothing."""
        self._line += 1
        try:
            read = form.read_line(line)
        except Malformed as error:
            self._digest.update(line)
            self._file_fault(f"line {self._line}: {error}")
            return
        if self._sealed:
            self._file_fault(f"line {self._line}: the file goes on after its seal")
            return
        self._take(read)
        if not isinstance(read, Seal):
            self._digest.update(line)

    def _take(self, read: Line) -> None:
        match read:
            case EntryLine():
                self._entry(read)
            case Head():
                self._begin(read)
            case Header():
                self._open(read)
            case Manifest():
                self._close_stream()
                self._manifest = read
            case Seal():
                self._seal(read)

    def _file_fault(self, text: str) -> None:
        self._report.fault(Fault(Kind.FILE, text, line=self._line))

    def _open(self, read: Header) -> None:
        if self._header is not None or self._line != 1:
            self._file_fault(f"line {self._line}: a header in the middle of the file")
            return
        self._header = read
        if read.scope == "some" and not self._partial:
            self._file_fault("the export holds only some accounts: say that this is meant")
        elif read.scope not in ("all", "some"):
            self._file_fault(f"the export's scope is {read.scope!r}")

    def _begin(self, head: Head) -> None:
        self._close_stream()
        if head.account <= self._last_account:
            self._file_fault(f"line {self._line}: account {head.account} is out of order")
        self._last_account = head.account
        self._stream = _Stream(head, self._workspace.take(head.account), self._report)
        self._report.accounts += 1
        if head.seq is None:
            text = f"account {head.account}: it has entries, but no head in the database"
            self._fault(Kind.ADDED, head.account, None, None, text)
            return
        self._heads_total += head.seq
        self._tree.add(head.leaf())

    def _fault(
        self, kind: Kind, account: str, first: int | None, last: int | None, text: str
    ) -> None:
        self._report.fault(Fault(kind, text, account, first, last, self._line))

    # One entry

    def _entry(self, line: EntryLine) -> None:
        self._report.entries += 1
        stream = self._stream
        if stream is None:
            self._file_fault(f"line {self._line}: an entry before any account")
            return
        account, seq = stream.head.account, line.seq
        where = f"account {account}, entry {seq}"
        body = bodies.decode(line.body)
        if seq <= stream.seq:
            stream.places.misplaced(seq, self._line, f"{where}: stands after {stream.seq}")
            return
        if seq > stream.seq + 1:
            stream.places.gap(stream.seq + 1, seq - 1, self._line)
            stream.known = False
        hashes = hashlib.sha256(stream.hash + line.body).digest() == line.hash
        if stream.known and not hashes:
            self._broken_link(stream, seq, body)
        elif body is None:
            self._fault(Kind.UNREADABLE, account, seq, seq, f"{where}: its body is no entry")
        else:
            self._read_body(stream, seq, body)
        stream.seq, stream.hash, stream.known = seq, line.hash, True
        self._compare_anchors(stream, line)

    def _broken_link(self, stream: _Stream, seq: int, body: dict[str, Any] | None) -> None:
        """Say what an entry that does not continue the chain looks like."""
        account = stream.head.account
        where = f"account {account}, entry {seq}"
        if body is not None and body.get("account") not in (None, account):
            other = f"{body.get('account')}, entry {body.get('seq')}"
            self._fault(Kind.FOREIGN, account, seq, seq, f"{where}: it is of account {other}")
        elif body is not None and isinstance(body.get("seq"), int) and body["seq"] != seq:
            text = f"{where}: what stands here was written as entry {body['seq']}"
            stream.places.misplaced(seq, self._line, text)
        else:
            after = f"entry {seq - 1}" if seq > 1 else "the account's beginning"
            text = f"{where}: it does not follow {after}; one of the two was changed"
            self._fault(Kind.CHANGED, account, seq, seq, text)

    def _read_body(self, stream: _Stream, seq: int, body: dict[str, Any]) -> None:
        """What the body says, once it is known to be the one that was hashed."""
        account = stream.head.account
        where = f"account {account}, entry {seq}"
        if body.get("account") != account:
            text = f"{where}: it says that it is of account {body.get('account')}"
            self._fault(Kind.FOREIGN, account, seq, seq, text)
            return
        if body.get("seq") != seq:
            text = f"{where}: it says that it is entry {body.get('seq')}"
            stream.places.misplaced(seq, self._line, text)
        try:
            facts = bodies.facts(body)
        except bodies.Unreadable as error:
            self._fault(Kind.UNREADABLE, account, seq, seq, f"{where}: {error}")
            return
        if facts.at < stream.at:
            text = f"{where}: it is of an earlier time than the entry before it"
            self._fault(Kind.UNREADABLE, account, seq, seq, text)
        stream.at = facts.at
        for asset, amount in facts.sums.items():
            if amount:
                text = format(amount, "f")
                self._workspace.wait(facts.command, asset, text, account, seq)

    def _compare_anchors(self, stream: _Stream, line: EntryLine) -> None:
        while stream.leaves and stream.leaves[0].seq <= line.seq:
            leaf = stream.leaves.pop(0)
            if leaf.seq == line.seq and leaf.hash == line.hash.hex():
                stream.good = leaf.seq
            elif not stream.told:
                stream.told = True
                account, first = stream.head.account, stream.good + 1
                text = (
                    f"account {account}, entry {leaf.seq}: anchor {leaf.anchor} of {leaf.at} signed"
                    f" another one; what changed lies in entries {first} to {leaf.seq}"
                )
                self._fault(Kind.CHANGED, account, first, leaf.seq, text)

    # The end of an account

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        stream.places.end()
        head, account = stream.head, stream.head.account
        if head.seq is not None and stream.seq < head.seq:
            first, last = stream.seq + 1, head.seq
            text = f"account {account}: its head is entry {last}, its journal ends at {stream.seq}"
            self._fault(Kind.CUT, account, first, last, text)
        elif head.seq is not None and stream.seq > head.seq:
            first, last = head.seq + 1, stream.seq
            text = f"account {account}: its head is entry {head.seq}, its journal goes on to {last}"
            self._fault(Kind.ADDED, account, first, last, text)
        elif head.seq is not None and stream.hash.hex() != head.hash:
            text = f"account {account}: its head has another hash than entry {stream.seq}"
            self._fault(Kind.CHANGED, account, stream.seq, stream.seq, text)
        if stream.leaves:
            leaf = stream.leaves[-1]
            text = (
                f"account {account}: anchor {leaf.anchor} of {leaf.at} signed entry {leaf.seq},"
                f" its journal ends at {stream.seq}"
            )
            self._fault(Kind.CUT, account, stream.seq + 1, leaf.seq, text)
        self._report.anchored += min(stream.anchored, stream.seq)

    def _seal(self, read: Seal) -> None:
        self._close_stream()
        self._sealed = True
        if self._manifest is None:
            self._file_fault("there is no manifest before the seal")
        if read.sha256 != self._digest.hexdigest():
            self._file_fault("the seal does not fit: bytes were changed, added or removed")
        if self._key is None:
            return
        self._report.signed = False
        if read.signature is None:
            # Who changes an export can take its signature off: without one the key proves nothing.
            if self._unsigned:
                self._report.notes.append("the export is not signed")
            else:
                self._file_fault("the export is not signed, though a key was named")
        elif read.key != self._key.fingerprint or not self._key.signed(
            read.signature, form.EXPORT_CONTEXT + read.sha256.encode()
        ):
            self._file_fault("the seal's signature is not by the given key")
        else:
            self._report.signed = True

    def end(self) -> Report:
        """Conclude, after the last line."""
        self._close_stream()
        if self._header is None:
            self._file_fault("there is no header: is this an export of `tbot audit export`?")
        if not self._sealed:
            self._file_fault("the file ends without its seal: its end is missing")
        self._check_manifest()
        some = self._header is not None and self._header.scope == "some"
        if not some:
            for account, leaf in self._workspace.left():
                text = (
                    f"account {account} is missing: anchor {leaf.anchor} of {leaf.at} signed its"
                    f" entry {leaf.seq}"
                )
                self._fault(Kind.ACCOUNT_MISSING, account, 1, leaf.seq, text)
        self._check_commands(some)
        return self._report

    def _check_manifest(self) -> None:
        read = self._manifest
        if read is None:
            return
        if (read.accounts, read.entries) != (self._tree.size, self._heads_total):
            self._file_fault(
                f"the manifest counts {read.accounts} accounts with {read.entries} entries, the"
                f" heads {self._tree.size} with {self._heads_total}"
            )
        if read.root != self._tree.root().hex():
            self._file_fault("the manifest's root is not that of the heads")
        if read.anchor_index is None or self._newest_anchor is None:
            return
        if read.anchor_index > self._newest_anchor:
            text = (
                f"the export knows anchor {read.anchor_index}, the anchor file ends with"
                f" {self._newest_anchor}: its end is missing"
            )
            self._report.fault(Fault(Kind.ANCHOR, text))

    def _check_commands(self, some: bool) -> None:
        """Every command's postings, over all entries, sum to zero per asset."""
        open_ones, last_command = 0, None
        for (command, asset), legs in groupby(self._workspace.legs(), lambda leg: leg[:2]):
            if command != last_command:
                self._report.commands, last_command = self._report.commands + 1, command
            total, places = Decimal(0), list[tuple[str, int]]()
            for _, _, amount, account, seq in legs:
                total = bodies.EXACT.add(total, Decimal(amount))
                if len(places) < _PLACES_MAX:
                    places.append((account, seq))
            if total:
                open_ones += 1
                if not some:
                    self._unbalanced((command, asset), total, places)
        if some and open_ones:
            self._report.notes.append(
                f"{open_ones} commands reach into accounts that this export leaves out"
            )

    def _unbalanced(
        self, key: tuple[str, str], total: Decimal, places: list[tuple[str, int]]
    ) -> None:
        account, seq = places[0]
        listed = ", ".join(f"account {a} entry {s}" for a, s in places)
        text = f"command {key[0]}: its postings of {key[1]} miss zero by {total:f} ({listed})"
        self._report.fault(Fault(Kind.UNBALANCED, text, account, seq, places[-1][1]))
