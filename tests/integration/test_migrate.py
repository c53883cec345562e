"""Migrations: applied once, in order, verified, by one process at a time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import asyncpg
import pytest

from tbot.core.errors import ConfigurationError
from tbot.db.migrate import Migration, migrate, migrations, next_file, require_current

ONE = Migration(1, "one", "create table one (n int); insert into one values (1);")
TWO = Migration(2, "two", "alter table one add column m int;")


async def test_applies_only_what_is_missing(postgres, empty_database) -> None:
    url = postgres.url(empty_database, "owner")
    assert await migrate(url, [ONE]) == [ONE]
    assert await migrate(url, [ONE, TWO]) == [TWO]
    assert await migrate(url, [ONE, TWO]) == []


async def test_two_processes_at_once_apply_each_migration_once(postgres, empty_database) -> None:
    url = postgres.url(empty_database, "owner")
    applied = await asyncio.gather(*(migrate(url, [ONE, TWO]) for _ in range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, 2]


async def test_an_edited_migration_stops_the_start(postgres, empty_database) -> None:
    url = postgres.url(empty_database, "owner")
    await migrate(url, [ONE])
    edited = Migration(1, "one", ONE.sql + " -- harmless?")
    with pytest.raises(ConfigurationError, match=r"0001_one\.sql was edited"):
        await migrate(url, [edited, TWO])


async def test_a_database_ahead_of_the_program_stops_the_start(postgres, empty_database) -> None:
    url = postgres.url(empty_database, "owner")
    await migrate(url, [ONE, TWO])
    with pytest.raises(ConfigurationError, match="does not know"):
        await migrate(url, [ONE])


async def test_a_failing_migration_leaves_nothing_behind(postgres, empty_database) -> None:
    url = postgres.url(empty_database, "owner")
    broken = Migration(2, "broken", "create table two (n int); select 1/0;")
    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(url, [ONE, broken])
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("select to_regclass('two')") is None
        assert await connection.fetchval("select max(version) from schema_migration") == 1
    finally:
        await connection.close()


async def test_the_application_role_sees_whether_the_schema_is_current(
    postgres, database, pool
) -> None:
    async with pool.acquire() as connection:
        await require_current(connection)
        with pytest.raises(ConfigurationError, match="tbot migrate"):
            await require_current(connection, [*migrations(), Migration(99, "more", "")])


async def test_an_empty_database_is_not_current(postgres, empty_database) -> None:
    connection = await asyncpg.connect(postgres.url(empty_database, "owner"))
    try:
        with pytest.raises(ConfigurationError, match="tbot migrate"):
            await require_current(connection, [ONE])
    finally:
        await connection.close()


def test_the_next_file_is_numbered_and_named(tmp_path: Path) -> None:
    assert next_file("Add a Thing!", tmp_path).name == "0001_add_a_thing.sql"
    assert next_file("second", tmp_path).name == "0002_second.sql"
    (tmp_path / "0004_gap.sql").touch()
    with pytest.raises(ConfigurationError, match="not numbered"):
        migrations(tmp_path)
    with pytest.raises(ConfigurationError, match="not named"):
        (tmp_path / "nonsense.sql").touch()
        migrations(tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "update journal set kind = 'x'",
        "delete from journal",
        "truncate journal",
        "update fills set price = 1",
        "delete from streams",
        "drop table journal",
        "alter table journal add column x int",
        "create table mine (n int)",
        "update schema_migration set checksum = ''",
    ],
)
async def test_the_application_role_may_not_change_history(pool, statement: str) -> None:
    async with pool.acquire() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
