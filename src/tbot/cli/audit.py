"""`tbot audit …`."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tbot.cli.console import REFUSED, err, load_settings, out, run, status
from tbot.core.errors import ConfigurationError
from tbot.core.settings import Settings

if TYPE_CHECKING:
    import asyncpg

    from tbot.audit.anchoring import Place
    from tbot.audit.export import Anchored
    from tbot.audit.keys import PublicKey, SigningKey
    from tbot.audit.report import Report
    from tbot.audit.show import Shown

app = typer.Typer(
    help="The journal as evidence: export it, anchor it, prove it, read it. See docs/audit.md.",
    no_args_is_help=True,
)
_ANCHOR_ID = re.compile("[0-9a-f]{8,64}")
_BATCH_BYTES = 1 << 20

AsJson = Annotated[bool, typer.Option("--json", help="In JSON, for programs.")]


def anchor_place(settings: Settings) -> Place:
    """The directory of the audit key and the anchors."""
    from tbot.audit.anchoring import place_of

    return place_of(settings)


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator[asyncpg.Connection[Any]]:
    import asyncpg

    from tbot.backup import database_at_hand

    async with database_at_hand(settings, "app") as url:
        connection: asyncpg.Connection[Any] = await asyncpg.connect(
            url, timeout=5.0, server_settings={"application_name": "tbot audit"}
        )
        try:
            yield connection
        finally:
            await connection.close()


@contextlib.contextmanager
def _bar(what: str) -> Iterator[Any]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _account(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigurationError(f"{text!r} is no account id") from None


@app.command("export")
def export(
    target: Annotated[str, typer.Argument(help="File to write (must not exist), or - for stdout.")],
    account: Annotated[
        list[str] | None, typer.Option(help="Only this account; may be repeated.")
    ] = None,
    sign: Annotated[
        bool, typer.Option(help="Sign the export with the audit key, if there is one.")
    ] = True,
) -> None:
    """Write every entry of the journal, byte for byte, into one file (NDJSON).

    Works while T-Bot runs: what is exported is the journal as of one moment. `tbot audit verify`
    proves the file anywhere, without a database.
    """
    settings = load_settings()
    accounts = [_account(text) for text in account or ()]
    place = anchor_place(settings)
    from tbot.audit.anchoring import newest_named
    from tbot.audit.keys import load_signing

    key = load_signing(place.key) if sign and place.key.exists() else None
    with _target(target) as (file, name), _bar("Exporting") as tell:
        accounts_done, entries_done = run(
            _export(settings, file, accounts, newest_named(place), key, tell)
        )
    signed = "signed" if key is not None else "not signed (`tbot audit anchor` makes a key)"
    err.print(f"{name}: {accounts_done} accounts, {entries_done} entries, {signed}")


@contextlib.contextmanager
def _target(target: str) -> Iterator[tuple[IO[bytes], str]]:
    """A file that appears only when it is complete; or stdout."""
    if target == "-":
        yield sys.stdout.buffer, "stdout"
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    if path.exists():
        raise ConfigurationError(f"{path} exists already: choose another name")
    if not path.parent.is_dir():
        raise ConfigurationError(f"there is no directory {path.parent}: make it first")
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file, str(path)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)  # unlike a rename, this never replaces a file
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


async def _export(
    settings: Settings,
    file: IO[bytes],
    accounts: list[UUID],
    anchored: Anchored | None,
    key: SigningKey | None,
    tell: Any,
) -> tuple[int, int]:
    from tbot.audit import export as exporting

    progress = exporting.Progress()
    batch = bytearray()
    async with _database(settings) as connection:
        async for line in exporting.lines(
            connection, accounts=accounts, anchored=anchored, key=key, progress=progress
        ):
            batch += line
            if len(batch) >= _BATCH_BYTES:
                file.write(batch)
                batch.clear()
                tell(progress.entries, progress.total)
    file.write(batch)
    return progress.accounts, progress.entries


@app.command("anchor")
def anchor(
    full: Annotated[
        bool, typer.Option("--full", help="Sign all heads, not only those that moved.")
    ] = False,
    restart: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Heads went back for a good reason, as after a restored backup; it is signed.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sign the heads of all accounts' journals, in a file outside the database.

    The first call makes the key. Note the printed id down where nobody can change it, or copy the
    anchor file away: what was anchored can no longer be changed without being found. Exits with 1
    when history is not what was anchored before.
    """
    from tbot.audit.anchoring import anchor as sign

    settings = load_settings()
    if restart is not None and not restart.strip():
        raise ConfigurationError("--restart needs a reason")
    place = anchor_place(settings)

    async def work() -> Any:
        async with _database(settings) as connection:
            return await sign(connection, place, full=full, restart=restart)

    with status("Anchoring…"):
        signed = run(work())
    if signed is None:
        out.print("{}" if as_json else "Nothing moved since the last anchor.")
        return
    read = signed.anchor
    if as_json:
        out.print(json.dumps({"id": read.id, **json.loads(read.statement())}), markup=False)
        return
    out.print(f"Anchor {read.index} of {read.at}: {read.leaves} heads of {read.accounts} accounts")
    out.print(f"  with {read.entries} entries, in {place.anchors}", markup=False)
    out.print(f"  id {read.id}")


