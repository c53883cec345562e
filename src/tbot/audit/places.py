"""Which entries of an account are missing and which are out of place: told once, not for each line.

Entry point: `Places`. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from tbot.audit.report import Fault, Kind, Report

_GAPS_MAX: Final = 1000


class Places:
    """What of one account stands where it does not belong, while its lines are read.

    An entry that seems to be missing may still come, out of place: what is missing is known only at
    the account's end. Of entries out of place that follow each other, the first is told, and how
    many follow.
    """

    __slots__ = ("_account", "_begin", "_gaps", "_report", "_run", "_run_at", "_run_first")

    def __init__(self, report: Report, account: str) -> None:
        self._report = report
        self._account = account
        self._begin = len(report.faults)
        self._gaps: list[tuple[int, int, int]] = []
        self._run: list[int] = []  # sequences that were told and left out: least, most, how many
        self._run_first: Fault | None = None
        self._run_at = 0

    def gap(self, first: int, last: int, line: int) -> None:
        """Entries did not come where they belong; at a line after them."""
        if len(self._gaps) < _GAPS_MAX:
            self._gaps.append((first, last, line))
        else:
            self._report.fault(self._missing(first, last, line))

    def misplaced(self, seq: int, line: int, text: str) -> None:
        """An entry stands, or says that it belongs, somewhere else."""
        self._take_from_gap(seq)
        before = self._run_first
        if before is not None and before.line is not None and line == before.line + self._run[2]:
            least, most, count = self._run
            self._run = [min(least, seq), max(most, seq), count + 1]
            follow = f"; and {count} more that follow it" if count > 1 else "; and the one after it"
            merged = replace(
                before, text=before.text + follow, first=self._run[0], last=self._run[1]
            )
            if self._run_at < len(self._report.faults):
                self._report.faults[self._run_at] = merged
            return
        self._run_first = Fault(Kind.MISPLACED, text, self._account, seq, seq, line)
        self._run, self._run_at = [seq, seq, 1], len(self._report.faults)
        self._report.fault(self._run_first)

    def end(self) -> None:
        """Tell what did not come at all, each where it should have been."""
        if not self._gaps:
            return
        told = self._report.faults[self._begin :]
        del self._report.faults[self._begin :]
        missing = [self._missing(*gap) for gap in self._gaps]
        for fault in sorted(missing + told, key=lambda fault: fault.line or 0):
            self._report.fault(fault)
        self._gaps = []

    def _missing(self, first: int, last: int, line: int) -> Fault:
        which = f"entry {first} is" if first == last else f"entries {first} to {last} are"
        text = f"account {self._account}: {which} missing"
        return Fault(Kind.MISSING, text, self._account, first, last, line)

    def _take_from_gap(self, seq: int) -> None:
        for number, (first, last, line) in enumerate(self._gaps):
            if first <= seq <= last:
                parts = ((first, seq - 1, line), (seq + 1, last, line))
                self._gaps[number : number + 1] = [part for part in parts if part[0] <= part[1]]
                return
