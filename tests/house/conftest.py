"""House tests read the repository itself; what they only report is shown at the end of a run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
_report = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def texts() -> dict[Path, str]:
    """Every text file that belongs to the repository, by its relative path."""
    found: dict[Path, str] = {}
    for path in _files():
        try:
            found[path.relative_to(REPOSITORY)] = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue
    return found


def _files() -> list[Path]:
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        # A copy without version control.
        skipped = {".venv", ".git", "data", "__pycache__", ".mypy_cache", ".ruff_cache"}
        return [
            path
            for path in REPOSITORY.rglob("*")
            if path.is_file() and not skipped & set(path.relative_to(REPOSITORY).parts)
        ]
    return [REPOSITORY / name.decode() for name in listed.split(b"\0") if name]


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show at the end of the run without failing it."""
    lines: list[str] = request.config.stash.setdefault(_report, [])
    return lines


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show the report."""
    lines = config.stash.get(_report, [])
    if lines:
        terminalreporter.section("house report")
        for line in lines:
            terminalreporter.line(line)