@app.command("key")
def show_key() -> None:
    """Print the public half of the audit key, for those who verify."""
    from tbot.audit.keys import load_signing

    place = anchor_place(load_settings())
    if not place.key.exists():
        raise ConfigurationError(
            f"there is no audit key yet in {place.directory}: `tbot audit anchor`"
        )
    public = load_signing(place.key).public
    out.print(public.pem().rstrip(), markup=False)
    err.print(f"SHA-256 {public.fingerprint}")


@app.command("verify")
def verify(
    export_file: Annotated[
        Path | None, typer.Argument(metavar="[EXPORT]", help="A file of `tbot audit export`.")
    ] = None,
    database: Annotated[
        bool, typer.Option("--database", help="Verify the database itself instead of a file.")
    ] = False,
    anchors: Annotated[
        Path | None, typer.Option(help="Anchor file to compare with.", show_default=False)
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Public half of the audit key (PEM).", show_default=False),
    ] = None,
    includes: Annotated[
        str | None,
        typer.Option(
            metavar="ID", help="An anchor's id that was noted down: the anchor file must have it."
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="The export is of some accounts, and that is meant.")
    ] = False,
    unsigned: Annotated[
        bool,
        typer.Option("--unsigned", help="The export is not signed, and that is meant."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prove a journal: every chain, every command's balance, every anchor. Needs no server.

    With --database the anchors and the key of this installation are used unless others are named.
    Exits with 1 when anything does not hold, and says in which account and entry.
    """
    if (export_file is None) == (not database):
        raise ConfigurationError("name an export file or say --database: one of the two")
    if includes is not None and not _ANCHOR_ID.fullmatch(includes):
        raise ConfigurationError("an anchor's id is 8 to 64 hex digits")
    if includes is not None and anchors is None and not database:
        raise ConfigurationError("--includes looks into an anchor file: name it with --anchors")
    if database:
        report = run(_verify_database(load_settings(), anchors, public_key, includes))
    else:
        assert export_file is not None
        key = _key(anchors, public_key)
        report = _verify_file(export_file, anchors, key, partial, unsigned, includes)
    if as_json:
        out.print(json.dumps(report.to_json()), markup=False)
    else:
        _tell(report, of_file=not database)
    if not report.sound:
        raise typer.Exit(REFUSED)


def _key(anchors: Path | None, public_key: Path | None) -> PublicKey | None:
    from tbot.audit.keys import load_public

    if anchors is not None and not anchors.is_file():
        raise ConfigurationError(f"there is no anchor file {anchors}")
    if anchors is not None and public_key is None:
        raise ConfigurationError("anchors prove nothing without the key: name it with --public-key")
    return None if public_key is None else load_public(public_key)


def _verify_file(
    export_file: Path,
    anchors: Path | None,
    key: PublicKey | None,
    partial: bool,
    unsigned: bool,
    includes: str | None,
) -> Report:
    from tbot.audit.offline import verify_file

    try:
        with _bar("Verifying") as tell:
            return verify_file(
                export_file,
                anchor_file=anchors,
                key=key,
                partial=partial,
                unsigned=unsigned,
                includes=includes,
                progress=tell,
            )
    except OSError as error:
        raise ConfigurationError(f"{error.filename or export_file}: {error.strerror}") from None


async def _verify_database(
    settings: Settings, anchors: Path | None, public_key: Path | None, includes: str | None
) -> Report:
    from tbot.audit import export as exporting
    from tbot.audit.offline import read_anchors
    from tbot.audit.proof import Proof
    from tbot.audit.report import Report
    from tbot.audit.workspace import Workspace

    place = anchor_place(settings)
    if anchors is None and place.anchors.exists():
        anchors = place.anchors
    if public_key is None and place.public_key.exists():
        public_key = place.public_key
    key = _key(anchors, public_key)
    report, progress = Report(), exporting.Progress()
    with contextlib.closing(Workspace()) as workspace, _bar("Verifying") as tell:
        async with _database(settings) as connection:
            newest = read_anchors(anchors, key, workspace, report, includes)
            proof = Proof(report, workspace, newest_anchor=newest)
            async for line in exporting.lines(connection, progress=progress):
                proof.feed(line)
                if progress.entries % 1000 == 0:
                    tell(progress.entries, progress.total)
        return proof.end()


def _tell(report: Report, *, of_file: bool) -> None:
    for fault in report.faults:
        out.print(f"{fault.kind.value}: {fault.text}", markup=False)
    if report.faults_left_out:
        out.print(f"… and {report.faults_left_out} more")
    for note in report.notes:
        out.print(f"note: {note}", markup=False)
    counts = f"{report.accounts} accounts, {report.entries} entries"
    if report.anchors:
        counts += f", {report.anchored} of them under {report.anchors} anchors"
    if not report.sound:
        out.print(f"[red]It does not hold[/] ({counts}).")
        return
    out.print(f"Everything holds: {counts}.")
    if of_file and report.signed is None:
        out.print("The file's signature was NOT checked: name the key with --public-key, or else")
        out.print("this says only that the file fits itself, as one that was made up would.")
    if not report.anchors:
        out.print("No anchors were given: a cut end, a rewritten whole or a removed account")
        out.print("could not have been seen. See docs/audit.md.")


@app.command("show")
def show(
    account: Annotated[str, typer.Argument(help="Account id.")],
    seq: Annotated[
        int | None, typer.Argument(help="One entry; default: the newest.", min=1)
    ] = None,
    last: Annotated[int, typer.Option(help="Without SEQ: how many.", min=1)] = 20,
    as_json: AsJson = False,
) -> None:
    """Show what happened on an account: when, by whom, from where, under which request."""
    settings = load_settings()
    account_id = _account(account)

    async def work() -> None:
        from tbot.audit.show import entries

        async with _database(settings) as connection:
            first, until = seq, seq
            if first is None or until is None:
                until = await connection.fetchval(
                    "SELECT max(seq) FROM journal WHERE account_id = $1", account_id
                )
                until = until or 1
                first = max(1, until - last + 1)
            async for entry in entries(connection, account_id, first, until):
                _print_entry(entry, as_json)

    run(work())


def _print_entry(entry: Shown, as_json: bool) -> None:
    if as_json:
        out.print(json.dumps({"hash": entry.hash, **entry.body}), markup=False)
        return
    out.print(f"[bold]{entry.seq}  {entry.kind}[/]  {entry.at}", highlight=False)
    out.print(f"    by       {entry.actor()}", markup=False)
    out.print(f"    command  {entry.command}", markup=False)
    for holder, asset, amount in entry.postings:
        sign = "" if amount.startswith("-") else "+"
        out.print(f"    posting  {holder} {sign}{amount} {asset}", markup=False)
    out.print(f"    data     {json.dumps(entry.data)}", markup=False)
    out.print(f"    hash     {entry.hash}", markup=False)
