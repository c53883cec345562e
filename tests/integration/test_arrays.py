"""Arrays written whole arrive as asyncpg's own do, and come back as they were."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.core.ids import new_id
from tbot.db import arrays

AT = datetime(2026, 11, 22, 5, 14, 43, 123456, tzinfo=UTC)
VALUES: dict[str, list[Any]] = {
    "uuid": [new_id(), UUID(int=0), None, UUID(int=(1 << 128) - 1)],
    "bigint": [0, 1, -1, None, (1 << 63) - 1, -(1 << 63)],
    "bytea": [b"", b"\x00\xff", None, b"x" * 5000],
    "text": ["", 'a,b}"\\', "NULL", None, "\u20ac\U0001f600", "y" * 5000],
    "timestamptz": [AT, AT, None, AT - timedelta(days=20_000), AT.replace(year=9999)],
}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("part", [slice(None), slice(0, 1), slice(0, 0)])
async def test_the_server_cannot_tell(dsn: str, kind: str, part: slice) -> None:
    values = VALUES[kind][part]
    query = f"SELECT $1::{kind}[] AS whole, $1::{kind}[]::text AS told"
    plain = await asyncpg.connect(dsn)
    quick = await asyncpg.connect(dsn)
    try:
        assert arrays.install(quick)
        expected = await plain.fetchrow(query, values)
        found = await quick.fetchrow(query, values)
        assert found is not None and expected is not None
        assert dict(found) == dict(expected)
        assert found["whole"] == values
    finally:
        await plain.close()
        await quick.close()


@pytest.mark.parametrize(
    ("kind", "values"), [("uuid", ["no id"]), ("bigint", [1 << 63]), ("text", [7])]
)
async def test_what_does_not_fit_is_refused(dsn: str, kind: str, values: list[Any]) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        arrays.install(connection)
        with pytest.raises((asyncpg.DataError, AttributeError)):
            await connection.fetch(f"SELECT $1::{kind}[]", values)
        assert await connection.fetchval("SELECT 1") == 1
    finally:
        await connection.close()
