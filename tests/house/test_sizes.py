"""Files and functions stay small enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

FILE_LINES, FILE_LINES_MAX = 400, 600
FUNCTION_LINES, FUNCTION_LINES_MAX = 70, 120


def test_files_and_functions_are_small(texts: dict[Path, str], report: list[str]) -> None:
    too_large = []
    for path, text in sorted(texts.items()):
        if path.suffix != ".py":
            continue
        lines = text.count("\n")
        if lines > FILE_LINES:
            report.append(f"{path}: {lines} lines (aim: {FILE_LINES})")
        if lines > FILE_LINES_MAX:
            too_large.append(f"{path}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                report.append(f"{path}: {node.name} has {length} lines (aim: {FUNCTION_LINES})")
            if length > FUNCTION_LINES_MAX:
                too_large.append(f"{path}: {node.name} has {length} lines")
    assert not too_large, "split these: " + "; ".join(too_large)
