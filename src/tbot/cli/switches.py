"""`tbot switches …`."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tbot.cli.console import err, load_settings, out, run
from tbot.core import log, money
from tbot.core.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncpg

    from tbot.core.settings import Settings
    from tbot.gateway.resume import Done, Loss, Situation
    from tbot.gateway.switches import Turn
    from tbot.journal.commands import Actor

app = typer.Typer(
    help="Halt and resume trading, a venue, an instrument, withdrawals or transfers; who did it and"
    " why is kept.",
    no_args_is_help=True,
)
_ORDERS_SHOWN = 10

Name = Annotated[
    str,
    typer.Argument(
        help="trading, venue:NAME (as venue:paper), instrument:VENUE:SYMBOL, withdrawals or"
        " transfers."
    ),
]
Reason = Annotated[str, typer.Option(help="Why; kept, and told to whoever is refused.")]


def operator() -> Actor:
    """Whoever sits at this terminal, as entries and switches name them."""
    from tbot.journal.commands import Actor

    try:
        login = getpass.getuser()
    except (KeyError, OSError):
        login = "somebody"
    return Actor("operator", name=f"{login}@{socket.gethostname()}")


@asynccontextmanager
async def _pool(settings: Settings) -> AsyncIterator[asyncpg.Pool[Any]]:
    from tbot.boot import database_url
    from tbot.db.pool import create_pool

    pool = await create_pool(database_url(settings), settings.database)
    try:
        yield pool
    finally:
        await pool.close()


def _unlogged() -> None:
    """Keep turns out of the log: the command says them in its own words."""
    if "TBOT_LOG_LEVEL" not in os.environ:
        log.configure("error")


def _reason(text: str) -> str:
    if not text.strip():
        raise ConfigurationError("--reason needs some words")
    return text.strip()


@app.command("list")
def list_switches(
    name: Annotated[str | None, typer.Argument(help="Show every turn of this one instead.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Every switch that was ever turned: who turned it, when and why."""
    from tbot.gateway import switches

    settings = load_settings()
    if name is not None:
        switches.check_name(name)

    async def work() -> list[Turn]:
        async with _pool(settings) as pool, pool.acquire() as connection:
            if name is None:
                return list(await switches.current(connection))
            return list(await switches.history(connection, name))

    turns = run(work())
    if as_json:
        for turn in turns:
            parts: dict[str, Any] = {"name": turn.name, "halted": turn.halted}
            parts["reason"] = turn.reason
            parts |= {"by": turn.by, "at": turn.at.isoformat(), "actor": turn.actor}
            out.print(json.dumps(parts), markup=False)
        return
    if not turns:
        out.print("No switch was ever turned: nothing is halted.")
        return
    table = Table("switch", "state", "since" if name is None else "at", "by", "reason", box=None)
    for turn in turns:
        state = "[red]halted[/]" if turn.halted else "[green]on[/]"
        table.add_row(turn.name, state, f"{turn.at:%Y-%m-%d %H:%M:%S}", turn.by, turn.reason)
    out.print(table)


@app.command("halt")
def halt(
    name: Name,
    reason: Reason,
    to_come: Annotated[
        bool,
        typer.Option("--to-come", help="Also a venue or instrument that is not known here yet."),
    ] = False,
) -> None:
    """Refuse new orders from now on; cancels and reports go on.

    When it returns, no order that comes later is accepted. A venue or instrument that is not known
    here is refused: it is mistyped, or to come (--to-come).
    """
    from tbot.boot import PAPER
    from tbot.db.pool import transaction
    from tbot.gateway import switches

    settings, words = load_settings(), _reason(reason)
    switches.check_name(name)
    _unlogged()

    async def work() -> None:
        async with _pool(settings) as pool, transaction(pool) as connection:
            if not to_come:
                _check_known(name, await switches.known_here(connection, (PAPER,)))
            await switches.halt(connection, name, words, operator())

    run(work())
    out.print(f"{name} is halted.")


def _check_known(name: str, known: dict[str, frozenset[str]]) -> None:
    from tbot.gateway import switches

    try:
        switches.check_known(name, known)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (--to-come halts it in advance)") from None


