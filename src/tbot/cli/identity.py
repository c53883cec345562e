"""`tbot user …`: roles, sessions, second factors and API keys of others, for who runs the server.

These change the database directly, as the operator; running servers follow at once.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table

from tbot.cli.account import Username, database
from tbot.cli.account import users as users  # noqa: PLC0414 - the commands that this adds to
from tbot.cli.console import load_settings, out, run
from tbot.cli.switches import operator
from tbot.db.pool import transaction


@users.command("role")
def role(
    username: Username,
    new: Annotated[str, typer.Argument(help="trader, viewer, auditor, service or admin.")],
) -> None:
    """Give a user another role; their sessions end."""
    from tbot.auth.scopes import Role
    from tbot.auth.users import set_role

    if new not in [each.value for each in Role]:
        raise typer.BadParameter(f"a role is one of {', '.join(Role)}")

    async def work() -> None:
        async with database() as (pool, _):
            await set_role(pool, username, Role(new), operator())

    run(work())
    out.print(f"{username} is {new} now", markup=False)


def _set_active(username: str, active: bool) -> None:
    from tbot.auth.users import set_active

    async def work() -> None:
        async with database() as (pool, _):
            await set_active(pool, username, active, operator())

    run(work())


@users.command("disable")
def disable(username: Username) -> None:
    """Keep a user out: their sessions end, their API keys rest."""
    _set_active(username, active=False)
    out.print(f"{username} is kept out", markup=False)


@users.command("enable")
def enable(username: Username) -> None:
    """Let a user in again."""
    _set_active(username, active=True)
    out.print(f"{username} may log in", markup=False)


@users.command("logout")
def logout(username: Username) -> None:
    """End every session of a user. API keys stay good: see `tbot user keys`."""
    from tbot.auth.users import log_out

    async def work() -> int:
        async with database() as (pool, _):
            return await log_out(pool, username, operator())

    out.print(f"{run(work())} sessions ended")


@users.command("retire-keys")
def retire_keys() -> None:
    """After a leak of a signing key: void every access token, and sign with a new key from now on.

    Sessions go on: whoever has one refreshes. Running servers follow within `auth.keys_reload_s`.
    """
    from tbot.auth.keys import Keys

    async def work() -> None:
        async with database() as (pool, _):
            await Keys(pool, load_settings().auth).retire_all()

    run(work())
    out.print("Every access token is void; a new key signs")


@users.command("events")
def security_events(
    username: Username,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most of them.")] = 50,
) -> None:
    """What happened to a user's login, keys, factors and standing, newest first."""
    from tbot.auth import events
    from tbot.auth.users import user_named

    async def work() -> list[Any]:
        async with database() as (pool, _):
            user = await user_named(pool, username)
            async with pool.acquire() as connection:
                return list(await events.listed(connection, user.id, None, limit))

    table = Table("number", "at", "what", "by", "from", "more", box=None)
    for one in run(work()):
        table.add_row(
            str(one.seq),
            one.at,
            one.kind.removeprefix("security."),
            one.by.get("name") or one.by.get("user") or one.by["kind"],
            one.by.get("address", ""),
            " ".join(f"{name}={value}" for name, value in one.data.items()),
        )
    out.print(table, markup=False)


@users.command("reset-factor")
def reset_factor(username: Username) -> None:
    """Take the second factor of somebody who lost it away; their sessions end."""
    from tbot.auth.users import reset_factor as reset

    async def work() -> bool:
        async with database() as (pool, _):
            return await reset(pool, username, operator())

    removed = run(work())
    out.print("The second factor was removed" if removed else "There was no second factor")


@users.command("key")
def key(
    username: Username,
    name: Annotated[str, typer.Option(help="What the key is for.")],
    scope: Annotated[str, typer.Option(help="Scopes, separated by blanks.")],
    address: Annotated[
        list[str] | None, typer.Option(help="A network that it is good from; may be repeated.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is good.")] = 365,
) -> None:
    """Make an API key for a program (role service) or a user, and print it, once."""
    import ipaddress

    from tbot.auth.scopes import Scope
    from tbot.auth.self_service import issue_key
    from tbot.auth.users import user_named

    known = {one.value: one for one in Scope}
    try:
        scopes = frozenset(known[one] for one in scope.split())
        networks = [str(ipaddress.ip_network(one)) for one in address or ()]
    except (KeyError, ValueError) as error:
        raise typer.BadParameter(f"unknown scope or network: {error}") from None
    if not scopes:
        raise typer.BadParameter("a key needs a scope")
    settings = load_settings().auth
    ttl_s = min(days * 86_400, settings.key_ttl_s_max)

    async def work() -> str:
        async with database() as (pool, _):
            user = await user_named(pool, username)
            _, text = await issue_key(
                pool, operator(), user.id, name, scopes, networks, ttl_s, settings.keys_max
            )
            return text

    out.print(run(work()), markup=False)


@users.command("keys")
def keys(
    username: Username,
    revoke: Annotated[str | None, typer.Option(help="Revoke the key of this name.")] = None,
) -> None:
    """A user's API keys, or revoke one."""
    from tbot.auth import api_keys, events
    from tbot.auth.users import user_named
    from tbot.core.errors import NotFound

    async def work() -> list[Any]:
        async with database() as (pool, _):
            user = await user_named(pool, username)
            async with transaction(pool) as connection:
                found = await api_keys.listed(connection, user.id)
                named = [one for one in found if one.name == revoke]
                if revoke is not None and not named:
                    raise NotFound(f"{username} has no key {revoke!r}")
                for one in named:
                    await api_keys.revoke(connection, one.id, user.id)
                    told = str(one.id)
                    await events.record(
                        connection,
                        user.id,
                        events.KEY_REVOKED,
                        operator(),
                        key=one.name,
                        key_id=told,
                    )
            return [one for one in found if one not in named]

    table = Table("name", "key", "scopes", "from", "until", "last used", box=None)
    for one in run(work()):
        table.add_row(
            one.name,
            one.hint + "…",
            " ".join(sorted(one.scopes)),
            " ".join(one.addresses) or "everywhere",
            f"{one.expires_at:%Y-%m-%d}",
            "" if one.last_used_at is None else f"{one.last_used_at:%Y-%m-%d %H:%M}",
        )
    out.print(table)
