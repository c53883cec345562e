"""`tbot user …` and `tbot order …`."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from tbot.cli.console import load_settings, out, run
from tbot.cli.switches import operator
from tbot.core import clock, money
from tbot.core.errors import ConfigurationError

if TYPE_CHECKING:
    import asyncpg

    from tbot.auth.passwords import Passwords
    from tbot.client import TBotClient
    from tbot.client.models import Order

users = typer.Typer(help="Users and their passwords.", no_args_is_help=True)
orders = typer.Typer(help="Orders, over the API.", no_args_is_help=True)

Username = Annotated[str, typer.Argument(help="Name of the user.")]
Asking = Annotated[
    str | None, typer.Option("--user", help="Who asks; default: the first administrator.")
]


@asynccontextmanager
async def database() -> AsyncIterator[tuple[asyncpg.Pool[Any], Passwords]]:
    """The database of the settings, and what hashes passwords."""
    from tbot.auth.passwords import Passwords
    from tbot.boot import database_url
    from tbot.db.pool import create_pool

    settings = load_settings()
    pool = await create_pool(database_url(settings), settings.database)
    passwords = Passwords(settings.auth)
    try:
        yield pool, passwords
    finally:
        passwords.close()
        await pool.close()


def _new_password(given: bool) -> str:
    """A password from stdin or a prompt, or a generated one."""
    from tbot.auth.passwords import generated

    if not given:
        return generated()
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("New password", hide_input=True, confirmation_prompt=True))


@users.command("create")
def create(
    username: Username,
    role: Annotated[
        str, typer.Option(help="trader, viewer, auditor, service or admin.")
    ] = "trader",
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask for the password (or read it from stdin).")
    ] = False,
) -> None:
    """Add a user. Without --ask the password is generated and printed, once."""
    from tbot.auth.scopes import Role
    from tbot.auth.users import create_user

    if role not in [each.value for each in Role]:
        raise typer.BadParameter(f"a role is one of {', '.join(Role)}")
    password = _new_password(ask)

    async def work() -> None:
        async with database() as (pool, passwords):
            await create_user(pool, passwords, username, password, Role(role))

    run(work())
    out.print(f"{username} was added" + ("" if ask else f"; password: {password}"), markup=False)


@users.command("list")
def list_users() -> None:
    """All users."""

    async def work() -> list[Any]:
        async with database() as (pool, _):
            rows: list[Any] = await pool.fetch(
                "select username, role, status, created_at from users order by username"
            )
            return rows

    table = Table("user", "role", "status", "since", box=None)
    for row in run(work()):
        table.add_row(row["username"], row["role"], row["status"], f"{row['created_at']:%Y-%m-%d}")
    out.print(table)


@users.command("password")
def password(
    username: Username,
    ask: Annotated[
        bool, typer.Option("--ask", help="Ask for the password (or read it from stdin).")
    ] = False,
) -> None:
    """Replace a password and end the user's sessions. Without --ask it is generated and printed."""
    from tbot.auth.users import set_password

    new = _new_password(ask)

    async def work() -> None:
        async with database() as (pool, passwords):
            await set_password(pool, passwords, username, new, operator())

    run(work())
    out.print("The password was replaced" + ("" if ask else f": {new}"), markup=False)


def _api_url() -> str:
    from tbot.db.cluster import read_json

    settings = load_settings()
    found = read_json(settings.data_dir / "api.json") or {}
    http = settings.http
    return str(found.get("url") or f"http://{http.host}:{http.port}")


def _login(username: str | None) -> tuple[str, str]:
    from tbot.db.cluster import read_json

    path: Path = load_settings().data_dir / "admin.json"
    known = read_json(path) or {}
    if username is None or username == known.get("username"):
        if "password" not in known:
            raise ConfigurationError(
                f"{path} has no login: start `tbot up` first, or name a user with --user"
            )
        return str(known["username"]), str(known["password"])
    if not sys.stdin.isatty():
        return username, sys.stdin.readline().rstrip("\n")
    return username, str(typer.prompt(f"Password of {username}", hide_input=True, err=True))


@users.command("token")
def token(
    username: Annotated[
        str | None, typer.Argument(help="Who logs in; default: the first administrator.")
    ] = None,
    scope: Annotated[str, typer.Option(help="Scopes, separated by blanks; default: all.")] = "",
) -> None:
    """Log in and print an access token.

    As in: curl -H "Authorization: Bearer $(tbot user token)"

    The administrator's password is read from admin.json in the data directory, anybody else's from
    the terminal or stdin.
    """
    import httpx

    name, secret = _login(username)
    url = _api_url()
    try:
        answer = httpx.post(
            f"{url}/v1/token",
            data={"username": name, "password": secret, "scope": scope},
            timeout=10.0,
            trust_env=False,
        )
    except httpx.TransportError:
        raise ConnectionError(f"no T-Bot answers on {url}: start it with `make run`") from None
    if answer.status_code != 200:
        raise ConfigurationError(_problem(answer.text))
    sys.stdout.write(answer.json()["access_token"] + "\n")


