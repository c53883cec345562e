"""Journals made by the real committer, their exports, and somebody who owns the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from tbot.__main__ import main
from tbot.audit import anchoring, export
from tbot.audit.anchoring import Place
from tbot.audit.keys import load_public
from tbot.audit.offline import read_anchors, verify_file
from tbot.audit.proof import Proof
from tbot.audit.report import Report
from tbot.audit.workspace import Workspace


@dataclass
class Evidence:
    """A database with three accounts, a place for anchors, and its owner's hands on the tables."""

    desk: Any
    reader: asyncpg.Connection[Any]
    owner: asyncpg.Connection[Any]
    place: Place
    directory: Path
    accounts: list[UUID]

    async def anchor(self, **options: Any) -> Any:
        """Anchor what moved."""
        return await anchoring.anchor(self.reader, self.place, **options)

    async def export(self, accounts: Any = (), **options: Any) -> Path:
        """Write an export into a new file."""
        path = self.directory / f"{len(list(self.directory.iterdir()))}.ndjson"
        found = [line async for line in export.lines(self.reader, accounts=accounts, **options)]
        path.write_bytes(b"".join(found))
        return path

    def verify(self, path: Path, *, anchored: bool = False, **options: Any) -> Report:
        """Verify an export, with the anchors or without them."""
        if anchored:
            options["anchor_file"] = self.place.anchors
            options["key"] = load_public(self.place.public_key)
            options.setdefault("unsigned", True)  # what is proved here is the journal, by anchors
        return verify_file(path, **options)

    async def verify_database(self, *, anchored: bool = False) -> Report:
        """Verify the database itself."""
        report = Report()
        with contextlib.closing(Workspace()) as workspace:
            newest = None
            if anchored:
                key = load_public(self.place.public_key)
                newest = read_anchors(self.place.anchors, key, workspace, report)
            proof = Proof(report, workspace, newest_anchor=newest)
            async for line in export.lines(self.reader):
                proof.feed(line)
            return proof.end()

    async def trade(self, account: UUID, times: int = 1) -> None:
        """Two entries more, for each time: an order and its cancellation."""
        for _ in range(times):
            order = (await self.desk.place(account)).result.order
            await self.desk.cancel(order)


@pytest.fixture
async def evidence(
    desk: Any, database_url: str, owner_url: str, tmp_path: Path
) -> AsyncIterator[Evidence]:
    """Three accounts with eight entries each; the guards of the journal are taken off."""
    reader = await asyncpg.connect(database_url)
    owner = await asyncpg.connect(owner_url)
    await owner.execute("ALTER TABLE journal DISABLE TRIGGER USER")
    exports = tmp_path / "exports"
    exports.mkdir()
    accounts = sorted([await desk.open(USDT="1000") for _ in range(3)])
    made = Evidence(desk, reader, owner, Place(tmp_path / "audit"), exports, accounts)
    for account in accounts:
        await made.trade(account, 3)
    yield made
    await reader.close()
    await owner.close()


@pytest.fixture
def tbot(database_url: str, tmp_path: Path) -> Any:
    """Runs `tbot` on the test's database; answers exit code, stdout and stderr."""

    async def run(*arguments: str) -> tuple[int, str, str]:
        environment = {
            **{name: text for name, text in os.environ.items() if not name.startswith("TBOT_")},
            "TBOT_DATABASE__URL": database_url,
            "TBOT_DATA_DIR": str(tmp_path / "data"),
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tbot", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
        stdout, stderr = await process.communicate()
        assert process.returncode is not None
        return process.returncode, stdout.decode(), stderr.decode()

    return run


@pytest.fixture
def tbot_here(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Callable[..., tuple[int, str, str]]:
    """Runs `tbot` in this process, for tests that are not coroutines themselves."""
    monkeypatch.setenv("TBOT_DATABASE__URL", database_url)
    monkeypatch.setenv("TBOT_DATA_DIR", str(tmp_path / "data"))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tbot", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said, told = capsys.readouterr()
        return int(ended.value.code or 0), said, told

    return run