@app.command("resume")
def resume(
    name: Name,
    reason: Reason,
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Do what is shown without it, and resume.")
    ] = False,
) -> None:
    """Let new orders through again. Without --confirm: show what that takes, and change nothing.

    After a venue lost its memory, its open orders are canceled in your name, the paper venue is
    given the funds that the ledger says are there, and the new session becomes the known one.
    """
    from tbot.gateway import switches

    settings, words = load_settings(), _reason(reason)
    switches.check_name(name)
    _unlogged()
    situation, done = run(_resume(settings, name, words, confirm))
    _tell(situation)
    if done is None:
        out.print("Nothing was changed. Say --confirm to do this.")
        return
    if situation.loss is not None:
        out.print(f"{done.closed} orders were closed.")
        for what, amounts in (("given to", done.funded), ("left at", done.surplus)):
            for asset, amount in amounts.items():
                out.print(f"{money.text(amount)} {asset} more {what} {situation.loss.venue}.")
    out.print(f"{name} is resumed.")


async def _resume(
    settings: Settings, name: str, reason: str, confirm: bool
) -> tuple[Situation, Done | None]:
    from tbot.boot import database_url, projections
    from tbot.core.bus import Bus
    from tbot.db.pool import connect_committer
    from tbot.gateway import resume as resuming
    from tbot.journal.committer import Committer

    async with _pool(settings) as pool:
        async with pool.acquire() as connection:
            situation = await resuming.look(connection, name, settings.gateway)
        if not confirm:
            return situation, None
        dsn = database_url(settings)
        committer = Committer(
            lambda: connect_committer(dsn, settings.committer),
            projections(),
            settings.committer,
            Bus(),
        )
        await committer.start()
        try:
            async with _venues(settings, situation) as venues:
                done = await resuming.resume(pool, committer, venues, situation, operator(), reason)
        finally:
            await committer.stop()
    return situation, done


@asynccontextmanager
async def _venues(settings: Settings, situation: Situation) -> AsyncIterator[dict[str, Any]]:
    """The venue that has to be asked, if one has."""
    from tbot.boot import PAPER, paper_access
    from tbot.venues.binance.client import BinanceVenue, Endpoints
    from tbot.venues.binance.wire import HmacSigner

    access = None
    if situation.loss is not None and situation.loss.venue == PAPER:
        access = paper_access(settings, settings.data_dir / "exchange")
    if access is None:
        yield {}
        return
    signer = HmacSigner(access.api_key, access.api_secret)
    venue = BinanceVenue(PAPER, Endpoints.at(access.url), signer, settings.gateway, paper=True)
    try:
        yield {PAPER: venue}
    finally:
        await venue.stop()


def _tell(situation: Situation) -> None:
    turn = situation.turn
    out.print(f"{turn.name} was halted at {turn.at:%Y-%m-%d %H:%M:%S} by {turn.by}:", markup=False)
    out.print(f"  {turn.reason}", markup=False)
    if situation.loss is not None:
        _tell_loss(situation.loss)


def _tell_loss(loss: Loss) -> None:
    out.print(f"To resume, session {loss.found} of {loss.venue} is accepted as a new beginning:")
    out.print(
        f"  {len(loss.orders)} orders of the lost session {loss.known} are canceled, and what they"
        " hold is released;"
    )
    for order in loss.orders[:_ORDERS_SHOWN]:
        size = order.quantity if order.quantity is not None else order.quote_amount
        out.print(
            f"    {order.id} of account {order.account_id}: {order.state.value} {order.side.value}"
            f" {order.symbol} {'' if size is None else money.text(size)},"
            f" {money.text(order.filled_quantity)} filled",
            markup=False,
        )
    if len(loss.orders) > _ORDERS_SHOWN:
        out.print(f"    … and {len(loss.orders) - _ORDERS_SHOWN} more")
    amounts = ", ".join(f"{money.text(n)} {asset}" for asset, n in loss.expected.items())
    out.print(f"  {loss.venue} is given what it lacks of what the ledger says it holds:")
    out.print(f"    {amounts or 'nothing'}", markup=False)
    out.print("  Executions of the lost session that T-Bot was not told of stay unknown.")
    if loss.wait_until is not None:
        err.print(
            f"An order of unknown outcome may still arrive until {loss.wait_until:%H:%M:%S} UTC;"
            " resuming is refused before."
        )
