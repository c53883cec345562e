"""Each projection gets every entry and every command that is its business."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest.mock import Mock
from uuid import UUID

import pytest

import tbot
from tbot.boot import projections
from tbot.journal.commands import AccountState, Command, States
from tbot.journal.projections import Projection, Projections, Write


class Kept(Projection):
    """Notes what it is asked and given."""

    def __init__(self, entries: str = "") -> None:
        self.entries = entries  # type: ignore[misc]
        self.applied: list[str] = []

    def apply(self, state: AccountState, entry: Any) -> None:
        self.applied.append(entry.kind)

    def writes(self, states: Sequence[AccountState]) -> list[Write]:
        return []


class Reader(Kept):
    """Asks by itself."""

    def reads(self, command: Command[Any], states: States) -> bool:
        return True


class Reminder(Kept):
    """Looks back by itself."""

    def recalls(self, command: Command[Any]) -> bool:
        return True


@dataclass(frozen=True)
class Amend:
    """Named by its instances only: the class has no such attribute."""

    order_id: UUID


@dataclass(frozen=True)
class Kind:
    kind: str


def test_an_entry_goes_to_whom_its_kind_concerns_in_order() -> None:
    everything, orders, transfers = Kept(), Kept("order."), Kept("transfer.")
    all_ = Projections(everything, orders, transfers)
    for kind in ("order.accepted", "transfer.created", "account.opened", "order.filled"):
        entry: Any = Kind(kind)
        all_.apply(None, entry)  # type: ignore[arg-type]
    assert everything.applied == [
        "order.accepted",
        "transfer.created",
        "account.opened",
        "order.filled",
    ]
    assert orders.applied == ["order.accepted", "order.filled"]
    assert transfers.applied == ["transfer.created"]


def test_who_reads_or_recalls_is_asked_without_saying_so_twice() -> None:
    reader, reminder, neither = Reader(), Reminder(), Kept()
    command: Any = Amend(UUID(int=1))
    assert Projections(neither, reader, reminder).concerned(command) == (reader, reminder)


def _commands() -> list[type[Any]]:
    """Every class of the program that decides."""
    found: dict[str, type[Any]] = {}
    for module in pkgutil.walk_packages(tbot.__path__, "tbot."):
        if module.name.rpartition(".")[2] == "__main__":
            continue
        for one in vars(importlib.import_module(module.name)).values():
            if isinstance(one, type) and hasattr(one, "decide") and hasattr(one, "priority"):
                found[f"{one.__module__}.{one.__qualname__}"] = one
    return [found[name] for name in sorted(found) if not name.endswith(".Command")]


@pytest.mark.parametrize("kind", _commands(), ids=lambda kind: kind.__qualname__)
def test_whoever_could_read_for_a_command_is_asked(kind: type[Any]) -> None:
    named = set(dir(kind))
    expected = []
    if "transfer_id" in named:
        expected.append("TransfersProjection")
    if "payment_ids" in named:
        expected.append("PaymentsProjection")
    if named & {"order_id", "parent_id"}:
        expected.append("OrdersProjection")
    command: Any = Mock(spec=kind)
    asked = [type(one).__name__ for one in projections().concerned(command)]
    assert asked == expected


def test_what_only_an_instance_has_counts() -> None:
    command: Any = Amend(UUID(int=1))
    (asked,) = projections().concerned(command)
    assert type(asked).__name__ == "OrdersProjection"
