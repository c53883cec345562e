"""Forward-only migrations: `migrations/NNNN_name.sql`, each applied once, in order, as the owner.

What was applied is recorded with a checksum and never changes again: a file edited afterwards, or
a database that is ahead of this program, stops the start with one clear line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg

from tbot.core.errors import ConfigurationError

DIRECTORY: Final = Path(__file__).parent / "migrations"
_FILE_NAME: Final = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.sql")
_LOCK: Final = 0x7B07_0001  # any constant of our own: one migration run at a time per database


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of the sequence.

    Attributes:
        version: Its number, 1 and up without gaps.
        name: What it is about.
        sql: Its statements.
    """

    version: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the statements, as hexadecimal digits."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """All migrations that this program brings, in order.

    Raises:
        ConfigurationError: A name is malformed, or the numbers have a gap or repeat.
    """
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        match = _FILE_NAME.fullmatch(path.name)
        if match is None:
            raise ConfigurationError(f"{path.name} is not named like 0001_what_it_does.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    if [migration.version for migration in found] != list(range(1, len(found) + 1)):
        raise ConfigurationError(f"the migrations in {directory} are not numbered 1, 2, 3 …")
    return found


async def migrate(
    dsn: str,
    known: Sequence[Migration] | None = None,
    progress: Callable[[Migration], None] | None = None,
) -> list[Migration]:
    """Apply what is missing, each migration in a transaction of its own.

    Args:
        dsn: Database URL of the role that owns the schema.
        known: The migrations; None takes this program's.
        progress: Called before each one.

    Returns:
        Those that were applied now.

    Raises:
        ConfigurationError: An applied one was edited, or the database is ahead of this program.
            Nothing was changed.
        asyncpg.PostgresError: A migration failed; it was rolled back, the ones before it stay.
    """
    known = migrations() if known is None else known
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("select pg_advisory_lock($1)", _LOCK)
        applied = await _applied(connection)
        _compare(known, applied)
        missing = [migration for migration in known if migration.version not in applied]
        for migration in missing:
            if progress is not None:
                progress(migration)
            async with connection.transaction():
                await connection.execute(migration.sql)
                # A migration may leave another search_path behind, hence the full name.
                await connection.execute(
                    "insert into public.schema_migration (version, name, checksum) "
                    "values ($1, $2, $3)",
                    migration.version,
                    migration.name,
                    migration.checksum,
                )
        return list(missing)
    finally:
        await connection.close()


async def require_current(
    connection: asyncpg.Connection[Any], known: Sequence[Migration] | None = None
) -> None:
    """Make sure that the database has this program's schema: for processes that do not migrate.

    Raises:
        ConfigurationError: It is behind or ahead.
    """
    known = migrations() if known is None else known
    try:
        rows = await connection.fetch("select version, checksum from public.schema_migration")
    except (asyncpg.UndefinedTableError, asyncpg.InsufficientPrivilegeError):
        rows = []
    applied = {row["version"]: row["checksum"] for row in rows}
    _compare(known, applied)
    if len(applied) < len(known):
        raise ConfigurationError(
            f"the database's schema is at version {len(applied)} and this T-Bot needs "
            f"{len(known)}: run `tbot migrate`"
        )


async def _applied(connection: asyncpg.Connection[Any]) -> dict[int, str]:
    await connection.execute(
        "create table if not exists public.schema_migration ("
        "version int primary key, name text not null, checksum text not null, "
        "applied_at timestamptz not null default clock_timestamp())"
    )
    await connection.execute("grant select on public.schema_migration to public")
    rows = await connection.fetch("select version, checksum from public.schema_migration")
    return {row["version"]: row["checksum"] for row in rows}


def _compare(known: Sequence[Migration], applied: dict[int, str]) -> None:
    checksums = {migration.version: migration for migration in known}
    for version, checksum in sorted(applied.items()):
        migration = checksums.get(version)
        if migration is None:
            raise ConfigurationError(
                f"the database has migration {version:04}, which this T-Bot does not know: "
                "start the newer T-Bot that applied it"
            )
        if migration.checksum != checksum:
            raise ConfigurationError(
                f"migration {version:04}_{migration.name}.sql was edited after it had been "
                "applied: put it back as it was, and write the change as a new one "
                "(make migration name=…)"
            )


def next_file(name: str, directory: Path = DIRECTORY) -> Path:
    """Create the next migration's file.

    Args:
        name: What it does; turned into lower case with underscores.
        directory: Where migrations are.

    Raises:
        ConfigurationError: The name has nothing to use.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not slug:
        raise ConfigurationError("name the migration: make migration name=add_a_thing")
    path = directory / f"{len(migrations(directory)) + 1:04}_{slug}.sql"
    path.write_text(
        "-- What this changes and why. Forward only; runs in one transaction as tbot_owner.\n"
        "-- Grant the application role what it needs: grant select on … to tbot_app;\n"
    )
    return path
