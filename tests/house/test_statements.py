"""SQL is put together from constants alone: no stranger's word gets into a statement's text."""

from __future__ import annotations

import ast
import re
from pathlib import Path

SQL = re.compile(
    r"\b(?:SELECT\b.+\bFROM|INSERT\s+INTO|UPDATE\b.+\bSET|DELETE\s+FROM|MERGE\s+INTO)\b",
    re.IGNORECASE | re.DOTALL,
)
CHOSEN = {
    # Each is one of a few constants, chosen a line or two above.
    ("src/tbot/audit/workspace.py", "done"): "a count of our own",
    ("src/tbot/ledger/webhooks.py", "condition"): "one of two conditions",
    ("src/tbot/market/candle_store.py", "conditions"): "conditions with numbered parameters",
    ("src/tbot/orders/store.py", "condition"): "one of a few conditions",
    ("src/tbot/verify/__init__.py", "column"): "a column of a constant table of tables",
    ("src/tbot/verify/__init__.py", "table"): "of the same constant",
}


def is_constant(node: ast.expr) -> bool:
    """A constant by its name, joined ones, or a choice between two texts."""
    match node:
        case ast.Constant():
            return True
        case ast.Name(id=name):
            return name.isupper()
        case ast.Attribute(attr=name):
            return name.isupper()
        case ast.IfExp(body=one, orelse=other):
            return is_constant(one) and is_constant(other)
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[joined]):
            return is_constant(joined)
    return False


def text_of(node: ast.JoinedStr) -> str:
    return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))


def test_statements_are_put_together_from_constants(texts: dict[Path, str]) -> None:
    strange, used = [], set()
    for path, text in texts.items():
        if path.suffix != ".py" or path.parts[0] not in ("src", "scripts"):
            continue
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.JoinedStr) or not SQL.search(text_of(node)):
                continue
            for part in node.values:
                if isinstance(part, ast.FormattedValue) and not is_constant(part.value):
                    place = (str(path), ast.unparse(part.value))
                    used.add(place)
                    if place not in CHOSEN:
                        strange.append(f"{path}:{node.lineno}: {{{place[1]}}}")
    assert not strange, f"make these parameters of the statement: {strange}"
    assert set(CHOSEN) <= used, f"not needed any more: {set(CHOSEN) - used}"
