"""Exports: constant memory, at the reader's pace, bounded in number, never half and looking whole."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import pytest
import structlog

from tbot.web import history
from tbot.web.entries import entries_after

ENTRIES = 100_001
LONG = 5_000
MEMORY_BYTES_MAX = 1 << 20
"""Allocated at most while several times as much goes out."""

# An account's stream of deposits and withdrawals, as no test could commit it in a second. Hashes
# are not looked at by exports.
_FILL = """
WITH entries AS (
    SELECT n, at + n * interval '1 microsecond' AS at, md5(n::text)::uuid AS command
    FROM streams, generate_series(3, $2::int) AS n WHERE account_id = $1::uuid
), written AS (
    INSERT INTO journal (account_id, seq, command_id, kind, at, body, hash)
    SELECT $1::uuid, n, command, 'account.deposited', at,
        convert_to(format(
            '{"v":1,"account":"%s","seq":%s,"at":"%s","kind":"account.deposited","command":"%s",'
            '"by":{"kind":"system"},"postings":[["available","USDT","1"],'
            '["venue:paper","USDT","-1"]],"data":{"asset":"USDT","amount":"1"}}',
            $1::uuid, n, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), command
        ), 'UTF8'),
        sha256(int8send(n::int8))
    FROM entries
    RETURNING 1
), heads AS (
    UPDATE streams SET seq = $2::int, at = at + $2::int * interval '1 microsecond'
    WHERE account_id = $1::uuid
)
INSERT INTO fills
SELECT command, n::text, $1::uuid, n, 'BTC-USDT', 'buy', 1, 1, 1, 0, 'USDT', false, at FROM entries
"""


class Reader:
    """The receiving end of an ASGI response, at a pace of the test's choosing.

    Args:
        taken_max: After so many chunks it takes no more until `go` is set.
    """

    def __init__(self, taken_max: int | None = None) -> None:
        self.status = 0
        self.size_bytes = 0
        self.lines = 0
        self.chunks = 0
        self.tail = b""
        self.complete = False
        self.go = asyncio.Event()
        self.full = asyncio.Event()
        self.gone = asyncio.Event()
        self._taken_max = taken_max

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            return
        if self.chunks == self._taken_max:
            self.full.set()
            await self.go.wait()
        self.chunks += 1
        self.size_bytes += len(message["body"])
        self.lines += message["body"].count(b"\n")
        self.tail = message["body"] or self.tail
        self.complete = not message.get("more_body", False)


async def ask(site: Any, path: str, reader: Reader, accept: str, query: str = "") -> None:
    """One GET, straight into the application."""
    token = await site.token("ann")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [
            (b"host", b"test"),
            (b"accept", accept.encode()),
            (b"authorization", f"Bearer {token}".encode()),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    await site.app(scope, reader.receive, reader.send)


async def filled_account(site: Any, owner_url: str, entries: int) -> UUID:
    """An account with a journal of so many entries, and as many fills."""
    async with site.client("ann") as client:
        account_id = UUID((await site.account(client, USDT="1000"))["id"])
    owner = await asyncpg.connect(owner_url)
    try:
        await owner.execute(_FILL, account_id, entries)
    finally:
        await owner.close()
    return account_id


@pytest.fixture
async def long_account(site: Any, owner_url: str) -> UUID:
    """An account with more pages of journal and fills than sockets could hold."""
    return await filled_account(site, owner_url, LONG)


class Weighing(Reader):
    """Weighs what is in memory in the middle of the response: tracing all of it takes minutes."""

    FIRST, LAST = 150, 210  # of about 390 chunks
    sent_bytes = 0
    grown_bytes = 0

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.chunks == self.FIRST and not tracemalloc.is_tracing():
            tracemalloc.start()
            self.sent_bytes = -self.size_bytes
        elif self.chunks == self.LAST and tracemalloc.is_tracing():
            self.sent_bytes += self.size_bytes
            _, self.grown_bytes = tracemalloc.get_traced_memory()
            tracemalloc.stop()


@pytest.mark.parametrize(
    ("path", "accept", "lines"),
    [
        # One of the two entries that opened the account moved no money; before them the opening,
        # after them the closing.
        ("statement", "application/x-ndjson", ENTRIES + 1),
        ("journal", "application/x-ndjson", ENTRIES),
        pytest.param("statement", "text/csv", ENTRIES + 2, marks=pytest.mark.long),
        pytest.param("journal", "text/csv", ENTRIES + 1, marks=pytest.mark.long),
        pytest.param("fills", "application/x-ndjson", ENTRIES - 2, marks=pytest.mark.long),
        pytest.param("fills", "text/csv", ENTRIES - 1, marks=pytest.mark.long),
    ],
)
async def test_a_hundred_thousand_entries_take_no_more_memory_than_a_few_pages(
    site: Any, owner_url: str, path: str, accept: str, lines: int
) -> None:
    account_id = await filled_account(site, owner_url, ENTRIES)
    reader = Weighing()
    try:
        await ask(site, f"/v1/accounts/{account_id}/{path}", reader, accept)
    finally:
        tracemalloc.stop()
    assert (reader.status, reader.complete, reader.lines) == (200, True, lines)
    assert reader.sent_bytes > 2 * MEMORY_BYTES_MAX, "too little to show anything"
    assert 0 < reader.grown_bytes < MEMORY_BYTES_MAX
    if (path, accept) == ("statement", "application/x-ndjson"):
        closing = json.loads(reader.tail)
        assert (closing["type"], closing["total"]) == ("closing", str(1000 + ENTRIES - 2))
    assert site.app.state.exports.running == 0


async def test_a_slow_reader_holds_back_the_reading_and_nothing_else(
    site: Any, long_account: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = 0
    fetch = asyncpg.Connection.fetch

    async def counted(self: Any, sql: str, *args: Any, **more: Any) -> Any:
        nonlocal pages
        pages += "FROM journal" in sql
        return await fetch(self, sql, *args, **more)

    monkeypatch.setattr(asyncpg.Connection, "fetch", counted)
    reader = Reader(taken_max=5)
    path = f"/v1/accounts/{long_account}/journal"
    task = asyncio.create_task(ask(site, path, reader, "application/x-ndjson"))
    await asyncio.wait_for(reader.full.wait(), 10)
    # Six were read: five are taken, one waits. The first question was for the head.
    assert pages == 1 + 6
    assert site.pool.get_idle_size() == site.pool.get_size(), "a connection is kept meanwhile"
    async with site.client("ann") as client:  # others are served
        assert (await client.get(path + "?limit=1")).status_code == 200
    assert pages == 1 + 6 + 1
    reader.go.set()
    await task
    assert reader.complete and reader.lines == LONG


async def test_a_reader_that_has_gone_ends_the_export(site: Any, long_account: UUID) -> None:
    reader = Reader(taken_max=3)
    path = f"/v1/accounts/{long_account}/statement"
    task = asyncio.create_task(ask(site, path, reader, "text/csv"))
    await asyncio.wait_for(reader.full.wait(), 10)
    assert site.app.state.exports.running == 1
    reader.gone.set()
    reader.go.set()
    await task
    assert not reader.complete
    assert reader.chunks < 10
    assert site.app.state.exports.running == 0


async def test_a_reader_that_takes_nothing_is_given_up(
    new_site: Any, site: Any, long_account: UUID
) -> None:
    impatient = await new_site(http={"export_stall_timeout_s": 0.05})
    reader = Reader(taken_max=3)
    with pytest.raises(TimeoutError):
        await ask(impatient, f"/v1/accounts/{long_account}/fills", reader, "text/csv")
    assert not reader.complete
    assert impatient.app.state.exports.running == 0


async def test_only_so_many_at_once(
    new_site: Any, site: Any, long_account: UUID, problem: Any
) -> None:
    narrow = await new_site(http={"exports_max": 2})
    path = f"/v1/accounts/{long_account}/journal"
    readers = [Reader(taken_max=1) for _ in range(2)]
    tasks = [
        asyncio.create_task(ask(narrow, path, reader, "application/x-ndjson")) for reader in readers
    ]
    for reader in readers:
        await asyncio.wait_for(reader.full.wait(), 10)
    async with narrow.client("ann") as client:
        answer = await client.get(path, headers={"Accept": "text/csv"})
        problem(answer, 503, "overloaded")
        assert answer.headers["retry-after"] == "5"
        assert (await client.get(path)).status_code == 200, "pages are no exports"
        for reader in readers:
            reader.gone.set()
            reader.go.set()
        await asyncio.gather(*tasks)
        answer = await client.get(path + "?after=4990", headers={"Accept": "text/csv"})
        assert answer.status_code == 200


async def test_a_fault_in_the_middle_is_no_end(
    site: Any, long_account: UUID, owner_url: str, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a real socket: what breaks off is told from what is complete."""
    account = f"{await serve(site)}/v1/accounts/{long_account}"
    url = f"{account}/statement"
    read, reads = entries_after, 0

    async def breaking(*given: Any) -> Any:
        nonlocal reads
        reads += 1
        if reads == 4:
            raise RuntimeError("a fault of ours")
        return await read(*given)

    headers = {
        "Authorization": f"Bearer {await site.token('ann')}",
        "Accept": "application/x-ndjson",
    }
    async with httpx.AsyncClient(headers=headers, trust_env=False, timeout=60) as client:
        whole = await client.get(url)
        assert json.loads(whole.text.splitlines()[-1])["type"] == "closing"
        owner = await asyncpg.connect(owner_url)
        try:
            await owner.execute("ALTER TABLE journal DISABLE TRIGGER USER")
            await owner.execute(
                "DELETE FROM journal WHERE account_id = $1 AND seq = 3000", long_account
            )
        finally:
            await owner.close()
        with structlog.testing.capture_logs():
            # What is wrong before anything was sent is an answer like any other.
            assert (await client.get(url)).json()["code"] == "internal_error"
            monkeypatch.setattr(history, "entries_after", breaking)
            with pytest.raises(httpx.RemoteProtocolError):
                await client.get(f"{account}/journal")
    assert site.app.state.exports.running == 0
