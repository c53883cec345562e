"""`tbot doctor`, `tbot backup`, `tbot restore`, `tbot verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def doctor() -> None:
    """Look at everything that a start needs, and at the health of what runs."""


def backup(target: Annotated[Path, typer.Argument(help="File to write; must not exist.")]) -> None:
    """Write a consistent backup of everything into one file."""


def restore(source: Annotated[Path, typer.Argument(help="A backup file.")]) -> None:
    """Bring a backup back, into an empty data directory, and verify it."""


def verify() -> None:
    """Recompute every chain, replay the journal, compare with the tables."""
