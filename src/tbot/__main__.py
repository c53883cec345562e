"""`tbot`: the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tbot import __version__
from tbot.cli import account, audit, data, identity, ledger, server, switches, watch
from tbot.cli.console import complain, exit_code
from tbot.core import log
from tbot.exchange.cli import app as exchange

_EPILOG = (
    "Exit codes: 0 done, 1 a definite no or faults found, 2 it cannot run like this, "
    "3 server or database away or outcome unknown, 130 interrupted."
)

app = typer.Typer(
    name="tbot",
    help="T-Bot: a self-hosted trading backend. `tbot up` starts everything.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tbot {__version__}")
        raise typer.Exit


@app.callback()
def options(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Where everything that must survive lives; default: TBOT_DATA_DIR."),
    ] = None,
    _show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    """Options of every command."""
    if data_dir is not None:
        os.environ["TBOT_DATA_DIR"] = str(data_dir)
    if "TBOT_LOG_LEVEL" not in os.environ:
        log.configure("warning")


app.command("up")(server.up)
app.command("serve")(server.serve)
app.command("migrate")(server.migrate)
app.add_typer(exchange, name="exchange")
app.add_typer(identity.users, name="user")
app.add_typer(account.orders, name="order")
app.add_typer(ledger.app, name="ledger")
app.command("watch")(watch.watch)
app.command("doctor")(data.doctor)
app.command("backup")(data.backup)
app.command("restore")(data.restore)
app.command("verify")(data.verify)
app.add_typer(audit.app, name="audit")
app.add_typer(switches.app, name="switches")


def main() -> None:
    """Run a command; every expected error is one line and an exit code."""
    try:
        app(prog_name="tbot")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, KeyboardInterrupt) as error:
        code = exit_code(error)
        if code is None:
            raise
        complain(str(error) or "interrupted")
        sys.exit(code)


if __name__ == "__main__":
    main()
