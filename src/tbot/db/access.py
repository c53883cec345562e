"""How programs get at the database: URLs, roles, and whether it can be trusted with orders.

Entry points: `database_dsn`, `running_database`, `require_durable`, `prepare_roles`.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import asyncpg

from tbot.core.errors import ConfigurationError, DataDirectoryError
from tbot.db import cluster
from tbot.db.cluster import USERS, RoleName
from tbot.db.placement import SOCKET_NAME

DATABASE: Final = "tbot"
DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")


def database_dsn(data_dir: Path, socket_dir: Path, role: RoleName, database: str = DATABASE) -> str:
    """A URL for asyncpg and for Postgres' own tools; it contains the role's password."""
    password = cluster.password_of(data_dir, role)
    return (
        f"postgresql://{USERS[role]}:{quote(password, safe='')}@/{quote(database, safe='')}"
        f"?host={quote(str(socket_dir), safe='/')}&sslmode=disable"
    )


def running_database(data_dir: Path, role: RoleName = "app") -> str:
    """The URL of the database that another process of this data directory runs.

    Raises:
        DataDirectoryError: None runs there. The caller starts `tbot up` first.
    """
    data_dir = data_dir.absolute()
    recorded = cluster.read_json(data_dir / "postgres.socket.json") or {}
    directory = Path(str(recorded.get("directory", "/nonexistent")))
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1.0)
            probe.connect(str(directory / SOCKET_NAME))
    except OSError:
        raise DataDirectoryError(
            f"no T-Bot runs on the data directory {data_dir}: start it with `make run` or `tbot up`"
        ) from None
    return database_dsn(data_dir, directory, role)


async def require_durable(connection: asyncpg.Connection[Any]) -> None:
    """Refuse a server that may lose what it has acknowledged.

    Raises:
        ConfigurationError: fsync, full_page_writes or synchronous_commit is off, for the server or
            for a role or database of it; the message names it.
    """
    rows = await connection.fetch(
        "select name, setting, coalesce(sourcefile, source) as place from pg_settings "
        "where name = any($1) union all "
        "select split_part(line, '=', 1), split_part(line, '=', 2), 'alter role or database' "
        "from pg_db_role_setting, unnest(setconfig) as line "
        "where split_part(line, '=', 1) = any($1)",
        list(DURABLE),
    )
    for row in rows:
        if row["setting"] in ("off", "false", "no", "0"):
            raise ConfigurationError(
                f"the database runs with {row['name']} = {row['setting']} ({row['place']}) and "
                "could lose acknowledged orders: turn it on"
            )


async def prepare_roles(connection: asyncpg.Connection[Any], data_dir: Path) -> None:
    """Make the owner and the application role and the database, where they are missing.

    Their passwords follow the files: a lost file gets a new password.
    """
    for role in ("owner", "app"):
        password = cluster.password_of(data_dir, role, create=True)
        user = USERS[role]
        stored = await connection.fetchrow(
            "select rolpassword from pg_authid where rolname = $1", user
        )
        if stored is None:
            await connection.execute(
                f"create role {user} login nosuperuser nocreatedb nocreaterole "
                f"password '{cluster.scram_verifier(password)}'"
            )
        elif not cluster.verifier_fits(stored["rolpassword"], password):
            await connection.execute(
                f"alter role {user} password '{cluster.scram_verifier(password)}'"
            )
    if not await connection.fetchval("select 1 from pg_database where datname = $1", DATABASE):
        await connection.execute(f"create database {DATABASE} owner {USERS['owner']}")
        await connection.execute(f"revoke all on database {DATABASE} from public")
        await connection.execute(f"grant connect on database {DATABASE} to {USERS['app']}")
