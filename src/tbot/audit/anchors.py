"""Reading an anchor file: every signature, every root, and the chain of anchors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Protocol

from tbot.audit import form
from tbot.audit.form import Head, Malformed, SignedAnchor
from tbot.audit.keys import PublicKey
from tbot.audit.merkle import Tree
from tbot.audit.report import Fault, Kind, Report


class Leaves(Protocol):
    """Where anchored heads are kept while an anchor file is read."""

    def expect(self, head: Head, index: int) -> None:
        """Anchor `index`, which is not read yet, claims this head."""

    def confirm(self, signed: SignedAnchor) -> None:
        """The anchor holds, and so do the heads that it claims."""

    def retract(self, index: int) -> None:
        """The anchor does not hold: forget what it claims."""

    def forget(self) -> int:
        """Forget every head confirmed so far; how many there were."""


def read(file: IO[bytes], key: PublicKey, leaves: Leaves, report: Report) -> SignedAnchor | None:
    """Verify an anchor file from its first line to its last.

    Args:
        key: Nothing signed by another key counts.
        report: Gets a fault for everything that does not hold.

    Returns:
        The newest anchor that holds, or None when there is none.
    """
    newest: SignedAnchor | None = None
    index, tree, previous = 0, Tree(), form.NO_ANCHOR
    last_leaf, number = "", 0
    for number, line in enumerate(lines_of(file), 1):
        try:
            read_line = form.read_anchor_line(line)
        except Malformed as error:
            report.fault(Fault(Kind.ANCHOR, f"anchor file, line {number}: {error}", line=number))
            continue
        if isinstance(read_line, Head):
            if read_line.account <= last_leaf:
                text = f"anchor file, line {number}: {read_line.account} is out of order"
                report.fault(Fault(Kind.ANCHOR, text, line=number))
            last_leaf = read_line.account
            tree.add(read_line.leaf())
            leaves.expect(read_line, index)
            continue
        wrong = _wrong(read_line, index, previous, tree, key)
        if wrong is None:
            _confirm(read_line, leaves, report)
            newest = read_line
        else:
            leaves.retract(index)
            text = f"anchor {read_line.anchor.index} (line {number}): {wrong}"
            report.fault(Fault(Kind.ANCHOR, text, line=number))
        previous = read_line.anchor.id
        index, tree, last_leaf = read_line.anchor.index + 1, Tree(), ""
    if tree.size:
        leaves.retract(index)
        report.notes.append(
            f"the anchor file ends with {tree.size} lines that nothing signs: a write that was cut"
        )
    return newest


def _confirm(signed: SignedAnchor, leaves: Leaves, report: Report) -> None:
    if signed.anchor.restart is not None:
        forgotten = leaves.forget()
        report.notes.append(
            f"anchor {signed.anchor.index} of {signed.anchor.at} begins anew"
            f" ({signed.anchor.restart!r}): {forgotten} heads anchored before are not compared"
        )
    leaves.confirm(signed)
    report.anchors += 1


def _wrong(
    signed: SignedAnchor, index: int, previous: str, tree: Tree, key: PublicKey
) -> str | None:
    """Why an anchor does not hold; None when it does."""
    anchor = signed.anchor
    if signed.key != key.fingerprint:
        return f"signed by another key, {signed.key[:16]}…"
    if not key.signed(signed.signature, form.ANCHOR_CONTEXT + anchor.statement()):
        return "the signature is not of this anchor"
    if anchor.index != index:
        return f"anchor {index} should stand here: anchors were removed or moved"
    if anchor.previous != previous:
        return "it does not follow the anchor before it"
    if anchor.leaves != tree.size or anchor.root != tree.root().hex():
        return f"the {tree.size} heads before it are not the {anchor.leaves} that it signs"
    return None


def lines_of(file: IO[bytes]) -> Iterator[bytes]:
    """A file's lines, none longer than can be handled: the rest of one counts as another."""
    while line := file.readline(form.LINE_BYTES_MAX):
        yield line
