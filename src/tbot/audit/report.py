"""What a verification found: pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar


class Kind(StrEnum):
    """What does not hold."""

    CHANGED = "changed"
    """An entry, or the one before it, is not what was hashed or anchored."""
    MISSING = "missing"
    """Entries are missing in the middle."""
    MISPLACED = "misplaced"
    """An entry stands out of order, or twice."""
    FOREIGN = "foreign"
    """An entry of another account stands here."""
    CUT = "cut"
    """The end of a journal is missing."""
    ADDED = "added"
    """Entries that no head knows."""
    ACCOUNT_MISSING = "account_missing"
    """A whole account that was anchored is gone."""
    UNBALANCED = "unbalanced"
    """A command's postings do not sum to zero."""
    UNREADABLE = "unreadable"
    """An entry's body is no entry, or names nobody who did it."""
    FILE = "file"
    """The export itself is damaged."""
    ANCHOR = "anchor"
    """The anchor file itself is damaged, or was signed by somebody else."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that does not hold, and where.

    Attributes:
        text: One sentence, complete with the place.
        account: Whose journal.
        first, last: Sequences of the entries concerned.
        line: Of the file, from 1.
    """

    kind: Kind
    text: str
    account: str | None = None
    first: int | None = None
    last: int | None = None
    line: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind.value,
            "account": self.account,
            "first": self.first,
            "last": self.last,
            "line": self.line,
            "text": self.text,
        }


@dataclass(slots=True)
class Report:
    """What was seen.

    Attributes:
        anchors: Anchors that were read and hold.
        anchored: Entries up to the newest anchored one of each account.
        signed: Whether the export's signature is by the key that was named; None: no key was, so
            that nothing was checked.
        notes: What does not break the proof but should be known.
        faults_left_out: Faults beyond `FAULTS_MAX`, which are only counted.
    """

    accounts: int = 0
    entries: int = 0
    commands: int = 0
    anchors: int = 0
    anchored: int = 0
    signed: bool | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    faults_left_out: int = 0

    FAULTS_MAX: ClassVar[int] = 1000

    @property
    def sound(self) -> bool:
        """Whether everything holds."""
        return not self.faults

    def fault(self, fault: Fault) -> None:
        """Note something that does not hold."""
        if len(self.faults) < self.FAULTS_MAX:
            self.faults.append(fault)
        else:
            self.faults_left_out += 1

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "sound": self.sound,
            "accounts": self.accounts,
            "entries": self.entries,
            "commands_across_entries": self.commands,
            "anchors": self.anchors,
            "entries_anchored": self.anchored,
            "signed": self.signed,
            "notes": self.notes,
            "faults": [fault.to_json() for fault in self.faults],
            "faults_left_out": self.faults_left_out,
        }
