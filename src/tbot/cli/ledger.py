"""`tbot ledger …`: transfers from a file, and statements."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from tbot.cli.account import client_of
from tbot.cli.console import REFUSED, err, load_settings, out, run
from tbot.cli.switches import operator
from tbot.core import money

if TYPE_CHECKING:
    from tbot.ledger.importing import Report

app = typer.Typer(help="Transfers from a file, and statements.", no_args_is_help=True)

_SHOWN = 20


class FileFormat(StrEnum):
    """What a statement is written as."""

    CSV = "csv"
    NDJSON = "ndjson"


@app.command("import")
def import_(
    file: Annotated[
        Path, typer.Argument(help="CSV with a header, or NDJSON.", exists=True, dir_okay=False)
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check every line.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write the refused lines here, as CSV: line,reason.")
    ] = None,
) -> None:
    """Make the transfers of a file, each of them once.

    Columns: source_account_id, target_account_id, asset, amount; NDJSON also metadata. All lines
    are checked before the first is made. Repeating an import changes nothing; one that was
    interrupted goes on where it stopped.

    Exits with 1 when a line was refused.
    """
    checked, made = run(_import(file, dry_run))
    result = made or checked
    for line, why in result.refused[:_SHOWN]:
        out.print(f"line {line}: {why}", markup=False)
    more = len(result.refused) + result.refused_more - _SHOWN
    if more > 0:
        out.print(f"… and {more} more")
    if report is not None:
        _write_report(report, result)
    if made is None:
        good = checked.lines - len(checked.refused) - checked.refused_more
        out.print(f"{good} of {checked.lines} lines can be imported; nothing was done")
    else:
        amounts = ", ".join(f"{money.text(total)} {asset}" for asset, total in made.sums.items())
        out.print(
            f"{made.made} transfers made{f' ({amounts})' if amounts else ''},"
            f" {made.known} had been made before,"
            f" {len(made.refused) + made.refused_more} refused"
        )
    if not result.sound:
        raise typer.Exit(REFUSED)


async def _import(file: Path, dry_run: bool) -> tuple[Report, Report | None]:
    from tbot.boot import database_url, projections
    from tbot.core.bus import Bus
    from tbot.db.pool import connect_committer, create_pool
    from tbot.journal.committer import Committer
    from tbot.ledger.importing import check_file, import_file

    settings = load_settings()
    url = database_url(settings)
    async with await create_pool(url, settings.database) as pool:
        with _bar("Checking") as bar:
            task = bar.add_task("check", total=None)
            checked = await check_file(
                pool, file, lambda done, total: bar.update(task, completed=done, total=total)
            )
        if dry_run or not checked.sound:
            return checked, None
        committer = Committer(
            lambda: connect_committer(url, settings.committer),
            projections(),
            settings.committer,
            Bus(),
        )
        await committer.start()
        try:
            with _bar("Importing") as bar:
                task = bar.add_task("import", total=None)
                made = await import_file(
                    pool,
                    committer,
                    operator(),
                    file,
                    checked,
                    lambda done, total: bar.update(task, completed=done, total=total),
                )
        finally:
            await committer.stop()
    return checked, made


def _bar(what: str) -> Progress:
    columns = (
        TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _write_report(path: Path, result: Report) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("line", "reason"))
        writer.writerows(result.refused)


@app.command("statement")
def statement(
    account: Annotated[str, typer.Argument(help="Id of the account.")],
    begin: Annotated[
        str | None, typer.Option("--from", help="Its first moment, as 2026-11-01T00:00:00Z.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The first moment after it.")] = None,
    asset: Annotated[str | None, typer.Option(help="Only this asset.")] = None,
    holds: Annotated[bool, typer.Option(help="Also holds and their release.")] = True,
    format: Annotated[FileFormat, typer.Option(help="How to write it.")] = FileFormat.CSV,
    user: Annotated[
        str | None, typer.Option("--user", help="Who asks; default: the first administrator.")
    ] = None,
) -> None:
    """Write an account's statement to stdout: opening balances, every movement, closing balances.

    As in: tbot ledger statement ACCOUNT --from 2026-11-01T00:00:00Z > november.csv
    """

    async def work() -> None:
        async with client_of(user) as client:
            async for chunk in client.statements.stream(
                account, begin=begin, end=end, asset=asset, holds=holds, format=format.value
            ):
                sys.stdout.buffer.write(chunk)
        sys.stdout.buffer.flush()

    run(work())
