"""`tbot doctor`, `tbot backup`, `tbot restore`, `tbot verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tbot.cli.console import REFUSED, err, load_settings, out, run, status
from tbot.core.settings import Settings

if TYPE_CHECKING:
    from tbot.verify import Verdict


def doctor() -> None:
    """Look at everything that a start needs, and at the health of what runs; changes nothing.

    Exits with 1 when something is not as it should be.
    """
    from tbot.doctor import examine

    settings = load_settings()
    marks = {True: "[green]ok  [/]", False: "[red]BAD [/]", None: "[dim]-   [/]"}

    async def work() -> bool:
        sound = True
        async for finding in examine(settings):
            out.print(f"{marks[finding.sound]} {finding.name:<18} {finding.detail}")
            sound = sound and finding.sound is not False
        return sound

    if not run(work()):
        raise typer.Exit(REFUSED)


def backup(target: Annotated[Path, typer.Argument(help="File to write; must not exist.")]) -> None:
    """Write the database, the paper exchange and the first login into one file.

    Works while T-Bot runs. The file holds passwords and keys: keep it safe.
    """
    from tbot.backup import backup as write

    with status("Backing up…"):
        summary = run(write(load_settings(), target))
    out.print(f"{summary.path}: {summary.files} files, {summary.size_bytes} bytes")


def restore(source: Annotated[Path, typer.Argument(help="A backup file.")]) -> None:
    """Bring a backup back into an empty data directory, and verify it.

    Exits with 1 when the restored ledger does not verify.
    """
    from tbot.backup import restore as bring_back

    settings = load_settings()
    with status("Restoring…"):
        summary = run(bring_back(settings, source))
    out.print(f"Restored {summary.files} files into {settings.data_dir}")
    _judge(run(_verify(settings)))


def verify() -> None:
    """Prove that the tables say what the journal says.

    Recomputes every hash chain, replays the journal, compares with the tables, and checks that
    every asset sums to zero. Works while T-Bot runs; otherwise the database is started for it.
    Exits with 1 when anything does not hold.
    """
    _judge(run(_verify(load_settings())))


async def _verify(settings: Settings) -> Verdict:
    from tbot.backup import database_at_hand
    from tbot.boot import projections
    from tbot.verify import verify as prove

    columns = (TextColumn("Verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("verify", total=None)
        async with database_at_hand(settings, "app") as url:
            return await prove(
                url,
                projections(),
                lambda done, total: bar.update(task, completed=done, total=total),
            )


def _judge(verdict: Verdict) -> None:
    for fault in verdict.faults:
        out.print(fault, markup=False)
    if verdict.faults_left_out:
        out.print(f"… and {verdict.faults_left_out} more")
    counts = f"{verdict.accounts} accounts, {verdict.entries} entries, {verdict.assets} assets"
    if verdict.sound:
        out.print(f"Everything holds: {counts}.")
    else:
        out.print(f"[red]It does not hold[/] ({counts}).")
        raise typer.Exit(REFUSED)
