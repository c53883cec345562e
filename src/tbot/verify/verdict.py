"""What a verification saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import msgspec


@dataclass(slots=True)
class Verdict:
    """What a verification saw.

    Attributes:
        faults: One sentence each; empty when all is well. At most `FAULTS_MAX` are kept.
    """

    accounts: int = 0
    entries: int = 0
    assets: int = 0
    faults: list[str] = field(default_factory=list)
    faults_left_out: int = 0

    FAULTS_MAX: ClassVar[int] = 1000

    @property
    def sound(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    def fault(self, sentence: str) -> None:
        """Note something that does not hold."""
        if len(self.faults) < self.FAULTS_MAX:
            self.faults.append(sentence)
        else:
            self.faults_left_out += 1

    def compare(self, what: str, replayed: object, stored: object) -> None:
        """Note it when a replay gives something else than a table has; None stands for nothing."""
        if replayed == stored:
            return
        if isinstance(replayed, msgspec.Struct) and isinstance(stored, msgspec.Struct):
            names = [
                name
                for name in stored.__struct_fields__
                if getattr(replayed, name) != getattr(stored, name)
            ]
            parts = [
                f"{n}: {getattr(replayed, n)} replayed, {getattr(stored, n)} stored" for n in names
            ]
            self.fault(f"{what}: {'; '.join(parts)}")
        elif stored is None:
            self.fault(f"{what}: it is in the journal but not in its table")
        elif replayed is None:
            self.fault(f"{what}: it is in its table but not in the journal")
        else:
            self.fault(f"{what}: {replayed} replayed, {stored} stored")
