"""The SDK's and the command line's statements against the application itself."""

from __future__ import annotations

import csv
import io
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from tbot.cli import ledger as commands
from tbot.client import NotFound, Refused, TBotClient, Unavailable


def sdk(site: Any, token: str, transport: httpx.AsyncBaseTransport | None = None) -> TBotClient:
    """An SDK client into the application."""
    transport = transport or httpx.ASGITransport(site.app)
    http = httpx.AsyncClient(base_url="http://test", transport=transport)
    return TBotClient("http://test", token=token, http=http, retry_s=0.0)


@pytest.fixture
async def moved(site: Any) -> tuple[UUID, UUID]:
    """Two cash accounts of ann's with transfers between them."""
    one, two = await site.cash_of("ann", USDT="100"), await site.cash_of("ann")
    async with sdk(site, await site.token("ann")) as client:
        await client.transfers.create(one, two, "USDT", 10)
        held = await client.transfers.create(one, two, "USDT", 20, pending=True)
        await client.transfers.post(held.id, "15")
    return UUID(str(one)), UUID(str(two))


async def test_movements_tell_who_paid_whom(site: Any, moved: tuple[UUID, UUID]) -> None:
    one, two = moved
    async with sdk(site, await site.token("ann")) as client:
        out = [m async for m in client.statements.movements(one)]
        into = [m async for m in client.statements.movements(two)]
        ends = await client.statements.ends(one)
        assert [(m.kind, m.amount, m.counterpart) for m in out] == [
            ("account.deposited", 100, "outside:opening"),
            ("transfer.created", -10, str(two)),
            ("transfer.created", 0, None),
            ("transfer.posted", -15, str(two)),
        ]
        assert [(m.kind, m.amount, m.counterpart) for m in into] == [
            ("transfer.received", 10, str(one)),
            ("transfer.received", 15, str(one)),
        ]
        assert [m.reference for m in into] == [out[1].reference, out[3].reference]
        assert {m.reference_kind for m in into} == {"transfer"}
        assert [(b.asset, b.total) for b in ends.closing.balances] == [("USDT", 75)]
        assert [(b.asset, b.total) for b in ends.opening.balances] == [("USDT", 0)]
        booked = [m async for m in client.statements.movements(one, holds=False, asset="USDT")]
        assert [m.amount for m in booked] == [100, -10, -15]
        then = await client.balances(one, at=out[1].at)
        assert then.available("USDT") == 90 and then.sequence == out[1].sequence
        rest = [m async for m in client.statements.movements(one, begin=out[1].at, end=out[3].at)]
        assert rest == out[1:3]
        with pytest.raises(ValueError, match="time zone"):
            client.statements.movements(one, begin=datetime(2026, 1, 1))  # noqa: DTZ001
        with pytest.raises(Refused, match="future"):
            await client.balances(one, at=datetime.now(UTC) + timedelta(hours=1))


async def test_files(site: Any, moved: tuple[UUID, UUID], tmp_path: Path) -> None:
    one, _ = moved
    async with sdk(site, await site.token("ann")) as client:
        target = tmp_path / "statement.csv"
        size_bytes = await client.statements.download(one, target)
        assert size_bytes == target.stat().st_size
        rows = list(csv.DictReader(io.StringIO(target.read_text(), newline="")))
        assert Decimal(rows[-1]["total"]) == 75 and rows[-1]["type"] == "closing"
        chunks = [chunk async for chunk in client.statements.journal(one)]
        lines = b"".join(chunks).splitlines()
        assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
        fills = b"".join([chunk async for chunk in client.statements.fills(one, symbol="BTC-USDT")])
        assert fills.count(b"\n") == 1, "only the header"
        with pytest.raises(NotFound):
            await client.statements.download(UUID(int=1), target)
        assert target.stat().st_size == size_bytes
        assert [path.name for path in tmp_path.iterdir()] == ["statement.csv"]


class _Breaking(httpx.AsyncByteStream):
    async def __aiter__(self) -> Any:
        yield b"half"
        raise httpx.ReadError("gone")


async def test_what_breaks_off_leaves_no_file(site: Any, tmp_path: Path) -> None:
    breaking = httpx.MockTransport(lambda _: httpx.Response(200, stream=_Breaking()))
    async with sdk(site, "token", breaking) as client:
        with pytest.raises(Unavailable, match="broke off"):
            await client.statements.download(UUID(int=1), tmp_path / "s.csv")
    assert not list(tmp_path.iterdir())
    busy = httpx.MockTransport(lambda _: httpx.Response(503, headers={"Retry-After": "1"}))
    async with sdk(site, "token", busy) as client:
        with pytest.raises(Unavailable, match="503"):
            await client.statements.download(UUID(int=1), tmp_path / "s.csv")


async def test_the_command_writes_what_the_server_says(
    site: Any, moved: tuple[UUID, UUID], monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    one, _ = moved

    @asynccontextmanager
    async def client_of(_user: str | None) -> Any:
        async with sdk(site, await site.token("ann")) as client:
            yield client

    works: list[Any] = []
    monkeypatch.setattr(commands, "client_of", client_of)
    monkeypatch.setattr(commands, "run", works.append)
    commands.statement(str(one), format=commands.FileFormat.NDJSON)
    capfdbinary.readouterr()
    await works.pop()
    lines = capfdbinary.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith(b'{"type"')]
    assert [line["type"] for line in found] == ["opening", *["movement"] * 4, "closing"]
