"""The list of kinds of entries is what the code writes, and what the page says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tbot.ledger.entry_kinds import GROUPS, KINDS
from tbot.ledger.provider import Said
from tbot.orders.reports import _ENDS

ROOT = Path(__file__).resolve().parents[3]
KIND = re.compile(rf"({'|'.join(GROUPS)})\.[a-z_]+")
WRITERS = {"Draft", "changed", "released", "_changed", "_release"}
DERIVED = {
    "order.{ended.value}": {f"order.{state.value}" for state in _ENDS.values()},
    "payment.{following.value}": {f"payment.{said.value}" for said in Said}
    - {"payment.processing"},  # a report of it changes no state
}
"""Kinds that are put together where they are written, and what can come of it."""


def trees() -> Iterator[ast.Module]:
    for part in ("orders", "ledger", "gateway", "web"):
        for path in sorted((ROOT / "src" / "tbot" / part).rglob("*.py")):
            if path.name != "entry_kinds.py":
                yield ast.parse(path.read_text())


def written() -> set[str]:
    kinds: set[str] = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                kinds |= DERIVED.get(ast.unparse(node)[2:-1], set())
            # A constant is one that is written when it is an argument, or has a name.
            elif isinstance(node, ast.Call) and name_of(node) in WRITERS:
                kinds |= {kind for one in node.args for kind in literal(one)}
            elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                kinds |= set(literal(node.value))
    return kinds


def name_of(call: ast.Call) -> str:
    called = call.func
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def literal(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant) and KIND.fullmatch(str(node.value)):
        yield str(node.value)


def test_every_kind_that_is_written_is_listed_and_no_other() -> None:
    assert written() == set(KINDS)
    assert list(KINDS) == sorted(set(KINDS))


def test_no_kind_is_put_together_anywhere_else() -> None:
    found = {
        ast.unparse(node)[2:-1]
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        and isinstance(node.values[0], ast.Constant)
        and re.fullmatch(rf"({'|'.join(GROUPS)})\.", str(node.values[0].value))
    }
    assert found == set(DERIVED)


def test_the_page_lists_them() -> None:
    page = (ROOT / "docs" / "webhooks.md").read_text()
    rows = re.findall(r"^\| `(\w+\.)` \| (.*) \|$", page, re.MULTILINE)
    assert {group + kind for group, kinds in rows for kind in re.findall(r"`(\w+)`", kinds)} == set(
        KINDS
    )
