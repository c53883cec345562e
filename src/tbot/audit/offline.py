"""Verifying an export file with an anchor file: no server, no database.

Entry points: `verify_file`; `read_anchors` for other sources of lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from tbot.audit import anchors
from tbot.audit.form import Head, SignedAnchor
from tbot.audit.keys import PublicKey
from tbot.audit.proof import Proof
from tbot.audit.report import Fault, Kind, Report
from tbot.audit.workspace import Workspace

_PROGRESS_LINES = 1000


def verify_file(
    export: Path,
    *,
    anchor_file: Path | None = None,
    key: PublicKey | None = None,
    partial: bool = False,
    unsigned: bool = False,
    includes: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Prove an export.

    Args:
        anchor_file: Signed heads to compare with; needs `key`.
        key: The public half of the audit key.
        partial, unsigned: See `Proof`.
        includes: Id, or its beginning, of an anchor that the anchor file must hold.
        progress: Called with bytes read and bytes in all, now and then.

    Raises:
        OSError: A file cannot be read.
    """
    report = Report()
    with contextlib.closing(Workspace()) as workspace:
        newest = read_anchors(anchor_file, key, workspace, report, includes)
        proof = Proof(
            report,
            workspace,
            key=key,
            newest_anchor=newest,
            partial=partial,
            unsigned=unsigned,
        )
        total, done = export.stat().st_size, 0
        with export.open("rb") as file:
            for number, line in enumerate(anchors.lines_of(file)):
                proof.feed(line)
                done += len(line)
                if progress is not None and number % _PROGRESS_LINES == 0:
                    progress(done, total)
        return proof.end()


def read_anchors(
    anchor_file: Path | None,
    key: PublicKey | None,
    workspace: Workspace,
    report: Report,
    includes: str | None = None,
) -> int | None:
    """Read an anchor file into a workspace; the index of the newest anchor, None without a file.

    A file without any anchor counts as index -1.
    """
    if anchor_file is None or key is None:
        return None
    found = _Including(workspace, includes)
    with anchor_file.open("rb") as file:
        newest = anchors.read(file, key, found, report)
    if includes is not None and not found.included:
        text = f"the anchor file does not hold anchor {includes}: it was cut, or written anew"
        report.fault(Fault(Kind.ANCHOR, text))
    return -1 if newest is None else newest.anchor.index


class _Including:
    """Looks out for one anchor while a workspace takes them all."""

    def __init__(self, workspace: Workspace, wanted: str | None) -> None:
        self._workspace = workspace
        self._wanted = wanted
        self.included = False

    def expect(self, head: Head, index: int) -> None:
        """See `anchors.Leaves`."""
        self._workspace.expect(head, index)

    def confirm(self, signed: SignedAnchor) -> None:
        """See `anchors.Leaves`."""
        if self._wanted is not None and signed.anchor.id.startswith(self._wanted):
            self.included = True
        self._workspace.confirm(signed)

    def retract(self, index: int) -> None:
        """See `anchors.Leaves`."""
        self._workspace.retract(index)

    def forget(self) -> int:
        """See `anchors.Leaves`."""
        return self._workspace.forget()
