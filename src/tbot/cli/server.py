"""`tbot up`, `tbot serve`, `tbot migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from tbot.cli.console import err, load_settings, out, run
from tbot.core import log
from tbot.core.settings import Settings
from tbot.core.tasks import Tasks

if TYPE_CHECKING:
    from tbot.boot import Parts
    from tbot.up import Started


def _prepare(port: int | None, quiet: bool) -> Settings:
    settings = load_settings()
    if port is not None:
        http = settings.http.model_copy(update={"port": port})
        settings = settings.model_copy(update={"http": http})
    level = "warning" if quiet and "TBOT_LOG_LEVEL" not in os.environ else settings.log_level
    log.configure(level, settings.log_form)
    return settings


def up(
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
) -> None:
    """Start everything: database, paper exchange, API. Ctrl-C stops it all.

    The first start makes the database, an administrator and a paper account with 100000 USDT.
    """
    from tbot import up as whole

    settings = _prepare(port, quiet=True)
    with err.status("Starting…") as spinner:

        def say(text: str) -> None:
            if err.is_terminal:
                spinner.update(text)
            else:
                err.print(text)

        def tell(started: Started) -> None:
            spinner.stop()
            _banner(started)

        with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
            run(whole.up(settings, say, tell))
    err.print("Stopped.")


def _banner(started: Started) -> None:
    from tbot.up import ADMIN_FILE, command_line, first_order

    program = command_line(started.data_dir)
    out.print(f"\n[bold]T-Bot is ready[/] after {started.seconds:.1f} s. Ctrl-C stops it.\n")
    out.print(f"  API       {started.url}/docs")
    out.print(f"  Stream    {started.url.replace('http', 'ws', 1)}/v1/stream")
    if started.exchange_url is not None:
        out.print(f"  Exchange  {started.exchange_url}  (paper, speaks Binance Spot)")
    out.print(f"  Data      {started.data_dir}")
    if started.new_password is not None:
        out.print(f"  Login     admin / {started.new_password}", markup=False)
        out.print(f"            shown once; kept in {started.data_dir / ADMIN_FILE}")
    else:
        out.print(f"  Login     admin; its first password is in {started.data_dir / ADMIN_FILE}")
    _say_what_is_missing(started.unready)
    if started.account_id is not None:
        out.print("\nPlace a first order from another terminal in this folder:\n")
        out.print(first_order(started.url, started.account_id, program), markup=False)
    out.print()


def serve(
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
) -> None:
    """Run one API process on a database that runs already.

    That is the one of TBOT_DATABASE__URL, or of the `tbot up` that uses the same data directory.
    """
    settings = _prepare(port, quiet=False)
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        run(_serve(settings))


async def _serve(settings: Settings) -> None:
    from tbot import boot, serving
    from tbot.up import Stopping

    with Stopping() as stopping, contextlib.closing(serving.bind(settings)) as listener:
        dsn = boot.database_url(settings)
        access = boot.paper_access(settings, settings.data_dir / "exchange")
        url = serving.address_of(listener)
        async with boot.running(settings, dsn, access, url) as parts:
            stopping.serving = True
            tasks = Tasks("serve")
            tasks.start(_tell_when_ready(parts, url), "tell")
            try:
                await serving.serve_http(parts, listener, stopping.event)
            finally:
                await tasks.stop()


async def _tell_when_ready(parts: Parts, url: str) -> None:
    """Who starts it by a script sends it orders once this is said: prices have come by then."""
    from tbot.up import wait_until_ready

    unready = await wait_until_ready(parts)
    out.print(f"T-Bot serves {url}")
    _say_what_is_missing(unready)


def _say_what_is_missing(unready: Mapping[str, str]) -> None:
    for name, why in unready.items():
        out.print(f"  [yellow]Not ready[/] {name}: {why}")


def migrate() -> None:
    """Bring the database's schema up to date.

    `tbot up` does it by itself. Needs a database that runs: TBOT_DATABASE__URL or the embedded one.
    """
    settings = _prepare(None, quiet=True)
    done = run(_migrate(settings))
    out.print("\n".join(done) if done else "The schema is up to date.")


async def _migrate(settings: Settings) -> list[str]:
    from tbot.db.access import running_database
    from tbot.db.migrate import migrate as apply

    url = settings.database.url
    dsn = (
        url.get_secret_value() if url is not None else running_database(settings.data_dir, "owner")
    )
    applied = await apply(dsn)
    return [f"applied {migration.version:04}_{migration.name}" for migration in applied]