def _problem(text: str) -> str:
    try:
        document = json.loads(text)
        return f"{document['code']}: {document.get('detail') or document['title']}"
    except (ValueError, KeyError, TypeError):
        return text[:200]


@asynccontextmanager
async def client_of(username: str | None) -> AsyncIterator[TBotClient]:
    """The API, as a user or the first administrator."""
    from tbot.client import TBotClient

    name, secret = _login(username)
    async with TBotClient(_api_url(), username=name, password=secret, retry_s=3.0) as client:
        yield client


def _json(value: object) -> str:
    """Amounts and times as the API writes them."""
    if isinstance(value, Decimal):
        return money.text(value)
    if isinstance(value, datetime):
        return clock.stamp(value)
    return str(value)


def _show(found: list[Order], as_json: bool) -> None:
    import dataclasses

    if as_json:
        for order in found:
            sys.stdout.write(json.dumps(dataclasses.asdict(order), default=_json) + "\n")
        return
    table = Table(box=None)
    table.add_column("id", no_wrap=True)
    for name in ("symbol", "side", "type", "state", "filled", "average", "reason"):
        table.add_column(name, overflow="fold")
    for order in found:
        wanted = order.quantity if order.quantity is not None else order.quote_amount
        table.add_row(
            str(order.id),
            order.symbol,
            order.side,
            order.type if order.limit_price is None else f"limit {order.limit_price:f}",
            order.state,
            f"{order.filled_quantity:f} of {wanted or 0:f}"
            + ("" if order.quantity is not None else f" {order.symbol.split('-')[-1]}"),
            "" if order.average_price is None else f"{order.average_price:f}",
            order.reason or "",
        )
    out.print(table)


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]


@orders.command("place")
def place(
    side: Annotated[str, typer.Argument(help="buy or sell.")],
    symbol: Annotated[str, typer.Argument(help="As BTC-USDT.")],
    quantity: Annotated[str | None, typer.Option(help="In the base asset.")] = None,
    quote_amount: Annotated[
        str | None, typer.Option(help="Market orders: what to spend or receive instead.")
    ] = None,
    limit: Annotated[
        str | None, typer.Option(help="Limit price; without it a market order.")
    ] = None,
    tif: Annotated[str | None, typer.Option(help="gtc, ioc or fok (limit orders).")] = None,
    post_only: Annotated[bool, typer.Option(help="Never take liquidity.")] = False,
    account: Annotated[
        str | None, typer.Option(help="Account id; default: your only open trading account.")
    ] = None,
    client_order_id: Annotated[str | None, typer.Option(help="Repeat under it safely.")] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for the venue's word.")] = 5.0,
    username: Asking = None,
    as_json: AsJson = False,
) -> None:
    """Place an order and show what became of it."""

    async def work() -> Order:
        async with client_of(username) as client:
            return await client.place(
                account or await only_account(client),
                symbol,
                cast("Any", side),
                quantity=quantity,
                quote_amount=quote_amount,
                limit_price=limit,
                time_in_force=cast("Any", tif),
                post_only=post_only,
                client_order_id=client_order_id,
                wait_s=wait or None,
            )

    _show([run(work())], as_json)


async def only_account(client: TBotClient) -> str:
    """The one account that can be meant where none was named."""
    ids = [str(account.id) async for account in client.accounts(kind="trading", status="open")]
    if not ids:
        raise ConfigurationError(
            "this user has no open trading account: open one with POST /v1/accounts"
        )
    if len(ids) > 1:
        raise ConfigurationError(
            f"this user has {len(ids)} open trading accounts, say which with --account:"
            f" {', '.join(ids)}"
        )
    return ids[0]


@orders.command("list")
def list_orders(
    account: Annotated[str | None, typer.Option(help="Account id; default: all yours.")] = None,
    symbol: Annotated[str | None, typer.Option(help="As BTC-USDT.")] = None,
    is_open: Annotated[bool | None, typer.Option("--open/--closed", help="Only these.")] = None,
    limit: Annotated[int, typer.Option(help="Most orders shown.", min=1)] = 50,
    username: Asking = None,
    as_json: AsJson = False,
) -> None:
    """Orders, newest first."""

    async def work() -> list[Order]:
        found: list[Order] = []
        async with client_of(username) as client:
            async for order in client.orders(account, symbol=symbol, is_open=is_open):
                found.append(order)
                if len(found) == limit:
                    break
        return found

    _show(run(work()), as_json)


@orders.command("get")
def get(
    order_id: Annotated[str, typer.Argument(help="Its id.")],
    username: Asking = None,
    as_json: AsJson = False,
) -> None:
    """One order as it is now."""

    async def work() -> Order:
        async with client_of(username) as client:
            return await client.order(order_id)

    _show([run(work())], as_json)


@orders.command("cancel")
def cancel(
    order_id: Annotated[str, typer.Argument(help="Its id.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end.")] = 5.0,
    username: Asking = None,
    as_json: AsJson = False,
) -> None:
    """Ask for an order's cancellation."""

    async def work() -> Order:
        async with client_of(username) as client:
            return await client.cancel(order_id, wait or None)

    _show([run(work())], as_json)
