"""Transfers from files: all lines judged first, each made once, whatever interrupts or repeats it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tbot.core.errors import ConfigurationError, Unavailable
from tbot.core.ids import new_id
from tbot.journal.commands import SYSTEM
from tbot.ledger import import_lines, importing
from tbot.ledger import store as ledger_store
from tbot.ledger.assets import save_assets
from tbot.ledger.entries import ChangeAccount, Limits, OpenAccount
from tbot.ledger.importing import check_file, import_file, transfer_id

HEADER = "source_account_id,target_account_id,asset,amount"
LIMITS = Limits(max_order_notional=Decimal(1), max_open_orders=1, price_collar=Decimal("0.05"))


@pytest.fixture
async def accounts(desk: Any, pool: Any) -> list[UUID]:
    """A cash account with 10,000 EUR and three without."""
    await save_assets(pool, {"EUR": 2})
    made = []
    for deposits in ({"EUR": Decimal(10_000)}, {}, {}, {}):
        command = OpenAccount(
            new_id(), SYSTEM, new_id(), UUID(int=7), "cash", None, LIMITS, deposits
        )
        made.append((await desk.committer.commit(command)).result.id)
    return made


async def available(pool: Any, account_id: UUID) -> Decimal:
    async with pool.acquire() as connection:
        _, balances = await ledger_store.get_balances(connection, account_id)
    return balances["EUR"].available if "EUR" in balances else Decimal(0)


async def entries(pool: Any) -> int:
    size: int = await pool.fetchval("SELECT count(*) FROM journal")
    return size


def written(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
async def test_a_repeated_import_changes_nothing(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path, kind: str
) -> None:
    one, two, three, _ = accounts
    rows = [(one, two, "3.50")] * 300 + [(two, three, "1000")]
    if kind == "csv":
        lines = [HEADER, *(f"{a},{b},EUR,{amount}" for a, b, amount in rows)]
    else:
        lines = [
            json.dumps(
                {"source_account_id": str(a), "target_account_id": str(b), "asset": "EUR",
                 "amount": amount, "metadata": {"invoice": "7"}}
            )
            for a, b, amount in rows
        ]  # fmt: skip
    path = written(tmp_path / "file", *lines)
    before = await entries(pool)
    checked = await check_file(pool, path)
    assert checked.sound and checked.lines == 301
    assert await entries(pool) == before, "a check changes nothing"
    seen: list[tuple[int, int]] = []
    made = await import_file(
        pool, desk.committer, SYSTEM, path, checked, lambda *where: seen.append(where)
    )
    # Lines are made in order: the last one needs the money of those before it.
    assert (made.made, made.known, made.refused) == (301, 0, [])
    assert made.sums == {"EUR": Decimal(2050)}
    assert seen[-1] == (path.stat().st_size, path.stat().st_size) and len(seen) > 1
    assert await available(pool, three) == 1000
    after = await entries(pool)
    assert after == before + 602
    again = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert (again.made, again.known) == (0, 301)
    assert await entries(pool) == after
    metadata = await pool.fetchval("SELECT metadata FROM transfers ORDER BY id LIMIT 1")
    first = 2 if kind == "csv" else 1
    assert json.loads(metadata) == {
        "import": checked.digest.hex()[:16],
        "line": str(first),
        **({"invoice": "7"} if kind == "ndjson" else {}),
    }
    await desk.verified()


async def test_an_interrupted_import_goes_on_where_it_stopped(
    new_desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(import_lines, "CHUNK_LINES", 10)
    desk = await new_desk()
    path = written(
        tmp_path / "file", HEADER, *(f"{accounts[0]},{accounts[1]},EUR,1" for _ in range(100))
    )
    checked = await check_file(pool, path)

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await import_file(pool, desk.committer, SYSTEM, path, checked, stop)
    part = await available(pool, accounts[1])
    assert 40 <= part <= 70
    # And from a moment when half a chunk was made.
    began_at = await pool.fetchval("SELECT began_at FROM imports")
    source, target = accounts[:2]
    chunk = [import_lines.Wanted(99 + n, source, target, "EUR", Decimal(1), {}) for n in range(2)]
    report = importing.Report(checked.digest)
    await importing._make(pool, desk.committer, SYSTEM, chunk, began_at, report)
    rest = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert rest.made + rest.known == 100
    assert rest.known == part + 2
    assert await available(pool, accounts[1]) == 100
    await desk.verified()


async def test_no_line_is_made_when_one_is_bad(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    one, two, three, closed = accounts
    trading = await desk.open(EUR="5")
    await desk.committer.commit(ChangeAccount(new_id(), SYSTEM, closed, status="closed"))
    await desk.committer.commit(ChangeAccount(new_id(), SYSTEM, three, status="frozen"))
    stranger = new_id()
    path = written(
        tmp_path / "file",
        HEADER,
        f"{one},{two},EUR,1",
        f"{one},{two},EUR,1.001",
        f"{one},{two},XXX,1",
        f"{one},{two},EUR,-1",
        f"{one},{two},EUR,0",
        f"{one},{two},EUR,1e3",
        f"{one},{stranger},EUR,1",
        f"{one},{one},EUR,1",
        f"{one},{trading},EUR,1",
        f"{three},{two},EUR,1",
        f"{one},{closed},EUR,1",
        f"{one},{two},EUR",
        f"nobody,{two},EUR,1",
        f'{one},{two},"EUR,1',
        "",
        f"{one},{two},EUR,{10**18}",
    )
    before = await entries(pool)
    checked = await check_file(pool, path)
    assert [line for line, _ in checked.refused] == [*range(3, 16), 17]
    assert checked.lines == 15
    words = dict(checked.refused)
    assert "decimals" in words[3] and "XXX" in words[4] and str(stranger) in words[8]
    assert "same place" in words[10] and "frozen" in words[11] and "closed" in words[12]
    with pytest.raises(ConfigurationError, match="nothing was done"):
        await import_file(pool, desk.committer, SYSTEM, path, checked)
    assert await entries(pool) == before


async def test_what_lacks_money_is_refused_and_the_rest_is_made(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    one, two, _, _ = accounts
    path = written(
        tmp_path / "f", HEADER, f"{two},{one},EUR,1", f"{one},{two},EUR,2", f"{two},{one},EUR,3"
    )
    made = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert made.made == 1 and [line for line, _ in made.refused] == [2, 4]
    assert all(why.startswith("insufficient_funds") for _, why in made.refused)
    # The money came in between: now the first of them is made, once.
    again = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert (again.made, again.known, [line for line, _ in again.refused]) == (1, 1, [4])


async def test_metadata_and_members_of_ndjson(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    good = {"source_account_id": str(accounts[0]), "target_account_id": str(accounts[1]),
            "asset": "EUR", "amount": "1"}  # fmt: skip
    bad: list[Any] = [
        {**good, "amount": 1}, {**good, "more": 1}, {**good, "metadata": {"line": "1"}},
        {**good, "metadata": {"a": "\u0000"}}, {**good, "metadata": {"a" * 41: ""}},
        {**good, "metadata": {"a": "b" * 501}}, {**good, "metadata": {str(n): "" for n in range(19)}},
        {**good, "metadata": {"": ""}}, [good], {**good, "asset": None},
    ]  # fmt: skip
    path = written(tmp_path / "file", "\ufeff" + json.dumps(good), *map(json.dumps, bad), "{")
    checked = await check_file(pool, path)
    assert [line for line, _ in checked.refused] == list(range(2, 13))


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "[]\n", "hello"])
async def test_files_that_are_no_transfers(pool: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)
    with pytest.raises(ConfigurationError):
        await check_file(pool, path)


async def test_a_file_is_imported_by_one_process_at_a_time_and_as_it_was_checked(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    path = written(tmp_path / "file", HEADER, f"{accounts[0]},{accounts[1]},EUR,1")
    checked = await check_file(pool, path)
    async with importing._alone(pool, checked.digest):
        with pytest.raises(Unavailable, match="another process"):
            await import_file(pool, desk.committer, SYSTEM, path, checked)
    outcomes = await asyncio.gather(
        *(import_file(pool, desk.committer, SYSTEM, path, checked) for _ in range(3)),
        return_exceptions=True,
    )
    made = [one for one in outcomes if isinstance(one, importing.Report)]
    assert made and sum(one.made for one in made) == 1
    written(path, HEADER, f"{accounts[0]},{accounts[1]},EUR,2", "x")
    with pytest.raises(ConfigurationError, match="changed"):
        await import_file(pool, desk.committer, SYSTEM, path, checked)
    assert await available(pool, accounts[1]) == 1


async def test_the_command(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path, database_url: str
) -> None:
    """As typed: checked, made, repeated, and told."""
    one, two, three, _ = accounts
    good = written(tmp_path / "good.csv", HEADER, *[f"{one},{two},EUR,1.25"] * 40)
    bad = written(tmp_path / "bad.csv", HEADER, f"{one},{two},EUR,1", f"{two},{three},EUR,=1")
    report = tmp_path / "refused.csv"

    async def tbot(*words: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tbot", "ledger", "import", *words,
            env={**os.environ, "TBOT_DATABASE__URL": database_url, "TBOT_DATA_DIR": str(tmp_path)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        told, complaint = await process.communicate()
        return process.returncode, (told + complaint).decode()

    code, said = await tbot(str(good), "--dry-run")
    assert (code, said.strip()) == (0, "40 of 40 lines can be imported; nothing was done")
    for way in ([], ["--dry-run"]):
        before = bad.read_bytes()
        code, said = await tbot(str(bad), "--report", str(bad), *way)
        assert code == 2 and "would lose its good lines" in said
        assert bad.read_bytes() == before
    code, said = await tbot(str(bad), "--report", str(report))
    assert code == 1 and "line 3:" in said and "1 of 2 lines can be imported" in said
    assert "Correct the others" in said
    told = report.read_text().splitlines()
    assert told[0] == f"{HEADER},line,reason"
    assert [line.startswith(f"{two},{three},EUR,=1,3,") for line in told[1:]] == [True]
    for made, known in ((40, 0), (0, 40)):
        code, said = await tbot(str(good))
        assert code == 0, said
        assert f"{made} transfers made" in said and f"{known} had been made before" in said
    assert await available(pool, two) == 50
    by = json.loads(await pool.fetchval("SELECT convert_from(body, 'UTF8') FROM journal"
                                        " WHERE kind = 'transfer.received' LIMIT 1"))["by"]  # fmt: skip
    assert by["kind"] == "operator" and by["name"]


async def test_a_line_with_a_key_is_made_once_whatever_file_it_is_in(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    """A file is corrected where it was refused, and nothing is paid twice."""
    one, two, three, _ = accounts

    async def imported(*lines: str) -> importing.Report:
        path = written(tmp_path / "payroll.csv", f"{HEADER},key", *lines)
        return await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))

    made = await imported(f"{one},{two},EUR,5,ann", f"{three},{two},EUR,7,bob")
    assert (made.made, made.known, [line for line, _ in made.refused]) == (1, 0, [3])
    # Another order, another source for what was refused, one more line without a key.
    made = await imported(f"{one},{two},EUR,7,bob", f"{one},{two},EUR,5,ann", f"{one},{two},EUR,1,")
    assert (made.made, made.known, made.refused) == (2, 1, [])
    assert await available(pool, two) == 13
    path = written(
        tmp_path / "more.csv",
        f"key,{HEADER}",
        f"ann,{one},{two},EUR,6",
        f"new,{one},{two},EUR,1",
        f"new,{one},{two},EUR,2",
        f"{'k' * 256},{one},{two},EUR,1",
    )
    checked = await check_file(pool, path)
    assert dict(checked.refused) == {
        2: "its key made another transfer before: give it a key of its own",
        4: "line 3 has the same key",
        5: "a key has 1 to 255 characters that can be printed",
    }
    await desk.verified()


async def test_lines_with_and_without_a_key_are_made_in_the_order_of_the_file(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path
) -> None:
    """Each line rests on what the line before it brought."""
    one, two, three, four = accounts
    path = written(
        tmp_path / "chain.csv",
        f"{HEADER},key",
        f"{one},{two},EUR,5,first",
        f"{two},{three},EUR,5,",
        f"{three},{four},EUR,5,third",
    )
    made = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert (made.made, made.refused) == (3, [])
    assert await available(pool, four) == 5


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
async def test_a_report_is_corrected_and_imported(
    desk: Any, pool: Any, accounts: list[UUID], tmp_path: Path, kind: str
) -> None:
    one, two, _, _ = accounts
    rows = [(one, two, "1"), (two, one, "500"), (one, two, "x")]
    path = tmp_path / "file"
    if kind == "csv":
        written(path, HEADER, *(f"{a},{b},EUR,{n}" for a, b, n in rows), "scrap")
    else:
        written(
            path,
            *(
                f'{{"source_account_id":"{a}","target_account_id":"{b}","asset":"EUR","amount":"{n}"}}'
                for a, b, n in rows
            ),
            "scrap",
        )
    with import_lines.Refusals(path, tmp_path / "refused") as refusals:
        checked = await check_file(pool, path, tell=refusals.tell)
    assert len(checked.refused) == 2
    # The scrap is kept as it is, and is refused again.
    again = await check_file(pool, tmp_path / "refused")
    assert again.lines == 2 and len(again.refused) == 2
    assert "scrap" in (tmp_path / "refused").read_text()

    text = path.read_text().replace("scrap\n", "")
    path.write_text(text.replace(",x\n", ",2\n").replace('"x"', '"2"'))
    checked = await check_file(pool, path)
    with import_lines.Refusals(path, path) as refusals:  # in its own place
        made = await import_file(pool, desk.committer, SYSTEM, path, checked, tell=refusals.tell)
    assert (made.made, len(made.refused)) == (2, 1)
    assert "insufficient_funds" in path.read_text()
    path.write_text(path.read_text().replace("500", "3"))
    made = await import_file(pool, desk.committer, SYSTEM, path, await check_file(pool, path))
    assert (made.made, made.refused) == (1, [])
    assert await available(pool, two) == 0


def test_what_is_wrong_is_said_in_words(tmp_path: Path) -> None:
    line = {"source_account_id": str(UUID(int=1)), "target_account_id": str(UUID(int=2)),
            "asset": "EUR", "amount": "1"}  # fmt: skip
    bad: list[Any] = [
        {**line, "target_account_id": "bob"}, {**line, "amount": 1.5}, {**line, "more": 1},
        {"asset": "EUR"},
    ]  # fmt: skip
    path = written(tmp_path / "file", json.dumps(line), *map(json.dumps, bad), "{")
    (chunk,) = import_lines.read_chunks(path, lambda _: None)
    assert [one.why for one in chunk.lines if isinstance(one, import_lines.Bad)] == [
        "target_account_id is no account id (a UUID)",
        'amount has to be a text in quotes, as in "12.50"',
        "the line has a member that is not known: more",
        "the line has no source_account_id",
        "not JSON in UTF-8: Input data was truncated",
    ]
    semicolons = written(tmp_path / "excel.csv", HEADER.replace(",", ";"))
    with pytest.raises(ConfigurationError, match="semicolons where commas belong"):
        list(import_lines.read_chunks(semicolons, lambda _: None))


def test_ids_sort_as_lines_do() -> None:
    at = datetime(2026, 11, 22, tzinfo=UTC)
    ids = [transfer_id(b"d", at, line) for line in (1, 2, 3, 1000, 2**20, 2**31)]
    assert ids == sorted(ids) and len(set(ids)) == len(ids)
    assert {(one.version, one.variant) for one in ids} == {(7, "specified in RFC 4122")}
    assert transfer_id(b"e", at, 1) != ids[0] == transfer_id(b"d", at, 1)
